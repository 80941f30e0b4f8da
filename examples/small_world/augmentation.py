"""What augmenting the reference does: python -m examples.small_world.augmentation RUN

Trains the base adapter twice from the same seed on the same pictures, once with ``reference_crop`` and
``reference_flip``, and measures both on held-out references, in two tables: alone, by image prompt alone; placed, with
a text that names another place. Here the reference is the target, so that a plain adapter also learns where things lie:
how far the augmented one leaves the place to the text is the question, and what it loses of the rest.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from PIL import Image

from lib_ipadapter.cli import ended
from lib_ipadapter.evaluation import Options, evaluate
from lib_ipadapter.evaluation.items import Item, read_items
from lib_ipadapter.evaluation.methods import BaseModel, Encoders, Studio, adapter_method
from lib_ipadapter.evaluation.metric import Clip
from lib_ipadapter.training.config import TrainConfig
from lib_ipadapter.training.yaml_file import read_yaml

from . import data, models
from .export import write_held_out, write_training
from .measure import agrees
from .read import read

CONFIG = models.HERE / "base.yaml"
KEPT = ("colour", "shape", "texture")
METHODS = {"plain": {}, "augmented": {"reference_crop": 0.5, "reference_flip": 0.5}}


def config(run: Path, name: str, steps: int) -> TrainConfig:
    """The training of a method: that of base.yaml, shorter."""
    return TrainConfig.parse({
        **read_yaml(CONFIG), **METHODS[name], "data": str(run / "data"), "out": str(run / name), "steps": steps,
        "warmup": min(50, steps), "cache_dir": str(run / f"cache-{name}"), "workers": 0, "tensorboard": False,
        "base": str(models.CHECKPOINT), "encoder": str(models.CLIP_FILE),
    })  # fmt: skip


def train(run: Path, name: str, steps: int) -> Path:
    """The adapter of a method; goes on where it was stopped."""
    from lib_ipadapter.training.trainer import Trainer

    return Trainer(config(run, name, steps)).run().adapter


def elsewhere(item: Item) -> str:
    """Another place than the reference's, opposite where there is one."""
    opposite = {"left": "right", "right": "left", "top": "bottom", "bottom": "top", "centre": "left"}
    return opposite[item.fields["place"]]


def text_wins(picture: Image.Image, item: Item) -> float:
    """1 if the object lies where the text says."""
    return float(read(picture).place == elsewhere(item))


def image_wins(picture: Image.Image, item: Item) -> float:
    """1 if it lies where the reference has it."""
    return agrees("place", picture, item)


def kept(picture: Image.Image, item: Item) -> float:
    """Fraction of colour, shape and texture that are the reference's."""
    return math.fsum(agrees(name, picture, item) for name in KEPT) / len(KEPT)


def measure(run: Path, part: str, limit: int, steps: int) -> str:
    """Writes RUN/PART and returns its Markdown table."""
    items = [
        replace(item, fields={**item.fields, "elsewhere": data.WORDS_OF_PLACE[elsewhere(item)]})
        for item in read_items(run / "data-held-out", limit=limit)
    ]
    studio = Studio.load(models.CHECKPOINT, models.CHECKPOINT_CONFIG, steps=steps, cfg=4.0, size=(data.SIDE, data.SIDE))
    base, encoders = BaseModel(studio), Encoders([models.CLIP_FILE])
    methods = [adapter_method(name, run / name / "ip_adapter.safetensors", base, encoders) for name in METHODS]
    alone = {name: (lambda picture, item, name=name: agrees(name, picture, item)) for name in (*KEPT, "place")}
    placed = {"text's place": text_wins, "reference's place": image_wins, "others kept": kept}
    extra, prompt = (alone, "none") if part == "alone" else (placed, "a shape {elsewhere}")
    options = Options(weights=(1.0,), batch=16, prompt=prompt)
    return evaluate(items, methods, Clip.load(models.CLIP_FILE), run / part, options, extra=extra).markdown()


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m examples.small_world.augmentation", description=__doc__)
    parser.add_argument("run", type=Path, help="folder of data, trainings and tables; the same command goes on")
    parser.add_argument("--pictures", type=int, default=3072, help="to train on")
    parser.add_argument("--steps", type=int, default=350, help="of each training, 16 pictures each")
    parser.add_argument("--limit", type=int, default=200, help="references")
    parser.add_argument("--sampling-steps", type=int, default=12)
    args = parser.parse_args(argv)
    return ended(lambda: _all(args))


def _all(args: argparse.Namespace) -> None:
    if not (args.run / "data-held-out" / "metadata.jsonl").is_file():
        write_training(args.run / "data", args.pictures)
        write_held_out(args.run / "data-held-out", args.limit)
    for name in METHODS:
        train(args.run, name, args.steps)
    for part in ("alone", "placed"):
        print(f"{part}\n\n{measure(args.run, part, args.limit, args.sampling_steps)}")


if __name__ == "__main__":
    raise SystemExit(main())
