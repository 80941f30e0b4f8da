"""What the panel shows of a reference whose face counts: the aligned crop, and which face of the picture it is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from ...cache import LRU
from ...errors import FaceError, FaceModelMissing, FacesUnavailable, IPAdapterError
from ...faces import Face, FaceAnalyser, choose
from ...faces.align import aligned_crop
from ...faces.packs import DETECTOR
from ...pictures import preprocess
from ...pictures.picture import Pictures
from ...pictures.preprocess import Preprocess
from ...prompts.pose import drawn, points_in
from ...unit import crops
from ...unit.crops import Box
from ...unit.face import ALL, parse_face, parse_pose_face
from ..words import worded
from .html import Seen, by_content, data_uri, face_buttons, failure, note, square
from .values import MASKS, parse_masks

_PICTURES = Pictures()  # whose content is known
_VIEWS: LRU[Seen] = LRU(lambda: 128)
_SIDE = 224  # of the crop, pixels
_MAP = 96  # of the picture in its corner, at most
_SMALL, _MOST = 64, 16  # of the crops that are buttons: pixels, and how many
_CHOSEN, _OTHER = (255, 120, 0), (255, 255, 255)


def view(path: str, box: Box | None, choice: Any, focus: str, faces: FaceAnalyser) -> Seen:
    """The face that counts: its aligned crop. If there are several, all that were found are framed in its corner, and
    stand below as buttons. ``path`` names its content; focus: the reference mask. Raises ImageError, FaceError,
    UnitError."""
    which = parse_face(choice or "")
    key = path, box, which, by_content(focus), faces.identity(DETECTOR)
    return _VIEWS.get(key, lambda: _view(path, box, which, focus, faces))


def view_or_picture(path: str, box: Box | None, choice: Any, focus: str, faces: FaceAnalyser) -> Seen:
    """As ``view``; a picture without such a face is shown as it is, with the error below, and one of which nothing can
    be said since face models are missing (the model's line says so) alone. Raises ImageError, UnitError."""
    try:
        return view(path, box, choice, focus, faces)
    except FaceError as error:
        below = "" if isinstance(error, (FaceModelMissing, FacesUnavailable)) else failure(worded(error))
        return Seen(square(path, _SIDE, Preprocess(), box, focus), "whose face is not found", below)


def _view(path: str, box: Box | None, choice: str, focus: str, faces: FaceAnalyser) -> Seen:
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


def pose(given: Mapping[str, Any], images: Sequence[str], poses: Sequence[str], faces: FaceAnalyser) -> str:
    """The keypoint picture of a unit's pose, for people. given: its fields; images, poses: the files of references and
    of the pose picture."""
    if str(given["control_model"]).strip().lower() == "none" or not given["pose_weight"]:
        return note("The adapter alone: its ControlNet does not hold the pose.")
    if given["pose_from"] != "reference" and not poses:
        return note("The pose is that of the picture that is redrawn.")
    if not poses and not images:
        return ""
    try:
        choice, field, box, mask = parse_pose_face(given["pose_face"] or ""), "pose_face", None, None
        if not poses:
            box = crops.boxes(crops.parse_boxes(given["box"] or ""), len(images))[0]
            focus = parse_masks(given[MASKS], len(images))[0] or given["focus"]
            mask = _PICTURES.reference_mask(focus, "mask") if focus else None
            choice, field = (choice if choice == ALL else parse_face(given["face"] or "")), "face"
        picture = _PICTURES.reference(Path((poses or images)[0]), "images")
        points, size = points_in(picture, box, mask, choice, field, faces)
        shown = drawn(points, size, size)
    except (IPAdapterError, OSError) as error:
        return failure(worded(error))
    alt = "The pose: eyes, nose and the corners of the mouth, as the ControlNet is given them"
    return f'<img class="ipadapter-keypoints" src="{data_uri(shown, _SIDE)}" alt="{alt}" title="{alt}">'


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
