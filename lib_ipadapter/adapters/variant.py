"""Identifies an adapter from its keys and shapes. Only where two kinds have the same ones (TWINS), the hash of a
published file tells, or the user, last its name.

Every kind is a row of data: VARIANTS run; what does not is in foreign.py. File layouts: tencent-ailab/IP-Adapter's
constructors.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from ..encoders.spec import FACE_FEATURES, Feature, Need
from ..errors import BrokenAdapter, NotAnAdapter, UnitError, UnsupportedAdapter
from . import pulid
from .account import account_for_all, layer_shapes, refuse_empty
from .aitoolkit import refuse_trained_encoder
from .file import AdapterFile
from .foreign import UNSUPPORTED, foreign
from .layout import DIM_HEAD, FACE_WIDTH, LAYERS, PROJECTION, Shape, perceiver_layer
from .lora import lora_shapes

Shapes = Mapping[str, Shape]

_NUMBER = re.compile(r"0|[1-9][0-9]{0,5}")  # in a key
BASES = {768: "SD1.5", 1024: "SD2.1", 2048: "SDXL"}
RESAMPLER = "perceiver_resampler."
POOLED_ENCODERS = {1024: "ViT-H-14", 1280: "ViT-bigG-14", 768: "ViT-L-14"}
PENULTIMATE_ENCODERS = {1280: "ViT-H-14", 1664: "ViT-bigG-14", 1024: "ViT-L-14"}


@dataclass(frozen=True)
class VariantSpec:
    """What an adapter is, resolved once from its keys and shapes."""

    variant: str  # kind of projection: base, plus, full
    label: str  # the same for people
    base: str  # base model by the width of its text tokens
    feature: Feature  # what of the image encoder it takes
    feature_width: int  # columns of that feature
    encoder: str  # name of the encoder by the header or the width, "" if neither tells
    tokens: int  # image tokens per picture; of full: of the published encoders
    context: int  # width of a token
    widths: tuple[int, ...]  # of q in each cross-attention layer, in file order
    also: tuple[Need, ...] = ()  # what it takes beside ``feature``
    lora_rank: int = 0  # of the LoRA in the file, 0 for none
    kinds: tuple[str, ...] = ()  # what the user may say that it is, where the file does not tell

    @property
    def needs(self) -> tuple[Need, ...]:
        """The features that it takes, each of its encoder."""
        of: Literal["picture", "face"] = "face" if self.feature in FACE_FEATURES else "picture"
        return (Need(self.feature, self.feature_width, self.encoder, of), *self.also)

    @property
    def of_face(self) -> bool:
        """Whether it takes faces."""
        return self.needs[0].is_face

    @property
    def shortcut(self) -> bool:
        """Whether the embedding's tokens bypass the resampler, which a factor then scales."""
        return self.variant == "faceid-plusv2"

    @property
    def corrected(self) -> bool:
        """Whether its term is corrected against the text's (attention/correction.py)."""
        return self.variant in ("pulid", "pulid-v1.1")

    @property
    def further(self) -> int:
        """Tokens of each reference behind the first, 0 for all of them."""
        return pulid.FACE_TOKENS if self.variant == "pulid" else 0

    @property
    def joint(self) -> bool:
        """Whether several faces make one set of tokens."""
        return self.variant == "pulid-v1.1"

    @property
    def posed(self) -> bool:
        """Whether a ControlNet on the face's keypoints goes with it."""
        return self.variant == "instantid"

    def as_kind(self, kind: str) -> VariantSpec:
        """The same with the user's word for what it is, "auto" for none. Raises UnitError."""
        if kind in ("auto", self.variant):
            return self
        if kind not in self.kinds:
            own = " or ".join(self.kinds or (self.variant,))
            raise UnitError("kind", kind, f"auto, or {own}: what the adapter's file is")
        row = next(row for row in VARIANTS if row.name == kind)
        return replace(self, variant=row.name, label=row.label, encoder=row.encoder or self.encoder)


def base_of_context(context: int) -> str:
    """The base model whose text tokens are ``context`` wide."""
    return BASES.get(context, f"custom (context {context})")


# kinds that run: the projection's shapes, as its own key and the context say they must be


@dataclass(frozen=True)
class Variant:
    """A kind of projection. ``mark``: a key that only it has; ``expected``: all of its shapes, given what
    the file has at ``mark`` and the context; ``tokens`` and ``width`` of feature, read off the shapes."""

    name: str
    label: str
    feature: Feature
    mark: str
    rank: int  # dimensions of ``mark``
    expected: Callable[[Shapes, int], dict[str, Shape]]
    tokens: Callable[[Shapes, int], int]
    width: Callable[[Shapes], int]
    encoder: str = ""  # pack of the face recogniser
    fits: Callable[[Shapes, int], bool] = lambda shapes, context: True  # what else must be so
    resampled: bool = False  # whether it takes the CLIP features of the aligned face, too
    also: Callable[[Shapes], tuple[Need, ...]] = lambda shapes: ()  # what else it takes


def _base_shapes(found: Shapes, context: int) -> dict[str, Shape]:
    rows, width = found["proj.weight"]
    rows = max(rows // context, 1) * context
    return {
        "proj.weight": (rows, width),
        "proj.bias": (rows,),
        "norm.weight": (context,),
        "norm.bias": (context,),
    }


def _full_shapes(found: Shapes, context: int) -> dict[str, Shape]:
    width = found["proj.0.weight"][-1]
    return {
        "proj.0.weight": (width, width), "proj.0.bias": (width,), "proj.2.weight": (context, width),
        "proj.2.bias": (context,), "proj.3.weight": (context,), "proj.3.bias": (context,),
    }  # fmt: skip


def _plus_shapes(found: Shapes, context: int) -> dict[str, Shape]:
    _, tokens, dim = found["latents"]
    width = found.get("proj_in.weight", (dim, dim))[-1]
    inner = found.get("layers.0.0.to_q.weight", (dim, dim))[0] // DIM_HEAD * DIM_HEAD
    hidden = found.get("layers.0.1.1.weight", (4 * dim, dim))[0]
    depth = 1 + max((int(key.split(".")[1]) for key in found if _is_layer(key)), default=-1)
    depth = min(depth, len(found) + 1)  # a number beyond any key makes a file broken, and no table of that size
    shapes: dict[str, Shape] = {
        "latents": (1, tokens, dim), "proj_in.weight": (dim, width), "proj_in.bias": (dim,),
        "proj_out.weight": (context, dim), "proj_out.bias": (context,),
        "norm_out.weight": (context,), "norm_out.bias": (context,),
    }  # fmt: skip
    for i in range(max(depth, 1)):
        shapes |= perceiver_layer(i, dim, inner, hidden)
    return shapes


def _face_shapes(found: Shapes, context: int) -> dict[str, Shape]:
    hidden = found["proj.0.weight"][0]
    rows = max(found["proj.2.weight"][0] // context, 1) * context
    return {
        "proj.0.weight": (hidden, FACE_WIDTH), "proj.0.bias": (hidden,), "proj.2.weight": (rows, hidden),
        "proj.2.bias": (rows,), "norm.weight": (context,), "norm.bias": (context,),
    }  # fmt: skip


def _face_plus_shapes(found: Shapes, context: int) -> dict[str, Shape]:
    tokens = max(found["proj.2.weight"][0] // context, 1)
    inside = {key[len(RESAMPLER) :]: shape for key, shape in found.items() if key.startswith(RESAMPLER)}
    resampler = _plus_shapes({**inside, "latents": (1, tokens, context)}, context)
    del resampler["latents"]  # the embedding's tokens are the latents
    return _face_shapes(found, context) | {f"{RESAMPLER}{key}": shape for key, shape in resampler.items()}


def _of_face(found: Shapes, context: int) -> bool:
    """Also rows that are tokens: else nothing says how many."""
    rows, width = found["proj.2.weight"][0], found.get("proj.0.weight", (0, 0))[-1]
    return width == FACE_WIDTH and rows >= context


def _is_resampled_face(found: Shapes, context: int) -> bool:
    return found.get("proj_in.weight", (0, 0))[-1] == FACE_WIDTH and context == 2048


def _is_layer(key: str) -> bool:
    parts = key.split(".")
    return parts[0] == "layers" and len(parts) > 2 and _NUMBER.fullmatch(parts[1]) is not None


def _face_tokens(found: Shapes, context: int) -> int:
    return found["proj.2.weight"][0] // context


def _face_width(found: Shapes) -> int:
    return FACE_WIDTH


def _face_row(name: str, label: str, mark: str = "proj.2.weight", **more: Any) -> Variant:
    shapes = _face_plus_shapes if more.get("resampled") else _face_shapes
    return Variant(name, label, "face", mark, 2, shapes, _face_tokens, _face_width, "buffalo_l", **more)


def _face_resampler(name: str, label: str, pack: str) -> Variant:
    return Variant(name, label, "raw face", "latents", 3, _plus_shapes,
                   lambda s, context: s["latents"][1], _face_width, pack, _is_resampled_face)  # fmt: skip


def _pulid_row(name: str, label: str, mark: str, **more: Any) -> Variant:
    return Variant(name, label, "raw face", mark, 2, width=_face_width, encoder="antelopev2",
                   also=lambda shapes: pulid.of_clip(mark, shapes), **more)  # fmt: skip


_PLUS_MARK = f"{RESAMPLER}proj_in.weight"
VARIANTS = (  # the first that fits
    _pulid_row("pulid-v1.1", "PuLID v1.1", pulid.V11_MARK, expected=pulid.v11_shapes, fits=pulid.is_v11,
               tokens=lambda s, context: s["latents"][1]),
    _pulid_row("pulid", "PuLID", pulid.V1_MARK, expected=pulid.v1_shapes, fits=pulid.is_v1, tokens=pulid.v1_tokens),
    _face_row("faceid-plusv2", "FaceID-PlusV2", _PLUS_MARK, fits=_of_face, resampled=True),
    _face_row("faceid-plus", "FaceID-Plus", _PLUS_MARK, fits=_of_face, resampled=True),
    Variant("base", "base / light", "pooled", "proj.weight", 2, _base_shapes,
            lambda s, context: s["proj.weight"][0] // context, lambda s: s["proj.weight"][1]),
    _face_resampler("instantid", "InstantID", "antelopev2"),
    _face_resampler("unnorm", "FaceID portrait-unnorm", "buffalo_l"),
    Variant("plus", "plus / plus-face / composition", "penultimate", "latents", 3, _plus_shapes,
            lambda s, context: s["latents"][1], lambda s: s["proj_in.weight"][1]),
    Variant("full", "full-face", "penultimate", "proj.3.weight", 1, _full_shapes,
            lambda s, context: 257, lambda s: s["proj.0.weight"][1]),
    _face_row("portrait", "FaceID portrait", fits=lambda s, c: _of_face(s, c) and _face_tokens(s, c) >= 16),
    _face_row("faceid", "FaceID", fits=_of_face),
)  # fmt: skip

# Kinds of the same keys and shapes. Of the first, the second by the file's name
TWINS = {"faceid-plusv2": "faceid-plus", "instantid": "unnorm"}


def _twin_by_name(name: str, path: Path | str, context: int) -> str:
    """Which of two kinds a file is that no hash tells. No FaceID-Plus of the first version has SDXL's context."""
    file = Path(path).name.lower()
    if name == "faceid-plusv2":
        first = "plus" in file and "v2" not in file and context != 2048
        return TWINS[name] if first else name
    return TWINS[name] if "unnorm" in file or "portrait" in file else name


def identify(shapes: Shapes, path: Path | str, encoder: str = "", known: str = "") -> VariantSpec:
    """The spec of an adapter with these standard keys (layout.py) and shapes. ``encoder``: the one that the file's
    header names, if any, as widths do not tell all encoders apart; ``known``: the kind that its hash or its header
    tells, which decides between two of the same shapes.

    Raises NotAnAdapter, UnsupportedAdapter, or BrokenAdapter with the keys that are missing, left over or
    misshapen.
    """
    solid = {key: shape for key, shape in shapes.items() if shape and min(shape) > 0}
    for test, name, needs in UNSUPPORTED:
        if test(solid):
            raise UnsupportedAdapter(
                path, f"this is {name}, which needs {needs}; this version cannot run it", value=name,
                expected="an IP-Adapter: base, light, plus, composition, full-face, FaceID or PuLID",
            )  # fmt: skip
    if not any(key.startswith((PROJECTION, LAYERS)) for key in shapes):
        raise NotAnAdapter(
            path,
            f"this is no IP-Adapter but {foreign(shapes)}",
            expected="an IP-Adapter (image_proj.*, ip_adapter.*)",
        )
    refuse_empty(shapes, path)
    projection = {k[len(PROJECTION) :]: v for k, v in shapes.items() if k.startswith(PROJECTION)}
    context, widths, expected = layer_shapes(shapes, path)
    variant = next((v for v in VARIANTS if _is(v, projection, context, encoder, known)), None)
    if variant is None:
        marks = ", ".join(f"{PROJECTION}{mark}" for mark in dict.fromkeys(v.mark for v in VARIANTS))
        raise BrokenAdapter(path, f"no known image projection: none of {marks} has the shape of one")
    try:
        wanted = variant.expected(projection, context)
    except (KeyError, ValueError) as error:
        raise BrokenAdapter(path, f"the image projection ({variant.label}) is incomplete: {error} is missing") from None
    rank, lora = lora_shapes(shapes, widths, context)
    expected |= {f"{PROJECTION}{key}": shape for key, shape in wanted.items()} | lora
    account_for_all(shapes, expected, path)
    spec = _spec(variant, projection, context, widths)
    spec = replace(_told(spec, path, known), lora_rank=rank)
    return replace(spec, encoder=encoder) if encoder and not spec.of_face else spec


def identify_file(file: AdapterFile) -> VariantSpec:
    """The spec of an opened file. Raises as ``identify`` does, and UnsupportedAdapter for one that brings along an
    image encoder of its own."""
    refuse_trained_encoder(file.unused.get("image encoder", []), file.path)
    return identify(file.shapes, file.path, file.encoder, file.known)


def _is(variant: Variant, projection: Shapes, context: int, encoder: str, known: str) -> bool:
    """encoder: of CLIP, by the header of a file that our trainer wrote; no face has one. known: the kind that the
    header or the hash tells."""
    mark = projection.get(variant.mark, ())
    by_clip = bool(encoder) and variant.name in ("instantid", "unnorm")
    return (
        len(mark) == variant.rank and not by_clip and (known == variant.name or _safely(variant, projection, context))
    )


def _safely(variant: Variant, projection: Shapes, context: int) -> bool:
    try:
        return variant.fits(projection, context)
    except (KeyError, IndexError):
        return False


def _told(spec: VariantSpec, path: Path | str, known: str) -> VariantSpec:
    """Of two kinds of these shapes the right one."""
    if spec.variant not in TWINS:
        return spec
    kinds = (spec.variant, TWINS[spec.variant])
    if known in kinds:
        return replace(replace(spec, kinds=kinds).as_kind(known), kinds=(known,))
    return replace(spec, kinds=kinds).as_kind(_twin_by_name(spec.variant, path, spec.context))


def _spec(variant: Variant, projection: Shapes, context: int, widths: tuple[int, ...]) -> VariantSpec:
    width = variant.width(projection)
    also = variant.also(projection)
    if variant.resampled:
        clip = projection[_PLUS_MARK][1]
        also = (Need("penultimate", clip, _encoder("penultimate", clip), "face"),)
    return VariantSpec(
        variant=variant.name,
        label=variant.label,
        base=base_of_context(context),
        feature=variant.feature,
        feature_width=width,
        encoder=variant.encoder or _encoder(variant.feature, width),
        tokens=variant.tokens(projection, context),
        context=context,
        widths=widths,
        also=also,
    )


def _encoder(feature: Feature, width: int) -> str:
    known = POOLED_ENCODERS if feature == "pooled" else PENULTIMATE_ENCODERS
    return known.get(width, "")
