"""What of a reference counts, and how it meets the encoder's square."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from lib_ipadapter.encoders.spec import Need
from lib_ipadapter.errors import UnitError
from lib_ipadapter.pictures import images, preprocess
from lib_ipadapter.pictures.picture import Pictures
from lib_ipadapter.pictures.preprocess import Preprocess
from lib_ipadapter.prompts.encode import merged
from lib_ipadapter.prompts.pipeline import Pipeline
from lib_ipadapter.prompts.references import NoStore
from lib_ipadapter.prompts.resolve import resolve
from lib_ipadapter.unit import Unit, crops
from lib_ipadapter.webui.panel import html as panel_html


def picture(width: int = 40, height: int = 30, seed: int = 0) -> Image.Image:
    values = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(values)


def same(a: Image.Image, b: Image.Image) -> bool:
    return a.size == b.size and a.tobytes() == b.tobytes()


# the crop box


@pytest.mark.parametrize(
    ("given", "spelled"),
    [
        ("", ""),
        ("  ;; ", ""),
        ("0.1, 0, 0.6, 0.5", "0.1, 0, 0.6, 0.5"),
        ("0.10 0 .6 0.5", "0.1, 0, 0.6, 0.5"),
        ([0.1, 0, 0.6, 0.5], "0.1, 0, 0.6, 0.5"),
        ([None, [0, 0, 1, 0.5]], "; 0, 0, 1, 0.5"),
        ("0,0,1,1;;0,0,.5,.5", "0, 0, 1, 1; ; 0, 0, 0.5, 0.5"),
    ],
)
def test_boxes_are_spelled_one_way(given: object, spelled: str) -> None:
    assert crops.parse_boxes(given) == spelled
    assert crops.parse_boxes(spelled) == spelled


@pytest.mark.parametrize(
    "wrong", ["1", "0,0,1", "0,0,1,1,1", "0.5,0,0.5,1", "0.6,0,0.5,1", "-0.1,0,1,1", "0,0,1.1,1", "a,b,c,d",
              "nan,0,1,1", 5, True, {"left": 0}, [0, 0, 1], [[0, 0, 1, "x"]], [0, 0, 1, True]],
)  # fmt: skip
def test_wrong_boxes_name_the_field_and_what_was_expected(wrong: object) -> None:
    with pytest.raises(UnitError, match=r"box.*left, top, right, bottom"):
        crops.parse_boxes(wrong)


def test_one_box_is_for_all_and_several_are_one_each() -> None:
    assert crops.boxes("0, 0, 1, 0.5", 2) == [(0, 0, 1, 0.5)] * 2
    assert crops.boxes("; 0, 0, 1, 0.5", 2) == [None, (0, 0, 1, 0.5)]
    assert crops.boxes("", 3) == [None] * 3
    assert crops.boxes("; 0, 0, 1, 0.5", 3) == [None, (0, 0, 1, 0.5), None]
    assert [crops.box_at("; 0, 0, 1, 0.5", i, 2) for i in range(2)] == ["", "0, 0, 1, 0.5"]
    with pytest.raises(UnitError, match="one box for all, or 1"):
        Unit.parse({"model": "m", "images": ["aGk="], "box": "; 0, 0, 1, 0.5"})


def test_a_box_cuts_and_is_never_empty() -> None:
    whole = picture(40, 30)
    assert same(preprocess.cut(whole, (0.25, 0.5, 0.75, 1), None), whole.crop((10, 15, 30, 30)))
    assert preprocess.cut(whole, (0.999, 0.999, 1, 1), None).size == (1, 1)
    assert preprocess.cut(whole, (0, 0, 0.001, 0.001), None).size == (1, 1)


def test_a_reference_mask_takes_out_what_is_black() -> None:
    mask = Image.new("L", (4, 2), 0)
    mask.paste(255, (0, 0, 2, 2))
    mask = mask.resize((40, 30), Image.Resampling.NEAREST)
    values = np.asarray(preprocess.cut(picture(), None, mask))
    assert (values[:, :20] == np.asarray(picture())[:, :20]).all()
    assert (values[:, 20:] == images.NEUTRAL).all()


# position, tiles


@pytest.mark.parametrize(
    ("position", "wide", "tall"),
    [("left", (0, 0, 30, 30), None), ("right", (10, 0, 40, 30), None), ("top", None, (0, 0, 30, 30)),
     ("bottom", None, (0, 10, 30, 40)), ("center", None, None)],
)  # fmt: skip
def test_positions(position: str, wide: tuple[int, ...] | None, tall: tuple[int, ...] | None) -> None:
    for whole, box in ((picture(40, 30), wide), (picture(30, 40), tall)):
        (tile,) = preprocess.tiles(whole, Preprocess("crop", position))
        assert same(tile.picture, whole.crop(box) if box else whole)
        assert same(preprocess.tiles(whole, Preprocess("pad", position))[0].picture, whole)


@pytest.mark.parametrize("size", [(30, 30), (31, 30), (30, 90), (200, 60), (1, 1), (1000, 3), (7, 500)])
def test_tiles_cover_the_picture(size: tuple[int, int]) -> None:
    tiles = preprocess.tiles(picture(*size), Preprocess("tiles"))
    assert len(tiles) <= preprocess.MAX_TILES
    side = tiles[0].picture.width
    assert all(tile.picture.size == (side, side) and tile.fit == "stretch" for tile in tiles)
    if max(size) > preprocess.MAX_TILES * min(size):
        return
    seen = np.zeros(size[::-1], dtype=bool)
    for tile in tiles:
        x, y = round(tile.left * side), round(tile.top * side)
        assert same(tile.picture, picture(*size).crop((x, y, x + side, y + side)))
        seen[y : y + side, x : x + side] = True
    assert seen.all()


def test_tiles_side_by_side_are_averaged_to_one_grid() -> None:
    torch.manual_seed(0)
    grid, width = 4, 6
    canvas, kept = torch.randn(width, 2 * grid, 2 * grid), torch.randn(4, 2, width)
    places = [(0.0, 0.0), (1.0, 0.0), (0.0, 1.0), (1.0, 1.0)]
    tiles = []
    for (left, top), own in zip(places, kept, strict=True):
        x, y = int(left * grid), int(top * grid)
        part = canvas[:, y : y + grid, x : x + grid].flatten(1).T
        tiles.append(torch.cat([own, part])[None])
    out = merged(tiles, places)
    assert out.shape == tiles[0].shape
    torch.testing.assert_close(out[0, :2], kept.mean(0))
    blocks = canvas.unflatten(1, (grid, 2)).unflatten(3, (grid, 2)).mean((2, 4))
    torch.testing.assert_close(out[0, 2:], blocks.flatten(1).T)


def test_where_tiles_overlap_their_mean_counts() -> None:
    left, right = torch.zeros(1, 17, 2), torch.ones(1, 17, 2)  # a class token and 4 x 4 patches
    out = merged([left, right], [(0.0, 0.0), (0.5, 0.0)])
    # six columns 0 0 .5 .5 1 1, averaged over the area to four of 1.5 each
    columns = torch.tensor([0.0, 0.25, 0.75, 1.0])
    torch.testing.assert_close(out[0, 1:, 0].view(4, 4), columns.expand(4, 4))
    assert torch.equal(merged([left], [(0, 0)]), left)
    assert merged([torch.zeros(1, 3), torch.ones(1, 3)], [(0, 0), (1, 0)]).tolist() == [[0.5, 0.5, 0.5]]


# sharpening, noise


def cas(values: np.ndarray, amount: float) -> np.ndarray:
    """FidelityFX CAS of [H, W] in 0..1, pixel by pixel, as its paper writes it."""
    padded, out = np.pad(values, 1, mode="edge"), np.zeros_like(values)
    for y in range(values.shape[0]):
        for x in range(values.shape[1]):
            (a, b, c), (d, e, f), (g, h, i) = padded[y : y + 3, x : x + 3]
            low = min(b, d, e, f, h) + min(a, b, c, d, e, f, g, h, i)
            high = max(b, d, e, f, h) + max(a, b, c, d, e, f, g, h, i)
            weight = -((max(0, min(low, 2 - high)) / (high + 1e-6)) ** 0.5) * (amount * (1 / 5 - 1 / 8) + 1 / 8)
            out[y, x] = ((b + d + f + h) * weight + e) / (1 + 4 * weight)
    return out.clip(0, 1)


@pytest.mark.parametrize("amount", [0.01, 0.5, 1.0])
def test_sharpening_is_cas(amount: float) -> None:
    whole = picture(9, 7)
    ours = np.asarray(preprocess.sharpened(whole, amount), dtype=float)
    for channel in range(3):
        expected = cas(np.asarray(whole)[..., channel] / 255.0, amount) * 255
        assert abs(ours[..., channel] - expected).max() <= 0.5 + 1e-6
    assert same(preprocess.sharpened(whole, 0), whole)
    flat = Image.new("RGB", (5, 5), (10, 200, 30))
    assert same(preprocess.sharpened(flat, amount), flat)


def test_noise_is_the_same_each_time_and_all_there_is_at_1() -> None:
    one, two = picture(seed=1), picture(seed=2)
    assert same(preprocess.noised(one, 0), one)
    assert same(preprocess.noised(one, 0.5), preprocess.noised(one, 0.5))
    assert same(preprocess.noised(one, 1), preprocess.noised(two, 1))
    assert not same(preprocess.noised(one, 0.5), preprocess.noised(two, 0.5))


# features


NEED = Need("pooled", 3, "means")


class Means:
    """Features that are a picture's mean colour, and the squares that were asked for."""

    def __init__(self) -> None:
        self.asked: list[Image.Image] = []

    def encode(self, square: Image.Image, need: Need) -> torch.Tensor:
        self.asked.append(square)
        return torch.tensor(np.asarray(square, dtype=np.float32).mean((0, 1)))[None]

    def unconditional(self, need: Need) -> torch.Tensor:
        return torch.zeros(1, 3)

    def side(self, need: Need) -> int:
        return 16

    def check(self, need: Need) -> None:
        pass

    def identity(self, need: Need) -> str:
        return "means"

    def named(self, need: Need) -> Need:
        return need


def read(
    fields: dict, references: list[Image.Image], negative: list[Image.Image] | None = None
) -> tuple[list[torch.Tensor], torch.Tensor, Means]:
    unit, source = (
        Unit.parse({"model": "m", "images": references, "negative": negative or [], **fields}),
        Means(),
    )
    features = Pipeline(source).features(resolve(unit, NoStore(), Pictures()), [NEED])
    conds = [reference()["pooled"] for reference in features.references]
    return conds, features.unconditional()["pooled"], source


def square(whole: Image.Image, fit: str = "crop") -> Image.Image:
    return images.fit(whole, 16, fit)


def test_plain_references_go_to_the_encoder_as_they_are() -> None:
    one = picture()
    (feature,), uncond, source = read({"fit": "pad"}, [one])
    assert [same(shown, square(one, "pad")) for shown in source.asked] == [True]
    assert not uncond.any()
    assert feature.shape == (1, 3)


def test_each_reference_has_its_box() -> None:
    one, two = picture(seed=1), picture(seed=2)
    _, _, source = read({"box": "; 0, 0, 0.5, 1"}, [one, two])
    assert same(source.asked[0], square(one))
    assert same(source.asked[1], square(two.crop((0, 0, 20, 30))))


def test_sharpening_is_of_what_the_encoder_sees() -> None:
    _, _, source = read({"sharpen": 0.5}, [picture()])
    assert same(source.asked[0], preprocess.sharpened(images.fit(picture(), 16, "crop"), 0.5))
    seen = preprocess.square(picture(), Preprocess(sharpen=0.5), 16)  # what the thumbnail shows
    assert same(source.asked[0], seen)


def test_tiles_are_one_feature() -> None:
    (feature,), _, source = read({"fit": "tiles"}, [picture(60, 30)])
    assert len(source.asked) == 2
    halves = [square(picture(60, 30).crop((x, 0, x + 30, 30))) for x in (0, 30)]
    expected = np.mean([np.asarray(half, dtype=np.float32).mean((0, 1)) for half in halves], axis=0)
    np.testing.assert_allclose(feature[0].numpy(), expected, rtol=1e-5)


def test_negative_references_are_the_unconditional_side() -> None:
    bad = [picture(seed=5), picture(seed=6)]
    _, uncond, _ = read({}, [picture()], bad)
    expected = np.mean([np.asarray(square(x), dtype=np.float32).mean((0, 1)) for x in bad], axis=0)
    np.testing.assert_allclose(uncond[0].numpy(), expected, rtol=1e-5)
    with pytest.raises(UnitError, match=r"negative.*without weights"):
        Unit.parse({"model": "m", "images": ["aGk="], "negative": [{"image": "aGk=", "weight": 0.5}]})


def test_noise_fades_the_negatives_or_else_the_references() -> None:
    _, uncond, source = read({"noise": 0.5}, [picture()])
    faded = preprocess.noised(images.fit(picture(), 16, "crop"), 0.5)
    assert same(source.asked[-1], faded)
    assert uncond.any()
    _, _, source = read({"noise": 0.5}, [picture()], [picture(seed=3)])
    assert same(source.asked[-1], preprocess.noised(images.fit(picture(seed=3), 16, "crop"), 0.5))


def test_thumbnails_show_the_box(tmp_path: object) -> None:
    path = f"{tmp_path}/wide.png"
    picture(40, 30).save(path)

    def see(path, box, mask):
        return panel_html.Seen(panel_html.square(path, 32, Preprocess(), box, mask), "what the encoder will see")

    plain = panel_html.thumbnails([path], [None], [None], see)
    boxed = panel_html.thumbnails([path], [None], [(0.0, 0.0, 0.5, 1.0)], see)
    assert plain != boxed
    assert 'data-box=""' in plain
    assert 'data-box="0.0,0.0,0.5,1.0"' in boxed
