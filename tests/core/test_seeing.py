"""Maps of where each reference acted, against a plain softmax."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from lib_ipadapter.attention.heatmaps import recorder as seeing
from lib_ipadapter.attention.heatmaps.recorder import COLUMNS, Level, Maps
from lib_ipadapter.attention.layers import cross_attention_layers
from lib_ipadapter.attention.region import Region
from lib_ipadapter.attention.session import Session
from lib_ipadapter.attention.term import add_term, fill_vector, image_attention
from lib_ipadapter.prompts.image_prompt import maps_of
from lib_ipadapter.unit import Unit
from lib_ipadapter.unit.weights import Curve, LayerRule
from tests.tiny import prompt
from tests.watched import WIDTH, UNet, Watch, close, expected, inputs, plain, run, seen, upsampled, watched


@pytest.fixture
def unet() -> UNet:
    return UNet().eval().requires_grad_(False)


@pytest.mark.parametrize("size", [(9, 6), (65, 64), (8, 8)], ids=str)
@pytest.mark.parametrize("weight", [1.0, 0.3, -0.7])
def test_equals_the_formula_in_each_part(unet, size, weight):
    p = prompt(unet, tokens=8, weight=weight, maps=2, token_weights=torch.tensor([1.0] * 4 + [0.5] * 4))
    watch, held = Watch(unet), watched([p])
    run(unet, held, *inputs(2, size))
    columns = seen(held)
    for name, part in {"all": "", "in": "input", "mid": "middle", "out": "output"}.items():
        assert columns[name].shape == (2, *size)
        close(columns[name], expected(unet, watch, p, 0, 2, size, part))
    close(columns["early"], torch.as_tensor(columns["all"]))
    assert columns["middle"] is None
    assert columns["late"] is None


@pytest.mark.parametrize(("tokens", "references"), [(4, 1), (8, 1), (8, 2), (16, 4), (9, 3), (2, 2)])
def test_tokens_that_were_repeated_count_once(unet, tokens, references):
    """On the CPU few tokens are repeated to 16."""
    assert fill_vector(torch.zeros(1, 1, tokens, 1)).shape[2] in (tokens, 16)
    p = prompt(unet, tokens=tokens, maps=references)
    watch, held = Watch(unet), watched([p])
    run(unet, held, *inputs(2))
    close(seen(held)["all"], expected(unet, watch, p, 0, references, (9, 6)))


def test_shares_are_the_same_in_pieces(monkeypatch):
    query, key = torch.randn(2, 30, WIDTH), torch.randn(2, 2, 8, 8)
    whole = seeing.fractions(query, key, 2, 8)
    torch.testing.assert_close(whole.sum(1), torch.ones(2, 30))
    monkeypatch.setattr(seeing, "_SCORES", 100)
    torch.testing.assert_close(seeing.fractions(query, key, 2, 8), whole)


@pytest.mark.parametrize("split", [[4], [2, 2], [1, 1, 1, 1], [3, 1], [1, 3]], ids=str)
def test_each_picture_of_a_batch_has_its_own_however_the_rows_are_split(unet, split):
    p = prompt(unet, tokens=8, maps=2)
    watch, held = Watch(unet), watched([p])
    x, context = inputs(4)
    run(unet, held, x, context)
    wanted = [expected(unet, watch, p, row, 2, (9, 6)) for row in (0, 1)]
    assert not torch.allclose(wanted[0], wanted[1])
    with held.attached(unet):
        held.begin_step([0, 0, 1, 1], 0.0, size=(9, 6))
        for a, b in zip(x.split(split), context.split(split), strict=True):
            unet(a, context=b)
    for picture in (0, 1):
        close(seen(held, picture=picture)["all"], wanted[picture])


def test_means_of_each_step_and_part(unet):
    """A step whose UNet runs twice (second-order samplers) is one; sub-prompts count as one picture."""
    p = prompt(unet, tokens=8, maps=2, curve=Curve(((0, 1.0), (0.5, 0.5))))
    watch, held, wanted = Watch(unet), watched([p]), []
    with held.attached(unet):
        for fraction, seed in ((0.0, 1), (0.5, 2), (0.5, 3)):
            torch.manual_seed(seed)
            x = torch.randn(3, WIDTH, 8, 8)
            held.begin_step([0, 0, 1], fraction, pictures=[0, 0])
            unet(x, context=inputs(3)[1])
            held.end_step()
            weighted = dataclasses.replace(p, weight=1 - fraction)
            wanted.append({
                part: torch.stack([
                    plain(la, weighted, watch.query[la.position][row], watch.text[la.position][row], 2).mean(1)
                    for la in cross_attention_layers(unet) if la.part == part for row in (0, 1)
                ]).mean(0)
                for part in seeing.PARTS
            })  # fmt: skip
    (maps,) = held.observer.maps(0)
    assert [step.fraction for step in maps.steps] == [0, 0.5]
    for part, name in seeing.PARTS.items():
        close(maps.steps[0].means[name], wanted[0][part])
        close(maps.steps[1].means[name], (wanted[1][part] + wanted[2][part]) / 2)


def test_sub_prompts_count_for_their_picture(unet):
    """AND: the rows of a step are those of picture 0, then those of picture 1."""
    p = prompt(unet, maps=1)
    watch, held = Watch(unet), watched([p])
    x, context = inputs(5)
    run(unet, held, x, context, sets=[0, 0, 0, 1, 1], pictures=[0, 0, 1])
    rows = [expected(unet, watch, p, row, 1, (9, 6)) for row in range(3)]
    close(seen(held)["all"], (rows[0] + rows[1]) / 2)
    close(seen(held, picture=1)["all"], rows[2])
    assert len(held.observer.maps(0)) == 2


def test_halves_of_the_rows_and_attention_that_runs_twice(unet):
    p = prompt(unet, maps=1)
    x, context = inputs(4)
    whole, halves, twice = watched([p]), watched([p]), watched([p])
    run(unet, whole, x, context)
    modules = [layer.module for layer in cross_attention_layers(unet)]
    for module in modules:
        own = module.forward
        module.forward = lambda x, context=None, own=own: torch.cat(
            [own(a, b) for a, b in zip(x.chunk(2), context.chunk(2), strict=True)]
        )
    run(unet, halves, x, context)
    close(seen(halves, picture=1)["all"], torch.as_tensor(seen(whole, picture=1)["all"]))
    for module in modules:
        del module.forward
    own_twice = modules[0].forward
    modules[0].forward = lambda x, context=None: own_twice(x, context) + own_twice(x, context)
    watch = Watch(unet)
    run(unet, twice, x, context)
    assert seen(twice)["in"].shape == (1, 9, 6)
    assert twice.observer.left_out == 1
    del modules[0].forward
    second = cross_attention_layers(unet)[1]
    values = plain(second, p, watch.query[1][0], watch.text[1][0], 1)
    close(seen(twice)["in"], upsampled(values, (9, 6)))


def test_tiles_are_left_out(unet):
    p = prompt(unet, maps=1)
    x, context = inputs(2)
    repeated = watched([p])
    with repeated.attached(unet):
        repeated.begin_step([0, 1], 0.0, size=(9, 6))
        repeated.rows.chunk(2)
        unet(x.repeat(3, 1, 1, 1), context=context.repeat(3, 1, 1))
    cut = watched([p])
    with cut.attached(unet):
        cut.begin_step([0, 1], 0.0, size=(9, 6))
        cut.rows.chunk(2)
        for tile in (x[..., :4], x[..., 2:]):
            unet(tile, context=context)
    # A tile with as many latents as a deeper level of the whole has tokens
    half = watched([p])
    run(unet, half, x[..., :5, :3], context, size=(9, 6))
    for held in (repeated, cut, half):
        assert held.observer.left_out > 0
        assert held.observer.maps(0) == []


def test_unknown_rows_are_left_out(unet):
    held = watched([prompt(unet, maps=1)])
    run(unet, held, *inputs(5), sets=[0, 0, 0, 1, 1], pictures=[])
    assert held.observer.left_out
    assert held.observer.maps(0) == []


def test_outside_a_region_it_is_zero(unet):
    mask = torch.zeros(9, 6)
    mask[:, :3] = 1
    whole, held = (watched([prompt(unet, maps=1, region=region)]) for region in (None, Region(mask)))
    run(unet, whole, *inputs(2))
    run(unet, held, *inputs(2))
    columns = seen(held)
    # A token of the middle stands for 4 x 4 latents, so the edge is not sharp there.
    assert not columns["all"][:, :, 4:].any()
    assert columns["all"][:, :, :2].min() > 0
    assert seen(whole)["all"][:, :, 4:].min() > 0


def test_steps_and_layers_where_it_does_not_act_count_as_zero(unet):
    p = prompt(unet, maps=1, start=0.5, rule=LayerRule(table=((0, 1.0),)))
    watch, held = Watch(unet), watched([p])
    with held.attached(unet):
        for fraction in (0.0, 1 / 3, 2 / 3):
            held.begin_step([0, 1], fraction)
            unet(*inputs(2)[:1], context=inputs(2)[1])
            held.end_step()
    columns = seen(held)
    first = cross_attention_layers(unet)[0]
    once = upsampled(plain(first, p, watch.query[0][0], watch.text[0][0], 1), (9, 6))
    assert not columns["early"].any()
    assert not columns["middle"].any()
    assert not columns["mid"].any()
    assert not columns["out"].any()
    close(columns["late"], once / 5)  # one layer of five
    close(columns["in"], once / 2 / 3)
    close(columns["all"], once / 5 / 3)
    steps = held.observer.maps(0)[0].steps
    assert [step.fraction for step in steps] == [0, 1 / 3, 2 / 3]
    assert [step.means["in"].any() for step in steps] == [False, False, True]
    values = plain(first, p, watch.query[0][0], watch.text[0][0], 1)
    close(steps[2].means["in"], values.mean(1) / 2)


def test_the_last_pass_is_shown(unet):
    p = prompt(unet, maps=1)
    held, alone = watched([p]), watched([p])
    run(unet, held, *inputs(2, (9, 6)), size=(9, 6))
    run(unet, held, *inputs(2, (18, 12)), size=(18, 12), hires=True)
    run(unet, alone, *inputs(2, (18, 12)), size=(18, 12), hires=True)
    close(seen(held)["all"], torch.as_tensor(seen(alone)["all"]))
    # A unit that acts in the first pass only is dark in the last.
    first = watched([prompt(unet, maps=1, hires=0.0)])
    run(unet, first, *inputs(2, (9, 6)), size=(9, 6))
    assert seen(first)["all"].any()
    run(unet, first, *inputs(2, (18, 12)), size=(18, 12), hires=True)
    assert seen(first)["all"].shape == (1, 18, 12)
    assert not seen(first)["all"].any()


def test_several_units_have_maps_of_their_own(unet):
    prompts = [prompt(unet, 0, maps=1), prompt(unet, 1, weight=0.5), prompt(unet, 2, tokens=8, maps=2)]
    watch, held = Watch(unet), watched(prompts)
    run(unet, held, *inputs(2))
    close(seen(held, 0)["all"], expected(unet, watch, prompts[0], 0, 1, (9, 6)))
    close(seen(held, 2)["all"], expected(unet, watch, prompts[2], 0, 2, (9, 6)))
    assert held.observer.maps(1) == []


def test_half_precision(unet):
    p = prompt(unet, tokens=8, maps=2)
    exact, half = watched([p]), watched([p])
    x, context = inputs(2)
    run(unet, exact, x, context)
    run(unet.bfloat16(), half, x.bfloat16(), context.bfloat16())
    found = torch.as_tensor(seen(half)["all"])
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, torch.as_tensor(seen(exact)["all"]), rtol=0.05, atol=0.01)


def test_the_picture_is_the_same_bit_for_bit(unet):
    x, context = inputs(4, (65, 64))
    fields = {"tokens": 8, "region": Region(torch.rand(65, 64))}
    on, off = watched([prompt(unet, maps=2, **fields)]), watched([prompt(unet, **fields)])
    assert torch.equal(run(unet, on, x, context), run(unet, off, x, context))


class Count(TorchDispatchMode):
    """How many tensor operations run inside."""

    def __init__(self) -> None:
        super().__init__()
        self.operations = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.operations += 1
        return func(*args, **(kwargs or {}))


def counted(function) -> int:
    with Count() as count:
        function()
    return count.operations


def test_off_it_costs_nothing(unet):
    """Not one operation in a step beyond the base model's and, for each layer, the term's and the sum's."""
    x, context = inputs(2)
    layers = cross_attention_layers(unet)
    base = counted(lambda: unet(x, context=context))
    query, key = torch.randn(2, 54, WIDTH), torch.randn(2, 2, 16, 8)
    each = counted(lambda: add_term(query, image_attention(query, key, key)))

    def step(held: Session) -> int:
        with held.attached(unet):
            held.begin_step([0, 1], 0.0, size=(9, 6))
            unet(x, context=context)  # projects K' and V'
            held.begin_step([0, 1], 0.5, size=(9, 6))
            return counted(lambda: unet(x, context=context))

    assert step(watched([prompt(unet, maps=1)])) > base + each * len(layers)
    assert watched([prompt(unet)]).observer is None
    assert step(watched([prompt(unet)])) == base + each * len(layers)


def test_one_map_for_each_reference_whose_tokens_are_its_own():
    unit = {"model": "m", "images": ["a", "b", "c"]}
    assert maps_of(Unit.parse(unit)) == 0
    assert maps_of(Unit.parse({**unit, "maps": True})) == 3
    assert maps_of(Unit.parse({**unit, "maps": True, "combine": "average"})) == 1
    assert "maps" not in Unit.parse({**unit, "maps": True}).changed()


def test_levels():
    assert Level.of((65, 64), 33 * 32) == Level((33, 32), 1)
    assert Level.of((65, 64), 33 * 33) is None
    values = torch.arange(6.0).view(1, 6).numpy()
    assert Level((3, 2), 1).over(values, (5, 3)).tolist() == [[[0, 0, 1], [0, 0, 1], [2, 2, 3], [2, 2, 3], [4, 4, 5]]]
    assert COLUMNS == ("all", "in", "mid", "out", "early", "middle", "late")
    assert Maps({"all": values, "late": None}).top == 5
