"""What the weight scales, and how several references become one, against their formulas."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from lib_ipadapter.attention.layers import cross_attention_layers
from lib_ipadapter.attention.session import Session
from lib_ipadapter.attention.term import split_heads
from lib_ipadapter.cache import Cache, Lazy
from lib_ipadapter.errors import UnitError
from lib_ipadapter.prompts.combine import combine
from lib_ipadapter.prompts.encode import Features
from lib_ipadapter.prompts.project import Tokens, project
from lib_ipadapter.unit import SCALINGS, Unit
from lib_ipadapter.unit.weights import Curve, LayerRule
from tests import tiny

WEIGHT, FACTOR = 0.7, 0.5


def scaled(how: str, key: Tensor, value: Tensor, weight: float) -> tuple[Tensor, Tensor]:
    """K', V' [T, width] as the scalings' author writes them."""
    penalty = weight * key.shape[1] / 1280
    if how == "V only":
        return key, value * weight
    if how == "K+V":
        return key * weight, value * weight
    if how == "K+V with C penalty":
        return key * penalty, value * penalty
    mean = value.mean(0, keepdim=True)
    return key * penalty, value - mean + penalty * mean


@pytest.mark.parametrize("how", SCALINGS)
@pytest.mark.parametrize("factor", [1.0, FACTOR])
def test_a_scaling_is_its_formula(how, factor):
    unet = tiny.UNet().requires_grad_(False)
    # One layer, so that its query is the base model's
    rule = LayerRule(table=((0, 1.0),))
    prompt = tiny.prompt(unet, weight=WEIGHT, rule=rule, scaling=how, curve=Curve(((0.0, factor),)))
    x, context = tiny.inputs(2)
    layer = cross_attention_layers(unet)[0]
    queries: list[Tensor] = []
    layer.module.to_q.register_forward_hook(lambda module, args, out: queries.append(out))
    session, terms = Session([prompt]), []
    original = session.terms

    def record(*args):
        found = original(*args)
        terms.extend(term.value.clone() for term in found)  # the sum is written into it
        return found

    session.terms = record  # type: ignore[method-assign]
    with session.attached(unet):
        session.begin_step([0, 1], 0.0)
        unet(x, context=context)
    to_k, to_v = prompt.adapter.weights(0)
    for row in range(2):
        tokens = prompt.tokens[row]
        key, value = scaled(how, tokens @ to_k.T, tokens @ to_v.T, WEIGHT * factor)
        q, k, v = (split_heads(t[None], layer.heads) for t in (queries[0][row], key, value))
        plain = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)[0]
        torch.testing.assert_close(terms[0][row], plain, rtol=1e-5, atol=1e-6)


class Plain:
    """A projection that changes nothing."""

    key = "plain"
    spec = SimpleNamespace(shortcut=False)

    def tokens(self, features: dict[str, Tensor]) -> Tensor:
        return features["pooled"].view(1, -1, 4)


def combined(how: str, features: list[Tensor], weights: list[float], unconditional: Tensor) -> Tokens:
    def lazy(number: int, feature: Tensor) -> Lazy:
        return Lazy(number, lambda: {"pooled": feature})

    parts = Features(tuple(lazy(i, x) for i, x in enumerate(features)), lazy(-1, unconditional))
    return project(combine(how, parts, weights), Plain(), Cache(lambda: 99))


def one(how: str, *weights: float) -> Tensor:
    features = [
        torch.tensor([[3.0, 4, 0, 0]]),
        torch.tensor([[0.0, 0, 2, 0]]),
        torch.tensor([[0.0, 0, 0, 1]]),
    ]
    tokens = combined(how, features[: len(weights)], list(weights), torch.zeros(1, 4))
    assert tokens.cond.shape == tokens.uncond.shape == (1, 1, 4)
    assert tokens.weights.tolist() == [1.0]
    return tokens.cond[0, 0]


def test_combinations_are_their_formulas():
    torch.testing.assert_close(one("average", 1, 3), torch.tensor([0.75, 1, 1.5, 0]))
    torch.testing.assert_close(one("add", 1, 0.5), torch.tensor([3.0, 4, 1, 0]))
    torch.testing.assert_close(one("subtract", 1, 0.5, 2), torch.tensor([3.0, 4, -0.5, -1]))
    # Directions (.6, .8, 0, 0) and (0, 0, 1, 0), lengths 5 and 2
    direction = F.normalize(torch.tensor([0.3, 0.4, 0.5, 0]), dim=0)
    torch.testing.assert_close(one("norm average", 1, 1), direction * 3.5)
    torch.testing.assert_close(one("norm average", 2), torch.tensor([3.0, 4, 0, 0]))


def test_one_picture_is_the_same_however_it_is_combined():
    features = [torch.randn(1, 5, 4)]
    for how in ("concat", "average", "norm average", "add"):
        tokens = combined(how, features, [1.0], torch.zeros(1, 5, 4))
        torch.testing.assert_close(tokens.cond, features[0])
        assert tokens.weights.tolist() == [1.0] * 5


@pytest.mark.parametrize(("fields", "message"), [
    ({"combine": "subtract"}, "at least two"), ({"combine": "max"}, "combine: got 'max'"),
    ({"combine": "norm average", "images": [{"image": "x", "weight": 0}]}, "sum is not near 0"),
    ({"scaling": "K only"}, "scaling: got 'K only'"),
])  # fmt: skip
def test_bad_values_are_refused(fields, message):
    with pytest.raises(UnitError, match=message):
        Unit.parse({"model": "m", "images": ["x"], **fields})
