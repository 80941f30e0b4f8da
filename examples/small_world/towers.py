"""Training of CLIP's two towers: jointly on images and captions, then each alone. Parts of train.py."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor

from lib_ipadapter.encoders.spec import CLIP_MEAN, CLIP_STD
from lib_ipadapter.pictures import images
from lib_ipadapter.standalone.text import tokenize

from . import data, loop, models

Indices = NDArray[np.int64]


def train_clip(run: Path, steps: int) -> None:
    """CLIP's symmetric cross-entropy over batches of 256, half of the captions naming all attributes."""
    torch.manual_seed(0)
    model = models.make_clip()
    small, scenes = clip_pictures(run, model.visual.image_size[0]), loop.scenes()

    def loss_of(step: int, indices: Indices, rng: np.random.Generator) -> Tensor:
        seen = model.encode_image(clip_pixels(small[indices]))
        return contrast(model, seen, [scenes[i] for i in indices], rng)

    save_clip(loop.Training("clip", model, run, steps, lr=1e-3, average=0.99).run(256, loss_of), models.CLIP_FILE)


class Named(torch.nn.Module):
    """A CLIP with a linear classification head per attribute on a feature of ``width``; the heads serve training
    only."""

    def __init__(self, clip: Any, width: int) -> None:
        super().__init__()
        self.clip = clip
        self.heads = torch.nn.ModuleDict({n: torch.nn.Linear(width, len(o)) for n, o in data.OPTIONS.items()})

    def loss(self, features: Tensor, said: Sequence[Mapping[str, str]]) -> Tensor:
        """Mean cross-entropy of the attributes. features: [B, width]; said: the attributes that count, by name."""
        losses = []
        for name, options in data.OPTIONS.items():
            rows = [row for row, names in enumerate(said) if name in names]
            if rows:
                wanted = torch.tensor([options.index(said[row][name]) for row in rows])
                losses.append(F.cross_entropy(self.heads[name](features[rows]), wanted))
        return torch.stack(losses).mean()


def shown(scene: data.Scene) -> dict[str, str]:
    """The attributes of an image with one object; {} for an image with two."""
    return asdict(scene.things[0]) if len(scene.things) == 1 else {}


def train_vision(run: Path, steps: int) -> None:
    """Continues CLIP on batches of a single colour, in which only shape and position tell images apart, and with
    attribute heads: from captions alone it learns shapes slowly. Only the last block of the text tower is trained."""
    clip = models.make_clip()
    clip.load_state_dict(loop.trained(run, "clip"))
    clip.token_embedding.requires_grad_(False)
    clip.positional_embedding.requires_grad_(False)
    clip.transformer.resblocks[:-1].requires_grad_(False)
    torch.manual_seed(0)
    model = Named(clip, clip.visual.output_dim)
    small, scenes = clip_pictures(run, clip.visual.image_size[0]), loop.scenes()
    groups: dict[str, list[int]] = {colour: [] for colour in data.COLOURS}
    for index, scene in enumerate(scenes):
        if len(scene.things) == 1:
            groups[scene.things[0].colour].append(index)

    def loss_of(step: int, indices: Indices, rng: np.random.Generator) -> Tensor:
        if step % 2:
            colour = data.COLOURS[step // 2 % len(data.COLOURS)]
            indices = rng.choice(groups[colour], len(indices), replace=False)
        chosen = [scenes[i] for i in indices]
        # Shifted by a few pixels with wrap-around: the background has one colour.
        pixels = np.roll(small[indices], rng.integers(-2, 3, 2), axis=(1, 2))
        seen = clip.encode_image(clip_pixels(pixels))
        return contrast(clip, seen, chosen, rng) + 3 * model.loss(seen, [shown(scene) for scene in chosen])

    named = loop.Training("vision", model, run, steps, lr=1e-3, average=0.99).run(128, loss_of)
    save_clip(named.clip, models.CLIP_FILE)


def train_words(run: Path, steps: int) -> None:
    """Trains the text tower alone, on the features that the UNet gets. In its few steps CLIP hardly separates shapes,
    and a UNet cannot separate what the text tower does not. The tower learns to predict the named attributes from the
    last token and from the padding after it, because the UNet attends to all tokens."""
    clip = models.make_clip()
    clip.load_state_dict(loop.trained(run, "clip"))
    clip.visual.requires_grad_(False)
    torch.manual_seed(0)
    model = Named(clip, clip.ln_final.normalized_shape[0])
    scenes = [scene for scene in loop.scenes() if len(scene.things) == 1]

    def loss_of(step: int, indices: Indices, rng: np.random.Generator) -> Tensor:
        texts = captions([scenes[i % len(scenes)] for i in indices], rng)
        tokens = tokenize(texts, pad_with_end=False)
        ends = ends_of(tokens)
        behind = torch.from_numpy(rng.integers(ends, tokens.shape[1]))
        read = words_read(clip, tokens)
        features = torch.cat([at(read, ends), at(read, behind)])
        return model.loss(features, 2 * [data.named(text) for text in texts])

    loop.Training("words", model, run, steps, lr=1e-3, average=0.99).run(128, loss_of)


def words_read(clip: Any, tokens: Tensor) -> Tensor:
    """The text feature that the UNet gets for tokens [B, L]: the last block's input, normalised, [B, L, width]."""
    return read_text(clip, tokens, clip.transformer.resblocks[:-1])


def worded(run: Path) -> Any:
    """The CLIP whose text tower the UNet uses."""
    clip, state = models.make_clip(), loop.trained(run, "words")
    clip.load_state_dict({key.removeprefix("clip."): state[key] for key in state if key.startswith("clip.")})
    return clip


def clip_pictures(run: Path, side: int) -> NDArray[np.uint8]:
    """All images at CLIP's size: [PICTURES, side, side, 3]."""
    drawn = loop.pictures(run)
    return np.stack([np.asarray(images.fit(Image.fromarray(picture), side, "crop")) for picture in drawn])


def clip_pixels(pixels: NDArray[np.uint8]) -> Tensor:
    mean, std = (torch.tensor(x)[:, None, None] for x in (CLIP_MEAN, CLIP_STD))
    return ((loop.values(pixels) + 1) / 2 - mean) / std


def contrast(model: Any, seen: Tensor, scenes: Sequence[data.Scene], rng: np.random.Generator) -> Tensor:
    """CLIP's symmetric cross-entropy between image embeddings [B, width] and captions of the same scenes."""
    seen, read = F.normalize(seen, dim=-1), F.normalize(encode_text(model, captions(scenes, rng)), dim=-1)
    return both_ways(model.logit_scale.exp().clamp(max=100) * seen @ read.T)


def captions(scenes: Sequence[data.Scene], rng: np.random.Generator) -> list[str]:
    """One caption per scene; every other one names all attributes."""
    return [data.caption(scene, rng if n % 2 else None) for n, scene in enumerate(scenes)]


def both_ways(logits: Tensor) -> Tensor:
    """Symmetric cross-entropy of logits [B, B]; row i matches column i."""
    target = torch.arange(len(logits))
    return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2


def encode_text(model: Any, texts: Sequence[str]) -> Tensor:
    """``model.encode_text``, cut at the end of the longest text: attention is causal, so the padding changes
    nothing."""
    tokens = tokenize(texts, pad_with_end=False)
    ends = ends_of(tokens)
    read = read_text(model, tokens[:, : int(ends.max()) + 1], model.transformer.resblocks)
    embedding: Tensor = at(read, ends) @ model.text_projection
    return embedding


def read_text(model: Any, tokens: Tensor, blocks: Iterable[torch.nn.Module]) -> Tensor:
    """Output of these blocks and the last norm for tokens [B, L]: [B, L, width]."""
    length = tokens.shape[1]
    x = model.token_embedding(tokens) + model.positional_embedding[:length]
    x = x.permute(1, 0, 2)
    for block in blocks:
        x = block(x, attn_mask=model.attn_mask[:length, :length])
    read: Tensor = model.ln_final(x.permute(1, 0, 2))
    return read


def ends_of(tokens: Tensor) -> Tensor:
    """Position of the end token (the largest id) of each text in tokens [B, L]."""
    return tokens.argmax(-1)


def at(read: Tensor, places: Tensor) -> Tensor:
    """One position of each row of features [B, L, width]: [B, width]."""
    return read[torch.arange(len(read)), places]


def save_clip(clip: torch.nn.Module, path: Path) -> None:
    """Saves both towers in float16."""
    state = {key: value.half().contiguous() for key, value in clip.state_dict().items() if key != "attn_mask"}
    save_file(state, path)
