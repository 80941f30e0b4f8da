"""The paper's ablation, the simple adapter: image tokens appended to the text tokens, the base's own K, V.

A file of it has ``image_proj.*`` only, and ``attention: concat`` in its header. There is no λ.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import torch
from torch import Tensor

from ..adapters.adapter import Adapter
from ..adapters.file import AdapterFile, open_adapter
from ..adapters.variant import LAYERS, PROJECTION, Shapes, identify
from ..errors import BrokenAdapter, WrongBase
from ..prompts.pipeline import Pipeline
from ..prompts.resolve import ResolvedUnit

METADATA = {"attention": "concat"}  # of the header
# The last layer of each projection: its length is the context
_LAST = ("norm.weight", "norm_out.weight", "proj.3.weight")


def is_concat(file: AdapterFile) -> bool:
    """Whether a file's header says that it is one."""
    return file.metadata.get("attention") == "concat"


def load_concat(path: Path | str) -> Adapter:
    """The adapter in a file of the ablation: its spec has no layers (``widths`` is empty), its tokens are
    those of any adapter. Raises FileError."""
    file = open_adapter(path)
    if not is_concat(file):
        raise BrokenAdapter(
            file.path, f"its header says attention: {file.metadata.get('attention')}, expected concat; "
            "it is no file of the ablation",
        )  # fmt: skip
    layers = [key for key in file.shapes if key.startswith(LAYERS)]
    if layers:
        raise BrokenAdapter(
            file.path,
            f"its header says attention: concat, but it has K', V' ({layers[0]}, ...); one is wrong",
        )
    spec = identify({**file.shapes, **_one_layer(file.shapes, file.path)}, file.path, file.encoder, file.known)
    return Adapter(dataclasses.replace(spec, widths=()), file.tensors(), file.path)


def _one_layer(shapes: Shapes, path: Path) -> dict[str, tuple[int, ...]]:
    """K', V' of one layer as wide as the tokens, so that ``identify`` checks the projection of this file too."""
    context = next((shapes[k][0] for last in _LAST if shapes.get(k := f"{PROJECTION}{last}")), None)
    if context is None:
        raise BrokenAdapter(path, "no known image projection, or its last norm is missing; save it again")
    return {f"{LAYERS}1.{kind}.weight": (context, context) for kind in ("to_k_ip", "to_v_ip")}


def image_tokens(adapter: Adapter, resolved: ResolvedUnit, pipeline: Pipeline) -> tuple[Tensor, Tensor]:
    """(cond, uncond) tokens of a unit's references, each [1, T, context] float32."""
    tokens = pipeline.tokens(resolved, adapter)
    return tokens.cond, tokens.uncond


def append(text: Tensor, tokens: Tensor) -> Tensor:
    """Text tokens [B, 77, context] with image tokens [1 or B, T, context] behind. Raises WrongBase."""
    if tokens.shape[-1] != text.shape[-1]:
        raise WrongBase(
            f"image tokens are {tokens.shape[-1]} wide, the base model's text tokens {text.shape[-1]}; "
            "use an adapter that was trained on this base"
        )
    return torch.cat([text, tokens.to(text).expand(len(text), -1, -1)], dim=1)
