"""Fetches the packages and draws the people: python -m examples.faces.prepare

RUN/faces gets detector and recogniser, RUN/pictures.npy what the base model is trained on, RUN/data/train a picture of
each of the first of these people for the adapters, RUN/data/unseen one of each of 100 other people, and
RUN/data/unseen-again another one of each of these. Nothing of the packages is kept in the repository.
"""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path

import numpy as np
from PIL import Image

from lib_ipadapter.cli import ended
from lib_ipadapter.errors import DataError
from lib_ipadapter.faces.detect import Detector, Face

from . import packages
from .people import LOOKED_AT, SIDE, Find, Person, Pixels, generator, people

RUN = Path(__file__).resolve().parent / "run"
PEOPLE, UNSEEN = 2048, 100
ADAPTED = 1024  # people for the adapters: their faces are found and recognised, which takes a while
PER_PERSON = 2
SEEDS = {"train": 1, "unseen": 2}
CAPTION = "a face"
AGAIN = "unseen-again"


def finder(faces: Path) -> Find:
    """The clearest face of a picture, looked for at the pictures' own size, which is fast."""
    path = faces / packages.PACK / packages.DETECTOR_FILE
    detector = Detector(path.read_bytes(), path.name)

    def find(picture: Pixels) -> Face | None:
        return next(iter(detector.faces(picture, (LOOKED_AT,))), None)

    return find


def write(run: Path, downloads: Path, counts: tuple[int, int] = (PEOPLE, UNSEEN)) -> None:
    """Everything; what a broken-off call left is made again. counts: people to train on, and others. Raises DataError,
    DownloadError."""
    packages.write_pack(downloads, run / "faces")
    net, find = generator(packages.generator_weights(downloads)), finder(run / "faces")
    part = run / ".data.part"
    shutil.rmtree(part, ignore_errors=True)
    kept = np.empty((counts[0] * PER_PERSON, SIDE, SIDE, 3), np.uint8)
    for i, person in enumerate(_shown(people(net, find, SEEDS["train"], PER_PERSON), counts[0])):
        kept[i * PER_PERSON : (i + 1) * PER_PERSON] = person.pictures
        if i < ADAPTED:
            _save(part / "train", person, 0)
    for person in _shown(people(net, find, SEEDS["unseen"], PER_PERSON), counts[1]):
        _save(part / "unseen", person, 0)
        _save(part / AGAIN, person, 1)
    np.save(run / "pictures.npy", kept)
    part.replace(run / "data")


def _shown(found: Iterator[Person], count: int) -> Iterator[Person]:
    for i, person in enumerate(islice(found, count)):
        if (i + 1) % 256 == 0:
            print(f"{i + 1} of {count} people, numbers up to {person.number}", flush=True)
        yield person


def _save(folder: Path, person: Person, which: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    Image.fromarray(person.pictures[which]).save(folder / f"{person.number:05}.png")
    (folder / f"{person.number:05}.txt").write_text(CAPTION, encoding="utf-8")


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m examples.faces.prepare", description=__doc__)
    parser.add_argument("--folder", type=Path, default=RUN)
    parser.add_argument("--downloads", type=Path, help="folder of the packages' files; default: FOLDER/downloads")
    args = parser.parse_args(argv)
    return ended(lambda: _prepare(args.folder, args.downloads or args.folder / "downloads"))


def _prepare(run: Path, downloads: Path) -> None:
    if (run / "data").exists():
        raise DataError(run / "data", "is there already; delete it first, or give another --folder")
    write(run, downloads)
    print(f"{PEOPLE} people to train on, {UNSEEN} others, in {run.resolve()}")


if __name__ == "__main__":
    raise SystemExit(main())
