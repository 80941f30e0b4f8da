"""Text towers of SD1.x (transformers' CLIP) and SD2.x (open_clip), built without a hub."""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..encoders.configs import register_arch
from ..encoders.state import assign
from ..errors import ModelError, UnsupportedModel
from .config import TRANSFORMERS, Config

LENGTH = 77
TEXT_TOWERS = "IPADAPTER_TEXT_TOWERS"  # variable: further folders with configs of text towers, as in PATH


def build_text(config: Config, state: Mapping[str, Tensor]) -> TextTower:
    """The tower that the config names, with the checkpoint's tensors (keys below cond_stage_model.)."""
    if config.text_target == TRANSFORMERS:
        return ClipText(config.text, state)
    named = os.environ.get(TEXT_TOWERS, "").split(os.pathsep)
    for folder in (config.folder, *(Path(one) for one in named if one)):
        own = folder / f"{config.text.get('arch')}.json"
        if own.is_file():
            register_arch(own)
            break
    return OpenClipText(config.text, state)


@lru_cache(maxsize=1)
def _tokenizer() -> Any:
    from open_clip.tokenizer import SimpleTokenizer

    return SimpleTokenizer()


def tokenize(texts: Sequence[str], pad_with_end: bool) -> Tensor:
    """Token ids [B, 77]: start, text, end, then end again (SD1) or 0 (SD2). Longer texts are cut, with a warning."""
    tokenizer = _tokenizer()
    start, end = tokenizer.all_special_ids[:2]
    out = torch.full((len(texts), LENGTH), end if pad_with_end else 0, dtype=torch.long)
    for row, text in zip(out, texts, strict=True):
        ids = tokenizer.encode(text)
        if len(ids) > LENGTH - 2:
            warnings.warn(f"prompt of {len(ids)} tokens is cut after {LENGTH - 2}", stacklevel=2)
        ids = [start, *ids[: LENGTH - 2], end]
        row[: len(ids)] = torch.tensor(ids)
    return out


class TextTower(nn.Module):
    """Texts to tokens for cross-attention."""

    pad_with_end = False

    def encode(self, texts: Sequence[str]) -> Tensor:
        """[B, 77, context]"""
        device = next(self.parameters()).device
        tokens: Tensor = self(tokenize(texts, self.pad_with_end).to(device))
        return tokens


class ClipText(TextTower):
    """ldm's FrozenCLIPEmbedder: transformers' CLIPTextModel, its size read off the tensors."""

    pad_with_end = True

    def __init__(self, params: Mapping[str, Any], state: Mapping[str, Tensor]) -> None:
        super().__init__()
        from transformers import CLIPTextModel

        self.layer, self.index = params.get("layer", "last"), params.get("layer_idx")
        if self.layer not in ("last", "hidden") or (self.layer == "hidden" and self.index is None):
            raise UnsupportedModel(f"text layer is {self.layer}, expected last, or hidden with layer_idx")
        state = {_standard(key): value for key, value in state.items() if not key.endswith("position_ids")}
        with torch.device("meta"):
            model: Any = CLIPTextModel(_clip_config(state))
        inner = getattr(model, "text_model", model)  # transformers 5 has no text_model between
        state = {key.removeprefix("text_model."): value for key, value in state.items()}
        load(inner, state, "cond_stage_model.transformer.text_model.", optional=("position_ids",))
        # A buffer that counts 0, 1, ...; stored in some checkpoints, as floats in a few
        inner.embeddings.position_ids = torch.arange(LENGTH)[None]
        self.transformer = model.eval().requires_grad_(False)

    def forward(self, ids: Tensor) -> Tensor:
        """ids [B, 77] to [B, 77, context]"""
        out = self.transformer(input_ids=ids, output_hidden_states=self.layer == "hidden")
        hidden: Tensor = out.last_hidden_state if self.layer == "last" else out.hidden_states[self.index]
        return hidden


def _standard(key: str) -> str:
    key = key[len("transformer.") :] if key.startswith("transformer.") else key
    return key if key.startswith("text_model.") else f"text_model.{key}"


def _clip_config(state: Mapping[str, Tensor]) -> Any:
    from transformers import CLIPTextConfig

    try:
        vocabulary, width = state["text_model.embeddings.token_embedding.weight"].shape
        inner = state["text_model.encoder.layers.0.mlp.fc1.weight"].shape[0]
    except KeyError as error:
        raise ModelError(f"the checkpoint has no {error} below cond_stage_model; does the yaml belong to it?") from None
    layers = {key.split(".")[3] for key in state if key.startswith("text_model.encoder.layers.")}
    return CLIPTextConfig(
        vocab_size=vocabulary,
        hidden_size=width,
        intermediate_size=inner,
        num_hidden_layers=len(layers),
        num_attention_heads=max(1, width // 64),
        max_position_embeddings=LENGTH,
        hidden_act="quick_gelu",
    )


class OpenClipText(TextTower):
    """ldm's FrozenOpenCLIPEmbedder: open_clip's text tower of the config's arch."""

    def __init__(self, params: Mapping[str, Any], state: Mapping[str, Tensor]) -> None:
        super().__init__()
        import open_clip

        arch, layer = str(params.get("arch", "ViT-H-14")), params.get("layer", "last")
        config = open_clip.get_model_config(arch)
        if config is None or layer not in ("last", "penultimate"):
            raise UnsupportedModel(
                f"text tower {arch}, layer {layer}: expected an open_clip architecture, or {arch}.json beside the "
                "yaml, and last or penultimate"
            )
        model: Any
        try:
            with torch.device("meta"):
                model = open_clip.CLIP(**config)
        except Exception as error:  # open_clip raises all kinds on a config that it cannot build
            raise ModelError(
                f"text tower {arch}: open_clip makes no CLIP of its config ({error}); use the config that the "
                "checkpoint was made with"
            ) from error
        del model.visual
        state = {key[len("model.") :]: value for key, value in state.items() if key.startswith("model.")}
        blocks = model.transformer.resblocks
        if layer == "penultimate":  # the last block takes no part, and may be missing
            unused = f"transformer.resblocks.{len(blocks) - 1}."
            state = {key: value for key, value in state.items() if not key.startswith(unused)}
            del blocks[-1]
        load(model, state, "cond_stage_model.model.", optional=("logit_scale", "text_projection", "attn_mask"))
        self.register_buffer("mask", torch.full((LENGTH, LENGTH), float("-inf")).triu_(1), persistent=False)
        self.blocks = blocks
        # open_clip before 2.24 takes the tokens first: [77, B, context]
        self.batch_first = bool(getattr(blocks[0].attn, "batch_first", False))
        self.embedding, self.norm = model.token_embedding, model.ln_final
        self.positions = model.positional_embedding
        self.eval().requires_grad_(False)

    def forward(self, ids: Tensor) -> Tensor:
        """ids [B, 77] to [B, 77, context]"""
        x = self.embedding(ids) + self.positions
        x = x if self.batch_first else x.transpose(0, 1)
        for block in self.blocks:
            x = block(x, attn_mask=self.mask)
        out: Tensor = self.norm(x if self.batch_first else x.transpose(0, 1))
        return out


def load(module: nn.Module, state: Mapping[str, Tensor], prefix: str, optional: tuple[str, ...] = ()) -> None:
    """Puts tensors into a module that was made on the meta device. Raises ModelError on any difference."""
    own = module.state_dict()
    left = {key: value for key, value in state.items() if key.rpartition(".")[2] not in optional}
    missing = [key for key in own if key not in left and key.rpartition(".")[2] not in optional]
    wrong = [k for k, v in left.items() if k not in own or own[k].shape != v.shape]
    if missing or wrong:
        names = ", ".join(f"{prefix}{key}" for key in [*missing, *wrong][:4])
        raise ModelError(
            f"the checkpoint does not fit its yaml: {len(missing)} keys missing, {len(wrong)} unknown or of "
            f"another shape ({names}, ...); give the yaml that belongs to the checkpoint"
        )
    assign(module, {**own, **left})
