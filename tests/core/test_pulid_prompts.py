"""PuLID from pictures to prompts: what of a face it takes, several faces, embeds, refusals; and the panel's facts."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from lib_ipadapter.adapters.adapter import Adapter
from lib_ipadapter.attention.correction import Correction
from lib_ipadapter.encoders import EncoderSource
from lib_ipadapter.encoders.spec import Need
from lib_ipadapter.errors import FaceModelMissing, FileError, UnitError
from lib_ipadapter.faces import FaceAnalyser, FacePacks, Recogniser, parsing
from lib_ipadapter.pictures.picture import Pictures
from lib_ipadapter.prompts import embeds
from lib_ipadapter.prompts.pipeline import Caches, Pipeline
from lib_ipadapter.prompts.references import NoStore
from lib_ipadapter.prompts.resolve import resolve
from lib_ipadapter.unit import Unit
from lib_ipadapter.webui.describe import description_of
from lib_ipadapter.webui.panel import html
from tests.core.test_face_prompts import NONE, ONE, TWO
from tests.face_models import recogniser, write_pack
from tests.facexlib_code import small, write_parser
from tests.synthetic import pulid_tensors, write_adapter

POOLED, HIDDEN, TOKENS = 40, 96, 5


class Eva:
    """Features that are linear in the values; keeps the values."""

    def __init__(self) -> None:
        self.values: list[Tensor] = []
        draw = torch.Generator().manual_seed(0)
        self._matrices = [torch.randn(48, n, generator=draw) for n in (POOLED, 5 * TOKENS * HIDDEN)]

    def encode(self, square: Image.Image, need: Need) -> Tensor:
        raise AssertionError("a face is shown without its background")

    def levels(self, values: Tensor, need: Need) -> dict[str, Tensor]:
        self.values.append(values)
        flat = torch.nn.functional.adaptive_avg_pool2d(values, 4).flatten(1) - 0.5
        pooled, levels = (flat @ matrix for matrix in self._matrices)
        return {"pooled": pooled, "levels": levels.reshape(1, 5, TOKENS, HIDDEN)}

    def unconditional(self, need: Need) -> Tensor:
        return torch.zeros(1, need.width)

    def side(self, need: Need) -> int:
        return 336

    def check(self, need: Need) -> None:
        assert not need.is_face

    def identity(self, need: Need) -> tuple[str, str]:
        return "eva", need.feature

    def named(self, need: Need) -> Need:
        return need


class Jobs:
    def __init__(self, folder) -> None:
        self.folder = folder
        write_pack(folder / "packs", "antelopev2", seed=1)
        self.faces = FaceAnalyser(FacePacks(lambda: [folder / "packs"]))
        self.eva, self.caches, self.pictures = Eva(), Caches(), Pictures()

    def adapter(self, version: str = "v1") -> Adapter:
        return Adapter.load(write_adapter(self.folder / f"{version}.safetensors", pulid_tensors(version)))

    def pipeline(self) -> Pipeline:
        return Pipeline(self.eva, self.caches, self.faces)

    def resolved(self, images, **fields):
        return resolve(Unit.parse({"model": "m", "images": images, **fields}), NoStore(), self.pictures)

    def features(self, images, version="v1", **fields):
        found = self.pipeline().features(self.resolved(images, **fields), self.adapter(version).spec.needs)
        return [reference() for reference in found.references], found.unconditional()

    def prompt(self, images, version="v1", **fields):
        return self.pipeline().prompt(self.resolved(images, **fields), self.adapter(version))


@pytest.fixture
def jobs(tmp_path, monkeypatch) -> Jobs:
    torch.manual_seed(0)
    write_parser(tmp_path / "packs", small(monkeypatch)(num_class=19))
    return Jobs(tmp_path)


def by_hand(jobs: Jobs, image: Image.Image, index: int = 0) -> dict[str, Tensor]:
    face = sorted(jobs.faces.faces(image), key=lambda face: face.centre[0])[index]
    raw = torch.from_numpy(Recogniser(recogniser(1), "r").embedding(np.asarray(image), face))[None]
    crop = parsing.ffhq_crop(np.asarray(image), np.asarray(face.points))
    values = jobs.faces.parser.bare(crop)
    return {"raw face": raw, **Eva().levels(values, Need("levels", HIDDEN))}


def test_one_detection_serves_arcface_and_eva(jobs):
    (found,), nothing = jobs.features([TWO], face="rightmost")
    assert jobs.faces.runs == 1
    assert len(jobs.eva.values) == 1
    wanted = by_hand(jobs, TWO, 1)
    for name, value in wanted.items():
        torch.testing.assert_close(found[name], value)
        assert torch.equal(nothing[name], torch.zeros_like(value))
    assert not torch.allclose(found["levels"], by_hand(jobs, TWO, 0)["levels"], atol=1e-3)


def test_a_known_face_is_not_encoded_again(jobs):
    first, second = jobs.prompt([ONE]), jobs.prompt([ONE], weight=0.5, pulid="style")
    assert torch.equal(first.tokens, second.tokens)
    assert len(jobs.eva.values) == 1
    parser = jobs.faces.parser.find()
    torch.manual_seed(5)
    state = {key: torch.randn_like(value) for key, value in torch.load(parser).items()}
    torch.save(state, parser)
    assert not torch.equal(jobs.prompt([ONE]).tokens, first.tokens)


@pytest.mark.parametrize(("version", "auto"), [("v1", ("ortho_v2", 8)), ("v1.1", ("ortho_v2", 20))])
def test_the_prompt(jobs, version, auto):
    one = jobs.prompt([ONE], version)
    count = 10 if version == "v1" else 8
    assert one.tokens.shape == (2, count, 64)
    assert one.merge == Correction(*auto)
    wanted = jobs.adapter(version).tokens(by_hand(jobs, ONE))
    torch.testing.assert_close(one.tokens[:1], wanted)
    assert jobs.prompt([ONE], version, pulid="style").merge == Correction("ortho", 16)
    assert jobs.prompt([ONE], version, pulid_mode="off", zero_tokens=3).merge == Correction("off", 3)


def test_several_pictures_of_v1_are_a_main_one_and_others(jobs):
    """Of the others the tokens of who it is, as in app.py without ID mix."""
    one = jobs.prompt([{"image": ONE, "weight": 1.0}, {"image": TWO, "weight": 0.5}], face="leftmost", maps=True)
    adapter = jobs.adapter()
    main, other = (adapter.tokens(by_hand(jobs, image)) for image in (ONE, TWO))
    torch.testing.assert_close(one.tokens[:1], torch.cat([main, other[:, :5]], 1))
    nothing = adapter.tokens({name: 0 * value for name, value in by_hand(jobs, ONE).items()})
    torch.testing.assert_close(one.tokens[1:], torch.cat([nothing, nothing[:, :5]], 1))
    assert one.token_weights.tolist() == [1.0] * 10 + [0.5] * 5
    assert one.maps == 1


def test_several_pictures_of_v11_are_one_pass(jobs):
    one = jobs.prompt([ONE, TWO], "v1.1", face="leftmost")
    parts = [by_hand(jobs, image) for image in (ONE, TWO)]
    given = {
        "raw face": torch.stack([p["raw face"] for p in parts], 1),
        "pooled": torch.stack([p["pooled"] for p in parts], 1),
        "levels": torch.cat([p["levels"] for p in parts], 2),
    }
    assert given["raw face"].shape == (1, 2, 512)
    assert given["levels"].shape == (1, 5, 2 * TOKENS, HIDDEN)
    adapter = jobs.adapter("v1.1")
    torch.testing.assert_close(one.tokens[:1], adapter.tokens(given))
    torch.testing.assert_close(one.tokens[1:], adapter.tokens({k: 0 * v for k, v in parts[0].items()}))
    average = jobs.prompt([ONE, TWO], "v1.1", face="leftmost", combine="average")
    mean = {name: (parts[0][name] + parts[1][name]) / 2 for name in parts[0]}
    torch.testing.assert_close(average.tokens[:1], adapter.tokens(mean))
    with pytest.raises(UnitError, match=r"images: got \[1\.0, 0\.5\], expected weights of 1, since the adapter"):
        jobs.prompt([ONE, {"image": TWO, "weight": 0.5}], "v1.1", face="leftmost")


def test_negative_faces_are_on_the_unconditional_side(jobs):
    one = jobs.prompt([TWO], face="leftmost", negative=[ONE])
    other = jobs.adapter().tokens(by_hand(jobs, ONE))
    torch.testing.assert_close(one.tokens[1:], other)


def test_what_is_refused(jobs):
    with pytest.raises(UnitError, match="noise"):
        jobs.prompt([ONE], noise=0.5)
    with pytest.raises(UnitError, match=r"zero_tokens: got 2\.5, expected a whole number"):
        jobs.prompt([ONE], zero_tokens=2.5)
    for field, value in (("pulid", "strong"), ("pulid_mode", "v2"), ("zero_tokens", 81), ("zero_tokens", -2)):
        with pytest.raises(UnitError, match=f"{field}: got"):
            jobs.prompt([ONE], **{field: value})
    with pytest.raises(Exception, match="no face was found"):
        jobs.prompt([NONE])
    resolved = jobs.resolved([ONE])
    jobs.faces.parser.find().unlink()
    with pytest.raises(FaceModelMissing, match=r"parsing_bisenet\.pth"):
        jobs.pipeline().check([resolved], jobs.adapter().spec)


@pytest.mark.parametrize("version", ["v1", "v1.1"])
def test_embeds(jobs, version, tmp_path):
    adapter = jobs.adapter(version)
    saved = jobs.pipeline().embeds("person", jobs.resolved([TWO, ONE], face="leftmost"), adapter.spec)
    folder = embeds.EmbedsFolder(tmp_path / "embeds")
    folder.save(saved)
    assert [need["of"] for need in folder.load("person").report()["features"]] == ["face", "bare face", "bare face"]

    class Store(NoStore):
        def embeds(self, name):
            return folder.load(name)

    unit = Unit.parse({"model": "m", "images": [{"embeds": "person"}]})
    without = Pipeline(jobs.eva, Caches(), FaceAnalyser(FacePacks(list)))
    named = without.prompt(resolve(unit, Store(), jobs.pictures), adapter)
    assert torch.equal(named.tokens, jobs.prompt([TWO, ONE], version, face="leftmost").tokens)
    other = Adapter.load(write_adapter(tmp_path / "o.safetensors", pulid_tensors(version, hidden=64)))
    with pytest.raises(FileError, match="levels features of an encoder that is not known, 96 wide, of a face without"):
        without.prompt(resolve(unit, Store(), jobs.pictures), other)


def test_what_the_panel_shows(jobs):
    def described(version="v1"):
        return description_of(jobs.adapter(version).spec, "eva", EncoderSource([jobs.folder]), jobs.faces)

    found = described()
    assert found["title"] == "PuLID"
    assert found["fields"] == ["face", "pulid", "pulid_mode", "zero_tokens"]
    assert "face models antelopev2: found" in found["text"]
    assert "face parsing: found" in found["text"]
    assert not found["encoder_found"]
    assert '<span class="ipadapter-chip found">face parsing found</span>' in html.file_info(found)
    jobs.faces.parser.find().unlink()
    found = described("v1.1")
    assert "face parsing: missing" in found["text"]
    shown = html.file_info(found)
    assert "face parsing missing \u2197</a>" in shown
    assert '<span class="ipadapter-chip found">face models antelopev2 found</span>' in shown
    assert "parsing_bisenet.pth was not found" in shown
