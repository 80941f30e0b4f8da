"""The keys of adapter files, in all styles of the field, to the standard ones.

Standard are ``image_proj.*`` and ``ip_adapter.N.to_{k,v}_ip.weight`` (tencent-ailab/IP-Adapter). Other styles:

- ``image_proj_model.*`` and ``adapter_modules.*``: accelerate's states of the original training. Safetensors keep one
  name of each tensor, so the layers may stand under ``unet.*.processor.to_k_ip.weight`` only.
- ``encoder_hid_proj.*`` and ``*.processor.to_k_ip.0.weight``: a UNet's state dict of diffusers
  (``UNet2DConditionLoadersMixin._convert_ip_adapter_image_proj_to_diffusers`` is what is undone here).
- ``id_adapter.*`` and ``id_adapter_attn_layers.N.id_to_{k,v}.weight``: PuLID. Converted, it has the standard keys.
- each of these below ``model.``, ``module.``, ``state_dict.`` and the like.

Layers are numbered by their names, as diffusers numbers them (down, up, mid), never by their order in the file.
"""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import BrokenAdapter, UnsupportedAdapter

Shape = tuple[int, ...]
PROJECTION, LAYERS = "image_proj.", "ip_adapter."
FACE_WIDTH = 512  # of a recogniser's embedding
DIM_HEAD = 64  # of every Resampler in public use; heads = inner width / 64

_WRAPPERS = re.compile(r"^(?:(?:module|model|state_dict|_orig_mod|net|pipeline)\.)+")
_STYLES = {
    "image_proj_model.": PROJECTION, "adapter_modules.": LAYERS, PROJECTION: PROJECTION, LAYERS: LAYERS,
    "id_adapter.": PROJECTION,
}  # fmt: skip
_UNET = re.compile(r"^(?:unet\.|diffusion_model\.)")
_ATTENTION = re.compile(r"(.+\.attn2)\.")
_LAYER = re.compile(r"(.+\.attn2)\.(?:processor\.)?(to_[kv]_ip)(?:\.(\d+))?\.weight")
_LORA = re.compile(r"(.+\.attn[12])\.processor\.(to_(?:q|k|v|out)_lora\.(?:down|up))\.weight")  # FaceID's
_PULID = re.compile(r"id_adapter_attn_layers\.(\d+)\.id_to_([kv])\.weight")
_HIDDEN = re.compile(r"encoder_hid_proj\.(?:image_projection_layers\.(\d+)\.)?(.+)")
_PARTS = {
    "down_blocks": 0,
    "input_blocks": 0,
    "up_blocks": 1,
    "output_blocks": 1,
    "mid_block": 2,
    "middle_block": 2,
}
# diffusers' names in the projections to the original ones; in a resampler's block the older names are numbers.
_RENAMED = (
    (r"^image_embeds\.", "proj."),
    (r"^(?:ff|proj)\.net\.0\.proj\.", "proj.0."),
    (r"^(?:ff|proj)\.net\.2\.", "proj.2."),
    (r"^(layers\.\d+)\.(?:ln0|0)\.(weight|bias)$", r"\1.0.norm1.\2"),
    (r"^(layers\.\d+)\.(?:ln1|1)\.(weight|bias)$", r"\1.0.norm2.\2"),
    (r"^(layers\.\d+)\.(?:attn|2)\.to_out\.0\.", r"\1.0.to_out."),
    (r"^(layers\.\d+)\.(?:attn|2)\.(to_[qkv])\.", r"\1.0.\2."),
    (r"^(layers\.\d+)\.(?:ff|3)\.0\.", r"\1.1.0."),
    (r"^(layers\.\d+)\.(?:ff|3)\.1\.net\.0\.proj\.", r"\1.1.1."),
    (r"^(layers\.\d+)\.(?:ff|3)\.1\.net\.2\.", r"\1.1.3."),
)
# What stands beside an adapter and is not needed: what it is called, by its keys
_BESIDE = (
    ("LoRA", re.compile(r"(^|[._])lora(_|\.)")),
    ("image encoder", re.compile(r"(^|\.)(image_encoder|vision_model|visual)\.")),
    ("text encoder", re.compile(r"(^|\.)(text_encoder(_2)?|text_model|cond_stage_model|conditioner)\.")),
    ("VAE", re.compile(r"(^|\.)(vae|first_stage_model)\.")),
    ("training state", re.compile(r"(^|\.)(optimizer|optimizer_states|lr_schedulers?|scaler)\.")),
    ("base model", re.compile(
        r"^(unet|diffusion_model|(down|up|input|output)_blocks|mid_block|middle_block|conv_(in|out|norm_out)|"
        r"(time|add|class)_embedding|time_embed|label_emb|out)\.")),
)  # fmt: skip
_SCALES = ("scale", "scaler")  # endings of the names of a layer's or the projection's factor


@dataclass(frozen=True)
class Layout:
    """``source``: standard key to the file's keys, whose rows are joined if there are several. ``factors``: standard
    key of a layer's factor to the file's (aitoolkit.py). ``unused``: keys of the file by what they are, such as "image
    encoder". Every key of the file is in one of the three."""

    source: dict[str, tuple[str, ...]]
    unused: dict[str, list[str]]
    factors: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class _Sorted:
    """The keys of a file by where they stand; each dictionary leads to the file's own key."""

    standard: dict[str, str] = field(default_factory=dict)  # by standard key
    hidden: dict[str, str] = field(default_factory=dict)  # by diffusers' name below encoder_hid_proj
    layers: dict[tuple[str, str], str] = field(default_factory=dict)  # by the layer's name and what of it, as to_k_ip
    rest: dict[str, str] = field(default_factory=dict)  # by name without wrappers


def standard_layout(shapes: Mapping[str, Shape], path: Path | str) -> Layout:
    """The layout of a file with these keys and shapes. Files of other kinds keep their keys.

    Raises BrokenAdapter for two sets of the same weights, UnsupportedAdapter for several adapters in one file.
    """
    keys = _sorted(shapes, path)
    if not (keys.standard or keys.hidden or keys.layers):
        return Layout({key: (key,) for key in shapes}, {})
    source: dict[str, tuple[str, ...]] = {key: (own,) for key, own in keys.standard.items()}
    unused: dict[str, list[str]] = defaultdict(list)
    factors: dict[str, str] = {}
    for more in (_of_diffusers(keys.hidden, shapes), _numbered(keys)):
        for key, owns in more.items():
            if key in source:
                unused["second copy of the adapter"].extend(owns)
            else:
                source[key] = owns
    for name, own in [*keys.standard.items(), *keys.rest.items()]:
        kind = _kind(name, shapes[own])
        if kind == "factor":
            factors[name] = own
            source.pop(name, None)
        elif kind:
            unused[kind].append(own)
            source.pop(name, None)
        else:
            source.setdefault(name, (own,))
    return Layout(source, dict(unused), factors)


def _sorted(shapes: Mapping[str, Shape], path: Path | str) -> _Sorted:
    keys = _Sorted()
    for own in shapes:
        name = _UNET.sub("", _WRAPPERS.sub("", own, count=1), count=1)
        name = _PULID.sub(rf"{LAYERS}\1.to_\2_ip.weight", name)
        style = next((style for style in _STYLES if name.startswith(style)), "")
        layer, lora, hidden = _LAYER.fullmatch(name), _LORA.fullmatch(name), _HIDDEN.fullmatch(name)
        if style:
            place: dict[Any, str] = keys.standard
            key: Any = _STYLES[style] + name[len(style) :]
        elif layer:
            place, key = keys.layers, (layer[1], layer[2])
            _require_one(layer[3], own, path)
        elif lora:
            place, key = keys.layers, (lora[1], lora[2])
        elif hidden:
            place, key = keys.hidden, hidden[2]
            _require_one(hidden[1], own, path)
        else:
            place, key = keys.rest, name
        if key in place and place is not keys.rest:
            raise BrokenAdapter(path, f"two sets of weights: {place[key]} and {own}; keep one of them", value=own)
        place[own if key in place else key] = own
    return keys


def _require_one(index: str | None, own: str, path: Path | str) -> None:
    if index is not None and int(index) > 0:
        raise UnsupportedAdapter(
            path, f"several adapters in one file ({own}); save each as a file of its own", value=own
        )


def _numbered(keys: _Sorted) -> dict[str, tuple[str, ...]]:
    """The layers that have a UNet's names, by number. All attention layers that any key names are counted."""
    if not keys.layers:
        return {}
    names = {_cross(name) for name, _ in keys.layers}
    names |= {found[1] for name in keys.rest if (found := _ATTENTION.match(name))}
    cross = {name: 2 * i + 1 for i, name in enumerate(sorted(names, key=_order))}
    numbers = {name: cross[_cross(name)] - (name != _cross(name)) for name, _ in keys.layers}
    return {f"{LAYERS}{numbers[name]}.{kind}.weight": (own,) for (name, kind), own in keys.layers.items()}


def _cross(name: str) -> str:
    """The cross-attention layer beside a self-attention layer; its own name otherwise."""
    return name.removesuffix("attn1") + "attn2" if name.endswith(".attn1") else name


def _order(name: str) -> tuple[int, list[int], str]:
    """Down, up, mid; there by the numbers in the name."""
    return _PARTS.get(name.split(".")[0], 3), [int(n) for n in re.findall(r"[0-9]{1,9}", name)], name


def _of_diffusers(hidden: Mapping[str, str], shapes: Mapping[str, Shape]) -> dict[str, tuple[str, ...]]:
    """The projection that a UNet of diffusers has, under its original names; to_k and to_v become to_kv again."""
    perceiver = any(name.startswith("proj.net.") for name in hidden)  # FaceID-Plus
    full = shapes.get(hidden.get("ff.net.0.proj.weight", ""), (512,))[-1] != 512  # else FaceID
    found: dict[str, list[str]] = defaultdict(list)
    for name, own in sorted(hidden.items()):  # to_k before to_v
        for pattern, new in _RENAMED:
            name = re.sub(pattern, new, name)
        name = name.replace("norm.", "proj.3.") if full and name.startswith("norm.") else name
        name = re.sub(r"\.0\.to_[kv]\.", ".0.to_kv.", name)
        inside = perceiver and name.startswith(("layers.", "proj_in.", "proj_out.", "norm_out."))
        found[f"{PROJECTION}{'perceiver_resampler.' if inside else ''}{name}"].append(own)
    return {key: tuple(owns) for key, owns in found.items()}


def perceiver_layer(number: int, dim: int, inner: int, hidden: int) -> dict[str, Shape]:
    """Shapes of a layer of a perceiver. dim: of its latents; inner: of attention; hidden: of the feed-forward part."""
    attention, feed_forward = f"layers.{number}.0", f"layers.{number}.1"
    norms = (f"{attention}.norm1", f"{attention}.norm2", f"{feed_forward}.0")
    return {f"{norm}.{part}": (dim,) for norm in norms for part in ("weight", "bias")} | {
        f"{attention}.to_q.weight": (inner, dim), f"{attention}.to_kv.weight": (2 * inner, dim),
        f"{attention}.to_out.weight": (dim, inner),
        f"{feed_forward}.1.weight": (hidden, dim), f"{feed_forward}.3.weight": (dim, hidden),
    }  # fmt: skip


def _kind(name: str, shape: Shape) -> str:
    """What a key is that stands beside an adapter, or "" for one that may belong to it."""
    if math.prod(shape) == 1 and name.startswith(LAYERS) and name.endswith(".ip_scaler"):
        return "factor"
    if math.prod(shape) == 1 and (not name.startswith((PROJECTION, LAYERS)) or name.endswith(_SCALES)):
        return "scalar"
    if name.startswith((PROJECTION, LAYERS)):
        return ""
    return next((kind for kind, pattern in _BESIDE if pattern.search(name)), "")
