"""Pictures to train on, and what a training's loader makes of them."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Mapping
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from lib_ipadapter.encoders.spec import EncoderSpec
from lib_ipadapter.training.cache import Cache
from lib_ipadapter.training.data import Positions, PositionSampler, Preparation, Sample, loader
from lib_ipadapter.training.source import Source

SPEC = EncoderSpec("tiny", 16, 8, 32, 1, 1, 24)
PREPARE = Preparation(24, SPEC)
RED, BLUE = (200, 0, 0), (0, 0, 200)


def encoded(colour: tuple[int, int, int] = RED, size: tuple[int, int] = (30, 20), kind: str = "PNG") -> bytes:
    held = io.BytesIO()
    Image.new("RGB", size, colour).save(held, kind)
    return held.getvalue()


def noise(seed: int, size: tuple[int, int] = (40, 30)) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3))
    return Image.fromarray(pixels.astype(np.uint8))


def write(root: Path, files: Mapping[str, bytes | str]) -> Path:
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return root


def tar(path: Path, files: Mapping[str, bytes | str]) -> Path:
    with tarfile.open(path, "w") as archive:
        for name, content in files.items():
            content = content if isinstance(content, bytes) else content.encode()
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


def pictures(root: Path, count: int, broken: tuple[int, ...] = ()) -> Path:
    """A folder of different pictures; of the broken ones, even numbers are text and odd ones are cut short."""
    root.mkdir(parents=True, exist_ok=True)
    for i in range(count):
        noise(i).save(root / f"{i:02}.jpg", "JPEG")
        (root / f"{i:02}.txt").write_text(f"picture {i}", encoding="utf-8")
        if i in broken:
            whole = (root / f"{i:02}.jpg").read_bytes()
            (root / f"{i:02}.jpg").write_bytes(whole[: len(whole) // 2] if i % 2 else b"hello, I am text")
    return root


def take(source: Source, steps: int, start: int = 0, world: int = 1, rank: int = 0, batch: int = 2,
         accumulate: int = 1, workers: int = 0, seed: int = 3,
         cache: Cache | None = None) -> list[list[Sample]]:  # fmt: skip
    sampler = PositionSampler(start, world, rank, batch, accumulate)
    batches = loader(Positions(source, PREPARE, seed, cache), sampler, workers, 2)
    return list(islice(batches, steps * accumulate))


def same(ours: list[list[Sample]], theirs: list[list[Sample]]) -> bool:
    a, b = ([sample for batch in batches for sample in batch] for batches in (ours, theirs))
    return len(a) == len(b) and all(
        (x.position, x.key, x.caption, x.broken) == (y.position, y.key, y.caption, y.broken)
        and x.tensors.keys() == y.tensors.keys()
        and all(torch.equal(x.tensors[name], y.tensors[name]) for name in x.tensors)
        for x, y in zip(a, b, strict=True)
    )
