"""What others have published, to stand beside what is measured here. None of it was measured by this package. Every
value was compared with the text of the paper's table 1 (parameters, CLIP-T, CLIP-I)."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Published:
    """A row of a paper's table. millions: trained parameters."""

    method: str
    millions: int
    clip_t: float
    clip_i: float


SOURCE = "IP-Adapter's paper (arXiv 2308.06721), table 1: COCO val2017, 4 pictures of each, CLIP ViT-L/14, CLIP-T"
TABLE = (
    Published("Open unCLIP", 893, 0.608, 0.858),
    Published("Kandinsky 2.1", 1229, 0.599, 0.855),
    Published("Versatile Diffusion", 860, 0.587, 0.830),
    Published("SD Image Variations", 860, 0.548, 0.760),
    Published("SD unCLIP", 870, 0.584, 0.810),
    Published("Uni-ControlNet (global control)", 47, 0.506, 0.736),
    Published("T2I-Adapter (style)", 39, 0.485, 0.648),
    Published("ControlNet Shuffle", 361, 0.421, 0.616),
    Published("IP-Adapter", 22, 0.588, 0.828),
)


def markdown() -> str:
    """The table, marked as published."""
    rows = [f"| {row.method} | {row.millions} M | {row.clip_i:.3f} | {row.clip_t:.3f} |" for row in TABLE]
    head = ["| published, not measured here | trained | CLIP-I | CLIP-T |", "| --- | ---: | ---: | ---: |"]
    words = f"From {SOURCE} as CLIPScore. Compare rows of the same pictures, texts and CLIP only."
    return "\n".join(["Published values", "", *head, *rows, "", words, ""])
