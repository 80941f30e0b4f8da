"""Faces as references: each picture's chosen face as an aligned crop, for a recogniser and for a CLIP encoder.

The crop box and the reference mask say where in the picture a face is looked for. The part around the face is always
the same, so ``fit`` and ``position`` do not matter.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from ..cache import Lazy
from ..encoders.spec import Need, Of
from ..errors import FaceError, UnitError
from ..faces.align import aligned_crop
from ..faces.analyse import FaceAnalyser, choose
from ..faces.packs import DETECTOR
from ..faces.parsing import SIDE as BARE_SIDE
from ..faces.parsing import ffhq_crop
from ..faces.recognise import SIDE
from ..pictures import images
from ..pictures import preprocess as pixels
from ..pictures.images import content_hash
from ..pictures.picture import Picture
from ..unit import Unit, crops
from ..unit.crops import Box
from .embeds import EncodedReference
from .encode import FeatureSource
from .preprocess import Preprocessed, Square, Squares
from .resolve import ResolvedUnit

Kind = tuple[Of, int]  # of a crop: of what, and its side in pixels
_CLIP_SIDE = 224  # of the crop that upstream encodes; other sides are scaled from it


class FaceSource:
    """``FeatureSource`` of faces, and by ``encoders`` of all else."""

    def __init__(self, encoders: FeatureSource, faces: FaceAnalyser) -> None:
        self.encoders, self.faces = encoders, faces
        self._bare: tuple[Hashable, Mapping[str, Tensor]] | None = None  # the last face's, of two needs

    def encode(self, square: Image.Image, need: Need) -> Tensor:
        """Of a face: the embedding [1, 512] of its aligned crop. Raises FaceError, EncoderError."""
        if need.of == "bare face":
            return self._of_bare(square, need)
        if not need.is_face:
            return self.encoders.encode(square, need)
        embedding = torch.from_numpy(self.faces.of_crop(square, need.encoder))[None]
        return F.normalize(embedding, dim=-1) if need.feature == "face" else embedding

    def levels(self, values: Tensor, need: Need) -> Mapping[str, Tensor]:
        """By the encoders."""
        return self.encoders.levels(values, need)

    def unconditional(self, need: Need) -> Tensor:
        """Of no face: zeros."""
        return torch.zeros(1, need.width) if need.is_face else self.encoders.unconditional(need)

    def side(self, need: Need) -> int:
        """Of the square, pixels."""
        return SIDE if need.is_face else BARE_SIDE if need.of == "bare face" else self.encoders.side(need)

    def check(self, need: Need) -> None:
        """Raises FaceError, EncoderError for what is not there."""
        if need.of == "bare face":
            self.faces.parser.check()
        self.faces.check(need.encoder) if need.is_face else self.encoders.check(need)

    def identity(self, need: Need) -> Hashable:
        """Equal squares have equal features under an equal identity."""
        if need.is_face:
            return self.faces.identity(need.encoder)
        own = self.encoders.identity(need)
        return (own, self.faces.parser.identity()) if need.of == "bare face" else own

    def named(self, need: Need) -> Need:
        """The need with its encoder's name."""
        return need if need.is_face else self.encoders.named(need)

    def _of_bare(self, square: Image.Image, need: Need) -> Tensor:
        """Of a face's larger crop; the background is taken away first."""
        key = content_hash(square), need.encoder
        if self._bare is None or self._bare[0] != key:
            values = self.faces.parser.bare(np.asarray(square))
            self._bare = key, self.encoders.levels(values, need)
        return self._bare[1][need.feature]


def check_face_fields(unit: Unit) -> None:
    """Raises UnitError for a field that no face can have."""
    if unit.noise:
        raise UnitError(
            "noise", unit.noise, "0: the unconditional side of a face is no face; give a picture of one to stay away "
            "from as a negative reference",
        )  # fmt: skip


def preprocess_faces(
    resolved: ResolvedUnit, sides: Mapping[Need, int], faces: FaceAnalyser
) -> dict[Need, Preprocessed]:
    """The aligned crops of the chosen faces, squares of these sides (0 where only saved references are used). Negative
    references are faces too, the largest of each. Raises UnitError, FaceError."""
    unit = resolved.unit
    boxes = crops.boxes(unit.box, len(resolved.references))
    kinds = [(need.of, side) for need, side in sides.items()]
    each: list[Sequence[Squares | EncodedReference]] = [
        [reference] * len(sides)
        if isinstance(reference, EncodedReference)
        else _crops(reference, box, mask, unit.face, unit.sharpen, kinds, faces, resolved.own(mask))
        for reference, box, mask in zip(resolved.references, boxes, resolved.reference_masks, strict=True)
    ]
    negative = [_crops(one, None, None, "largest", unit.sharpen, kinds, faces) for one in resolved.negative]
    resolved.drop_masks()
    return {
        need: Preprocessed(tuple(one[i] for one in each), tuple(one[i] for one in negative))
        for i, need in enumerate(sides)
    }


def _crops(
    picture: Picture, box: Box | None, mask: Picture | None, choice: str, sharpen: float, kinds: Sequence[Kind],
    faces: FaceAnalyser, drop: bool = False,
) -> list[Squares]:  # fmt: skip
    """The chosen face of one picture as each kind of crop. A picture whose content is not known yet is decoded once.
    drop: the mask is of no other picture, and is freed."""
    known = picture.is_known
    whose = ("face", picture.id, box, None if mask is None else mask.id, choice, sharpen, faces.identity(DETECTOR))

    def make(kind: Kind) -> list[Square]:
        try:
            part = pixels.cut(picture.image(), box, None if mask is None else mask.image())
            crop = face_crop(part, choice, kind[1], faces, name_of(picture), kind[0])
            return [Square(pixels.sharpened(crop, sharpen))]
        finally:
            if known:
                picture.drop()
            if drop and mask is not None:
                mask.drop()

    made = [Lazy((*whose, kind), _later(make, kind)) for kind in kinds]
    if not known:
        for one in made:
            one()
        picture.drop()
    return list(made)


def _later(make: Callable[[Kind], list[Square]], kind: Kind) -> Callable[[], list[Square]]:
    return lambda: make(kind)


def name_of(picture: Picture) -> str:
    """What an error calls a picture: its file's name, else its field."""
    return picture.value.name if isinstance(picture.value, Path) else picture.field


def face_crop(
    picture: Image.Image, choice: str, side: int, faces: FaceAnalyser, name: str, of: Of = "face"
) -> Image.Image:
    """The aligned crop of the chosen face of an RGB picture, ``side`` pixels wide; of a bare face, the larger one that
    still has its background. Raises FaceMissing, UnitError."""
    try:
        face = choose(faces.faces(picture, name), choice, picture.size)
    except FaceError as error:
        error.detail.setdefault("field", name)
        raise
    if of == "bare face":
        return Image.fromarray(ffhq_crop(np.asarray(picture), np.asarray(face.points)))
    own = side if side % SIDE == 0 else _CLIP_SIDE
    crop = Image.fromarray(aligned_crop(np.asarray(picture), np.asarray(face.points), own))
    return crop if own == side else images.fit(crop, side, "stretch")
