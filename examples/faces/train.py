"""Trains a base model that draws faces, starting from the small world's: python -m examples.faces.train PART

Parts in their order: autoencoder, decoder, base (the UNet), clip (the encoder of the plain adapter), checkpoint
(RUN/weights: what the trainer, the evaluation and the WebUI load). Each begins with the small world's weights, writes
its state into --folder as it goes, and goes on from there when called again. Unseen people are seen by none of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import Tensor

from examples.small_world import loop, models, towers
from examples.small_world import train as small_world
from lib_ipadapter.errors import DataError

from .people import SIDE
from .prepare import CAPTION, RUN

ARCH = "faces-clip"
CONFIG = Path(__file__).resolve().parent / "faces.yaml"
Indices = NDArray[np.int64]


def drawn(run: Path) -> NDArray[np.uint8]:
    """The pictures [N, SIDE, SIDE, 3] that prepare.py made. Raises DataError."""
    if not (run / "pictures.npy").is_file():
        raise DataError(run, "no pictures.npy in it; run prepare.py first")
    return loop.pictures(run)


def train_autoencoder(run: Path, steps: int) -> None:
    """The small world's loss on whole pictures, in bfloat16, which is twice as fast. This autoencoder halves the sides
    twice, the small world's three times: a face of 64 pixels has 16 x 16 latents. Of the weights what fits is taken
    over."""
    pictures, model = drawn(run), models.make_autoencoder(CONFIG)
    before, own = models.part_of_checkpoint("first_stage_model."), model.state_dict()
    fitting = {key: value for key, value in before.items() if key in own and own[key].shape == value.shape}
    model.load_state_dict({**own, **fitting})
    loss_of = small_world.restoring(model, pictures, lambda step: (SIDE, 0))
    loop.Training("autoencoder", model, run, steps, lr=1e-3, average=0.99).run(8, fast(loss_of), len(pictures))


def train_decoder(run: Path, steps: int) -> None:
    """The decoder alone, with noise of up to 0.4 std added to the latents, as the small world's."""
    pictures, (latents, model) = drawn(run), latents_of(run)
    model.train()
    model.encoder.requires_grad_(False)
    model.quant_conv.requires_grad_(False)

    def loss_of(step: int, indices: Indices, rng: np.random.Generator) -> Tensor:
        seen = latents[torch.from_numpy(indices)]
        restored = model.decode(seen + 0.4 * torch.rand(len(seen), 1, 1, 1) * torch.randn_like(seen)).float()
        wanted = loop.values(pictures[indices])
        return F.l1_loss(restored, wanted) + 2 * F.mse_loss(restored, wanted)

    loop.Training("decoder", model, run, steps, lr=5e-4, average=0.98).run(8, fast(loss_of), len(pictures))


def fast(loss_of: loop.LossOf) -> loop.LossOf:
    """The same in bfloat16 where torch thinks that it may be."""

    def loss(step: int, indices: Indices, rng: np.random.Generator) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return loss_of(step, indices, rng)

    return loss


def latents_of(run: Path) -> tuple[Tensor, Any]:
    """The small world's ``normal_latents`` of this autoencoder."""
    return loop.one_by_one(lambda: small_world.normal_latents(run, CONFIG))


def train_base(run: Path, steps: int) -> None:
    """The small world's loss with more weight on high noise. All captions are alike: who it is no text says."""
    model = models.make_unet()
    model.load_state_dict(models.part_of_checkpoint("model.diffusion_model."))
    latents, _ = latents_of(run)
    loss_of = small_world.denoising(model, latents, worded(), lambda index, rng: CAPTION, "debiased")
    training = loop.Training(
        "base", model, run, steps, 1e-3, 0.99, matrices=small_world.hidden(model), matrices_lr=0.01
    )
    training.run(16, loss_of, len(latents))


def worded() -> Any:
    """The small world's CLIP with the text tower of its checkpoint, which is trained no further."""
    clip = models.make_clip()
    clip.load_state_dict(load_file(models.CLIP_FILE), strict=False)  # without the causal mask, which is not a weight
    clip.load_state_dict(models.part_of_checkpoint("cond_stage_model.model."), strict=False)
    return clip


def train_clip(run: Path, steps: int) -> None:
    """CLIP's symmetric cross-entropy between two copies of each picture, shifted, mirrored and of another brightness:
    what a picture shows, without anybody having said who it is. The text tower stays as it is."""
    drawn(run)
    torch.manual_seed(0)
    model = models.make_clip()
    model.load_state_dict(load_file(models.CLIP_FILE), strict=False)
    for part in (model.transformer, model.token_embedding):
        part.requires_grad_(False)
    small = towers.clip_pictures(run, model.visual.image_size[0])

    def seen(indices: Indices, rng: np.random.Generator) -> Tensor:
        copies = np.stack([copy_of(small[i], rng) for i in indices])
        return F.normalize(model.encode_image(towers.clip_pixels(copies)), dim=-1)

    def loss_of(step: int, indices: Indices, rng: np.random.Generator) -> Tensor:
        scale = model.logit_scale.exp().clamp(max=100)
        return towers.both_ways(scale * seen(indices, rng) @ seen(indices, rng).T)

    loop.Training("clip", model, run, steps, lr=5e-4, average=0.99).run(64, loss_of, len(small))


def copy_of(picture: NDArray[np.uint8], rng: np.random.Generator) -> NDArray[np.uint8]:
    """Shifted by up to a tenth, mirrored or not, and up to a quarter brighter or darker."""
    reach = len(picture) // 10
    padded = np.pad(picture, ((reach, reach), (reach, reach), (0, 0)), mode="edge")
    left, top = rng.integers(0, 2 * reach + 1, 2)
    part = padded[top : top + len(picture), left : left + len(picture)].astype(np.float32)
    part = part[:, :: 1 if rng.random() < 0.5 else -1] * rng.uniform(0.75, 1.25)
    return part.clip(0, 255).astype(np.uint8)


def write_checkpoint(run: Path, steps: int) -> None:
    """RUN/weights: the checkpoint and its yaml, CLIP and its config."""
    weights = run / "weights"
    weights.mkdir(parents=True, exist_ok=True)
    clip = models.make_clip()
    clip.load_state_dict(loop.trained(run, "clip"))
    save_file(small_world.checkpoint_of(run, worded(), CONFIG), weights / "faces.safetensors")
    towers.save_clip(clip, weights / f"{ARCH}.safetensors")
    (weights / "faces.yaml").write_text(CONFIG.read_text(encoding="utf-8"), encoding="utf-8")
    (weights / f"{ARCH}.json").write_text(models.CLIP_CONFIG.read_text(encoding="utf-8"), encoding="utf-8")


# Name: function, steps; in order of their dependencies
PARTS: small_world.Parts = {
    "autoencoder": (train_autoencoder, 1500),
    "decoder": (train_decoder, 200),
    "base": (train_base, 1200),
    "clip": (train_clip, 80),
    "checkpoint": (write_checkpoint, 0),
}


def main(argv: Sequence[str] | None = None) -> int:
    return small_world.run_part(PARTS, argv, "examples.faces.train", __doc__, RUN)


if __name__ == "__main__":
    raise SystemExit(main())
