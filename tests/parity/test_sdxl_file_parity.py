"""SDXL in one file against diffusers, of which the file is converted by diffusers' own rules."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lib_ipadapter.standalone.host import Standalone
from lib_ipadapter.standalone.sdxl import SCALE
from lib_ipadapter.training.base import Sizes, open_base
from tests.parity.folders import tokenizer
from tests.sdxl_file import ADM, EMBED, SIZE_WIDTH, WIDTH, clip_config, mark, write_sdxl

diffusers = pytest.importorskip("diffusers", reason="diffusers is not installed")
pytest.importorskip("ldm", reason="stable-diffusion-sdkit is not installed")
pytest.importorskip("accelerate", reason="accelerate is not installed")

CPU = torch.device("cpu")
TEXTS = ["a red star on a blue ground", ""]


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_sdxl(tmp_path_factory.mktemp("sdxl") / "small.safetensors")


@pytest.fixture(scope="module")
def state(path: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return load_file(str(path))


@pytest.fixture(scope="module")
def unet(state: dict[str, torch.Tensor]) -> Any:
    model = diffusers.UNet2DConditionModel(
        sample_size=8, layers_per_block=1, block_out_channels=(32, 64, 128), attention_head_dim=(1, 1, 2),
        transformer_layers_per_block=(1, 1, 2), use_linear_projection=True, cross_attention_dim=2 * WIDTH,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"), addition_embed_type="text_time",
        addition_time_embed_dim=SIZE_WIDTH, projection_class_embeddings_input_dim=ADM,
    )  # fmt: skip
    from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint

    config = {**model.config, "class_embed_type": None, "addition_embed_type": "text_time"}
    model.load_state_dict(convert_ldm_unet_checkpoint(dict(state), config))
    return model.eval()


@pytest.fixture(scope="module")
def vae(state: dict[str, torch.Tensor]) -> Any:
    model = diffusers.AutoencoderKL(
        block_out_channels=(32, 32, 64, 64), latent_channels=4, layers_per_block=1, scaling_factor=SCALE,
        down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
    )  # fmt: skip
    from diffusers.loaders.single_file_utils import convert_ldm_vae_checkpoint

    model.load_state_dict(convert_ldm_vae_checkpoint(dict(state), model.config))
    return model.eval()


@pytest.fixture(scope="module")
def towers(state: dict[str, torch.Tensor]) -> list[Any]:
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    first = CLIPTextModel(clip_config())
    prefix = "conditioner.embedders.0.transformer."
    first.load_state_dict({k[len(prefix) :]: v for k, v in state.items() if k.startswith(prefix)}, strict=False)
    config = CLIPTextConfig(
        hidden_size=WIDTH, intermediate_size=4 * WIDTH, num_hidden_layers=3, num_attention_heads=1, hidden_act="gelu",
        projection_dim=EMBED, bos_token_id=49406, eos_token_id=49407, pad_token_id=0,
    )  # fmt: skip
    second = CLIPTextModelWithProjection(config)
    theirs = open_clip_as_transformers(state, "conditioner.embedders.1.model.")
    missing = second.load_state_dict(theirs, strict=False).missing_keys
    assert all("position_ids" in key for key in missing)
    return [first.eval(), second.eval()]


def open_clip_as_transformers(state: dict[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    """By hand: the names of the two libraries, side by side."""
    own = {key[len(prefix) :]: value for key, value in state.items() if key.startswith(prefix)}
    found = {
        "text_projection.weight": own["text_projection"].T.contiguous(),
        "text_model.embeddings.token_embedding.weight": own["token_embedding.weight"],
        "text_model.embeddings.position_embedding.weight": own["positional_embedding"],
        "text_model.final_layer_norm.weight": own["ln_final.weight"],
        "text_model.final_layer_norm.bias": own["ln_final.bias"],
    }
    names = {"ln_1": "layer_norm1", "ln_2": "layer_norm2", "mlp.c_fc": "mlp.fc1", "mlp.c_proj": "mlp.fc2",
             "attn.out_proj": "self_attn.out_proj"}  # fmt: skip
    for i in range(3):
        ours, theirs = f"transformer.resblocks.{i}.", f"text_model.encoder.layers.{i}."
        for kind in ("weight", "bias"):
            for a, b in names.items():
                found[f"{theirs}{b}.{kind}"] = own[f"{ours}{a}.{kind}"]
            for part, name in zip(own[f"{ours}attn.in_proj_{kind}"].chunk(3), "qkv", strict=True):
                found[f"{theirs}self_attn.{name}_proj.{kind}"] = part
    return found


def theirs_of(towers: list[Any], tmp_path: Path) -> tuple[torch.Tensor, torch.Tensor]:
    """As StableDiffusionXLPipeline.encode_prompt has them, the second tower's padding being 0."""
    own = tokenizer(tmp_path / "vocabulary")
    hidden, pooled = [], None
    for tower, padding in zip(towers, ("<|endoftext|>", "!"), strict=True):
        own.pad_token = padding
        ids = own(TEXTS, padding="max_length", max_length=77, truncation=True, return_tensors="pt").input_ids
        with torch.no_grad():
            out = tower(ids, output_hidden_states=True)
        hidden.append(out.hidden_states[-2])
        pooled = out[0]
    assert pooled is not None
    return torch.cat(hidden, -1), pooled


def test_texts_are_those_of_diffusers(path, towers, tmp_path):
    base = open_base(path, None, CPU, torch.float32)
    tokens, pooled = theirs_of(towers, tmp_path)
    text = base.text(TEXTS)
    assert text.tokens.shape == (2, 77, 2 * WIDTH)
    torch.testing.assert_close(text.tokens, tokens, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(text.pooled, pooled, rtol=1e-4, atol=1e-4)


def test_the_unet_is_that_of_diffusers(path, unet):
    base = open_base(path, None, CPU, torch.float32)
    assert (base.sdxl, base.resolution, base.factor, base.multiple, base.v) == (True, 1024, 8, 32, False)
    assert len(base.layers) == sum(n for n in (1, 2, 2, 2, 1, 1, 2))
    draw = torch.Generator().manual_seed(0)
    x, times = torch.randn(2, 4, 8, 12, generator=draw), torch.tensor([3, 800])
    text = base.text(TEXTS)
    sizes = Sizes(torch.tensor([[100.0, 150, 0, 7, 64, 96], [1024, 768, 3, 0, 64, 96]]))
    with torch.no_grad():
        added = {"text_embeds": text.pooled, "time_ids": sizes.ids}
        theirs = unet(x, times, text.tokens, added_cond_kwargs=added).sample
        ours = base.predict(x, times, text, sizes)
        other = base.predict(x, times, text, Sizes(sizes.ids.flip(0)))
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
    assert (ours - other).abs().max() > 1e-3, "the sizes count"


def test_the_autoencoder_is_that_of_diffusers(path, vae):
    base = open_base(path, None, CPU, torch.float32)
    pixels = torch.rand(1, 3, 64, 96, generator=torch.Generator().manual_seed(1)) * 2 - 1
    with torch.no_grad():
        posterior = vae.encode(pixels).latent_dist
        wanted = torch.cat([posterior.mean, posterior.std], 1) * SCALE
        moments = base.moments(pixels)
        torch.testing.assert_close(moments, wanted, rtol=1e-4, atol=1e-4)
        theirs = vae.decode(moments[:, :4] / SCALE).sample.clamp(-1, 1)
        torch.testing.assert_close(base.decode(moments[:, :4]), theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("negative", ["", "blurred"])
def test_a_picture_is_that_of_diffusers(path, unet, vae, towers, tmp_path, negative):
    """DDIM over diffusers' models, by hand: no negative text is zeros, sizes are the picture's own."""
    host = Standalone.load(path, path.with_suffix(".yaml"))
    picture = host.generate("a red star on a blue ground", negative, steps=4, cfg=5.0, seed=3, size=(96, 64))[0]
    base = open_base(path, None, CPU, torch.float32)
    text = base.text([TEXTS[0], negative])  # equal to theirs, as tested above
    tokens, pooled = text.tokens.clone(), text.pooled.clone()
    if not negative:
        tokens[1], pooled[1] = 0, 0
    alphas = diffusers.DDIMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear").alphas_cumprod
    ids = torch.tensor([[64.0, 96, 0, 0, 64, 96]] * 2)
    x = torch.randn((1, 4, 8, 12), generator=torch.Generator().manual_seed(3))
    times = [751, 501, 251, 1]
    with torch.no_grad():
        for i, t in enumerate(times):
            out = unet(torch.cat([x, x]), t, tokens, added_cond_kwargs={"text_embeds": pooled, "time_ids": ids}).sample
            eps = out[1:] + 5.0 * (out[:1] - out[1:])
            a = alphas[t]
            before = alphas[times[i + 1]] if i + 1 < len(times) else alphas[0]
            x = before.sqrt() * (x - (1 - a).sqrt() * eps) / a.sqrt() + (1 - before).sqrt() * eps
        pixels = vae.decode(x / SCALE).sample.clamp(-1, 1)[0]
    wanted = ((pixels + 1) * 127.5).round().byte().permute(1, 2, 0).numpy()
    assert picture.size == (96, 64)
    assert np.abs(np.asarray(picture).astype(int) - wanted.astype(int)).max() <= 1
    assert np.asarray(picture).std() > 3


def test_zero_terminal_snr_is_that_of_diffusers(tmp_path):
    theirs = diffusers.DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", prediction_type="v_prediction",
        rescale_betas_zero_snr=True, timestep_spacing="trailing", clip_sample=False, set_alpha_to_one=False,
    )  # fmt: skip
    path = write_sdxl(tmp_path / "v.safetensors", v_pred=mark(), ztsnr=mark())
    base = open_base(path, None, CPU, torch.float32)
    assert base.v
    assert base.alphas[-1] == 0
    torch.testing.assert_close(base.alphas, theirs.alphas_cumprod, rtol=1e-4, atol=1e-6)
    from lib_ipadapter.standalone.sampler import Schedule

    for steps in (1, 4, 7, 50):
        theirs.set_timesteps(steps)
        assert Schedule.of(base.alphas, True, steps).timesteps == tuple(theirs.timesteps.flip(0).tolist())
    schedule = Schedule.of(base.alphas, True, 4)
    theirs.set_timesteps(4)
    x, out = torch.randn(2, 1, 4, 3, 3, generator=torch.Generator().manual_seed(0))
    for i in (3, 2, 1):
        t = schedule.timesteps[i]
        torch.testing.assert_close(schedule.step(x, out, i), theirs.step(out, t, x).prev_sample, rtol=1e-4, atol=1e-5)
