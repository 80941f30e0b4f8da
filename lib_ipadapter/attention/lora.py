"""The LoRAs that a session's adapters bring along, as long as their prompts act.

A file's LoRA was trained together with its image branch: q with it serves text and image, and to_out sees both
(tencent-ailab/IP-Adapter, attention_processor_faceid.py). It acts on all rows, with a strength of its own, in the steps
in which its prompt acts; the prompt's weight λ does not scale it, but at 0 there is none. Several prompts of one file
share its LoRA: at each place the largest strength counts, as two would be twice what was trained.

A region limits it to its tokens of the picture. The text's keys and values have no place in the picture: there it acts
in full.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence

import torch
from torch import Tensor

from .keyvalue import KeyValue
from .lowrank import LowRank, Place
from .region import Size

# Of a prompt at a place, for x and in the dtype and on the device of another tensor, with the block's grid
Masks = Callable[[KeyValue, Place, Tensor, Tensor, "Size | None"], Tensor]
_TEXT = ("to_k", "to_v")


class LoRA:
    """The LoRA of one file at one place. users: the prompts that share it; active: those that act in the step now, none
    outside of a step; mask: a prompt's region [rows or 1, tokens, 1] over the tokens of x."""

    def __init__(
        self, place: Place, low_rank: LowRank, users: Sequence[KeyValue], active: Callable[[], Sequence[KeyValue]],
        mask: Masks,
    ) -> None:  # fmt: skip
        self._place, self._low_rank, self._users = place, low_rank, users
        self._active, self._mask = active, mask

    def added(self, x: Tensor, output: Tensor, grid: Size | None) -> Tensor | None:
        """``Addition.added``"""
        acting = [kv for kv in self._active() if kv in self._users and kv.prompt.lora and kv.factor]
        if not acting:
            return None
        strength = self._strength(acting, x, output, grid)
        added = self._low_rank.of(x, output)
        if isinstance(strength, Tensor):
            return output + added.mul_(strength)
        return torch.add(output, added, alpha=strength)

    def _strength(self, acting: Sequence[KeyValue], x: Tensor, like: Tensor, grid: Size | None) -> float | Tensor:
        """The largest at each place."""
        of_text = self._place[0] % 2 == 1 and self._place[1] in _TEXT
        strengths = [kv.prompt.lora * kv.factor for kv in acting]
        if of_text or not any(kv.prompt.region for kv in acting):
            return max(strengths)
        masks = [
            torch.full((1, 1, 1), strength, dtype=like.dtype, device=like.device)
            if kv.prompt.region is None
            else strength * self._mask(kv, self._place, x, like, grid)
            for kv, strength in zip(acting, strengths, strict=True)
        ]
        total = masks[0]
        for mask in masks[1:]:
            total = torch.maximum(total, mask)
        return total


class Several:
    """LoRAs of several files at one place, one after the other."""

    def __init__(self, loras: Sequence[LoRA]) -> None:
        self._loras = loras

    def added(self, x: Tensor, output: Tensor, grid: Size | None) -> Tensor | None:
        """``Addition.added``"""
        total = output
        for lora in self._loras:
            changed = lora.added(x, total, grid)
            total = total if changed is None else changed
        return None if total is output else total


def loras(
    prompts: Sequence[KeyValue], active: Callable[[], Sequence[KeyValue]], mask: Masks
) -> dict[Place, LoRA | Several]:
    """By place, for those of ``prompts`` whose files bring a LoRA along and whose strength is not 0. Raises
    BrokenAdapter."""
    by_file: dict[Hashable, list[KeyValue]] = {}
    for kv in prompts:
        if kv.prompt.lora and kv.prompt.adapter.spec.lora_rank:
            by_file.setdefault(kv.prompt.adapter.weights_key, []).append(kv)
    found: dict[Place, list[LoRA]] = {}
    for users in by_file.values():
        for place, (down, up) in users[0].prompt.adapter.lora().items():
            found.setdefault(place, []).append(LoRA(place, LowRank(down, up), users, active, mask))
    return {place: each[0] if len(each) == 1 else Several(each) for place, each in found.items()}
