"""The LoRA that an adapter brings along, in a session: where, when and how strongly it acts."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from lib_ipadapter.attention.layers import cross_attention_layers
from lib_ipadapter.attention.region import Region
from lib_ipadapter.attention.session import COND, UNCOND, Session
from lib_ipadapter.unit.weights import Curve
from tests.tiny import UNet, inputs, linear_of, prompt

ROWS = [COND, UNCOND]


@pytest.fixture
def unet():
    torch.manual_seed(0)
    return UNet().eval().requires_grad_(False)


def called(unet, prompts, fraction=0.0, hires=False, size=None, length=9):
    """One UNet call in a step with these prompts."""
    x, context = inputs(2, length)
    session = Session(prompts)
    session.attach(unet, hires=hires)
    try:
        session.begin_step(ROWS, fraction, hires=hires, size=size)
        return call(unet, x, context, size)
    finally:
        session.detach()


def call(unet, x, context, size=None):
    """The tiny UNet takes tokens; the session reads the latents' size off what it is called with."""
    if size is None:
        return unet(x, context=context)
    handle = unet.register_forward_pre_hook(lambda module, args: (args[0].flatten(2).transpose(1, 2), *args[1:]))
    try:
        return unet(x.transpose(1, 2).unflatten(2, size), context=context)
    finally:
        handle.remove()


def merge(unet, one, strength):
    """Adds a prompt's LoRA to the weights themselves."""
    for layer in cross_attention_layers(unet):
        for number in (layer.number - 1, layer.number):
            for target in ("to_q", "to_k", "to_v", "to_out"):
                down, up = one.adapter.lora()[number, target]
                linear_of(layer, number, target).weight.add_(strength * up @ down)


@pytest.mark.parametrize("strength", [1.0, 0.6, 2.0])
def test_it_equals_the_merged_lora(unet, strength):
    acting = prompt(unet, rank=3, lora=strength)
    base, x = called(unet, []), inputs(2)
    mine = called(unet, [acting])
    without = called(unet, [dataclasses.replace(acting, lora=0.0)])
    assert torch.equal(unet(x[0], context=x[1]), base)
    merge(unet, acting, strength)
    wanted = called(unet, [dataclasses.replace(acting, lora=0.0)])
    torch.testing.assert_close(mine, wanted, rtol=1e-4, atol=1e-5)
    assert (wanted - without).abs().max() > 0.1


def test_the_prompts_weight_does_not_scale_it_but_at_0_there_is_none(unet):
    acting = prompt(unet, rank=3, weight=0.3)
    off = called(unet, [dataclasses.replace(acting, weight=0.0)])
    assert torch.equal(off, called(unet, []))
    mine = called(unet, [acting])
    merge(unet, acting, 1.0)
    torch.testing.assert_close(mine, called(unet, [dataclasses.replace(acting, lora=0.0)]), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("fraction", "acts"), [(0.0, False), (0.4, True), (0.9, False)])
def test_it_acts_between_start_and_end(unet, fraction, acts):
    acting = prompt(unet, rank=3, start=0.3, end=0.8)
    mine, base = called(unet, [acting], fraction), called(unet, [])
    assert torch.equal(mine, base) != acts
    merge(unet, acting, 1.0)
    if acts:
        merged = called(unet, [dataclasses.replace(acting, lora=0.0)], fraction)
        torch.testing.assert_close(mine, merged, rtol=1e-4, atol=1e-5)


def test_it_follows_curve_and_passes(unet):
    acting = prompt(unet, rank=3, curve=Curve(((0.0, 0.0), (1.0, 1.0)), "linear"), hires=0.0)
    mine = called(unet, [acting], 0.5)
    assert torch.equal(called(unet, [acting], 0.5, hires=True), called(unet, []))
    merge(unet, acting, 0.5)
    torch.testing.assert_close(mine, called(unet, [dataclasses.replace(acting, lora=0.0)], 0.5), rtol=1e-4, atol=1e-5)


def test_outside_of_a_step_nothing_acts(unet):
    x, context = inputs(2)
    base = unet(x, context=context)
    session = Session([prompt(unet, rank=3)])
    with session.attached(unet):
        assert torch.equal(unet(x, context=context), base)
        session.begin_step(ROWS, 0.0)
        assert not torch.equal(unet(x, context=context), base)
        session.rest()
        assert torch.equal(unet(x, context=context), base)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in unet.modules())


def test_units_of_one_file_share_it_the_strongest_counts(unet):
    """Twice the same LoRA would be twice what was trained."""
    one = prompt(unet, rank=3, lora=0.8)
    other = dataclasses.replace(one, lora=0.5, tokens=one.tokens + 1)
    both = called(unet, [one, other])
    alone = [dataclasses.replace(x, lora=0.0) for x in (one, other)]
    merge(unet, one, 0.8)
    torch.testing.assert_close(both, called(unet, alone), rtol=1e-4, atol=1e-5)


def test_loras_of_several_files_are_added(unet):
    one, other = prompt(unet, 0, rank=3, lora=0.8), prompt(unet, 1, rank=2, lora=0.5)
    both = called(unet, [one, other])
    alone = [dataclasses.replace(x, lora=0.0) for x in (one, other)]
    merge(unet, one, 0.8)
    merge(unet, other, 0.5)
    torch.testing.assert_close(both, called(unet, alone), rtol=1e-4, atol=1e-5)


def test_a_region_of_everything_is_no_region_and_of_nothing_leaves_the_texts_part(unet):
    acting = prompt(unet, rank=3)
    size = (3, 3)
    everywhere = dataclasses.replace(acting, region=Region(torch.ones(6, 6)))
    torch.testing.assert_close(
        called(unet, [everywhere], size=size), called(unet, [acting], size=size), rtol=1e-5, atol=1e-6
    )
    nowhere = dataclasses.replace(acting, region=Region(torch.zeros(6, 6)))
    mine = called(unet, [nowhere], size=size)
    for layer in cross_attention_layers(unet):
        for target in ("to_k", "to_v"):
            down, up = acting.adapter.lora()[layer.number, target]
            linear_of(layer, layer.number, target).weight.add_(up @ down)
    torch.testing.assert_close(mine, called(unet, [], size=size), rtol=1e-4, atol=1e-5)


def test_a_region_limits_it_to_its_tokens(unet):
    """In the first self-attention the queries of the other half are as they were."""
    mask = torch.zeros(4, 4)
    mask[:2] = 1
    acting = dataclasses.replace(prompt(unet, rank=3), region=Region(mask))
    queries = {}
    module = unet.input_blocks[0].attn1.to_q
    for name, prompts in (("base", []), ("masked", [acting]), ("all", [dataclasses.replace(acting, region=None)])):
        session = Session(prompts)
        session.attach(unet)
        handle = module.register_forward_hook(lambda m, a, out, name=name: queries.update({name: out.clone()}))
        session.begin_step(ROWS, 0.0, size=(4, 4))
        call(unet, *inputs(2, 16), size=(4, 4))
        handle.remove()
        session.detach()
    assert torch.equal(queries["masked"][:, 8:], queries["base"][:, 8:])
    torch.testing.assert_close(queries["masked"][:, :8], queries["all"][:, :8], rtol=1e-5, atol=1e-6)
    assert not torch.allclose(queries["masked"][:, :8], queries["base"][:, :8], atol=1e-2)


def test_a_layer_that_is_called_in_halves(unet):
    """Regional Prompter calls the cross-attention on halves of the rows; each has its own row's region."""
    mask = torch.zeros(4, 8)
    mask[:2] = 1
    acting = dataclasses.replace(prompt(unet, rank=3), region=Region(mask))
    boxes = ((0.0, 0.0, 1.0, 0.5), (0.0, 0.5, 1.0, 1.0))  # the region is all of the first row's part, none of the other

    def drawn():
        session = Session([acting])
        with session.attached(unet):
            session.begin_step([COND, COND], 0.0, size=(4, 4), boxes=boxes)
            return call(unet, *inputs(2, 16), size=(4, 4))

    whole = drawn()
    for block in (*unet.input_blocks, *unet.middle_block, *unet.output_blocks):
        original = block.attn2.forward

        def halves(x, context=None, original=original):
            return torch.cat([original(x[i : i + 1], context[i : i + 1]) for i in range(2)])

        block.attn2.forward = halves
    torch.testing.assert_close(drawn(), whole, rtol=1e-5, atol=1e-6)


def test_half_precision_and_the_copies_that_stay(unet):
    """The matrices follow the dtype of what the projection gives, and are moved once."""
    unet.double()
    acting = prompt(unet, rank=3)
    x, context = (t.double() for t in inputs(2))
    session = Session([acting])
    with session.attached(unet):
        session.begin_step(ROWS, 0.0)
        out = unet(x, context=context)
        addition = next(iter(session._hooks._additions.values()))
        first = addition._low_rank._moved
        session.begin_step(ROWS, 0.0)
        unet(x, context=context)
        assert addition._low_rank._moved is first
        assert first[0].dtype == torch.float64
    assert out.dtype == torch.float64
