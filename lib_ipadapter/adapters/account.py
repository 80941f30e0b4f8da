"""Every key of an adapter file is accounted for: what its attention layers must be, and what is wrong with them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from ..errors import BrokenAdapter
from .layout import LAYERS, Shape

Shapes = Mapping[str, Shape]
_NUMBER = re.compile(r"0|[1-9][0-9]{0,5}")  # in a key
_LAST = 2000  # number of a layer; SDXL's last one has 139


def layer_shapes(shapes: Shapes, path: Path | str) -> tuple[int, tuple[int, ...], dict[str, Shape]]:
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


def refuse_empty(shapes: Shapes, path: Path | str) -> None:
    """No weight is a single number or without extent; what reads shapes further on relies on it."""
    empty = [f"{key} is {list(shape)}" for key, shape in shapes.items() if not shape or min(shape) < 1]
    if empty:
        raise BrokenAdapter(
            path, f"{_listed('misshapen', empty)}, expected weights; download it again", misshapen=empty
        )


def account_for_all(shapes: Shapes, expected: Mapping[str, Shape], path: Path | str) -> None:
    """Raises BrokenAdapter with the keys that are missing, left over or misshapen."""
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
