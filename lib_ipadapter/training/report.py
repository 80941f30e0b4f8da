"""What a training reports while it runs: progress bar, OUT/log.jsonl, OUT/tensorboard."""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..errors import TrainingError
from .config import TrainConfig
from .run_folder import RunFolder, writing


class Reporter:
    """Progress bar, log and TensorBoard; silent but on the main process. pictures: of an optimizer step; begun: steps
    that are done already."""

    def __init__(self, config: TrainConfig, folder: RunFolder, main: bool, pictures: Callable[[int], int],
                 begun: int) -> None:  # fmt: skip
        self.config, self.folder, self.main = config, folder, main
        self.begun, self.pictures = begun, pictures
        self._bar: Any = None
        self._board: Any = None
        self._wandb: Any = None
        self._mean = math.nan

    def __enter__(self) -> Reporter:
        if self.main:
            from tqdm import tqdm

            self._bar = tqdm(total=self.config.steps, initial=self.begun, unit="step")
            self._board = _board(self.folder.root) if self.config.tensorboard else None
            self._wandb = _wandb(self.config, self.folder.root) if self.config.wandb else None
        self._time = time.monotonic()
        return self

    def __exit__(self, *error: object) -> None:
        if self._bar:
            self._bar.close()
        if self._board:
            with writing(self.folder.root):
                self._board.close()
        if self._wandb:
            self._wandb.finish()

    def step(self, step: int, loss: float, rate: float, broken: int, validation: float | None = None) -> None:
        """After an optimizer step: its mean loss and learning rate, the broken pictures so far, and the validation loss
        where it was measured."""
        if not self.main:
            return
        now = time.monotonic()
        speed, self._time = self.pictures(step - 1) / max(now - self._time, 1e-9), now
        self._mean = loss if math.isnan(self._mean) else 0.98 * self._mean + 0.02 * loss
        measured = {} if validation is None else {"validation": validation}
        own = {"step": step, "loss": loss, "lr": rate, "pictures_per_second": round(speed, 3)}
        self.folder.log({**own, **measured, "time": round(time.time(), 2)})
        note = f", {broken} broken" if broken else ""
        self._bar.set_postfix_str(f"loss {self._mean:.4f}, {speed:.1f} pictures/s{note}", refresh=False)
        self._bar.update(step - self._bar.n)
        if self._wandb:
            self._wandb.log({name: value for name, value in {**own, **measured}.items() if name != "step"}, step=step)
        if self._board:
            with writing(self.folder.root):
                for name, value in (("loss", loss), ("lr", rate), ("pictures_per_second", speed), *measured.items()):
                    self._board.add_scalar(name, value, step)

    def picture(self, step: int, path: Path) -> None:
        """A grid of samples."""
        if self._wandb:
            import wandb

            self._wandb.log({"samples": wandb.Image(str(path))}, step=step)
        if self._board:
            import numpy as np
            from PIL import Image

            with writing(self.folder.root), Image.open(path) as grid:
                self._board.add_image("samples", np.asarray(grid.convert("RGB")), step, dataformats="HWC")


def _board(root: Path) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        print("tensorboard is not installed, so OUT/tensorboard is not written; OUT/log.jsonl has the same numbers")
        return None
    return SummaryWriter(str(root / "tensorboard"))


def _wandb(config: TrainConfig, root: Path) -> Any:
    """The run of OUT, which a resumed training goes on with. Raises TrainingError without the package."""
    try:
        import wandb
    except ImportError:
        raise TrainingError("wandb is not installed; run: pip install wandb, or leave the field wandb empty") from None
    name = hashlib.sha256(str(root.absolute()).encode()).hexdigest()[:16]
    return wandb.init(
        project=config.wandb, name=root.name, id=name, resume="allow", dir=str(root), config=config.as_dict()
    )
