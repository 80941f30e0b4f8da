"""EncoderSpec: sizes, activation and normalisation of a vision tower, and the registry of the known ones."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from ..errors import BrokenEncoder, EncoderError

# Of a CLIP encoder: pooled [1, E], penultimate [1, T, W], levels [1, 5, T, W] (the hidden states in front of the blocks
# at a sixth, two sixths, ... of its depth). Of a face recogniser: its embedding [1, 512], as long as it is (raw face)
# or of length 1 (face).
Feature = Literal["pooled", "penultimate", "levels", "face", "raw face"]
FACE_FEATURES: tuple[Feature, ...] = ("face", "raw face")
Of = Literal["picture", "face", "bare face"]
LEVELS = 5  # hidden states of the feature "levels"
ZERO_FEATURES: tuple[Feature, ...] = (
    "pooled",
    "levels",
    *FACE_FEATURES,
)  # those that are zeros where there is no picture

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


MOST = 16384  # of a size of a tower


@dataclass(frozen=True)
class HubFile:
    """A file on the Hugging Face hub; None where size (bytes) or sha256 is left to the server to state."""

    repo: str
    file: str
    size: int | None = None
    sha256: str | None = None

    def __str__(self) -> str:
        return f"{self.repo}, file {self.file}"


@dataclass(frozen=True)
class Need:
    """One feature that an adapter takes: its kind, its width, and the name of the encoder or of the recogniser's pack,
    "" where the adapter does not say. of: what the encoder is shown, the picture, the aligned crop of a face, or a
    larger crop of it, grey on white, without what is not the face (bare face)."""

    feature: Feature
    width: int
    encoder: str = ""
    of: Of = "picture"

    @property
    def is_face(self) -> bool:
        """Whether a face recogniser gives it."""
        return self.feature in FACE_FEATURES

    def __str__(self) -> str:
        of = f" of {self.encoder}" if self.encoder else ""
        return f"{self.feature} features{of} of width {self.width}"


@dataclass(frozen=True)
class TowerShape:
    """Sizes of a vision tower that the shapes of its weights show; towers are recognised by them."""

    width: int  # channels of a token
    layers: int  # transformer blocks
    patch: int  # side of a patch, pixels
    positions: int  # tokens, the class token included
    embed_dim: int  # width of the projected embedding
    hidden: int  # width between the two matrices of an MLP

    def __str__(self) -> str:
        return (
            f"width {self.width}, {self.layers} layers, patch {self.patch}, {self.positions} positions, "
            f"MLP {self.hidden}, projection to {self.embed_dim}"
        )


@dataclass(frozen=True)
class EncoderSpec:
    """A vision tower as open_clip builds it (``open_clip.transformer.VisionTransformer``), or one from timm."""

    name: str
    image_size: int  # side of the square, pixels
    patch: int  # side of a patch, pixels
    width: int  # channels of a token = width of the penultimate feature
    layers: int
    heads: int
    embed_dim: int  # width of the pooled feature
    mlp_ratio: float = 4.0
    quick_gelu: bool = False  # x·sigmoid(1.702x), as OpenAI trained; shapes do not show it
    mean: tuple[float, float, float] = CLIP_MEAN
    std: tuple[float, float, float] = CLIP_STD
    pretrained_hint: HubFile | None = None  # where its weights can be downloaded
    prefix: int = 1  # tokens in front of the patches': the class token
    timm: tuple[str, str, str] = ("", "", "")  # model, pool and projection of a tower from timm

    @property
    def activation(self) -> str:
        """Of the MLPs."""
        return "QuickGELU" if self.quick_gelu else "GELU"

    @property
    def tokens(self) -> int:
        """Tokens of the penultimate feature: the class token, if any, and one for each patch."""
        return (self.image_size // self.patch) ** 2 + self.prefix

    @property
    def shape(self) -> TowerShape:
        """The shapes by which a file of this tower is recognised."""
        hidden = int(self.width * self.mlp_ratio)
        return TowerShape(self.width, self.layers, self.patch, self.tokens, self.embed_dim, hidden)

    @property
    def beside_weights(self) -> str:
        """Of a custom tower what makes its features and its weights do not show, "" for a registered one."""
        names = () if self in ENCODERS.values() else ("image_size", "heads", "quick_gelu", "mean", "std", "timm")
        return ", ".join(f"{name} {getattr(self, name)}" for name in names)

    def feature_width(self, feature: Feature) -> int:
        """Width of the last axis of ``feature``."""
        return self.embed_dim if feature == "pooled" else self.width

    def gives(self, feature: Feature) -> bool:
        """Whether it has this feature: levels are those of towers from timm."""
        return feature != "levels" or (bool(self.timm[0]) and not self.timm[0].startswith("convnext"))

    def checked(self) -> EncoderSpec:
        """Raises EncoderError for sizes that make no tower. timm's leave pixels over where the patches do not fit."""
        sizes = (self.image_size, self.patch, self.width, self.layers, self.heads, self.embed_dim)
        whole = all(type(n) is int and 0 < n <= MOST for n in sizes)
        whole = whole and (bool(self.timm[0]) or not self.image_size % self.patch) and not self.width % self.heads
        pixels = (*self.mean, *self.std, self.mlp_ratio)
        if (
            len(self.mean) != 3
            or len(self.std) != 3
            or not all(map(math.isfinite, pixels))
            or min(*self.std, self.mlp_ratio) <= 0
        ):
            raise BrokenEncoder(
                f"encoder {self.name!r}: mean {self.mean} and std {self.std} must be three numbers each, std and "
                "mlp_ratio "
                f"({self.mlp_ratio}) above 0"
            )
        if not self.name or not whole:
            raise BrokenEncoder(
                f"encoder {self.name!r}: image_size {self.image_size} must be a multiple of patch {self.patch}, "
                f"width {self.width} one of heads {self.heads}, and all sizes whole numbers from 1 to {MOST}, "
                "with a name"
            )
        return self


# ViT-L-14 stands for OpenAI's weights: LAION's ViT-L-14 has the same shapes, but exact GELU.
_VIT_H = HubFile(
    "h94/IP-Adapter",
    "models/image_encoder/model.safetensors",
    2_528_373_448,
    "6ca9667da1ca9e0b0f75e46bb030f7e011f44f86cbfb8d5a36590fcd7507b030",
)
_BIGG = HubFile(
    "h94/IP-Adapter",
    "sdxl_models/image_encoder/model.safetensors",
    3_689_912_664,
    "657723e09f46a7c3957df651601029f66b1748afb12b419816330f16ed45d64d",
)
_VIT_L = HubFile("openai/clip-vit-large-patch14", "model.safetensors")
_VIT_L_336 = HubFile("openai/clip-vit-large-patch14-336", "pytorch_model.bin")
_EVA = HubFile("QuanSun/EVA-CLIP", "EVA02_CLIP_L_336_psz14_s6B.pt")

_BUILT_IN = (
    EncoderSpec("ViT-H-14", 224, 14, 1280, 32, 16, 1024, pretrained_hint=_VIT_H),
    EncoderSpec("ViT-bigG-14", 224, 14, 1664, 48, 16, 1280, mlp_ratio=4.9231, pretrained_hint=_BIGG),
    EncoderSpec("ViT-L-14", 224, 14, 1024, 24, 16, 768, quick_gelu=True, pretrained_hint=_VIT_L),
    EncoderSpec("ViT-L-14-336", 336, 14, 1024, 24, 16, 768, quick_gelu=True, pretrained_hint=_VIT_L_336),
    EncoderSpec("EVA02-L-14-336", 336, 14, 1024, 24, 16, 768, mlp_ratio=8 / 3, pretrained_hint=_EVA,
                timm=("eva02_large_patch14_clip_336", "token", "")),
)  # fmt: skip

ENCODERS: dict[str, EncoderSpec] = {spec.name: spec for spec in _BUILT_IN}


def register(spec: EncoderSpec) -> EncoderSpec:
    """Adds a tower to the registry. Registering the same one again changes nothing.

    Raises EncoderError for a name or shapes of another registered tower: files would be ambiguous.
    """
    spec.checked()
    for other in ENCODERS.values():
        if other != spec and (other.name == spec.name or other.shape == spec.shape):
            raise EncoderError(
                f"encoder {spec.name!r} ({spec.shape}) clashes with {other.name!r} ({other.shape}), which is "
                "registered: choose another name, or a tower of other shapes"
            )
    ENCODERS[spec.name] = spec
    return spec


def for_feature(feature: Feature, width: int) -> EncoderSpec | None:
    """The first registered encoder whose ``feature`` is ``width`` wide, or None."""
    return next((s for s in ENCODERS.values() if s.gives(feature) and s.feature_width(feature) == width), None)
