"""What a ControlNet's file says by its keys and shapes: diffusers', cldm's or bare ldm's names, any base and width.

Standard are ldm's names (lllyasviel/ControlNet, cldm/cldm.py). diffusers numbers resnets and attentions by block;
ldm counts all blocks: behind the first convolution, each level has its resnets and, but for the last, a downsampling.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

Shape = tuple[int, ...]
Shapes = Mapping[str, Shape]

# A training's checkpoint has its network below "state_dict", a parallel one below "module"
_WRAPPERS = ("", "state_dict.", "module.", "state_dict.module.")
PREFIXES = tuple(wrapper + part for part in ("control_model.", "controlnet.", "") for wrapper in _WRAPPERS[::-1])
_MARK, _THEIR_MARK = "zero_convs.0.0.weight", "controlnet_down_blocks.0.weight"
_CONTEXT = re.compile(r"(input_blocks\.\d+|middle_block)\.1\.transformer_blocks\.0\.attn2\.to_k\.weight")
_RESNET = (
    ("norm1", "in_layers.0"), ("conv1", "in_layers.2"), ("time_emb_proj", "emb_layers.1"), ("norm2", "out_layers.0"),
    ("conv2", "out_layers.3"), ("conv_shortcut", "skip_connection"),
)  # fmt: skip
_FIXED = (
    ("conv_in.", "input_blocks.0.0."), ("time_embedding.linear_1.", "time_embed.0."),
    ("time_embedding.linear_2.", "time_embed.2."), ("add_embedding.linear_1.", "label_emb.0.0."),
    ("add_embedding.linear_2.", "label_emb.0.2."), ("controlnet_mid_block.", "middle_block_out.0."),
    ("mid_block.resnets.0.", "middle_block.0."), ("mid_block.attentions.0.", "middle_block.1."),
    ("mid_block.resnets.1.", "middle_block.2."), ("controlnet_cond_embedding.conv_in.", "input_hint_block.0."),
)  # fmt: skip
# Of kinds that have a ControlNet's keys and more, by what marks them
OTHERS = {
    "lora_controlnet": "a Control-LoRA, which needs the base model's own weights",
    "task_embedding": "a ControlNet Union, which is told by number what its picture is",
    "control_type_proj.weight": "a ControlNet Union, which is told by number what its picture is",
    "control_add_embedding.linear_1.weight": "a ControlNet Union, which is told by number what its picture is",
}


@dataclass(frozen=True)
class ControlSpec:
    """context: width of the tokens that it attends to; widths: of its cross-attention layers, in the order of the
    blocks, all depths; label: width of the pooled text and sizes (SDXL), 0 without; channels: of the latents."""

    context: int
    widths: tuple[int, ...]
    label: int
    channels: int


def is_control(shapes: Mapping[str, object]) -> bool:
    """Whether a file has a ControlNet's keys."""
    return any(f"{prefix}{mark}" in shapes for prefix in PREFIXES for mark in (_MARK, _THEIR_MARK))


def other_kind(shapes: Mapping[str, object]) -> str:
    """What a file with a ControlNet's keys is, where it is none of the plain ones; else ""."""
    bare = {key.removeprefix(next(p for p in PREFIXES if key.startswith(p))) for key in shapes}
    return next((says for mark, says in OTHERS.items() if mark in bare), "")


def standard_keys(shapes: Shapes) -> dict[str, str]:
    """ldm's name of each key, to the file's own. Keys of other parts of the same file (``model.…``) are left out."""
    prefix = next(p for p in PREFIXES if p + _MARK in shapes or p + _THEIR_MARK in shapes)
    bare = {key[len(prefix) :]: key for key in shapes if key.startswith(prefix)}
    if _MARK in bare:
        return bare
    resnets = [key for key in bare if re.fullmatch(r"down_blocks\.0\.resnets\.\d+\.conv1\.weight", key)]
    last = max((int(key.split(".")[2]) for key in bare if _is_hint_block(key)), default=0)
    return {_ldm(key, len(resnets), last): own for key, own in bare.items()}


def _is_hint_block(key: str) -> bool:
    return re.fullmatch(r"controlnet_cond_embedding\.blocks\.\d+\.weight", key) is not None


def _ldm(key: str, resnets: int, last: int) -> str:
    """ldm's name of diffusers' key. resnets: of each level; last: number of the hint's last inner convolution."""
    for theirs, ours in _FIXED:
        if key.startswith(theirs):
            return _inside(ours + key[len(theirs) :])
    parts = key.split(".")
    if parts[0] == "controlnet_down_blocks":
        return f"zero_convs.{parts[1]}.0.{parts[2]}"
    if parts[:2] == ["controlnet_cond_embedding", "blocks"]:
        return f"input_hint_block.{2 * (int(parts[2]) + 1)}.{parts[3]}"
    if parts[:2] == ["controlnet_cond_embedding", "conv_out"]:
        return f"input_hint_block.{2 * (last + 2)}.{parts[2]}"
    if parts[0] == "down_blocks":
        block = 1 + int(parts[1]) * (resnets + 1)
        if parts[2] == "downsamplers":
            return f"input_blocks.{block + resnets}.0.op.{parts[5]}"
        return _inside(
            ".".join((f"input_blocks.{block + int(parts[3])}", str(int(parts[2] == "attentions")), *parts[4:]))
        )
    return key


def _inside(key: str) -> str:
    for theirs, ours in _RESNET:
        key = re.sub(rf"^((?:input_blocks\.\d+|middle_block)\.\d+)\.{theirs}\.", rf"\1.{ours}.", key)
    return key


def control_spec(shapes: Shapes) -> ControlSpec:
    """Of a file with these standard keys. Raises KeyError for one that it must have."""
    layers = {key: shape for key, shape in shapes.items() if ".attn2.to_q.weight" in key}
    found = [shapes[key][1] for key in shapes if _CONTEXT.fullmatch(key)]
    if not found:
        raise KeyError("attn2.to_k.weight")
    return ControlSpec(
        context=found[0],
        widths=tuple(shape[0] for _, shape in sorted(layers.items(), key=lambda item: _place(item[0]))),
        label=shapes.get("label_emb.0.0.weight", (0, 0))[1],
        channels=shapes["input_blocks.0.0.weight"][1],
    )


def _place(key: str) -> tuple[bool, list[int]]:
    """Input blocks by number, then the middle block."""
    return key.startswith("middle"), [int(number) for number in re.findall(r"\d+", key)]
