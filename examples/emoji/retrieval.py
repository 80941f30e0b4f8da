"""How often a reference is retrieved by its sample: python -m examples.emoji.retrieval

100 references of concepts that nothing was trained on, and 100 that were trained on, one of each concept. Over λ, image
prompt alone: is the drawn picture closer to its own reference than to the 99 others (top-1, chance 1 %), is its own
among the five closest (top-5, chance 5 %), in the embeddings of the emoji CLIP. Writes OUT/unseen and OUT/seen.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from lib_ipadapter.cli import ended
from lib_ipadapter.errors import DataError
from lib_ipadapter.evaluation import Clip, Item, Options, Results, evaluate, read_items
from lib_ipadapter.evaluation.methods import BaseModel, Encoders, Studio, adapter_method
from lib_ipadapter.standalone.generate import device_of

from .prepare import RUN, SIDE, concept, share
from .train import ARCH

SIDES = {"unseen": "held-out", "seen": "train"}


def references(folder: Path, count: int) -> list[Item]:
    """``count`` images of different concepts, chosen by hash. Raises DataError if there are fewer."""
    of_concept: dict[str, Item] = {}
    for item in read_items(folder):
        of_concept.setdefault(concept(item.key), item)
    if len(of_concept) < count:
        raise DataError(folder, f"{len(of_concept)} concepts in it, expected {count}; lower --count, or run prepare.py")
    # Not the hash that selects the held-out concepts
    chosen = sorted(of_concept, key=lambda name: share(f"reference {name}"))[:count]
    return [of_concept[name] for name in chosen]


def retrieval(run: Path, adapter: Path, out: Path, lambdas: Sequence[float], count: int, studio: Studio,
              batch: int) -> dict[str, Results]:  # fmt: skip
    """The results over λ, by "unseen" and "seen"."""
    clip = run / "weights" / f"{ARCH}.safetensors"
    base, encoders = BaseModel(studio), Encoders([clip], studio.host.device)
    metric, method = (
        Clip.load(clip, device=studio.host.device),
        adapter_method("adapter", adapter, base, encoders),
    )
    options = Options(weights=tuple(lambdas), prompt="none", batch=batch)
    return {
        side: evaluate(references(run / "data" / folder, count), [method], metric, out / side, options)
        for side, folder in SIDES.items()
    }


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m examples.emoji.retrieval", description=__doc__)
    parser.add_argument("--folder", type=Path, default=RUN)
    parser.add_argument("--adapter", type=Path, help="default: RUN/adapter/ip_adapter.safetensors")
    parser.add_argument("--out", type=Path, help="default: RUN/retrieval")
    parser.add_argument("--lambdas", type=float, nargs="+", default=[0.0, 0.25, 0.5, 0.75, 1.0, 1.5])
    parser.add_argument("--count", type=int, default=100, help="references of each side")
    parser.add_argument("--steps", type=int, default=25, help="of DDIM")
    parser.add_argument("--cfg", type=float, default=3.0)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--precision", choices=("float32", "float16"), help="default: float16 on a GPU, else float32")
    args = parser.parse_args(argv)
    return ended(lambda: _measure(args))


def _measure(args: argparse.Namespace) -> None:
    adapter, out = (
        args.adapter or args.folder / "adapter" / "ip_adapter.safetensors",
        args.out or args.folder / "retrieval",
    )
    checkpoint = args.folder / "weights" / "emoji.safetensors"
    device, dtype = device_of(args)
    studio = Studio.load(checkpoint, checkpoint.with_suffix(".yaml"), device, dtype, steps=args.steps,
                         cfg=args.cfg, size=(SIDE, SIDE))  # fmt: skip
    found = retrieval(args.folder, adapter, out, args.lambdas, args.count, studio, args.batch)
    for side, results in found.items():
        print(f"{side} concepts\n\n{results.markdown()}")


if __name__ == "__main__":
    raise SystemExit(main())
