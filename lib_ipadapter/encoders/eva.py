"""The towers of EVA02-CLIP (arXiv 2303.15389): which file holds one, whichever of its three layouts it has.

eva_clip (QuanSun/EVA-CLIP):  visual.blocks.0.attn.q_bias, visual.blocks.0.mlp.w1.weight, ...
open_clip:                    visual.trunk.blocks.0.attn.q_proj.bias, visual.trunk.blocks.0.mlp.fc1_g.weight, ...
timm, the tower alone:        blocks.0.attn.q_proj.bias, blocks.0.mlp.fc1_g.weight, ...

All are brought to timm's names, below ``trunk.`` (timm_tower.py). Text towers beside them are ignored.
"""

from __future__ import annotations

from collections.abc import Mapping

from .spec import TowerShape

Shape = tuple[int, ...]
_WRAPPERS = ("", "module.", "state_dict.", "state_dict.module.", "model.")
_TOWERS = ("visual.trunk.", "visual.", "")
_TIMM = (  # eva_clip's names to timm's, one after the other
    ("mlp.ffn_ln", "mlp.norm"), ("attn.inner_attn_ln", "attn.norm"), ("mlp.w1.", "mlp.fc1_g."),
    ("mlp.w2.", "mlp.fc1_x."), ("mlp.w3.", "mlp.fc2."), ("attn.q_bias", "attn.q_proj.bias"),
    ("attn.v_bias", "attn.v_proj.bias"),
)  # fmt: skip
_NO_WEIGHTS = ("rope", "mask_token")  # positions that are computed, and what pre-training needed


def eva_keys(shapes: Mapping[str, Shape]) -> dict[str, str]:
    """The file's key by the tower's (``trunk.blocks.0.attn.q_proj.weight``); empty where the file holds none."""
    prefixes = (f"{wrapper}{tower}" for wrapper in _WRAPPERS for tower in _TOWERS)
    prefix = next((one for one in prefixes if _begins(shapes, one)), None)
    if prefix is None:
        return {}
    inside = (key[len(prefix) :] for key in shapes if key.startswith(prefix))
    return {_named(key): f"{prefix}{key}" for key in inside if not any(part in key for part in _NO_WEIGHTS)}


def _begins(shapes: Mapping[str, Shape], prefix: str) -> bool:
    return all(f"{prefix}{key}" in shapes for key in ("cls_token", "pos_embed", "blocks.0.attn.q_proj.weight"))


def _named(key: str) -> str:
    for old, new in _TIMM:
        key = key.replace(old, new)
    return f"trunk.{key}"


def eva_shape(shapes: Mapping[str, Shape], keys: Mapping[str, str]) -> TowerShape | None:
    """The sizes that the shapes of a file with these ``eva_keys`` show; None where what shows them is missing."""
    try:
        patch, positions = shapes[keys["trunk.patch_embed.proj.weight"]][3], shapes[keys["trunk.pos_embed"]][1]
        width, embed_dim = shapes[keys["trunk.pos_embed"]][2], shapes[keys["trunk.head.weight"]][0]
        hidden = shapes[keys["trunk.blocks.0.mlp.fc1_g.weight"]][0]
    except (KeyError, IndexError):
        return None
    layers = len({key.split(".")[2] for key in keys if key.startswith("trunk.blocks.")})
    return TowerShape(width, layers, patch, positions, embed_dim, hidden)
