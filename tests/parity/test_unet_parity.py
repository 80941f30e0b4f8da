"""A whole UNet call with an adapter, against diffusers' IP-Adapter with the same weights.

Twice: on diffusers' own UNet (SD1's and SDXL's block layout), which pins the formula and the layer
order; and on ldm's UNet, whose weights are converted to diffusers, which pins that ldm's layers get the
same numbers. Widths are small, the layout is the real one. float32.
"""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from lib_ipadapter.adapters.adapter import Adapter
from lib_ipadapter.attention.layers import cross_attention_layers
from lib_ipadapter.attention.session import ImagePrompt, Session

diffusers = pytest.importorskip("diffusers", reason="diffusers is not installed")

CONTEXT, EMBED = 64, 48
TOLERANCE = 1e-4


def small(config: dict) -> torch.nn.Module:
    torch.manual_seed(0)
    unet = diffusers.UNet2DConditionModel(
        sample_size=8, norm_num_groups=32, cross_attention_dim=CONTEXT, layers_per_block=2, **config
    )
    return unet.eval().requires_grad_(False)


SD1 = dict(
    block_out_channels=(32, 64, 128, 128),
    attention_head_dim=8,
    down_block_types=("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
    up_block_types=("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
)
SDXL = dict(
    block_out_channels=(32, 64, 128),
    attention_head_dim=(2, 4, 8),
    transformer_layers_per_block=(1, 2, 10),
    down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    use_linear_projection=True,
)


def adapter_state(unet: torch.nn.Module) -> dict[str, dict[str, Tensor]]:
    """A base adapter of the file's layout, random."""
    g = torch.Generator().manual_seed(1)
    projection = {
        "proj.weight": torch.randn(4 * CONTEXT, EMBED, generator=g) / EMBED**0.5,
        "proj.bias": torch.randn(4 * CONTEXT, generator=g),
        "norm.weight": torch.rand(CONTEXT, generator=g),
        "norm.bias": torch.randn(CONTEXT, generator=g),
    }
    layers = {}
    number = 1
    # The file's own numbering, from diffusers' registration order and not from our layers.py.
    for name, _processor in unet.attn_processors.items():
        if name.endswith("attn2.processor"):
            width = unet.get_submodule(name.removesuffix(".processor")).to_q.out_features
            for kind in ("to_k_ip", "to_v_ip"):
                layers[f"{number}.{kind}.weight"] = torch.randn(width, CONTEXT, generator=g) / CONTEXT**0.5
            number += 2
    return {"image_proj": projection, "ip_adapter": layers}


def ours(unet, state, features, x, t, path, call) -> Tensor:
    flat = {f"{part}.{key}": tensor for part, tensors in state.items() for key, tensor in tensors.items()}
    save_file(flat, path)
    adapter = Adapter.load(path)
    tokens = torch.cat([adapter.tokens(feature[None]) for feature in features])
    prompt = ImagePrompt(adapter, tokens, torch.ones(tokens.shape[1]), weight=0.8)
    session = Session([prompt])
    with session.attached(unet):
        session.begin_step([0, 1], 0.0)
        return call(unet)


def theirs(unet, state, features, call) -> Tensor:
    unet._load_ip_adapter_weights([state])
    for processor in unet.attn_processors.values():
        if hasattr(processor, "scale"):
            processor.scale = [0.8]
    return call(unet, {"image_embeds": [features[:, None]]})


def inputs() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    g = torch.Generator().manual_seed(2)
    x = torch.randn(2, 4, 16, 16, generator=g)
    text = torch.randn(2, 7, CONTEXT, generator=g)
    features = torch.stack([torch.randn(EMBED, generator=g), torch.zeros(EMBED)])
    return x, torch.tensor([500, 500]), text, features


def relative(a: Tensor, b: Tensor) -> float:
    return float((a - b).norm() / b.norm())


@pytest.mark.parametrize(("config", "layers"), [(SD1, 16), (SDXL, 70)], ids=["sd1", "sdxl"])
def test_diffusers_unet(config, layers, tmp_path):
    unet = small(config)
    assert len(cross_attention_layers(unet)) == layers
    state = adapter_state(unet)
    x, t, text, features = inputs()
    base = unet(x, t, text).sample
    mine = ours(unet, state, features, x, t, tmp_path / "a.safetensors", lambda u: u(x, t, text).sample)
    assert torch.equal(unet(x, t, text).sample, base)
    reference = theirs(unet, state, features, lambda u, kwargs: u(x, t, text, added_cond_kwargs=kwargs).sample)
    error, effect = relative(mine, reference), relative(base, reference)
    print(f"\nUNet call, {layers} layers: relative error {error:.1e}, effect of the adapter {effect:.2f}")
    assert effect > 0.01
    assert error <= TOLERANCE


def face_id_state(unet: torch.nn.Module) -> dict[str, dict[str, Tensor]]:
    """A FaceID file's layout, random: layers and LoRA by diffusers' own numbers, attn1 before attn2 of each block."""
    state = adapter_state(unet)
    g = torch.Generator().manual_seed(3)
    state["image_proj"] = {
        "proj.0.weight": torch.randn(1024, 512, generator=g) / 512**0.5,
        "proj.0.bias": torch.randn(1024, generator=g),
        "proj.2.weight": torch.randn(4 * CONTEXT, 1024, generator=g) / 32,
        "proj.2.bias": torch.randn(4 * CONTEXT, generator=g),
        "norm.weight": torch.rand(CONTEXT, generator=g),
        "norm.bias": torch.randn(CONTEXT, generator=g),
    }
    for number, name in enumerate(unet.attn_processors):
        for target in ("to_q", "to_k", "to_v", "to_out"):
            linear = projection(unet, name, target)
            key = f"{number}.{target}_lora"
            down = torch.randn(8, linear.in_features, generator=g) / linear.in_features**0.5
            state["ip_adapter"][f"{key}.down.weight"] = down
            state["ip_adapter"][f"{key}.up.weight"] = 0.2 * torch.randn(linear.out_features, 8, generator=g)
    return state


def projection(unet: torch.nn.Module, processor: str, target: str) -> torch.nn.Module:
    attention = unet.get_submodule(processor.removesuffix(".processor"))
    return attention.to_out[0] if target == "to_out" else getattr(attention, target)


@pytest.mark.parametrize("config", [SD1, SDXL], ids=["sd1", "sdxl"])
def test_face_id_with_its_lora(config, tmp_path):
    """diffusers' FaceID projection and processors, with the file's LoRA merged into its UNet's weights."""
    unet = small(config)
    state = face_id_state(unet)
    x, t, text, _ = inputs()
    face = torch.nn.functional.normalize(torch.randn(512, generator=torch.Generator().manual_seed(4)), dim=0)
    features = torch.stack([face, torch.zeros(512)])
    base = unet(x, t, text).sample
    path = tmp_path / "a.safetensors"
    mine = ours(unet, state, features, x, t, path, lambda u: u(x, t, text).sample)
    assert torch.equal(unet(x, t, text).sample, base)
    bare = {part: {k: v for k, v in tensors.items() if "_lora" not in k} for part, tensors in state.items()}
    without = ours(unet, bare, features, x, t, path, lambda u: u(x, t, text).sample)
    for number, name in enumerate(list(unet.attn_processors)):
        for target in ("to_q", "to_k", "to_v", "to_out"):
            down, up = (state["ip_adapter"][f"{number}.{target}_lora.{part}.weight"] for part in ("down", "up"))
            projection(unet, name, target).weight += up @ down
    reference = theirs(unet, bare, features, lambda u, kwargs: u(x, t, text, added_cond_kwargs=kwargs).sample)
    error, effect = relative(mine, reference), relative(without, reference)
    print(f"\nUNet call with FaceID: relative error {error:.1e}, effect of the LoRA {effect:.2f}")
    assert effect > 0.01
    assert error <= TOLERANCE


def test_ldm_unet(tmp_path):
    openaimodel = pytest.importorskip("ldm.modules.diffusionmodules.openaimodel", reason="ldm is not installed")
    from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint

    torch.manual_seed(0)
    ldm = openaimodel.UNetModel(
        image_size=8, in_channels=4, out_channels=4, model_channels=32, attention_resolutions=[4, 2, 1],
        num_res_blocks=2, channel_mult=[1, 2, 4, 4], num_heads=8, use_spatial_transformer=True,
        transformer_depth=1, context_dim=CONTEXT, use_checkpoint=False, legacy=False,
    )  # fmt: skip
    for parameter in ldm.parameters():  # ldm zeroes its output convolutions: nothing would reach the end
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.05)
    ldm.eval().requires_grad_(False)
    other = small(SD1)
    checkpoint = {f"model.diffusion_model.{key}": value for key, value in ldm.state_dict().items()}
    other.load_state_dict(convert_ldm_unet_checkpoint(checkpoint, other.config))
    x, t, text, features = inputs()
    base_error = relative(ldm(x, t, context=text), other(x, t, text).sample)
    state = adapter_state(other)
    mine = ours(ldm, state, features, x, t, tmp_path / "a.safetensors", lambda u: u(x, t, context=text))
    reference = theirs(other, state, features, lambda u, kwargs: u(x, t, text, added_cond_kwargs=kwargs).sample)
    error = relative(mine, reference)
    print(f"\nldm against diffusers: base alone {base_error:.1e}, with the adapter {error:.1e}")
    assert error <= TOLERANCE
