"""Trains the small world from scratch: python -m examples.small_world.train PART

The parts in order: clip; words and vision (each continues one of clip's towers); autoencoder; decoder (continues the
autoencoder's decoder); base (the UNet; needs words and autoencoder); checkpoint (writes one file). Each part saves its
state to --folder and resumes from it when it is called again. Under torchrun, autoencoder, decoder and base split each
batch among the processes. README.md beside this file has the commands.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from safetensors.torch import save_file
from torch import Tensor

from lib_ipadapter.cli import ended

from . import data, loop, models, towers

LOG_VARIANCE = -18.0  # of the shipped autoencoder's posterior
Indices = NDArray[np.int64]
Parts = Mapping[str, tuple[Callable[[Path, int], None], int]]


def train_autoencoder(run: Path, steps: int) -> None:
    """Trains on crops: first small ones, which are fast, then larger ones, which have less border."""
    torch.manual_seed(0)
    model = models.make_autoencoder()
    # Small crops are taken away from the empty border.
    loss_of = restoring(model, loop.pictures(run), lambda step: (32, 16) if step < 2000 else (64, 0))
    loop.Training("autoencoder", model, run, steps, lr=1e-3, average=0.99).run(16, loss_of)


def restoring(model: Any, drawn: NDArray[np.uint8], crop_of: Callable[[int], tuple[int, int]]) -> loop.LossOf:
    """L1 and L2 between crop and reconstruction, plus enough KL that the decoder tolerates small errors in the latents.
    crop_of: side of the crops and their distance from the border, in pixels, by step."""

    def loss_of(step: int, indices: Indices, rng: np.random.Generator) -> Tensor:
        side, edge = crop_of(step)
        left, top = rng.integers(edge, drawn.shape[1] - side - edge + 1, (2, len(indices)))
        crops = [drawn[i, y : y + side, x : x + side] for i, x, y in zip(indices, left, top, strict=True)]
        part = loop.part(len(crops))
        wanted = loop.values(np.stack(crops[part]))
        mean, deviation = model.posterior(wanted)
        noise = torch.randn(len(crops), *mean.shape[1:])[part]
        kl = 0.5 * (mean**2 + deviation**2 - 1 - 2 * deviation.log()).mean()
        restored = model.decode(mean + deviation * noise)
        return F.l1_loss(restored, wanted) + 2 * F.mse_loss(restored, wanted) + 2e-3 * min(step / 800, 1) * kl

    return loss_of


def train_decoder(run: Path, steps: int) -> None:
    """Trains the decoder alone, from latents of whole images to crops of them, with noise of up to 0.4 std added: the
    latents that the UNet samples are never exact."""
    drawn, (latents, model) = loop.pictures(run), loop.one_by_one(lambda: normal_latents(run))
    model.train()
    model.encoder.requires_grad_(False)
    model.quant_conv.requires_grad_(False)
    side = 64 // 8

    def loss_of(step: int, indices: Indices, rng: np.random.Generator) -> Tensor:
        left, top = rng.choice([0, 2, 4, 6, 8], (2, len(indices)))
        seen = torch.stack(
            [latents[i, :, y : y + side, x : x + side] for i, x, y in zip(indices, left, top, strict=True)]
        )
        crops = [drawn[i, 8 * y : 8 * y + 64, 8 * x : 8 * x + 64] for i, x, y in zip(indices, left, top, strict=True)]
        noise = 0.4 * torch.rand(len(seen), 1, 1, 1) * torch.randn_like(seen)
        part = loop.part(len(crops))
        wanted = loop.values(np.stack(crops[part]))
        restored = model.decode((seen + noise)[part])
        return F.l1_loss(restored, wanted) + 2 * F.mse_loss(restored, wanted)

    loop.Training("decoder", model, run, steps, lr=5e-4, average=0.99).run(16, loss_of, len(drawn))


def train_base(run: Path, steps: int) -> None:
    """Noise prediction on cached latents, with "debiased" weighting, which emphasises the noise levels that decide
    shapes. Four fifths of the captions name all attributes; the UNet learns least from a caption that leaves them
    open."""
    torch.manual_seed(0)
    model = models.make_unet()
    scenes = loop.scenes()
    clip = towers.worded(run)
    latents, _ = loop.one_by_one(lambda: normal_latents(run))

    def words(index: int, rng: np.random.Generator) -> str:
        return data.caption(scenes[index], rng if rng.random() < 0.2 else None)

    loss_of = denoising(model, latents, clip, words, "debiased")
    training = loop.Training("base", model, run, steps, 1.4e-3, 0.995, matrices=hidden(model), matrices_lr=0.02)
    training.run(32, loss_of)


def hidden(unet: torch.nn.Module) -> list[torch.nn.Parameter]:
    """Its matrices that map features to features, for Muon: not those from and to latents."""
    ends = ("input_blocks.0.", "out.")
    return [p for name, p in unet.named_parameters() if p.ndim > 1 and not name.startswith(ends)]


def denoising(
    model: Any,
    latents: Tensor,
    clip: torch.nn.Module,
    words: Callable[[int, np.random.Generator], str],
    weighting: str = "none",
) -> loop.LossOf:
    """L_simple with timesteps sampled in proportion to min(SNR, 5)/SNR (the weights of arXiv 2303.09556), which spends
    less on the finest details; the text is dropped for a tenth of the images. words: the caption of an image;
    weighting: the trainer's weighting of timesteps, normalised to mean 1."""
    from lib_ipadapter.standalone.config import read_config
    from lib_ipadapter.standalone.text import build_text
    from lib_ipadapter.training.objective import weights_of

    # In the checkpoint's precision, so that the UNet is trained on the tokens that it will get.
    text = {f"model.{key}": value.half().float() for key, value in models.text_state(clip).items()}
    tower, alphas = build_text(read_config(models.CHECKPOINT_CONFIG), text), models.schedule()
    shares = (5 * (1 - alphas) / alphas).clamp(max=1)
    weights = weights_of(alphas, False, weighting)
    weights = weights / ((shares * weights).sum() / shares.sum())
    model.dtype = torch.float32

    def loss_of(step: int, indices: Indices, rng: np.random.Generator) -> Tensor:
        # Sampled for the whole batch; each process takes its part
        part = loop.part(len(indices))
        texts = ["" if rng.random() < 0.1 else words(int(i), rng) for i in indices][part]
        with torch.no_grad():
            context = tower.encode(texts)
        clean = latents[torch.from_numpy(indices)]
        noise, times = (
            torch.randn_like(clean)[part],
            torch.multinomial(shares, len(clean), replacement=True)[part],
        )
        clean = clean[part]
        alpha = alphas[times][:, None, None, None]
        predicted = model(alpha**0.5 * clean + (1 - alpha) ** 0.5 * noise, times, context=context)
        return ((predicted - noise) ** 2).mean((1, 2, 3)).mul(weights[times]).mean()

    return loss_of


def write_checkpoint(run: Path, steps: int) -> None:
    """Writes the averaged weights of all parts to one file that the WebUI loads."""
    save_file(checkpoint_of(run, towers.worded(run)), models.CHECKPOINT)


def checkpoint_of(run: Path, clip: torch.nn.Module, config: Path | None = None) -> dict[str, Tensor]:
    """The tensors of a checkpoint file with the text tower of ``clip``. config: its yaml, if not the small world's.
    Raises TrainingError."""
    unet, autoencoder = models.make_unet(), models.make_autoencoder(config)
    unet.load_state_dict(loop.trained(run, "base"))
    autoencoder.load_state_dict(loop.trained(run, "decoder"))
    return models.checkpoint_state(unet, autoencoder, clip)


@torch.no_grad()
def normal_latents(run: Path, config: Path | None = None) -> tuple[Tensor, Any]:
    """(latents of all images [PICTURES, 4, 16, 16], the autoencoder that encodes them). The two 1 x 1 convolutions next
    to the latents are rescaled so that each channel has mean 0 and std 1 and the checkpoint's scale_factor is 1. The
    posterior is made as narrow as SD's: the UNet is trained on its means, and an adapter trained on samples of a wide
    posterior would learn to reproduce the noise. config: the checkpoint's yaml, if not the small world's."""
    model = models.make_autoencoder(config)
    model.load_state_dict(loop.trained(run, "autoencoder"))
    path = run / "latents.pt"
    if not path.is_file():
        drawn, parts = loop.pictures(run), []
        for first in range(0, len(drawn), 64):
            parts.append(model.encode(loop.values(drawn[first : first + 64])))
            if first % 2048 == 0:
                print(f"latents {first}/{len(drawn)}", flush=True)
        part = path.with_suffix(".part")
        torch.save(torch.cat(parts), part)
        part.replace(path)
    latents: Tensor = torch.load(path)
    mean, deviation = latents.mean((0, 2, 3)), latents.std((0, 2, 3))
    into, out = model.quant_conv, model.post_quant_conv  # to (mean, log variance); from latents
    count = len(mean)
    into.bias[:count] -= mean
    into.bias[:count] /= deviation
    into.weight[:count] /= deviation[:, None, None, None]
    into.weight[count:] = 0
    into.bias[count:] = LOG_VARIANCE
    out.bias += (out.weight[:, :, 0, 0] * mean).sum(1)
    out.weight *= deviation[None, :, None, None]
    return (latents - mean[:, None, None]) / deviation[:, None, None], model


# Name: function, steps of the recipe; in order of their dependencies
PARTS: Parts = {
    "clip": (towers.train_clip, 600),
    "words": (towers.train_words, 600),
    "vision": (towers.train_vision, 1500),
    "autoencoder": (train_autoencoder, 2500),
    "decoder": (train_decoder, 400),
    "base": (train_base, 1600),
    "checkpoint": (write_checkpoint, 0),
}


def run_part(parts: Parts, argv: Sequence[str] | None, name: str, about: str | None, folder: Path) -> int:
    """Command line that trains one of ``parts``."""
    parser = argparse.ArgumentParser(prog=f"python -m {name}", description=about)
    parser.add_argument("part", choices=parts)
    parser.add_argument("--folder", type=Path, default=folder, help="folder of images and states")
    parser.add_argument("--steps", type=int, help="instead of the recipe's")
    args = parser.parse_args(argv)
    train, steps = parts[args.part]
    if "WORLD_SIZE" in os.environ:  # torchrun's
        torch.distributed.init_process_group("gloo")
    return ended(lambda: train(args.folder, args.steps or steps))


def main(argv: Sequence[str] | None = None) -> int:
    return run_part(PARTS, argv, "examples.small_world.train", __doc__, models.HERE / "run")


if __name__ == "__main__":
    raise SystemExit(main())
