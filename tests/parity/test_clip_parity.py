"""Our encoder against transformers' CLIPVisionModelWithProjection on the same random weights: the real widths,
heads, patches and activations, with two to four layers, of which the real ones have the more of the same kind."""

from __future__ import annotations

import dataclasses
import gc
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor

from lib_ipadapter.encoders import ENCODERS, EncoderSpec, ImageEncoder
from lib_ipadapter.pictures import images

transformers = pytest.importorskip("transformers", reason="transformers is a development dependency")

NAMES = ("ViT-H-14", "ViT-L-14", "ViT-L-14-336", "ViT-bigG-14")
LAYERS = dict(zip(NAMES, (2, 4, 2, 2), strict=True))
SHORT = {name: dataclasses.replace(ENCODERS[name], name=f"{name}-{n}-layers", layers=n) for name, n in LAYERS.items()}
TOLERANCE = 1e-4  # the aim is 1e-5; what is measured is printed


@pytest.fixture(autouse=True)
def _short_towers(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for spec in SHORT.values():
        monkeypatch.setitem(ENCODERS, spec.name, spec)
    yield
    gc.collect()


def _peer(spec: EncoderSpec) -> torch.nn.Module:
    """transformers' model of that shape with seeded weights whose norms and biases are not trivial."""
    config = transformers.CLIPVisionConfig(
        hidden_size=spec.width,
        intermediate_size=spec.shape.hidden,
        projection_dim=spec.embed_dim,
        num_hidden_layers=spec.layers,
        num_attention_heads=spec.heads,
        image_size=spec.image_size,
        patch_size=spec.patch,
        hidden_act="quick_gelu" if spec.quick_gelu else "gelu",
    )
    with torch.device("meta"):
        model = transformers.CLIPVisionModelWithProjection(config)
    draw = torch.Generator().manual_seed(7)
    filled = {}
    for key, value in model.state_dict().items():
        if key.endswith("position_ids"):
            filled[key] = torch.arange(value.numel()).view(value.shape)
            continue
        around = 1.0 if "norm" in key.split(".")[-2] and key.endswith("weight") else 0.0
        filled[key] = torch.randn(value.shape, generator=draw).mul_(0.02).add_(around)
    model.load_state_dict(filled, assign=True)
    # not part of the state in every version of transformers
    model.vision_model.embeddings.position_ids = torch.arange(spec.tokens).view(1, -1)
    return model.eval()


def _picture() -> Image.Image:
    noise = np.random.default_rng(3).integers(0, 256, (97, 143, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize((429, 291), Image.Resampling.BICUBIC)


def _relative(ours: Tensor, theirs: Tensor) -> float:
    return float((ours - theirs).norm() / theirs.norm())


@pytest.mark.parametrize("name", NAMES)
def test_features_equal_those_of_transformers(name: str, tmp_path: Path) -> None:
    spec = SHORT[name]
    peer = _peer(spec)
    picture = _picture()
    processor = transformers.CLIPImageProcessor(
        size={"shortest_edge": spec.image_size},
        crop_size={"height": spec.image_size, "width": spec.image_size},
    )
    pixels = processor(images=picture, return_tensors="pt").pixel_values
    with torch.no_grad():
        theirs = peer(pixels, output_hidden_states=True)
        nothing = peer(torch.zeros_like(pixels), output_hidden_states=True)
    save_file(peer.state_dict(), tmp_path / "any name.safetensors")
    del peer
    gc.collect()

    encoder = ImageEncoder.load(tmp_path / "any name.safetensors")
    assert encoder.spec == spec
    ours = encoder.encode(images.fit(picture, spec.image_size, "crop"))
    empty = encoder.unconditional()

    errors = {
        "pixels": _relative(encoder.pixels(images.fit(picture, spec.image_size, "crop")), pixels),
        "pooled": _relative(ours.pooled, theirs.image_embeds),
        "penultimate": _relative(ours.penultimate, theirs.hidden_states[-2]),
        "unconditional penultimate": _relative(empty.penultimate, nothing.hidden_states[-2]),
    }
    print(f"\n{name}: " + ", ".join(f"{what} {error:.1e}" for what, error in errors.items()))
    assert max(errors.values()) <= TOLERANCE
    assert ours.penultimate.shape == (1, spec.tokens, spec.width)
    assert torch.equal(empty.pooled, torch.zeros(1, spec.embed_dim))
