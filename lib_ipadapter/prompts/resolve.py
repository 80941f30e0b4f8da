"""Stage 1, resolve: a Unit to a ResolvedUnit. Saved references are replaced by what they stand for, and each picture
has a content id."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from ..errors import UnitError
from ..pictures import images
from ..pictures.picture import Allow, Picture, Pictures
from ..unit import Unit
from ..unit.crops import box_at
from ..unit.fields import MAX_IMAGES, Reference
from ..unit.names import Named
from .embeds import EncodedReference
from .references import ReferenceStore


@dataclass(frozen=True)
class ResolvedUnit:
    """A unit whose references are pictures or features. unit: with these references; references: in its order;
    reference_mask: of all references without one in own_masks, which has a place for each."""

    unit: Unit
    references: tuple[Picture | EncodedReference, ...]
    negative: tuple[Picture, ...] = ()
    reference_mask: Picture | None = None
    mask: Picture | None = None
    own_masks: tuple[Picture | None, ...] = ()
    pose: Picture | None = None

    @property
    def reference_masks(self) -> tuple[Picture | None, ...]:
        """The mask of each reference."""
        own = self.own_masks or (None,) * len(self.references)
        return tuple(self.reference_mask if mask is None else mask for mask in own)

    def own(self, mask: Picture | None) -> bool:
        """Whether a reference's mask is of no other reference: it need not be kept for them."""
        return mask is not None and mask is not self.reference_mask

    def drop_masks(self) -> None:
        """Frees their pixels."""
        for mask in self.reference_masks:
            if mask is not None:
                mask.drop()

    @property
    def needs_encoder(self) -> bool:
        """Whether anything in it is a picture that has to be encoded."""
        return bool(self.negative) or not all(isinstance(x, EncodedReference) for x in self.references)

    def ids(self) -> list[str]:
        """The content id of each reference. Raises ImageError."""
        return [reference.id for reference in self.references]


def resolve(unit: Unit, store: ReferenceStore, pictures: Pictures, allow: Allow = lambda image: None) -> ResolvedUnit:
    """allow: called with each reference and mask that is decoded, to refuse it. Raises UnitError, FileError for saved
    references, ImageError for a URL; a picture that cannot be decoded raises ImageError when it is needed."""
    unit = without_embeds(without_folders(unit, store), store)

    def many(field: str) -> list[Any]:
        values = [reference.image for reference in getattr(unit, field)]
        return [
            value if isinstance(value, EncodedReference) else pictures.reference(value, f"{field}[{i}]", allow)
            for i, value in enumerate(values)
        ]

    focus = None if unit.focus is None else pictures.reference_mask(unit.focus, "focus", allow)
    mask = None if unit.mask is None else pictures.mask(unit.mask, "mask", allow)
    own = tuple(
        None if reference.mask is None else pictures.reference_mask(reference.mask, f"images[{i}].mask", allow)
        for i, reference in enumerate(unit.images)
    )
    poses = many("pose")
    return ResolvedUnit(
        unit, tuple(many("images")), tuple(many("negative")), focus, mask, own, poses[0] if poses else None
    )


def without_folders(unit: Unit, store: ReferenceStore) -> Unit:
    """``unit`` with the pictures of its folders as references. Raises UnitError."""
    found: list[Reference] = []
    for reference in unit.images:
        saved = reference.image
        if isinstance(saved, Named) and saved.kind == "input":
            raise UnitError(
                "images",
                f"the picture of {saved.name}",
                "a picture, embeds or a folder: only a job of img2img has that",
            )
        if isinstance(saved, Named) and saved.kind == "folder":
            paths = store.folder(saved.name)
            if not paths:
                raise UnitError("folder", saved.name, f"a folder with pictures ({', '.join(images.SUFFIXES)})")
            found += [replace(reference, image=path) for path in paths]
        else:
            found.append(reference)
    return _with(unit, found)


def without_embeds(unit: Unit, store: ReferenceStore) -> Unit:
    """``unit`` with the references of its embeds, their weights multiplied. Raises UnitError, FileError."""
    found: list[Reference] = []
    for reference in unit.images:
        saved = reference.image
        if isinstance(saved, Named):
            found += [
                replace(reference, image=encoded, weight=reference.weight * weight)
                for encoded, weight in store.embeds(saved.name).references()
            ]
        else:
            found.append(reference)
    unit = _with(unit, found)
    unit.check_images()
    return unit


def _with(unit: Unit, references: Sequence[Reference]) -> Unit:
    if len(references) > MAX_IMAGES:
        raise UnitError(
            "images",
            f"{len(references)} images",
            f"at most {MAX_IMAGES}, those of folders and embeds counted",
        )
    return replace(unit, images=tuple(references))


def one_per_picture(unit: Unit, indices: Sequence[int], store: ReferenceStore) -> list[Unit]:
    """Of a unit whose references take turns: a unit for each of the job's pictures, up to the first that would come
    again. indices: which reference (modulo their number) each picture takes. Raises UnitError."""
    references = without_folders(unit, store).images
    chosen = [index % len(references) for index in indices[: len(references)]]
    return [
        replace(unit, images=(references[i],), box=box_at(unit.box, i, len(references)), distribute="together")
        for i in chosen
    ]
