"""Image tokens against diffusers' modules, loaded by diffusers' own converter, at the real shapes."""

from __future__ import annotations

from itertools import product

import pytest
import torch

from lib_ipadapter.adapters.adapter import Adapter
from tests.synthetic import adapter_tensors, nested, undrawn, write_adapter

diffusers = pytest.importorskip("diffusers", reason="diffusers is not installed")

# variant, context, feature width, tokens, resampler's dim and inner width
SHAPES = {
    "base SD1.5 ViT-H": ("base", 768, 1024, 4, 0, 0),
    "base SD2.1 ViT-H": ("base", 1024, 1024, 4, 0, 0),
    "base SDXL ViT-H": ("base", 2048, 1024, 4, 0, 0),
    "base SDXL ViT-bigG": ("base", 2048, 1280, 4, 0, 0),
    "plus SD1.5": ("plus", 768, 1280, 16, 768, 768),
    "plus SDXL": ("plus", 2048, 1280, 16, 1280, 1280),
    "full-face SD1.5": ("full", 768, 1280, 257, 0, 0),
    "FaceID SD1.5": ("faceid", 768, 512, 4, 0, 0),
    "FaceID SDXL": ("faceid", 2048, 512, 4, 0, 0),
    "FaceID portrait SD1.5": ("faceid", 768, 512, 16, 0, 0),
    "FaceID portrait SDXL": ("faceid", 2048, 512, 16, 0, 0),
}


@pytest.mark.parametrize("name", SHAPES)
def test_tokens(name, tmp_path):
    variant, context, width, tokens, dim, inner = SHAPES[name]
    flat = adapter_tensors(variant, context, (32,), width, tokens, dim=dim or 64, inner=inner or 64, depth=4)
    theirs = theirs_of(flat, context)
    adapter = Adapter.load(write_adapter(tmp_path / "a.safetensors", flat))
    features = torch.randn(2, width) if variant in ("base", "faceid") else torch.randn(2, 257, width)
    with torch.no_grad():
        reference = theirs(features).reshape(2, -1, context)
    mine = adapter.tokens(features)
    error = relative(mine, reference)
    print(f"\n{name}: tokens {tuple(mine.shape)}, relative error {error:.1e}")
    assert mine.shape == (2, tokens, context)
    assert error <= 1e-4


def test_mixed_up_norms_would_be_seen(tmp_path):
    """The control of the test above: two keys of one layer swapped on our side only."""
    flat = adapter_tensors("plus", 768, (32,), 1280, 16, dim=768, inner=768, depth=4)
    features = torch.randn(1, 257, 1280)
    with torch.no_grad():
        reference = theirs_of(flat, 768)(features)
    for one, other in (
        ("0.norm1.weight", "0.norm2.weight"), ("0.norm1.bias", "0.norm2.bias"), ("1.0.bias", "0.norm1.bias")
    ):  # fmt: skip
        first, second = f"image_proj.layers.2.{one}", f"image_proj.layers.2.{other}"
        swapped = flat | {first: flat[second], second: flat[first]}
        adapter = Adapter.load(write_adapter(tmp_path / f"{one}.safetensors", swapped))
        assert relative(adapter.tokens(features), reference) > 1e-3, (one, other)


@pytest.mark.parametrize(("context", "shortcuts"), [(768, (1.0, 0.4)), (2048, (0.4,))])
def test_tokens_of_face_id_plus(context, shortcuts, tmp_path):
    flat = adapter_tensors("faceid-plus", context, (32,), 1280, 4, inner=context, depth=4)
    theirs, held = theirs_of(flat, context), Adapter.load(write_adapter(tmp_path / "a.safetensors", flat))
    face, crop = torch.nn.functional.normalize(torch.randn(2, 512), dim=-1), torch.randn(2, 257, 1280)
    cases = {"cond": (face, crop), "uncond": (torch.zeros_like(face), crop.flip(0))}
    for (kind, version_2), shortcut in product({"faceid-plus": False, "faceid-plusv2": True}.items(), shortcuts):
        adapter, theirs.shortcut, theirs.shortcut_scale = held.as_kind(kind), version_2, shortcut
        for name, (embedding, features) in cases.items():
            theirs.clip_embeds = features[:, None]
            with torch.no_grad():
                reference = theirs(embedding)
            mine = adapter.tokens({"face": embedding, "penultimate": features}, shortcut)
            error = relative(mine, reference)
            print(f"\n{kind}, {name}, context {context}, s = {shortcut}: relative error {error:.1e}")
            assert error <= 1e-4


def test_the_two_versions_of_face_id_plus_differ(tmp_path):
    """The control of the test above."""
    flat = adapter_tensors("faceid-plus", 768, (32,), 1280, 4, inner=768, depth=1)
    adapter = Adapter.load(write_adapter(tmp_path / "a.safetensors", flat))
    features = {"face": torch.randn(1, 512), "penultimate": torch.randn(1, 257, 1280)}
    first, second = (adapter.as_kind(kind).tokens(features) for kind in ("faceid-plus", "faceid-plusv2"))
    assert relative(first, second) > 0.1


@pytest.mark.parametrize("context", [768, 2048])
def test_tokens_of_a_resampled_face(context, tmp_path):
    """InstantID's and portrait-unnorm's Resampler, fed with one embedding; diffusers has the same one for plus."""
    flat = adapter_tensors("unnorm", context, (32,), 512, 16, dim=1280, inner=1280, depth=4)
    adapter = Adapter.load(write_adapter(tmp_path / "portrait.safetensors", flat))
    face = 20 * torch.randn(2, 512)
    with torch.no_grad():
        reference = theirs_of(flat, context)(face[:, None])
    assert relative(adapter.tokens(face), reference) <= 1e-4


def relative(mine: torch.Tensor, reference: torch.Tensor) -> float:
    return float((mine - reference).norm() / reference.norm())


def theirs_of(flat: dict[str, torch.Tensor], context: int) -> torch.nn.Module:
    """The projection as diffusers builds it from the file's tensors."""
    loader = diffusers.UNet2DConditionModel(
        block_out_channels=(32,), norm_num_groups=32, layers_per_block=1, cross_attention_dim=context,
        down_block_types=("CrossAttnDownBlock2D",), up_block_types=("CrossAttnUpBlock2D",),
    )  # fmt: skip
    with undrawn():  # the file's tensors fill them all
        module = loader._convert_ip_adapter_image_proj_to_diffusers(nested(flat)["image_proj"])
    return module.float()
