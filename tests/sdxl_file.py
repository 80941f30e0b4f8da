"""A small random SDXL in one file, in Stability's layout, with both text towers."""

from __future__ import annotations

import contextlib
import io
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from lib_ipadapter.standalone.model import Autoencoder
from lib_ipadapter.standalone.sdxl import UnetShape, build_unet

WIDTH, EMBED, SIZE_WIDTH = 64, 96, 16  # of each text tower, of the pooled text, of an embedded size
ADM = EMBED + 6 * SIZE_WIDTH
# One residual block a level; transformers as SDXL's: none, then one block, then two
DEPTHS = {
    "input_blocks.3.1": 1, "input_blocks.5.1": 2, "middle_block.1": 2,
    "output_blocks.0.1": 2, "output_blocks.1.1": 2, "output_blocks.2.1": 1, "output_blocks.3.1": 1,
}  # fmt: skip
SHAPE = UnetShape(4, 4, 32, (1, 2, 4), (1, 1, 1), DEPTHS, 2 * WIDTH, ADM)
VAE: dict[str, Any] = {
    "double_z": True, "z_channels": 4, "resolution": 256, "in_channels": 3, "out_ch": 3, "ch": 32,
    "ch_mult": [1, 1, 2, 2], "num_res_blocks": 1, "attn_resolutions": [], "dropout": 0.0,
}  # fmt: skip
OPEN_CLIP: dict[str, Any] = {
    "embed_dim": EMBED,
    "vision_cfg": {"image_size": 32, "layers": 1, "width": 64, "patch_size": 32},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": WIDTH, "heads": 1, "layers": 3},
}  # fmt: skip


def clip_config() -> Any:
    """transformers' tower."""
    from transformers import CLIPTextConfig

    return CLIPTextConfig(
        hidden_size=WIDTH, intermediate_size=4 * WIDTH, num_hidden_layers=3, num_attention_heads=1,
        hidden_act="quick_gelu", bos_token_id=49406, eos_token_id=49407, projection_dim=WIDTH,
    )  # fmt: skip


def parts() -> dict[str, nn.Module]:
    """The models by the prefix of their keys; no weight that matters is zero."""
    import open_clip
    from transformers import CLIPTextModel

    with contextlib.redirect_stdout(io.StringIO()):
        torch.manual_seed(0)
        unet, stage = build_unet(SHAPE), Autoencoder(VAE, 4)
    text = open_clip.CLIP(**OPEN_CLIP)
    del text.visual
    made: dict[str, nn.Module] = {
        "model.diffusion_model.": unet, "first_stage_model.": stage,
        "conditioner.embedders.0.transformer.": CLIPTextModel(clip_config()), "conditioner.embedders.1.model.": text,
    }  # fmt: skip
    for module in made.values():
        for parameter in module.parameters():
            if not parameter.any() or parameter.ndim == 1:
                nn.init.normal_(parameter, mean=float(parameter.mean() > 0.5), std=0.2)
    return made


def state_dict() -> dict[str, Tensor]:
    """The checkpoint's tensors, float32."""
    found = {
        f"{prefix}{key}": value for prefix, module in parts().items() for key, value in module.state_dict().items()
    }
    return {
        key: value.detach().contiguous().clone() for key, value in found.items() if not key.endswith(("attn_mask",))
    }


def write_sdxl(path: Path, **marks: Tensor) -> Path:
    """The file; marks: further tensors, such as v_pred and ztsnr. The random state outside is not changed."""
    with torch.random.fork_rng(devices=[]):
        save_file({**state_dict(), **marks}, str(path))
    return path


def mark() -> Tensor:
    """What files with v-prediction have under v_pred."""
    return torch.zeros(0)
