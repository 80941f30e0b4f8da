"""A stand-in for the small world's weights: the same shapes and files, random values."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from examples.small_world import models, towers
from lib_ipadapter.attention.layers import cross_attention_layers
from tests.synthetic import adapter_tensors, write_adapter
from tests.webui.checkpoints import randomise


def write_random(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A random checkpoint and CLIP in ``folder``, from which trainings of the examples go on."""
    torch.manual_seed(1)
    parts = (models.make_unet(), models.make_autoencoder(), models.make_clip())
    monkeypatch.setattr(models, "CHECKPOINT", folder / "small.safetensors")
    monkeypatch.setattr(models, "CLIP_FILE", folder / "small-clip.safetensors")
    save_file(models.checkpoint_state(*parts), models.CHECKPOINT)
    towers.save_clip(parts[2], models.CLIP_FILE)


def write_stand_in(folder: Path) -> Path:
    """Writes what the demo and the WebUI need into ``folder``; returns it."""
    folder.mkdir(parents=True, exist_ok=True)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(4)
        clip, autoencoder, unet = models.make_clip(), models.make_autoencoder(), models.make_unet()
        for module in (autoencoder, unet):
            randomise(module)
        # The WebUI divides by the mean of the text's embedding, which a fresh LayerNorm makes zero.
        torch.nn.init.normal_(clip.ln_final.bias, mean=0.1)
    save_file(models.checkpoint_state(unet, autoencoder, clip), folder / models.CHECKPOINT.name)
    tower = {key: value.half().contiguous() for key, value in clip.state_dict().items()}
    save_file(tower, folder / models.CLIP_FILE.name)
    for path in (models.CHECKPOINT_CONFIG, models.CLIP_CONFIG):
        shutil.copy(path, folder)
    widths = tuple(layer.width for layer in cross_attention_layers(unet))
    context = clip.ln_final.bias.numel()
    vision = clip.visual.conv1.out_channels
    for variant, path, width in (
        ("base", models.BASE_ADAPTER, clip.visual.output_dim),
        ("plus", models.PLUS_ADAPTER, vision),
    ):
        tensors = adapter_tensors(variant, context, widths, width, seed=7)
        write_adapter(folder / path.name, tensors)
    return folder
