"""The frozen base in fewer bytes, and what is on the device."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lib_ipadapter.errors import ModelError
from lib_ipadapter.training import storage
from lib_ipadapter.training.memory import described, resident
from lib_ipadapter.training.storage import DTYPES, store

KINDS = [kind for kind, name in DTYPES.items() if hasattr(torch, name)]


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.GroupNorm(2, 8),
        nn.Conv2d(8, 8, 3, padding=2, dilation=2, groups=4),
        nn.Flatten(), nn.Linear(8 * 16, 5), nn.Linear(5, 4, bias=False),
    ).requires_grad_(False)  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_outputs_and_gradients_are_those_of_the_rounded_weights(kind: str):
    dtype = getattr(torch, DTYPES[kind])
    plain, stored = net(), net()
    for module in plain:
        if isinstance(module, nn.Conv2d | nn.Linear):
            module.weight.data = module.weight.to(dtype).float()
    store(stored, kind)
    x = torch.randn(2, 3, 8, 8, requires_grad=True)
    y = x.detach().clone().requires_grad_()
    wanted, found = plain(x), stored(y)
    torch.testing.assert_close(found, wanted)
    wanted.square().sum().backward()
    found.square().sum().backward()
    torch.testing.assert_close(y.grad, x.grad)
    assert not torch.equal(net()(x), wanted), "the rounding is seen"
    assert all(p.dtype == dtype for m in stored if isinstance(m, nn.Conv2d | nn.Linear) for p in [m.weight])
    assert stored[1].weight.dtype == torch.float32


@pytest.mark.parametrize("kind", KINDS)
def test_only_the_stored_weight_is_kept_for_the_gradient(kind: str):
    stored = net()
    store(stored, kind)
    kept: list[torch.Tensor] = []

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        kept.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        stored(torch.randn(2, 3, 8, 8, requires_grad=True))
    shapes = {tuple(m.weight.shape) for m in stored if isinstance(m, nn.Conv2d | nn.Linear)}
    held = [t for t in kept if tuple(t.shape) in shapes]
    assert len(held) == 4
    assert all(t.dtype == getattr(torch, DTYPES[kind]) for t in held)


@pytest.mark.parametrize("kind", KINDS)
def test_autocast_is_obeyed(kind: str):
    stored = net()
    store(stored, kind)
    with torch.autocast("cpu", torch.bfloat16):
        assert stored(torch.randn(1, 3, 8, 8)).dtype == torch.bfloat16


def test_auto_changes_nothing_and_a_torch_without_the_numbers_is_told(monkeypatch: pytest.MonkeyPatch):
    stored = net()
    store(stored, "auto")
    assert all(torch.equal(a, b) for a, b in zip(net().parameters(), stored.parameters(), strict=True))
    monkeypatch.setitem(storage.DTYPES, "fp8", "float8_of_another_day")
    with pytest.raises(ModelError, match="has no float8_of_another_day; use bf16"):
        store(stored, "fp8")


def test_what_is_resident_is_counted_in_bytes():
    one = nn.Linear(1024, 512, bias=False)
    sizes = {"a": one, "b": nn.Linear(1024, 512, bias=False).bfloat16(), "c": nn.Linear(4, 4).to("meta")}
    found = resident(sizes, torch.device("cpu"))
    assert found == {"a": 4 * 2**19, "b": 2 * 2**19, "c": 0}
    assert described(found) == "a 2 MiB, b 1 MiB"
    tied = nn.Sequential(one, one)
    tied[1].weight = one.weight
    assert resident({"tied": tied}, torch.device("cpu")) == {"tied": 4 * 2**19}
    assert F.linear(torch.ones(1, 1024), one.weight).shape == (1, 512)
