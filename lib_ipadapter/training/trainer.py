"""Trainer: the training loop. Each step is a function of the config and the step's number alone.

So a resumed training has the losses of an uninterrupted one, and two processes do what one with twice the
batch does.
"""

from __future__ import annotations

import copy
import math
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..adapters.file import VARIANT, save_adapter
from ..encoders.clip import ImageEncoder
from ..errors import FileError, ModelError, TrainingError
from ..files.tensors import check_states, load_state
from . import ema, objective
from .adapter import TrainableAdapter, make
from .base import open_base
from .compiled import compile_blocks
from .config import TrainConfig
from .feed import Batch, Feed
from .identity import agreed_step, check_same, identity_of
from .memory import described, resident
from .optimizers import in_use, learning, make_optimizer
from .report import Reporter
from .run_folder import ADAPTER, RunFolder, writing
from .samples import Sampler
from .storage import store
from .validation import Validation

DTYPES = {"no": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Outcome:
    """How a training ended. step: steps done; adapter: the file; stopped: by the user, before its last step."""

    step: int
    adapter: Path
    stopped: bool


class Trainer:
    """One training, or this process's part of it."""

    def __init__(self, config: TrainConfig) -> None:
        self.config = config
        self.accelerator = _accelerator(config)
        device = self.accelerator.device
        if config.precision == "fp16" and device.type == "cpu":
            raise ModelError("precision fp16 on the CPU: expected no or bf16; choose one, or a GPU")
        self.folder = RunFolder(Path(config.out), config)
        if self.main:
            self.folder.begin()
        self.base = open_base(
            config.base, config.base_config or None, device, DTYPES[config.precision], config.prediction
        )
        self.base.unet.requires_grad_(False)
        layers = self.base.layers
        if config.compile:  # a compiler that is missing is said before the caches are filled
            compile_blocks(self.base.unet, device)
        self.feed = Feed(config, self.base, self.accelerator, self.folder)
        self.identity = identity_of(config, self.feed.source.identity, self.accelerator.num_processes)
        self.identity["encoder"] = self.feed.digest  # the recogniser's, where there is no encoder
        self.identity["encoder_config"] = self.feed.encoding.config
        if self.main:
            check_same(self.folder.identity(), self.identity, self.folder.root)
            self.folder.write(self.identity)
        self.validation = (
            Validation(config, self.base, self.feed.encoding, self.feed.preparation(self.feed.resolution))
            if config.validation and self.main
            else None
        )
        self.feed.fill_cache()
        adapter = make(config, layers, self.feed.encoder.spec).to(device)
        self.denoiser = objective.Denoiser(self.base, adapter, config.attention == "concat")
        if config.checkpointing:
            self.base.checkpoint_gradients()
        self.ema = copy.deepcopy(adapter).requires_grad_(False) if config.ema else None
        store(self.base.unet, config.storage)
        optimizer = make_optimizer(config, adapter.parameters())
        _configure_deepspeed(self.accelerator, config)
        self.model, self.optimizer = self.accelerator.prepare(self.denoiser, optimizer)
        self._asked = False  # this process was asked to stop; all processes agree on it at the end of a step
        self._metadata = self._describe()

    @property
    def main(self) -> bool:
        """Whether this process writes files and shows the progress bar."""
        return bool(self.accelerator.is_main_process)

    @property
    def adapter(self) -> TrainableAdapter:
        """The weights that are saved: the averaged ones where there are any."""
        return self.ema or self.denoiser.adapter

    def summary(self) -> str:
        """One line about the training to come."""
        count = sum(p.numel() for p in self.denoiser.parameters())
        config = self.config
        return (
            f"training a {config.variant} adapter ({count / 1e6:.1f} M parameters) on {len(self.feed.source)} "
            "pictures at "
            f"{self.feed.resolution} pixels, {config.steps} steps of {self.feed.pictures(0)} pictures, on "
            f"{self.accelerator.device}; resident: {described(self.resident())}"
        )

    def resident(self) -> dict[str, int]:
        """Bytes on the device by what they are: models, the adapter with its gradients, and the optimizer's state as it
        will be after the first step."""
        device = self.accelerator.device
        models: dict[str, Any] = {"UNet": self.base.unet, **self.base.besides()}
        if isinstance(self.feed.encoder, ImageEncoder):
            models["image encoder"] = self.feed.encoder.tower
        sizes = resident(models, device)
        adapter = sum(p.numel() for p in self.denoiser.parameters()) * 4
        state = {"adamw8bit": 0.5, "prodigy": 4, "schedule-free": 2}.get(self.config.optimizer, 2)
        return {**sizes, "adapter": adapter, "its gradients": adapter, "optimizer": int(adapter * state)}

    def run(self) -> Outcome:
        """Trains to the last step or until a signal stops it. Raises TrainingError, FileError."""
        begun = self._resume()
        learning(self.optimizer)
        sampler = Sampler(self.config, self.base, self.feed) if self.config.sample_every and self.main else None
        saved = begun
        try:
            with (
                self._signals(),
                Reporter(self.config, self.folder, self.main, self.feed.pictures, begun) as report,
            ):
                step = begun
                for step, loss, stop in self._steps(begun):
                    last = stop or step == self.config.steps
                    report.step(step, loss, _rate(self.config, step - 1), self.feed.broken, self._validated(step, last))
                    if last or step % self.config.save_every == 0:
                        self._save(step)
                        saved = step
                    if sampler and (step % self.config.sample_every == 0 or step == self.config.steps):
                        self.denoiser.rest()
                        with in_use(self.optimizer, self.denoiser.parameters()):
                            report.picture(step, sampler.draw(self.adapter, step))
                    if last:
                        break
        finally:
            self.denoiser.remove()
            self.folder.release()
        return Outcome(saved, self.folder.root / ADAPTER, step < self.config.steps)

    def _validated(self, step: int, last: bool) -> float | None:
        """The validation loss after a step, where it is measured: by the main process, of the weights in training."""
        if self.validation is None or not (last or step % self.config.validation_every == 0):
            return None
        with in_use(self.optimizer, self.denoiser.parameters()):
            return self.validation.loss(self.denoiser)

    def _steps(self, begun: int) -> Iterator[tuple[int, float, bool]]:
        """(steps done, mean loss over all processes, whether to stop) after each optimizer step."""
        batches = self.feed.batches(begun)
        for step in range(begun, self.config.steps):
            for group in self.optimizer.param_groups:
                group["lr"] = _rate(self.config, step)
            total = torch.zeros(2, device=self.accelerator.device)
            for _ in range(self.config.accumulate):
                total += self._micro(next(batches), step, total)
            if self.ema is not None:
                ema.update(self.ema, self.denoiser.adapter, self.config.ema, step)
            yield step + 1, float(total[0]), bool(total[1] > 0)

    def _micro(self, batch: Batch, step: int, before: Tensor) -> Tensor:
        """Gradients of one batch, and after the last of a step the optimizer. Returns [its part of the loss, stop]."""
        with self.accelerator.accumulate(self.model):
            draws = objective.draw(batch.generators, batch.latent_shape, len(self.base.alphas), self.config)
            loss = objective.loss(
                self.base, self.model, batch.moments, batch.captions, batch.features, self.feed.nothing,
                batch.sizes, draws, self.config.weighting, self.feed.cached(batch),
            )  # fmt: skip
            asked = self._asked or (self.main and self.folder.asked_to_stop())
            mine = torch.stack([loss.detach() / self.config.accumulate, loss.new_tensor(float(asked))])
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
        return (
            f"the loss of step {step + 1} is not a finite number (pictures: {', '.join(batch.keys[:4])}); "
            f"{self._kept()}. Lower lr, or choose precision bf16 or no"
        )

    def _kept(self) -> str:
        latest = self.folder.latest()
        return f"the checkpoint of step {latest[0]} is kept" if latest else "there is no checkpoint yet"

    # files

    def _resume(self) -> int:
        """Loads the newest checkpoint and returns its step; 0 without one."""
        self.accelerator.wait_for_everyone()
        step = agreed_step(self.accelerator, self.folder)
        if step is None:
            if self.main:
                self.folder.trim_log(0)
            return 0
        path = self.folder.of(step)
        try:
            check_states(path / "state")
            self.accelerator.load_state(str(path / "state"))
            if self.ema is not None:
                self.ema.load_state_dict(load_state(path / "ema.pt"))
        except Exception as error:  # of damaged files torch and accelerate raise all kinds, EOFError for one
            reason = " ".join(f"{error or type(error).__name__}".split())[:200]
            raise FileError(
                path, f"this checkpoint cannot be resumed ({reason}); delete it, and the one before it is used"
            ) from None
        if self.main:
            self.folder.trim_log(step)
        return step

    def _save(self, step: int) -> None:
        if not all(bool(value.isfinite().all()) for value in self.denoiser.parameters()):
            raise TrainingError(
                f"the weights after step {step} are not all finite numbers; {self._kept()}. Lower lr, or choose "
                "precision bf16 or no"
            )
        part = self.folder.part(step)
        with writing(self.folder.root):
            part.mkdir(parents=True, exist_ok=True)
            # As safetensors, older versions of that package could not read it back.
            self.accelerator.save_state(str(part / "state"), safe_serialization=False)
            if self.main:
                if self.ema is not None:
                    torch.save(self.ema.state_dict(), part / "ema.pt")
                with in_use(self.optimizer, self.denoiser.parameters()):
                    save_adapter(self.adapter.tensors(), part / ADAPTER, {**self._metadata, "steps": str(step)})
        self.accelerator.wait_for_everyone()
        if self.main:
            self.folder.publish(step)
        self.accelerator.wait_for_everyone()

    def _describe(self) -> dict[str, str]:
        """The metadata of the adapter file's header."""
        base = Path(self.config.base)
        # Of FaceID-Plus the shapes do not tell the version.
        kind = {VARIANT: self.config.variant} if self.config.variant.startswith("faceid-plus") else {}
        return {
            **kind,
            "attention": self.config.attention,
            "variant": self.config.variant,
            "base": base.name,
            "base_sha256": self.identity["base"] if base.is_file() else "",
            "encoder": self.feed.encoder.spec.name,
            "encoder_sha256": self.identity["encoder"],
            "dataset_size": str(len(self.feed.source)),
            "resolution": str(self.feed.resolution),
            "config_hash": self.config.hash,
            "trained_with": "sd-webui-ip-adapter",
        }

    @contextmanager
    def _signals(self) -> Iterator[None]:
        """SIGINT or SIGTERM stops after the current step, or the next; a second one at once."""

        def stop(number: int, frame: Any) -> None:
            if self._asked:
                raise KeyboardInterrupt
            self._asked = True

        try:
            before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
        except ValueError:  # not in the main thread
            before = {}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def _accelerator(config: TrainConfig) -> Any:
    try:
        from accelerate import Accelerator
        from accelerate.state import AcceleratorState
    except ImportError:
        raise TrainingError("accelerate is not installed; run: pip install accelerate tensorboard tqdm") from None
    AcceleratorState._reset_state()  # a training before this one, in the same process, may have had another precision
    return Accelerator(mixed_precision=config.precision, gradient_accumulation_steps=config.accumulate)


def _configure_deepspeed(accelerator: Any, config: TrainConfig) -> None:
    """Gives DeepSpeed the batch size, which it otherwise takes from a DataLoader that it prepares."""
    plugin = getattr(accelerator.state, "deepspeed_plugin", None)
    if plugin is not None:
        plugin.deepspeed_config["train_micro_batch_size_per_gpu"] = config.batch


def _rate(config: TrainConfig, step: int) -> float:
    """The learning rate of a step (counted from 0)."""
    if step < config.warmup:
        return config.lr * (step + 1) / config.warmup
    if config.schedule == "constant":
        return config.lr
    progress = (step - config.warmup) / max(config.steps - config.warmup, 1)
    return config.lr * 0.5 * (1 + math.cos(math.pi * progress))
