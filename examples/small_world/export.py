"""Writes the small world as a data folder for the trainer: python -m examples.small_world.export DATA

Pictures with captions beside, from another seed than those that the base was trained on, and DATA-held-out:
references of held-out combinations with metadata.jsonl, for the evaluation.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from . import data

COUNT, HELD_OUT = 6144, 240
SEED, HELD_OUT_SEED = 2, 3


def write_training(folder: Path, count: int = COUNT) -> None:
    """Writes ``count`` images, 00000.png with its caption in 00000.txt."""
    folder.mkdir(parents=True, exist_ok=True)
    for index in range(count):
        sample = data.sample(SEED, index)
        sample.picture.save(folder / f"{index:05}.png")
        (folder / f"{index:05}.txt").write_text(sample.caption, encoding="utf-8")


def write_held_out(folder: Path, count: int = HELD_OUT) -> None:
    """Writes ``count`` references with their attributes, full caption and a contradicting caption."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = []
    for index in range(count):
        sample = data.sample(HELD_OUT_SEED, index, unseen=True)
        name = f"{index:05}.png"
        sample.picture.save(folder / name)
        thing = sample.scene.things[0]
        attribute, value = contradiction(thing, index)
        prompt = f"a {value}" if attribute == "shape" else f"a {value} shape"
        lines.append({
            "file_name": name, "text": sample.full_caption, "full": sample.full_caption, "contradicts": attribute,
            "wanted": value, "contradiction": prompt, **asdict(thing),
        })  # fmt: skip
    (folder / "metadata.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines), encoding="utf-8")


def contradiction(thing: data.Thing, index: int) -> tuple[str, str]:
    """The next attribute in turn, and a value of it that the object does not have."""
    attribute, names = (("colour", data.COLOURS), ("shape", data.SHAPES), ("texture", data.TEXTURES))[index % 3]
    others = [name for name in names if name != getattr(thing, attribute)]
    return attribute, others[index // 3 % len(others)]


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m examples.small_world.export", description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("--count", type=int, default=COUNT, help="pictures for training")
    parser.add_argument("--held-out", type=int, default=HELD_OUT, help="references for the evaluation")
    args = parser.parse_args(argv)
    write_training(args.data, args.count)
    write_held_out(args.data.with_name(f"{args.data.name}-held-out"), args.held_out)
    print(args.data.resolve())
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
