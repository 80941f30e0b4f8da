"""EncoderSpec: what there is to know about a CLIP vision tower, and the registry of the known ones."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ..errors import EncoderError

Feature = Literal["pooled", "penultimate"]

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


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
class TowerShape:
    """What the shapes of a weight file tell of a vision tower; towers are recognised by it."""

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
    """A vision tower of open_clip's making (``open_clip.transformer.VisionTransformer``), or timm's."""

    name: str
    image_size: int  # side of the square, pixels
    patch: int  # side of a patch, pixels
    width: int  # channels of a token = width of the penultimate feature
    layers: int
    heads: int
    embed_dim: int  # width of the pooled feature
    mlp_ratio: float = 4.0
    quick_gelu: bool = False  # x·sigmoid(1.702x), as OpenAI trained; cannot be seen from shapes
    mean: tuple[float, float, float] = CLIP_MEAN
    std: tuple[float, float, float] = CLIP_STD
    pretrained_hint: HubFile | None = None  # where its weights can be had
    prefix: int = 1  # tokens in front of the patches': the class token
    timm: tuple[str, str, str] = ("", "", "")  # model, pool and projection of a tower that is timm's

    @property
    def tokens(self) -> int:
        """Tokens of the penultimate feature: the class token, if any, and one for each patch."""
        return (self.image_size // self.patch) ** 2 + self.prefix

    @property
    def shape(self) -> TowerShape:
        """The shapes by which a file of this tower is recognised."""
        hidden = int(self.width * self.mlp_ratio)
        return TowerShape(self.width, self.layers, self.patch, self.tokens, self.embed_dim, hidden)

    def feature_width(self, feature: Feature) -> int:
        """Width of the last axis of ``feature``."""
        return self.embed_dim if feature == "pooled" else self.width


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

_BUILT_IN = (
    EncoderSpec("ViT-H-14", 224, 14, 1280, 32, 16, 1024, pretrained_hint=_VIT_H),
    EncoderSpec("ViT-bigG-14", 224, 14, 1664, 48, 16, 1280, mlp_ratio=4.9231, pretrained_hint=_BIGG),
    EncoderSpec("ViT-L-14", 224, 14, 1024, 24, 16, 768, quick_gelu=True, pretrained_hint=_VIT_L),
    EncoderSpec("ViT-L-14-336", 336, 14, 1024, 24, 16, 768, quick_gelu=True, pretrained_hint=_VIT_L_336),
)

ENCODERS: dict[str, EncoderSpec] = {spec.name: spec for spec in _BUILT_IN}


def register(spec: EncoderSpec) -> EncoderSpec:
    """Makes another tower known. Registering the same again is harmless; a clash raises EncoderError.

    A name already taken by another spec, or shapes that another tower has, would make files ambiguous.
    """
    _check(spec)
    for other in ENCODERS.values():
        if other != spec and (other.name == spec.name or other.shape == spec.shape):
            raise EncoderError(
                f"encoder {spec.name!r} ({spec.shape}) clashes with {other.name!r} ({other.shape}), which is "
                "registered: choose another name, or a tower of other shapes"
            )
    ENCODERS[spec.name] = spec
    return spec


def _check(spec: EncoderSpec) -> None:
    sizes = (spec.image_size, spec.patch, spec.width, spec.layers, spec.heads, spec.embed_dim)
    whole = min(sizes) > 0 and not spec.image_size % spec.patch and not spec.width % spec.heads
    if not spec.name or not whole:
        raise EncoderError(
            f"encoder {spec.name!r}: image_size {spec.image_size} must be a multiple of patch {spec.patch}, "
            f"width {spec.width} one of heads {spec.heads}, and all sizes positive, with a name"
        )


def for_feature(feature: Feature, width: int) -> EncoderSpec | None:
    """The first registered encoder whose ``feature`` is ``width`` wide, or None."""
    return next((spec for spec in ENCODERS.values() if spec.feature_width(feature) == width), None)


def for_file(name: str) -> EncoderSpec | None:
    """The encoder that a file is by its stem: one of timm's, which are not told by their shapes; or None."""
    spec = ENCODERS.get(name)
    return spec if spec is not None and spec.timm[0] else None


def for_shape(shape: TowerShape) -> EncoderSpec | None:
    """The registered encoder of this shape, or None."""
    return next((spec for spec in ENCODERS.values() if spec.shape == shape), None)
