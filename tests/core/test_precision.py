"""K' and V' are projected in float32, to the last bit, whatever the dtype of the model and of the weights."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from lib_ipadapter.attention.term import project, split_heads
from lib_ipadapter.training.cache import Cache
from lib_ipadapter.training.stored import stored_dtype

HEADS = 4


def inputs(dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Tokens [2, 5, 768] float32, a weight [32, 768] in ``dtype``, and what the projection is to the last bit."""
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randn(2, 5, 768, generator=generator)
    weight = torch.randn(32, 768, generator=generator).to(dtype)
    return tokens, weight, split_heads(F.linear(tokens, weight.float()), HEADS)


@pytest.mark.parametrize("query", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("stored", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("autocast", [False, True])
def test_the_only_rounding_is_the_last(query: torch.dtype, stored: torch.dtype, autocast: bool) -> None:
    tokens, weight, exact = inputs(stored)
    like = torch.zeros(1, dtype=query)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        found = project(tokens, weight, HEADS, like)
    assert found.dtype == query
    assert torch.equal(found, exact.to(query))


def test_rounding_first_would_be_seen() -> None:
    """So the test above can fail: half precision anywhere before the product changes the result."""
    tokens, weight, exact = inputs(torch.float32)
    for rounded in (
        F.linear(tokens.half().float(), weight),
        F.linear(tokens, weight.half().float()),
        F.linear(tokens.bfloat16(), weight.bfloat16()).float(),
    ):
        assert not torch.equal(split_heads(rounded, HEADS).half(), exact.half())


def test_a_cache_of_another_precision_is_another_cache(tmp_path: Path) -> None:
    """Pooled features are stored as they are; penultimate ones, a hundred times larger, in half precision."""
    assert (stored_dtype("pooled"), stored_dtype("penultimate")) == ("float32", "float16")
    assert stored_dtype("penultimate", half=False) == "float32"
    value = torch.full((1, 3), 1 / 3)
    caches = []
    for kind in ("float32", "float16"):
        cache = Cache(tmp_path, {"data": "x"}, 1, {"features": ((3,), kind)})
        cache.create()
        assert cache.missing() == [0]  # nothing of the other one is taken
        cache.put([0], {"features": value})
        found = cache.get(0, "a")["features"]
        assert found.dtype == torch.float32
        assert torch.equal(found, value[0].to(getattr(torch, kind)).float())
        caches.append(cache)
    assert caches[0].folder != caches[1].folder
