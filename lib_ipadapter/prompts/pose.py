"""The pose of faces, as the picture that InstantID's ControlNet is given."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..attention.region import WHOLE, Box, Size
from ..errors import FaceError, UnitError
from ..faces.analyse import FaceAnalyser, choose
from ..faces.detect import Face
from ..faces.keypoints import draw_keypoints
from ..pictures import preprocess as pixels
from ..pictures.picture import Picture
from ..unit import crops
from ..unit.face import ALL
from .faces import name_of
from .resolve import ResolvedUnit

Array = NDArray[Any]
Pair = tuple[int, int]  # width, height
_MARGIN = 10  # pixels around the points that stay in the picture: half a dot


class Keypoints:
    """``controlnet.control.Hint`` of faces: five points each, [F, 5, 2], as fractions of the whole picture."""

    def __init__(self, faces: Array) -> None:
        self.faces = faces

    def at(self, size: Size, box: Box = WHOLE) -> Array:
        """The part ``box`` of the picture as RGB [height, width, 3] uint8, drawn in this size."""
        left, top, right, bottom = box
        scale = np.array([size[1] / (right - left), size[0] / (bottom - top)])
        points = (self.faces - np.array([left, top])) * scale
        return draw_keypoints((size[1], size[0]), list(points.astype(np.float32)))


def points_of(picture: Image.Image, choice: str, faces: FaceAnalyser, name: str, field: str) -> Array:
    """Of the chosen face of an RGB picture, or of ALL: [F, 5, 2] in its pixels. field: names the choice in errors.
    Raises FaceMissing, UnitError."""
    try:
        found = faces.faces(picture, name)
        chosen = found if choice == ALL else [choose(found, choice, picture.size, field)]
    except FaceError as error:
        error.detail.setdefault("field", name)
        raise
    return array_of(chosen)


def array_of(faces: Sequence[Face]) -> Array:
    """Their points [F, 5, 2]."""
    return np.array([face.points for face in faces], dtype=np.float64)


def pose_of(resolved: ResolvedUnit, size: Pair, faces: FaceAnalyser) -> Keypoints:
    """The pose of the unit's pose picture, else of its first reference, in a picture of ``size``. Raises UnitError,
    FaceError, ImageError."""
    unit = resolved.unit
    if resolved.pose is not None:
        return Keypoints(placed(*points_in(resolved.pose, None, None, unit.pose_face, "pose_face", faces), size))
    found = next(((i, one) for i, one in enumerate(resolved.references) if isinstance(one, Picture)), None)
    if found is None:
        raise UnitError(
            "pose",
            None,
            "a picture with the pose, since saved embeds hold none; or pose_weight 0, for the adapter alone",
        )
    place, reference = found
    box, mask = crops.boxes(unit.box, len(resolved.references))[place], resolved.reference_masks[place]
    choice = ALL if unit.pose_face == ALL else unit.face
    return Keypoints(placed(*points_in(reference, box, mask, choice, "face", faces), size))


def points_in(
    picture: Picture, box: crops.Box | None, mask: Picture | None, choice: str, field: str, faces: FaceAnalyser
) -> tuple[Array, Pair]:
    """``points_of`` a part of a picture, and the part's size. A known picture is not decoded for it."""

    def find() -> tuple[Array, Pair]:
        part = pixels.cut(picture.image(), box, None if mask is None else mask.image())
        return points_of(part, choice, faces, name_of(picture), field), part.size

    try:
        return faces.kept((picture.id, box, None if mask is None else mask.id, choice), find)
    finally:
        picture.drop()
        if mask is not None:
            mask.drop()


def placed(points: Array, size: Pair, target: Pair) -> Array:
    """Points [F, 5, 2] of a picture of ``size`` where it covers one of ``target``, its middle in the middle, as
    fractions of that one. Where a point would be cut off, the picture is moved as far as its edges allow; where that is
    not enough, it is fitted inside."""
    own, other = np.array(size, dtype=np.float64), np.array(target, dtype=np.float64)
    scale = float((other / own).max())
    least, most = points.min((0, 1)), points.max((0, 1))
    room = other - scale * own  # how far it hangs over, 0 or less in each direction
    low, high = _MARGIN - scale * least, other - _MARGIN - scale * most  # offsets that keep all points inside
    if bool((np.maximum(low, room) > np.minimum(high, 0)).any()) and not np.allclose(room, 0):
        scale = float((other / own).min())
        return (points * scale + (other - scale * own) / 2) / other
    offset = np.clip(room / 2, np.minimum(low, high), np.maximum(low, high)).clip(np.minimum(room, 0), 0)
    return (points * scale + offset) / other


def drawn(points: Array, size: Pair, target: Pair) -> Image.Image:
    """The keypoint picture, of ``target``, of faces [F, 5, 2] in a picture of ``size``."""
    return Image.fromarray(Keypoints(placed(points, size, target)).at((target[1], target[0])))
