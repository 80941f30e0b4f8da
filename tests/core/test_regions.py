"""Regions of a job in the WebUI: empty ones are refused, and a feather is as wide as it is high."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from PIL import Image

from lib_ipadapter.errors import UnitError
from lib_ipadapter.pictures.picture import Pictures
from lib_ipadapter.unit import Unit
from lib_ipadapter.webui import regions

BLACK, WHITE = Image.new("RGB", (64, 64)), Image.new("RGB", (64, 64), "white")


@pytest.mark.parametrize(("mask", "unit"), [
    (BLACK, Unit()), (Image.new("L", (8, 8), 3), Unit(feather=4)), (WHITE, Unit(invert=True)),
])  # fmt: skip
def test_an_empty_mask_is_refused(mask, unit):
    with pytest.raises(UnitError, match="all over"):
        regions.of_mask(unit, mask, (64, 64))


def test_a_mask_that_is_white_somewhere_is_none_of_them():
    mask = BLACK.copy()
    mask.paste("white", (3, 3, 5, 5))
    assert regions.of_mask(Unit(), mask, (64, 64)).mask.sum() == 4
    pictures = Pictures()
    assert pictures.reference_mask(mask, "focus").image().getextrema()[0] == (0, 255)
    with pytest.raises(UnitError, match="focus"):
        pictures.reference_mask(BLACK, "focus").image()


def test_a_mask_of_which_the_model_sees_nothing():
    """A pixel is less than the 8 x 8 that a number of the latents stands for."""
    mask = BLACK.resize((512, 512))
    mask.putpixel((3, 3), (255, 255, 255))
    with pytest.raises(UnitError, match="nothing is left of them"):
        regions.of_mask(Unit(), mask, (512, 512))


def test_inpainting_that_leaves_nothing():
    job = SimpleNamespace(nmask=torch.ones(1, 4, 8, 8))
    assert regions.redrawn(job, Unit(region="inpaint")).min() == 1
    with pytest.raises(UnitError, match="all of the picture is inpainted"):
        regions.redrawn(job, Unit(region="inpaint", invert=True))
    with pytest.raises(UnitError):
        regions.redrawn(SimpleNamespace(nmask=None), Unit(region="inpaint"))
    with pytest.raises(UnitError, match="paint over the part of the picture to redraw, or set region to mask"):
        regions.redrawn(SimpleNamespace(nmask=torch.zeros(1, 4, 8, 8)), Unit(region="inpaint"))


def test_a_feather_is_as_wide_as_it_is_high():
    """A square mask over a picture twice as wide as high: in the picture both edges are equally soft (A16)."""
    mask = Image.new("L", (512, 512))
    mask.paste(255, (128, 128, 384, 384))
    values = regions.of_mask(Unit(feather=16), mask, (1024, 512)).mask

    def soft(line: torch.Tensor, pixels: float) -> float:
        return float(((line > 0.05) & (line < 0.95)).sum()) * pixels / 2

    across, down = soft(values[256], 2.0), soft(values[:, 256], 1.0)
    assert across == pytest.approx(down, rel=0.05)
    assert 40 < down < 60  # 3.3 standard deviations of 16 pixels
