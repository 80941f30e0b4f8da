"""Towers of timm's (SigLIP, EVA02) as image encoders, small ones with random weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from lib_ipadapter.adapters.variant import identify
from lib_ipadapter.encoders import Catalog, EncoderSource, ImageEncoder, find_encoder
from lib_ipadapter.encoders import timm_tower as towers
from lib_ipadapter.errors import BrokenEncoder, EncoderMissing
from tests.synthetic import adapter_tensors

timm = pytest.importorskip("timm", reason="timm is not installed")

SMALL = {"depth": 3, "embed_dim": 64, "num_heads": 2}


@pytest.fixture(autouse=True)
def small_towers(monkeypatch: pytest.MonkeyPatch):
    """timm's classes, small."""
    real = timm.create_model
    monkeypatch.setattr(timm, "create_model", lambda name, **options: real(name, **{**SMALL, **options}))


def write(folder: Path, stem: str, model: str, pool: str | None, projection: str | None) -> Path:
    """Weights and config, as open_clip saves and names them."""
    side = 28 if "patch14" in model else 32
    vision = {"image_size": side, "timm_model_name": model, "timm_pool": pool, "timm_proj": projection}
    config: dict[str, Any] = {
        "embed_dim": 64 if projection == "none" else 40,
        "vision_cfg": vision,
        "text_cfg": {},
    }
    config["preprocess_cfg"] = {"mean": [0.5] * 3, "std": [0.5] * 3}
    torch.manual_seed(0)
    tower = towers.TimmTower(model, pool or "", projection or "", config["embed_dim"], side)
    save_file({f"visual.{k}": v.contiguous() for k, v in tower.state_dict().items()}, folder / f"{stem}.safetensors")
    (folder / f"{stem}.json").write_text(json.dumps(config))
    return folder / f"{stem}.safetensors"


@pytest.mark.parametrize(
    ("model", "pool", "projection", "tokens"),
    [
        ("eva02_tiny_patch14_224", "token", None, 5),
        ("vit_tiny_patch16_224", "token", "linear", 5),
        ("vit_tiny_patch16_224", "avg", "none", 5),
    ],
)
def test_features_are_those_of_the_tower(tmp_path, model, pool, projection, tokens):
    path = write(tmp_path, "own", model, pool, projection)
    assert find_encoder("own", [tmp_path]) == path
    encoder = ImageEncoder.load(path)
    side = encoder.spec.image_size
    assert encoder.spec.tokens == tokens
    pixels = np.random.default_rng(0).integers(0, 256, (side, side, 3)).astype(np.uint8)
    picture = Image.fromarray(pixels)
    features = encoder.encode(picture)
    reference = towers.load_timm(path, encoder.spec, "cpu", torch.float32).eval()
    values = (torch.from_numpy(pixels).permute(2, 0, 1)[None].float() / 255 - 0.5) / 0.5
    with torch.no_grad():
        torch.testing.assert_close(features.pooled, reference(values))
        # the last block on the penultimate state, and what follows it, give the pooled one
        blocks, reference.trunk.blocks = reference.trunk.blocks, reference.trunk.blocks[:-1]
        held: list[torch.Tensor] = []
        reference.trunk.blocks[-1].register_forward_hook(lambda module, args, output: held.append(output))
        reference(values)
        reference.trunk.blocks = blocks
    torch.testing.assert_close(features.penultimate, held[0])
    assert features.penultimate.shape == (1, tokens, 64)
    assert torch.equal(encoder.encode(picture, "pooled").pooled, features.pooled)
    assert encoder.unconditional("penultimate").penultimate.shape == features.penultimate.shape


def test_the_header_says_which_of_two_encoders_of_one_width(tmp_path):
    write(tmp_path, "own", "vit_tiny_patch16_224", "token", "linear")
    catalog = Catalog([tmp_path])
    tensors = adapter_tensors("base", feature_width=40)
    shapes = {key: tuple(value.shape) for key, value in tensors.items()}
    for header in ("", "own", "renamed-since"):
        assert catalog.name_of(identify(shapes, "a", header).needs[0]) == "own"
    clip = {k: tuple(v.shape) for k, v in adapter_tensors("base", feature_width=768).items()}
    assert catalog.name_of(identify(clip, "a").needs[0]) == "ViT-L-14"
    spec = identify(clip, "a", "my-siglip")
    with pytest.raises(EncoderMissing, match=r"trained with the image encoder my-siglip.*my-siglip\.json"):
        EncoderSource(catalog).check(spec.needs[0])


def test_what_is_wrong_is_said(tmp_path):
    path = write(tmp_path, "own", "vit_tiny_patch16_224", "token", "linear")
    config = json.loads(path.with_suffix(".json").read_text())
    for key, value, said in (
        ("timm_model_name", "vit_of_tomorrow", "has no tower vit_of_tomorrow"),
        ("timm_proj", "attn", "timm_proj is 'attn'"),
        ("timm_model_name", "resnet18", "neither a vision transformer nor a ConvNeXt"),
    ):
        changed = {**config, "vision_cfg": {**config["vision_cfg"], "timm_pool": "avg", key: value}}
        path.with_suffix(".json").write_text(json.dumps(changed))
        SMALL_BEFORE = dict(SMALL)
        if value == "resnet18":
            SMALL.clear()
        try:
            with pytest.raises(BrokenEncoder, match=said):
                find_encoder("own", [tmp_path])
        finally:
            SMALL.update(SMALL_BEFORE)
    path.with_suffix(".json").write_text(json.dumps(config))
    save_file({"visual.trunk.cls_token": torch.zeros(1, 1, 64)}, path)
    with pytest.raises(BrokenEncoder, match="keys missing or misshapen"):
        ImageEncoder.load(path)
