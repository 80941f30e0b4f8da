"""Who is it? python -m examples.faces.retrieval

One picture of each of 100 people that nothing was trained on is the reference, by image prompt alone, over λ: for the
FaceID adapter and for the plain one. Each sample's person is looked for among *other* pictures of the 100: top-1
(chance 1 %) and mean rank (chance 50.5). Once by the recogniser that the FaceID adapter is conditioned on, once by a
judge that no adapter has seen. Writes RUN/retrieval: table, scores, grid and curve.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from examples.small_world import loop
from lib_ipadapter.cli import ended
from lib_ipadapter.errors import FaceMissing
from lib_ipadapter.evaluation import Clip, Item, Options, Results, evaluate, read_items
from lib_ipadapter.evaluation.identity import Identity, Likeness, people_of
from lib_ipadapter.evaluation.methods import BaseModel, Encoders, Job, Method, Studio, adapter_method
from lib_ipadapter.evaluation.scores import Extra
from lib_ipadapter.faces import FaceAnalyser, FacePacks
from lib_ipadapter.faces.align import similarity, template
from lib_ipadapter.faces.runtime import cv2
from lib_ipadapter.standalone.generate import device_of

from . import judge, packages
from .people import SIDE
from .prepare import AGAIN, RUN
from .train import ARCH

KINDS = ("faceid", "clip")
# ArcFace's template in the judge's crop, where it tells real pictures of the unseen people apart best
CROP = template(112) * 1.4 + [judge.SIDE / 2 - 56 * 1.4, -28]


class JudgeSees:
    """A picture to the judge's embedding of its largest face."""

    def __init__(self, net: judge.Judge, faces: FaceAnalyser) -> None:
        self.net, self.faces = net, faces

    def __call__(self, picture: Image.Image) -> Any:
        """[128], or None without a face."""
        try:
            face = max(self.faces.faces(picture), key=lambda face: face.area)
        except FaceMissing:
            return None
        matrix = similarity(np.asarray(face.points), CROP)
        crop = cv2().warpAffine(np.asarray(picture), matrix, (judge.SIDE, judge.SIDE))
        return self.net.embeddings([Image.fromarray(crop)])[0].numpy()


class Restored:
    """A method of the table: the reference itself, through the autoencoder. No adapter can be closer."""

    name = "autoencoder"
    at_zero: Method | None = None

    def __init__(self, studio: Studio) -> None:
        self.studio = studio

    def weights(self, asked: Sequence[float]) -> Sequence[float | None]:
        """It has no λ."""
        return [None]

    def prompt(self, item: Item, asked: str) -> str:
        """As asked; nothing reads it."""
        return asked

    def settings(self) -> Mapping[str, Any]:
        """The checkpoint's."""
        return self.studio.settings()

    def draw(self, jobs: Sequence[Job]) -> list[Image.Image]:
        """Encoded and decoded."""
        host = self.studio.host
        pixels = loop.values(np.stack([np.asarray(job.reference) for job in jobs]))
        made = host.decode(host.encode(pixels)).float().cpu()
        whole = ((made + 1) * 127.5).round().clamp(0, 255).byte().permute(0, 2, 3, 1).numpy()
        return [Image.fromarray(one) for one in whole]


def measures(run: Path, downloads: Path, references: Sequence[Item]) -> tuple[Extra, FaceAnalyser]:
    """Those of the recogniser, and the judge's under names that begin with judge."""
    faces = FaceAnalyser(FacePacks(lambda: [run / "faces"]), entries=lambda: 4096)
    people = people_of(references, read_items(run / "data" / AGAIN))
    own = Identity(faces, packages.PACK, people).measures()
    second = Likeness(JudgeSees(packages.load_judge(downloads), faces), people).measures()
    named: Mapping[str, Any] = {name.replace("identity", "judge"): measure for name, measure in second.items()}
    return {**own, **{name: measure for name, measure in named.items() if name.startswith("judge")}}, faces


def retrieval(
    run: Path, downloads: Path, out: Path, studio: Studio, options: Options, limit: int | None = None
) -> Results:
    """The results over λ. Raises DataError, DownloadError, FileError."""
    references = read_items(run / "data" / "unseen", limit=limit)
    extra, faces = measures(run, downloads, references)
    clip = run / "weights" / f"{ARCH}.safetensors"
    metric = Clip.load(clip, device=studio.host.device)
    base, encoders = BaseModel(studio), Encoders([clip], studio.host.device, faces)
    adapters: list[Method] = [
        adapter_method(kind, run / f"adapter-{kind}" / "ip_adapter.safetensors", base, encoders) for kind in KINDS
    ]
    return evaluate(references, [Restored(studio), *adapters], metric, out, options, extra)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m examples.faces.retrieval", description=__doc__)
    parser.add_argument("--folder", type=Path, default=RUN)
    parser.add_argument("--downloads", type=Path, help="folder of the packages' files; default: FOLDER/downloads")
    parser.add_argument("--out", type=Path, help="default: FOLDER/retrieval")
    parser.add_argument("--lambdas", type=float, nargs="+", default=[0.0, 0.25, 0.5, 0.75, 1.0])
    parser.add_argument("--limit", type=int, help="only the first of the people")
    parser.add_argument("--steps", type=int, default=12, help="of DDIM")
    parser.add_argument("--cfg", type=float, default=3.0)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--precision", choices=("float32", "float16"), help="default: float16 on a GPU, else float32")
    args = parser.parse_args(argv)
    return ended(lambda: _measure(args))


def _measure(args: argparse.Namespace) -> None:
    run = args.folder
    checkpoint, (device, dtype) = run / "weights" / "faces.safetensors", device_of(args)
    studio = Studio.load(checkpoint, checkpoint.with_suffix(".yaml"), device, dtype, steps=args.steps,
                         cfg=args.cfg, size=(SIDE, SIDE))  # fmt: skip
    options = Options(weights=tuple(sorted(args.lambdas)), prompt="none", batch=args.batch)
    found = retrieval(
        run, args.downloads or run / "downloads", args.out or run / "retrieval", studio, options, args.limit
    )
    print(found.markdown())


if __name__ == "__main__":
    raise SystemExit(main())
