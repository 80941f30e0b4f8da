"""The small world's models: architectures and checkpoint file.

The UNet has its 16 cross-attention layers in SD1.5's places, the autoencoder factor 8 and 4 channels, and
the text tower is open_clip's, 64 wide: together with CLIP and the adapters they stay below 40 MB in float16.
"""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors.torch import load_file
from torch import Tensor, nn

HERE = Path(__file__).resolve().parent
WEIGHTS = HERE / "weights"
# The config's file name is the architecture's name in open_clip and in the checkpoint's yaml.
ARCH = "small-world-clip"
CLIP_CONFIG = WEIGHTS / f"{ARCH}.json"
CLIP_FILE = WEIGHTS / f"{ARCH}.safetensors"
CHECKPOINT = WEIGHTS / "small-world.safetensors"
CHECKPOINT_CONFIG = WEIGHTS / "small-world.yaml"
BASE_ADAPTER = WEIGHTS / "ip-adapter-small-world.safetensors"
PLUS_ADAPTER = WEIGHTS / "ip-adapter-plus-small-world.safetensors"
CONCAT_ADAPTER = WEIGHTS / "small-world-concat.safetensors"


def settings(config: Path | None = None) -> dict[str, Any]:
    """``model.params`` of a checkpoint's yaml; by default the small world's."""
    read = yaml.safe_load((config or CHECKPOINT_CONFIG).read_text(encoding="utf-8"))
    params: dict[str, Any] = read["model"]["params"]
    return params


def make_clip() -> Any:
    """An untrained CLIP with both towers."""
    import open_clip

    return open_clip.CLIP(**json.loads(CLIP_CONFIG.read_text(encoding="utf-8")))


def make_autoencoder(config: Path | None = None) -> nn.Module:
    """An untrained autoencoder, by the class that sampling uses."""
    from lib_ipadapter.standalone.model import Autoencoder

    stage = settings(config)["first_stage_config"]["params"]
    with contextlib.redirect_stdout(io.StringIO()):
        return Autoencoder(stage["ddconfig"], stage["embed_dim"])


def make_unet() -> Any:
    """An untrained UNet."""
    from ldm.modules.diffusionmodules.openaimodel import UNetModel

    from lib_ipadapter.standalone.model import quick

    return quick(UNetModel(**{**settings()["unet_config"]["params"], "use_checkpoint": False}))


def text_state(clip: Any) -> dict[str, Tensor]:
    """The text tower's tensors that a prompt uses, by open_clip's names. The UNet gets the last block's input, so the
    last block and the text projection are left out."""
    state: dict[str, Tensor] = clip.state_dict()
    last = f"transformer.resblocks.{len(clip.transformer.resblocks) - 1}."
    unused = ("visual.", "attn_mask", last, "text_projection", "logit_scale")
    return {key: state[key] for key in state if not key.startswith(unused)}


def checkpoint_state(unet: nn.Module, autoencoder: nn.Module, clip: Any) -> dict[str, Tensor]:
    """All parts by the key names of a checkpoint file, in float16."""
    parts: dict[str, Mapping[str, Tensor]] = {
        "model.diffusion_model.": unet.state_dict(),
        "first_stage_model.": autoencoder.state_dict(),
        "cond_stage_model.model.": text_state(clip),
    }
    return {
        f"{prefix}{key}": value.half().contiguous() for prefix, part in parts.items() for key, value in part.items()
    }


def part_of_checkpoint(prefix: str) -> dict[str, Tensor]:
    """The shipped checkpoint's tensors below ``prefix``, by the rest of their names, in float32."""
    state = load_file(CHECKPOINT)
    return {key.removeprefix(prefix): value.float() for key, value in state.items() if key.startswith(prefix)}


def schedule() -> Tensor:
    """Cumulative product of alphas [1000]; the square root of beta is linear, as in SD."""
    params = settings()
    start, end, count = params["linear_start"], params["linear_end"], params.get("timesteps", 1000)
    betas = torch.linspace(start**0.5, end**0.5, count, dtype=torch.float64) ** 2
    return (1 - betas).cumprod(0).float()
