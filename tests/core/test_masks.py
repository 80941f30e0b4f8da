"""Region masks: exact at every level, cropped and feathered."""

from __future__ import annotations

import math

import pytest
import torch
from PIL import Image, ImageDraw
from torch import nn

from lib_ipadapter.attention.region import WHOLE, Region, finished, level, of_picture, within
from lib_ipadapter.errors import RowsError, UnitError
from lib_ipadapter.unit import Unit

# Latents of 600x400, 520x512, 1920x1080, 65x64 and others, height first
SIZES = [
    (50, 75), (64, 65), (135, 240), (64, 65), (65, 64), (64, 64), (96, 64), (63, 95), (1, 1), (1, 9), (7, 5), (33, 34),
    (128, 128), (90, 160), (91, 161), (72, 128), (77, 121), (13, 200), (2, 3), (101, 37), (152, 104), (113, 67),
    (48, 84), (84, 47), (31, 31), (17, 16), (16, 17), (129, 127), (115, 115), (60, 104),
]  # fmt: skip


def shapes(height: int, width: int) -> list[tuple[int, int]]:
    """What ldm's Downsample makes of latents: a convolution of stride 2."""
    x, down, found = (
        torch.zeros(1, 1, height, width),
        nn.Conv2d(1, 1, 3, stride=2, padding=1),
        [(height, width)],
    )
    with torch.no_grad():
        for _ in range(3):
            x = down(x)
            found.append((x.shape[2], x.shape[3]))
    return found


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_every_level_is_found_and_is_the_mean_of_what_it_stands_for(size):
    mask = torch.rand(*size, generator=torch.Generator().manual_seed(1))
    for depth, (height, width) in enumerate(shapes(*size)):
        if (height, width) != size and height * width in [h * w for h, w in shapes(*size)[:depth]]:
            continue  # as many tokens as the level above: cannot be told apart, and is 1 x 1 either way
        found = level(mask, height * width)
        assert found.shape == (height, width)
        side = 2**depth
        rows = [mask[y * side : (y + 1) * side] for y in range(height)]
        plain = torch.stack([row[:, x * side : (x + 1) * side].mean() for row in rows for x in range(width)])
        if size[0] % side == 0 and size[1] % side == 0:
            torch.testing.assert_close(found.flatten(), plain)
        assert 0 <= found.min() <= found.max() <= 1


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_halves_are_halves_on_every_level(size):
    """A token wholly inside is 1, one wholly outside 0, by the latents that it stands for."""
    mask = torch.zeros(size)
    mask[:, : size[1] // 2] = 1
    for depth, (height, width) in enumerate(shapes(*size)):
        found, side = level(mask, height * width), 2**depth
        if found.shape != (height, width):
            continue
        for x in range(width):
            first, last = x * side, min((x + 1) * side, size[1])
            if last <= size[1] // 2:
                assert (found[:, x] == 1).all()
            elif first >= size[1] // 2:
                assert (found[:, x] == 0).all()


def test_tokens_of_no_level_are_an_error():
    with pytest.raises(RowsError, match="1000 tokens, which is no level of latents of 64 x 64"):
        level(torch.ones(64, 64), 1000)


def test_a_mask_of_any_size_covers_the_picture():
    coarse = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    like = torch.zeros(1)
    for fine in (coarse, coarse.repeat_interleave(100, 0).repeat_interleave(300, 1)):
        held = Region(fine).at((8, 8), 64, like)[0, :, 0].view(8, 8)
        assert torch.equal(held, coarse.repeat_interleave(4, 0).repeat_interleave(4, 1))
    # By area where edges do not meet
    held = Region(torch.tensor([[1.0, 0.0, 0.0]])).at((1, 2), 2, like)
    torch.testing.assert_close(held.flatten(), torch.tensor([2 / 3, 0.0]))


def test_a_box_shows_its_part():
    mask = torch.rand(40, 80, generator=torch.Generator().manual_seed(2))
    box = (20 / 80, 10 / 40, 60 / 80, 30 / 40)
    like = torch.zeros(1)
    cut = Region(mask[10:30, 20:60]).at((10, 20), 200, like)
    torch.testing.assert_close(Region(mask).at((10, 20), 200, like, box), cut)
    fixed = Region(mask, moves=False)
    assert torch.equal(fixed.at((10, 20), 200, like, box), fixed.at((10, 20), 200, like))
    # Beyond the picture its edge goes on.
    wide = Region(torch.tensor([[1.0, 0.5]])).at((1, 8), 8, like, (-0.5, 0.0, 1.5, 1.0))
    assert wide.flatten().tolist() == [1, 1, 1, 1, 0.5, 0.5, 0.5, 0.5]


def test_rows_and_tiles_show_their_parts():
    mask = torch.rand(40, 80, generator=torch.Generator().manual_seed(2))
    like, box, tile = torch.zeros(1), (0.25, 0.25, 0.75, 0.75), (0.5, 0.0, 1.0, 0.5)
    assert within(box, WHOLE) == box == within(WHOLE, box)
    cut = Region(mask[10:20, 40:60]).at((5, 10), 50, like)
    torch.testing.assert_close(Region(mask).at((5, 10), 50, like, box, tile), cut)
    rows = Region(mask).of_rows((5, 10), 50, like, [(box, tile), (WHOLE, WHOLE)])
    torch.testing.assert_close(rows, torch.cat([cut, Region(mask).at((5, 10), 50, like)]))
    assert Region(mask).of_rows((5, 10), 50, like, [(box, tile)] * 2).shape == (1, 50, 1)
    # What inpainting redraws lies over the latents: their tile cuts it, the picture's part does not.
    fixed = Region(mask, moves=False)
    assert torch.equal(fixed.at((5, 10), 50, like, box, tile), Region(mask).at((5, 10), 50, like, tile))


@pytest.mark.parametrize("value", [0.0, 1.0])
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_one_value_stays_itself_bit_for_bit(size, value):
    like = torch.zeros(1)
    for shape in ((7, 11), (64, 64), (600, 333)):
        for box in ((0.0, 0.0, 1.0, 1.0), (0.11, 0.23, 0.71, 0.93), (-0.25, 0.0, 1.25, 1.0)):
            held = Region(torch.full(shape, value)).at(size, size[0] * size[1], like, box)
            assert (held == value).all()


def test_type_and_device_follow_the_term_and_a_new_mask_is_taken():
    region = Region(torch.ones(4, 4))
    assert region.at((4, 4), 16, torch.zeros(1, dtype=torch.bfloat16)).dtype == torch.bfloat16
    region.show(torch.zeros(4, 4))
    assert not region.at((4, 4), 16, torch.zeros(1)).any()


def test_pictures_are_masks():
    picture = Image.new("RGB", (40, 20))
    ImageDraw.Draw(picture).rectangle((0, 0, 19, 19), fill="white")
    mask = of_picture(picture)
    assert mask.shape == (20, 40)
    assert (mask[:, :20] == 1).all()
    assert (mask[:, 20:] == 0).all()
    assert torch.equal(of_picture(picture, invert=True), 1 - mask)


@pytest.mark.parametrize("std", [0.5, 0.9, 2.3])
def test_a_feather_of_any_size_is_a_gaussian(std: float):
    """A point becomes the bell itself, of which all that shows is kept."""
    mask = torch.zeros(41, 1)
    mask[20] = 1
    bell = torch.exp(-0.5 * ((torch.arange(41) - 20.0) / std) ** 2)
    torch.testing.assert_close(finished(mask, False, (std, 0.0))[:, 0], bell / bell.sum(), rtol=0, atol=2e-3)


def test_a_feather_is_a_gaussian():
    mask = torch.zeros(20, 200)
    mask[:, 100:] = 1
    soft = finished(mask, False, 6.0)
    for offset in (-12, -6, 0, 6, 12):
        wanted = 0.5 * (1 + math.erf((offset + 0.5) / 6 / 2**0.5))
        assert soft[10, 100 + offset] == pytest.approx(wanted, abs=0.01)
    torch.testing.assert_close(soft[0], soft[19])
    torch.testing.assert_close(finished(mask, True, 6.0), 1 - soft)
    torch.testing.assert_close(finished(torch.ones(5, 5), False, 50.0), torch.ones(5, 5))


@pytest.mark.parametrize(("fields", "message"), [
    ({"mask": 3}, "mask: got 3"), ({"region": "left"}, "region: got 'left'"), ({"feather": -1}, "feather: got -1"),
    ({"invert": True}, "no mask to invert"), ({"mask": "x", "region": "inpaint"}, "is a mask, but region is"),
])  # fmt: skip
def test_bad_fields_are_refused(fields, message):
    with pytest.raises(UnitError, match=message):
        Unit.parse({"model": "m", "images": ["x"], **fields})
