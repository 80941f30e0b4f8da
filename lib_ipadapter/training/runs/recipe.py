"""Presets of a training by base model and memory, and the YAML text that they make with what was chosen.

What a preset holds at its peak, all encoders cached, is computed by ``benchmarks/memory.py``; about a fifth of the
card is left to the kernels' work space and to the system.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ...encoders.spec import EncoderSpec
from ...errors import ConfigError

_COMMON: dict[str, Any] = {
    "steps": 20_000, "lr": 1e-4, "buckets": True, "cache": True, "cache_text": True, "save_every": 1000,
    "sample_every": 1000, "validation_every": 500, "tensorboard": False,
}  # fmt: skip
_GPU: dict[str, Any] = {**_COMMON, "precision": "bf16"}
_SMALL: dict[str, Any] = {"checkpointing": True, "storage": "fp8", "optimizer": "adamw8bit"}


@dataclass(frozen=True)
class Preset:
    """title: for people; base: sd15 or sdxl; memory: GB of the card, 0 for none; fields: of the config; peak: GB that
    are held at the peak, computed."""

    title: str
    base: str
    memory: int
    fields: Mapping[str, Any]
    peak: float = 0.0


PRESETS = (
    Preset("SD1.5, 6 GB", "sd15", 6, {**_GPU, "resolution": 512, "batch": 4, **_SMALL}, 3.8),
    Preset("SD1.5, 8 GB", "sd15", 8, {**_GPU, "resolution": 512, "batch": 4, "checkpointing": True}, 4.9),
    Preset("SD1.5, 12 GB", "sd15", 12, {**_GPU, "resolution": 512, "batch": 8, "checkpointing": True}, 7.7),
    Preset("SD1.5, 24 GB", "sd15", 24, {**_GPU, "resolution": 512, "batch": 4}, 14.9),
    Preset("SDXL, 12 GB", "sdxl", 12, {**_GPU, "resolution": 1024, "batch": 2, **_SMALL}, 8.4),
    Preset("SDXL, 16 GB", "sdxl", 16, {**_GPU, "resolution": 1024, "batch": 1, "checkpointing": True}, 12.0),
    Preset("SDXL, 24 GB", "sdxl", 24, {**_GPU, "resolution": 1024, "batch": 4, "checkpointing": True}, 15.7),
    Preset("no GPU (slow)", "", 0, {**_COMMON, "resolution": 512, "batch": 1, "workers": 0, "steps": 2000,
                                    "save_every": 100, "sample_every": 0}),
)  # fmt: skip
BY_TITLE = {preset.title: preset for preset in PRESETS}
VARIANTS = ("base", "plus", "full", "faceid", "faceid-plus", "faceid-plusv2")


def suggested(base: str, memory: float) -> Preset:
    """The largest preset of a base model for a card of so many GB; without a card the one for none."""
    if memory <= 0:
        return PRESETS[-1]
    own = [preset for preset in PRESETS if preset.base == (base or "sd15")]
    fitting = [preset for preset in own if preset.memory <= memory * 1.05]  # a card of 12 GB says 11.9, or 12.6 (GB)
    return fitting[-1] if fitting else own[0]


def variants_for(encoder: EncoderSpec | None, faces: bool) -> list[str]:
    """The variants that can be trained with an encoder and, where ``faces``, models of faces."""
    found = [] if encoder is None else ["base", "plus", "full"]
    if faces:
        found += ["faceid"]
        if encoder is not None and encoder.name == "ViT-H-14":
            found += ["faceid-plus", "faceid-plusv2"]
    return found


def composed(preset: Preset, chosen: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a preset with those that were chosen, which come first; empty ones are left out."""
    given = {name: value for name, value in chosen.items() if value not in ("", None)}
    fields = {**given, **{name: value for name, value in preset.fields.items() if name not in given}}
    if str(fields.get("variant", "")).startswith("faceid"):
        fields["cache"] = True
        if fields["variant"] == "faceid":
            fields.pop("encoder", None)
    return fields


def preset_named(title: Any) -> Preset:
    """Raises ConfigError."""
    if not isinstance(title, str) or title not in BY_TITLE:
        raise ConfigError("preset", title, f"one of {', '.join(BY_TITLE)}")
    return BY_TITLE[title]
