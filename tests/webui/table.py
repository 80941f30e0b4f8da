"""The paper's kind of table through the real WebUI: python -m tests.webui.table OUT [--limit 50]

Starts a WebUI with this extension, sd-webui-controlnet and the small world, draws every method over its API from
held-out references, by image prompt alone, and measures: our adapters, λ = 0, ControlNet's reference-only, and the text
that describes the reference in full. The same command goes on where it was stopped.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from examples.small_world import data, models
from examples.small_world.drawer import CFG
from examples.small_world.export import write_held_out
from examples.small_world.measure import READ, agrees
from lib_ipadapter.cli import ended
from lib_ipadapter.evaluation import Options, evaluate
from lib_ipadapter.evaluation.items import Item, read_items
from lib_ipadapter.evaluation.metric import Clip
from lib_ipadapter.evaluation.remote import WebUIMethod

from .harness import absent, controlnet
from .test_small_world import SmallWorld

STEPS = 12  # of docs/evaluation.md
DRAWN = {
    "prompt": "{caption}", "negative_prompt": "", "sampler_name": "DDIM", "steps": STEPS, "cfg_scale": CFG,
    "seed": "{seed}", "width": data.SIDE, "height": data.SIDE,
}  # fmt: skip


class OfWeights(WebUIMethod):
    """Drawn at some of the weights alone."""

    def __init__(self, name: str, url: str, payload: Mapping[str, Any], only: Sequence[float]) -> None:
        super().__init__(name, url, payload)
        self.only = only

    def weights(self, asked: Sequence[float]) -> Sequence[float | None]:
        return [weight for weight in asked if weight in self.only]


class FullText(WebUIMethod):
    """By the caption that names everything."""

    def prompt(self, item: Item, asked: str) -> str:
        return item.fields["full"]


def adapter(model: str) -> dict[str, Any]:
    unit = {"model": model, "images": ["{reference}"], "weight": "{weight}"}
    return {**DRAWN, "alwayson_scripts": {"IP-Adapter": {"args": [unit]}}}


def reference_only(module: str) -> dict[str, Any]:
    unit = {"enabled": True, "module": module, "model": "None", "weight": 1.0, "image": "{reference}",
            "threshold_a": 0.5, "control_mode": "Balanced"}  # fmt: skip
    return {**DRAWN, "alwayson_scripts": {"controlnet": {"args": [unit]}}}


def methods(url: str) -> list[WebUIMethod]:
    """Those of the table."""
    base, plus = (path.stem for path in (models.BASE_ADAPTER, models.PLUS_ADAPTER))
    return [
        OfWeights("base", url, adapter(base), (0.0, 1.0)),
        OfWeights("plus", url, adapter(plus), (1.0,)),
        WebUIMethod("reference-only", url, reference_only("reference_only")),
        WebUIMethod("reference-adain-attn", url, reference_only("reference_adain+attn")),
        FullText("text", url, DRAWN),
    ]


def table(url: str, out: Path, limit: int) -> str:
    """Writes OUT/table and returns its Markdown."""
    references = out / "references"
    if not (references / "metadata.jsonl").is_file():
        write_held_out(references, limit)
    extra = {name: (lambda picture, item, name=name: agrees(name, picture, item)) for name in READ}
    options = Options(weights=(0.0, 1.0), prompt="none", batch=16)
    items = read_items(references, limit=limit)
    return evaluate(items, methods(url), Clip.load(models.CLIP_FILE), out / "table", options, extra=extra).markdown()


class Server(SmallWorld):
    """The small world's WebUI with ControlNet."""

    def __init__(self) -> None:
        super().__init__(models.WEIGHTS)
        self.with_controlnet = True


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.webui.table", description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--limit", type=int, default=50, help="references")
    args = parser.parse_args(argv)
    if reason := absent() or ("" if controlnet().is_dir() else f"no sd-webui-controlnet at {controlnet()}"):
        print(reason, file=sys.stderr)
        return 2
    with Server() as server:
        return ended(lambda: print(table(server.url, args.out, args.limit)))


if __name__ == "__main__":
    raise SystemExit(main())
