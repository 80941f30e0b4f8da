"""Trains the small world from nothing: python -m examples.small_world.train PART

Parts in their order: clip, vision (goes on with clip's vision tower), autoencoder, decoder (goes on with the
autoencoder's decoder), base (the UNet; needs clip and autoencoder), finer (goes on with it), checkpoint (puts them
into one file). Each writes its state into --folder as it goes, and goes on from there when called again. Under
torchrun, autoencoder, decoder, base and finer share each batch among the processes. README.md beside this file has
the commands.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Mapping, Sequence
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
from lib_ipadapter.errors import IPAdapterError, TrainingError
from lib_ipadapter.standalone.text import tokenize

from . import data, loop, models

LOG_VARIANCE = -18.0  # of the shipped autoencoder's posterior
Indices = NDArray[np.int64]
Parts = Mapping[str, tuple[Callable[[Path, int], None], int]]


def train_clip(run: Path, steps: int) -> None:
    """CLIP's symmetric cross-entropy over batches of 256, half of the captions naming all attributes."""
    torch.manual_seed(0)
    model = models.make_clip()
    small, scenes = clip_pictures(run, model.visual.image_size[0]), loop.scenes()

    def loss_of(step: int, indices: Indices, rng: np.random.Generator) -> Tensor:
        seen = model.encode_image(clip_pixels(small[indices]))
        return contrast(model, seen, [scenes[i] for i in indices], rng)

    save_clip(
        loop.Training("clip", model, run, steps, lr=1e-3, average=0.99).run(256, loss_of), models.CLIP_FILE
    )


class Named(torch.nn.Module):
    """A CLIP whose image embedding also says each attribute, linearly: heads that only training has."""

    OPTIONS = {
        "shape": data.SHAPES, "colour": data.COLOURS, "texture": data.TEXTURES, "size": data.SIZES,
        "place": data.PLACES,
    }  # fmt: skip

    def __init__(self, clip: Any) -> None:
        super().__init__()
        self.clip = clip
        width = clip.visual.output_dim
        self.heads = torch.nn.ModuleDict({n: torch.nn.Linear(width, len(o)) for n, o in self.OPTIONS.items()})

    def loss(self, seen: Tensor, scenes: Sequence[data.Scene]) -> Tensor:
        """Mean cross-entropy of the attributes; of embeddings [B, width] of pictures, those of one thing count."""
        alone = torch.tensor([len(scene.things) == 1 for scene in scenes])
        things = [scene.things[0] for scene in scenes if len(scene.things) == 1]
        losses = []
        for name, options in self.OPTIONS.items():
            wanted = torch.tensor([options.index(getattr(thing, name)) for thing in things])
            losses.append(F.cross_entropy(self.heads[name](seen[alone]), wanted))
        return torch.stack(losses).mean()


def train_vision(run: Path, steps: int) -> None:
    """CLIP goes on with batches of one colour, in which shape and place are what tells pictures apart, and with
    the attributes named by linear heads: from captions alone it is slow to see outlines. Of the text tower the end
    goes on."""
    clip = models.make_clip()
    clip.load_state_dict(trained(run, "clip"))
    clip.token_embedding.requires_grad_(False)
    clip.positional_embedding.requires_grad_(False)
    clip.transformer.resblocks[:-1].requires_grad_(False)
    torch.manual_seed(0)
    model = Named(clip)
    small, scenes = clip_pictures(run, clip.visual.image_size[0]), loop.scenes()
    groups: dict[str, list[int]] = {colour: [] for colour in data.COLOURS}
    for index, scene in enumerate(scenes):
        if len(scene.things) == 1:
            groups[scene.things[0].colour].append(index)

    def loss_of(step: int, indices: Indices, rng: np.random.Generator) -> Tensor:
        if step % 2:
            colour = data.COLOURS[step // 2 % len(data.COLOURS)]
            indices = rng.choice(groups[colour], len(indices), replace=False)
        shown = [scenes[i] for i in indices]
        # Moved by a few pixels, around the edge: the background has one colour.
        pixels = np.roll(small[indices], rng.integers(-2, 3, 2), axis=(1, 2))
        seen = clip.encode_image(clip_pixels(pixels))
        return contrast(clip, seen, shown, rng) + 3 * model.loss(seen, shown)

    named = loop.Training("vision", model, run, steps, lr=1e-3, average=0.99).run(128, loss_of)
    save_clip(named.clip, models.CLIP_FILE)


def clip_pictures(run: Path, side: int) -> NDArray[np.uint8]:
    """All pictures as CLIP gets them: [PICTURES, side, side, 3]."""
    drawn = loop.pictures(run)
    return np.stack([np.asarray(images.fit(Image.fromarray(picture), side, "crop")) for picture in drawn])


def clip_pixels(pixels: NDArray[np.uint8]) -> Tensor:
    mean, std = (torch.tensor(x)[:, None, None] for x in (CLIP_MEAN, CLIP_STD))
    return ((loop.values(pixels) + 1) / 2 - mean) / std


def contrast(model: Any, seen: Tensor, scenes: Sequence[data.Scene], rng: np.random.Generator) -> Tensor:
    """CLIP's symmetric cross-entropy of image embeddings [B, width] and captions of what they show."""
    texts = [data.caption(scene, rng if n % 2 else None) for n, scene in enumerate(scenes)]
    seen, read = F.normalize(seen, dim=-1), F.normalize(encode_text(model, texts), dim=-1)
    return both_ways(model.logit_scale.exp().clamp(max=100) * seen @ read.T)


def both_ways(logits: Tensor) -> Tensor:
    """Symmetric cross-entropy of [B, B]: number i of each side belong together."""
    target = torch.arange(len(logits))
    return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2


def encode_text(model: Any, texts: Sequence[str]) -> Tensor:
    """``model.encode_text`` up to the longest text's end: attention is causal, so what follows it changes nothing."""
    tokens = tokenize(texts, pad_with_end=False)
    ends = tokens.argmax(-1)
    length = int(ends.max()) + 1
    x = model.token_embedding(tokens[:, :length]) + model.positional_embedding[:length]
    x = model.transformer(x.permute(1, 0, 2), attn_mask=model.attn_mask[:length, :length]).permute(1, 0, 2)
    embedding: Tensor = model.ln_final(x)[torch.arange(len(x)), ends] @ model.text_projection
    return embedding


def save_clip(clip: torch.nn.Module, path: Path) -> None:
    """Both towers, in float16."""
    state = {key: value.half().contiguous() for key, value in clip.state_dict().items() if key != "attn_mask"}
    save_file(state, path)


def train_autoencoder(run: Path, steps: int) -> None:
    """On crops: small ones first, which are fast, then larger ones, in which there is less edge."""
    torch.manual_seed(0)
    model = models.make_autoencoder()
    # Small crops are taken where there is something to see.
    loss_of = restoring(model, loop.pictures(run), lambda step: (32, 16) if step < 2000 else (64, 0))
    loop.Training("autoencoder", model, run, steps, lr=1e-3, average=0.99).run(16, loss_of)


def restoring(model: Any, drawn: NDArray[np.uint8], crop_of: Callable[[int], tuple[int, int]]) -> loop.LossOf:
    """L1 and L2 between crop and reconstruction, and so much KL that small changes of the latents, which a UNet's are
    never without, change little. crop_of: of a step, the crops' side and how far they stay from the edge, in pixels."""

    def loss_of(step: int, indices: Indices, rng: np.random.Generator) -> Tensor:
        side, edge = crop_of(step)
        left, top = rng.integers(edge, data.SIDE - side - edge + 1, (2, len(indices)))
        crops = [drawn[i, y : y + side, x : x + side] for i, x, y in zip(indices, left, top)]
        part = loop.part(len(crops))
        wanted = loop.values(np.stack(crops[part]))
        mean, deviation = model.posterior(wanted)
        noise = torch.randn(len(crops), *mean.shape[1:])[part]
        kl = 0.5 * (mean**2 + deviation**2 - 1 - 2 * deviation.log()).mean()
        restored = model.decode(mean + deviation * noise)
        return F.l1_loss(restored, wanted) + 2 * F.mse_loss(restored, wanted) + 2e-3 * min(step / 800, 1) * kl

    return loss_of


def train_decoder(run: Path, steps: int) -> None:
    """The decoder goes on alone, from latents of whole pictures to crops of them, with noise of up to 0.4 of their
    deviation: what the UNet draws is never exact, and the decoder should not mind."""
    drawn, (latents, model) = loop.pictures(run), loop.one_by_one(lambda: normal_latents(run))
    model.train()
    model.encoder.requires_grad_(False)
    model.quant_conv.requires_grad_(False)
    side = 64 // 8

    def loss_of(step: int, indices: Indices, rng: np.random.Generator) -> Tensor:
        left, top = rng.choice([0, 2, 4, 6, 8], (2, len(indices)))
        seen = torch.stack([latents[i, :, y : y + side, x : x + side] for i, x, y in zip(indices, left, top)])
        crops = [drawn[i, 8 * y : 8 * y + 64, 8 * x : 8 * x + 64] for i, x, y in zip(indices, left, top)]
        noise = 0.4 * torch.rand(len(seen), 1, 1, 1) * torch.randn_like(seen)
        part = loop.part(len(crops))
        wanted = loop.values(np.stack(crops[part]))
        restored = model.decode((seen + noise)[part])
        return F.l1_loss(restored, wanted) + 2 * F.mse_loss(restored, wanted)

    loop.Training("decoder", model, run, steps, lr=5e-4, average=0.99).run(16, loss_of)


def train_base(run: Path, steps: int) -> None:
    """The noise predicted over cached latents; half of the captions name all attributes."""
    torch.manual_seed(0)
    _train_unet(run, "base", models.make_unet(), steps, 1.4e-3)


def train_finer(run: Path, steps: int) -> None:
    """The base goes on, from its averaged weights and with the learning rate high again: outlines come late."""
    model = models.make_unet()
    model.load_state_dict(trained(run, "base"))
    _train_unet(run, "finer", model, steps, 1e-3)


def _train_unet(run: Path, name: str, model: Any, steps: int, lr: float) -> None:
    scenes = loop.scenes()
    clip = models.make_clip()
    clip.load_state_dict(trained(run, "clip"))
    latents, _ = loop.one_by_one(lambda: normal_latents(run))

    def words(index: int, rng: np.random.Generator) -> str:
        return data.caption(scenes[index], rng if rng.random() < 0.5 else None)

    loss_of = denoising(model, latents, clip, words)
    loop.Training(name, model, run, steps, lr=lr, average=0.997).run(32, loss_of)


def denoising(
    model: Any,
    latents: Tensor,
    clip: torch.nn.Module,
    words: Callable[[int, np.random.Generator], str],
    weighting: str = "none",
) -> loop.LossOf:
    """L_simple with timesteps drawn in proportion to min(SNR, 5)/SNR (the weights of arXiv 2303.09556), which spends
    less on the last details; the text dropped for a tenth of the pictures. words: a caption of a picture; weighting: the
    trainer's, of the timesteps; its mean is 1."""
    from lib_ipadapter.standalone.config import read_config
    from lib_ipadapter.standalone.text import build_text
    from lib_ipadapter.training.objective import weights_of

    # In the checkpoint's precision, so that the UNet learns on the tokens that it will get.
    text = {f"model.{key}": value.half().float() for key, value in models.text_state(clip).items()}
    tower, alphas = build_text(read_config(models.CHECKPOINT_CONFIG), text), models.schedule()
    shares = (5 * (1 - alphas) / alphas).clamp(max=1)
    weights = weights_of(alphas, False, weighting)
    weights = weights / ((shares * weights).sum() / shares.sum())
    model.dtype = torch.float32

    def loss_of(step: int, indices: Indices, rng: np.random.Generator) -> Tensor:
        # Drawn for the whole batch, of which each process takes its part
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


def trained(run: Path, name: str) -> dict[str, Tensor]:
    """The averaged weights of a part. Raises TrainingError."""
    path = run / f"{name}.state.pt"
    if not path.is_file():
        raise TrainingError(f"{path.name} is not in {run}: train the part {name} first")
    state: dict[str, Tensor] = torch.load(path, map_location="cpu")["ema"]
    return state


def write_checkpoint(run: Path, steps: int) -> None:
    """The averaged weights of all parts in one file, as the WebUI loads it."""
    save_file(checkpoint_of(run), models.CHECKPOINT)


def checkpoint_of(run: Path) -> dict[str, Tensor]:
    """The tensors of a checkpoint file, of the UNet that was trained last. Raises TrainingError."""
    unet = "finer" if (run / "finer.state.pt").is_file() else "base"
    parts = {"clip": models.make_clip(), unet: models.make_unet(), "decoder": models.make_autoencoder()}
    for name, part in parts.items():
        part.load_state_dict(trained(run, name))
    return models.checkpoint_state(parts[unet], parts["decoder"], parts["clip"])


@torch.no_grad()
def normal_latents(run: Path) -> tuple[Tensor, Any]:
    """(the latents of all pictures [PICTURES, 4, 16, 16], the autoencoder that makes them). Each channel has mean 0
    and deviation 1 over all: the autoencoder's two 1 x 1 convolutions beside the latents are changed to that, and
    the checkpoint's scale_factor is 1. The posterior becomes as narrow as SD's: the UNet learns on its means, and an
    adapter that is trained on samples of a wide one learns to keep their noise."""
    model = models.make_autoencoder()
    model.load_state_dict(trained(run, "autoencoder"))
    path = run / "latents.pt"
    if not path.is_file():
        drawn, parts = loop.pictures(run), []
        for first in range(0, len(drawn), 64):
            parts.append(model.encode(loop.values(drawn[first : first + 64])))
            if first % 2048 == 0:
                print(f"latents {first}/{len(drawn)}", flush=True)
        torch.save(torch.cat(parts), path)
    latents: Tensor = torch.load(path)
    mean, deviation = latents.mean((0, 2, 3)), latents.std((0, 2, 3))
    into, out = model.quant_conv, model.post_quant_conv  # to (mean, log of the variance); from latents
    count = len(mean)
    into.bias[:count] -= mean
    into.bias[:count] /= deviation
    into.weight[:count] /= deviation[:, None, None, None]
    into.weight[count:] = 0
    into.bias[count:] = LOG_VARIANCE
    out.bias += (out.weight[:, :, 0, 0] * mean).sum(1)
    out.weight *= deviation[None, :, None, None]
    return (latents - mean[:, None, None]) / deviation[:, None, None], model


# Name: function, steps of the shipped weights; in the order in which they need each other
PARTS: Parts = {
    "clip": (train_clip, 600),
    "vision": (train_vision, 1500),
    "autoencoder": (train_autoencoder, 2500),
    "decoder": (train_decoder, 400),
    "base": (train_base, 2400),
    "finer": (train_finer, 2200),
    "checkpoint": (write_checkpoint, 0),
}


def run_part(parts: Parts, argv: Sequence[str] | None, name: str, about: str | None, folder: Path) -> int:
    """The command line of such a module: trains one of ``parts``."""
    parser = argparse.ArgumentParser(prog=f"python -m {name}", description=about)
    parser.add_argument("part", choices=parts)
    parser.add_argument("--folder", type=Path, default=folder, help="of the pictures and states")
    parser.add_argument("--steps", type=int, help="other than the part's own")
    args = parser.parse_args(argv)
    train, steps = parts[args.part]
    if "WORLD_SIZE" in os.environ:  # torchrun's
        torch.distributed.init_process_group("gloo")
    try:
        train(args.folder, args.steps or steps)
    except IPAdapterError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    return run_part(PARTS, argv, "examples.small_world.train", __doc__, models.HERE / "run")


if __name__ == "__main__":
    raise SystemExit(main())
