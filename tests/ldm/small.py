"""Small random checkpoints of both text towers, an encoder and adapters for them, in one folder."""

from __future__ import annotations

import atexit
import functools
import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from PIL import Image
from safetensors.torch import save_file

from tests.synthetic import adapter_tensors, write_adapter
from tests.webui.checkpoints import config_text, state_dict
from tests.webui.networks import CONTEXT, EMBED, SD1_WIDTHS, write_encoder

TRANSFORMERS = "ldm.modules.encoders.modules.FrozenCLIPEmbedder"


def write_small(folder: Path, parameterization: str = "eps") -> Path:
    """The checkpoint that the real WebUI is tested with, and its yaml beside it."""
    path = folder / f"small-{parameterization}.safetensors"
    save_file(_state(), str(path))
    config = yaml.safe_load(config_text("sd1"))
    config["model"]["params"]["parameterization"] = parameterization
    path.with_suffix(".yaml").write_text(yaml.safe_dump(config))
    return path


@functools.cache
def _state() -> dict[str, torch.Tensor]:
    with torch.random.fork_rng(devices=[]):
        return state_dict("sd1")


def write_small_clip(folder: Path, small: Path) -> Path:
    """The same with SD1's own text tower, transformers' CLIP, as a pickle of the original layout."""
    path = folder / "small-clip.ckpt"
    state = {key: value for key, value in _state().items() if not key.startswith("cond_stage_model.")}
    tower = clip_tower()
    state.update({f"cond_stage_model.transformer.{key}": v for key, v in tower.state_dict().items()})
    torch.save({"state_dict": state, "global_step": 7}, path)
    config = yaml.safe_load(small.with_suffix(".yaml").read_text())
    config["model"]["params"]["cond_stage_config"] = {"target": TRANSFORMERS}
    path.with_suffix(".yaml").write_text(yaml.safe_dump(config))
    return path


def clip_tower() -> Any:
    """transformers' CLIP text tower, two layers, as wide as the small UNet's context."""
    from transformers import CLIPTextConfig, CLIPTextModel

    config = CLIPTextConfig(
        hidden_size=CONTEXT, intermediate_size=512, num_hidden_layers=2, num_attention_heads=CONTEXT // 64
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(11)
        return CLIPTextModel(config).eval()


def write_all(folder: Path) -> Path:
    """small-eps and small-v with their yaml, encoders/, base, plus and wide adapters; returns ``folder``."""
    shutil.copytree(_made(), folder, dirs_exist_ok=True)
    return folder


@functools.cache
def _made() -> Path:
    """The files, made once; they are copied, as a test may change its own."""
    folder = Path(tempfile.mkdtemp(prefix="ipadapter-ldm-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    small = write_small(folder)
    write_small(folder, "v")
    write_small_clip(folder, small)
    write_encoder(folder / "encoders")
    for variant, width in {"base": EMBED, "plus": 128}.items():
        write_adapter(folder / f"{variant}.safetensors", adapter_tensors(variant, CONTEXT, SD1_WIDTHS, width, seed=7))
    write_adapter(folder / "wide.safetensors", adapter_tensors("base", 384, SD1_WIDTHS, EMBED))
    return folder


def difference(a: Image.Image, b: Image.Image) -> int:
    """The largest, of 255."""
    return int(np.abs(np.asarray(a, dtype=int) - np.asarray(b, dtype=int)).max())


def noise_picture(seed: int, size: tuple[int, int] = (64, 64)) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(pixels)
