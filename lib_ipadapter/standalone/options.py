"""The options of ``generate`` and ``embed``: each is one flag of the command line."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ..options import choice, declare, number, path, same_as, string, whole
from ..unit import MAX_IMAGES, WEIGHT_RANGE, Unit

PROMPT, UNIT, SAMPLING, OUTPUT = "Prompt", "Image prompt", "Sampling", "Output"
CHECKPOINT_HELP = "SD1.x, SD2.x or SDXL checkpoint, .safetensors or .ckpt."
CONFIG_HELP = "YAML of the checkpoint; without it, the file of the same name beside it. SDXL needs none."
PREDICTIONS = ("auto", "epsilon", "v", "v-zero-snr")
PREDICTION_HELP = (
    "What the UNet predicts, where neither the yaml nor the file says so: epsilon, v, or v with zero terminal SNR."
)
DEVICES = ("auto", "cpu", "cuda")
PRECISIONS = ("float32", "float16")
PRECISION_HELP = "Default: float16 on a GPU, else float32."


@dataclass(frozen=True)
class UnitOptions:
    """One unit by flags, and any number as JSON."""

    adapter: Path | None = path("Adapter file; without it, the base model alone.", group=UNIT)
    encoder: Path | None = path(
        "Weight file of the image encoder, or its name, of a file in models/clip_vision.", group=UNIT
    )
    encoder_dir: tuple[Path, ...] = path(
        "Folder to look for the image encoder in; may be repeated.",
        (),
        many="repeat",
        metavar="FOLDER",
        group=UNIT,
    )
    image: tuple[Path, ...] = path("Reference image; may be repeated.", (), many="repeat", group=UNIT)
    image_weight: tuple[float, ...] = number(
        (), "Weight of an image: one for each --image.", *WEIGHT_RANGE, many="repeat", group=UNIT
    )
    embeds: tuple[Path, ...] = path(
        "Saved embeds, used as a reference; may be repeated.", (), many="repeat", group=UNIT
    )
    weight: float = same_as(Unit, "weight", group=UNIT)
    start: float = same_as(Unit, "start", group=UNIT)
    end: float = same_as(Unit, "end", group=UNIT)
    fit: str = same_as(Unit, "fit", group=UNIT)
    combine: str = same_as(Unit, "combine", group=UNIT)
    face: str = same_as(Unit, "face", group=UNIT)
    shortcut: float = same_as(Unit, "shortcut", group=UNIT)
    lora: float = same_as(Unit, "lora", group=UNIT)
    kind: str = same_as(Unit, "kind", group=UNIT)
    face_models: tuple[Path, ...] = path(
        "Folder with InsightFace's face models or their archives; may be repeated. Default: ~/.insightface.",
        (),
        many="repeat",
        metavar="FOLDER",
        group=UNIT,
    )
    unit: tuple[str, ...] = declare(
        "string",
        (),
        'One more unit as JSON, as the API takes it: {"model": FILE, "images": [FILE, ...], "weight": 0.5}; '
        "may be repeated.",
        many="repeat",
        metavar="JSON",
        group=UNIT,
    )


@dataclass(frozen=True)
class GenerateOptions(UnitOptions):
    """What ``generate`` samples."""

    checkpoint: Path = path(CHECKPOINT_HELP, required=True, group=SAMPLING)
    config: Path | None = path(CONFIG_HELP, group=SAMPLING)
    prediction: str = choice("auto", PREDICTION_HELP, PREDICTIONS, group=SAMPLING)
    prompt: str = string("", "Text prompt.", group=PROMPT)
    negative: str = string("", "Negative text prompt.", group=PROMPT)
    steps: int = whole(50, "Sampling steps (DDIM).", 1, 1000, group=SAMPLING)
    cfg: float = number(7.5, "Scale of the classifier-free guidance.", 0, 100, group=SAMPLING)
    seed: int = whole(
        -1,
        "Seed of the first picture; the next has the next seed. -1: a random one.",
        -1,
        2**63 - 1,
        group=SAMPLING,
    )
    width: int | None = whole(
        None, "Width in pixels. Default: the init image's, else 512, SDXL 1024.", 8, 4096, group=SAMPLING
    )
    height: int | None = whole(
        None, "Height in pixels. Default: the init image's, else 512, SDXL 1024.", 8, 4096, group=SAMPLING
    )
    batch: int = whole(1, "Number of pictures.", 1, MAX_IMAGES, group=SAMPLING)
    init_image: Path | None = path("Start from this picture (img2img).", group=SAMPLING)
    strength: float = number(
        0.75, "Denoising strength: how much of the init image is replaced.", 0, 1, above=True, group=SAMPLING
    )
    mask: Path | None = path("Inpaint the white area of this picture, keep the black one.", group=SAMPLING)
    device: str = choice("auto", "Where to compute.", DEVICES, group=SAMPLING)
    precision: str | None = choice(None, PRECISION_HELP, PRECISIONS, group=SAMPLING)
    out: Path = path("PNG file to write; a batch writes OUT-1.png, OUT-2.png, ...", Path("out.png"), group=OUTPUT)


@dataclass(frozen=True)
class EmbedOptions(UnitOptions):
    """What ``embed`` saves."""

    title: str = string("", "Title in lists; without it, the file's name.", group=OUTPUT)
    out: Path = path("The .safetensors file to write.", required=True, group=OUTPUT)
