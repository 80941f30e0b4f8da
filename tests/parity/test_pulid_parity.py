"""PuLID against its authors' code on the same random weights: both encoders, each mode of attention, EVA's states."""

from __future__ import annotations

import dataclasses
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from lib_ipadapter.adapters.adapter import Adapter
from lib_ipadapter.attention.correction import Correction
from lib_ipadapter.attention.layers import cross_attention_layers
from lib_ipadapter.attention.session import Session
from lib_ipadapter.encoders import ENCODERS, EncoderSpec, ImageEncoder
from lib_ipadapter.encoders.recognise import recognise
from tests.pulid_upstream import module
from tests.tiny import UNet, inputs, prompt


def moved(made: nn.Module, seed: int = 0) -> nn.Module:
    """With every parameter away from where it starts: norms that are the identity hide what is mixed up."""
    generator = torch.Generator().manual_seed(seed)
    for value in made.parameters():
        noise = torch.randn(value.shape, generator=generator)
        value.data += 0.3 * noise if value.dim() == 1 else 0.05 * noise
    return made.eval().requires_grad_(False)


def relative(mine: Tensor, theirs: Tensor) -> float:
    assert mine.shape == theirs.shape
    return float((mine - theirs).norm() / theirs.norm())


def written(folder: Path, made: nn.Module, context: int) -> Adapter:
    flat = {f"id_adapter.{key}": value.contiguous() for key, value in made.state_dict().items()}
    flat |= {f"id_adapter_attn_layers.1.id_to_{kind}.weight": torch.randn(32, context) for kind in "kv"}
    save_file(flat, folder / "a.safetensors")
    return Adapter.load(folder / "a.safetensors")


def features(faces: int = 1) -> tuple[Tensor, Tensor, list[Tensor]]:
    """(z of upstream's [n, 1280], [n, 512] and [n, 768] of it before its norm, hidden states)"""
    torch.manual_seed(5)
    face, pooled = 20 * torch.randn(faces, 512), 3 * torch.randn(faces, 768)
    return face, pooled, [torch.randn(1, faces * 37, 1024) for _ in range(5)]


def z_of(face: Tensor, pooled: Tensor) -> Tensor:
    """As pipeline.py has it."""
    return torch.cat([face, torch.div(pooled, torch.norm(pooled, 2, 1, True))], dim=-1)


def test_v1_at_its_real_size(tmp_path):
    theirs = moved(module("pulid.encoders").IDEncoder())
    adapter = written(tmp_path, theirs, 2048)
    assert adapter.spec.variant == "pulid"
    face, pooled, hidden = features()
    mine = adapter.tokens({"raw face": face, "pooled": pooled, "levels": torch.stack(hidden, 1)})
    nothing = adapter.tokens({"raw face": face * 0, "pooled": pooled * 0, "levels": torch.stack(hidden, 1) * 0})
    error = relative(mine, theirs(z_of(face, pooled), hidden))
    of_nothing = relative(nothing, theirs(torch.zeros(1, 1280), [h * 0 for h in hidden]))
    print(f"\nPuLID v1: tokens {tuple(mine.shape)}, relative error {error:.1e}, of nothing {of_nothing:.1e}")
    assert max(error, of_nothing) <= 1e-4


@pytest.mark.parametrize("faces", [1, 3])
def test_v11_with_one_face_and_with_several(tmp_path, faces):
    theirs = moved(module("pulid.encoders_transformer").IDFormer(dim=256, depth=10, heads=4, output_dim=512))
    adapter = written(tmp_path, theirs, 512)
    assert adapter.spec.variant == "pulid-v1.1"
    face, pooled, hidden = features(faces)
    levels = torch.stack(hidden, 1)
    given = {"raw face": face[None], "pooled": pooled[None], "levels": levels}
    mine = adapter.tokens(given if faces > 1 else {"raw face": face, "pooled": pooled, "levels": levels})
    reference = theirs(torch.stack(list(z_of(face, pooled).split(1)), dim=1), hidden)
    alone = {"raw face": face[:1] * 0, "pooled": pooled[:1] * 0, "levels": levels[:, :, :37] * 0}
    error = relative(mine, reference)
    of_nothing = relative(adapter.tokens(alone), theirs(torch.zeros(1, 1280), [h[:, :37] * 0 for h in hidden]))
    print(f"\nPuLID v1.1, {faces} faces: relative error {error:.1e}, of nothing {of_nothing:.1e}")
    assert max(error, of_nothing) <= 1e-4


@pytest.mark.parametrize("mode", ["off", "ortho", "ortho_v2"])
@pytest.mark.parametrize("zeros", [0, 8, 20])
@pytest.mark.parametrize("tokens", [10, 32])
def test_attention(monkeypatch, mode, zeros, tokens):
    code = module("pulid.attention_processor")
    monkeypatch.setattr(code, "NUM_ZERO", zeros)
    monkeypatch.setattr(code, "ORTHO", mode == "ortho")
    monkeypatch.setattr(code, "ORTHO_v2", mode == "ortho_v2")
    torch.manual_seed(0)
    unet = UNet().eval().requires_grad_(False)
    layer = cross_attention_layers(unet)[0]
    one = prompt(unet, tokens=tokens, weight=0.8, merge=Correction(mode, zeros))
    their = code.IDAttnProcessor2_0(hidden_size=layer.width, cross_attention_dim=layer.context)
    to_k, to_v = one.adapter.weights(0)
    their.id_to_k.weight.data, their.id_to_v.weight.data = to_k, to_v
    attn = SimpleNamespace(
        **{name: getattr(layer.module, name) for name in ("to_q", "to_k", "to_v", "to_out", "heads")},
        spatial_norm=None, group_norm=None, norm_cross=False, residual_connection=False, rescale_output_factor=1.0,
    )  # fmt: skip
    x, context = inputs(2, length=64)
    with torch.no_grad():
        theirs = their(attn, x, context, id_embedding=one.tokens[[1, 0]], id_scale=0.8)
        session = Session([one])
        with session.attached(unet):
            session.begin_step([1, 0], 0.0)
            session.call(x, {"context": context})
            mine = layer.module(x, context)
        assert relative(layer.module(x, context), theirs) > 1e-2
    error = relative(mine, theirs)
    print(f"\n{mode}, {zeros} zeros, {tokens} tokens: relative error {error:.1e}")
    assert error <= 1e-4


EVA = EncoderSpec("eva", 56, 14, 128, 24, 2, 48, mlp_ratio=8 / 3, timm=("eva02_large_patch14_clip_336", "token", ""))


def test_states_of_eva_clip(tmp_path, monkeypatch):
    timm = pytest.importorskip("timm", reason="timm is not installed")
    pytest.importorskip("einops", reason="einops is not installed")
    theirs = moved(module("eva_clip.eva_vit_model").EVAVisionTransformer(
        img_size=56, patch_size=14, num_classes=48, embed_dim=128, depth=24, num_heads=2, mlp_ratio=2.6667,
        qkv_bias=True, drop_path_rate=0, norm_layer=partial(nn.LayerNorm, eps=1e-6), use_mean_pooling=False,
        rope=True, pt_hw_seq_len=16, intp_freq=True, naiveswiglu=True, subln=True,
    ))  # fmt: skip
    flat = {f"visual.{key}": value.contiguous().clone() for key, value in theirs.state_dict().items()}
    text = {"text.positional_embedding": torch.ones(77, 7), "logit_scale": torch.ones(())}
    path = tmp_path / "eva.pt"
    torch.save(flat | text, path)
    real = timm.create_model
    small = {"depth": 24, "embed_dim": 128, "num_heads": 2}
    monkeypatch.setattr(timm, "create_model", lambda name, **more: real(name, **{**small, **more}))
    monkeypatch.setitem(ENCODERS, "eva", EVA)
    assert recognise(path).spec == EVA
    encoder = ImageEncoder.load(path)
    values = torch.rand(1, 3, 70, 70, generator=torch.Generator().manual_seed(1))
    found = encoder.encode_values(values, "levels")
    from torchvision.transforms import InterpolationMode
    from torchvision.transforms.functional import normalize, resize

    square = resize(values, 56, InterpolationMode.BICUBIC, antialias=False)
    pooled, hidden = theirs(normalize(square, EVA.mean, EVA.std), return_hidden=True)
    errors = [relative(mine, one) for mine, one in zip(found.levels.unbind(1), hidden, strict=True)]
    errors.append(relative(found.pooled, pooled))
    print(f"\nEVA02-CLIP: relative errors {', '.join(f'{error:.1e}' for error in errors)}")
    assert max(errors) <= 1e-4
    # the same tower in open_clip's layout, and alone
    state = {key: value.contiguous() for key, value in encoder.tower.state_dict().items()}
    for prefix in ("visual.", "", "module.visual."):
        cut = len("trunk.") if prefix == "" else 0
        save_file({prefix + key[cut:]: value for key, value in state.items()}, tmp_path / "b.safetensors")
        again = ImageEncoder.load(tmp_path / "b.safetensors").encode_values(values, "levels")
        assert torch.equal(again.levels, found.levels)


def test_the_real_tower_is_known_by_its_sizes():
    assert dataclasses.replace(ENCODERS["EVA02-L-14-336"]).shape.hidden == 2730
    timm = pytest.importorskip("timm", reason="timm is not installed")
    with torch.device("meta"):
        tower = timm.create_model("eva02_large_patch14_clip_336", num_classes=768, global_pool="token", img_size=336)
    spec = ENCODERS["EVA02-L-14-336"]
    assert tower.blocks[0].mlp.fc1_g.weight.shape == (spec.shape.hidden, spec.width)
    assert (tower.pos_embed.shape[1], len(tower.blocks), tower.blocks[0].attn.num_heads) == (577, 24, 16)
