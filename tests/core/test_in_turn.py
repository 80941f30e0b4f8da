"""References in turn: one for each picture of a batch."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from lib_ipadapter.attention.session import Session
from lib_ipadapter.errors import UnitError
from lib_ipadapter.prompts.image_prompt import in_turn
from lib_ipadapter.prompts.resolve import one_per_picture
from lib_ipadapter.unit.weights import LayerRule
from tests.core.test_embeds import Store, of, picture, resolved, unit
from tests.tiny import UNet, inputs, prompt


def test_which_reference_a_picture_takes():
    def taken(places, count=3):
        one = unit(*(picture(i) for i in range(count)), distribute="one per picture")
        return [single.images[0].image.getpixel((0, 0))[0] for single in one_per_picture(one, places, Store())]

    assert taken([0, 1]) == [0, 1]
    assert taken(range(8)) == [0, 1, 2]  # and again from the first
    assert taken([4]) == [1]
    single = one_per_picture(of([1, 2], combine="subtract", distribute="one per picture"), [0], Store())[0]
    with pytest.raises(UnitError, match="at least two"):
        resolved(single, Store())


@pytest.fixture
def unet():
    torch.manual_seed(0)
    return UNet(per_part=(6, 1, 9)).eval()  # as many layers as SD1.5.requires_grad_(False)


@pytest.mark.parametrize("fields", [
    {}, {"scaling": "K+V"}, {"scaling": "K+mean(V) with C penalty"}, {"precise": True},
])  # fmt: skip
def test_each_picture_equals_a_run_with_its_own_reference(unet, fields):
    fields = dict(fields)
    if fields.pop("precise", False):
        fields["rule"] = LayerRule("style transfer precise", 0.7, None)
    first = prompt(unet, **fields)
    others = [prompt(unet, seed) for seed in (1, 2)]
    weights = [torch.full((4,), weight) for weight in (1.0, 0.5, 2.0)]
    alone = [
        replace(first, tokens=one.tokens, token_weights=weight)
        for one, weight in zip([first, *others], weights, strict=True)
    ]
    x, context = inputs(6)
    sets = [0, 2, 4, 1, 3, 5]  # pictures 0, 1, 2: cond, then uncond
    together = run(unet, [in_turn(alone)], x, context, sets)
    for k, one in enumerate(alone):
        single = run(unet, [one], x, context, [0, 0, 0, 1, 1, 1])
        assert torch.equal(together[k::3], single[k::3])
        assert not torch.equal(together[(k + 1) % 3 :: 3], single[(k + 1) % 3 :: 3])


def test_they_begin_again_and_other_units_are_not_touched(unet):
    one, two, other = prompt(unet), prompt(unet, 1), prompt(unet, 2, weight=0.3)
    two = replace(one, tokens=two.tokens)
    x, context = inputs(4)
    both = run(unet, [in_turn([one, two]), other], x, context, [4, 6, 5, 7])  # pictures 2 and 3: references 0 and 1
    assert torch.equal(both[0::2], run(unet, [one, other], x, context, [0, 0, 1, 1])[0::2])
    assert torch.equal(both[1::2], run(unet, [two, other], x, context, [0, 0, 1, 1])[1::2])


def test_prompts_of_other_lengths_are_refused(unet):
    with pytest.raises(UnitError, match=r"got 4 and 8.*average"):
        in_turn([prompt(unet), prompt(unet, tokens=8)])


def run(unet, prompts, x, context, sets):
    session = Session(prompts)
    with session.attached(unet):
        session.begin_step(sets, 0.0)
        return unet(x, context=context)
