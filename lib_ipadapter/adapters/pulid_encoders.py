"""The encoders inside PuLID's files: a face's embeddings and hidden states to image tokens.

After ToTheBeginning/PuLID, encoders.py (IDEncoder) and encoders_transformer.py (IDFormer). z below is ArcFace's raw
embedding beside EVA-CLIP's of length 1; h_i are EVA-CLIP's hidden states at five depths, the class token first.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..encoders.spec import LEVELS
from .layout import Shape
from .perceiver import PerceiverAttention, feed_forward

Shapes = Mapping[str, Shape]


def embedding(face: Tensor, pooled: Tensor) -> Tensor:
    """z [..., 512 + E] of ArcFace's raw embeddings [..., 512] and EVA-CLIP's [..., E]; zeros of zeros."""
    return torch.cat([face, F.normalize(pooled, dim=-1)], dim=-1)


class IDEncoder(nn.Module):
    """v1: 5 tokens body(z), and one for each depth, mapping(h[class]) + mean over patches of mapping_patch(h)."""

    def __init__(self, shapes: Shapes, context: int) -> None:
        super().__init__()
        self.context = context
        self.body = _mlp("body", shapes)
        for i in range(LEVELS):
            self.add_module(f"mapping_{i}", _mlp(f"mapping_{i}", shapes))
            self.add_module(f"mapping_patch_{i}", _mlp(f"mapping_patch_{i}", shapes))

    def forward(self, face: Tensor, pooled: Tensor, levels: Tensor) -> Tensor:
        """Tokens [B, 10, context] of face [B, 512], pooled [B, E] and levels [B, 5, N, W]."""
        of_face = self.body(embedding(face, pooled)).unflatten(-1, (-1, self.context))
        of_levels = []
        for i, hidden in enumerate(levels.unbind(1)):
            whole = self.get_submodule(f"mapping_{i}")(hidden[:, :1])
            of_levels.append(whole + self.get_submodule(f"mapping_patch_{i}")(hidden[:, 1:]).mean(1, keepdim=True))
        return torch.cat([of_face, *of_levels], dim=1)


class IDFormer(nn.Module):
    """v1.1: latents and the faces' tokens attend to the hidden states, depth by depth."""

    def __init__(self, shapes: Shapes, context: int) -> None:
        super().__init__()
        _, self.tokens, dim = shapes["latents"]
        self.dim = dim
        self.latents = nn.Parameter(torch.randn(1, self.tokens, dim) / dim**0.5)
        self.proj_out = nn.Parameter(torch.randn(dim, context) / dim**0.5)
        inner, hidden = shapes["layers.0.0.to_q.weight"][0], shapes["layers.0.1.1.weight"][0]
        depth = len({key.split(".")[1] for key in shapes if key.startswith("layers.")})
        self.per_level = depth // LEVELS
        self.layers = nn.ModuleList(
            nn.ModuleList([PerceiverAttention(dim, inner), feed_forward(dim, hidden)]) for _ in range(depth)
        )
        for i in range(LEVELS):
            self.add_module(f"mapping_{i}", _mlp(f"mapping_{i}", shapes))
        self.id_embedding_mapping = _mlp("id_embedding_mapping", shapes)

    def forward(self, face: Tensor, pooled: Tensor, levels: Tensor) -> Tensor:
        """Tokens [B, 32, context] of n faces at once: face [B, n, 512] (or [B, 512]), pooled [B, n, E], levels
        [B, 5, n·N, W]."""
        z = embedding(face, pooled)
        z = z if z.dim() == 3 else z[:, None]
        faces = self.id_embedding_mapping(z).unflatten(-1, (-1, self.dim)).flatten(1, 2)
        latents = torch.cat([self.latents.expand(z.shape[0], -1, -1), faces], dim=1)
        for i, hidden in enumerate(levels.unbind(1)):
            features = torch.cat([faces, self.get_submodule(f"mapping_{i}")(hidden)], dim=1)
            for attention, forward in list(self.layers)[i * self.per_level : (i + 1) * self.per_level]:
                latents = attention(features, latents) + latents
                latents = forward(latents) + latents
        return latents[:, : self.tokens] @ self.proj_out


def _mlp(name: str, shapes: Shapes) -> nn.Sequential:
    first, given = shapes[f"{name}.0.weight"]
    second, out = shapes[f"{name}.3.weight"][0], shapes[f"{name}.6.weight"][0]
    return nn.Sequential(
        nn.Linear(given, first), nn.LayerNorm(first), nn.LeakyReLU(),
        nn.Linear(first, second), nn.LayerNorm(second), nn.LeakyReLU(), nn.Linear(second, out),
    )  # fmt: skip
