"""SD2's text tower equals open_clip's own text path, in the installed version of open_clip, whatever its layout."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch

from lib_ipadapter.errors import UnsupportedModel
from lib_ipadapter.standalone.config import OPEN_CLIP, TRANSFORMERS, Config
from lib_ipadapter.standalone.text import TEXT_TOWERS, build_text, tokenize

TEXTS = ["a photo of a cat", "", "two dogs, one of them green, beside a house"]
ARCH = {
    "embed_dim": 32,
    "vision_cfg": {"image_size": 32, "layers": 1, "width": 32, "head_width": 16, "patch_size": 16},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 4, "layers": 3},
}


def config(folder: Path, layer: str) -> Config:
    return Config(
        unet={}, autoencoder={}, embed_dim=4, text_target=OPEN_CLIP, text={"arch": "tiny-text", "layer": layer},
        folder=folder, parameterization="eps", timesteps=1000, linear_start=0.00085, linear_end=0.012,
        scale_factor=0.18215,
    )  # fmt: skip


def random_clip(layers: int) -> Any:
    import open_clip

    torch.manual_seed(3)
    model = open_clip.CLIP(**{**ARCH, "text_cfg": {**ARCH["text_cfg"], "layers": layers}}).eval()  # type: ignore[dict-item]
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model


def hidden_of(model: Any, ids: torch.Tensor) -> torch.Tensor:
    """[B, 77, W]: what open_clip's encode_text has behind its last norm."""
    seen: list[torch.Tensor] = []
    handle = model.ln_final.register_forward_hook(lambda module, args, out: seen.append(out))
    model.encode_text(ids)
    handle.remove()
    return seen[0]


@pytest.mark.parametrize("layer", ["last", "penultimate"])
def test_the_tokens_are_those_of_open_clips_own_text_path(tmp_path: Path, layer: str) -> None:
    (tmp_path / "tiny-text.json").write_text(json.dumps(ARCH))
    model = random_clip(3)
    state = {f"model.{key}": value for key, value in model.state_dict().items() if not key.startswith("visual.")}
    tower = build_text(config(tmp_path, layer), state)
    if layer == "penultimate":
        del model.transformer.resblocks[-1]
    with torch.no_grad():
        expected = hidden_of(model, tokenize(TEXTS, pad_with_end=False))
        found = tower.encode(TEXTS)
    assert found.shape == (3, 77, 32)
    assert found.std() > 0.1
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)
    assert not torch.allclose(found[0], found[2], atol=1e-2)  # rows do not mix


def test_a_towers_config_may_lie_in_a_folder_that_the_webui_names(tmp_path: Path, monkeypatch: Any) -> None:
    """As the small world's: beside the image encoder, where the WebUI finds it, and not beside the checkpoint."""
    (tmp_path / "encoders").mkdir()
    (tmp_path / "encoders" / "elsewhere-text.json").write_text(json.dumps(ARCH))
    state = {
        f"model.{key}": value for key, value in random_clip(3).state_dict().items() if not key.startswith("visual.")
    }
    given = dataclasses.replace(config(tmp_path, "last"), text={"arch": "elsewhere-text", "layer": "last"})
    with pytest.raises(UnsupportedModel, match=r"elsewhere-text\.json beside the yaml"):
        build_text(given, state)
    monkeypatch.setenv(TEXT_TOWERS, os.pathsep.join([str(tmp_path / "none"), str(tmp_path / "encoders")]))
    assert build_text(given, state).encode(TEXTS).shape == (3, 77, 32)


def test_sd1s_tokens_are_those_of_transformers(tmp_path: Path) -> None:
    from transformers import CLIPTextConfig, CLIPTextModel

    torch.manual_seed(3)
    shape = CLIPTextConfig(
        vocab_size=49408, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=1,
        max_position_embeddings=77, hidden_act="quick_gelu",
    )  # fmt: skip
    model = CLIPTextModel(shape).eval()
    # As checkpoints have them; transformers of 5.x leaves "text_model." out
    names = (key if key.startswith("text_model.") else f"text_model.{key}" for key in model.state_dict())
    state = dict(zip((f"transformer.{name}" for name in names), model.state_dict().values(), strict=True))
    tower = build_text(dataclasses.replace(config(tmp_path, "last"), text_target=TRANSFORMERS, text={}), state)
    ids = tokenize(TEXTS, pad_with_end=True)
    with torch.no_grad():
        expected = model(input_ids=ids).last_hidden_state
        found = tower.encode(TEXTS)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)
