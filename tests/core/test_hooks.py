"""The hooks' seams: how terms are merged, low-rank additions, masks at a block's own size, passes of other pictures,
and K', V' that are kept."""

from __future__ import annotations

import dataclasses

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lib_ipadapter.attention.hooks import Hooks
from lib_ipadapter.attention.keyvalue import KeyValue, Projected
from lib_ipadapter.attention.layers import cross_attention_layers
from lib_ipadapter.attention.lowrank import LowRank
from lib_ipadapter.attention.region import Region
from lib_ipadapter.attention.session import Session
from lib_ipadapter.attention.term import project
from lib_ipadapter.errors import UnsupportedModel
from tests import tiny
from tests.tiny import CONTEXT, UNet, inputs, prompt
from tests.watched import watched


@pytest.fixture
def unet() -> UNet:
    torch.manual_seed(0)
    return UNet().eval().requires_grad_(False)


def run(unet: nn.Module, session: Session, x: Tensor, context: Tensor, sets: tuple[int, ...] = (0, 1)) -> Tensor:
    with session.attached(unet):
        session.begin_step(sets, 0.0)
        out: Tensor = unet(x, context=context)
        session.end_step()
    return out


class Recording:
    """Terms that add nothing and keep the queries."""

    def __init__(self) -> None:
        self.queries: dict[int, Tensor] = {}

    def call(self, latents, kwargs):
        pass

    def enter(self, hidden, context):
        pass

    def terms(self, layer, hidden, query, grid):
        self.queries[layer.number] = query.clone()
        return ()


@pytest.mark.parametrize("name", ["to_q", "to_k", "to_v", "to_out"])
@pytest.mark.parametrize("number", [0, 1, 6, 11])
def test_low_rank_additions_are_added_to_the_weights(unet, name, number):
    layer = cross_attention_layers(unet)[number // 2]
    module = layer.self_attention if number % 2 == 0 else layer.module
    linear = module.to_out[0] if name == "to_out" else getattr(module, name)
    addition = LowRank(torch.randn(3, linear.in_features), torch.randn(linear.out_features, 3), 0.7)
    x, context = inputs(2)
    base, terms = unet(x, context=context), Recording()
    hooks = Hooks(unet, cross_attention_layers(unet), terms, additions={(number, name): addition})
    out = unet(x, context=context)
    hooks.remove()
    assert torch.equal(unet(x, context=context), base)
    queries = terms.queries
    linear.weight += 0.7 * addition.up @ addition.down
    terms = Recording()
    hooks = Hooks(unet, cross_attention_layers(unet), terms)
    wanted = unet(x, context=context)
    hooks.remove()
    assert not torch.allclose(wanted, base, atol=1e-3)
    torch.testing.assert_close(out, wanted, rtol=1e-4, atol=1e-5)
    for key, query in queries.items():  # the query is caught with the addition in it
        torch.testing.assert_close(query, terms.queries[key], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("place", [(12, "to_q"), (0, "to_x")])
def test_an_addition_for_no_layer_leaves_nothing(unet, place):
    addition = LowRank(torch.randn(3, 16), torch.randn(16, 3))
    with pytest.raises(UnsupportedModel, match=f"{place[0]}.{place[1]}"):
        Hooks(
            unet,
            cross_attention_layers(unet),
            Recording(),
            additions={(0, "to_q"): addition, place: addition},
        )
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in unet.modules())


def test_a_layer_that_cannot_be_hooked_leaves_nothing(unet):
    """Those before it were registered already."""
    *others, last = cross_attention_layers(unet)
    addition = LowRank(torch.randn(3, 16), torch.randn(16, 3))
    with pytest.raises(AttributeError, match="to_q"):
        Hooks(
            unet, [*others, dataclasses.replace(last, module=nn.Identity())], Recording(),
            additions={(others[0].number, "to_q"): addition},
        )  # fmt: skip
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in unet.modules())


def test_numbers_are_those_of_files(unet):
    """diffusers registers attn1 before attn2 of each block: numbers 2i and 2i + 1."""
    layers = cross_attention_layers(unet)
    assert [layer.number for layer in layers] == [1, 3, 5, 7, 9, 11]
    for layer in layers:
        assert layer.self_attention is unet.get_submodule(layer.name.replace("attn2", "attn1"))


class Spatial(nn.Module):
    """As ldm's SpatialTransformer: [B, C, H, W] to tokens and back."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.transformer_blocks = nn.ModuleList([tiny.Block(width, 2)])

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        tokens = self.transformer_blocks[0](x.flatten(2).transpose(1, 2), context)
        return tokens.transpose(1, 2).view_as(x)


class SpatialUNet(nn.Module):
    """One block at the latents' size and one that is rescaled by ``scale``; ``liked`` is passed first, as FABRIC
    does."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.input_blocks = nn.ModuleList([Spatial(16)])
        self.middle_block = nn.ModuleList([Spatial(16)])
        self.output_blocks = nn.ModuleList()
        self.scale = 1.0
        self.liked: tuple[Tensor, Tensor] | None = None
        self.seen: Tensor | None = None

    def through(self, x: Tensor, context: Tensor) -> Tensor:
        x = self.input_blocks[0](x, context)
        small = F.interpolate(x, scale_factor=self.scale, mode="bilinear") if self.scale != 1 else x
        return x + F.interpolate(self.middle_block[0](small, context), x.shape[-2:])

    def forward(self, x: Tensor, timesteps: Tensor | None = None, context: Tensor | None = None) -> Tensor:
        assert context is not None
        if self.liked is not None:
            self.seen = self.through(*self.liked)
        return self.through(x, context)


@pytest.mark.parametrize("scale", [0.6, 0.75, 1.3])
def test_a_mask_on_a_block_of_any_size(scale):
    unet = SpatialUNet().requires_grad_(False)
    unet.scale = scale
    x, context = torch.randn(2, 16, 12, 10), torch.randn(2, 5, CONTEXT)
    height, width = int(12 * scale), int(10 * scale)
    mask = torch.zeros(12, 10)
    mask[:, :4] = 1

    def middle(region: Region | None) -> Tensor:
        session, found = Session([prompt(unet, region=region)]), []
        original = session.terms

        def record(layer, *args):
            terms = original(layer, *args)
            found.extend(term.value.clone() for term in terms if layer.part == "middle")
            return terms

        session.terms = record  # type: ignore[method-assign]
        with session.attached(unet):
            session.begin_step([0, 1], 0.0, size=(12, 10))
            unet(x, context=context)
        return found[0].view(2, height, width, 16)

    masked = middle(Region(mask))
    assert not masked[:, :, -width // 2 :].any()
    edge = 4 * width / 10
    assert masked[:, :, : int(edge)].abs().min() > 0
    # As a mask of the block's own size, each of whose pixels is a mean by area
    wanted = Region(mask).over((height, width), (0.0, 0.0, 1.0, 1.0))
    assert wanted[0, int(edge)].item() == pytest.approx(edge % 1, abs=1e-5)
    assert torch.equal(middle(Region(torch.ones(3, 3))), middle(None))


def test_a_pass_of_other_pictures_gets_no_term():
    unet = SpatialUNet().requires_grad_(False)
    x, context = torch.randn(2, 16, 6, 6), torch.randn(2, 5, CONTEXT)
    expected = run(unet, Session([prompt(unet)]), x, context)
    for rows in (1, 2):
        unet.liked = torch.randn(rows, 16, 6, 6), torch.randn(rows, 5, CONTEXT)
        base = unet.through(*unet.liked)
        session = watched([prompt(unet, maps=1)])
        assert torch.equal(run(unet, session, x, context), expected)
        assert torch.equal(unet.seen, base)
        assert session.observer.left_out == 0
    unet.liked = torch.randn(2, 16, 6, 6), context  # the call's text: it is the call's pass
    assert torch.equal(run(unet, Session([prompt(unet)]), x, context), expected)
    assert not torch.equal(unet.seen, unet.through(*unet.liked))


class Kept:
    """A store that never forgets."""

    def __init__(self) -> None:
        self.entries: dict[object, Projected] = {}

    def get(self, key, make):
        if key not in self.entries:
            self.entries[key] = make()
        return self.entries[key]


def test_projections_are_kept_beyond_a_session_by_all_that_makes_them(unet):
    x, context = inputs(2)
    store, layers = Kept(), len(cross_attention_layers(unet))

    def projections(seed: int = 0, cast: torch.dtype = torch.float32, **fields: object) -> int:
        session = Session([prompt(unet, seed, **{"key": seed, **fields})], store=store)
        out = run(unet.to(cast), session, x.to(cast), context.to(cast))
        again = Session([prompt(unet, seed, **{**fields, "key": None})])
        assert torch.equal(out, run(unet, again, x.to(cast), context.to(cast)))
        unet.float()
        return session.projections

    assert projections() == layers
    assert projections() == 0
    assert projections(start=0.1) == 0  # timing is not in them; nothing acts
    assert projections(weight=0.5) == layers
    assert projections(scaling="K+V") == layers
    assert projections(1) == layers
    assert projections(cast=torch.bfloat16) == layers
    assert projections() == projections(1) == projections(cast=torch.bfloat16) == 0
    assert projections(key=None) == layers
    entry = next(iter(store.entries.values()))
    assert entry.nbytes == 2 * entry.key.numel() * 4


def test_only_the_pictures_at_hand_are_projected(unet):
    """One reference per picture: the token sets of other batches are not held."""
    x, context = inputs(4)
    tokens = torch.cat([prompt(unet, seed).tokens for seed in range(6)])
    every = dataclasses.replace(prompt(unet), tokens=tokens)
    session = Session([every])
    for pictures in ((0, 1), (2, 3), (4, 5), (5, 0)):
        sets = tuple(2 * k for k in pictures) + tuple(2 * k + 1 for k in pictures)
        out = run(unet, session, x, context, sets)
        held = [entry for kv in session._kv for entry in kv._cache.values()]
        assert {len(entry.key) for entry in held} == {4}
        for i, picture in enumerate(pictures):
            one = dataclasses.replace(prompt(unet), tokens=tokens[2 * picture : 2 * picture + 2])
            alone = run(unet, Session([one]), x[[i, 2 + i]], context[[i, 2 + i]])
            torch.testing.assert_close(out[[i, 2 + i]], alone, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_projections_are_computed_in_full_precision(dtype):
    """Rounded once, at the end: whatever the weights are stored in, with autocast on or off."""
    torch.manual_seed(0)
    tokens, weight = torch.randn(2, 4, 768), torch.randn(32, 768)
    stored = weight.to(dtype)
    exact = (tokens.double() @ stored.double().T).unflatten(-1, (2, -1)).transpose(1, 2)
    for autocast in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            full = project(tokens, stored, 2, torch.zeros(1))
            half = project(tokens, stored, 2, torch.zeros(1, dtype=dtype))
        assert full.dtype == torch.float32
        torch.testing.assert_close(full.double(), exact, rtol=1e-5, atol=1e-4)
        assert torch.equal(half, full.to(dtype))
    # What the rounding of the tokens alone would cost is far beyond that tolerance.
    rounded = (tokens.to(dtype).double() @ stored.double().T).unflatten(-1, (2, -1)).transpose(1, 2)
    assert (rounded - exact).abs().max() > 2e-3


def test_the_same_token_set_among_other_pictures(unet):
    held = KeyValue(dataclasses.replace(prompt(unet), tokens=torch.zeros(6, 4, CONTEXT)))
    held.select([0, 2, 1, 3])
    assert held._rows((2, 3)) == (2, 3)
    held.select([2, 4, 3, 5])
    assert held._rows((2, 3)) == (0, 1)
