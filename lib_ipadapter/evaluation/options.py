"""The options of an evaluation, and those of the command ``evaluate``: each is one flag."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ..errors import ConfigError
from ..faces.packs import RECOGNISERS
from ..options import checked, choice, declare, fields_of, number, path, same_as, string, switch, whole
from ..standalone.options import CHECKPOINT_HELP, CONFIG_HELP, GenerateOptions
from ..unit import WEIGHT_RANGE, Unit
from .items import Item
from .pictures import weight_text
from .remote import TIMEOUT

DATA, ADAPTERS, WEBUI = (
    "References and metrics",
    "Adapters, sampled here with a checkpoint",
    "Methods of a running WebUI",
)


@dataclass(frozen=True)
class Options:
    """How references become pictures."""

    weights: tuple[float, ...] = number(
        (1.0,),
        "Weights to measure at; 0 is the base model, sampled once for all adapters.",
        *WEIGHT_RANGE,
        many=",",
        metavar="W,W,...",
        group=DATA,
    )
    count: int = whole(1, "Pictures for each reference.", 1, 10_000, group=DATA)
    seed: int = whole(
        0,
        "Seed of the first picture; the i-th picture of reference k has SEED + k * COUNT + i.",
        0,
        2**53,
        group=DATA,
    )
    prompt: str = string(
        "caption", "caption, none, or a text with {caption} or {FIELD} of metadata.jsonl in it.", group=DATA
    )
    batch: int = whole(8, "Pictures that are sampled at a time.", 1, 64, group=ADAPTERS)
    rows: int = whole(8, "References in the grid.", 1, 1000, group=DATA)

    def check(self) -> None:
        """Raises ConfigError."""
        options = fields_of(Options)
        checked(options, {option.name: getattr(self, option.name) for option in options})
        if len(set(map(weight_text, self.weights))) < len(self.weights):
            raise ConfigError("weights", self.weights, "numbers that differ within six digits")

    def text_for(self, item: Item) -> str:
        """The prompt of an item. Raises ConfigError."""
        if self.prompt in ("caption", "none"):
            return item.caption if self.prompt == "caption" else ""
        return item.fill(self.prompt)

    def text_against(self, item: Item) -> str:
        """The text that CLIP-T compares with: the caption, or the template filled in."""
        return item.caption if self.prompt in ("caption", "none") else item.fill(self.prompt)


@dataclass(frozen=True)
class EvaluateOptions(Options):
    """The command's flags."""

    references: Path = path(
        "Folder of pictures with captions: .txt beside each, or metadata.jsonl (file_name, text); or "
        "DreamBench++'s data.",
        required=True,
        metavar="FOLDER",
        group=DATA,
    )
    coco: Path | None = path("Captions in COCO's format; the first of each picture is used.", group=DATA)
    limit: int | None = whole(None, "Only the first of the references, by name.", 1, 10**9, metavar="K", group=DATA)
    out: Path = path(
        "Folder of pictures, results.json, results.md, scores.jsonl, grid.png, curve.png.",
        required=True,
        metavar="FOLDER",
        group=DATA,
    )
    clip: Path = path(
        "The CLIP that measures: open_clip weights of both towers, with the config beside them (same name, .json).",
        required=True,
        group=DATA,
    )
    clip_arch: str | None = string(
        None,
        "open_clip's name of the architecture instead of a config, such as ViT-L-14 (for OpenAI's weights "
        "ViT-L-14-quickgelu).",
        optional=True,
        metavar="NAME",
        group=DATA,
    )
    identity: str | None = choice(
        None,
        "Also measure who it is, by InsightFace's recogniser of this pack: the cosine of the faces, how often one is "
        "found, and whether it is closest to its own person. A recogniser that an adapter was trained with favours it.",
        tuple(RECOGNISERS),
        group=DATA,
    )
    identity_people: Path | None = path(
        "Folder with another picture of each reference's person, under the reference's name: persons are looked for "
        "among these, so that the reference's own light and pose count for nothing. Default: among the references.",
        metavar="FOLDER",
        group=DATA,
    )
    face_models: tuple[Path, ...] = same_as(GenerateOptions, "face_models", group=DATA)
    measure: tuple[str, ...] = declare(
        "string",
        (),
        "A further measure by its weight file: dino, dinov2 (subject) or csd (style); may be repeated.",
        many="repeat",
        metavar="NAME=FILE",
        group=DATA,
    )
    dreambench: bool = switch(
        False, "Also write the pictures into OUT/dreambench, in DreamBench++'s layout.", group=DATA
    )
    published: bool = switch(True, "Show published values below the table, marked as such.", group=DATA)
    adapter: tuple[str, ...] = declare(
        "string",
        (),
        "Adapter file, under its own name or another; may be repeated. A concat ablation has only the weights 0 and 1.",
        many="repeat",
        metavar="[NAME=]FILE",
        group=ADAPTERS,
    )
    text_baseline: str | None = string(
        None,
        "One more method, without an adapter: its prompt is this field of metadata.jsonl, a full description of "
        "the picture.",
        optional=True,
        metavar="FIELD",
        group=ADAPTERS,
    )
    checkpoint: Path | None = path(CHECKPOINT_HELP, group=ADAPTERS)
    config: Path | None = path(CONFIG_HELP, group=ADAPTERS)
    prediction: str = same_as(GenerateOptions, "prediction", group=ADAPTERS)
    encoder: tuple[Path, ...] = path(
        "Image encoder of the adapters, its file or name, or a folder to look in; may be repeated.",
        (),
        many="repeat",
        group=ADAPTERS,
    )
    fit: str = same_as(Unit, "fit", group=ADAPTERS)
    negative: str = same_as(GenerateOptions, "negative", group=ADAPTERS)
    steps: int = same_as(GenerateOptions, "steps", group=ADAPTERS)
    cfg: float = same_as(GenerateOptions, "cfg", group=ADAPTERS)
    width: int = whole(512, "Width in pixels.", 8, 4096, group=ADAPTERS)
    height: int = whole(512, "Height in pixels.", 8, 4096, group=ADAPTERS)
    device: str = same_as(GenerateOptions, "device", group=ADAPTERS)
    precision: str | None = same_as(GenerateOptions, "precision", group=ADAPTERS)
    webui: str | None = string(
        None, "Its address: http://[user:password@]host:port.", optional=True, metavar="URL", group=WEBUI
    )
    payload: Path | None = path("Template of the txt2img request, see the end of --help.", group=WEBUI)
    name: str | None = string(
        None, "Name in the table; without it, the payload's file name.", optional=True, group=WEBUI
    )
    method_json: tuple[str, ...] = declare(
        "string",
        (),
        'One more such method: {"name": ..., "url": ..., "payload": FILE}; may be repeated.',
        many="repeat",
        metavar="JSON",
        group=WEBUI,
    )
    timeout: float = number(TIMEOUT, "Seconds to wait for one picture.", 0, 1e9, above=True, group=WEBUI)
