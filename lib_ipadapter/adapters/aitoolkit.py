"""What ostris/ai-toolkit's trainer writes beside and instead of the standard keys (its toolkit/ip_adapter.py).

``ip_adapter.N.ip_scaler``: one factor on the tokens that layer N reads, the same as one on its K' and V' (``scaled``).
``image_encoder.*``: the encoder that was trained along (train_image_encoder); ``split`` makes a file of its own of it.
What cannot run is named by foreign.py: factors alone, ipz, clip+, clip_face, models that are no UNet.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from ..atomic import replacing
from ..encoders.layout import TowerKeys, tower_keys
from ..encoders.spec import ENCODERS, EncoderSpec
from ..errors import UnsupportedAdapter
from .layout import LAYERS, Shape

ENCODER = "image_encoder."


def scaled(tensors: Mapping[str, Tensor], factors: Mapping[str, float]) -> dict[str, Tensor]:
    """The tensors with the factor of each layer (``ip_adapter.N.``) in its K' and V', in their own dtype where that has
    room for them: 8 bits would be rounded twice, and neither they nor float16 reach far."""
    merged = dict(tensors)
    for layer, factor in factors.items():
        for key in (f"{layer}to_k_ip.weight", f"{layer}to_v_ip.weight"):
            if key in merged:
                merged[key] = _times(merged[key], factor)
    return merged


def _times(weight: Tensor, factor: float) -> Tensor:
    product = weight.float() * factor
    own = product.to(weight.dtype if weight.element_size() > 1 else torch.float16)
    return own if bool(own.isfinite().all()) else product


def layer_of(key: str) -> str:
    """``ip_adapter.N.`` of a key of that layer."""
    return f"{LAYERS}{key[len(LAYERS) :].split('.')[0]}."


def refuse_trained_encoder(keys: list[str], path: Path) -> None:
    """Raises UnsupportedAdapter where the file brings an encoder of its own along: features of another would be
    wrong."""
    if any(key.startswith(ENCODER) for key in keys):
        raise UnsupportedAdapter(
            path, "this adapter brings along the image encoder that was trained with it (ai-toolkit's "
            "train_image_encoder), so that no other encoder's features fit. Make two files of it: python -m "
            f"lib_ipadapter convert {path.name} NAME.safetensors, and put NAME-encoder.safetensors and .json into the "
            "folder of the encoders", value=ENCODER,
        )  # fmt: skip


def trained_encoder(shapes: Mapping[str, Shape], path: Path) -> tuple[TowerKeys, EncoderSpec] | None:
    """The tower among the file's own keys, and what it is by its shapes; None where it has none. Raises
    UnsupportedAdapter for one that is no known CLIP."""
    own = {key[len(ENCODER) :]: shape for key, shape in shapes.items() if key.startswith(ENCODER)}
    if not own:
        return None
    keys = tower_keys(own)
    shape = keys.tower() if keys else None
    spec = next((spec for spec in ENCODERS.values() if spec.shape == shape and not spec.timm[0]), None)
    if keys is None or spec is None:
        what = shape or f"keys such as {next(iter(own))}"
        raise UnsupportedAdapter(
            path, f"the image encoder in it ({what}) is none of the known CLIP towers "
            f"({', '.join(name for name, known in ENCODERS.items() if not known.timm[0])}); train with one of these, "
            "or without train_image_encoder", value=ENCODER,
        )  # fmt: skip
    keys.check(spec, path.name)
    return keys, spec


def split(keys: TowerKeys, read: Callable[[str], Tensor]) -> dict[str, Tensor]:
    """The tower's weights under open_clip's names."""
    return {f"visual.{key}": keys.load(key, lambda name: read(f"{ENCODER}{name}")) for key in keys.sources}


def write_config(path: Path, spec: EncoderSpec) -> None:
    """The open_clip config of a tower of this spec, by which a file of the same name is an encoder of its own."""
    vision = {
        "image_size": spec.image_size, "layers": spec.layers, "width": spec.width, "patch_size": spec.patch,
        "head_width": spec.width // spec.heads, "mlp_ratio": spec.mlp_ratio,
    }  # fmt: skip
    config = {
        "embed_dim": spec.embed_dim, "quick_gelu": spec.quick_gelu, "vision_cfg": vision,
        "preprocess_cfg": {"mean": spec.mean, "std": spec.std},
    }  # fmt: skip
    with replacing(path) as part:
        part.write_text(json.dumps(config, indent=2), encoding="utf-8")
