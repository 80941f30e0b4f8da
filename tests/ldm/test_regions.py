"""Region masks on the real ldm UNet: outside a region each layer's attention is the base model's, bit for bit."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

pytest.importorskip("ldm", reason="stable-diffusion-sdkit is not installed")

from lib_ipadapter.adapters.adapter import Adapter
from lib_ipadapter.attention.layers import cross_attention_layers
from lib_ipadapter.attention.region import Region, level
from lib_ipadapter.attention.session import ImagePrompt, Session
from lib_ipadapter.errors import RowsError
from lib_ipadapter.standalone import Standalone
from tests.core.test_masks import SIZES
from tests.ldm.small import write_all


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_all(tmp_path_factory.mktemp("regions"))


@pytest.fixture(scope="module")
def unet(folder: Path) -> nn.Module:
    return Standalone.load(folder / "small-eps.safetensors", folder / "small-eps.yaml").parts.unet


@pytest.fixture(scope="module")
def prompt(folder: Path) -> ImagePrompt:
    adapter = Adapter.load(folder / "base.safetensors")
    tokens = torch.randn(2, adapter.spec.tokens, adapter.spec.context, generator=torch.Generator().manual_seed(3))
    return ImagePrompt(adapter, tokens, torch.ones(adapter.spec.tokens), weight=0.9)


def masked(prompt: ImagePrompt, mask: Tensor) -> ImagePrompt:
    return ImagePrompt(prompt.adapter, prompt.tokens, prompt.token_weights, prompt.weight, region=Region(mask))


def call(unet: nn.Module, size: tuple[int, int], *prompts: ImagePrompt) -> tuple[Tensor, dict[int, list[Tensor]]]:
    """(the UNet's output, by layer its attention's output before and after the term was added)."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(2, 4, *size, generator=generator)
    context = torch.randn(2, 77, cross_attention_layers(unet)[0].context, generator=generator)
    seen: dict[int, list[Tensor]] = {}

    def note(layer):
        return layer.module.to_out[0].register_forward_pre_hook(
            lambda module, args: seen.setdefault(layer.position, []).append(args[0].clone())
        )

    session = Session(prompts)
    handles = [note(layer) for layer in cross_attention_layers(unet)]
    try:
        with session.attached(unet), torch.no_grad():
            handles += [note(layer) for layer in cross_attention_layers(unet)]
            session.begin_step([0, 1], 0.0, size=size)
            return unet(x, torch.tensor([500, 500]), context=context), seen
    finally:
        for handle in handles:
            handle.remove()


def even(size: tuple[int, int]) -> tuple[int, int]:
    """ldm's decoder joins only sizes that can be halved thrice. The WebUI resizes at others: its tests have them."""
    return tuple(max(8, round(n / 8) * 8) for n in size)  # type: ignore[return-value]


def test_outside_a_region_the_attention_is_the_bases(unet, prompt):
    sizes = [size for size in dict.fromkeys(map(even, SIZES)) if size[0] * size[1] <= 3300]
    assert len(sizes) > 3  # the larger ones differ in nothing but their numbers: core/test_masks.py has them
    for size in sizes:
        mask = torch.zeros(size)
        mask[: size[0] // 2 + 1, size[1] // 3 :] = 1
        _, seen = call(unet, size, masked(prompt, mask))
        for before, after in seen.values():
            at = level(mask, before.shape[1]).flatten()
            outside = at == 0
            assert torch.equal(before[:, outside], after[:, outside])
            assert not torch.equal(before[:, ~outside], after[:, ~outside])


@pytest.mark.parametrize("size", [(16, 24), (24, 40)], ids=str)
def test_two_halves_are_the_whole(unet, prompt, size):
    mask = torch.rand(size, generator=torch.Generator().manual_seed(4))
    whole, _ = call(unet, size, prompt)
    halves, _ = call(unet, size, masked(prompt, mask), masked(prompt, 1 - mask))
    base, _ = call(unet, size)
    torch.testing.assert_close(halves, whole, rtol=1e-4, atol=1e-5)
    assert (whole - base).abs().max() > 1e-3
    # White everywhere is no mask at all, bit for bit.
    assert torch.equal(call(unet, size, masked(prompt, torch.ones(3, 5)))[0], whole)
    assert torch.equal(call(unet, size, masked(prompt, torch.zeros(3, 5)))[0], base)


def test_tiles_are_not_guessed(unet, prompt):
    session = Session([masked(prompt, torch.ones(2, 2))])
    with (
        session.attached(unet),
        torch.no_grad(),
        pytest.raises(RowsError, match="latents of 16 x 16, expected 32 x 24"),
    ):
        session.begin_step([0, 1], 0.0, size=(24, 32))
        unet(
            torch.zeros(2, 4, 16, 16),
            torch.tensor([5, 5]),
            context=torch.zeros(2, 77, prompt.adapter.spec.context),
        )


def test_tiles_of_the_latents_take_their_parts(unet, prompt):
    """Two tiles in one call, of latents 24 x 32 that show the right half of the picture: the mask is the lower half of
    the right quarter, so the left tile is the base's."""
    mask = torch.zeros(8, 8)
    mask[4:, 6:] = 1
    shown = ((0.0, 0.0, 0.5, 2 / 3), (0.5, 1 / 3, 1.0, 1.0))
    session = Session([masked(prompt, mask)], lambda whole, tile: shown)
    x = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(1)).repeat(4, 1, 1, 1)
    context = torch.zeros(4, 77, prompt.adapter.spec.context)
    with torch.no_grad():
        base = unet(x, torch.full((4,), 5), context=context)
        with session.attached(unet):
            session.begin_step([0, 1], 0.0, size=(24, 32), boxes=((0.5, 0.0, 1.0, 1.0),))
            session.rows.chunk(2)
            drawn = unet(x, torch.full((4,), 5), context=context)
    assert torch.equal(drawn[:2], base[:2])
    assert not torch.equal(drawn[2:], base[2:])
