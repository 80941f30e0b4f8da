"""The evaluation over a real WebUI's API: its methods stand in the same table."""

from __future__ import annotations

import numpy as np
import pytest

from lib_ipadapter.errors import IPAdapterError
from lib_ipadapter.evaluation import Item, Options, evaluate
from lib_ipadapter.evaluation.remote import WebUIMethod

from .harness import WebUI, picture

SMALL = {"steps": 2, "width": 64, "height": 64, "cfg_scale": 5, "sampler_name": "Euler", "seed": "{seed}"}


class Colours:
    """Embeddings that need no model: the mean colour of each quarter."""

    def images(self, pictures):
        import torch

        rows = [np.asarray(p.resize((2, 2)), dtype=np.float32).ravel() - 127 for p in pictures]
        return torch.from_numpy(np.stack(rows))

    def texts(self, texts):
        import torch

        return torch.ones(len(texts), 12)

    def settings(self):
        return {"metric": "colours"}


def test_methods_of_a_webui(on_sd1: WebUI, tmp_path):
    unit = {"model": "sd1-base", "images": ["{reference}"], "weight": "{weight}"}
    adapter = {**SMALL, "prompt": "{caption}", "alwayson_scripts": {"IP-Adapter": {"args": [unit]}}}
    img2img_like = {**SMALL, "prompt": "{caption} with seed {seed}"}  # a method without λ
    methods = [WebUIMethod("ip-adapter", on_sd1.url, adapter), WebUIMethod("text", on_sd1.url, img2img_like)]
    items = [Item(f"ref{i}", f"picture {i}", picture(i)) for i in range(2)]
    results = evaluate(items, methods, Colours(), tmp_path, Options(weights=(0.0, 1.0)), say=lambda line: None)
    assert {(row.method, row.weight) for row in results.rows if row.method != "reference"} == {
        ("ip-adapter", 0.0), ("ip-adapter", 1.0), ("text", None)
    }  # fmt: skip
    pictures = {path.parent.name: path for path in (tmp_path / "pictures" / "ip-adapter").rglob("ref0-0.png")}
    assert len(pictures) == 2
    first, second = (path.read_bytes() for path in pictures.values())
    assert first != second


def test_what_the_webui_refuses_is_said(on_sd1: WebUI, tmp_path):
    unit = {"model": "no-such", "images": ["{reference}"], "weight": "{weight}"}
    payload = {**SMALL, "prompt": "", "alwayson_scripts": {"IP-Adapter": {"args": [unit]}}}
    method = WebUIMethod("wrong", on_sd1.url, payload)
    with pytest.raises(IPAdapterError, match=r"422.*no-such"):
        evaluate([Item("a", "b", picture(0))], [method], Colours(), tmp_path, say=lambda line: None)
