"""A grid of samples from fixed references, generated during training."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..attention.session import ImagePrompt, Session
from ..encoders.clip import ImageEncoder
from ..encoders.source import LoadedSource
from ..encoders.spec import Need
from ..errors import DataError, ImageError, TrainingError
from ..pictures import images
from ..pictures.picture import Pictures
from ..prompts.pipeline import Pipeline
from ..prompts.references import NoStore
from ..prompts.resolve import resolve
from ..standalone.sampler import Schedule, ddim
from ..unit import Unit
from ..unit.fields import Reference
from .adapter import TrainableAdapter
from .base import Base, Sizes, Text
from .config import TrainConfig
from .run_folder import writing

if TYPE_CHECKING:
    from .feed import Feed

ROWS, CFG = 4, 5.0
WEIGHTS = (0.0, 0.5, 1.0)


class Sampler:
    """Rows of references; columns: the reference, then weight 0, 0.5 and 1. All rows and steps have the same noise."""

    def __init__(self, config: TrainConfig, base: Base, feed: Feed) -> None:
        self.config, self.base, self.feed = config, base, feed
        self.references = self._references()
        self.features = torch.cat([self._feature(picture) for picture in self.references])

    def _feature(self, picture: Image.Image) -> Tensor:
        if not isinstance(self.feed.encoder, ImageEncoder):
            return self.feed.encoder.of_picture(picture)
        spec, name = self.feed.encoder.spec, self.feed.feature
        resolved = resolve(Unit(images=(Reference(picture),)), NoStore(), Pictures())
        need = Need(name, spec.feature_width(name), spec.name)
        return Pipeline(LoadedSource(self.feed.encoder)).features(resolved, (need,)).references[0]()[name]

    def _references(self) -> list[Image.Image]:
        if not self.config.sample_references:
            pictures = self.feed.first_pictures(ROWS)
            if not pictures:
                without = " and has a face in it" if self.config.of_face else ""
                raise DataError(self.config.data, f"not one picture of the data can be read{without}; give others")
            return pictures
        folder = Path(self.config.sample_references)
        inside = folder.glob("*") if os.path.isdir(folder) else ()
        found = sorted(p for p in inside if p.suffix.lower() in images.SUFFIXES)
        loaded: list[Image.Image] = []
        why = ""
        for path in found:
            try:
                loaded.append(images.load(path))
            except ImageError as error:  # passed over, as in the data
                why = why or f" that can be read ({path.name}: {error})"
            if len(loaded) == ROWS:
                break
        if not loaded:
            raise TrainingError(f"sample_references: {folder} holds no pictures{why}; give a folder with some")
        return loaded

    @torch.no_grad()
    def draw(self, adapter: TrainableAdapter, step: int) -> Path:
        """Writes OUT/samples/step-N.png."""
        self.base.keep("autoencoder", "text encoder")
        try:
            return self._draw(adapter, step)
        finally:
            self.feed.rest()

    def _draw(self, adapter: TrainableAdapter, step: int) -> Path:
        side = self.feed.resolution
        rows = [[picture, *self._row(adapter, self.features[i : i + 1])] for i, picture in enumerate(self.references)]
        grid = Image.new("RGB", (side * len(rows[0]), side * len(rows)))
        for y, row in enumerate(rows):
            for x, picture in enumerate(row):
                grid.paste(images.fit(picture, side, "crop"), (x * side, y * side))
        path = Path(self.config.out) / "samples" / f"step-{step:08d}.png"
        with writing(path.parent.parent):
            path.parent.mkdir(exist_ok=True)
            grid.save(path)
        return path

    def _row(self, adapter: TrainableAdapter, feature: Tensor) -> list[Image.Image]:
        if self.config.attention == "concat":  # it has no weight
            return [self._picture(adapter, None), self._picture(adapter, feature)]
        return [self._picture(adapter, feature, weight) for weight in WEIGHTS]

    def _picture(self, adapter: TrainableAdapter, feature: Tensor | None, weight: float = 1.0) -> Image.Image:
        base, side = self.base, self.feed.resolution // self.base.factor
        cond, uncond = base.text([self.config.sample_prompt]), base.text([""])
        session = Session([])
        if feature is not None:
            tokens = torch.cat([adapter.projection(x.to(base.device)) for x in (feature, self.feed.nothing)])
            if self.config.attention == "concat":
                cond, uncond = (
                    Text(torch.cat([text.tokens, tokens[i : i + 1]], dim=1), text.pooled)
                    for i, text in enumerate((cond, uncond))
                )
            else:
                session = Session([_prompt(adapter, tokens.float().cpu(), weight)])

        def call(x: Tensor, t: Tensor, context: Tensor) -> Tensor:
            pooled = None if cond.pooled is None or uncond.pooled is None else torch.cat([cond.pooled, uncond.pooled])
            sizes = Sizes(torch.tensor([[self.feed.resolution] * 2 + [0, 0] + [self.feed.resolution] * 2] * len(x)))
            return base.predict(x, t, Text(context, pooled), sizes)

        noise = torch.randn(1, 4, side, side, generator=torch.Generator().manual_seed(self.config.seed))
        schedule = Schedule.of(base.alphas, base.v, self.config.sample_steps)
        with session.attached(base.unet):
            x = ddim(call, session, schedule, noise.to(base.device), cond.tokens, uncond.tokens, CFG)
        pixels = ((base.decode(x)[0] + 1) * 127.5).round().clamp(0, 255).permute(1, 2, 0).cpu().numpy()
        return Image.fromarray(pixels.astype(np.uint8))


def _prompt(adapter: TrainableAdapter, tokens: Tensor, weight: float) -> ImagePrompt:
    count = tokens.shape[1]
    if not math.isfinite(float(tokens.sum())):
        raise TrainingError("the image tokens of a sample are not finite numbers; lower lr")
    return ImagePrompt(adapter.adapter(Path("training")), tokens, torch.ones(count), weight)
