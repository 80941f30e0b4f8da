"""Keys of a weight file to the keys of open_clip's tower, whichever of the three layouts it has.

Hugging Face (and sd-webui-controlnet's clip_*.pth):  vision_model.*, visual_projection.weight
open_clip, a whole CLIP:                              visual.*
open_clip, the tower alone:                           class_embedding, conv1.weight, ...
Text towers and other keys beside them are ignored.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping

import torch
from torch import Tensor

from ..errors import BrokenEncoder
from .spec import EncoderSpec, TowerShape

Shape = tuple[int, ...]
Read = Callable[[str], Tensor]  # the tensor of a key of the file

_HF_BLOCK = re.compile(r"vision_model\.encoder\.layers\.(\d+)\.(.+)\.(weight|bias)")
_HF_SINGLE = {
    "vision_model.embeddings.class_embedding": "class_embedding",
    "vision_model.embeddings.patch_embedding.weight": "conv1.weight",
    "vision_model.embeddings.position_embedding.weight": "positional_embedding",
    "vision_model.pre_layrnorm.weight": "ln_pre.weight",  # misspelled by Hugging Face
    "vision_model.pre_layrnorm.bias": "ln_pre.bias",
    "vision_model.post_layernorm.weight": "ln_post.weight",
    "vision_model.post_layernorm.bias": "ln_post.bias",
    "visual_projection.weight": "proj",
}
_HF_PARTS = {
    "self_attn.out_proj": "attn.out_proj",
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
}
_HF_QKV = {"self_attn.q_proj": 0, "self_attn.k_proj": 1, "self_attn.v_proj": 2}
_HF_BUFFERS = {"vision_model.embeddings.position_ids"}  # a range, not a weight
_WRAPPERS = ("", "module.", "state_dict.", "state_dict.module.", "model.")


class TowerKeys:
    """Which keys of the file make which key of the tower.

    ``sources`` maps a tower key to one file key, or to the three (q, k, v) that are stacked for it.
    """

    def __init__(self, sources: Mapping[str, tuple[str, ...]], unknown: Iterable[str], shapes: Mapping[str, Shape]):
        self.sources = dict(sources)
        self.unknown = sorted(unknown)
        self.shapes = {key: _shape(key, names, shapes) for key, names in self.sources.items()}

    def tower(self) -> TowerShape | None:
        """The sizes that the shapes show, or None if the keys that show them are absent or misshapen."""
        try:
            rows, patch = self.shapes["conv1.weight"][0], self.shapes["conv1.weight"][3]
            positions, hidden = self.shapes["positional_embedding"][0], self._hidden()
            embed_dim = self.shapes["proj"][1]
            layers = len({key.split(".")[2] for key in self.shapes if key.startswith("transformer.")})
        except (KeyError, IndexError):
            return None
        return TowerShape(rows, layers, patch, positions, embed_dim, hidden)

    def _hidden(self) -> int:
        return self.shapes["transformer.resblocks.0.mlp.c_fc.weight"][0]

    def check(self, spec: EncoderSpec, name: str) -> None:
        """Every key of the tower is there with its shape, and no other. Raises BrokenEncoder."""
        expected = tower_shapes(spec)
        missing = sorted(set(expected) - set(self.shapes))
        misshapen = [
            f"{key} {list(self.shapes[key])} instead of {list(shape)}"
            for key, shape in expected.items()
            if key in self.shapes and self.shapes[key] != shape
        ]
        extra = sorted(set(self.shapes) - set(expected)) + self.unknown
        found = {"missing": missing, "misshapen": misshapen, "left over": extra}
        problems = [f"{what} {_listed(keys)}" for what, keys in found.items() if keys]
        if problems:
            raise BrokenEncoder(
                f"{name}: not a whole {spec.name} image encoder: {'; '.join(problems)}. Download it again"
            )

    def load(self, key: str, read: Read) -> Tensor:
        """The tensor of tower key ``key``."""
        names = self.sources[key]
        tensor = torch.cat([read(name) for name in names]) if len(names) == 3 else read(names[0])
        # nn.Linear keeps [out, in]; open_clip's ``proj`` is applied as x @ proj
        return tensor.t().contiguous() if names == ("visual_projection.weight",) or _is_hf_proj(names) else tensor


def _is_hf_proj(names: tuple[str, ...]) -> bool:
    return names[0].endswith("visual_projection.weight")


def _shape(key: str, names: tuple[str, ...], shapes: Mapping[str, Shape]) -> Shape:
    first = shapes[names[0]]
    if len(names) == 3:
        same = all(shapes[name] == first for name in names)
        return (3 * first[0], *first[1:]) if same and first else ()
    return first[::-1] if _is_hf_proj(names) else first


def _listed(keys: list[str], most: int = 8) -> str:
    rest = f" and {len(keys) - most} more" if len(keys) > most else ""
    return ", ".join(keys[:most]) + rest


def tower_keys(shapes: Mapping[str, Shape]) -> TowerKeys | None:
    """The vision tower among the keys of a file, or None when there is none."""
    for wrapper in _WRAPPERS:
        if f"{wrapper}vision_model.embeddings.class_embedding" in shapes:
            return _hugging_face(shapes, wrapper)
        for prefix in (f"{wrapper}visual.", wrapper):
            if f"{prefix}class_embedding" in shapes and f"{prefix}conv1.weight" in shapes:
                return _open_clip(shapes, prefix)
    return None


def _open_clip(shapes: Mapping[str, Shape], prefix: str) -> TowerKeys:
    sources = {key[len(prefix) :]: (key,) for key in shapes if key.startswith(prefix)}
    return TowerKeys(sources, (), shapes)


def _hugging_face(shapes: Mapping[str, Shape], wrapper: str) -> TowerKeys:
    sources: dict[str, tuple[str, ...]] = {}
    stacks: dict[str, dict[int, str]] = {}
    unknown = []
    for key in shapes:
        bare = key[len(wrapper) :] if key.startswith(wrapper) else ""
        if not bare.startswith(("vision_model.", "visual_projection.")) or bare in _HF_BUFFERS:
            continue
        target, part = _hugging_face_key(bare)
        if target is None:
            unknown.append(key)
        elif part is None:
            sources[target] = (key,)
        else:
            stacks.setdefault(target, {})[part] = key
    for target, parts in stacks.items():
        if len(parts) == 3:
            sources[target] = (parts[0], parts[1], parts[2])
        # an incomplete stack shows as a missing in_proj
    return TowerKeys(sources, unknown, shapes)


def _hugging_face_key(key: str) -> tuple[str | None, int | None]:
    """(key of the tower, index in the stack of q, k, v or None); (None, None) for an unknown key."""
    if key in _HF_SINGLE:
        return _HF_SINGLE[key], None
    match = _HF_BLOCK.fullmatch(key)
    if match is None:
        return None, None
    block, part, kind = f"transformer.resblocks.{match[1]}", match[2], match[3]
    if part in _HF_QKV:
        return f"{block}.attn.in_proj_{kind}", _HF_QKV[part]
    return (f"{block}.{_HF_PARTS[part]}.{kind}", None) if part in _HF_PARTS else (None, None)


def tower_shapes(spec: EncoderSpec) -> dict[str, Shape]:
    """Every key of open_clip's tower and its shape."""
    width, hidden = spec.width, spec.shape.hidden
    block = {
        "ln_1.weight": (width,),
        "ln_1.bias": (width,),
        "attn.in_proj_weight": (3 * width, width),
        "attn.in_proj_bias": (3 * width,),
        "attn.out_proj.weight": (width, width),
        "attn.out_proj.bias": (width,),
        "ln_2.weight": (width,),
        "ln_2.bias": (width,),
        "mlp.c_fc.weight": (hidden, width),
        "mlp.c_fc.bias": (hidden,),
        "mlp.c_proj.weight": (width, hidden),
        "mlp.c_proj.bias": (width,),
    }
    shapes: dict[str, Shape] = {
        "class_embedding": (width,),
        "positional_embedding": (spec.tokens, width),
        "proj": (width, spec.embed_dim),
        "conv1.weight": (width, 3, spec.patch, spec.patch),
    }
    shapes |= {f"{name}.{kind}": (width,) for name in ("ln_pre", "ln_post") for kind in ("weight", "bias")}
    blocks = range(spec.layers)
    return shapes | {f"transformer.resblocks.{n}.{key}": shape for n in blocks for key, shape in block.items()}
