from .classifier import Classifier as Classifier, build_classifier as build_classifier
from .encoder import Encoder as Encoder, build_encoder as build_encoder
from .losses.segmentation import (
    LOSSES as LOSSES,
    SegmentationLoss as SegmentationLoss,
    rare_structure_weights as rare_structure_weights,
)
from .networks import NETWORKS as NETWORKS, choose_network as choose_network
from .output import Output as Output
from .segmenter import Segmenter as Segmenter, build_segmenter as build_segmenter
from .weights.hub import PACKAGED_ENCODER as PACKAGED_ENCODER, weights_here as weights_here
from .with_features import WithFeatures as WithFeatures, with_features as with_features
