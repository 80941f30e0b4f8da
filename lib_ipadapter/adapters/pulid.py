"""The files of PuLID (arXiv 2404.16022) for SDXL: their shapes, and what the encoders in them take.

v1 and v1.1 have other encoders and the same attention weights (ToTheBeginning/PuLID, encoders.py and
encoders_transformer.py). Both take a face three times: its raw embedding by ArcFace, and of its picture without
background EVA-CLIP's embedding and hidden states.
"""

from __future__ import annotations

from collections.abc import Mapping

from ..encoders.spec import LEVELS, Need
from .layout import DIM_HEAD, FACE_WIDTH, Shape, perceiver_layer

Shapes = Mapping[str, Shape]
ENCODER = "EVA02-L-14-336"
_PUBLISHED = (768, 1024)  # widths of its embedding and of its hidden states
V1_MARK, V11_MARK = "body.0.weight", "id_embedding_mapping.0.weight"
FACE_TOKENS = 5  # that come from the embeddings


def v1_shapes(found: Shapes, context: int) -> dict[str, Shape]:
    """``found``: shapes by the names inside the encoder. Raises KeyError for one that is missing."""
    tokens = max(found["body.6.weight"][0] // context, 1)
    shapes, width = _mlp("body", found, tokens * context), _width(found)
    for i in range(LEVELS):
        shapes |= _mlp(f"mapping_{i}", found, context, width) | _mlp(f"mapping_patch_{i}", found, context, width)
    return shapes


def v11_shapes(found: Shapes, context: int) -> dict[str, Shape]:
    """As ``v1_shapes``. The layers are as many as are there, a multiple of LEVELS."""
    _, tokens, dim = found["latents"]
    inner, hidden = found["layers.0.0.to_q.weight"][0] // DIM_HEAD * DIM_HEAD, found["layers.0.1.1.weight"][0]
    depth = len({key.split(".")[1] for key in found if key.startswith("layers.")})
    depth = max(depth // LEVELS, 1) * LEVELS
    faces = max(found["id_embedding_mapping.6.weight"][0] // dim, 1)
    shapes = _mlp("id_embedding_mapping", found, faces * dim)
    shapes |= {"latents": (1, tokens, dim), "proj_out": (dim, context)}
    for i in range(LEVELS):
        shapes |= _mlp(f"mapping_{i}", found, dim, _width(found))
    for i in range(depth):
        shapes |= perceiver_layer(i, dim, inner, hidden)
    return shapes


def _width(found: Shapes) -> int:
    """Of the hidden states."""
    return found["mapping_0.0.weight"][-1]


def _mlp(name: str, found: Shapes, out: int, width: int = 0) -> dict[str, Shape]:
    """Three linear layers, a norm behind each of the first two. width: what it is given, 0 for what the file says."""
    first, given = found[f"{name}.0.weight"]
    given = width or given
    second = found[f"{name}.3.weight"][0]
    return {
        f"{name}.0.weight": (first, given), f"{name}.0.bias": (first,),
        f"{name}.1.weight": (first,), f"{name}.1.bias": (first,),
        f"{name}.3.weight": (second, first), f"{name}.3.bias": (second,),
        f"{name}.4.weight": (second,), f"{name}.4.bias": (second,),
        f"{name}.6.weight": (out, second), f"{name}.6.bias": (out,),
    }  # fmt: skip


def is_v1(found: Shapes, context: int) -> bool:
    """Whether the encoder in these shapes is PuLID's first."""
    return found["body.0.weight"][1] > FACE_WIDTH and "mapping_patch_0.0.weight" in found


def is_v11(found: Shapes, context: int) -> bool:
    """Whether it is that of v1.1."""
    return found[V11_MARK][1] > FACE_WIDTH and len(found["latents"]) == 3


def v1_tokens(found: Shapes, context: int) -> int:
    """Image tokens of a face."""
    return found["body.6.weight"][0] // context + LEVELS


def of_clip(mark: str, found: Shapes) -> tuple[Need, ...]:
    """What the encoder takes of EVA-CLIP."""
    widths = found[mark][1] - FACE_WIDTH, _width(found)
    encoder = ENCODER if widths == _PUBLISHED else ""
    return Need("pooled", widths[0], encoder, "bare face"), Need("levels", widths[1], encoder, "bare face")
