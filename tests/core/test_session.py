from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from lib_ipadapter.attention.layers import cross_attention_layers
from lib_ipadapter.attention.session import ImagePrompt, Session
from lib_ipadapter.errors import RowsError, UnsupportedModel, WrongBase
from tests.tiny import CONTEXT, UNet, inputs, prompt

STEP = [0, 1]


@pytest.fixture
def unet():
    torch.manual_seed(0)
    return UNet().eval().requires_grad_(False)


def hooks_on(model: torch.nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


def run(unet, session, x, context, sets=None, fraction=0.0):
    with session.attached(unet):
        session.begin_step(sets or [0] * (len(x) // 2) + [1] * (len(x) - len(x) // 2), fraction)
        out = unet(x, context=context)
        session.end_step()
    return out


def plain(unet, prompts, x, context, sets):
    """The formula of the paper, written out: arXiv 2308.06721, eq. 5."""
    index = {id(layer.module): layer for layer in cross_attention_layers(unet)}

    def attend(module, x, context):
        def heads(t):
            return t.unflatten(-1, (module.heads, -1)).transpose(1, 2)

        def softmax(k, v):
            q = heads(module.to_q(x))
            scores = q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5
            return (scores.softmax(-1) @ v).transpose(1, 2).flatten(2)

        z = softmax(heads(module.to_k(context)), heads(module.to_v(context)))
        layer = index.get(id(module))
        for p in prompts if layer else ():
            w_k, w_v = p.adapter.weights(layer.position)
            tokens = p.tokens[list(sets)]
            value = F.linear(tokens, w_v) * p.token_weights[:, None]
            z = z + p.weight * softmax(heads(F.linear(tokens, w_k)), heads(value))
        return module.to_out(z)

    for block in [*unet.input_blocks, *unet.middle_block, *unet.output_blocks]:
        x = x + attend(block.attn1, x, x)
        x = x + attend(block.attn2, x, context)
    return x


@pytest.mark.parametrize("weight", [1.0, 0.3, -0.7])
@pytest.mark.parametrize("sets", [[0, 1], [0, 0, 1, 1], [0, 0, 0, 1], [0], [1, 1]])
def test_equals_the_formula(unet, weight, sets):
    p = prompt(unet, weight=weight, token_weights=torch.tensor([1.0, 0.5, 0.0, 2.0]))
    x, context = inputs(len(sets))
    out = run(unet, Session([p]), x, context, sets)
    torch.testing.assert_close(out, plain(unet, [p], x, context, sets), rtol=1e-4, atol=1e-5)


def test_several_units_add_their_terms(unet):
    prompts = [prompt(unet, 0), prompt(unet, 1, tokens=16, weight=0.5), prompt(unet, 2, weight=-0.2)]
    x, context = inputs(2)
    torch.testing.assert_close(
        run(unet, Session(prompts), x, context), plain(unet, prompts, x, context, STEP), rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize("split", [[2, 2], [1, 1, 1, 1], [3, 1], [1, 3]])
def test_split_calls_equal_one_call(unet, split):
    sets = [0, 0, 1, 1]
    x, context = inputs(4)
    whole = run(unet, Session([prompt(unet)]), x, context, sets)
    session = Session([prompt(unet)])
    with session.attached(unet):
        session.begin_step(sets, 0.0)
        parts = [unet(a, context=b) for a, b in zip(x.split(split), context.split(split), strict=True)]
    torch.testing.assert_close(torch.cat(parts), whole, rtol=1e-5, atol=1e-6)


def test_tiles_repeat_the_rows(unet):
    x, context = inputs(2)
    expected = run(unet, Session([prompt(unet)]), x, context)
    session = Session([prompt(unet)])
    with session.attached(unet):
        session.begin_step(STEP, 0.0)
        session.rows.chunk(2)
        out = unet(x.repeat(3, 1, 1), context=context.repeat(3, 1, 1))
    torch.testing.assert_close(out, expected.repeat(3, 1, 1), rtol=1e-5, atol=1e-6)


def test_regional_prompter_like_halves(unet):
    """A forward that calls to_q on halves of the rows, as Regional Prompter's does."""
    x, context = inputs(4)
    sets = [0, 0, 1, 1]
    expected = run(unet, Session([prompt(unet)]), x, context, sets)
    for block in [*unet.input_blocks, *unet.middle_block, *unet.output_blocks]:
        module = block.attn2
        original = module.forward

        def halves(x, context=None, original=original):
            return torch.cat([original(a, b) for a, b in zip(x.chunk(2), context.chunk(2), strict=True)])

        module.forward = halves
    out = run(unet, Session([prompt(unet)]), x, context, sets)
    torch.testing.assert_close(out, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("fields", "fraction", "acts"),
    [
        ({"weight": 0.0}, 0.0, False),
        ({"start": 0.3}, 0.29, False),
        ({"start": 0.3}, 0.3, True),
        ({"start": 0.3}, 3 * 0.1, True),
        ({"end": 0.5}, 0.49, True),
        ({"end": 0.5}, 0.5, False),
        ({"end": 1.0}, 1.0, True),
        ({"start": 0.2, "end": 0.2}, 0.2, False),
    ],
)
def test_outside_its_range_or_at_zero_it_is_the_base_model_bit_for_bit(unet, fields, fraction, acts):
    x, context = inputs(2)
    base = unet(x, context=context)
    out = run(unet, Session([prompt(unet, **fields)]), x, context, fraction=fraction)
    assert torch.equal(out, base) is not acts


def test_detached_is_the_base_model_bit_for_bit_and_leaves_no_hook(unet):
    x, context = inputs(2)
    before, state = unet(x, context=context), {k: v.clone() for k, v in unet.state_dict().items()}
    run(unet, Session([prompt(unet)]), x, context)
    assert hooks_on(unet) == 0
    assert torch.equal(unet(x, context=context), before)
    assert state.keys() == unet.state_dict().keys()
    assert all(torch.equal(v, state[k]) for k, v in unet.state_dict().items())


def test_between_steps_the_hooks_are_inert(unet):
    x, context = inputs(3)
    base = unet(x, context=context)
    session = Session([prompt(unet)])
    with session.attached(unet):
        assert hooks_on(unet) > 0
        assert torch.equal(unet(x, context=context), base)


def test_an_exception_leaves_nothing_behind(unet):
    x, context = inputs(2)
    base = unet(x, context=context)
    session = Session([prompt(unet)])
    with pytest.raises(RuntimeError), session.attached(unet):
        session.begin_step(STEP, 0.0)
        unet(x, context=context[..., :-1])
    assert hooks_on(unet) == 0
    assert torch.equal(unet(x, context=context), base)


def test_rows_that_do_not_add_up_are_an_error(unet):
    session = Session([prompt(unet)])
    with pytest.raises(RowsError), session.attached(unet):
        session.begin_step(STEP, 0.0)
        unet(*inputs(3))


def test_projects_once_per_layer_token_set_and_generation(unet):
    layers = len(cross_attention_layers(unet))
    session = Session([prompt(unet), prompt(unet, 1, tokens=9)])
    x, context = inputs(2)
    for _ in range(2):  # two batches of one generation
        with session.attached(unet):
            for step in range(5):
                session.begin_step(STEP, step / 5)
                unet(x, context=context)
                session.end_step()
    # One projection gives K' and V' of both token sets, cond and uncond, at once.
    assert session.projections == 2 * layers


def test_moves_to_another_model_of_the_same_shape(unet):
    other = UNet().eval().requires_grad_(False)
    _x, _context = inputs(2)
    session = Session([prompt(unet)])
    with session.attached(unet):
        session.attach(other)
        assert hooks_on(unet) == 0
        assert hooks_on(other) > 0
    assert hooks_on(other) == 0


def test_half_precision_takes_dtype_from_the_query(unet):
    x, context = inputs(2)
    exact = run(unet, Session([prompt(unet)]), x, context)
    half = run(unet.bfloat16(), Session([prompt(unet)]), x.bfloat16(), context.bfloat16())
    assert half.dtype == torch.bfloat16
    assert (half.float() - exact).norm() / exact.norm() < 0.03  # projections: test_hooks.py


@pytest.mark.skipif(not hasattr(torch, "float8_e4m3fn"), reason="this torch has no float8")
def test_fp8_storage(unet):
    """The WebUI's fp8 storage: weights in float8, cast by each forward. q tells what is computed in."""
    x, context = inputs(2)
    exact = run(unet, Session([prompt(unet)]), x, context)
    for module in unet.modules():
        if isinstance(module, torch.nn.Linear):
            module.to(torch.float8_e4m3fn)

            def forward(x, m=module):
                return torch.nn.functional.linear(
                    x, m.weight.to(x.dtype), None if m.bias is None else m.bias.to(x.dtype)
                )

            module.forward = forward
    out = run(unet, Session([prompt(unet)]), x, context)
    assert out.dtype == torch.float32
    assert (out - exact).norm() / exact.norm() < 0.1


def test_under_autocast(unet):
    x, context = inputs(2)
    exact = run(unet, Session([prompt(unet)]), x, context)
    with torch.autocast("cpu", torch.bfloat16):
        out = run(unet, Session([prompt(unet)]), x, context)
    assert (out.float() - exact).norm() / exact.norm() < 0.03


def test_gradients_flow_through_the_term_and_reach_no_token(unet):
    p = prompt(unet)
    gradients = []
    for forward in (
        lambda x, context: run(unet, Session([p]), x, context),
        lambda x, context: plain(unet, [p], x, context, STEP),
        lambda x, context: unet(x, context=context),
    ):
        x, context = inputs(2)
        x.requires_grad_(True)
        forward(x, context).square().sum().backward()
        gradients.append(x.grad)
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-4, atol=1e-4)
    assert not torch.allclose(gradients[0], gradients[2], rtol=1e-2)
    assert p.tokens.grad is None


@pytest.mark.parametrize(
    ("other", "reason"),
    [
        (dict(per_part=(2, 1, 2)), "5 cross-attention layers and the adapter 6"),
        (dict(width=32), "layer 0 is 32 wide in the model and 16"),
    ],
)
def test_a_wrong_base_is_named_and_leaves_nothing_attached(unet, other, reason):
    target = UNet(**other)
    session = Session([prompt(unet)])
    with pytest.raises(WrongBase, match=reason):
        session.attach(target)
    assert hooks_on(target) == 0


def test_a_wrong_context_names_both_bases(unet):
    p = prompt(unet)
    spec = p.adapter.spec.__class__(**{**vars(p.adapter.spec), "context": 2048, "base": "SDXL"})
    p.adapter.spec = spec
    with pytest.raises(WrongBase, match=f"made for SDXL.*text tokens are {CONTEXT} wide.*2048"):
        Session([p]).attach(unet)


def test_a_model_without_cross_attention():
    p = prompt(UNet())
    with pytest.raises(UnsupportedModel, match="no cross-attention"):
        Session([ImagePrompt(p.adapter, p.tokens, p.token_weights)]).attach(torch.nn.Linear(2, 2))
