"""TrainConfig: everything that a training is made of, from a YAML file and flags, checked once.

Each field is one row of its dataclass: type, default, limits and help stand there, and the flags, the
checks, the resolved file and its hash follow from them.
"""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import hashlib
import json
import types
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args, get_type_hints

from ..errors import ConfigError


def _field(
    default: Any, text: str, low: float | None = None, high: float | None = None,
    choices: tuple[str, ...] = (), above: bool = False,
) -> Any:  # fmt: skip
    """A row: default, help, limits (``above``: the lower one is not allowed itself), choices."""
    meta = {"help": text, "low": low, "high": high, "choices": choices, "above": above}
    return dataclasses.field(default=default, metadata=meta)


@dataclass(frozen=True)
class TrainConfig:
    """A training, as asked for. Paths as given, relative to the working folder."""

    base: str = _field(
        "", "the frozen base: an SD1.x or SD2.x checkpoint file, or a diffusers folder (SDXL too)"
    )
    base_config: str = _field("", "yaml of the checkpoint; without it, the file of the same name beside it")
    data: str = _field(
        "", "folder of pictures with captions (.txt beside, or metadata.jsonl), or .tar shards"
    )
    encoder: str = _field("", "weight file of the image encoder")
    out: str = _field("", "the run's folder; an interrupted run in it is gone on with")
    init: str = _field("", "adapter file to go on from")
    init_layers: str = _field("", "adapter file of any variant whose K' and V' to begin with")
    variant: str = _field("base", "projection", choices=("base", "plus", "full"))
    attention: str = _field(
        "decoupled", "concat: image tokens beside the text tokens, no K', V' (the paper's ablation)",
        choices=("decoupled", "concat"),
    )  # fmt: skip
    tokens: int | None = _field(
        None, "image tokens; default 4 (base), 16 (plus); full has the encoder's own", 1, 1024
    )
    resampler_dim: int = _field(768, "plus: width inside, 64 a head", 64, 8192)
    resampler_depth: int = _field(4, "plus: layers; diffusers reads 4 only", 1, 32)
    resampler_heads: int = _field(12, "plus: attention heads of width 64", 1, 128)
    resolution: int | None = _field(None, "pixels; default 512, SDXL 1024", 32, 4096)
    steps: int = _field(100_000, "optimizer steps in all", 1, 100_000_000)
    batch: int = _field(8, "pictures a process and micro step", 1, 65_536)
    accumulate: int = _field(1, "micro steps an optimizer step", 1, 65_536)
    lr: float = _field(1e-4, "learning rate", 0, 1, above=True)
    weight_decay: float = _field(0.01, "AdamW's weight decay", 0, 1)
    warmup: int = _field(0, "steps over which the learning rate rises", 0, 100_000_000)
    schedule: str = _field(
        "constant", "of the learning rate after the warm-up", choices=("constant", "cosine")
    )
    weighting: str = _field(
        "none", "of the timesteps: min-snr counts low noise less, debiased counts high noise more",
        choices=("none", "min-snr", "debiased"),
    )  # fmt: skip
    max_norm: float = _field(1.0, "gradients are clipped to this norm; 0: never", 0, 1e9)
    ema: float = _field(0.0, "decay of the averaged weights that are saved; 0: none, often 0.9999", 0, 1)
    precision: str = _field("no", "mixed precision", choices=("no", "bf16", "fp16"))
    checkpointing: bool = _field(False, "gradient checkpointing: less memory, more time")
    drop_image: float = _field(0.05, "share of the pictures whose image prompt is dropped", 0, 1)
    drop_text: float = _field(0.05, "share of the pictures whose text is dropped", 0, 1)
    drop_both: float = _field(0.05, "share of the pictures of which both are dropped", 0, 1)
    cache: bool = _field(False, "latents and features to disk, once; no encoder is needed afterwards")
    cache_dir: str = _field("", "where; default: OUT/cache")
    seed: int = _field(0, "of everything", 0, 2**63 - 1)
    workers: int = _field(2, "processes that read pictures; 0: none", 0, 256)
    prefetch: int = _field(2, "batches ahead a worker", 1, 64)
    save_every: int = _field(1000, "steps between checkpoints", 1, 100_000_000)
    keep: int = _field(2, "checkpoints kept", 1, 10_000)
    sample_every: int = _field(0, "steps between grids of samples; 0: none", 0, 100_000_000)
    sample_references: str = _field("", "folder of pictures for the samples; default: the data's first four")
    sample_prompt: str = _field("", "text prompt of the samples")
    sample_steps: int = _field(25, "DDIM steps of a sample", 1, 1000)
    tensorboard: bool = _field(True, "write OUT/tensorboard, if tensorboard is installed")

    @classmethod
    def parse(cls, values: Mapping[str, Any]) -> TrainConfig:
        """Checks every field. Raises ConfigError."""
        hints = get_type_hints(cls)
        names = [row.name for row in dataclasses.fields(cls)]
        for name in values:
            if name not in names:
                near = difflib.get_close_matches(str(name), names, 1)
                raise ConfigError(
                    str(name), values[name], f"no such field{f'; did you mean {near[0]}' if near else ''}"
                )
        rows = {row.name: row for row in dataclasses.fields(cls)}
        checked = {name: _checked(rows[name], hints[name], value) for name, value in values.items()}
        config = cls(**checked)
        config._check_together()
        return config

    def _check_together(self) -> None:
        for name in ("base", "data", "out"):
            if not getattr(self, name):
                raise ConfigError(name, "", "a path; it has no default")
        if not self.encoder:
            raise ConfigError("encoder", "", "the weight file of an image encoder")
        if self.init_layers and (self.init or self.attention == "concat"):
            raise ConfigError(
                "init_layers", self.init_layers, "nothing: init brings its own K' and V', concat has none"
            )
        dropped = self.drop_image + self.drop_text + self.drop_both
        if dropped > 1:
            raise ConfigError("drop_image + drop_text + drop_both", dropped, "at most 1")
        if self.warmup > self.steps:
            raise ConfigError("warmup", self.warmup, f"at most steps, {self.steps}")
        if self.ema == 1:
            raise ConfigError("ema", self.ema, "below 1: the averaged weights would never change")
        if self.variant == "full" and self.tokens is not None:
            raise ConfigError(
                "tokens", self.tokens, "nothing: variant full has a token for each of the encoder's"
            )
        if self.resolution is not None and self.resolution % 8:
            raise ConfigError("resolution", self.resolution, "a multiple of 8 pixels")

    def as_dict(self) -> dict[str, Any]:
        """All fields, defaults included."""
        return dataclasses.asdict(self)

    @property
    def hash(self) -> str:
        """Hex digest of what decides the outcome: paths, logging and saving apart."""
        aside = {
            "out",
            "cache",
            "cache_dir",
            "workers",
            "prefetch",
            "save_every",
            "keep",
            "tensorboard",
            "steps",
        }
        aside |= {row.name for row in dataclasses.fields(self) if row.name.startswith("sample_")}
        if self.schedule == "cosine":  # whose course the number of steps decides
            aside.remove("steps")
        kept = {name: value for name, value in self.as_dict().items() if name not in aside}
        return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()[:16]


def _checked(row: dataclasses.Field[Any], hint: Any, value: Any) -> Any:
    """``value`` as the row's type, or ConfigError."""
    kinds = get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    if value is None and type(None) in kinds:
        return None
    kind = next(k for k in kinds if k is not type(None))
    if kind is float and isinstance(value, str):  # YAML reads 1e-4 as text
        value = _number(value)
    if kind is float and type(value) is int:
        value = float(value)
    if type(value) is not kind or value != value:
        raise ConfigError(row.name, value, _expected(row, kind))
    if row.metadata["choices"] and value not in row.metadata["choices"]:
        raise ConfigError(row.name, value, _expected(row, kind))
    low, high = row.metadata["low"], row.metadata["high"]
    too_low = low is not None and (value <= low if row.metadata["above"] else value < low)
    if too_low or (high is not None and value > high):
        raise ConfigError(row.name, value, _expected(row, kind))
    return value


def _number(text: str) -> float | str:
    try:
        return float(text)
    except ValueError:
        return text


_KINDS = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}


def _expected(row: dataclasses.Field[Any], kind: type) -> str:
    meta = row.metadata
    if meta["choices"]:
        return " or ".join(meta["choices"])
    if meta["low"] is None:
        return _KINDS[kind]
    return f"{_KINDS[kind]} {'above' if meta['above'] else 'from'} {meta['low']:g} to {meta['high']:g}"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """CONFIG.yaml, and every field as a flag."""
    parser.add_argument(
        "config", nargs="?", type=Path, metavar="CONFIG.yaml", help="fields; flags win over it"
    )
    hints = get_type_hints(TrainConfig)
    for row in dataclasses.fields(TrainConfig):
        text = row.metadata["help"].replace("%", "%%")
        if row.default not in ("", None):
            text += f" (default: {str(row.default).lower() if row.type == 'bool' else row.default})"
        if hints[row.name] is bool:
            parser.add_argument(_flag(row.name), dest=row.name, action=argparse.BooleanOptionalAction, help=text,
                                default=None)  # fmt: skip
        else:
            choices = row.metadata["choices"] or None
            parser.add_argument(_flag(row.name), dest=row.name, choices=choices, metavar=None if choices else "X",
                                help=text)  # fmt: skip


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def from_arguments(args: argparse.Namespace) -> TrainConfig:
    """The file's fields, then the flags'. Raises ConfigError, FileError."""
    values = read_yaml(args.config) if args.config else {}
    hints = get_type_hints(TrainConfig)
    for row in dataclasses.fields(TrainConfig):
        given = getattr(args, row.name)
        if given is not None:
            values[row.name] = _from_text(hints[row.name], given)
    return TrainConfig.parse(values)


def _from_text(hint: Any, given: Any) -> Any:
    """A flag's text as the value that YAML would have given; a wrong one stays text, and is refused."""
    if not isinstance(given, str) or hint is str:
        return given
    if hint is float:
        return _number(given)
    try:
        return int(given)
    except ValueError:
        return given


def read_yaml(path: Path) -> dict[str, Any]:
    """A mapping of fields. Raises ConfigError."""
    import yaml

    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(
            "config", str(path), f"a file that can be read ({error.strerror or error})"
        ) from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError("config", str(path), f"plain YAML ({' '.join(str(error).split())[:160]})") from None
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise ConfigError("config", str(path), "a YAML mapping of fields to values")
    return content
