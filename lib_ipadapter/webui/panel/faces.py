"""What the panel shows of a reference whose face counts: the aligned crop, and which face of the picture it is."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from ...faces import Face, FaceAnalyser, choose
from ...faces.align import aligned_crop
from ...faces.packs import DETECTOR
from ...pictures import preprocess
from ...unit.crops import Box
from ...unit.face import parse_face
from .html import Seen, data_uri, face_buttons

_SIDE = 224  # of the crop, pixels
_MAP = 96  # of the picture in its corner, at most
_SMALL, _MOST = 64, 16  # of the crops that are buttons: pixels, and how many
_CHOSEN, _OTHER = (255, 120, 0), (255, 255, 255)


def view(path: str, box: Box | None, choice: Any, focus: str, faces: FaceAnalyser) -> Seen:
    """The face that counts: its aligned crop. If there are several, all that were found are framed in its corner, and
    stand below as buttons. ``path`` names its content; focus: the reference mask. Raises ImageError, FaceError,
    UnitError."""
    return _view(path, box, parse_face(choice or ""), focus, faces, faces.identity(DETECTOR))


@lru_cache(maxsize=128)
def _view(path: str, box: Box | None, choice: str, focus: str, faces: FaceAnalyser, _version: Any) -> Seen:
    from ...pictures.images import load, load_mask

    picture = preprocess.cut(load(Path(path)), box, load_mask(focus) if focus else None)
    found = sorted(faces.faces(picture, Path(path).name), key=lambda face: face.centre[0])
    chosen = choose(found, choice, picture.size)
    shown = _crop(picture, chosen, _SIDE)
    if len(found) == 1:
        return Seen(data_uri(shown, _SIDE), "the face that counts")
    small = _map(picture, found, chosen)
    shown.paste(small, (0, _SIDE - small.height))
    number = found.index(chosen)
    crops = [data_uri(_crop(picture, face, _SIDE), _SMALL) for face in found[:_MOST]]
    what = f"face number {number} from the left, of {len(found)}"
    return Seen(data_uri(shown, _SIDE), what, face_buttons(crops, number))


def _crop(picture: Image.Image, face: Face, side: int) -> Image.Image:
    return Image.fromarray(aligned_crop(np.asarray(picture), np.asarray(face.points), side))


def _map(picture: Image.Image, found: list[Face], chosen: Face) -> Image.Image:
    """The whole picture, small, with a frame around each face."""
    scale = _MAP / max(picture.size)
    small = picture.resize((max(1, round(picture.width * scale)), max(1, round(picture.height * scale))))
    draw = ImageDraw.Draw(small)
    for face in found:
        edges = tuple(scale * edge for edge in face.box)
        draw.rectangle(edges, outline=_CHOSEN if face is chosen else _OTHER, width=2 if face is chosen else 1)
    return small
