"""SDXL's text towers: their penultimate hidden states side by side, and the projected text of open_clip's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from ..encoders.configs import register_arch
from ..errors import ModelError
from .text import LENGTH, ClipText, TextTower, load, tokenize

HEAD = 64  # width of an attention head, in SDXL's UNet and both of its text towers


class _Said(Protocol):
    @property
    def arch(self) -> str: ...

    @property
    def folder(self) -> Any: ...


class PooledText(nn.Module):
    """open_clip's text tower as sgm uses it: (hidden state before the last block [B, 77, W], no norm; the text's
    embedding [B, P])."""

    def __init__(self, state: Mapping[str, Tensor], said: _Said, prefix: str) -> None:
        super().__init__()
        import open_clip

        config = _config(state, said, prefix)
        try:
            with torch.device("meta"):
                model: Any = open_clip.CLIP(**config)
        except Exception as error:  # open_clip raises all kinds on a config that it cannot build
            raise ModelError(f"{prefix}*: open_clip makes no CLIP of it ({error}); use another checkpoint") from error
        del model.visual
        load(model, state, prefix, optional=("logit_scale", "attn_mask"))
        self.register_buffer("mask", torch.full((LENGTH, LENGTH), float("-inf")).triu_(1), persistent=False)
        self.blocks = model.transformer.resblocks
        # open_clip before 2.24 takes the tokens first: [77, B, W]
        self.batch_first = bool(getattr(self.blocks[0].attn, "batch_first", False))
        self.embedding, self.norm = model.token_embedding, model.ln_final
        self.positions, self.projection = model.positional_embedding, model.text_projection
        self.eval().requires_grad_(False)

    @property
    def pooled_width(self) -> int:
        """Columns of the text's embedding."""
        return int(self.projection.shape[1])

    def forward(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """ids [B, 77], padded with 0."""
        x = self.embedding(ids) + self.positions
        x = x if self.batch_first else x.transpose(0, 1)
        before = x
        for block in self.blocks:
            before = x
            x = block(x, attn_mask=self.mask)
        if not self.batch_first:
            before, x = before.transpose(0, 1), x.transpose(0, 1)
        ends = ids.argmax(dim=-1)  # the end of text is the highest id
        return before, self.norm(x)[torch.arange(len(ids), device=ids.device), ends] @ self.projection


def _config(state: Mapping[str, Tensor], said: _Said, prefix: str) -> dict[str, Any]:
    """open_clip's config: of the yaml's architecture, else of the tensors with heads of SDXL's width."""
    import open_clip

    if said.arch:
        own = said.folder / f"{said.arch}.json"
        if own.is_file():
            register_arch(own)
        known: dict[str, Any] | None = open_clip.get_model_config(said.arch)
        if known is not None:
            return known
    try:
        vocabulary, width = state["token_embedding.weight"].shape
        embed = state["text_projection"].shape[1]
    except KeyError as error:
        raise ModelError(f"{prefix}* has no {error}; use a whole SDXL checkpoint") from None
    layers = len({key.split(".")[2] for key in state if key.startswith("transformer.resblocks.")})
    return {
        "embed_dim": embed,
        "vision_cfg": {"image_size": 32, "layers": 1, "width": HEAD, "patch_size": 32},
        "text_cfg": {
            "context_length": LENGTH, "vocab_size": vocabulary, "width": width, "heads": max(1, width // HEAD),
            "layers": layers,
        },
    }  # fmt: skip


class SdxlText(TextTower):
    """All towers of a checkpoint, in their order."""

    def __init__(self, towers: Sequence[ClipText | PooledText]) -> None:
        super().__init__()
        self.towers = nn.ModuleList(towers)

    @property
    def pooled_width(self) -> int:
        """Columns of the text's embedding."""
        return next(tower.pooled_width for tower in self.towers if isinstance(tower, PooledText))

    def both(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """(tokens [B, 77, context], pooled [B, P])"""
        device = next(self.parameters()).device
        hidden: list[Tensor] = []
        pooled: Tensor | None = None
        for tower in self.towers:
            if isinstance(tower, PooledText):
                tokens, pooled = tower(tokenize(texts, pad_with_end=False).to(device))
            else:
                tokens = tower(tokenize(texts, pad_with_end=True).to(device))
            hidden.append(tokens)
        assert pooled is not None  # build_towers has checked it
        return torch.cat(hidden, dim=-1), pooled

    def encode(self, texts: Sequence[str]) -> Tensor:
        """The tokens."""
        return self.both(texts)[0]


def build_towers(state: Mapping[str, Tensor], said: _Said) -> SdxlText:
    """The towers of a checkpoint's tensors (keys below conditioner.embedders.). Raises ModelError."""
    towers: list[ClipText | PooledText] = []
    for number in sorted({key.partition(".")[0] for key in state}, key=int):
        own = {key.partition(".")[2]: _float(value) for key, value in state.items() if key.partition(".")[0] == number}
        below = {key.partition(".")[2]: value for key, value in own.items() if key.startswith("model.")}
        if below:
            towers.append(PooledText(below, said, f"conditioner.embedders.{number}.model."))
        elif any(key.startswith("transformer.") for key in own):
            layers = {key.split(".encoder.layers.")[1].split(".")[0] for key in own if ".encoder.layers." in key}
            towers.append(ClipText({"layer": "hidden", "layer_idx": len(layers) - 1}, own))
    if not any(isinstance(tower, PooledText) for tower in towers):
        raise ModelError(
            "no text tower of open_clip's in conditioner.embedders.*, whose text SDXL takes as a condition; use a "
            "whole SDXL checkpoint"
        )
    return SdxlText(towers)


def _float(value: Tensor) -> Tensor:
    return value.float() if value.is_floating_point() else value
