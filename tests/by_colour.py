"""An evaluation without a model: pictures of one colour, a metric that reads it, a method that mixes it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from lib_ipadapter.evaluation import Item, Options, evaluate
from lib_ipadapter.evaluation.methods import Job

COLOURS = {"red": (220, 20, 30), "green": (20, 200, 40), "blue": (30, 40, 210), "grey": (120, 120, 120)}


def plain(colour: str, size: tuple[int, int] = (40, 24)) -> Image.Image:
    return Image.new("RGB", size, COLOURS[colour])


class ByColour:
    """A metric whose vectors are mean colours; a text is the colour that it names."""

    def __init__(self) -> None:
        self.seen = 0

    def images(self, pictures: Sequence[Image.Image]) -> torch.Tensor:
        self.seen += len(pictures)
        means = [np.asarray(picture, dtype=np.float32).mean((0, 1)) for picture in pictures]
        return torch.nn.functional.normalize(torch.from_numpy(np.stack(means)), dim=-1)

    def texts(self, texts: Sequence[str]) -> torch.Tensor:
        rows = [next((c for name, c in COLOURS.items() if name in text), (1, 1, 1)) for text in texts]
        return torch.nn.functional.normalize(torch.tensor(rows, dtype=torch.float32), dim=-1)

    def settings(self) -> dict[str, Any]:
        return {"file": "by colour"}


class Mixer:
    """A method that mixes grey and the reference by λ, and keeps what it was asked for."""

    def __init__(self, name: str, at_zero: Any = None, only: tuple[float, ...] = (), **settings: Any) -> None:
        self.name, self.at_zero, self.only, self.own = name, at_zero, only, settings
        self.jobs: list[Job] = []
        self.stop_after: int | None = None

    def weights(self, asked: Sequence[float]) -> Sequence[float | None]:
        return [w for w in asked if not self.only or w in self.only]

    def prompt(self, item: Item, asked: str) -> str:
        return asked

    def settings(self) -> dict[str, Any]:
        return {"steps": 4, **self.own}

    def draw(self, jobs: Sequence[Job]) -> list[Image.Image]:
        if self.stop_after is not None and len(self.jobs) >= self.stop_after:
            raise KeyboardInterrupt
        self.jobs += jobs
        assert len({job.weight for job in jobs}) == 1
        grey = [Image.new("RGB", job.reference.size, COLOURS["grey"]) for job in jobs]
        return [Image.blend(g, job.reference, job.weight or 0.0) for g, job in zip(grey, jobs, strict=True)]


def items_of(*colours: str) -> list[Item]:
    return [Item(c, f"a {c} thing", plain(c), {"full": f"all {c}"}) for c in colours]


THREE = items_of("red", "green", "blue")


def run(out: Path, methods: Sequence[Any], items: Sequence[Item] = THREE, extra: Any = None, **options: Any) -> Any:
    said: list[str] = []
    results = evaluate(items, methods, ByColour(), out, Options(**options), extra, said.append)
    return results, said
