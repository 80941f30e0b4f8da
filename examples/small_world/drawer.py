"""Sampling with the small world's models."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from lib_ipadapter.adapters.adapter import Adapter
from lib_ipadapter.attention.region import Region
from lib_ipadapter.attention.session import ImagePrompt
from lib_ipadapter.encoders import EncoderSource
from lib_ipadapter.errors import FileError
from lib_ipadapter.pictures.picture import Pictures
from lib_ipadapter.prompts.pipeline import Pipeline
from lib_ipadapter.prompts.references import NoStore
from lib_ipadapter.prompts.resolve import resolve
from lib_ipadapter.standalone import Standalone
from lib_ipadapter.unit import Unit

from . import data, models

CFG = 4.0
SIZE = (data.SIDE, data.SIDE)


class Drawer:
    """The models in the folder ``weights`` with one of its adapters. steps: DDIM steps. Raises FileError,
    ModelError."""

    def __init__(self, weights: Path, adapter: str = models.BASE_ADAPTER.name, steps: int = 15) -> None:
        files = (models.CHECKPOINT, models.CHECKPOINT_CONFIG, models.CLIP_FILE, models.CLIP_CONFIG)
        for name in (*(path.name for path in files), adapter):
            if not (weights / name).is_file():
                raise FileError(
                    weights / name, f"not in {weights}; examples/small_world/README.md says how to train it"
                )
        self.host = Standalone.load(weights / models.CHECKPOINT.name, weights / models.CHECKPOINT_CONFIG.name)
        self.pipeline, self.pictures = Pipeline(EncoderSource([weights])), Pictures()
        self.name, self.adapter = adapter, Adapter.load(weights / adapter)
        self.steps = steps

    def prompt(self, reference: Image.Image, region: Region | None = None, **fields: object) -> ImagePrompt:
        """The image prompt of one reference, with these fields of a unit."""
        return self.prompt_of([reference], region, **fields)

    def prompt_of(
        self, references: Sequence[Image.Image], region: Region | None = None, **fields: object
    ) -> ImagePrompt:
        """The image prompt of several references."""
        unit = Unit.parse({"model": self.name, "images": list(references), **fields})
        return self.pipeline.prompt(resolve(unit, NoStore(), self.pictures), self.adapter, region)

    def draw(
        self, text: str, prompts: Sequence[ImagePrompt], seed: int, size: tuple[int, int] = SIZE, **begin: Any
    ) -> Image.Image:
        """One sample. begin: init_image, strength and mask of Standalone.generate."""
        return self.host.generate(text, prompts=prompts, steps=self.steps, cfg=CFG, seed=seed, size=size, **begin)[0]
