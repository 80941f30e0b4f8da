"""The passes of a job, and what a checkpoint's header tells of the layers in one."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from lib_ipadapter.attention.layers import cross_attention_layers
from lib_ipadapter.errors import WrongBase
from lib_ipadapter.unit import Unit
from lib_ipadapter.unit.fields import Reference
from lib_ipadapter.webui.hosts.base import Coming
from lib_ipadapter.webui.passes import Pass, idle, layers_in, passes_of
from tests.tiny import FakeAdapter, UNet

PREFIX = "model.diffusion_model."


def shapes(unet: UNet, prefix: str = PREFIX) -> dict[str, list[int]]:
    """As a checkpoint's header has them, in alphabetical order: input_blocks.10 before input_blocks.2."""
    tensors = {f"{prefix}{key}": list(value.shape) for key, value in unet.state_dict().items()}
    return dict(sorted({**tensors, "cond_stage_model.attn2.to_q.weight": [3, 3]}.items()))


@pytest.mark.parametrize("parts", [(2, 1, 3), (12, 1, 11), (1, 3, 0)])
def test_a_header_tells_the_layers_that_the_unet_has(parts):
    unet = UNet(per_part=parts)
    found, real = layers_in(shapes(unet)), cross_attention_layers(unet)
    assert [(x.position, x.name, x.part, x.width, x.context) for x in found] == [
        (x.position, x.name, x.part, x.width, x.context) for x in real
    ]
    assert layers_in(shapes(unet, "")) == found  # a UNet alone


def test_a_header_of_another_layout_tells_nothing():
    assert layers_in({}) == []
    assert layers_in({"down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_q.weight": [8, 8]}) == []
    assert layers_in({f"{PREFIX}joint_blocks.0.x_block.attn.qkv.weight": [8, 8]}) == []


class Host:
    def __init__(self, unet: UNet, other: UNet | None = None, told: bool = True, chosen: Coming | None = None) -> None:
        self.model, self.other, self.told, self.chosen = unet, other, told, chosen

    def coming(self) -> Coming | None:
        return self.chosen

    def check(self, p: Any, sampling: bool = True) -> None:
        assert not sampling  # the job has not begun

    def unet(self) -> UNet:
        return self.model

    def hires_differs(self, p: Any) -> bool:
        return self.other is not None

    def hires_shapes(self, p: Any) -> Any:
        return shapes(self.other) if self.told else None


def refused(unit: Unit, unet: UNet, host: Host, **job: Any) -> bool:
    adapter = FakeAdapter(unet)
    p = SimpleNamespace(enable_hr=True, firstpass_image=None, **job)
    try:
        for one in passes_of(p, host):
            one.check(unit, adapter.spec)
    except WrongBase:
        return True
    return False


def test_a_unit_must_fit_the_passes_in_which_it_acts():
    first, hires = UNet(16), UNet(32)
    host = Host(first, hires)
    unit = dict(images=(Reference("x"),), model="a")
    for fields, of_first, of_hires in (
        ({}, True, True), ({"passes": "first"}, False, True), ({"hires_factor": 0.0}, False, True),
        ({"passes": "hires"}, True, False),
    ):  # fmt: skip
        assert refused(Unit(**unit, **fields), first, host) is of_first, fields
        assert refused(Unit(**unit, **fields), hires, host) is of_hires, fields
    assert not refused(Unit(**unit), first, Host(first))  # the same checkpoint
    assert not refused(Unit(**unit), first, Host(first, hires, told=False))  # checked when it is loaded


def test_a_checkpoint_that_the_job_loads_itself_counts_in_place_of_the_loaded_one():
    """Forge's upscaling of a finished picture begins before the chosen checkpoint is loaded."""
    unit, loaded, chosen = Unit(images=(Reference("x"),), model="a"), UNet(16), UNet(32)
    for told in (lambda: shapes(chosen), lambda: None):
        host = Host(loaded, chosen=Coming("chosen", Path("chosen.safetensors"), told))
        assert not refused(unit, chosen, host)
        assert refused(unit, loaded, host) is (told() is not None)


def test_the_passes_of_a_job():
    host = Host(UNet(16), UNet(32))

    def hires(**job: Any) -> list[bool]:
        return [one.hires for one in passes_of(SimpleNamespace(**job), host)]

    assert hires() == hires(enable_hr=False) == [False]
    assert hires(enable_hr=True) == [False, True]
    assert hires(enable_hr=True, firstpass_image=object()) == [True]
    assert Pass(True, None).check(Unit(), FakeAdapter(UNet()).spec) is None


@pytest.mark.parametrize(("fields", "job", "words"), [
    ({}, {}, ""),
    ({"passes": "first"}, {"enable_hr": True}, ""),
    ({"passes": "hires"}, {"enable_hr": True}, ""),
    ({"passes": "hires"}, {}, "no hires fix"),
    ({"passes": "hires", "hires_factor": 0}, {"enable_hr": True}, "no pass"),
    ({"passes": "first"}, {"enable_hr": True, "firstpass_image": "picture"}, "no pass"),
])  # fmt: skip
def test_a_unit_that_acts_in_no_pass_says_so(fields, job, words):
    unit = Unit(images=(Reference("aGk="),), model="m", **fields)
    found = idle(SimpleNamespace(**job), unit)
    assert (words in found) if words else found == ""
