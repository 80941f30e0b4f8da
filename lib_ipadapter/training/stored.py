"""What a training keeps in its caches: latents and features of each picture, and the tokens of each caption.

Captions have one row more than there are pictures: the last is the empty text, for which captions are dropped.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..adapters.file import sha256
from .base import Base, Text
from .cache import Cache
from .source import BrokenPicture, Source

if TYPE_CHECKING:
    from .feed import Feed

Kinds = dict[str, tuple[tuple[int, ...], str]]
# What of a diffusers folder texts and latents are made by
_PARTS = {
    "vae": ("vae/*.safetensors",), "text": ("text_encoder*/*.safetensors", "tokenizer*/*"),
}  # fmt: skip


def stored_dtype(feature: str, half: bool = True) -> str:
    """How the cache stores a kind of features: penultimate ones, a hundred times larger, in half precision."""
    return "float16" if feature == "penultimate" and half else "float32"


def filled(cache: Cache, world: Any, fill: Callable[[Cache, Sequence[int]], None]) -> Cache:
    """The cache with every row in it: each process fills a part of what is missing."""
    if world.is_main_process:
        cache.create()
    world.wait_for_everyone()
    missing = cache.missing()
    world.wait_for_everyone()  # before anyone fills rows in
    fill(cache, missing[world.process_index :: world.num_processes])
    world.wait_for_everyone()
    return cache


def made_by(base: Path, part: str) -> str:
    """Digest of the files of a base model that a part ("vae", "text") is in."""
    if base.is_file():
        return sha256(base)
    files = sorted({path for pattern in _PARTS[part] for path in base.glob(pattern) if path.is_file()})
    digest = hashlib.sha256()
    for path in files:
        digest.update(f"{path.relative_to(base).as_posix()}\0{sha256(path)}\n".encode())
    return digest.hexdigest() if files else str(base)


# pictures


def picture_cache(feed: Feed, folder: Path) -> Cache:
    """That of latents and features, not filled yet."""
    side = feed.resolution // feed.base.factor
    shapes: Kinds = {
        "moments": ((8, side, side), "float32"),
        "features": (tuple(feed.nothing.shape[1:]), stored_dtype(feed.feature, feed.config.cache_half)),
        "sizes": ((6,), "float32"),
    }
    base = Path(feed.config.base)
    inner = base if base.is_file() else base / "vae" / "diffusion_pytorch_model.safetensors"
    about = {
        "data": feed.source.fingerprint,
        "base": sha256(inner) if inner.is_file() else str(base),
        "encoder": feed.digest,
        "feature": feed.feature,
        "resolution": str(feed.resolution),
    }
    return Cache(folder, about, len(feed.source), shapes)


def fill_pictures(feed: Feed, cache: Cache, indices: Sequence[int]) -> None:
    """Encodes these pictures."""
    for group in _groups(feed, indices, "pictures"):
        ready: dict[int, dict[str, Tensor]] = {}
        for index in group:
            try:
                ready[index] = feed.preparation(feed.source.load(index))
            except BrokenPicture as error:
                cache.put_broken(index)
                feed.folder.broken(error.key, error.reason)
        if ready:
            rows = {name: torch.stack([r[name] for r in ready.values()]) for name in ("pixels", "reference", "sizes")}
            moments, features = feed.encode(rows["pixels"], rows["reference"])
            cache.put(list(ready), {"moments": moments, "features": features, "sizes": rows["sizes"]})


def _groups(feed: Feed, indices: Sequence[int], what: str) -> Iterator[Sequence[int]]:
    from tqdm import tqdm

    shown = feed.accelerator.is_main_process and bool(indices)
    batch = feed.config.batch
    with tqdm(total=len(indices), unit=what[:-1], desc=f"cache, {what}", disable=not shown) as bar:
        for first in range(0, len(indices), batch):
            group = indices[first : first + batch]
            yield group
            bar.update(len(group))


# captions


def text_cache(source: Source, base: Base, model: Path, folder: Path) -> Cache:
    """That of captions, not filled yet. Tokens are stored in the dtype in which the UNet takes them, so that nothing is
    lost."""
    kind = str(base.stored).removeprefix("torch.")
    empty = base.text([""])
    shapes: Kinds = {"tokens": (tuple(empty.tokens.shape[1:]), kind)}
    if empty.pooled is not None:
        shapes["pooled"] = (tuple(empty.pooled.shape[1:]), kind)
    digest = hashlib.sha256()
    for index in range(len(source)):
        digest.update(f"{_caption(source, index)!r}\n".encode())
    about = {"captions": digest.hexdigest(), "text encoder": made_by(model, "text")}
    return Cache(folder, about, len(source) + 1, shapes)


def _caption(source: Source, index: int) -> str | None:
    """None where it cannot be read; the empty text behind the last."""
    if index == len(source):
        return ""
    try:
        return source.caption(index)
    except BrokenPicture:
        return None


def fill_texts(feed: Feed, cache: Cache, indices: Sequence[int]) -> None:
    """Encodes these captions."""
    for group in _groups(feed, indices, "captions"):
        captions = {index: _caption(feed.source, index) for index in group}
        known = {index: caption for index, caption in captions.items() if caption is not None}
        for index in captions.keys() - known.keys():
            cache.put_broken(index)
        if known:
            text = feed.base.text(list(known.values()))
            rows = {"tokens": text.tokens} if text.pooled is None else {"tokens": text.tokens, "pooled": text.pooled}
            cache.put(list(known), rows)


def empty_text(cache: Cache, count: int) -> Text:
    """The row of the empty text, [1, ...]."""
    row = cache.get(count, "the empty text")
    return Text(row["tokens"][None], row["pooled"][None] if "pooled" in row else None)
