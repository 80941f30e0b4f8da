"""Unit: one image prompt as the user asked for it, frozen, checked once.

Each field is declared once, in ``Unit``. FIELDS, the API's JSON and its schema, the panel's order, the infotext, the
X/Y/Z axes and the tables in docs/ are read off the declarations; a new field is a new line there.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from ..errors import IPAdapterError, UnitError
from ..options import checked, choice, declare, fields_of, number, string, switch
from . import crops, weights
from .checks import Checks
from .face import CHOICE_EXPECTED, CHOICES, KINDS, POSE_EXPECTED, POSES, parse_face, parse_pose_face
from .fields import WEIGHT_RANGE, Reference, picture, references, text
from .pulid import AUTO, MODES, MOST_ZEROS, PRESETS

FITS = crops.FITS
COMBINES = ("concat", "average", "norm average", "add", "subtract")
SCALINGS = ("V only", "K+V", "K+V with C penalty", "K+mean(V) with C penalty")
PASSES = ("both", "first", "hires")
REGIONS = ("mask", "inpaint", "face")
DISTRIBUTIONS = ("together", "one per picture", "one per detail")
DETAILS = ("yes", "no", "only")
# Groups of fields, which the panel folds away
PREPROCESS, LAYERS = "Crop, mask and negatives", "Layers, steps and hires fix"
REGION, SCRIPTS = "Region", "Output and other scripts"
FACE = "Face"  # of adapters that take faces


@dataclass(frozen=True)
class Unit(Checks):
    """One image prompt. Built by ``parse``, which is the only place of checks."""

    enabled: bool = switch(True, "Whether this unit acts.", label="Enable")
    images: tuple[Reference, ...] = references(
        "The pictures that prompt the model, each with a weight.", label="Reference images"
    )
    model: str = string(
        "",
        "Adapter file, with or without its extension, as model_list lists it.",
        label="Model",
        normalize=lambda value, _: value.strip(),
    )
    weight: float = number(
        1.0,
        "How strongly the image acts. 0 is off; 0.5 to 0.8 leaves room for the prompt.",
        *WEIGHT_RANGE,
        label="Weight",
    )
    start: float = number(
        0.0, "When the image starts to act: 0 is the first step, 1 the last.", 0.0, 1.0, label="Start"
    )
    end: float = number(1.0, "When the image stops acting: 0 is the first step, 1 the last.", 0.0, 1.0, label="End")
    fit: str = choice(
        "crop",
        "The encoder sees a square: crop, pad or stretch the picture, or split it into tiles.",
        FITS,
        label="Fit",
    )
    combine: str = choice(
        "concat",
        "How several images are mixed: concat keeps the tokens of each, average, norm average, add and "
        "subtract mix their features.",
        COMBINES,
        label="Combine",
    )
    distribute: str = choice(
        "together",
        "In a batch: all images for every picture, or one image per picture, in turn. In a detailer: the first image "
        "for the first detail of a picture, and so on.",
        DISTRIBUTIONS,
        label="References",
    )
    position: str = choice(
        "center",
        "Which part of a long picture the square of fit crop keeps.",
        crops.POSITIONS,
        label="Crop position",
        group=PREPROCESS,
    )
    box: str = text(
        'Use only this part of each image: "left, top, right, bottom" from 0 to 1; or drag it on a thumbnail.',
        crops.parse_boxes,
        crops.BOX_EXPECTED,
        label="Crop box",
        group=PREPROCESS,
        aliases=("crop",),
    )
    sharpen: float = number(0.0, "Sharpen the image before it is encoded.", 0.0, 1.0, label="Sharpen", group=PREPROCESS)
    noise: float = number(
        0.0,
        "How far the negative images (without any, the images themselves) fade into noise on the unconditional side.",
        0.0,
        1.0,
        label="Noise",
        group=PREPROCESS,
    )
    negative: tuple[Reference, ...] = references(
        "What to stay away from: the unconditional side gets the mean of these images.",
        label="Negative references",
        group=PREPROCESS,
    )
    focus: Any = picture(
        "The white parts of the references are used, the black ones are not. An image's own mask takes its place.",
        label="Reference mask",
        group=PREPROCESS,
        aliases=("reference_mask",),
    )
    weight_type: str = choice(
        "linear",
        "Which layers of the UNet get the image: all alike, style, composition, ...",
        weights.TYPES,
        label="Weight type",
        group=LAYERS,
    )
    composition: float = number(
        1.0,
        "Weight of the composition (for the composition types: of the style), where a type has both.",
        *WEIGHT_RANGE,
        label="Composition weight",
        group=LAYERS,
    )
    layers: str = text(
        'Multiplier per layer, such as "0:1, 3-5:0.5". Layers that are not listed are off.',
        weights.parse_layers,
        weights.LAYERS_EXPECTED,
        label="Weight per layer",
        group=LAYERS,
    )
    curve: str = text(
        'Multiplier by fraction of the sampling, such as "0:0, 0.3:1". Or drag the curve.',
        weights.parse_curve,
        weights.CURVE_EXPECTED,
        label="Weight over steps",
        group=LAYERS,
    )
    interpolation: str = choice(
        "linear",
        "Between the points of the curve: linear, or stepped.",
        weights.INTERPOLATIONS,
        label="Between points",
        group=LAYERS,
    )
    passes: str = choice(
        "both", "With hires fix: the pass in which the unit acts.", PASSES, label="Passes", group=LAYERS
    )
    hires_factor: float = number(
        1.0, "Multiplier of the weight in the hires pass.", 0.0, 5.0, label="Hires factor", group=LAYERS
    )
    scaling: str = choice(
        "V only",
        "What the weight scales: values, or keys too (ComfyUI's embeds scaling).",
        SCALINGS,
        label="Scaling",
        group=LAYERS,
    )
    maps: bool = switch(
        False,
        "Attention heat maps of where each reference acts, beside the pictures.",
        label="Show where it acts",
        group=LAYERS,
        in_infotext=False,
    )
    mask: Any = picture("The unit acts in the white area of this picture.", label="Mask", group=REGION)
    region: str = choice(
        "mask",
        "Where the unit acts: in the mask (without one, everywhere), in the inpainted area, or around a face of the "
        "picture that is redrawn.",
        REGIONS,
        label="Region",
        group=REGION,
    )
    invert: bool = switch(False, "Act outside the region instead.", label="Invert", group=REGION)
    feather: float = number(
        0.0,
        "Blur the edge of the mask by this many pixels.",
        0.0,
        256.0,
        step=1,
        label="Feather",
        group=REGION,
    )
    in_detailer: str = choice(
        "yes",
        "Act in ADetailer's details too, or only there, if ip_adapter is among ADetailer's script names.",
        DETAILS,
        switched=("no", "yes"),
        label="In detailers",
        group=SCRIPTS,
    )
    in_upscale: bool = switch(
        True, "Act in the tiles of SD upscale and Ultimate SD upscale.", label="In upscaling", group=SCRIPTS
    )
    in_loopback: bool = switch(
        True, "Act in the passes of Loopback after the first.", label="In loopback", group=SCRIPTS
    )

    face: str = declare(
        "text",
        CHOICES[0],
        "Which face of a picture counts: largest, leftmost, rightmost, topmost, centre, or a number from the left, "
        "beginning with 0.",
        normalize=lambda value, _: parse_face(value),
        hint=CHOICE_EXPECTED,
        json={"type": ["string", "integer"]},
        label="Which face",
        group=FACE,
    )
    shortcut: float = number(
        1.0,
        "FaceID-PlusV2: how much the look of the face counts, beside who it is.",
        0.0,
        5.0,
        label="Face structure",
        group=FACE,
    )
    lora: float = number(
        1.0, "Strength of the LoRA that FaceID files bring along.", 0.0, 2.0, label="LoRA strength", group=FACE
    )
    kind: str = choice(
        "auto",
        "What the file is, where two kinds look the same and its hash is not known: by default what its name says.",
        KINDS,
        label="Kind of file",
        group=FACE,
    )
    pulid: str = choice(
        AUTO,
        "PuLID: what its authors use for likeness (fidelity), for the prompt's style (style), or with v1.1; auto: by "
        "the file. All of them with a weight of 0.8.",
        (AUTO, *PRESETS),
        label="PuLID preset",
        group=FACE,
    )
    pulid_mode: str = choice(
        AUTO,
        "PuLID: how it is kept from changing the picture: the part along the text's attention is left out (ortho), or "
        "only where the face is not looked at (ortho_v2); auto: the preset's.",
        (AUTO, *MODES),
        label="PuLID mode",
        group=FACE,
    )
    zero_tokens: int = number(
        -1.0,
        "PuLID: tokens of zeros beside the face's: more of them leave more to the prompt. -1: the preset's.",
        -1.0,
        MOST_ZEROS,
        step=1,
        label="Zero tokens",
        group=FACE,
    )
    region_face: str = declare(
        "text",
        CHOICES[0],
        "Region face: which face of the redrawn picture, in the words of Which face.",
        normalize=lambda value, _: parse_face(value, "region_face"),
        hint=CHOICE_EXPECTED,
        json={"type": ["string", "integer"]},
        label="Face in the picture",
        group=REGION,
    )
    grow: float = number(
        1.5, "Region face: how much larger than the face the region is.", 1.0, 4.0, step=0.1, label="Grow", group=REGION
    )
    pose: tuple[Reference, ...] = references(
        "InstantID: a picture with the pose; without one, the reference has it.", label="Pose picture", group=FACE
    )
    pose_from: str = choice(
        POSES[0], "InstantID: whose pose, without a pose picture: the reference's, or the redrawn picture's.",
        POSES, label="Pose of", group=FACE,
    )  # fmt: skip
    pose_face: str = declare(
        "text",
        CHOICES[0],
        "InstantID: which face of the pose picture, in the words of Which face; all: of every person in it.",
        normalize=lambda value, _: parse_pose_face(value),
        hint=POSE_EXPECTED,
        json={"type": ["string", "integer"]},
        label="Face in the pose picture",
        group=FACE,
    )
    pose_weight: float = number(
        0.8, "InstantID: how strongly its ControlNet holds the pose; 0: the adapter alone.", 0.0, 2.0,
        label="Pose weight", group=FACE,
    )  # fmt: skip
    pose_start: float = number(
        0.0, "InstantID: when the ControlNet starts to act, within the unit's own start and end.", 0.0, 1.0,
        label="Pose start", group=FACE,
    )  # fmt: skip
    pose_end: float = number(
        1.0, "InstantID: when the ControlNet stops acting.", 0.0, 1.0, label="Pose end", group=FACE
    )
    control_model: str = string(
        "auto",
        "InstantID: its ControlNet's file; auto: found by its keys; none: the adapter alone.",
        label="ControlNet",
        group=FACE,
        normalize=lambda value, _: value.strip() or "auto",
    )

    @classmethod
    def parse(cls, value: Unit | Mapping[str, Any]) -> Unit:
        """A unit from a JSON object or from the panel's values. Raises UnitError."""
        if isinstance(value, Unit):
            return value
        if not isinstance(value, Mapping):
            raise UnitError("unit", value, "a JSON object")
        unit = cls(**checked(FIELDS, value))
        if unit.enabled:
            unit._check()
        return unit

    def changed(self) -> dict[str, Any]:
        """The fields that differ from their defaults, without the pictures (for the infotext)."""
        return {
            f.name: getattr(self, f.name)
            for f in FIELDS
            if f.in_infotext and f.name not in PICTURES and getattr(self, f.name) != f.default
        }


FIELDS = fields_of(Unit, UnitError)
FIELD_NAMES = tuple(field.name for field in FIELDS)
PICTURES = tuple(field.name for field in FIELDS if field.kind in ("image", "images"))


def parse_units(values: Iterable[Any]) -> list[Unit]:
    """Units from JSON objects; an error names the unit by its number."""
    units = []
    for index, value in enumerate(values):
        try:
            units.append(Unit.parse(value))
        except IPAdapterError as error:
            raise error.in_unit(index) from None
    return units
