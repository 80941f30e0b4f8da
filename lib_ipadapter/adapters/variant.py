"""Identifies an adapter from its keys and shapes, never from its file's name.

Every kind is a row of data: VARIANTS run, UNSUPPORTED are adapters that this package knows and cannot
run yet, FOREIGN are other kinds of files. File layouts: tencent-ailab/IP-Adapter's constructors.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ..encoders.spec import Feature, Need
from ..errors import BrokenAdapter, NotAnAdapter, UnsupportedAdapter
from .layout import LAYERS, PROJECTION, Shape

Shapes = Mapping[str, Shape]

_NUMBER = re.compile(r"0|[1-9][0-9]{0,5}")  # in a key
_LAST = 2000  # number of a layer; SDXL's last one has 139
DIM_HEAD = 64  # of every Resampler in public use; heads = inner width / 64
BASES = {768: "SD1.5", 1024: "SD2.1", 2048: "SDXL"}
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

    @property
    def needs(self) -> tuple[Need, ...]:
        """The features that it takes, each of its encoder."""
        return (Need(self.feature, self.feature_width, self.encoder),)


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
    expected: Callable[[Shapes, int], dict[str, Shape]]
    tokens: Callable[[Shapes, int], int]
    width: Callable[[Shapes], int]


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
        attention, feed_forward = f"layers.{i}.0", f"layers.{i}.1"
        norms = [f"{attention}.norm1", f"{attention}.norm2", f"{feed_forward}.0"]
        shapes |= {f"{norm}.{part}": (dim,) for norm in norms for part in ("weight", "bias")}
        shapes |= {
            f"{attention}.to_q.weight": (inner, dim), f"{attention}.to_kv.weight": (2 * inner, dim),
            f"{attention}.to_out.weight": (dim, inner),
            f"{feed_forward}.1.weight": (hidden, dim), f"{feed_forward}.3.weight": (dim, hidden),
        }  # fmt: skip
    return shapes


def _is_layer(key: str) -> bool:
    parts = key.split(".")
    return parts[0] == "layers" and len(parts) > 2 and _NUMBER.fullmatch(parts[1]) is not None


VARIANTS = (
    Variant("base", "base / light", "pooled", "proj.weight", _base_shapes,
            lambda s, context: s["proj.weight"][0] // context, lambda s: s["proj.weight"][1]),
    Variant("plus", "plus / plus-face / composition", "penultimate", "latents", _plus_shapes,
            lambda s, context: s["latents"][1], lambda s: s["proj_in.weight"][1]),
    Variant("full", "full-face", "penultimate", "proj.3.weight", _full_shapes,
            lambda s, context: 257, lambda s: s["proj.0.weight"][1]),
)  # fmt: skip


# kinds that are known and do not run yet

Test = Callable[[Shapes], bool]


def _has(*parts: str) -> Test:
    return lambda shapes: all(any(part in key for key in shapes) for part in parts)


def _starts(*prefixes: str) -> Test:
    return lambda shapes: any(key.startswith(prefixes) for key in shapes)


def _width_in(shapes: Shapes) -> int:
    return shapes.get("image_proj.proj_in.weight", (0, 0))[-1]


def _is_instant_id(shapes: Shapes) -> bool:
    return _width_in(shapes) == 512 and shapes.get("image_proj.proj_out.weight", (0,))[0] == 2048


def _is_kolors(shapes: Shapes) -> bool:
    return _width_in(shapes) == 1024 and shapes.get("image_proj.layers.0.0.to_out.weight", (0,))[0] == 2048


def _is_face_id(shapes: Shapes) -> bool:
    return shapes.get("image_proj.proj.0.weight", (0, 0))[-1] == 512 and "image_proj.proj.2.weight" in shapes


def _is_face_id_lora(shapes: Shapes) -> bool:
    return any(key.startswith(LAYERS) and "_lora." in key for key in shapes)


def _is_portrait(shapes: Shapes) -> bool:
    context = shapes.get("image_proj.norm.weight", (1,))[0]
    return _is_face_id(shapes) and shapes["image_proj.proj.2.weight"][0] // context >= 16


UNSUPPORTED: tuple[tuple[Test, str, str], ...] = (
    (_starts("id_adapter", "pulid_"), "PuLID", "face recognition (ArcFace) and EVA-CLIP"),
    (_has("double_blocks."), "an IP-Adapter for Flux", "a Flux model, which the WebUI does not run"),
    (_has("norm_ip.linear"), "an IP-Adapter for SD3", "a model with joint attention and a SigLIP encoder"),
    (_has("image_proj.perceiver_resampler."), "FaceID-Plus", "face recognition (ArcFace)"),
    (_is_portrait, "FaceID portrait", "face recognition (ArcFace)"),
    (_is_face_id, "FaceID", "face recognition (ArcFace)"),
    (_is_face_id_lora, "FaceID", "face recognition (ArcFace)"),
    (_is_instant_id, "InstantID or FaceID portrait-unnorm", "face recognition (ArcFace)"),
    (_is_kolors, "an IP-Adapter for Kolors", "the Kolors model, which the WebUI does not run"),
)

FOREIGN: tuple[tuple[Test, str], ...] = (
    (_has("lora_"), "a LoRA"),
    (_has("hada_w1"), "a LoRA (LoHa)"),
    (_has("lokr_w1"), "a LoRA (LoKr)"),
    (_starts("control_model.", "controlnet_", "input_hint_block."), "a ControlNet"),
    (_has("input_hint_block."), "a ControlNet"),
    (_has("body.0.block1."), "a T2I-Adapter"),
    (_starts("adapter.body.", "body.0."), "a T2I-Adapter"),
    (_has("motion_modules."), "an AnimateDiff motion module"),
    (
        _starts("model.diffusion_model.", "state_dict.model.diffusion_model."),
        "a whole Stable Diffusion checkpoint",
    ),
    (_starts("diffusion_model.", "input_blocks.", "down_blocks."), "a UNet"),
    (
        _starts("vision_model.", "visual.", "clip_vision"),
        "a CLIP image encoder (put it into models/clip_vision)",
    ),
    (_starts("text_model.", "cond_stage_model.", "conditioner.", "transformer.text"), "a text encoder"),
    (_starts("first_stage_model.", "decoder.", "encoder.down"), "a VAE"),
    (_starts("emb_params", "string_to_param", "clip_l", "clip_g"), "a textual inversion embedding"),
)


def identify(shapes: Shapes, path: Path | str, encoder: str = "") -> VariantSpec:
    """The spec of an adapter with these standard keys (layout.py) and shapes. ``encoder``: the one that the file's
    header names, if any, as widths do not tell all encoders apart.

    Raises NotAnAdapter, UnsupportedAdapter, or BrokenAdapter with the keys that are missing, left over or
    misshapen.
    """
    solid = {key: shape for key, shape in shapes.items() if shape and min(shape) > 0}
    for test, name, needs in UNSUPPORTED:
        if test(solid):
            raise UnsupportedAdapter(
                path, f"this is {name}, which needs {needs}; this version cannot run it", value=name,
                expected="a base, light, plus, composition or full-face IP-Adapter",
            )  # fmt: skip
    if not any(key.startswith((PROJECTION, LAYERS)) for key in shapes):
        raise NotAnAdapter(
            path,
            f"this is no IP-Adapter but {_foreign(shapes)}",
            expected="an IP-Adapter (image_proj.*, ip_adapter.*)",
        )
    _refuse_empty(shapes, path)
    projection = {k[len(PROJECTION) :]: v for k, v in shapes.items() if k.startswith(PROJECTION)}
    variant = next((v for v in VARIANTS if v.mark in projection), None)
    context, widths, expected = _layer_shapes(shapes, path)
    if variant is None or len(projection[variant.mark]) != _RANKS[variant.name]:
        marks = ", ".join(f"{PROJECTION}{v.mark}" for v in VARIANTS)
        raise BrokenAdapter(path, f"no known image projection: none of {marks} has the shape of one")
    try:
        wanted = variant.expected(projection, context)
    except (KeyError, ValueError) as error:
        raise BrokenAdapter(path, f"the image projection ({variant.label}) is incomplete: {error} is missing") from None
    expected |= {f"{PROJECTION}{key}": shape for key, shape in wanted.items()}
    _account_for_all(shapes, expected, path)
    spec = _spec(variant, projection, context, widths)
    return replace(spec, encoder=encoder) if encoder else spec


_RANKS = {"base": 2, "plus": 3, "full": 1}


def _spec(variant: Variant, projection: Shapes, context: int, widths: tuple[int, ...]) -> VariantSpec:
    width = variant.width(projection)
    return VariantSpec(
        variant=variant.name,
        label=variant.label,
        base=base_of_context(context),
        feature=variant.feature,
        feature_width=width,
        encoder=_encoder(variant.feature, width),
        tokens=variant.tokens(projection, context),
        context=context,
        widths=widths,
    )


def _encoder(feature: Feature, width: int) -> str:
    known = POOLED_ENCODERS if feature == "pooled" else PENULTIMATE_ENCODERS
    return known.get(width, "")


def _layer_shapes(shapes: Shapes, path: Path | str) -> tuple[int, tuple[int, ...], dict[str, Shape]]:
    """(context, widths in file order, expected shapes of all layers up to the last one that the file has)."""
    keys = {key: shape for key, shape in shapes.items() if key.startswith(LAYERS) and key.endswith(".to_k_ip.weight")}
    numbers = sorted(int(n) for key in keys if _NUMBER.fullmatch(n := key.split(".")[1]))
    if not numbers:
        raise BrokenAdapter(
            path,
            "no attention weights (ip_adapter.N.to_k_ip.weight): the file is incomplete, or a concat ablation "
            "(image tokens appended to the text's), which is for `python -m lib_ipadapter evaluate` only",
        )
    if numbers[-1] > _LAST:
        raise BrokenAdapter(path, f"a layer has the number {numbers[-1]}, expected at most {_LAST}; download it again")
    first = keys[f"{LAYERS}{numbers[0]}.to_k_ip.weight"]
    if len(first) != 2:
        key = f"{LAYERS}{numbers[0]}.to_k_ip.weight"
        raise BrokenAdapter(path, f"misshapen: {key} is {list(first)}, expected [width, context]; download it again")
    context = first[1]
    widths = tuple((keys.get(f"{LAYERS}{n}.to_k_ip.weight") or first)[0] for n in range(1, numbers[-1] + 1, 2))
    expected: dict[str, Shape] = {
        f"{LAYERS}{2 * i + 1}.{kind}.weight": (width, context)
        for i, width in enumerate(widths)
        for kind in ("to_k_ip", "to_v_ip")
    }
    return context, widths, expected


def _refuse_empty(shapes: Shapes, path: Path | str) -> None:
    """No weight is a single number or without extent; what reads shapes further on relies on it."""
    empty = [f"{key} is {list(shape)}" for key, shape in shapes.items() if not shape or min(shape) < 1]
    if empty:
        raise BrokenAdapter(
            path, f"{_listed('misshapen', empty)}, expected weights; download it again", misshapen=empty
        )


def _account_for_all(shapes: Shapes, expected: Mapping[str, Shape], path: Path | str) -> None:
    missing = [key for key in expected if key not in shapes]
    extra = [key for key in shapes if key not in expected]
    misshapen = [
        f"{key} is {list(shapes[key])}, expected {list(shape)}"
        for key, shape in expected.items()
        if key in shapes and tuple(shapes[key]) != shape
    ]
    problems = [_listed("missing", missing), _listed("left over", extra), _listed("misshapen", misshapen)]
    if any(problems):
        raise BrokenAdapter(
            path, f"{'; '.join(p for p in problems if p)}. The file is damaged or of a kind that is not known; "
            "download it again", missing=missing, extra=extra, misshapen=misshapen,
        )  # fmt: skip


def _listed(what: str, keys: Sequence[str], most: int = 6) -> str:
    if not keys:
        return ""
    more = f" and {len(keys) - most} more" if len(keys) > most else ""
    return f"{what}: {', '.join(keys[:most])}{more}"


def _foreign(shapes: Shapes) -> str:
    for test, name in FOREIGN:
        if test(shapes):
            return name
    keys = ", ".join(list(shapes)[:3])
    return (
        f"a file of {len(shapes)} tensors ({keys}{', ...' if len(shapes) > 3 else ''})" if shapes else "an empty file"
    )
