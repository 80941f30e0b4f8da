"""diffusers' own conversion of a projection, undone by ours."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("diffusers", reason="diffusers is not installed")

from lib_ipadapter.adapters.file import open_adapter
from tests.synthetic import adapter_tensors


@pytest.mark.parametrize("variant", ["base", "plus", "full", "faceid", "faceid-plus"])
def test_a_unet_of_diffusers_holds_the_same_projection(tmp_path: Path, variant: str) -> None:
    from diffusers.loaders.unet import UNet2DConditionLoadersMixin

    flat = adapter_tensors(variant, depth=4, dim=64, inner=64)
    theirs: Any = UNet2DConditionLoadersMixin._convert_ip_adapter_image_proj_to_diffusers(
        object(),
        {key[len("image_proj.") :]: value for key, value in flat.items() if key.startswith("image_proj.")},
    )
    content = {f"encoder_hid_proj.image_projection_layers.0.{key}": value for key, value in theirs.state_dict().items()}
    places = ["down_blocks.0.attentions.0", "up_blocks.1.attentions.0", "mid_block.attentions.0"]
    for n, place in enumerate(places):
        for kind in ("to_k_ip", "to_v_ip"):
            content[f"{place}.transformer_blocks.0.attn2.processor.{kind}.0.weight"] = flat[
                f"ip_adapter.{2 * n + 1}.{kind}.weight"
            ]
    torch.save(content, tmp_path / "unet.bin")
    tensors = open_adapter(tmp_path / "unet.bin").tensors()
    assert tensors.keys() == flat.keys()
    assert all(torch.equal(tensors[key], flat[key]) for key in flat)
