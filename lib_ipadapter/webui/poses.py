"""The ControlNet of a unit in a job: its file, and the pose that it holds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from PIL import Image

from ..adapters.variant import VariantSpec
from ..attention.prompt import Timing
from ..controlnet import control
from ..controlnet.control import Control
from ..controlnet.files import AUTO, NONE, ControlNets
from ..errors import FaceMissing, UnitError
from ..faces import FaceAnalyser
from ..pictures import images
from ..prompts.image_prompt import prompt_fields
from ..prompts.pose import Keypoints, points_of, pose_of
from ..prompts.resolve import ResolvedUnit
from ..unit import Unit
from .following import Place, is_cut
from .passes import Pass
from .regions import resized

if TYPE_CHECKING:
    from .hosts.base import Host


class Sources(Protocol):
    """Where files, faces and remarks go through (models.Models)."""

    controls: ControlNets
    faces: FaceAnalyser
    host: Host


def control_of(
    p: Any, unit: Unit, each: Sequence[ResolvedUnit], spec: VariantSpec, place: Place, models: Sources,
    passes: Sequence[Pass],
) -> Control | None:  # fmt: skip
    """Of an adapter that has one, None for the adapter alone. each: the unit for each picture in turn. Raises
    UnitError, ControlMissing, WrongBase, FaceError, FileError."""
    if not spec.posed:
        _check_unused(unit)
        return None
    if unit.control_model.lower() == NONE or not unit.pose_weight or not unit.weight:
        return None
    found = models.controls.find(unit.control_model, spec.context)
    assert found.spec is not None
    for one in passes:
        if one.layers is not None and prompt_fields(unit)[1].of_pass(one.hires):
            first = [layer for part in ("input", "middle") for layer in one.layers if layer.part == part]
            control.check_fit(found.spec, first, found.path.name)
    if unit.control_model.lower() == AUTO and not models.controls.is_instant_id(found):
        models.host.comment(p, f"IP-Adapter: {found.path.name} was taken for InstantID's ControlNet, as the only one "
                               "of its base; if it is another one, choose one under control_model")  # fmt: skip
    try:
        hints = [_hint(p, one, place, models) for one in each]
    except _NoFaceInDetail:
        models.host.comment(place.around or p, "IP-Adapter: no face was found in a detail, which has no pose therefore")
        return None
    timing = Timing(unit.pose_start, unit.pose_end)
    return Control(models.controls, found.path, found.spec, hints, unit.pose_weight, timing)


class _NoFaceInDetail(Exception):
    """A detail that shows no face."""


def _check_unused(unit: Unit) -> None:
    """Raises UnitError for what only InstantID has."""
    if unit.pose:
        raise UnitError("pose", "a picture", "none, since the adapter is not InstantID's")
    if unit.control_model.lower() not in (AUTO, NONE):
        raise UnitError("control_model", unit.control_model, f"{AUTO}, since the adapter is not InstantID's")


def _hint(p: Any, resolved: ResolvedUnit, place: Place, models: Sources) -> Keypoints:
    unit = resolved.unit
    of_details = place.detailer and (unit.in_detailer == "only" or unit.distribute == "one per detail")
    if resolved.pose is None and (unit.pose_from == "redrawn" or of_details):
        try:
            return _redrawn(p, unit, place, models)
        except FaceMissing:
            if place.detailer:
                raise _NoFaceInDetail from None
            raise
    return pose_of(resolved, place.size, models.faces)


def _redrawn(p: Any, unit: Unit, place: Place, models: Sources) -> Keypoints:
    """Of the picture that is redrawn; in a detail, of the face nearest to what is inpainted. Raises UnitError,
    FaceError."""
    pictures: Any = getattr(p, "init_images", None) or ()
    if len(pictures) != 1 or not isinstance(pictures[0], Image.Image) or place.upscale:
        raise UnitError(
            "pose_from", unit.pose_from, "reference, or a job that redraws one picture: img2img, inpaint, a detail",
        )  # fmt: skip
    picture = images.load(pictures[0])
    cut, target = is_cut(p), (p.width, p.height)
    if place.detailer and cut:
        left, top, right, bottom = p.image_mask.convert("L").getbbox() or (0, 0, *picture.size)
        every = points_of(picture, "all", models.faces, "the picture that is redrawn", "pose_face")
        centre = np.array([(left + right) / 2, (top + bottom) / 2])
        inside = [one for one in every if (one.mean(0) > (left, top)).all() and (one.mean(0) < (right, bottom)).all()]
        if not inside:
            raise FaceMissing("no face in the part that is redrawn")
        points = min(inside, key=lambda one: float(np.linalg.norm(one.mean(0) - centre)))[None]
    else:
        points = points_of(picture, unit.pose_face, models.faces, "the picture that is redrawn", "pose_face")
    if cut:
        fractions = points / np.array(picture.size)
    else:
        mode = int(getattr(p, "resize_mode", 0))
        moved = [[resized((x, y), picture.size, target, mode) for x, y in one] for one in points]
        fractions = np.array(moved) / np.array(target)
    # A detail's picture may be a part of the whole one, whose places the rows have.
    left, top, right, bottom = place.boxes[0]
    return Keypoints(np.array([left, top]) + fractions * np.array([right - left, bottom - top]))
