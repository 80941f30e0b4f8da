"""Faces as references: which face of which part of a picture, its features, its tokens, and what is refused."""

from __future__ import annotations

import os

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from lib_ipadapter.adapters.adapter import Adapter
from lib_ipadapter.encoders.spec import Need
from lib_ipadapter.errors import FaceError, FaceMissing, FaceModelMissing, FacesUnavailable, FileError, UnitError
from lib_ipadapter.faces import FaceAnalyser, FacePacks, Recogniser, runtime
from lib_ipadapter.faces.align import aligned_crop
from lib_ipadapter.pictures.picture import Pictures
from lib_ipadapter.prompts import embeds
from lib_ipadapter.prompts.pipeline import Caches, Pipeline
from lib_ipadapter.prompts.references import NoStore
from lib_ipadapter.prompts.resolve import resolve
from lib_ipadapter.unit import Unit
from tests.face_models import picture, recogniser, write_pack
from tests.synthetic import adapter_tensors, write_adapter

CLIP_WIDTH, GRID = 48, 4
TWO = picture((176, 208), (496, 432), radius=15)  # each covers one cell of the detector: one face
ONE = picture((336, 336), radius=15)
NONE = Image.new("RGB", (300, 200), (0, 0, 120))


class Clip:
    """Penultimate features that are linear in the square's pixels; keeps the squares."""

    def __init__(self, side: int = 32) -> None:
        self.squares: list[Image.Image] = []
        self._side = side
        self._matrix = torch.randn(3 * 16, CLIP_WIDTH, generator=torch.Generator().manual_seed(0))

    def encode(self, square: Image.Image, need: Need) -> torch.Tensor:
        self.squares.append(square)
        return self._of(torch.from_numpy(np.array(square.resize((16, 16)), np.float32) / 255 - 0.4))

    def _of(self, pixels: torch.Tensor) -> torch.Tensor:
        patches = pixels.unflatten(0, (4, 4)).unflatten(2, (4, 4)).permute(0, 2, 1, 3, 4).reshape(16, 48)
        return torch.cat([patches.mean(0, keepdim=True), patches])[None] @ self._matrix

    def unconditional(self, need: Need) -> torch.Tensor:
        return self._of(torch.zeros(16, 16, 3))

    def side(self, need: Need) -> int:
        return self._side

    def check(self, need: Need) -> None:
        assert not need.is_face

    def identity(self, need: Need) -> str:
        return "clip"

    def named(self, need: Need) -> Need:
        return need


class Jobs:
    """Jobs of one process."""

    def __init__(self, folder, side: int = 32) -> None:
        self.folder = folder
        write_pack(folder / "packs", "buffalo_l", seed=1)
        self.faces = FaceAnalyser(FacePacks(lambda: [folder / "packs"]))
        self.clip, self.caches, self.pictures = Clip(side), Caches(), Pictures()
        self.pipeline = Pipeline(self.clip, self.caches, self.faces)

    def adapter(self, variant: str = "faceid", **more) -> Adapter:
        sizes = {"context": 64, "widths": (32, 64), "feature_width": CLIP_WIDTH} | more
        flat = adapter_tensors(variant, **sizes)
        return Adapter.load(write_adapter(self.folder / f"{variant}v2.safetensors", flat))

    def resolved(self, images, **fields):
        unit = Unit.parse({"model": "m", "images": images, **fields})
        return resolve(unit, NoStore(), self.pictures)

    def features(self, images, adapter=None, **fields):
        """(of each reference, unconditional)"""
        found = self.pipeline.features(self.resolved(images, **fields), (adapter or self.adapter()).spec.needs)
        return [reference() for reference in found.references], found.unconditional()

    def tokens(self, images, adapter=None, **fields):
        return self.pipeline.tokens(self.resolved(images, **fields), adapter or self.adapter())


@pytest.fixture
def jobs(tmp_path) -> Jobs:
    return Jobs(tmp_path)


def embedding_of(jobs: Jobs, image: Image.Image, index: int) -> torch.Tensor:
    """By the models alone: the face of this index from the left."""
    face = sorted(jobs.faces.faces(image), key=lambda face: face.centre[0])[index]
    raw = torch.from_numpy(Recogniser(recogniser(1), "r").embedding(np.asarray(image), face))
    return F.normalize(raw, dim=0)


def test_the_reference_is_the_faces_embedding_of_length_1(jobs):
    (features,), uncond = jobs.features([ONE])
    assert features["face"].shape == (1, 512)
    torch.testing.assert_close(features["face"][0], embedding_of(jobs, ONE, 0))
    assert torch.equal(uncond["face"], torch.zeros(1, 512))


@pytest.mark.parametrize(
    ("choice", "index"), [("leftmost", 0), ("rightmost", 1), ("topmost", 0), (0, 0), ("1", 1), (1, 1)]
)
def test_the_face_that_is_chosen(jobs, choice, index):
    (features,), _ = jobs.features([TWO], face=choice)
    torch.testing.assert_close(features["face"][0], embedding_of(jobs, TWO, index))
    assert not torch.allclose(features["face"][0], embedding_of(jobs, TWO, 1 - index), atol=1e-3)


@pytest.mark.parametrize("face", ["", "LARGEST", " largest "])
def test_the_largest_is_the_default(face):
    assert Unit.parse({"enabled": False, "face": face}).face == "largest"


@pytest.mark.parametrize(
    "face", ["largest face", "-1", "1.5", 1.5, True, None, "1000", [], "99999999999999999999", "³"]
)
def test_other_choices_are_refused(face):
    with pytest.raises(UnitError, match=r"face: got .* expected one of largest, .*or a number from 0 to 999"):
        Unit.parse({"enabled": False, "face": face})


def test_a_face_that_is_not_there_is_refused(jobs):
    with pytest.raises(UnitError, match="face: got 2, expected a number below 2, the faces in the picture"):
        jobs.tokens([TWO], face=2)


def test_the_crop_box_says_where_a_face_is_looked_for(jobs):
    (features,), _ = jobs.features([TWO], box="0.5, 0.4, 1, 1", face="leftmost")
    left, top = 320, 256
    part = TWO.crop((left, top, 640, 640))
    torch.testing.assert_close(features["face"][0], embedding_of(jobs, part, 0))
    with pytest.raises(FaceMissing, match=r"no face was found in images\[0\] .*tried"):
        jobs.tokens([TWO], box="0, 0.8, 0.3, 1")


def test_so_does_the_reference_mask(jobs):
    mask = Image.new("L", TWO.size, 0)
    mask.paste(255, (320, 0, 640, 640))
    (features,), _ = jobs.features([TWO], focus=mask, face="leftmost")
    torch.testing.assert_close(features["face"][0], embedding_of(jobs, TWO, 1))


def test_no_face_is_an_error_that_names_the_picture(jobs, tmp_path):
    NONE.save(tmp_path / "wall.png")
    with pytest.raises(FaceMissing, match=r"no face was found in wall\.png \(300 x 200 pixels; tried") as caught:
        jobs.tokens([ONE, tmp_path / "wall.png"])
    assert caught.value.status_code == 422
    with pytest.raises(FaceMissing, match=r"no face was found in negative\[0\]"):
        jobs.tokens([ONE], negative=[NONE])


def test_a_missing_pack_is_an_error_before_anything_is_decoded(jobs):
    for path in (jobs.folder / "packs" / "buffalo_l").iterdir():
        path.unlink()
    resolved = jobs.resolved(["not a picture"])
    with pytest.raises(FaceModelMissing, match=r"w600k_r50\.onnx \(of the pack buffalo_l\).*non-commercial"):
        jobs.pipeline.check([resolved], jobs.adapter().spec)
    write_pack(jobs.folder / "packs")
    (jobs.folder / "packs" / "buffalo_l" / "det_10g.onnx").unlink()
    with pytest.raises(FaceModelMissing, match=r"det_10g\.onnx"):
        jobs.pipeline.check([resolved], jobs.adapter().spec)


def test_a_missing_pack_is_the_one_that_the_adapter_takes(tmp_path):
    """Both packs have a detector, but only one the recogniser."""
    faces = FaceAnalyser(FacePacks(lambda: [tmp_path]))
    for pack in ("buffalo_l", "antelopev2"):
        with pytest.raises(FaceModelMissing, match=rf"of the pack {pack}\) was not found\. Put {pack}\.zip"):
            faces.check(pack)


def test_another_recogniser_is_not_taken(jobs):
    """It would give another person without any error."""
    (jobs.folder / "packs" / "buffalo_l" / "w600k_r50.onnx").unlink()
    write_pack(jobs.folder / "packs", "antelopev2")
    with pytest.raises(FaceModelMissing, match=r"w600k_r50\.onnx"):
        jobs.pipeline.check([jobs.resolved([ONE])], jobs.adapter().spec)
    unnorm = jobs.adapter("unnorm", context=2048, widths=(32,), tokens=16)
    assert unnorm.spec.variant == "unnorm"
    unnorm = unnorm.as_kind("instantid")
    jobs.pipeline.check([jobs.resolved([ONE])], unnorm.spec)
    assert jobs.tokens([ONE], unnorm).cond.shape == (1, 16, 2048)


@pytest.mark.parametrize("package", ["onnxruntime", "cv2"])
def test_a_missing_package_is_an_error_with_the_remedy(jobs, monkeypatch, package):
    original = runtime.importlib.import_module

    def absent(name, *rest):
        if name == package:
            raise ImportError(f"No module named {name!r}")
        return original(name, *rest)

    monkeypatch.setattr(runtime.importlib, "import_module", absent)
    with pytest.raises(FacesUnavailable, match=rf"package {package}, .*pip install"):
        jobs.pipeline.check([jobs.resolved([ONE])], jobs.adapter().spec)


def test_where_faces_cannot_be_looked_for_the_adapter_is_refused(jobs):
    pipeline = Pipeline(jobs.clip)
    adapter = jobs.adapter()
    with pytest.raises(FaceError, match="faces cannot be looked for here"):
        pipeline.check([jobs.resolved([ONE])], adapter.spec)
    with pytest.raises(FaceError, match="faces cannot be looked for here"):
        pipeline.tokens(jobs.resolved([ONE]), adapter)


def test_noise_is_refused(jobs):
    resolved = jobs.resolved([ONE], noise=0.3)
    with pytest.raises(UnitError, match=r"noise: got 0\.3, expected 0: the unconditional side of a face is no face"):
        jobs.pipeline.check([resolved], jobs.adapter().spec)
    with pytest.raises(UnitError, match="noise"):
        jobs.pipeline.tokens(resolved, jobs.adapter())


def test_negative_references_are_faces_to_stay_away_from(jobs):
    other = picture((336, 208), (112, 112), radius=15)
    _, uncond = jobs.features([ONE], negative=[TWO, other])
    faces = [jobs.features([image])[0][0]["face"] for image in (TWO, other)]
    torch.testing.assert_close(uncond["face"], F.normalize((faces[0] + faces[1]) / 2, dim=-1))
    assert not torch.equal(jobs.tokens([ONE], negative=[TWO]).uncond, jobs.tokens([ONE]).uncond)


# several references of one person


def test_portrait_takes_them_side_by_side(jobs):
    adapter = jobs.adapter(tokens=16)
    assert adapter.spec.variant == "portrait"
    tokens = jobs.tokens([ONE, TWO], adapter)
    assert tokens.cond.shape == tokens.uncond.shape == (1, 32, 64)
    torch.testing.assert_close(tokens.cond[:, :16], jobs.tokens([ONE], adapter).cond)
    torch.testing.assert_close(tokens.uncond[:, 16:], adapter.tokens(torch.zeros(1, 512)))


@pytest.mark.parametrize("how", ["average", "norm average", "add", "subtract"])
def test_a_mix_of_embeddings_has_length_1_again(jobs, how):
    adapter = jobs.adapter()
    parts = [features["face"] for features in jobs.features([ONE, TWO])[0]]
    mixed = parts[0] - parts[1] if how == "subtract" else parts[0] + parts[1]
    wanted = adapter.tokens(F.normalize(mixed, dim=-1))
    torch.testing.assert_close(jobs.tokens([ONE, TWO], adapter, combine=how).cond, wanted)


# FaceID-Plus: also the CLIP features of the aligned crop


@pytest.mark.parametrize("side", [32, 224, 336])
def test_plus_encodes_the_aligned_crop_in_rgb(tmp_path, side):
    jobs = Jobs(tmp_path, side)
    adapter = jobs.adapter("faceid-plus")
    (features,), uncond = jobs.features([TWO], adapter, face="rightmost")
    (square,) = jobs.clip.squares
    face = max(jobs.faces.faces(TWO), key=lambda face: face.centre[0])
    wanted = aligned_crop(np.asarray(TWO), np.asarray(face.points), side if side % 112 == 0 else 224)
    if side % 112 == 0:
        assert np.array_equal(np.asarray(square), wanted)
    assert square.size == (side, side)
    red, _, blue = np.asarray(square).reshape(-1, 3).mean(0)  # a blue picture with a red square
    assert red < blue
    assert features.keys() == {"face", "penultimate"}
    torch.testing.assert_close(features["penultimate"], Clip().encode(square, None))
    assert torch.equal(uncond["penultimate"], jobs.clip.unconditional(None))
    tokens = adapter.tokens({"face": torch.zeros(1, 512), "penultimate": jobs.clip.unconditional(None)})
    torch.testing.assert_close(jobs.tokens([TWO], adapter).uncond, tokens)


def test_the_shortcut_is_the_units_and_only_version_2_has_one(jobs):
    adapter = jobs.adapter("faceid-plus")
    (features,), _ = jobs.features([ONE], adapter)
    for value in (0.0, 0.5, 2.0):
        torch.testing.assert_close(jobs.tokens([ONE], adapter, shortcut=value).cond, adapter.tokens(features, value))
    first = adapter.as_kind("faceid-plus")
    assert torch.equal(jobs.tokens([ONE], first, shortcut=0.5).cond, jobs.tokens([ONE], first).cond)


def test_the_prompt_carries_the_loras_strength(jobs):
    adapter = jobs.adapter(lora=4)
    prompt = jobs.pipeline.prompt(jobs.resolved([ONE], lora=0.6), adapter)
    assert prompt.lora == 0.6
    assert prompt.tokens.shape == (2, 4, 64)


def test_fit_and_position_do_not_matter_but_sharpening_does(jobs):
    adapter = jobs.adapter("faceid-plus")
    first = jobs.tokens([TWO], adapter)
    for fit in ("pad", "stretch", "tiles"):
        assert torch.equal(jobs.tokens([TWO], adapter, fit=fit).cond, first.cond)
    assert torch.equal(jobs.tokens([TWO], adapter, position="top").cond, first.cond)
    assert not torch.equal(jobs.tokens([TWO], adapter, sharpen=1.0).cond, first.cond)


# what a known reference costs


def test_a_known_face_is_neither_decoded_nor_found_nor_encoded_again(jobs, tmp_path):
    TWO.save(tmp_path / "two.png")
    adapter = jobs.adapter("faceid-plus")
    first = jobs.tokens([tmp_path / "two.png"], adapter)
    assert (jobs.pictures.decoded, jobs.faces.runs, len(jobs.clip.squares)) == (1, 1, 1)
    again = jobs.tokens([tmp_path / "two.png"], adapter)
    assert (jobs.pictures.decoded, jobs.faces.runs, len(jobs.clip.squares)) == (1, 1, 1)
    assert torch.equal(first.cond, again.cond)
    jobs.tokens([tmp_path / "two.png"], adapter, face="rightmost")
    assert jobs.faces.runs == 1  # the same picture, another face
    assert len(jobs.clip.squares) == 2


def test_another_recogniser_file_is_another_embedding(jobs):
    first = jobs.tokens([ONE])
    path = jobs.folder / "packs" / "buffalo_l" / "w600k_r50.onnx"
    path.write_bytes(recogniser(7))
    os.utime(path, ns=(1, 1))
    assert not torch.allclose(jobs.tokens([ONE]).cond, first.cond, atol=1e-3)


# embeds


def test_embeds_of_a_face_need_no_picture_and_no_models(jobs, tmp_path):
    adapter = jobs.adapter("faceid-plus")
    resolved = jobs.resolved([ONE, {"image": TWO, "weight": 0.5}])
    jobs.pipeline.embeds("person", resolved, adapter.spec).save(tmp_path / "person.safetensors")
    saved = embeds.read(tmp_path / "person.safetensors")
    assert [need.of for need in saved.needs] == ["face", "face"]
    assert saved.report()["features"][1] == {"feature": "penultimate", "width": 48, "encoder": "", "of": "face"}

    class Store(NoStore):
        def embeds(self, name):
            return saved

    unit = Unit.parse({"model": "m", "images": [{"embeds": "person"}], "combine": "average"})
    without = Pipeline(jobs.clip, faces=FaceAnalyser(FacePacks(list)))
    found = without.tokens(resolve(unit, Store(), Pictures()), adapter)
    wanted = jobs.tokens([ONE, {"image": TWO, "weight": 0.5}], adapter, combine="average")
    torch.testing.assert_close(found.cond, wanted.cond)
    torch.testing.assert_close(found.uncond, wanted.uncond)
    with pytest.raises(FileError, match=r"the adapter takes face features of buffalo_l, 512 wide\. Choose"):
        without.tokens(resolve(unit, Store(), Pictures()), jobs.adapter())


def test_embeds_of_pictures_are_no_faces(jobs, tmp_path):
    """A plus adapter's penultimate features are of the whole picture."""
    plus = jobs.adapter("plus")
    jobs.pipeline.embeds("place", jobs.resolved([ONE]), plus.spec).save(tmp_path / "place.safetensors")
    saved = embeds.read(tmp_path / "place.safetensors")
    (reference, _), *_ = saved.references()
    with pytest.raises(FileError, match="of an aligned face"):
        reference.for_needs((Need("penultimate", CLIP_WIDTH, "", "face"),))
