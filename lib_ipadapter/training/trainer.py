"""Trainer: the loop. Everything that happens at a step follows from the config and the step's number.

So a training that was stopped goes on with the losses that it would have had, and two processes do what
one with twice the batch does.
"""

from __future__ import annotations

import copy
import math
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..adapters.file import save_adapter, sha256
from ..errors import FileError, ModelError, TrainingError
from ..files.tensors import check_states, load_state
from . import objective
from .adapter import TrainableAdapter, make
from .base import open_base
from .config import TrainConfig
from .feed import Batch, Feed
from .run_folder import ADAPTER, RunFolder, writing
from .samples import Sampler

DTYPES = {"no": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Outcome:
    """How a training ended. step: steps done; adapter: the file; stopped: by the user, before its last step."""

    step: int
    adapter: Path
    stopped: bool


class Trainer:
    """One training, on this process's share of it."""

    def __init__(self, config: TrainConfig) -> None:
        self.config = config
        self.accelerator = _accelerator(config)
        device = self.accelerator.device
        if config.precision == "fp16" and device.type == "cpu":
            raise ModelError("precision fp16 on the CPU: expected no or bf16; choose one, or a GPU")
        self.folder = RunFolder(Path(config.out), config)
        if self.main:
            self.folder.begin()
        self.base = open_base(config.base, config.base_config or None, device, DTYPES[config.precision])
        self.base.unet.requires_grad_(False)
        layers = self.base.layers
        self.feed = Feed(config, self.base, self.accelerator, self.folder)
        if config.cache:
            self.feed.fill_cache()
        adapter = make(config, layers, self.feed.encoder.spec).to(device)
        self.denoiser = objective.Denoiser(self.base, adapter, config.attention == "concat")
        if config.checkpointing:
            self.base.checkpoint_gradients()
        self.ema = copy.deepcopy(adapter).requires_grad_(False) if config.ema else None
        optimizer = torch.optim.AdamW(adapter.parameters(), lr=config.lr, weight_decay=config.weight_decay)
        _tell_deepspeed(self.accelerator, config)
        self.model, self.optimizer = self.accelerator.prepare(self.denoiser, optimizer)
        self._asked = False  # to stop, of this process; all agree on it at the end of a step
        self._metadata = self._describe()

    @property
    def main(self) -> bool:
        """Whether this process writes files and draws the progress bar."""
        return bool(self.accelerator.is_main_process)

    @property
    def adapter(self) -> TrainableAdapter:
        """The weights that are saved: the averaged ones where there are any."""
        return self.ema or self.denoiser.adapter

    def summary(self) -> str:
        """What is about to be trained, in a line."""
        count = sum(p.numel() for p in self.denoiser.parameters())
        config = self.config
        return (
            f"training a {config.variant} adapter ({count / 1e6:.1f} M parameters) on {len(self.feed.source)} pictures at "
            f"{self.feed.resolution} pixels, {config.steps} steps of {self.pictures} pictures, on {self.accelerator.device}"
        )

    @property
    def pictures(self) -> int:
        """Of an optimizer step, over all processes."""
        return self.config.batch * self.config.accumulate * int(self.accelerator.num_processes)

    def run(self) -> Outcome:
        """To the last step, or until it is told to stop. Raises TrainingError, FileError."""
        begun = self._resume()
        sampler = (
            Sampler(self.config, self.base, self.feed) if self.config.sample_every and self.main else None
        )
        saved = begun
        try:
            with self._listening(), _Show(self, begun) as show:
                step = begun
                for step, loss, stop in self._steps(begun):
                    show.step(step, loss, _rate(self.config, step - 1), self.feed.broken)
                    last = stop or step == self.config.steps
                    if last or step % self.config.save_every == 0:
                        self._save(step)
                        saved = step
                    if sampler and (step % self.config.sample_every == 0 or step == self.config.steps):
                        self.denoiser.rest()
                        show.picture(step, sampler.draw(self.adapter, step))
                    if last:
                        break
        finally:
            self.denoiser.remove()
        return Outcome(saved, self.folder.root / ADAPTER, step < self.config.steps)

    def _steps(self, begun: int) -> Iterator[tuple[int, float, bool]]:
        """(steps done, mean loss over all processes, whether one is to stop) after each optimizer step."""
        batches = self.feed.batches(begun)
        for step in range(begun, self.config.steps):
            for group in self.optimizer.param_groups:
                group["lr"] = _rate(self.config, step)
            total = torch.zeros(2, device=self.accelerator.device)
            for _ in range(self.config.accumulate):
                total += self._micro(next(batches), step, total)
            self._average(step)
            yield step + 1, float(total[0]), bool(total[1] > 0)

    def _micro(self, batch: Batch, step: int, before: Tensor) -> Tensor:
        """One batch's gradients, and the optimizer's step behind the last. [its share of the loss, stop]."""
        with self.accelerator.accumulate(self.model):
            draws = objective.draw(batch.generators, batch.latent_shape, len(self.base.alphas), self.config)
            loss = objective.loss(
                self.base, self.model, batch.moments, batch.captions, batch.features, self.feed.nothing,
                batch.sizes, draws, self.config.weighting,
            )  # fmt: skip
            mine = torch.stack([loss.detach() / self.config.accumulate, loss.new_tensor(float(self._asked))])
            shared: Tensor = self.accelerator.reduce(mine, reduction="mean")
            self.accelerator.backward(loss)
            if self.accelerator.sync_gradients:
                if not math.isfinite(float((before + shared)[0])):
                    raise TrainingError(self._not_finite(step, batch))
                if self.config.max_norm:
                    self.accelerator.clip_grad_norm_(self.model.parameters(), self.config.max_norm)
                self.optimizer.step()
                self.optimizer.zero_grad()
        return shared

    def _not_finite(self, step: int, batch: Batch) -> str:
        latest = self.folder.latest()
        kept = f"the checkpoint of step {latest[0]} is kept" if latest else "there is no checkpoint yet"
        return (
            f"the loss of step {step + 1} is not a finite number (pictures: {', '.join(batch.keys[:4])}); {kept}. Lower "
            "lr, or choose precision bf16 or no"
        )

    @torch.no_grad()
    def _average(self, step: int) -> None:
        if self.ema is None:
            return
        keep = min(self.config.ema, (1 + step) / (10 + step))
        for held, new in zip(self.ema.parameters(), self.denoiser.adapter.parameters(), strict=True):
            held.lerp_(new.to(held.dtype), 1 - keep)

    # files

    def _resume(self) -> int:
        """The steps that are done already."""
        self.accelerator.wait_for_everyone()
        latest = self.folder.latest()
        if latest is None:
            return 0
        step, path = latest
        try:
            check_states(path / "state")
            self.accelerator.load_state(str(path / "state"))
            if self.ema is not None:
                self.ema.load_state_dict(load_state(path / "ema.pt"))
        except (OSError, RuntimeError, ValueError, KeyError, FileError) as error:
            raise FileError(
                path, f"this checkpoint cannot be gone on with ({' '.join(str(error).split())[:200]}); delete it, and "
                "the one before it is used",
            ) from None  # fmt: skip
        if self.main:
            self.folder.trim_log(step)
        return step

    def _save(self, step: int) -> None:
        part = self.folder.part(step)
        with writing(self.folder.root):
            part.mkdir(parents=True, exist_ok=True)
            # As safetensors, older versions of that package could not read it back.
            self.accelerator.save_state(str(part / "state"), safe_serialization=False)
            if self.main:
                if self.ema is not None:
                    torch.save(self.ema.state_dict(), part / "ema.pt")
                save_adapter(self.adapter.tensors(), part / ADAPTER, {**self._metadata, "steps": str(step)})
        self.accelerator.wait_for_everyone()
        if self.main:
            self.folder.publish(step)
        self.accelerator.wait_for_everyone()

    def _describe(self) -> dict[str, str]:
        """What the adapter file's header says of its making."""
        base, encoder = Path(self.config.base), Path(self.config.encoder)
        return {
            "attention": self.config.attention,
            "variant": self.config.variant,
            "base": base.name,
            "base_sha256": sha256(base) if base.is_file() else "",
            "encoder": self.feed.encoder.spec.name,
            "encoder_sha256": sha256(encoder),
            "dataset_size": str(len(self.feed.source)),
            "resolution": str(self.feed.resolution),
            "config_hash": self.config.hash,
            "trained_with": "sd-webui-ip-adapter",
        }

    @contextmanager
    def _listening(self) -> Iterator[None]:
        """Ctrl-C, or a kind kill, stops behind the running step or the next; a second one at once."""

        def stop(number: int, frame: Any) -> None:
            if self._asked:
                raise KeyboardInterrupt
            self._asked = True

        try:
            held = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
        except ValueError:  # not in the main thread
            held = {}
        try:
            yield
        finally:
            for number, handler in held.items():
                signal.signal(number, handler)


class _Show:
    """Progress bar, log and TensorBoard, on the main process."""

    def __init__(self, trainer: Trainer, begun: int) -> None:
        self.config, self.folder, self.main = trainer.config, trainer.folder, trainer.main
        self.begun, self.pictures = begun, trainer.pictures
        self._bar: Any = None
        self._board: Any = None
        self._mean = math.nan

    def __enter__(self) -> _Show:
        if self.main:
            from tqdm import tqdm

            self._bar = tqdm(total=self.config.steps, initial=self.begun, unit="step")
            self._board = _board(self.folder.root) if self.config.tensorboard else None
        self._time = time.monotonic()
        return self

    def __exit__(self, *error: object) -> None:
        if self._bar:
            self._bar.close()
        if self._board:
            with writing(self.folder.root):
                self._board.close()

    def step(self, step: int, loss: float, rate: float, broken: int) -> None:
        if not self.main:
            return
        now = time.monotonic()
        speed, self._time = self.pictures / max(now - self._time, 1e-9), now
        self._mean = loss if math.isnan(self._mean) else 0.98 * self._mean + 0.02 * loss
        self.folder.log({"step": step, "loss": loss, "lr": rate, "pictures_per_second": round(speed, 3)})
        note = f", {broken} broken" if broken else ""
        self._bar.set_postfix_str(f"loss {self._mean:.4f}, {speed:.1f} pictures/s{note}", refresh=False)
        self._bar.update(step - self._bar.n)
        if self._board:
            with writing(self.folder.root):
                for name, value in (("loss", loss), ("lr", rate), ("pictures_per_second", speed)):
                    self._board.add_scalar(name, value, step)

    def picture(self, step: int, path: Path) -> None:
        if self._board:
            import numpy as np
            from PIL import Image

            with writing(self.folder.root), Image.open(path) as grid:
                self._board.add_image("samples", np.asarray(grid.convert("RGB")), step, dataformats="HWC")


def _board(root: Path) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        print(
            "tensorboard is not installed, so OUT/tensorboard is not written; OUT/log.jsonl has the same numbers"
        )
        return None
    return SummaryWriter(str(root / "tensorboard"))


def _accelerator(config: TrainConfig) -> Any:
    try:
        from accelerate import Accelerator
        from accelerate.state import AcceleratorState
    except ImportError:
        raise TrainingError(
            "accelerate is not installed; run: pip install accelerate tensorboard tqdm"
        ) from None
    AcceleratorState._reset_state()  # a training before this one, in the same process, may have had another precision
    return Accelerator(mixed_precision=config.precision, gradient_accumulation_steps=config.accumulate)


def _tell_deepspeed(accelerator: Any, config: TrainConfig) -> None:
    """DeepSpeed asks for the batch, which it else takes from a DataLoader that it prepares."""
    plugin = getattr(accelerator.state, "deepspeed_plugin", None)
    if plugin is not None:
        plugin.deepspeed_config["train_micro_batch_size_per_gpu"] = config.batch


def _rate(config: TrainConfig, step: int) -> float:
    """The learning rate of a step (counted from 0)."""
    if step < config.warmup:
        return config.lr * (step + 1) / config.warmup
    if config.schedule == "constant":
        return config.lr
    share = (step - config.warmup) / max(config.steps - config.warmup, 1)
    return config.lr * 0.5 * (1 + math.cos(math.pi * share))
