"""Shared training loop: images in memory, learning rate schedule, EMA, processes, resuming."""

from __future__ import annotations

import copy
import math
import os
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from lib_ipadapter.errors import TrainingError

from . import data
from .muon import Muon

PICTURES, SEED = 16384, 1
SAVE_EVERY = 200
AVERAGE_EVERY = 4  # steps

T = TypeVar("T")
# (step, image indices, generator) to a loss
LossOf = Callable[[int, NDArray[np.int64], np.random.Generator], Tensor]


def sample(index: int) -> Image.Image:
    """Training picture ``index``."""
    return data.sample(SEED, index).picture


def pictures(run: Path, draw: Callable[[int], Image.Image] = sample) -> NDArray[np.uint8]:
    """The training images [PICTURES, SIDE, SIDE, 3], rendered once and cached in the run's folder. Parts that start at
    the same time may each render them."""
    path = run / "pictures.npy"
    if not path.is_file():
        run.mkdir(parents=True, exist_ok=True)
        print(f"drawing {PICTURES} pictures", flush=True)
        part = path.with_suffix(f".{os.getpid()}.part")
        try:
            drawn = np.lib.format.open_memmap(part, "w+", np.uint8, (PICTURES, data.SIDE, data.SIDE, 3))
            for index in range(PICTURES):
                drawn[index] = np.asarray(draw(index))
            drawn.flush()
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)
    found: NDArray[np.uint8] = np.load(path, mmap_mode="c")  # copy-on-write: torch needs writable memory
    return found


def scenes() -> list[data.Scene]:
    """The scenes of the training images."""
    return [data.scene_of(SEED, index) for index in range(PICTURES)]


def batches(
    size: int, start: int, steps: int, pictures: int
) -> Iterator[tuple[int, NDArray[np.int64], np.random.Generator]]:
    """(step, indices [size], or all of fewer ``pictures``, generator) from step ``start`` on; deterministic."""
    size = min(size, pictures)
    per_epoch = pictures // size
    for step in range(start, steps):
        order = np.random.default_rng([SEED, step // per_epoch]).permutation(pictures)
        at = step % per_epoch * size
        yield step, order[at : at + size], np.random.default_rng([SEED, step, 7])


def values(array: NDArray[np.uint8]) -> Tensor:
    """Images [B, H, W, 3] uint8 to [B, 3, H, W] in -1..1."""
    return torch.from_numpy(np.ascontiguousarray(array)).permute(0, 3, 1, 2).float() / 127.5 - 1


def rate(step: int, steps: int, warm_up: int = 100) -> float:
    """Fraction of the peak learning rate: linear warm-up, cosine decay."""
    if step < warm_up:
        return (step + 1) / warm_up
    return 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * (step - warm_up) / max(steps - warm_up, 1)))


def part(size: int) -> slice:
    """This process's slice of a batch of ``size``: all of it, or its part under torchrun."""
    if not dist.is_initialized():
        return slice(size)
    share = size // dist.get_world_size()
    return slice(dist.get_rank() * share, (dist.get_rank() + 1) * share)


def first() -> bool:
    """Whether this process prints and writes files."""
    return not dist.is_initialized() or dist.get_rank() == 0


def one_by_one(prepare: Callable[[], T]) -> T:
    """The result of ``prepare``, which caches files: called in the first process, then in the others."""
    if not first():
        dist.barrier()
    prepared = prepare()
    if dist.is_initialized() and first():
        dist.barrier()
    return prepared


def trained(run: Path, name: str) -> dict[str, Tensor]:
    """The averaged weights of a part. Raises TrainingError."""
    path = run / f"{name}.state.pt"
    if not path.is_file():
        raise TrainingError(f"{path.name} is not in {run}: train the part {name} first")
    state: dict[str, Tensor] = torch.load(path, map_location="cpu")["ema"]
    return state


class Training:
    """AdamW, or Muon with its own learning rate for ``matrices``; EMA; and a state file that a
    later call goes on from.

    Under torchrun the gradients are the mean of all processes', so that ``loss_of`` may do its part of a batch.
    """

    def __init__(self, name: str, model: nn.Module, run: Path, steps: int, lr: float, average: float,
                 matrices: Sequence[nn.Parameter] = (), matrices_lr: float = 0.0) -> None:  # fmt: skip
        self.name, self.model, self.steps, self.average = name, model, steps, average
        self.file = run / f"{name}.state.pt"
        apart = {id(matrix) for matrix in matrices}
        others = [p for p in model.parameters() if p.requires_grad and id(p) not in apart]
        self.optimizers: list[torch.optim.Optimizer] = [
            torch.optim.AdamW(others, lr=lr, weight_decay=0.01, betas=(0.9, 0.98))
        ]
        if matrices:
            self.optimizers.append(Muon(matrices, matrices_lr))
        self.ema = copy.deepcopy(model).eval().requires_grad_(False)
        self.start = 0
        if self.file.is_file():
            held: dict[str, Any] = torch.load(self.file, map_location="cpu")
            model.load_state_dict(held["model"])
            self.ema.load_state_dict(held["ema"])
            for optimizer, state in zip(self.optimizers, held["optimizers"], strict=True):
                optimizer.load_state_dict(state)
            self.start = held["step"]

    def run(self, size: int, loss_of: LossOf, pictures: int | None = None) -> nn.Module:
        """Trains to the last step, on batches of ``size`` of that many pictures (default: PICTURES), and returns the
        model with averaged weights."""
        begun, shown = time.monotonic(), 0.0
        for step, indices, rng in batches(size, self.start, self.steps, pictures or PICTURES):
            torch.manual_seed(step)
            for optimizer in self.optimizers:
                for group in optimizer.param_groups:
                    group["lr"] = optimizer.defaults["lr"] * rate(step, self.steps)
            loss = loss_of(step, indices, rng)
            if not loss.isfinite():
                raise SystemExit(f"{self.name}: the loss of step {step} is {float(loss)}; lower the learning rate")
            self.model.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            self._share_gradients()
            nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
            for optimizer in self.optimizers:
                optimizer.step()
            if (step + 1) % AVERAGE_EVERY == 0 or step + 1 == self.steps:
                self._average(step)
            shown = float(loss.detach()) if step == self.start else 0.98 * shown + 0.02 * float(loss.detach())
            if (step + 1) % 20 == 0 and first():
                spent = (time.monotonic() - begun) / (step + 1 - self.start)
                left = spent * (self.steps - step - 1) / 60
                print(f"{self.name} {step + 1}/{self.steps} loss {shown:.4f} {spent:.2f} s/step, {left:.0f} min left",
                      flush=True)  # fmt: skip
            if ((step + 1) % SAVE_EVERY == 0 or step + 1 == self.steps) and first():
                self._save(step + 1)
        return self.ema

    def _share_gradients(self) -> None:
        if not dist.is_initialized():
            return
        gradients = [p.grad for p in self.model.parameters() if p.grad is not None]
        flat = torch.cat([gradient.flatten() for gradient in gradients]) / dist.get_world_size()
        dist.all_reduce(flat)
        for gradient, new in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
            gradient.copy_(new.view_as(gradient))

    @torch.no_grad()
    def _average(self, step: int) -> None:
        keep = min(self.average**AVERAGE_EVERY, (1 + step) / (10 + step))
        for held, new in zip(self.ema.state_dict().values(), self.model.state_dict().values(), strict=True):
            held.lerp_(new, 1 - keep) if held.is_floating_point() else held.copy_(new)

    def _save(self, step: int) -> None:
        part = self.file.with_suffix(".part")
        state = {
            "model": self.model.state_dict(), "ema": self.ema.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers], "step": step,
        }  # fmt: skip
        torch.save(state, part)
        part.replace(self.file)
