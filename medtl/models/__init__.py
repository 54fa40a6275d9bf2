"""Encoders with ImageNet weights, and the classifiers and segmentation networks built on them."""

from medtl.models.classifier import Classifier, build_classifier
from medtl.models.encoder import Encoder, build_encoder
from medtl.models.losses.segmentation import LOSSES, SegmentationLoss, class_weights
from medtl.models.networks import NETWORKS, choose_network
from medtl.models.output import Output
from medtl.models.segmenter import Segmenter, build_segmenter
from medtl.models.weights.load import PACKAGED_ENCODER, weights_here
from medtl.models.with_features import WithFeatures, with_features

__all__ = [
    "LOSSES",
    "NETWORKS",
    "PACKAGED_ENCODER",
    "Classifier",
    "Encoder",
    "Output",
    "SegmentationLoss",
    "Segmenter",
    "WithFeatures",
    "build_classifier",
    "build_encoder",
    "build_segmenter",
    "choose_network",
    "class_weights",
    "weights_here",
    "with_features",
]
