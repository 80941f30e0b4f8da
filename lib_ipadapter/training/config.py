"""TrainConfig: everything that decides a training, from a YAML file and flags, checked once.

Each field is declared once; the flags, the checks, the resolved file, its hash and docs/training.md follow from it.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .. import options
from ..errors import ConfigError
from ..options import choice, number, string, switch, whole
from ..standalone.options import PREDICTION_HELP, PREDICTIONS
from . import stages

FILES, ADAPTER, TRAINING, AUGMENTATION, LOADING, OUTPUT = (
    "Files", "Adapter", "Training", "Augmentation", "Loading", "Checkpoints and samples",
)  # fmt: skip
_FOREVER = 100_000_000  # steps


@dataclass(frozen=True)
class TrainConfig:
    """A training, as asked for. Paths as given, relative to the working folder."""

    base: str = string(
        "",
        "The frozen base model: a checkpoint file of SD1.x, SD2.x or SDXL, or a diffusers folder.",
        required=True,
        hint="a path",
        metavar="PATH",
        group=FILES,
    )
    base_config: str = string(
        "",
        "YAML of the checkpoint; without it, the file of the same name beside it. SDXL needs none.",
        metavar="FILE",
        group=FILES,
    )
    prediction: str = choice("auto", PREDICTION_HELP, PREDICTIONS, group=FILES)
    data: str = string(
        "",
        "Folder of pictures with captions (.txt beside each, or metadata.jsonl), or .tar shards.",
        required=True,
        hint="a path",
        metavar="PATH",
        group=FILES,
    )
    encoder: str = string(
        "",
        "Weight file of the image encoder, or its name, of a file in models/clip_vision; variant faceid has none, "
        "faceid-plus and -plusv2 have ViT-H.",
        hint="the weight file of an image encoder",
        metavar="FILE",
        group=FILES,
    )
    face_models: str = string(
        "",
        "Variants of faces: folder with InsightFace's buffalo_l, or its archive. Default: ~/.insightface.",
        metavar="FOLDER",
        group=FILES,
    )
    out: str = string(
        "",
        "The run's folder. An interrupted run in it is resumed.",
        required=True,
        hint="a path",
        metavar="FOLDER",
        group=FILES,
    )
    init: str = string("", "Adapter file whose training is continued.", metavar="FILE", group=FILES)
    init_layers: str = string(
        "", "Adapter file of any variant whose K' and V' weights are the start.", metavar="FILE", group=FILES
    )
    variant: str = choice(
        "base",
        "Projection: base (pooled embedding), plus (resampler), full (MLP over all tokens), faceid (MLP over the "
        "embedding of a face), faceid-plus and faceid-plusv2 (a resampler over the face's aligned crop, too).",
        ("base", "plus", "full", "faceid", "faceid-plus", "faceid-plusv2"),
        group=ADAPTER,
    )
    attention: str = choice(
        "decoupled",
        "decoupled: image tokens have K', V' of their own. concat: they are appended to the text tokens "
        "(the paper's ablation).",
        ("decoupled", "concat"),
        group=ADAPTER,
    )
    tokens: int | None = whole(
        None,
        "Image tokens. Default: 4 for base and faces, 16 for plus; full has as many as the encoder.",
        1,
        1024,
        group=ADAPTER,
    )
    lora_rank: int = whole(
        128, "Variants of faces: rank of the LoRA on self- and cross-attention that is trained along; 0: none.",
        0, 4096, group=ADAPTER,
    )  # fmt: skip
    resampler_dim: int = whole(768, "plus: width of the resampler, 64 for each head.", 64, 8192, group=ADAPTER)
    resampler_depth: int = whole(
        4, "plus, faceid-plus and -plusv2: layers of the resampler; diffusers reads 4 only.", 1, 32, group=ADAPTER
    )
    resampler_heads: int = whole(12, "plus: attention heads, each of width 64.", 1, 128, group=ADAPTER)
    resolution: int | None = whole(None, "Pixels, a multiple of 8. Default: 512, SDXL 1024.", 32, 4096, group=TRAINING)
    steps: int = whole(100_000, "Optimizer steps in all.", 1, _FOREVER, group=TRAINING)
    batch: int = whole(8, "Pictures per process and micro step.", 1, 65_536, group=TRAINING)
    stages: str = string(
        "",
        "Several resolutions, one after the other, instead of resolution, steps and batch: 512px x 200000steps x 16, "
        "1024px x 50000steps x 4; in YAML also a list of mappings with resolution, steps and batch. A stage that ends "
        "in square (square: true) has no buckets.",
        metavar="STAGES",
        group=TRAINING,
    )
    buckets: bool = switch(
        False,
        "Pictures keep their shape: each is cut to the nearest size of about resolution² pixels.",
        group=TRAINING,
    )
    bucket_step: int = whole(64, "Sides of the buckets are multiples of this many pixels.", 8, 1024, group=TRAINING)
    accumulate: int = whole(1, "Micro steps per optimizer step.", 1, 65_536, group=TRAINING)
    optimizer: str = choice(
        "adamw",
        "adamw8bit (bitsandbytes): its state in 8 bits; prodigy (prodigyopt): finds the rate itself, lr is 1; "
        "schedule-free (schedulefree): AdamW whose saved weights are an average, without a schedule.",
        ("adamw", "adamw8bit", "prodigy", "schedule-free"),
        group=TRAINING,
    )
    lr: float = number(1e-4, "Learning rate.", 0, 1, above=True, group=TRAINING)
    weight_decay: float = number(0.01, "Weight decay.", 0, 1, group=TRAINING)
    warmup: int = whole(0, "Steps over which the learning rate rises.", 0, _FOREVER, group=TRAINING)
    schedule: str = choice("constant", "Learning rate after the warm-up.", ("constant", "cosine"), group=TRAINING)
    weighting: str = choice(
        "none",
        "Loss weight of the timesteps: min-snr gives low noise less weight, debiased gives high noise more.",
        ("none", "min-snr", "debiased"),
        group=TRAINING,
    )
    noise_offset: float = number(
        0.0, "Strength of noise that is the same all over a channel, for dark and bright pictures.", 0, 1,
        group=TRAINING,
    )  # fmt: skip
    max_norm: float = number(1.0, "Gradients are clipped to this norm; 0: never.", 0, 1e9, group=TRAINING)
    ema: float = number(
        0.0, "Decay of the averaged weights that are saved; 0: none; 0.9999 is common.", 0, 1, group=TRAINING
    )
    precision: str = choice("no", "Mixed precision.", ("no", "bf16", "fp16"), group=TRAINING)
    storage: str = choice(
        "auto",
        "How the frozen UNet's weights are kept: auto, as it computes; bf16 or fp8 (e4m3): each layer's are converted "
        "as they are used.",
        ("auto", "bf16", "fp8"),
        group=TRAINING,
    )
    compile: bool = switch(
        False, "Compile the frozen UNet's blocks (torch.compile): minutes at the start, faster steps on a GPU.",
        group=TRAINING,
    )  # fmt: skip
    checkpointing: bool = switch(False, "Gradient checkpointing: less memory, more time.", group=TRAINING)
    drop_image: float = number(0.05, "Fraction of the pictures whose image prompt is dropped.", 0, 1, group=TRAINING)
    drop_text: float = number(0.05, "Fraction of the pictures whose text is dropped.", 0, 1, group=TRAINING)
    drop_both: float = number(0.05, "Fraction of the pictures of which both are dropped.", 0, 1, group=TRAINING)
    flip: float = number(0.0, "Fraction of the pictures that are mirrored.", 0, 1, group=AUGMENTATION)
    random_crop: bool = switch(
        False, "Cut the target anywhere instead of in the middle; SDXL is told where.", group=AUGMENTATION
    )
    reference_crop: float = number(
        1.0, "The encoder sees a random part of the reference, of at least this share of its area.", 0, 1, above=True,
        group=AUGMENTATION,
    )  # fmt: skip
    reference_flip: float = number(
        0.0, "Fraction of the references that are mirrored, their targets not.", 0, 1, group=AUGMENTATION
    )
    reference_colour: float = number(
        0.0, "How far brightness, contrast and saturation of the reference are changed: 0.2 is 0.8 to 1.2 times.", 0, 1,
        group=AUGMENTATION,
    )  # fmt: skip
    reference_background: float = number(
        0.0, "Fraction of the references with an alpha channel that are seen on a random colour, not on white.", 0, 1,
        group=AUGMENTATION,
    )  # fmt: skip
    cache: bool = switch(
        False, "Store latents and features on disk once; no encoder is needed afterwards.", group=LOADING
    )
    cache_text: bool = switch(
        False, "Store the captions' tokens on disk once, too; the text encoder then leaves the GPU.", group=LOADING
    )
    cache_half: bool = switch(
        True, "Features of plus, full and faceid-plus are cached in half precision; without, as exact as they are "
        "computed.",
        group=LOADING,
    )  # fmt: skip
    cache_dir: str = string("", "Where the cache is; without it, OUT/cache.", metavar="FOLDER", group=LOADING)
    seed: int = whole(0, "Seed of everything random.", 0, 2**63 - 1, group=LOADING)
    workers: int = whole(2, "Processes that load pictures; 0: none.", 0, 256, group=LOADING)
    prefetch: int = whole(2, "Batches that each worker loads ahead.", 1, 64, group=LOADING)
    save_every: int = whole(1000, "Steps between checkpoints.", 1, _FOREVER, group=OUTPUT)
    keep: int = whole(2, "Checkpoints that are kept.", 1, 10_000, group=OUTPUT)
    sample_every: int = whole(0, "Steps between grids of samples; 0: none.", 0, _FOREVER, group=OUTPUT)
    sample_references: str = string(
        "", "Folder of references for the samples; without it, the first four of the data.", metavar="FOLDER",
        group=OUTPUT,
    )  # fmt: skip
    sample_prompt: str = string("", "Text prompt of the samples.", group=OUTPUT)
    sample_steps: int = whole(25, "DDIM steps of a sample.", 1, 1000, group=OUTPUT)
    validation: str = string(
        "", "Folder of captioned pictures, or shards, on which the loss is measured and not learned.", metavar="PATH",
        group=OUTPUT,
    )  # fmt: skip
    validation_every: int = whole(500, "Steps between measurements of the validation loss.", 1, _FOREVER, group=OUTPUT)
    validation_count: int = whole(32, "Pictures of it, the first that can be read.", 1, 4096, group=OUTPUT)
    wandb: str = string(
        "", "Project of Weights & Biases that the run is reported to, where wandb is installed; without it, none.",
        metavar="PROJECT", group=OUTPUT,
    )  # fmt: skip
    tensorboard: bool = switch(True, "Write OUT/tensorboard, where tensorboard is installed.", group=OUTPUT)

    @classmethod
    def parse(cls, values: Mapping[str, Any]) -> TrainConfig:
        """Checks every field. Raises ConfigError."""
        numbers = {option.name: option for option in options.fields_of(cls) if option.kind == "number"}
        # YAML reads 1e-4 as text.
        read = {name: numbers[name].read(value) if name in numbers else value for name, value in values.items()}
        if "stages" in read:
            read["stages"] = stages.written(read["stages"])
        config = options.parse(cls, read)
        if config.stages:
            config = config._staged("steps" in values)
        config._check_together()
        return config

    def _staged(self, steps_given: bool) -> TrainConfig:
        """With the steps of all stages together."""
        rows = stages.read(self.stages)
        total = sum(row.steps for row in rows)
        if total > _FOREVER:
            raise ConfigError("stages", self.stages, f"at most {_FOREVER} steps in all, not {total}")
        if steps_given and self.steps != total:
            raise ConfigError("steps", self.steps, f"nothing, or {total}: the steps of all stages")
        if self.resolution is not None:
            raise ConfigError("resolution", self.resolution, "nothing: each of the stages has its own")
        return dataclasses.replace(self, stages=stages.text_of(rows), steps=total)

    def _check_together(self) -> None:
        if self.init_layers and (self.init or self.attention == "concat"):
            expected = "nothing: init brings its own K' and V', concat has none"
            raise ConfigError("init_layers", self.init_layers, expected)
        self._check_faces()
        self._check_augmentation()
        self._check_optimizer()
        if self.compile and self.storage != "auto":
            raise ConfigError("storage", self.storage, "auto with compile: weights are converted as they are used")
        if self.compile and self.checkpointing:
            raise ConfigError("checkpointing", True, "nothing with compile, whose blocks cannot be computed again")
        dropped = self.drop_image + self.drop_text + self.drop_both
        if dropped > 1:
            raise ConfigError("drop_image + drop_text + drop_both", dropped, "at most 1")
        if self.warmup > self.steps:
            raise ConfigError("warmup", self.warmup, f"at most steps, {self.steps}")
        if self.ema == 1:
            raise ConfigError("ema", self.ema, "below 1: the averaged weights would never change")
        if self.variant == "full" and self.tokens is not None:
            raise ConfigError("tokens", self.tokens, "nothing: variant full has a token for each of the encoder's")
        if self.resolution is not None and self.resolution % 8:
            raise ConfigError("resolution", self.resolution, "a multiple of 8 pixels")

    def _check_optimizer(self) -> None:
        if self.optimizer == "prodigy" and self.lr < 0.01:
            raise ConfigError("lr", self.lr, "1 for prodigy, which multiplies its own estimate by it")
        if self.optimizer == "schedule-free" and (self.schedule != "constant" or self.ema):
            name = "ema" if self.ema else "schedule"
            raise ConfigError(name, getattr(self, name), "nothing: schedule-free averages, and needs no schedule")

    def _check_augmentation(self) -> None:
        for name in ("flip", "random_crop"):
            if self.cache and getattr(self, name):
                raise ConfigError(name, getattr(self, name), "nothing with cache: latents are of the target as it is")
        for name in ("reference_crop", "reference_flip", "reference_colour", "reference_background"):
            if self.of_face and getattr(self, name) != _DEFAULTS[name]:
                raise ConfigError(name, getattr(self, name), f"nothing: variant {self.variant} sees the aligned face")

    def _check_faces(self) -> None:
        if self.variant != "faceid" and not self.encoder:
            raise ConfigError("encoder", self.encoder, "the weight file of an image encoder; it has no default")
        if self.variant == "faceid" and self.encoder:
            raise ConfigError("encoder", self.encoder, "nothing: variant faceid takes face_models")
        if self.of_face and not self.cache:
            raise ConfigError("cache", self.cache, f"true: variant {self.variant} finds and recognises faces once")
        if self.of_face and self.attention == "concat":
            raise ConfigError("attention", self.attention, f"decoupled, since variant is {self.variant}")

    @property
    def of_face(self) -> bool:
        """Whether the adapter takes faces."""
        return self.variant.startswith("faceid")

    def as_dict(self) -> dict[str, Any]:
        """All fields, defaults included."""
        return dataclasses.asdict(self)

    @property
    def hash(self) -> str:
        """Hex digest of the settings that decide the outcome. Not of paths, whose content counts (identity.py), nor of
        logging and saving; but of the cache, which stores features in half precision."""
        aside = {
            "out", "cache_dir", "base", "base_config", "data", "encoder", "init", "init_layers",
            "face_models", "workers", "prefetch", "save_every", "keep", "tensorboard", "wandb", "steps",
        }  # fmt: skip
        aside |= {row.name for row in dataclasses.fields(self) if row.name.startswith(("sample_", "validation"))}
        aside |= {name for name in _LATER if getattr(self, name) == _DEFAULTS[name]}
        if not self.of_face:  # so that trainings from before there was a LoRA go on
            aside.add("lora_rank")
        if self.schedule == "cosine":  # whose course the number of steps decides
            aside.remove("steps")
        if self.stages:  # of which the last may be made longer
            *before, last = stages.read(self.stages)
            text = stages.text_of([*before, last._replace(steps=0)])
            return self._digest({**self._kept(aside), "stages": text})
        return self._digest(self._kept(aside))

    def _kept(self, aside: set[str]) -> dict[str, Any]:
        return {name: value for name, value in self.as_dict().items() if name not in aside}

    @staticmethod
    def _digest(kept: Mapping[str, Any]) -> str:
        return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()[:16]


# Fields that came after the first release: at their default, trainings from before them go on.
_LATER = frozenset({
    "cache_text", "cache_half", "stages", "buckets", "bucket_step", "noise_offset", "flip", "random_crop", "optimizer",
    "storage", "prediction", "compile", "reference_crop", "reference_flip", "reference_colour", "reference_background",
})  # fmt: skip
_DEFAULTS = {row.name: row.default for row in dataclasses.fields(TrainConfig)}
