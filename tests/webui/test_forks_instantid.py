"""InstantID in Forge and reForge: the WebUI's own test (test_instantid.py) on a checkpoint of SD1.5's shape."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.synthetic import SD1_WIDTHS

from .forks import Fork
from .harness import WebUI
from .test_generation import one, same
from .test_instantid import person, test_it_acts_and_off_is_the_base, write_all

__all__ = ["person", "test_it_acts_and_off_is_the_base"]


@pytest.fixture(scope="module")
def posed(fork: Fork) -> Fork:
    """The fork with InstantID's files, named as those of the WebUI's test."""
    write_all(fork, "sdxl", SD1_WIDTHS, 768, Path(fork.checkpoint("sd1")))
    return fork


@pytest.fixture
def on_person(posed: Fork) -> WebUI:
    return posed


def test_parts_of_a_call_have_their_own_tokens(on_person: WebUI, person: dict) -> None:
    """A prompt in two equal parts is the prompt: the ControlNet's rows are told by the call's labels."""
    single = one(on_person, person, prompt="a red house", steps=1)
    joined = one(on_person, person, prompt="a red house AND a red house", steps=1, cfg_scale=3.5)
    alone = one(on_person, {**person, "pose_weight": 0}, prompt="a red house", steps=1)
    assert single != alone
    same(on_person, one(on_person, person, prompt="a red house", steps=1), single)
    assert joined != one(on_person, {**person, "pose_weight": 0}, prompt="a red house AND a red house", steps=1,
                         cfg_scale=3.5)  # fmt: skip
