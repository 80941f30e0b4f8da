"""The hooks and their session: a call's inputs by either name, tiles, errors that are kept, sums."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor, nn

from lib_ipadapter.attention.hooks import Hooks
from lib_ipadapter.attention.layers import cross_attention_layers
from lib_ipadapter.attention.region import Region
from lib_ipadapter.attention.session import Session
from lib_ipadapter.attention.term import add_term, fill_vector
from lib_ipadapter.errors import RowsError
from tests import watched as levels
from tests.tiny import UNet, inputs, prompt


@pytest.fixture
def unet() -> UNet:
    torch.manual_seed(0)
    return UNet().eval().requires_grad_(False)


class Called(nn.Module):
    """A UNet that only its hooks look at; diffusers calls the latents "sample"."""

    def __init__(self, unet: nn.Module) -> None:
        super().__init__()
        self.input_blocks, self.middle_block = unet.input_blocks, unet.middle_block
        self.output_blocks = unet.output_blocks

    def forward(self, x: Tensor | None = None, timesteps: Tensor | None = None, **kwargs: Tensor) -> Tensor | None:
        return x if x is not None else kwargs.get("sample")


@pytest.mark.parametrize("form", ["first", "x", "sample"])
def test_the_latents_and_the_other_inputs_of_a_call_are_found_by_either_name(unet, form):
    seen: list[tuple[Tensor, dict[str, object]]] = []

    class Terms:
        def call(self, latents: Tensor, kwargs: dict[str, object]) -> None:
            seen.append((latents, kwargs))

    model, (x, context), steps = Called(unet), inputs(2), torch.tensor([1, 1])
    hooks = Hooks(model, cross_attention_layers(unet), Terms())
    assert hooks.unet is model
    model(x, steps, context=context) if form == "first" else model(timesteps=steps, context=context, **{form: x})
    hooks.remove()
    (latents, others), *more = seen
    assert latents is x
    assert more == []
    assert others.keys() == {"timesteps", "context"}
    assert others["context"] is context
    model(x, steps, context=context)
    assert len(seen) == 1


def test_a_session_knows_the_unet_that_it_is_on(unet):
    session = Session([prompt(unet)])
    assert session.unet is None
    with session.attached(unet):
        assert session.unet is unet
    assert session.unet is None


def test_the_sum_takes_the_terms_memory_and_leaves_the_hosts_alone():
    hidden, term = torch.ones(1, 2, 3), torch.full((1, 2, 3), 2.0)
    assert add_term(hidden, term) is term
    assert term.eq(3).all()
    assert hidden.eq(1).all()
    half = add_term(hidden.half(), torch.ones(1, 2, 3))
    assert half.dtype == torch.float16
    trained = torch.ones(1, 2, 3, requires_grad=True)
    add_term(hidden, trained).sum().backward()
    assert trained.grad is not None


@pytest.mark.parametrize(("tokens", "filled"), [(1, 16), (4, 16), (5, 5), (16, 16), (257, 257)])
def test_few_tokens_fill_a_vector_of_the_cpu(tokens: int, filled: int):
    x = torch.randn(1, 2, tokens, 8)
    out = fill_vector(x)
    assert out.shape[2] == filled
    assert (out is x) == (filled == tokens)
    assert torch.equal(out, torch.cat([x] * (filled // tokens), 2))
    assert fill_vector(x.to("meta")).shape == x.shape


def test_a_call_of_another_size_is_its_tiles_or_an_error_that_is_kept():
    """A mask white on the right half: of two tiles, the left one is the base model's."""
    unet = levels.UNet().eval().requires_grad_(False)
    mask = torch.zeros(8, 8)
    mask[:, 4:] = 1
    masked = dataclasses.replace(prompt(unet), region=Region(mask))
    x, context = levels.inputs(4, (8, 8))
    base = unet(x, context=context)
    halves = ((0.0, 0.0, 0.5, 1.0), (0.5, 0.0, 1.0, 1.0))
    size = (x.shape[-2], 2 * x.shape[-1])

    def drawn(session: Session) -> Tensor:
        with session.attached(unet):
            session.begin_step([0, 1], 0.0, size=size)
            session.rows.chunk(2)
            out: Tensor = unet(x, context=context)
        return out

    tiles = drawn(Session([masked], lambda whole, tile: halves if (whole, tile) == (size, x.shape[-2:]) else ()))
    assert torch.equal(tiles[:2], base[:2])
    assert not torch.equal(tiles[2:], base[2:])
    session = Session([masked], lambda whole, tile: ())
    with pytest.raises(RowsError, match="cuts the picture into tiles") as caught:
        drawn(session)
    assert session.error is caught.value
    assert torch.equal(unet(x, context=context), base)
