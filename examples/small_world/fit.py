"""Initialises the plus adapter from the base one: python -m examples.small_world.fit ADAPTER OUT

The noise that a UNet predicts says little about a resampler's many weights, and in the steps that a CPU has time for a
resampler learns hardly anything of it. The base adapter's tokens say what it has to tell: a fresh resampler, of
plus.yaml's sizes, is fitted to them, each of the base's tokens four times, which is the same attention. It takes no
UNet and a minute or two; the trainer goes on from there, as plus.yaml says.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from lib_ipadapter.adapters.adapter import Adapter
from lib_ipadapter.adapters.file import open_adapter, save_adapter
from lib_ipadapter.adapters.variant import LAYERS, PROJECTION
from lib_ipadapter.cli import ended
from lib_ipadapter.encoders.clip import ImageEncoder
from lib_ipadapter.encoders.spec import Feature
from lib_ipadapter.errors import ConfigError, DataError
from lib_ipadapter.pictures import images
from lib_ipadapter.training.adapter import projection_of
from lib_ipadapter.training.config import TrainConfig
from lib_ipadapter.training.source import BrokenPicture, Source
from lib_ipadapter.training.sources import open_source
from lib_ipadapter.training.yaml_file import read_yaml

from . import loop, models

PLUS = models.HERE / "plus.yaml"
BATCH, LR, WARM_UP = 128, 3e-3, 50


def fit(start: Path, out: Path, config: TrainConfig, steps: int) -> float:
    """Writes OUT: K' and V' of ``start`` and a resampler fitted to its tokens. Returns the fraction of the tokens'
    variance over the images that the resampler does not explain. Raises FileError, EncoderError, DataError,
    ConfigError."""
    file, adapter = open_adapter(start), Adapter.load(start)
    encoder = ImageEncoder.load(config.encoder, torch.device("cpu"))
    seen = _features(encoder, open_source(config.data), ("pooled", "penultimate"))
    if not seen:
        raise DataError(Path(config.data), "no picture there can be read")
    wanted = adapter.tokens(seen["pooled"])
    resampler = projection_of(config, adapter.spec.context, encoder.spec)
    tokens = resampler(seen["penultimate"][:1]).shape[1]
    if tokens % wanted.shape[1]:
        raise ConfigError("tokens", tokens, f"a multiple of the {wanted.shape[1]} of {start.name}")
    wanted = wanted.repeat_interleave(tokens // wanted.shape[1], dim=1)
    left = _train(resampler, seen["penultimate"], wanted, steps) / float(wanted.var(0).mean())
    tensors = {key: value for key, value in file.tensors().items() if key.startswith(LAYERS)}
    tensors.update({f"{PROJECTION}{key}": value for key, value in resampler.state_dict().items()})
    out.parent.mkdir(parents=True, exist_ok=True)
    save_adapter(tensors, out, {**file.metadata, "variant": "plus"})
    return left


@torch.no_grad()
def _features(encoder: ImageEncoder, source: Source, names: Sequence[Feature]) -> dict[str, Tensor]:
    """Features of all readable images of the data, by name; empty if there are none."""
    parts: dict[str, list[Tensor]] = {name: [] for name in names}
    for first in range(0, len(source), BATCH):
        pixels = list(_pixels(encoder, source, range(first, min(first + BATCH, len(source)))))
        for name in names if pixels else ():
            parts[name].append(encoder.encode_pixels(torch.cat(pixels), name))
    return {name: torch.cat(part) for name, part in parts.items() if part}


def _pixels(encoder: ImageEncoder, source: Source, indices: Iterable[int]) -> Iterator[Tensor]:
    for index in indices:
        try:
            reference = source.load(index).reference
        except BrokenPicture:  # the trainer skips it too, and lists it
            continue
        yield encoder.pixels(images.fit(reference, encoder.spec.image_size, "crop"))


def _train(resampler: torch.nn.Module, features: Tensor, wanted: Tensor, steps: int) -> float:
    """Fits, and returns the mean squared error over the last twentieth of the steps."""
    optimizer = torch.optim.AdamW(resampler.parameters(), lr=LR, weight_decay=0.01)
    rng, errors = np.random.default_rng(loop.SEED), []
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = LR * loop.rate(step, steps, WARM_UP)
        chosen = torch.from_numpy(rng.choice(len(features), min(BATCH, len(features)), replace=False))
        loss = F.mse_loss(resampler(features[chosen]), wanted[chosen])
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        errors.append(float(loss.detach()))
        if (step + 1) % 100 == 0:
            print(f"fit {step + 1}/{steps} error {errors[-1]:.4f}", flush=True)
    return float(np.mean(errors[-max(1, steps // 20) :]))


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m examples.small_world.fit", description=__doc__)
    parser.add_argument("adapter", type=Path, help="a base adapter's file")
    parser.add_argument("out", type=Path, help="the file to write")
    parser.add_argument("--config", type=Path, default=PLUS, help="of the plus adapter's training")
    parser.add_argument("--steps", type=int, default=800)
    args = parser.parse_args(argv)
    return ended(lambda: _write(args))


def _write(args: argparse.Namespace) -> None:
    left = fit(args.adapter, args.out, TrainConfig.parse(read_yaml(args.config)), args.steps)
    print(f"{left:.1%} of the tokens' variance is left; written to {args.out}")


if __name__ == "__main__":
    raise SystemExit(main())
