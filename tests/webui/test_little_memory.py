"""With ``--lowvram`` and ``--medvram``, where modules are moved about between calls: one WebUI for each."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from . import test_faces, test_instantid
from .harness import WebUI, absent, b64
from .test_faces import TWO


@pytest.fixture(scope="module", params=["--lowvram", "--medvram"])
def running(request: pytest.FixtureRequest) -> Iterator[WebUI]:
    """It may keep two models."""
    if reason := absent():
        pytest.skip(reason)
    flags, config = ("--nowebui", request.param), {"sd_checkpoints_limit": 2}
    with WebUI(("sd1", "sd1-other", "sdxl"), extra=flags, config=config) as webui:
        yield webui


def test_checkpoints_change_places(running: WebUI, unit):
    running.options(sd_model_checkpoint="sd1.safetensors")
    base, drawn = running.images(), running.images(unit)
    assert base != drawn
    running.options(sd_model_checkpoint="sd1-other.safetensors")
    other = running.images(unit)
    assert other not in (base, drawn)
    running.options(sd_model_checkpoint="sd1.safetensors")
    assert running.images() == base
    assert running.images(unit) == drawn
    plus = {**unit, "model": "sd1-plus"}
    assert running.images(plus) == running.images(plus)


def test_the_lora_follows_what_a_projection_gives_not_its_module(running: WebUI):
    running.options(sd_model_checkpoint="sd1.safetensors")
    test_faces.write_all(running)
    face = {"model": "sd1-faceid", "images": [b64(TWO)]}
    base, drawn = running.images(), running.images(face)
    assert drawn not in (base, running.images({**face, "lora": 0}))
    assert running.images({**face, "weight": 0}) == running.images() == base
    assert running.images(face) == drawn
    error, effect = test_faces.by_hooks_and_merged(running, face)
    assert error <= 1e-4
    assert effect > 1e-2


def test_instantid_and_its_controlnet(running: WebUI):
    running.options(sd_model_checkpoint="sdxl.safetensors")
    test_instantid.write_all(running)
    person = {"model": "sdxl-instantid", "images": [b64(TWO)]}
    base, drawn = running.images(), running.images(person)
    assert base != drawn
    assert running.images({**person, "pose_weight": 0}) not in (base, drawn)
    assert running.images(person) == drawn
    assert running.images() == base
