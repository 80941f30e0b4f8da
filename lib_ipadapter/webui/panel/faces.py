"""What the panel shows of a reference whose face counts: the aligned crop, and which face of the picture it is."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from ...faces import FaceAnalyser, choose
from ...faces.align import aligned_crop
from ...faces.packs import DETECTOR
from ...pictures import preprocess
from ...unit.crops import Box
from ...unit.face import parse_face
from .html import data_uri

_SIDE = 224  # of the crop, pixels
_MAP = 96  # of the picture in its corner, at most
_CHOSEN, _OTHER = (255, 120, 0), (255, 255, 255)


def view(path: str, box: Box | None, choice: Any, focus: str, faces: FaceAnalyser) -> tuple[str, str]:
    """(the face that counts as a data URI, what it is): its aligned crop, with all found faces of the picture in a
    corner if there are several. ``path`` names its content; focus: the reference mask. Raises ImageError, FaceError,
    UnitError."""
    return _view(path, box, parse_face(choice or ""), focus, faces, faces.identity(DETECTOR))


@lru_cache(maxsize=128)
def _view(path: str, box: Box | None, choice: str, focus: str, faces: FaceAnalyser, _version: Any) -> tuple[str, str]:
    from ...pictures.images import load, load_mask

    picture = preprocess.cut(load(Path(path)), box, load_mask(focus) if focus else None)
    found = sorted(faces.faces(picture, Path(path).name), key=lambda face: face.centre[0])
    chosen = choose(found, choice, picture.size)
    shown = Image.fromarray(aligned_crop(np.asarray(picture), np.asarray(chosen.points), _SIDE))
    if len(found) > 1:
        scale = _MAP / max(picture.size)
        small = picture.resize((max(1, round(picture.width * scale)), max(1, round(picture.height * scale))))
        draw = ImageDraw.Draw(small)
        for face in found:
            edges = tuple(scale * edge for edge in face.box)
            draw.rectangle(edges, outline=_CHOSEN if face is chosen else _OTHER, width=2 if face is chosen else 1)
        shown.paste(small, (0, _SIDE - small.height))
    number = f"face number {found.index(chosen)} from the left, of {len(found)}"
    return data_uri(shown, _SIDE), number if len(found) > 1 else "the face that counts"
