"""What holds for all suites, and ``--quick``: the tests that tell the most, in a few minutes."""

from __future__ import annotations

import pytest
from hypothesis import settings

from tests import quick

# A machine that is busy is slow: how long an example takes says nothing.
settings.register_profile("any speed", deadline=None)
settings.load_profile("any speed")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--quick", action="store_true", help="only the tests that tell the most (tests/quick.py)")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("--quick"):
        chosen = set(quick.chosen([item.nodeid for item in items]))
        config.hook.pytest_deselected(items=[item for item in items if item.nodeid not in chosen])
        items[:] = [item for item in items if item.nodeid in chosen]
