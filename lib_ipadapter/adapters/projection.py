"""Image features to image tokens: the modules that the adapter files carry, with the files' own names.

After tencent-ailab/IP-Adapter (T below: ip_adapter.py, ip_adapter_faceid.py, resampler.py); the plus projection is
the Perceiver resampler of Flamingo (arXiv 2204.14198).
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from .perceiver import PerceiverAttention, feed_forward
from .pulid_encoders import IDEncoder, IDFormer
from .variant import FACE_WIDTH, RESAMPLER, Shape, VariantSpec


class LinearProjection(nn.Module):
    """base: pooled [B, E] to tokens [B, T, context] by one linear layer and a LayerNorm."""

    def __init__(self, width: int, tokens: int, context: int) -> None:
        super().__init__()
        self.proj = nn.Linear(width, tokens * context)
        self.norm = nn.LayerNorm(context)
        self.tokens = tokens

    def forward(self, features: Tensor) -> Tensor:
        return self.norm(self.proj(features).unflatten(-1, (self.tokens, -1)))


class MLPProjection(nn.Module):
    """full: each of the encoder's tokens [B, T, W] to a token [B, T, context]."""

    def __init__(self, width: int, context: int) -> None:
        super().__init__()
        self.proj = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.Linear(width, context), nn.LayerNorm(context))

    def forward(self, features: Tensor) -> Tensor:
        return self.proj(features)


class Resampler(nn.Module):
    """plus: penultimate [B, N, W] to tokens [B, T, context] by learned latents; tokens 0: by latents that are given.
    unnorm, InstantID: raw embeddings [B, W] of a face likewise."""

    def __init__(self, width: int, tokens: int, dim: int, inner: int, hidden: int, depth: int, context: int) -> None:
        super().__init__()
        self.latents = nn.Parameter(torch.randn(1, tokens, dim) / dim**0.5) if tokens else None
        self.proj_in = nn.Linear(width, dim)
        self.proj_out = nn.Linear(dim, context)
        self.norm_out = nn.LayerNorm(context)
        self.layers = nn.ModuleList(
            nn.ModuleList([PerceiverAttention(dim, inner), feed_forward(dim, hidden)]) for _ in range(depth)
        )

    def forward(self, features: Tensor, latents: Tensor | None = None) -> Tensor:
        if latents is None:
            assert self.latents is not None
            latents = self.latents.expand(features.shape[0], -1, -1)
        features = self.proj_in(features if features.dim() == 3 else features[:, None])
        for attention, forward in self.layers:
            latents = attention(features, latents) + latents
            latents = forward(latents) + latents
        return self.norm_out(self.proj_out(latents))


class FaceProjection(nn.Module):
    """FaceID, portrait: embeddings of length 1 [B, 512] to tokens [B, T, context]. After T's MLPProjModel."""

    def __init__(self, width: int, hidden: int, tokens: int, context: int) -> None:
        super().__init__()
        self.proj = nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, tokens * context))
        self.norm = nn.LayerNorm(context)
        self.tokens = tokens

    def forward(self, face: Tensor) -> Tensor:
        return self.norm(self.proj(face).unflatten(-1, (self.tokens, -1)))


class FacePlusProjection(FaceProjection):
    """FaceID-Plus: the tokens x of an embedding query the CLIP features [B, N, W] of the face's aligned crop.

    v1: the resampler's output r; v2: x + shortcut · r. After T's ProjPlusModel.
    """

    def __init__(self, hidden: int, tokens: int, context: int, resampler: Resampler) -> None:
        super().__init__(FACE_WIDTH, hidden, tokens, context)
        self.perceiver_resampler = resampler

    def forward(self, face: Tensor, crop: Tensor | None = None, shortcut: float | None = None) -> Tensor:
        assert crop is not None
        tokens = super().forward(face)
        resampled: Tensor = self.perceiver_resampler(crop, tokens)
        return resampled if shortcut is None else tokens + shortcut * resampled


def build(spec: VariantSpec, shapes: Mapping[str, Shape]) -> nn.Module:
    """The projection of ``spec``, weights not loaded. ``shapes`` by the names inside ``image_proj.``."""
    if spec.variant == "base":
        return LinearProjection(spec.feature_width, spec.tokens, spec.context)
    if spec.variant == "full":
        return MLPProjection(spec.feature_width, spec.context)
    if spec.corrected:
        return (IDFormer if spec.joint else IDEncoder)(shapes, spec.context)
    if spec.feature == "face" and not spec.also:
        return FaceProjection(spec.feature_width, shapes["proj.0.weight"][0], spec.tokens, spec.context)
    if spec.feature == "face":
        inside = {key[len(RESAMPLER) :]: shape for key, shape in shapes.items() if key.startswith(RESAMPLER)}
        resampler = _resampler(inside, spec.also[0].width, 0, spec.context)
        return FacePlusProjection(shapes["proj.0.weight"][0], spec.tokens, spec.context, resampler)
    return _resampler(shapes, spec.feature_width, spec.tokens, spec.context)


def _resampler(shapes: Mapping[str, Shape], width: int, tokens: int, context: int) -> Resampler:
    inner, dim = shapes["layers.0.0.to_q.weight"]
    hidden = shapes["layers.0.1.1.weight"][0]
    depth = 1 + max(int(key.split(".")[1]) for key in shapes if key.startswith("layers."))
    return Resampler(width, tokens, dim, inner, hidden, depth, context)
