"""CLIP image encoders: a picture to the features that adapters take."""

from .clip import Features, ImageEncoder
from .custom import register_archs, register_configs
from .find import find_encoder, identify_encoder
from .source import EncoderPool, EncoderSource, FeatureCache
from .spec import ENCODERS, EncoderSpec, Feature, HubFile, for_feature, register

__all__ = [
    "ENCODERS",
    "EncoderPool",
    "EncoderSource",
    "EncoderSpec",
    "Feature",
    "FeatureCache",
    "Features",
    "HubFile",
    "ImageEncoder",
    "find_encoder",
    "for_feature",
    "identify_encoder",
    "register",
    "register_archs",
    "register_configs",
]
