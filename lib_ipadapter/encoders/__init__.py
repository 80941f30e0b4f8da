"""Image encoders: a picture to the features that adapters take."""

from .catalog import Catalog, absolute_weight_file, find_encoder, weight_file
from .clip import Features, ImageEncoder
from .configs import register_archs
from .recognise import identify_encoder
from .source import KEEP, EncoderPool, EncoderSource
from .spec import ENCODERS, EncoderSpec, Feature, HubFile, Need, for_feature, register

__all__ = [
    "ENCODERS",
    "KEEP",
    "Catalog",
    "EncoderPool",
    "EncoderSource",
    "EncoderSpec",
    "Feature",
    "Features",
    "HubFile",
    "ImageEncoder",
    "Need",
    "absolute_weight_file",
    "find_encoder",
    "for_feature",
    "identify_encoder",
    "register",
    "register_archs",
    "weight_file",
]
