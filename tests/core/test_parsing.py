"""Faces without background: the crop, the parts that stay, where the weights are found, and what is said if not."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from lib_ipadapter.errors import FaceModelError, FaceModelMissing, FacesUnavailable
from lib_ipadapter.faces import FaceAnalyser, FacePacks, FaceParser, parsing
from lib_ipadapter.files import disk
from tests.core.test_library import denied
from tests.face_models import picture
from tests.facexlib_code import SmallBiSeNet, real, small, write_parser

POINTS = np.array([[190.0, 200.0], [250.0, 205.0], [220.0, 240.0], [195.0, 270.0], [245.0, 272.0]])


@pytest.fixture
def network(monkeypatch) -> SmallBiSeNet:
    torch.manual_seed(0)
    made = small(monkeypatch)(num_class=19)
    return made.eval()


def crop(seed: int = 0, side: int = 64) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8)


def test_the_crop_is_ffhqs():
    cv2 = pytest.importorskip("cv2")
    image = np.asarray(picture((220, 235), size=(480, 400), radius=60))
    made = parsing.ffhq_crop(image, POINTS)
    assert made.shape == (512, 512, 3)
    # as facexlib has it, in BGR
    matrix = cv2.estimateAffinePartial2D(POINTS, parsing.POINTS, method=cv2.LMEDS)[0]
    theirs = cv2.warpAffine(image[..., ::-1], matrix, (512, 512), borderMode=0, borderValue=(135, 133, 132))
    assert np.array_equal(made, theirs[..., ::-1])
    placed = POINTS @ matrix[:, :2].T + matrix[:, 2]
    assert np.abs(placed - parsing.POINTS).max() < 25


def test_a_large_picture_is_made_smaller_first():
    image = np.asarray(picture((880, 940), size=(1920, 1600), radius=240))
    whole = parsing.ffhq_crop(image, 4 * POINTS)
    small_ = parsing.ffhq_crop(np.asarray(Image.fromarray(image).resize((1024, 853), Image.Resampling.LANCZOS)),
                               4 * POINTS * [1024 / 1920, 853 / 1600])  # fmt: skip
    assert np.abs(whole.astype(int) - small_).mean() < 2
    assert parsing.ffhq_crop(image[:1].repeat(4, 1), 4 * POINTS).shape == (512, 512, 3)
    assert parsing.ffhq_crop(image, 4 * POINTS + [900, 0])[-1, -1].tolist() == [132, 133, 135]


def test_only_the_face_stays(network):
    pixels = crop()
    found = parsing.bare(pixels, network)
    assert found.shape == (1, 3, 64, 64)
    # stated anew, with torchvision's functions, after pipeline.py
    from torchvision.transforms.functional import normalize

    given = torch.from_numpy(pixels.transpose(2, 0, 1).copy()).unsqueeze(0) / 255.0
    with torch.no_grad():
        parts = network(normalize(given, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]))[0].argmax(dim=1, keepdim=True)
    background = sum(parts == i for i in [0, 16, 18, 7, 8, 9, 14, 15]).bool()
    grey = (0.299 * given[:, 0:1] + 0.587 * given[:, 1:2] + 0.114 * given[:, 2:3]).repeat(1, 3, 1, 1)
    torch.testing.assert_close(found, torch.where(background, torch.ones_like(given), grey))
    assert 0.02 < background.float().mean() < 0.98


def test_facexlibs_own_network(tmp_path, monkeypatch):
    torch.manual_seed(0)
    made = real(monkeypatch)(num_class=19).eval()
    write_parser(tmp_path, made)
    pixels = crop(side=128)
    found = FaceParser(lambda: [tmp_path]).bare(pixels)
    torch.testing.assert_close(found, parsing.bare(pixels, made))


def test_weights_are_found_by_their_keys(tmp_path, network):
    first, second = tmp_path / "first", tmp_path / "second"
    write_parser(second, network, "79999_iter.pth")
    write_parser(first, torch.nn.Linear(2, 2), "parsing_parsenet.pth")
    (first / "bisenet.pth").write_bytes(b"no tensors")
    write_parser(first, network, "other.pth")  # whose name says nothing: not opened
    parser = FaceParser(lambda: [tmp_path / "absent", first, second])
    assert parser.find() == second / "79999_iter.pth"
    torch.testing.assert_close(parser.bare(crop()), parsing.bare(crop(), network))
    write_parser(first, network, "my-bisenet.pth")
    assert parser.find() == first / "my-bisenet.pth"


def test_weights_that_could_not_be_opened_are_looked_at_again(tmp_path, network, monkeypatch):
    write_parser(tmp_path, network)
    parser = FaceParser(lambda: [tmp_path])
    with monkeypatch.context() as patch:
        patch.setattr(disk.os, "open", denied)
        with pytest.raises(FaceModelMissing):
            parser.find()
    assert parser.find().is_file()


def test_another_file_in_its_place(tmp_path, network):
    path = write_parser(tmp_path, network)
    parser = FaceParser(lambda: [tmp_path])
    before, identity = parser.bare(crop()), parser.identity()
    torch.manual_seed(9)
    other = SmallBiSeNet(19).eval()
    path.unlink()
    torch.save({**other.state_dict()}, tmp_path / "parsing_bisenet.bin")
    assert parser.identity() != identity
    torch.testing.assert_close(parser.bare(crop()), parsing.bare(crop(), other))
    assert not torch.equal(before, parser.bare(crop()))


def test_what_is_missing_is_said(tmp_path, network, monkeypatch):
    parser = FaceParser(lambda: [tmp_path / "models" / "insightface"])
    with pytest.raises(
        FaceModelMissing, match=r"parsing_bisenet\.pth was not found\. Download it from https://.*insightface"
    ):
        parser.check()
    write_parser(tmp_path / "models" / "insightface", network)
    parser.check()
    monkeypatch.setitem(__import__("sys").modules, "facexlib.parsing.bisenet", None)
    with pytest.raises(FacesUnavailable, match="the Python package facexlib"):
        parser.check()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda state: state | {"more": torch.zeros(2)}, r"1 keys missing.*\(more\)"),
        (lambda state: {k: v[:2] if "ffm" in k else v for k, v in state.items()}, r"ffm\.convblk\.conv\.weight"),
        (lambda state: {k: v * float("nan") for k, v in state.items()}, "NaN or infinite weights"),
    ],
)
def test_a_broken_file_is_named(tmp_path, network, change, said):
    path = write_parser(tmp_path, network)
    torch.save(change(network.state_dict()), path)
    with pytest.raises(FaceModelError, match=rf"parsing_bisenet\.pth: .*{said}"):
        FaceParser(lambda: [tmp_path]).bare(crop())


def test_the_analyser_looks_into_the_folders_of_the_packs(tmp_path, network):
    write_parser(tmp_path, network)
    analyser = FaceAnalyser(FacePacks(lambda: [tmp_path]))
    assert analyser.parser.find() == tmp_path / "parsing_bisenet.pth"
    analyser.parser.bare(crop())
    analyser.release()
    assert analyser.parser._model is None


def test_a_broken_file_is_named_where_the_model_is_said_to_be_missing(tmp_path):
    (tmp_path / parsing.FILE).write_bytes(b"PK cut off")
    with pytest.raises(FaceModelMissing, match=r"was not found.*parsing_bisenet.pth is there, but cut off"):
        FaceParser(lambda: [tmp_path]).find()
