"""SDXL in one file, in the layout of Stability's own code (sgm): what it is is read off its tensors.

model.diffusion_model.*     the UNet, as ldm's with an embedding of SDXL's conditions (label_emb) and several blocks in
                            a transformer
conditioner.embedders.N.*   text towers: transformers' CLIP (transformer.*) or open_clip's (model.*)
first_stage_model.*         the autoencoder, as ldm's
v_pred, ztsnr               empty tensors, in files that predict v, and with zero terminal SNR

A yaml beside the file is read for what no tensor tells, in models that are not of SDXL's own size: the width of a head,
open_clip's architecture, and v-prediction.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn

from ..controlnet.network import timestep_embedding
from ..errors import ModelError
from .config import Config, plain_yaml
from .model import Parts, autoencoder, made, part, quick
from .sdxl_text import HEAD, build_towers

UNET, TEXT, VAE = "model.diffusion_model.", "conditioner.embedders.", "first_stage_model."
SCALE = 0.13025
State = Mapping[str, Tensor]
Shapes = Mapping[str, tuple[int, ...]]


def is_sdxl(state: State) -> bool:
    """Whether a checkpoint's tensors are of this layout."""
    return f"{UNET}label_emb.0.0.weight" in state and any(key.startswith(TEXT) for key in state)


@dataclass(frozen=True)
class UnetShape:
    """channels: of the first level; mult: those of each level in channels; blocks: residual blocks of each level;
    depths: transformer blocks by the transformer's name; context: width of the text; adm: of SDXL's conditions; head:
    of an attention head; linear: whether transformers project by linear layers."""

    inputs: int
    outputs: int
    channels: int
    mult: tuple[int, ...]
    blocks: tuple[int, ...]
    depths: Mapping[str, int]
    context: int
    adm: int
    head: int = HEAD
    linear: bool = True


def unet_shape(shapes: Shapes, head: int = HEAD) -> UnetShape:
    """That of a UNet's tensors (keys below model.diffusion_model.). Raises ModelError."""
    try:
        channels, inputs = shapes["input_blocks.0.0.weight"][:2]
        widths: list[list[int]] = [[]]
        last = max(int(key.split(".")[1]) for key in shapes if key.startswith("input_blocks."))
        for number in range(1, last + 1):
            if f"input_blocks.{number}.0.op.weight" in shapes:
                widths.append([])
            else:
                widths[-1].append(shapes[f"input_blocks.{number}.0.out_layers.3.weight"][0])
        depths: dict[str, int] = {}
        for key in shapes:
            if match := re.fullmatch(r"(\w+(?:\.\d+)+)\.transformer_blocks\.(\d+)\.attn2\.to_k\.weight", key):
                depths[match[1]] = max(depths.get(match[1], 0), int(match[2]) + 1)
        first = next(iter(depths))
        return UnetShape(
            inputs=inputs, outputs=shapes["out.2.weight"][0], channels=channels,
            mult=tuple(level[-1] // channels for level in widths), blocks=tuple(map(len, widths)), depths=depths,
            context=shapes[f"{first}.transformer_blocks.0.attn2.to_k.weight"][1],
            adm=shapes["label_emb.0.0.weight"][1], head=head, linear=len(shapes[f"{first}.proj_in.weight"]) == 2,
        )  # fmt: skip
    except (KeyError, IndexError, StopIteration) as error:
        raise ModelError(f"the UNet is no SDXL that is known: {UNET}* has no {error}; use an SDXL checkpoint") from None


def build_unet(shape: UnetShape) -> Any:
    """ldm's UNet of this shape, with SDXL's conditions."""
    from ldm.modules.diffusionmodules.openaimodel import UNetModel

    levels = {int(name.split(".")[1]) for name in shape.depths if name.startswith("input_blocks.")}
    at, resolutions = 0, set()
    for level, count in enumerate(shape.blocks):
        if levels & set(range(at + 1, at + count + 1)):
            resolutions.add(2**level)
        at += count + 1
    unet: Any = UNetModel(
        image_size=32, in_channels=shape.inputs, model_channels=shape.channels, out_channels=shape.outputs,
        num_res_blocks=list(shape.blocks), attention_resolutions=sorted(resolutions), channel_mult=shape.mult,
        num_head_channels=shape.head, use_spatial_transformer=True, transformer_depth=1, context_dim=shape.context,
        use_linear_in_transformer=shape.linear, use_checkpoint=False, legacy=False,
    )  # fmt: skip
    width = 4 * shape.channels
    unet.label_emb = nn.Sequential(nn.Sequential(nn.Linear(shape.adm, width), nn.SiLU(), nn.Linear(width, width)))
    unet.num_classes = "sequential"  # so that its forward takes the conditions
    for name, module in unet.named_modules():
        if type(module).__name__ == "SpatialTransformer":
            _deepen(module, shape.depths.get(name, 1), shape.context)
    return quick(unet)


def _deepen(transformer: Any, depth: int, context: int) -> None:
    """ldm's transformers have one block with each context; SDXL's several with the same."""
    block = transformer.transformer_blocks[0]
    heads = block.attn1.heads
    inner = block.attn1.to_q.out_features
    more = [type(block)(inner, heads, inner // heads, context_dim=context, checkpoint=False) for _ in range(depth - 1)]
    transformer.transformer_blocks.extend(more)
    transformer.forward = MethodType(_transform, transformer)


def _transform(module: Any, x: Tensor, context: Tensor | None = None) -> Tensor:
    """SpatialTransformer.forward of sgm."""
    batch, _, height, width = x.shape
    hidden = module.norm(x)
    if not module.use_linear:
        hidden = module.proj_in(hidden)
    hidden = hidden.flatten(2).transpose(1, 2).contiguous()
    if module.use_linear:
        hidden = module.proj_in(hidden)
    for block in module.transformer_blocks:
        hidden = block(hidden, context=context)
    if module.use_linear:
        hidden = module.proj_out(hidden)
    hidden = hidden.transpose(1, 2).reshape(batch, -1, height, width).contiguous()
    if not module.use_linear:
        hidden = module.proj_out(hidden)
    return hidden + x


def vae_shape(shapes: Shapes) -> dict[str, Any]:
    """ldm's ddconfig of an autoencoder's tensors (keys below first_stage_model.). Raises ModelError."""
    try:
        base = shapes["encoder.conv_in.weight"][0]
        levels = 1 + max(int(key.split(".")[2]) for key in shapes if key.startswith("encoder.down."))
        return {
            "double_z": True, "z_channels": shapes["decoder.conv_in.weight"][1], "resolution": 256,
            "in_channels": shapes["encoder.conv_in.weight"][1], "out_ch": shapes["decoder.conv_out.weight"][0],
            "ch": base, "dropout": 0.0, "attn_resolutions": [],
            "ch_mult": [shapes[f"encoder.down.{i}.block.0.conv1.weight"][0] // base for i in range(levels)],
            "num_res_blocks": 1 + max(int(k.split(".")[4]) for k in shapes if k.startswith("encoder.down.0.block.")),
        }  # fmt: skip
    except (KeyError, ValueError, IndexError) as error:
        raise ModelError(
            f"the autoencoder is none that is known: {VAE}* has no {error}; use a whole checkpoint"
        ) from None


def _below(state: State, prefix: str) -> dict[str, tuple[int, ...]]:
    return {key[len(prefix) :]: tuple(value.shape) for key, value in state.items() if key.startswith(prefix)}


@dataclass(frozen=True)
class Said:
    """What the yaml beside the file says. arch: of open_clip's tower; folder: where its config may lie."""

    head: int = HEAD
    arch: str = ""
    v: bool = False
    folder: Path = Path()


def read_said(path: Path) -> Said:
    """Without a yaml, SDXL's own. Raises FileError for one that is no yaml."""
    if not os.path.isfile(path):
        return Said()
    params: Any = _at(plain_yaml(path), "model", "params")
    towers = _at(params, "conditioner_config", "params", "emb_models")
    arches = [_at(tower, "params", "arch") for tower in towers] if isinstance(towers, list) else []
    scaling = str(_at(params, "denoiser_config", "params", "scaling_config", "target"))
    head = _at(params, "network_config", "params", "num_head_channels")
    return Said(
        int(head) if isinstance(head, int) else HEAD, next((str(arch) for arch in arches if arch), ""),
        scaling.endswith("VScaling"), path.parent,
    )  # fmt: skip


def _at(value: Any, *names: str) -> Any:
    for name in names:
        value = value.get(name) if isinstance(value, Mapping) else None
    return value


def load(
    state: State, config: Path, device: torch.device, dtype: torch.dtype, predicting: Callable[[Config], Config]
) -> Parts:
    """Raises ModelError, FileError (the yaml)."""
    said = read_said(config)
    shape = unet_shape(_below(state, UNET), said.head)
    text = build_towers({key[len(TEXT) :]: value for key, value in state.items() if key.startswith(TEXT)}, said)
    zero = "ztsnr" in state
    read = predicting(
        Config(
            unet={"in_channels": shape.inputs, "out_channels": shape.outputs, "channel_mult": list(shape.mult)},
            autoencoder=vae_shape(_below(state, VAE)), embed_dim=state[f"{VAE}post_quant_conv.weight"].shape[1],
            text_target="", text={}, folder=config.parent,
            parameterization="v" if zero or said.v or "v_pred" in state else "eps", timesteps=1000,
            linear_start=0.00085, linear_end=0.012, scale_factor=SCALE, zero_snr=zero,
            size_width=(shape.adm - text.pooled_width) // 6,
        )
    )  # fmt: skip
    if shape.inputs != shape.outputs:
        raise ModelError(
            f"a UNet of {shape.inputs} input channels (inpainting), expected {shape.outputs}; use a text-to-image "
            "checkpoint, masks work with it as well"
        )
    unet = made(lambda: build_unet(shape), part(state, UNET, dtype), UNET)
    unet.dtype = dtype
    return Parts(read, unet.to(device), autoencoder(state, read).to(device), text.to(device))


def conditions(pooled: Tensor, sizes: Tensor, width: int) -> Tensor:
    """SDXL's conditions [B, P + 6 · width] of the pooled text [B, P] and the six sizes [B, 6]: each as a timestep is
    embedded (cosines, then sines)."""
    embedded = timestep_embedding(sizes.flatten(), width).reshape(len(sizes), -1)
    return torch.cat([pooled.float(), embedded.to(pooled.device)], dim=1)
