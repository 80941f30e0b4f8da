"""PuLID in Forge and reForge: the WebUI's own tests (test_pulid.py) with adapters of SD1.5's widths."""

from __future__ import annotations

import pytest

from tests.synthetic import SD1_WIDTHS

from .forks import Fork, python
from .harness import WebUI
from .test_pulid import (
    face,
    prepare,
    test_a_face_changes_the_picture_and_off_is_the_base,
    test_beside_another_unit_the_order_does_not_matter,
    test_each_mode_and_preset,
    test_two_people_by_masks,
)

__all__ = [
    "face",
    "test_a_face_changes_the_picture_and_off_is_the_base",
    "test_beside_another_unit_the_order_does_not_matter",
    "test_each_mode_and_preset",
    "test_two_people_by_masks",
]


@pytest.fixture(scope="module")
def people(fork: Fork) -> Fork:
    """The fork with PuLID's files and all that they need, small."""
    prepare(fork, python(fork.host), 768, {"sd1": SD1_WIDTHS})
    return fork


@pytest.fixture
def on_people(people: Fork) -> WebUI:
    return people
