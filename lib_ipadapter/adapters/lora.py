"""The LoRA (arXiv 2106.09685) that FaceID files bring along: N.to_q_lora.down.weight and so on, of every layer.

Even N are self-attention, odd N cross-attention, whose keys and values are projected from the text. There is no alpha:
the product up·down is added as it is (tencent-ailab/IP-Adapter, attention_processor_faceid.py).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence

from .layout import LAYERS, Shape

TARGETS = ("to_q", "to_k", "to_v", "to_out")
_KEY = re.compile(rf"{re.escape(LAYERS)}\d+\.({'|'.join(TARGETS)})_lora\.(down|up)\.weight")


def lora_key(number: int, target: str, part: str) -> str:
    """The key of ``part`` (down or up) of the LoRA on a projection of the layer with this number."""
    return f"{LAYERS}{number}.{target}_lora.{part}.weight"


def is_lora(key: str) -> bool:
    """Whether a standard key is of the LoRA."""
    return _KEY.fullmatch(key) is not None


def lora_shapes(shapes: Mapping[str, Shape], widths: Sequence[int], context: int) -> tuple[int, dict[str, Shape]]:
    """(rank, expected shapes) of the LoRA for cross-attention layers of these widths; (0, nothing) without any key."""
    first = next((key for key in shapes if is_lora(key)), None)
    if first is None:
        return 0, {}
    shape = shapes[first]
    rank = shape[0 if ".down." in first else -1]
    wanted: dict[str, Shape] = {}
    for i, width in enumerate(widths):
        for number in (2 * i, 2 * i + 1):
            for target in TARGETS:
                text = number % 2 == 1 and target in ("to_k", "to_v")
                wanted[lora_key(number, target, "down")] = (rank, context if text else width)
                wanted[lora_key(number, target, "up")] = (width, rank)
    return rank, wanted


def lora_places(keys: Iterable[str]) -> list[tuple[int, str]]:
    """(number, target) of every projection that has a LoRA among these keys, in the order of the numbers."""
    found = {(int(key.split(".")[1]), key.split(".")[2].removesuffix("_lora")) for key in keys if is_lora(key)}
    return sorted(found)
