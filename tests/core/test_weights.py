"""Weights over layers and steps: the types against their formulas, texts, and what the hooks do with them."""

from __future__ import annotations

import json
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from lib_ipadapter.attention.layers import Layer, cross_attention_layers, execution_order
from lib_ipadapter.attention.session import Session
from lib_ipadapter.attention.term import image_attention, project
from lib_ipadapter.errors import UnitError, UnsupportedModel
from lib_ipadapter.prompts.image_prompt import prompt_fields
from lib_ipadapter.unit import Unit, schema, weights
from lib_ipadapter.unit.weights import SD, SDXL, TYPES, Curve, LayerCounts, LayerRule
from tests import tiny

W, C = 0.8, 0.3


def even(weight: float, count: int) -> list[float]:
    return [weight] * count


def but(values: list[float], **others: float) -> list[float]:
    """values with those of others, named t4=..."""
    for name, value in others.items():
        values[int(name[1:])] = value
    return values


def ease(count: int, share) -> list[float]:
    return [W * (0.05 + 0.95 * share(t / count)) for t in range(count)]


def parts(places: LayerCounts, input: float, middle: float, output: float) -> list[float]:
    return [input] * places.middle + [middle] + [output] * (places.count - places.output)


SD_STYLE = but(even(W, 16), t4=0, t5=0, t6=0, t7=0, t8=0)
# type: (weights of SD1.5, of SDXL) as its author's formulas give them, written out
TABLE = {
    "linear": (even(W, 16), even(W, 11)),
    "ease in": (ease(16, lambda x: 1 - x), ease(11, lambda x: 1 - x)),
    "ease out": (ease(16, lambda x: x), ease(11, lambda x: x)),
    "ease in-out": (ease(16, lambda x: 1 - abs(2 * x - 1)), ease(11, lambda x: 1 - abs(2 * x - 1))),
    "reverse in-out": (ease(16, lambda x: abs(2 * x - 1)), ease(11, lambda x: abs(2 * x - 1))),
    "weak input": (parts(SD, 0.2 * W, W, W), parts(SDXL, 0.2 * W, W, W)),
    "weak middle": (parts(SD, W, 0.2 * W, W), parts(SDXL, W, 0.2 * W, W)),
    "weak output": (parts(SD, W, W, 0.2 * W), parts(SDXL, W, W, 0.2 * W)),
    "strong middle": (parts(SD, 0.2 * W, W, 0.2 * W), parts(SDXL, 0.2 * W, W, 0.2 * W)),
    "style transfer": (SD_STYLE, but(even(0, 11), t6=W)),
    "composition": (but(even(0, 16), t4=W / 4, t5=W), but(even(0, 11), t3=W)),
    "strong style transfer": (but(even(W, 16), t4=0, t5=0), but(even(W, 11), t3=0)),
    "style and composition": (but(list(SD_STYLE), t4=C / 4, t5=C), but(even(0, 11), t3=C, t6=W)),
    "strong style and composition": (but(even(W, 16), t4=C, t5=C), but(even(W, 11), t3=C)),
    "style transfer precise": (but(list(SD_STYLE), t4=C / 4, t5=C), but(even(0, 11), t3=C, t6=W)),
    "composition precise": (
        but(even(C, 16), t4=W / 4, t5=W, t6=C / 10, t7=C / 10, t8=C / 10),
        but(even(C / 10, 11), t3=W, t6=C),
    ),
}
PRECISE = {
    "style transfer precise": ({4, 5}, {3}),
    "composition precise": (set(range(16)) - {4, 5}, set(range(11)) - {3}),
}


def test_all_types_are_in_the_table():
    assert set(TABLE) == set(TYPES)
    assert TYPES[0] == "linear"


@pytest.mark.parametrize("kind", TABLE)
@pytest.mark.parametrize("place", [0, 1], ids=["sd15", "sdxl"])
def test_a_type_is_its_formula(kind, place):
    held = LayerRule(kind, C).at(W, (SD, SDXL)[place])
    assert [x.weight for x in held] == pytest.approx(TABLE[kind][place])
    assert {t for t, x in enumerate(held) if x.precise} == PRECISE.get(kind, (set(), set()))[place]


@pytest.mark.parametrize("kind", TYPES)
def test_a_weight_of_0_is_the_base_model(kind):
    assert not any(x.weight for x in LayerRule(kind, 1.0).at(0.0, SD))


@pytest.mark.parametrize("kind", TYPES)
def test_other_depths(kind):
    """What is said by parts works at any depth; what is said by numbers is refused where they mean nothing."""
    places, rule = LayerCounts(9, 4, 5), LayerRule(kind)
    if "style" in kind or "composition" in kind:
        with pytest.raises(UnsupportedModel, match=r"has 9"):
            rule.at(1.0, places)
    else:
        assert len(rule.at(1.0, places)) == 9


# order


def fake_layers(names: list[str]) -> list[Layer]:
    part = {"input_blocks": "input", "middle_block": "middle", "output_blocks": "output"}
    found = [(part[name.partition(".")[0]], name) for name in names]
    ordered = sorted(found, key=lambda pair: ("input", "output", "middle").index(pair[0]))
    return [Layer(i, name, p, None, 8, 8, 1) for i, (p, name) in enumerate(ordered)]


def test_layers_of_one_transformer_share_their_place():
    names = [f"input_blocks.{b}.1.transformer_blocks.{d}.attn2" for b in (4, 5) for d in range(2)]
    names += [f"input_blocks.{b}.1.transformer_blocks.{d}.attn2" for b in (7, 8) for d in range(10)]
    names += [f"middle_block.1.transformer_blocks.{d}.attn2" for d in range(10)]
    names += [f"output_blocks.{b}.1.transformer_blocks.{d}.attn2" for b in range(3) for d in range(10)]
    names += [f"output_blocks.{b}.1.transformer_blocks.{d}.attn2" for b in range(3, 6) for d in range(2)]
    layers = fake_layers(names)
    order, places = execution_order(tuple(layers))
    assert (len(layers), places) == (70, SDXL)
    assert order[:6] == (0, 0, 1, 1, 2, 2)
    assert order[24] == 5  # file order has the output part second, execution the middle
    assert order[-10:] == (4,) * 10


# what the hooks do


def run(unet: nn.Module, session: Session, x: Tensor, context: Tensor, fraction=0.0, hires=False) -> Tensor:
    with session.attached(unet), torch.no_grad():
        session.begin_step([0] + [1] * (len(x) - 1), fraction, hires)
        out: Tensor = unet(x, context=context)
        session.end_step()
    return out


@pytest.fixture
def world():
    unet = tiny.UNet().requires_grad_(False)
    return unet, *tiny.inputs(2)


def layers_of(unet: nn.Module) -> tuple[list[Layer], list[int]]:
    layers = cross_attention_layers(unet)
    order, _ = execution_order(tuple(layers))
    return layers, list(order)


def test_each_layer_gets_its_own_weight_and_others_are_not_touched(world):
    unet, x, context = world
    layers, order = layers_of(unet)
    table = ((0, 0.5), (max(order), -2.0))
    prompt = tiny.prompt(unet, weight=0.7, rule=LayerRule(table=table))
    session, seen = Session([prompt]), {}
    handles = [
        layer.module.to_out[0].register_forward_pre_hook(
            lambda m, args, t=order[layer.position]: seen.setdefault(t, []).append(args[0].clone())
        )
        for layer in layers
    ]
    queries = {}
    handles += [
        layer.module.to_q.register_forward_hook(
            lambda m, args, out, t=order[layer.position]: queries.setdefault(t, []).append(out.clone())
        )
        for layer in layers
    ]
    terms = {}
    original = session.terms

    def record(layer, *args):
        found = original(layer, *args)
        terms[order[layer.position]] = found[0].value.clone() if found else None
        return found

    session.terms = record
    session.attach(unet)
    session.begin_step([0, 1], 0.0)
    with torch.no_grad():
        unet(x, context=context)
    session.detach()
    for handle in handles:
        handle.remove()
    assert {t for t, found in terms.items() if found is not None} == {t for t, _ in table}
    for layer in layers:
        t = order[layer.position]
        if t not in dict(table):
            continue
        query = queries[t][0]
        to_k, to_v = prompt.adapter.weights(layer.position)
        key = project(prompt.tokens, to_k, layer.heads, query)
        value = project(prompt.tokens, to_v, layer.heads, query)
        plain = 0.7 * dict(table)[t] * image_attention(query, key, value)
        torch.testing.assert_close(terms[t], plain, rtol=1e-5, atol=1e-6)


def test_precise_gives_uncond_what_cond_would_get(world, monkeypatch):
    unet, x, context = world
    _, order = layers_of(unet)
    places = execution_order(tuple(cross_attention_layers(unet)))[1]
    monkeypatch.setitem(weights._NAMED, ("composition precise", places), lambda w, c: dict.fromkeys(order, w))
    monkeypatch.setitem(weights._COMPOSITION, places, ())  # every layer is swapped
    prompt = tiny.prompt(unet)
    plain = Session([prompt])
    swapped = Session([tiny.prompt(unet, rule=LayerRule("composition precise"))])
    base = unet(x, context=context)
    both = torch.stack([x[0], x[0]]), torch.stack([context[0], context[0]])
    out = run(unet, swapped, *both)
    torch.testing.assert_close(out[0], unet(both[0], context=both[1])[0], rtol=1e-5, atol=1e-6)  # cond rows get nothing
    wanted = run(unet, plain, *both)  # row 0: the cond tokens' term
    torch.testing.assert_close(out[1], wanted[0], rtol=1e-5, atol=1e-6)
    assert base.shape == x.shape


def test_a_curve_is_the_weight_of_each_step(world):
    unet, x, context = world
    curve = Curve(((0.0, 0.0), (0.5, 1.0), (1.0, 0.25)))
    session = Session([tiny.prompt(unet, curve=curve)])
    for fraction, factor in ((0.0, 0.0), (0.25, 0.5), (0.5, 1.0), (1.0, 0.25)):
        wanted = run(unet, Session([tiny.prompt(unet, weight=factor)]), x, context)
        torch.testing.assert_close(run(unet, session, x, context, fraction), wanted, rtol=1e-5, atol=1e-6)
    assert torch.equal(run(unet, session, x, context, 0.0), unet(x, context=context))
    # Not one projection more than for an even weight
    assert session.projections == len(cross_attention_layers(unet))


def test_passes_have_their_own_factors(world):
    unet, x, context = world
    plain = {w: run(unet, Session([tiny.prompt(unet, weight=w)]), x, context) for w in (0.5, 1.0)}
    for fields, first, second in (
        ({"passes": "first"}, plain[1.0], unet(x, context=context)),
        ({"passes": "hires", "hires_factor": 0.5}, unet(x, context=context), plain[0.5]),
        ({"passes": "both", "hires_factor": 0.5}, plain[1.0], plain[0.5]),
    ):
        timing = prompt_fields(Unit.parse({**fields, "enabled": False}))[1]
        session = Session([tiny.prompt(unet, first=timing.first, hires=timing.hires)])
        torch.testing.assert_close(run(unet, session, x, context), first, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(run(unet, session, x, context, 0.0, True), second, rtol=1e-5, atol=1e-6)


# curves


def test_a_curve_between_its_points():
    curve = Curve(((0.2, 1.0), (0.6, 3.0)))
    assert [curve.at(x) for x in (0, 0.2, 0.4, 0.6, 1)] == pytest.approx([1, 1, 2, 3, 3])
    stepped = Curve(curve.points, "step")
    assert [stepped.at(x) for x in (0, 0.2, 0.4, 0.6, 1)] == pytest.approx([1, 1, 1, 3, 3])
    assert stepped.at(3 * 0.2) == 3  # 0.6000000000000001
    assert Curve().at(0.3) == 1


# texts


@pytest.mark.parametrize(("given", "normal"), [
    ("", ""), (" 0 : 1 ,3:.5; ", "0:1, 3:0.5"), ("3-5:0.5,0:1", "0:1, 3-5:0.5"), ("0:1\n1:1\n2:1", "0-2:1"),
    ({"0": 1, 4: -0.25}, "0:1, 4:-0.25"), ([[2, 1.5]], "2:1.5"), ("1:1e-3", "1:0.001"),
])  # fmt: skip
def test_layers_are_spelled_one_way(given, normal):
    assert weights.parse_layers(given) == normal
    assert weights.parse_layers(normal) == normal


@pytest.mark.parametrize("value", [
    "1", "a:1", "0:1, 0:2", "3-2:1", "0:6", "0:-5.1", "0:nan", "-1:1", "0:1:2", "1.5:1", None, 3, True, [["0"]],
    {"0": None}, {"0": True}, "99999:1", "0-9999:1, 3:1",
])  # fmt: skip
def test_bad_layers_are_refused(value):
    with pytest.raises(UnitError, match="layers: got"):
        weights.parse_layers(value)


@pytest.mark.parametrize(("given", "normal"), [
    ("", ""), ("0:0,.3:1, 1:0.5", "0:0, 0.3:1, 1:0.5"), ([[0, 1], [0.5, -1]], "0:1, 0.5:-1"), ({"0.5": 2}, "0.5:2"),
])  # fmt: skip
def test_curves_are_spelled_one_way(given, normal):
    assert weights.parse_curve(given) == normal
    assert weights.parse_curve(normal) == normal


@pytest.mark.parametrize("value", [
    "0.5", "0:1, 0:2", "0.5:1, 0.2:1", "-0.1:1", "1.1:1", "0:9", "x:1", None, 1, [[0, 1, 2]], "0:inf",
    ", ".join(f"{i / 100}:1" for i in range(65)),
])  # fmt: skip
def test_bad_curves_are_refused(value):
    with pytest.raises(UnitError, match="curve: got"):
        weights.parse_curve(value)


@given(st.dictionaries(st.integers(0, 90), st.floats(-5, 5)))
def test_layers_come_back_exactly(table):
    text = weights.parse_layers(table)
    assert dict(weights.layers_table(text)) == table
    assert weights.parse_layers(json.loads(json.dumps(text))) == text


@given(st.dictionaries(st.floats(0, 1), st.floats(-5, 5), max_size=64))
def test_curves_come_back_exactly(points):
    ordered = sorted(points.items())
    assert list(weights.curve_points(weights.parse_curve(ordered))) == ordered


# units


def test_a_table_and_a_type_contradict_each_other():
    with pytest.raises(UnitError, match="weight_type is ease in"):
        Unit.parse({"model": "m", "images": ["x"], "layers": "0:1", "weight_type": "ease in"})


def test_a_layer_that_the_model_has_not_is_refused():
    with pytest.raises(UnitError, match="layers from 0 to 15"):
        LayerRule(table=((16, 1.0),)).at(1.0, SD)


@pytest.mark.parametrize(("field", "value"), [
    ("weight_type", "Linear"), ("composition", 6), ("layers", "x"), ("curve", "x"), ("interpolation", "cubic"),
    ("passes", "second"), ("hires_factor", -1), ("hires_factor", math.nan),
])  # fmt: skip
def test_bad_values_name_their_field(field, value):
    with pytest.raises(UnitError, match=f"^{field}: got"):
        Unit.parse({field: value})


def test_the_schema_has_the_fields():
    properties = schema()["properties"]
    assert properties["weight_type"]["enum"] == list(TYPES)
    assert properties["layers"]["default"] == ""
