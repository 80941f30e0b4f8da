"""Downloads the emoji and writes them as a data folder: python -m examples.emoji.prepare

The pictures are the Fluent emoji (MIT, npm's @lobehub/fluent-emoji-3d), the words those of emojibase-data (MIT).
npm fetches both; nothing of them is kept in the repository. DATA/train and DATA/held-out get NAME.png, 128 x 128
on white, with NAME.txt beside. A concept is in one of the two with all its skin tones, genders and directions.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from PIL import Image

from lib_ipadapter.adapters.file import sha256
from lib_ipadapter.cli import ended
from lib_ipadapter.errors import DataError, DownloadError
from lib_ipadapter.pictures import images

HERE = Path(__file__).resolve().parent
RUN = HERE / "run"
SIDE = 128  # pixels
HELD_OUT = 1 / 8  # fraction of the concepts
TAGS = 4  # emojibase tags after the label
TONES = {f"1f3f{n}" for n in "bcdef"}
TURNED = {"2640", "2642", "27a1"}  # after a joiner: woman, man, facing right
JOINER = "200d"
SILENT = {"fe0f", "e007f"}  # presentation selector; end of a flag sequence: not in all names
PEOPLE = {"1f468": "1f9d1", "1f469": "1f9d1"}  # man and woman to person


@dataclass(frozen=True)
class Package:
    """An npm package, and the hash of the tarball that was used."""

    name: str
    version: str
    sha256: str

    @property
    def file(self) -> str:
        """The tarball's file name."""
        return f"{self.name.lstrip('@').replace('/', '-')}-{self.version}.tgz"

    def command(self, folder: Path) -> list[str]:
        """What downloads it. Raises DownloadError."""
        npm = shutil.which("npm")
        if npm is None:
            raise DownloadError(f"npm is not installed, and {self.file} is not in {folder}; put either there")
        return [npm, "pack", "--silent", f"{self.name}@{self.version}", "--pack-destination", str(folder)]


PICTURES = Package(
    "@lobehub/fluent-emoji-3d", "1.1.0", "c1bb7eee7de090205a232518a9ab4adb3df458bfbe8a1f78232991194c8b2e58"
)
WORDS = Package("emojibase-data", "17.0.0", "d01d0e2ca4e22cb402679532155342c71e2e871f25c32223c013b8b166ebdf5a")


def fetch(package: Package, folder: Path) -> Path:
    """The package's file in ``folder``, downloaded unless it is there. Raises DownloadError."""
    path = folder / package.file
    if not path.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        done = subprocess.run(package.command(folder), capture_output=True, text=True)
        if done.returncode or not path.is_file():
            raise DownloadError(f"{package.name} {package.version} was not fetched: {done.stderr.strip()[-300:]}")
    if sha256(path) != package.sha256:
        raise DownloadError(f"{path.name} is not the file that was expected (its sha256 differs); delete it, try again")
    return path


def parts_of(hexcode: str) -> list[str]:
    """Normalised code points of a name such as 1F44B-1F3FB or 0023-fe0f-20e3."""
    points = hexcode.lower().replace("_", "-").split("-")
    return [point.lstrip("0") for point in points if point not in SILENT]


def concept(hexcode: str) -> str:
    """The concept of an emoji: the same for all its skin tones, genders and directions."""
    groups = " ".join(parts_of(hexcode)).split(f" {JOINER} ")
    kept = [groups[0], *(group for group in groups[1:] if group not in TURNED)]
    points = [point for group in kept for point in group.split()]
    bare = [point for point in points if point not in TONES] or points
    return "-".join(PEOPLE.get(point, point) for point in bare)


def share(name: str) -> float:
    """A number 0..1 from the hash of a name: the same on every machine, independent of the other names."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "big") / 2**32


def is_held_out(hexcode: str) -> bool:
    """Whether this concept is excluded from training."""
    return share(concept(hexcode)) < HELD_OUT


def captions(entries: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """Captions by code points from emojibase's entries: the label and a few tags that add to it."""
    found = {}
    for entry in entries:
        tags = [tag for tag in entry.get("tags", []) if tag not in entry["label"].lower()][:TAGS]
        for one in (entry, *entry.get("skins", [])):
            label = one["label"].replace(":", ",").lower()
            found["-".join(parts_of(one["hexcode"]))] = ", ".join([label, *tags])
    return found


def read_words(tarball: Path) -> dict[str, str]:
    """Captions of emojibase-data. Raises DataError."""
    for name, content in _members(tarball):
        if name.as_posix() == "package/en/data.json":
            return captions(json.loads(content))
    raise DataError(tarball, "holds no en/data.json; expected emojibase-data")


def read_pictures(tarball: Path) -> Iterator[tuple[str, Image.Image]]:
    """(hexcode, RGB image of SIDE squared on white) of fluent-emoji-3d."""
    for name, content in _members(tarball):
        if name.suffix == ".webp":
            yield name.stem, images.load(content).resize((SIDE, SIDE), Image.Resampling.LANCZOS)


def _members(tarball: Path) -> Iterator[tuple[PurePosixPath, bytes]]:
    """Files of a tarball, read in memory, so no name in it can be written to."""
    try:
        with tarfile.open(tarball, "r:gz") as archive:
            for member in archive:
                file = archive.extractfile(member) if member.isfile() else None
                if file:
                    yield PurePosixPath(member.name), file.read()
    except (tarfile.TarError, OSError, EOFError) as error:
        raise DataError(tarball, f"cannot be read ({error}); delete it, and it is fetched again") from None


def write(data: Path, downloads: Path) -> tuple[int, int]:
    """Writes DATA/train and DATA/held-out, both or neither; returns their numbers of images. Raises DataError,
    DownloadError."""
    words = read_words(fetch(WORDS, downloads))
    tarball = fetch(PICTURES, downloads)
    part = data.with_name(f".{data.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    counts = {"train": 0, "held-out": 0}
    for side in counts:
        (part / side).mkdir(parents=True)
    for name, picture in read_pictures(tarball):
        caption = words.get("-".join(parts_of(name)))
        if caption is None:
            print(f"{name} has no words: passed over", file=sys.stderr)
            continue
        side = "held-out" if is_held_out(name) else "train"
        picture.save(part / side / f"{name}.png")
        (part / side / f"{name}.txt").write_text(caption, encoding="utf-8")
        counts[side] += 1
    part.replace(data)
    return counts["train"], counts["held-out"]


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m examples.emoji.prepare", description=__doc__)
    parser.add_argument("--data", type=Path, default=RUN / "data")
    parser.add_argument("--downloads", type=Path, default=RUN / "downloads", help="folder of the two tarballs")
    args = parser.parse_args(argv)
    return ended(lambda: _prepare(args.data, args.downloads))


def _prepare(data: Path, downloads: Path) -> None:
    if data.exists():
        raise DataError(data, "is there already; delete it first, or give another --data")
    train, held_out = write(data, downloads)
    print(f"{train} pictures to train on, {held_out} held out, in {data.resolve()}")


if __name__ == "__main__":
    raise SystemExit(main())
