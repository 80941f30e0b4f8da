"""``faces``: the faces in pictures, as a face adapter will find them."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ..errors import FaceMissing, ImageError
from ..pictures import images
from .analyse import FaceAnalyser
from .packs import RECOGNISERS, FacePacks, own_folder

HOME = own_folder() / "models"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the command."""
    parser.add_argument("pictures", nargs="+", metavar="PICTURE", type=Path)
    parser.add_argument(
        "--models", action="append", type=Path, metavar="FOLDER",
        help=f"folder with face models or buffalo_l.zip; may be repeated (default: {HOME})",
    )  # fmt: skip
    parser.add_argument("--recogniser", choices=tuple(RECOGNISERS), help="also compare the faces of all pictures")
    parser.add_argument("--json", action="store_true", help="print one JSON list")


def run(args: argparse.Namespace) -> int:
    """Exit code 1 when a picture has no face or cannot be read; the others are still shown. Raises FaceError."""
    analyser = FaceAnalyser(FacePacks(lambda: args.models or [HOME]))
    reports = [_report(path, analyser, args.recogniser) for path in args.pictures]
    if args.json:
        print(json.dumps(reports, indent=2))
    else:
        for report in reports:
            print(_text(report), file=sys.stderr if "error" in report else sys.stdout)
    return 1 if any("error" in report for report in reports) else 0


def _report(path: Path, analyser: FaceAnalyser, recogniser: str | None) -> dict[str, Any]:
    """One picture's faces from the left; with a recogniser, each with its normalised embedding."""
    try:
        picture = images.load(path)
        found = sorted(analyser.faces(picture, path.name), key=lambda face: face.centre[0])
    except (ImageError, FaceMissing) as error:
        return {"picture": path.name, "error": str(error)}
    faces: list[dict[str, Any]] = [asdict(face) for face in found]
    if recogniser:
        for face, entry in zip(found, faces, strict=True):
            embedding = analyser.embedding(picture, face, recogniser)
            length = float((embedding.astype(float) ** 2).sum() ** 0.5)
            entry["embedding"] = [round(float(value) / length, 6) for value in embedding]
    return {"picture": path.name, "width": picture.width, "height": picture.height, "faces": faces}


def _text(report: dict[str, Any]) -> str:
    if "error" in report:
        return f"{report['picture']}: {report['error']}"
    lines = [f"{report['picture']}: {len(report['faces'])} face{'s'[: len(report['faces']) > 1]}"]
    for index, face in enumerate(report["faces"]):
        lines.append(f"  {index}: box {_rounded(face['box'])}, score {face['score']:.2f}")
    return "\n".join(lines)


def _rounded(box: Sequence[float]) -> str:
    return ", ".join(f"{value:.0f}" for value in box)
