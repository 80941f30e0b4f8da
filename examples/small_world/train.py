"""Trains the small world from nothing: python -m examples.small_world.train PART

Parts in their order: clip, vision (goes on with clip's vision tower), autoencoder, decoder (goes on with the
autoencoder's decoder), base (the UNet; needs clip and autoencoder), checkpoint (puts them into one file).
Each writes its state into --run as it goes, and goes on from there when called again. README.md beside this
file has the times on two CPU cores.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor

from lib_ipadapter import images
from lib_ipadapter.encoders.spec import CLIP_MEAN, CLIP_STD
from lib_ipadapter.standalone.text import tokenize

from . import data, loop, models

Indices = NDArray[np.int64]


def train_clip(run: Path, steps: int) -> None:
    """CLIP's symmetric cross-entropy over batches of 256, half of the captions naming all attributes."""
    torch.manual_seed(0)
    _contrast(run, "clip", models.make_clip(), steps, 256, lambda step, indices: indices)


def train_vision(run: Path, steps: int) -> None:
    """CLIP goes on with batches of one colour, in which shape and place are what tells pictures apart. What the
    UNet reads of the text tower stays: all but its last block and projection."""
    model = models.make_clip()
    model.load_state_dict(torch.load(run / "clip.state.pt", map_location="cpu")["ema"])
    model.token_embedding.requires_grad_(False)
    model.positional_embedding.requires_grad_(False)
    model.ln_final.requires_grad_(False)
    model.transformer.resblocks[:-1].requires_grad_(False)
    groups: dict[str, list[int]] = {colour: [] for colour in data.COLOURS}
    for index, scene in enumerate(loop.scenes()):
        if len(scene.things) == 1:
            groups[scene.things[0].colour].append(index)

    def alike(step: int, indices: Indices) -> Indices:
        if step % 4 == 0:
            return indices
        colour = data.COLOURS[step % len(data.COLOURS)]
        return np.random.default_rng([step, 11]).choice(groups[colour], len(indices), replace=False)

    _contrast(run, "vision", model, steps, 128, alike)


def _contrast(
    run: Path, name: str, model: Any, steps: int, size: int, choose: Callable[[int, Indices], Indices]
) -> None:
    drawn, scenes = loop.pictures(run), loop.scenes()
    mean, std = (torch.tensor(x)[:, None, None] for x in (CLIP_MEAN, CLIP_STD))
    side = model.visual.image_size[0]
    small = np.stack([np.asarray(images.fit(Image.fromarray(picture), side, "crop")) for picture in drawn])

    def loss_of(step: int, indices: Indices, rng: np.random.Generator) -> Tensor:
        indices = choose(step, indices)
        pixels = ((loop.values(small[indices]) + 1) / 2 - mean) / std
        texts = [data.caption(scenes[i], rng if n % 2 else None) for n, i in enumerate(indices)]
        seen = F.normalize(model.encode_image(pixels), dim=-1)
        read = F.normalize(model.encode_text(tokenize(texts, pad_with_end=False)), dim=-1)
        logits = model.logit_scale.exp().clamp(max=100) * seen @ read.T
        target = torch.arange(len(indices))
        return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2

    trained = loop.Training(name, model, run, steps, lr=1e-3, average=0.99).run(size, loss_of)
    state = {
        key: value.half().contiguous() for key, value in trained.state_dict().items() if key != "attn_mask"
    }
    save_file(state, models.CLIP_FILE)


def train_autoencoder(run: Path, steps: int) -> None:
    """L1 and L2 between picture and reconstruction, and a little KL, on crops: small ones first, which are fast,
    then larger ones, in which there is less edge. What the encoder says is final then."""
    drawn = loop.pictures(run)
    torch.manual_seed(0)
    model = models.make_autoencoder()

    def loss_of(step: int, indices: Indices, rng: np.random.Generator) -> Tensor:
        # Small crops are taken where there is something to see.
        side, edge = (32, 16) if step < 2400 else (64, 0)
        left, top = rng.integers(edge, data.SIDE - side - edge + 1, (2, len(indices)))
        crops = loop.values(
            np.stack([drawn[i, y : y + side, x : x + side] for i, x, y in zip(indices, left, top)])
        )
        mean, deviation = model.posterior(crops)
        kl = 0.5 * (mean**2 + deviation**2 - 1 - 2 * deviation.log()).mean()
        restored = model.decode(mean + deviation * torch.randn_like(mean))
        return F.l1_loss(restored, crops) + 2 * F.mse_loss(restored, crops) + 3e-4 * kl

    loop.Training("autoencoder", model, run, steps, lr=1e-3, average=0.99, horizon=3200).run(16, loss_of)


def train_decoder(run: Path, steps: int) -> None:
    """The decoder goes on alone, from latents of whole pictures to crops of them, with noise of up to 0.4 of their
    deviation: what the UNet draws is never exact, and the decoder should not mind."""
    drawn, latents = loop.pictures(run), _latents(run)
    scale = models.settings()["scale_factor"]
    model = models.make_autoencoder()
    model.load_state_dict(torch.load(run / "autoencoder.state.pt", map_location="cpu")["ema"])
    model.encoder.requires_grad_(False)
    model.quant_conv.requires_grad_(False)
    side = 64 // 8

    def loss_of(step: int, indices: Indices, rng: np.random.Generator) -> Tensor:
        left, top = rng.choice([0, 2, 4, 6, 8], (2, len(indices)))
        seen = torch.stack([latents[i, :, y : y + side, x : x + side] for i, x, y in zip(indices, left, top)])
        crops = [drawn[i, 8 * y : 8 * y + 64, 8 * x : 8 * x + 64] for i, x, y in zip(indices, left, top)]
        wanted = loop.values(np.stack(crops))
        noise = 0.4 * torch.rand(len(seen), 1, 1, 1) * torch.randn_like(seen)
        restored = model.decode((seen + noise) / scale)
        return F.l1_loss(restored, wanted) + 2 * F.mse_loss(restored, wanted)

    loop.Training("decoder", model, run, steps, lr=5e-4, average=0.99).run(16, loss_of)


def train_base(run: Path, steps: int) -> None:
    """The noise predicted over cached latents, weighted by min(SNR, 5)/SNR (arXiv 2303.09556), which spends less on
    the last details; the text dropped for a tenth of the pictures."""
    from lib_ipadapter.standalone.config import read_config
    from lib_ipadapter.standalone.text import build_text

    latents = _latents(run)
    scenes = loop.scenes()
    clip = models.make_clip()
    clip.load_state_dict(torch.load(run / "clip.state.pt", map_location="cpu")["ema"])
    # In the checkpoint's precision, so that the UNet learns on the tokens that it will get.
    state = models.text_state(clip)
    text = {f"model.{key}": value.half().float() for key, value in state.items()}
    tower = build_text(read_config(models.CHECKPOINT_CONFIG), text)
    torch.manual_seed(0)
    model, alphas = models.make_unet(), models.schedule()
    model.dtype = torch.float32

    def loss_of(step: int, indices: Indices, rng: np.random.Generator) -> Tensor:
        texts = ["" if rng.random() < 0.1 else data.caption(scenes[i], rng) for i in indices]
        with torch.no_grad():
            context = tower.encode(texts)
        clean = latents[torch.from_numpy(indices)]
        noise, times = torch.randn_like(clean), torch.randint(0, 1000, (len(clean),))
        alpha = alphas[times][:, None, None, None]
        predicted = model(alpha**0.5 * clean + (1 - alpha) ** 0.5 * noise, times, context=context)
        weight = (5 * (1 - alpha) / alpha).clamp(max=1)
        return (weight * (predicted - noise) ** 2).mean()

    loop.Training("base", model, run, steps, lr=1e-3, average=0.999).run(16, loss_of)


def write_checkpoint(run: Path, steps: int) -> None:
    """The averaged weights of all parts in one file, as the WebUI loads it."""
    clip, unet = models.make_clip(), models.make_unet()
    for name, part in (("clip", clip), ("base", unet)):
        part.load_state_dict(torch.load(run / f"{name}.state.pt", map_location="cpu")["ema"])
    save_file(models.checkpoint_state(unet, _autoencoder(run, "decoder"), clip), models.CHECKPOINT)


def _autoencoder(run: Path, name: str) -> torch.nn.Module:
    model = models.make_autoencoder()
    model.load_state_dict(torch.load(run / f"{name}.state.pt", map_location="cpu")["ema"])
    return model.eval()


@torch.no_grad()
def _latents(run: Path) -> Tensor:
    """The latents of all pictures, scaled; the scale goes into the checkpoint's yaml."""
    path = run / "latents.pt"
    if not path.is_file():
        drawn, model = loop.pictures(run), _autoencoder(run, "autoencoder")
        parts = []
        for first in range(0, len(drawn), 64):
            parts.append(model.encode(loop.values(drawn[first : first + 64])))
            if first % 2048 == 0:
                print(f"latents {first}/{len(drawn)}", flush=True)
        torch.save(torch.cat(parts), path)
    latents: Tensor = torch.load(path)
    scale = round(1 / float(latents.std()), 4)
    lines = models.CHECKPOINT_CONFIG.read_text(encoding="utf-8").splitlines()
    lines = [f"    scale_factor: {scale}" if "scale_factor:" in line else line for line in lines]
    models.CHECKPOINT_CONFIG.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return latents * scale


# Name: function, steps of the shipped weights; in the order in which they need each other
PARTS = {
    "clip": (train_clip, 600),
    "vision": (train_vision, 1500),
    "autoencoder": (train_autoencoder, 2800),
    "decoder": (train_decoder, 1200),
    "base": (train_base, 3400),
    "checkpoint": (write_checkpoint, 0),
}


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m examples.small_world.train", description=__doc__)
    parser.add_argument("part", choices=PARTS)
    parser.add_argument(
        "--run", type=Path, default=models.HERE / "run", help="folder of the pictures and states"
    )
    parser.add_argument("--steps", type=int, help="other than those of the shipped weights")
    args = parser.parse_args(argv)
    train, steps = PARTS[args.part]
    train(args.run, args.steps or steps)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
