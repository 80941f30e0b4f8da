"""What a training keeps in its caches: latents and features of each picture, and the tokens of each caption.

Captions have one row more than there are pictures: the last is the empty text, for which captions are dropped.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..adapters.file import sha256
from .base import Text
from .buckets import Size
from .cache import Cache
from .data import Preparation
from .encoding import Encoding
from .run_folder import RunFolder
from .source import BrokenPicture, Source

Kinds = dict[str, tuple[tuple[int, ...], str]]
SIZES: Kinds = {"size": ((2,), "float32")}
Fill = Callable[[Cache, Sequence[int]], None]
# Of a diffusers folder
_TEXT_FILES, _TEXT_PICKLES = ("text_encoder*/*.safetensors", "tokenizer*/*"), "text_encoder*/*.bin"
_VAE_FILES = ("vae/*.safetensors", "vae/*.bin", "vae/config.json")


def stored_dtype(feature: str, half: bool = True) -> str:
    """How the cache stores a kind of features: penultimate ones, a hundred times larger, in half precision."""
    return "float16" if "penultimate" in feature and half else "float32"


@dataclass(frozen=True)
class Storing:
    """Makes caches in ``place``. world: the accelerator, each of whose processes fills a part; folder: where broken
    pictures are listed; batch: rows that are encoded at a time; model: the file or folder of the base."""

    source: Source
    encoding: Encoding
    world: Any
    folder: RunFolder
    place: Path
    batch: int
    model: Path

    def pictures(self, prepare: Preparation, half: bool) -> Cache:
        """Latents, features and sizes of every picture."""
        encoding = self.encoding
        side = prepare.resolution // encoding.base.factor
        areas = [width * height // encoding.base.factor**2 for width, height in prepare.buckets]
        shapes: Kinds = {
            "moments": ((8 * max(areas),) if areas else (8, side, side), "float32"),
            "sizes": ((6,), "float32"),
        }
        if not prepare.augmentation.of_reference:
            shapes["features"] = tuple(encoding.nothing.shape[1:]), stored_dtype(encoding.kept, half)
        about = {
            "data": self.source.fingerprint,
            "base": self._latents_digest(),
            "encoder": encoding.digest,
            "feature": encoding.kept,
            "resolution": str(prepare.resolution),
            **({"encoder's config": encoding.config} if encoding.config else {}),
            **({"buckets": str(prepare.buckets)} if prepare.buckets else {}),
            **({"features": "not kept"} if prepare.augmentation.of_reference else {}),
        }
        cache = Cache(self.place, about, len(self.source), shapes)
        return self._filled(cache, lambda cache, indices: self._fill_pictures(prepare, cache, indices))

    def _fill_pictures(self, prepare: Preparation, cache: Cache, indices: Sequence[int]) -> None:
        for group in self._groups(indices, "pictures"):
            ready: dict[int, dict[str, Tensor]] = {}
            for index in group:
                try:
                    # A caption that cannot be read is looked at again each time: it may be mended.
                    ready[index] = prepare(self.source.pictures(index))
                except BrokenPicture as error:
                    cache.put_broken(index)
                    self.folder.broken(error.key, error.reason)
            for shape in dict.fromkeys(tensors["pixels"].shape for tensors in ready.values()):
                alike = {index: tensors for index, tensors in ready.items() if tensors["pixels"].shape == shape}
                cache.put(list(alike), self._encoded(list(alike.values()), prepare))

    def _encoded(self, ready: Sequence[dict[str, Tensor]], prepare: Preparation) -> dict[str, Tensor]:
        """The cache's rows of prepared pictures of one size. What is augmented is not among them."""
        pixels, references, sizes = (
            torch.stack([tensors[name] for tensors in ready]) for name in ("pixels", "reference", "sizes")
        )
        moments = self.encoding.base.moments(pixels)
        rows = {"moments": moments.flatten(1) if prepare.buckets else moments, "sizes": sizes}
        if not prepare.augmentation.of_reference:
            rows["features"] = self.encoding.features(references)
        return rows

    def sizes(self) -> list[Size | None]:
        """(width, height) of every target, None of those that cannot be read."""
        cache = Cache(self.place, {"data": self.source.fingerprint, "what": "sizes"}, len(self.source), SIZES)
        self._filled(cache, self._fill_sizes)
        found: list[Size | None] = []
        for index in range(len(self.source)):
            try:
                width, height = cache.get(index, "")["size"].tolist()
                found.append((int(width), int(height)))
            except BrokenPicture:
                found.append(None)
        return found

    def _fill_sizes(self, cache: Cache, indices: Sequence[int]) -> None:
        for group in self._groups(indices, "sizes"):
            known: dict[int, Size] = {}
            for index in group:
                try:
                    known[index] = self.source.size(index)
                except BrokenPicture as error:
                    cache.put_broken(index)
                    self.folder.broken(error.key, error.reason)
            if known:
                cache.put(list(known), {"size": torch.tensor(list(known.values()), dtype=torch.float32)})

    def texts(self) -> Cache:
        """Tokens of every caption, in the dtype in which the UNet takes them, so that nothing is lost."""
        base = self.encoding.base
        kind = str(base.stored).removeprefix("torch.")
        empty = base.text([""])
        shapes: Kinds = {"tokens": (tuple(empty.tokens.shape[1:]), kind)}
        if empty.pooled is not None:
            shapes["pooled"] = (tuple(empty.pooled.shape[1:]), kind)
        digest = hashlib.sha256()
        for index in range(len(self.source)):
            digest.update(f"{self._caption(index)!r}\n".encode())
        about = {"captions": digest.hexdigest(), "text encoder": self._text_digest()}
        return self._filled(Cache(self.place, about, len(self.source) + 1, shapes), self._fill_texts)

    def _latents_digest(self) -> str:
        """Of what makes latents."""
        usual = self.model / "vae" / "diffusion_pytorch_model.safetensors"
        if self.model.is_file() or usual.is_file():
            return sha256(self.model if self.model.is_file() else usual)
        return self._digest(_VAE_FILES)

    def _text_digest(self) -> str:
        if self.model.is_file():
            return sha256(self.model)
        usual = any(self.model.glob(_TEXT_FILES[0]))
        return self._digest(_TEXT_FILES if usual else (*_TEXT_FILES, _TEXT_PICKLES))

    def _digest(self, patterns: Sequence[str]) -> str:
        """Of files of a diffusers folder, by name and content."""
        digest = hashlib.sha256()
        for path in sorted(p for pattern in patterns for p in self.model.glob(pattern) if p.is_file()):
            digest.update(f"{path.relative_to(self.model).as_posix()}\0{sha256(path)}\n".encode())
        return digest.hexdigest()

    def _caption(self, index: int) -> str | None:
        """None where it cannot be read; the empty text behind the last."""
        if index == len(self.source):
            return ""
        try:
            return self.source.caption(index)
        except BrokenPicture:
            return None

    def _fill_texts(self, cache: Cache, indices: Sequence[int]) -> None:
        for group in self._groups(indices, "captions"):
            captions = {index: self._caption(index) for index in group}
            known = {index: caption for index, caption in captions.items() if caption is not None}
            for index in captions.keys() - known.keys():
                cache.put_broken(index)
            if known:
                text = self.encoding.base.text(list(known.values()))
                pooled = {} if text.pooled is None else {"pooled": text.pooled}
                cache.put(list(known), {"tokens": text.tokens, **pooled})

    def _groups(self, indices: Sequence[int], what: str) -> Iterator[Sequence[int]]:
        from tqdm import tqdm

        shown = self.world.is_main_process and bool(indices)
        with tqdm(total=len(indices), unit=what[:-1], desc=f"cache, {what}", disable=not shown) as bar:
            for first in range(0, len(indices), self.batch):
                group = indices[first : first + self.batch]
                yield group
                bar.update(len(group))

    def _filled(self, cache: Cache, fill: Fill) -> Cache:
        if self.world.is_main_process:
            cache.create()
        self.world.wait_for_everyone()
        missing = cache.missing()
        self.world.wait_for_everyone()  # before anyone fills rows in
        fill(cache, missing[self.world.process_index :: self.world.num_processes])
        self.world.wait_for_everyone()
        return cache


def empty_text(cache: Cache, count: int) -> Text:
    """The row of the empty text behind ``count`` captions, [1, ...]."""
    row = cache.get(count, "the empty text")
    return Text(row["tokens"][None], row["pooled"][None] if "pooled" in row else None)


def latents(flat: Tensor, sizes: Tensor, factor: int) -> Tensor:
    """Moments [8, h, w] of a row [N] of the cache whose pictures have sizes of their own. sizes [6]: of SDXL, of which
    the last two are the target's height and width, pixels."""
    height, width = (int(side) // factor for side in sizes[4:].tolist())
    return flat[: 8 * height * width].view(8, height, width)
