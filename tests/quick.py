"""Which tests ``--quick`` runs: all of the folders in ``WHOLE``, of other folders only what ``TELLING`` names, in each
case without what ``SLOW`` names. Of a test with many parameters it takes ``MOST``, spread over them, in folders where
each takes long. Names are the beginnings of pytest's, below ``tests/``."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

WHOLE = ("core/", "parity/")
TELLING = (
    "ldm/test_regions.py",
    "ldm/test_standalone.py",
    "ldm/test_training.py",
    "webui/test_api.py",
    "webui/test_generation.py",
    "webui/test_host_smoke.py",
    "webui/test_lifecycle.py",
    "webui/test_references.py",
    "webui/test_refusals.py",
)
SLOW = ("core/test_small_world.py",)
THINNED = ("ldm/", "parity/", "webui/")
MOST = 3


def chosen(nodeids: Sequence[str]) -> list[str]:
    """The tests of these that the quick run has, in their order."""
    kept = [name for name in nodeids if _is_telling(name.removeprefix("tests/"))]
    thinned: list[str] = []
    for test, group in itertools.groupby(kept, lambda name: name.partition("[")[0]):
        names = list(group)
        thinned += spread(names, MOST) if test.removeprefix("tests/").startswith(THINNED) else names
    return thinned


def _is_telling(name: str) -> bool:
    return name.startswith((*WHOLE, *TELLING)) and not name.startswith(SLOW)


def spread(names: list[str], most: int) -> list[str]:
    """At most so many of the names, the first and the last among them, the others evenly between."""
    if len(names) <= most:
        return names
    return [names[round(i * (len(names) - 1) / (most - 1))] for i in range(most)]
