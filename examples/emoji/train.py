"""Trains a base model for the emoji, starting from the small world's: python -m examples.emoji.train PART

Parts in their order: clip, autoencoder, decoder, base (the UNet; needs clip and autoencoder), checkpoint (RUN/weights:
what the trainer, the evaluation and the WebUI load). Each part begins with the small world's weights, writes its state
into --folder as it goes, and goes on from there when called again. Held-out concepts are seen by none of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor

from examples.small_world import loop, models, towers
from examples.small_world import train as small_world
from lib_ipadapter.errors import DataError
from lib_ipadapter.pictures import images

from .prepare import RUN, SIDE

ARCH = "emoji-clip"
Indices = NDArray[np.int64]


class Emoji:
    """The images of RUN/data/train and shifted, smaller copies, loop.PICTURES in total: image i shows emoji i modulo
    ``count``; the first ``count`` are unchanged."""

    def __init__(self, run: Path) -> None:
        self.run = run
        self.files = sorted((run / "data" / "train").glob("*.png"))
        self.count, self.copies = len(self.files), loop.PICTURES // max(1, len(self.files))
        if not 2 <= self.count <= loop.PICTURES:
            raise DataError(
                run / "data",
                f"{self.count} pictures in train; expected 2 to {loop.PICTURES}; run prepare.py first",
            )
        self.words = [file.with_suffix(".txt").read_text(encoding="utf-8").split(", ") for file in self.files]

    def pictures(self) -> NDArray[np.uint8]:
        """[loop.PICTURES, SIDE, SIDE, 3], rendered once, in the file from which the small world's loop reads them."""
        return loop.pictures(self.run, self._draw)

    def _draw(self, index: int) -> Image.Image:
        picture = images.load(self.files[index % self.count])
        return picture if index < self.count else moved(picture, index)

    def caption(self, index: int, rng: np.random.Generator) -> str:
        """The label and a random choice of the tags."""
        label, *tags = self.words[index % self.count]
        return ", ".join([label, *(tag for tag in tags if rng.random() < 0.5)])


def moved(picture: Image.Image, seed: int) -> Image.Image:
    """Shifted and up to a third smaller, on white."""
    rng = np.random.default_rng([loop.SEED, seed])
    side = round(SIDE * rng.uniform(0.67, 1))
    left, top = rng.integers(0, SIDE - side + 1, 2).tolist()
    canvas = Image.new("RGB", picture.size, "white")
    canvas.paste(picture.resize((side, side), Image.Resampling.LANCZOS), (left, top))
    return canvas


def train_clip(run: Path, steps: int) -> None:
    """CLIP's symmetric cross-entropy between images and captions, and between two copies of each image: captions are
    short here, and single concepts must be separated."""
    emoji = Emoji(run)
    emoji.pictures()
    torch.manual_seed(0)
    model = models.make_clip()
    model.load_state_dict(load_file(models.CLIP_FILE), strict=False)  # without the causal mask, which is not a weight
    small = towers.clip_pictures(run, model.visual.image_size[0])

    def seen(chosen: Indices, rng: np.random.Generator) -> Tensor:
        copies = chosen + emoji.count * rng.integers(emoji.copies, size=len(chosen))
        return F.normalize(model.encode_image(towers.clip_pixels(small[copies])), dim=-1)

    def loss_of(step: int, indices: Indices, rng: np.random.Generator) -> Tensor:
        chosen = rng.choice(emoji.count, min(len(indices), emoji.count), replace=False)
        read = F.normalize(towers.encode_text(model, [emoji.caption(i, rng) for i in chosen]), dim=-1)
        first, second = seen(chosen, rng), seen(chosen, rng)
        scale = model.logit_scale.exp().clamp(max=100)
        return (towers.both_ways(scale * first @ read.T) + towers.both_ways(scale * first @ second.T)) / 2

    loop.Training("clip", model, run, steps, lr=5e-4, average=0.99).run(96, loss_of)


def train_autoencoder(run: Path, steps: int) -> None:
    """The small world's loss, on larger crops."""
    drawn = Emoji(run).pictures()
    model = models.make_autoencoder()
    model.load_state_dict(models.part_of_checkpoint("first_stage_model."))
    loss_of = small_world.restoring(model, drawn, lambda step: (64, 0))
    loop.Training("autoencoder", model, run, steps, lr=5e-4, average=0.99).run(16, loss_of)


def train_base(run: Path, steps: int) -> None:
    """The small world's loss on captions of these images, with more weight on high noise."""
    emoji = Emoji(run)
    clip, model = models.make_clip(), models.make_unet()
    clip.load_state_dict(loop.trained(run, "clip"))
    model.load_state_dict(models.part_of_checkpoint("model.diffusion_model."))
    model.to(memory_format=torch.channels_last)  # an eighth faster on a CPU
    latents, _ = loop.one_by_one(lambda: small_world.normal_latents(run))
    loss_of = small_world.denoising(model, latents, clip, emoji.caption, "debiased")
    loop.Training("base", model, run, steps, lr=7e-4, average=0.997).run(32, loss_of)


def write_checkpoint(run: Path, steps: int) -> None:
    """RUN/weights: the checkpoint and its yaml, CLIP and its config."""
    weights = run / "weights"
    weights.mkdir(parents=True, exist_ok=True)
    clip = models.make_clip()
    clip.load_state_dict(loop.trained(run, "clip"))
    save_file(small_world.checkpoint_of(run, clip), weights / "emoji.safetensors")
    towers.save_clip(clip, weights / f"{ARCH}.safetensors")
    # Copies of the small world's configs under new names.
    for source, name in ((models.CLIP_CONFIG, f"{ARCH}.json"), (models.CHECKPOINT_CONFIG, "emoji.yaml")):
        text = source.read_text(encoding="utf-8").replace(models.ARCH, ARCH)
        (weights / name).write_text(text, encoding="utf-8")


# Name: function, steps; in order of their dependencies
PARTS = {
    "clip": (train_clip, 400),
    "autoencoder": (train_autoencoder, 500),
    "decoder": (small_world.train_decoder, 100),
    "base": (train_base, 1500),
    "checkpoint": (write_checkpoint, 0),
}


def main(argv: Sequence[str] | None = None) -> int:
    return small_world.run_part(PARTS, argv, "examples.emoji.train", __doc__, RUN)


if __name__ == "__main__":
    raise SystemExit(main())
