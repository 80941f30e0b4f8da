"""The methods of the table: one protocol, and those that generate with a local checkpoint."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import torch
from PIL import Image
from torch import Tensor

from ..adapters.adapter import Adapter
from ..adapters.file import open_adapter, sha256
from ..adapters.variant import VariantSpec
from ..attention.session import ImagePrompt
from ..cache import LRU
from ..encoders import Catalog, EncoderSource, Need
from ..errors import BrokenEncoder, EncoderMissing, FaceError, UnsupportedAdapter
from ..faces import FaceAnalyser
from ..faces.packs import DETECTOR
from ..pictures.picture import Pictures
from ..prompts.pipeline import Pipeline
from ..prompts.references import NoStore
from ..prompts.resolve import ResolvedUnit, resolve
from ..standalone import Standalone
from ..standalone.concat import image_tokens, is_concat, load_concat
from ..unit import Unit
from ..unit.fields import Reference
from .items import Item

BASE, TEXT = "base-model", "text"
_KEPT = 64  # prepared references a method keeps: those of a batch, over all λ


@dataclass(frozen=True)
class Job:
    """One picture to generate. digest: content hash of the reference; weight: λ, or None for a method without."""

    item: Item
    reference: Image.Image
    digest: str
    prompt: str
    weight: float | None
    seed: int


class Method(Protocol):
    """A method of the table, on whatever backend. ``name`` is unique, and names its folder of pictures.
    at_zero: the method that draws for λ = 0, or None for this one itself."""

    name: str
    at_zero: Method | None

    def weights(self, asked: Sequence[float]) -> Sequence[float | None]:
        """Those of the λ asked for that it can draw; [None] for a method without λ."""

    def prompt(self, item: Item, asked: str) -> str:
        """The text prompt of an item, where the others get ``asked``."""

    def settings(self) -> Mapping[str, Any]:
        """All that decides its pictures, but for reference, prompt, λ and seed; JSON-safe."""

    def draw(self, jobs: Sequence[Job]) -> list[Image.Image]:
        """A picture of each job; all of them have the same λ. Raises IPAdapterError."""


@dataclass(frozen=True)
class Studio:
    """A checkpoint and how it is sampled. identity: hashes of its files, as the settings keep them."""

    host: Standalone
    identity: Mapping[str, str]
    steps: int = 50
    cfg: float = 7.5
    negative: str = ""
    size: tuple[int, int] = (512, 512)

    @classmethod
    def load(cls, checkpoint: Path, config: Path, device: torch.device | str = "cpu",
             dtype: torch.dtype = torch.float32, prediction: str = "auto", **sampling: Any) -> Studio:  # fmt: skip
        """``sampling``: steps, cfg, negative, size. Raises FileError, ModelError."""
        host = Standalone.load(checkpoint, config, device, dtype, prediction)
        identity = {"checkpoint": sha256(checkpoint), "config": sha256(config) if os.path.isfile(config) else ""}
        said = {} if prediction == "auto" else {"prediction": prediction}
        return cls(host, {**identity, **said}, **sampling)

    def settings(self) -> dict[str, Any]:
        """All that decides its pictures."""
        return {
            **self.identity, "steps": self.steps, "cfg": self.cfg, "negative": self.negative,
            "size": "x".join(map(str, self.size)), "precision": str(self.host.dtype).removeprefix("torch."),
        }  # fmt: skip

    def draw(self, jobs: Sequence[Job], **options: Any) -> list[Image.Image]:
        """One batch; ``options`` as Standalone.generate has them."""
        return self.host.generate(
            [job.prompt for job in jobs], self.negative, steps=self.steps, cfg=self.cfg, size=self.size,
            seed=[job.seed for job in jobs], batch=len(jobs), **options,
        )  # fmt: skip


class BaseModel:
    """No adapter: λ = 0 of every adapter on this checkpoint."""

    at_zero: Method | None = None

    def __init__(self, studio: Studio) -> None:
        self.name, self.studio = BASE, studio

    def weights(self, asked: Sequence[float]) -> Sequence[float | None]:
        """Only 0."""
        return [weight for weight in asked if weight == 0]

    def prompt(self, item: Item, asked: str) -> str:
        """As asked."""
        return asked

    def settings(self) -> Mapping[str, Any]:
        """The checkpoint's."""
        return self.studio.settings()

    def draw(self, jobs: Sequence[Job]) -> list[Image.Image]:
        """The base model alone."""
        return self.studio.draw(jobs)


class TextBaseline(BaseModel):
    """No adapter, and a text that describes the reference in full: a field of metadata.jsonl."""

    def __init__(self, studio: Studio, field: str) -> None:
        super().__init__(studio)
        self.name, self.field = TEXT, field

    def weights(self, asked: Sequence[float]) -> Sequence[float | None]:
        """It has no λ."""
        return [None]

    def prompt(self, item: Item, asked: str) -> str:
        """The field. Raises ConfigError where it is absent."""
        return item.fill(f"{{{self.field}}}")


class Encoders:
    """Features for adapters of different encoders; each encoder stays loaded, and its file is known by hash."""

    def __init__(
        self, files: Sequence[Path], device: torch.device | str = "cpu", faces: FaceAnalyser | None = None
    ) -> None:
        self.faces = faces  # for adapters that take them
        self._catalog, self._device = Catalog(files), device
        self._sources: dict[str, EncoderSource] = {}
        self._hashes: dict[Path, str] = {}

    def source(self, spec: VariantSpec) -> EncoderSource:
        """The source of the encoder that ``spec`` takes. Raises EncoderMissing."""
        need = _of_clip(spec)
        name = self._catalog.name_of(need) if need else ""
        if name not in self._sources:
            self._sources[name] = EncoderSource(self._catalog, device=self._device)
        return self._sources[name]

    def identity(self, spec: VariantSpec) -> dict[str, str]:
        """Hashes of the files that make the features: the encoder's, with what a custom one's config says, the face
        models'. Raises EncoderError, FaceError."""
        files = {}
        if need := _of_clip(spec):
            found = self.source(spec).find(need)
            files["encoder"] = self._hash(found.path)
            if found.spec is not None and (config := found.spec.beside_weights):
                files["encoder_config"] = config
        if spec.of_face:
            if self.faces is None:
                raise FaceError(f"the adapter takes {spec.needs[0]}, and faces cannot be looked for here")
            self.faces.check(spec.needs[0].encoder)
            for role in (DETECTOR, spec.needs[0].encoder):
                files[role] = self._hash(self.faces.packs.find(role).path)
            if any(need.of == "bare face" for need in spec.needs):
                files["parsing"] = self._hash(self.faces.parser.find())
        return files

    def _hash(self, path: Path) -> str:
        if path not in self._hashes:
            self._hashes[path] = sha256(path)
        return self._hashes[path]


def _of_clip(spec: VariantSpec) -> Need | None:
    return next((need for need in spec.needs if not need.is_face), None)


class AdapterMethod:
    """An adapter file at any λ; at 0 the base model draws, for all adapters once."""

    def __init__(self, name: str, adapter: Adapter, base: BaseModel, encoders: Encoders, fit: str) -> None:
        self.name, self.adapter, self.fit = name, adapter, fit
        self.at_zero: Method | None = base
        self.studio, self.encoders = base.studio, encoders
        self._pictures, self._pipeline = Pictures(), Pipeline(encoders.source(adapter.spec), faces=encoders.faces)
        self._prepared: LRU[ImagePrompt] = LRU(lambda: _KEPT)
        self._identity = {
            "adapter": sha256(adapter.path),
            **encoders.identity(adapter.spec),
            "fit": fit,
        }

    def weights(self, asked: Sequence[float]) -> Sequence[float | None]:
        """All."""
        return asked

    def prompt(self, item: Item, asked: str) -> str:
        """As asked."""
        return asked

    def settings(self) -> Mapping[str, Any]:
        """The checkpoint's, and the hashes of adapter and encoder."""
        return {**self.studio.settings(), **self._identity}

    def draw(self, jobs: Sequence[Job]) -> list[Image.Image]:
        """One batch: a token set for each reference, and one for the uncond rows of all."""
        prompts = [self._prepare(job) for job in jobs]
        tokens = torch.cat([*(prompt.tokens[:1] for prompt in prompts), prompts[0].tokens[1:]])
        together = replace(prompts[0], tokens=tokens, weight=jobs[0].weight or 0.0, key=None)
        sets = [*range(len(jobs)), *[len(jobs)] * len(jobs)]
        return self.studio.draw(jobs, prompts=[together], sets=sets)

    def _prepare(self, job: Job) -> ImagePrompt:
        return self._prepared.get(job.digest, lambda: self._pipeline.prompt(self._resolved(job), self.adapter))

    def _resolved(self, job: Job) -> ResolvedUnit:
        unit = Unit(images=(Reference(job.reference),), model=self.name, fit=self.fit)
        return resolve(unit, NoStore(), self._pictures)


class ConcatMethod(AdapterMethod):
    """The paper's ablation: image tokens appended to the text tokens. It has no λ but 0 and 1."""

    def __init__(self, name: str, adapter: Adapter, base: BaseModel, encoders: Encoders, fit: str) -> None:
        super().__init__(name, adapter, base, encoders, fit)
        self._tokens: LRU[tuple[Tensor, Tensor]] = LRU(lambda: _KEPT)
        self._identity["attention"] = "concat"

    def weights(self, asked: Sequence[float]) -> Sequence[float | None]:
        """Those of 0 and 1."""
        return [weight for weight in asked if weight in (0, 1)]

    def draw(self, jobs: Sequence[Job]) -> list[Image.Image]:
        """One batch, tokens of each reference on its row."""
        both = [self._tokens.get(job.digest, lambda job=job: self._image_tokens(job)) for job in jobs]  # type: ignore[misc]
        cond, uncond = (torch.cat(list(part)) for part in zip(*both, strict=True))
        return self.studio.draw(jobs, appended=(cond, uncond))

    def _image_tokens(self, job: Job) -> tuple[Tensor, Tensor]:
        return image_tokens(self.adapter, self._resolved(job), self._pipeline)


def adapter_method(name: str, path: Path, base: BaseModel, encoders: Encoders, fit: str = "crop") -> AdapterMethod:
    """The method of an adapter file: decoupled, or the concat ablation, as its header says. Raises FileError,
    EncoderError."""
    concat = is_concat(open_adapter(path))
    load: Callable[[Path], Adapter] = load_concat if concat else Adapter.load
    adapter = load(path)
    if adapter.spec.posed:
        reason = "InstantID is drawn with its ControlNet, which evaluate does not run; measure it in a running WebUI"
        raise UnsupportedAdapter(path, f"{reason} (--webui URL --payload FILE)")
    try:
        encoders.source(adapter.spec)
    except EncoderMissing as error:
        raise BrokenEncoder(
            f"{path.name}: {error}; give its encoder by --encoder, with its open_clip config beside it"
        ) from None
    return (ConcatMethod if concat else AdapterMethod)(name, adapter, base, encoders, fit)
