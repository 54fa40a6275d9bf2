"""Encoders with ImageNet weights, and the classifiers that are built on them."""

from medtl.models.classifier import Classifier, build_classifier
from medtl.models.encoder import Encoder, build_encoder
from medtl.models.features import WithFeatures, with_features
from medtl.models.output import Output

__all__ = [
    "Classifier",
    "Encoder",
    "Output",
    "WithFeatures",
    "build_classifier",
    "build_encoder",
    "with_features",
]
