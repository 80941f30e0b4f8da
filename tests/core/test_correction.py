"""PuLID's correction in the hooks: the formula as stated anew, beside other units, in regions, with heat maps."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor

from lib_ipadapter.attention.correction import Correction, attended, corrected
from lib_ipadapter.attention.heatmaps.recorder import Recorder
from lib_ipadapter.attention.keyvalue import Projected
from lib_ipadapter.attention.layers import cross_attention_layers
from lib_ipadapter.attention.region import Region
from lib_ipadapter.attention.session import ImagePrompt, Session
from lib_ipadapter.attention.term import add_term
from lib_ipadapter.cache import Cache
from lib_ipadapter.unit import pulid as fields
from tests.pulid_formula import attention, pulid
from tests.tiny import UNet, inputs, prompt

MODES = [("off", 0), ("off", 3), ("ortho", 0), ("ortho", 16), ("ortho_v2", 0), ("ortho_v2", 8), ("ortho_v2", 20)]


@pytest.fixture
def unet() -> UNet:
    torch.manual_seed(0)
    return UNet().eval().requires_grad_(False)


def face(unet: UNet, mode: str = "ortho_v2", zeros: int = 8, tokens: int = 8, **more) -> ImagePrompt:
    return prompt(unet, tokens=tokens, merge=Correction(mode, zeros), **more)


def seen(unet: UNet, prompts: list[ImagePrompt], sets=(0, 1), **more) -> tuple[Tensor, Tensor, Tensor]:
    """(q, Z, what goes into to_out) of the first layer."""
    layer, found = cross_attention_layers(unet)[0], {}
    x, context = inputs(len(sets), **more)
    q = layer.module.to_q.register_forward_hook(lambda m, args, out: found.update(q=out.clone()))
    before = layer.module.to_out[0].register_forward_pre_hook(lambda m, args: found.update(z=args[0].clone()))
    session = Session(prompts)
    with session.attached(unet):
        after = layer.module.to_out[0].register_forward_pre_hook(lambda m, args: found.update(out=args[0].clone()))
        session.begin_step(sets, 0.0)
        unet(x, context=context)
    for handle in (q, before, after):
        handle.remove()
    return found["q"], found["z"], found["out"]


def wanted(unet: UNet, one: ImagePrompt, q: Tensor, z: Tensor, sets=(0, 1)) -> Tensor:
    layer = cross_attention_layers(unet)[0]
    to_k, to_v = one.adapter.weights(layer.position)
    how = one.merge
    assert how is not None
    return pulid(q, z, one.tokens[list(sets)], to_k, to_v, layer.heads, how.mode, how.zeros, one.weight)


@pytest.mark.parametrize(("mode", "zeros"), MODES)
@pytest.mark.parametrize("tokens", [4, 8, 10, 32])
def test_each_mode_is_its_formula(unet, mode, zeros, tokens):
    one = face(unet, mode, zeros, tokens, weight=0.8)
    q, z, out = seen(unet, [one], sets=(1, 0, 0))
    torch.testing.assert_close(out, wanted(unet, one, q, z, (1, 0, 0)), rtol=1e-4, atol=1e-5)
    assert not torch.allclose(out, z, atol=1e-2)


def test_modes_differ_and_zeros_dampen(unet):
    found = {args: seen(unet, [face(unet, *args)])[2] for args in MODES}
    outs = list(found.values())
    assert all(not torch.allclose(a, b, atol=1e-3) for i, a in enumerate(outs) for b in outs[:i])
    _, z, _ = seen(unet, [face(unet)])
    strength = [(found["off", n] - z).norm() for n in (0, 3)]
    assert strength[1] < strength[0]


def test_orthogonal_to_z_over_the_picture():
    torch.manual_seed(0)
    z, t = torch.randn(2, 9, 16), torch.randn(2, 9, 16)
    added = corrected(z, t, None)
    assert (z * added).sum(1).abs().max() < 1e-4
    torch.testing.assert_close(corrected(z, t, torch.ones(2, 9, 1)), t)
    torch.testing.assert_close(corrected(z, t, torch.zeros(2, 9, 1)), added)
    assert corrected(torch.zeros(1, 4, 2), torch.ones(1, 4, 2), None).equal(torch.ones(1, 4, 2))


def test_it_is_computed_in_float32():
    torch.manual_seed(0)
    z, t = torch.randn(1, 4096, 8) * 8, torch.randn(1, 4096, 8) * 8
    added = corrected(z.half(), t.half(), None)
    assert added.dtype == torch.float32
    torch.testing.assert_close(added, corrected(z.half().float(), t.half().float(), None))
    assert add_term(z.half(), added).dtype == torch.float16
    torch.testing.assert_close(add_term(z.half(), added), (z.half().float() + added).half())
    wide = attended(torch.full((1, 4, 8), 200.0).half(), torch.full((1, 2, 6, 4), 200.0).half())
    torch.testing.assert_close(wide, torch.full((1, 4, 1), 5 / 6))  # 160000 is no half


def test_a_long_query_is_done_in_parts(monkeypatch):
    torch.manual_seed(0)
    query, key = torch.randn(2, 50, 8), torch.randn(2, 2, 7, 4)
    whole = attended(query, key)
    monkeypatch.setattr("lib_ipadapter.attention.correction._SCORES", 2 * 2 * 7 * 8)
    torch.testing.assert_close(attended(query, key), whole)


@pytest.mark.parametrize("first", [True, False])
def test_beside_other_units_each_is_corrected_against_z_alone(unet, first):
    one, second = face(unet), face(unet, "ortho", 2, weight=0.5)
    plain = prompt(unet, 1)
    prompts = [one, plain, second] if first else [plain, second, one]
    _, z, out = seen(unet, prompts)
    alone = [seen(unet, [each])[2] - z for each in prompts]
    torch.testing.assert_close(out, z + sum(alone), rtol=1e-4, atol=1e-5)


class OfPictures(UNet):
    """Takes latents [B, C, 3, 3]."""

    def forward(self, x: Tensor, timesteps: Tensor | None = None, context: Tensor | None = None) -> Tensor:
        return super().forward(x.flatten(2).mT, context=context)


def test_a_region_is_on_the_final_correction():
    torch.manual_seed(0)
    unet = OfPictures().eval().requires_grad_(False)
    layer = cross_attention_layers(unet)[0]
    mask = torch.zeros(3, 3)
    mask[0, 0], mask[2, 1] = 1, 0.5
    x, context = inputs(2)

    def run(one: ImagePrompt) -> tuple[Tensor, Tensor]:
        found = []
        before = layer.module.to_out[0].register_forward_pre_hook(lambda m, args: found.append(args[0].clone()))
        session = Session([one])
        with session.attached(unet):
            after = layer.module.to_out[0].register_forward_pre_hook(lambda m, args: found.append(args[0].clone()))
            session.begin_step([0, 1], 0.0)
            unet(x.mT.unflatten(2, (3, 3)), context=context)
        before.remove()
        after.remove()
        return found[0], found[1]

    for mode in ("off", "ortho", "ortho_v2"):
        one = face(unet, mode)
        z, whole = run(one)
        _, limited = run(dataclasses.replace(one, region=Region(mask)))
        torch.testing.assert_close(limited, z + (whole - z) * mask.reshape(1, 9, 1), rtol=1e-4, atol=1e-5)
        assert torch.equal(limited[:, 1:7], z[:, 1:7])


def test_rows_may_be_split_and_weight_0_is_the_base(unet):
    x, context = inputs(2)
    base = unet(x, context=context)

    def run(one, parts):
        session = Session([one])
        with session.attached(unet):
            session.begin_step([0, 1], 0.0)
            return torch.cat([unet(x[p], context=context[p]) for p in parts])

    both = run(face(unet), [slice(0, 2)])
    torch.testing.assert_close(run(face(unet), [slice(0, 1), slice(1, 2)]), both, rtol=1e-4, atol=1e-5)
    assert torch.equal(run(face(unet, weight=0.0), [slice(0, 2)]), base)
    assert torch.equal(unet(x, context=context), base)


def test_kept_keys_and_values_know_their_zeros(unet):
    store: Cache[Projected] = Cache(lambda: 1 << 20, lambda entry: entry.nbytes)
    x, context = inputs(2)

    def run(one):
        session = Session([dataclasses.replace(one, key="a")], store=store)
        with session.attached(unet):
            session.begin_step([0, 1], 0.0)
            return unet(x, context=context)

    found = [run(face(unet, "off", zeros)) for zeros in (0, 8, 0)]
    assert torch.equal(found[0], found[2])
    assert not torch.allclose(found[0], found[1], atol=1e-3)


def test_heat_maps_leave_the_zeros_out(unet):
    one = face(unet, maps=2)
    recorder = Recorder.of([one])
    calls = []
    recorder.term = lambda prompt, layer, places, query, key, term: calls.append(key.shape[2])
    session = Session([one], observer=recorder)
    x, context = inputs(2)
    with session.attached(unet):
        session.begin_step([0, 1], 0.0)
        unet(x, context=context)
    assert set(calls) == {8}


def test_restated_attention_is_torchs():
    torch.manual_seed(0)
    q, k, v = torch.randn(2, 9, 8), torch.randn(2, 5, 8), torch.randn(2, 5, 8)
    heads = [x.unflatten(-1, (2, 4)).transpose(1, 2) for x in (q, k, v)]
    theirs = torch.nn.functional.scaled_dot_product_attention(*heads).transpose(1, 2).flatten(2)
    torch.testing.assert_close(attention(q, k, v, 2), theirs)


# the fields


@pytest.mark.parametrize(
    ("given", "default", "mode", "zeros"),
    [
        (("auto", "auto", -1.0), "fidelity", "ortho_v2", 8),
        (("auto", "auto", -1.0), "v1.1", "ortho_v2", 20),
        (("style", "auto", -1.0), "v1.1", "ortho", 16),
        (("fidelity", "off", -1.0), "v1.1", "off", 8),
        (("v1.1", "auto", 0.0), "fidelity", "ortho_v2", 0),
        (("auto", "ortho", 3.0), "fidelity", "ortho", 3),
    ],
)
def test_what_a_unit_says_counts_before_its_preset(given, default, mode, zeros):
    assert fields.resolved(*given, default) == (mode, zeros)
