"""Faces: detection, alignment, recognition, packs and the choice of a face."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from lib_ipadapter.cli import main
from lib_ipadapter.errors import FaceMissing, FaceModelError, FaceModelMissing, FacesUnavailable, UnitError
from lib_ipadapter.faces import Detector, Face, FaceAnalyser, FacePacks, Recogniser, choose, packs, runtime
from lib_ipadapter.faces.align import TEMPLATE, aligned_crop, similarity, template
from lib_ipadapter.faces.detect import letterboxed, suppressed
from lib_ipadapter.faces.onnx_graph import read_graph
from lib_ipadapter.faces.packs import ModelFile, own_folder
from lib_ipadapter.training.faces import FaceEncoder
from lib_ipadapter.training.source import Item
from tests.core.test_library import denied
from tests.face_models import detector, picture, recogniser, write_pack

POINTS = np.array([[200.0, 220], [280, 215], [242, 270], [210, 320], [276, 318]])


def distance(one, other) -> float:
    return float(np.hypot(one[0] - other[0], one[1] - other[1]))


def analyser(folder) -> FaceAnalyser:
    return FaceAnalyser(FacePacks(lambda: [folder]))


# alignment


def test_similarity_recovers_a_known_transform():
    angle, scale, shift = 0.3, 1.7, np.array([5.0, -12])
    turn = scale * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    matrix = similarity(POINTS, POINTS @ turn.T + shift)
    np.testing.assert_allclose(matrix, np.hstack([turn, shift[:, None]]), atol=1e-9)


def test_similarity_never_mirrors():
    mirrored = POINTS * [-1, 1]
    assert np.linalg.det(similarity(POINTS, mirrored)[:, :2]) > 0


def test_points_that_coincide_have_no_similarity():
    with pytest.raises(ValueError, match="coincide"):
        similarity(np.ones((5, 2)), TEMPLATE)


@pytest.mark.parametrize(("size", "first"), [(112, (38.2946, 51.6963)), (224, (76.5892, 103.3926)),
                                             (256, (92.5892, 103.3926)), (896, (306.3568, 413.5704))])  # fmt: skip
def test_template_of_every_size(size, first):
    np.testing.assert_allclose(template(size)[0], first, atol=1e-4)


@pytest.mark.parametrize("size", [0, -112, 100, 512 + 1])
def test_other_sizes_are_refused(size):
    with pytest.raises(ValueError, match="multiple of 112"):
        template(size)


def test_crop_puts_the_points_on_the_template():
    canvas = np.zeros((400, 400, 3), np.uint8)
    for x, y in POINTS:
        canvas[int(y) - 3 : int(y) + 4, int(x) - 3 : int(x) + 4] = 255
    crop = aligned_crop(canvas, POINTS, 224)
    assert crop.shape == (224, 224, 3)
    where = template(224).round().astype(int)
    assert all(crop[y - 4 : y + 5, x - 4 : x + 5].max() > 200 for x, y in where)


# detection


def test_letterbox_goes_to_the_top_left():
    square, scale = letterboxed(np.full((300, 600, 3), 9, np.uint8), 640)
    assert square.shape == (640, 640, 3)
    assert (square[:320] == 9).all()
    assert not square[320:].any()
    assert scale == pytest.approx(320 / 300)


def test_faces_lie_where_the_picture_is_red():
    found = Detector(detector(), "det").faces(np.asarray(picture((112, 112), (500, 300))))
    squares = [(112, 112), (500, 300)]
    nearest = [min(squares, key=lambda at, f=face: distance(at, f.centre)) for face in found]
    assert set(nearest) == set(squares)
    assert all(distance(at, one.centre) <= 64 for at, one in zip(nearest, found, strict=True))
    assert all(face.score >= 0.5 and len(face.points) == 5 for face in found)


def test_boxes_are_in_the_pictures_own_pixels():
    wide = Image.new("RGB", (1280, 640), (0, 0, 120))
    wide.paste(picture((320, 320), radius=90), (640, 0))
    found = Detector(detector(), "det").faces(np.asarray(wide))
    assert found
    assert all(distance((960, 320), one.centre) <= 100 for one in found)
    assert found[0].box[2] - found[0].box[0] == pytest.approx(2 * 32 * 2)  # twice a stride, at half the size


def test_suppression_keeps_the_best_of_boxes_that_overlap():
    boxes = np.array([[0, 0, 99, 99], [10, 10, 109, 109], [200, 0, 299, 99], [0, 0, 99, 140]], np.float32)
    assert suppressed(boxes) == [0, 2]
    assert suppressed(boxes[:0]) == []


def test_a_detector_without_points_is_refused():
    with pytest.raises(FaceModelError, match="1 outputs, expected 9"):
        Detector(recogniser(), "w600k_r50.onnx")


# recognition


def test_embedding_depends_on_the_face():
    model = Recogniser(recogniser(), "rec")
    image = np.asarray(picture((112, 112), (500, 300)))
    faces = Detector(detector(), "det").faces(image)
    one, other = (model.embedding(image, choose(faces, which, (640, 640))) for which in ("leftmost", "rightmost"))
    assert one.shape == (512,)
    assert not np.allclose(one, other)


def test_mean_and_std_come_from_the_graph():
    plain, own = Recogniser(recogniser(), "a"), Recogniser(recogniser(normalises=True), "b")
    assert (plain.mean, plain.std, own.mean, own.std) == (127.5, 127.5, 0.0, 1.0)
    crop = np.random.default_rng(0).integers(0, 256, (112, 112, 3), np.uint8)
    np.testing.assert_allclose(own.of_crop(crop) * 128, plain.of_crop(crop) * 127.5, rtol=1e-3, atol=1e-2)


def test_a_recogniser_of_another_width_is_refused():
    with pytest.raises(FaceModelError, match="expected 512"):
        Recogniser(recogniser(width=128), "small.onnx").of_crop(np.zeros((112, 112, 3), np.uint8))


# the graph without running it


def test_graph_of_both_models():
    assert read_graph(recogniser(), "x").inputs == ((0, 3, 112, 112),)
    found = read_graph(detector(), "x")
    assert (found.outputs, found.inputs, found.normalises) == (9, ((1, 3, 0, 0),), False)
    assert read_graph(recogniser(normalises=True), "x").normalises


@pytest.mark.parametrize("seed", range(40))
def test_broken_models_are_refused_with_a_sentence(seed):
    """Truncated, flipped and random bytes: an error of ours or a model that still loads, never a crash."""
    rng = np.random.default_rng(seed)
    content = bytearray(detector() if seed % 2 else recogniser())
    if seed % 4 < 2:
        content = content[: rng.integers(0, len(content))]
    for at in rng.integers(0, max(len(content), 1), 30):
        if content:
            content[at] = rng.integers(0, 256)
    for use in (lambda: read_graph(bytes(content), "x"), lambda: Detector(bytes(content), "x"),
                lambda: Recogniser(bytes(content), "x").of_crop(np.zeros((112, 112, 3), np.uint8))):  # fmt: skip
        with contextlib.suppress(FaceModelError):
            use()


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"\x80\x04.", b"<!doctype html>", bytes(100), b"\xff" * 64])
def test_other_files_are_no_models(content):
    with pytest.raises(FaceModelError, match=r"download it again|use det_10g"):
        Detector(content, "x.onnx")
    with pytest.raises(FaceModelError):
        read_graph(content, "x.onnx")


# packs


def test_packs_are_found_nested_and_in_archives(tmp_path):
    write_pack(tmp_path / "a" / "antelopev2", "antelopev2")  # PACK/PACK, as its archive unpacks
    home = write_pack(tmp_path / "outside")
    with zipfile.ZipFile(tmp_path / "buffalo_l.zip", "w") as archive:
        for path in home.iterdir():
            archive.write(path, f"buffalo_l/{path.name}")
    found = FacePacks(lambda: [tmp_path / "a", tmp_path / "missing", tmp_path])
    assert found.find("antelopev2").path.name == "glintr100.onnx"
    zipped = FacePacks(lambda: [tmp_path / "b", tmp_path]).find("buffalo_l")
    assert zipped.read() == recogniser(0)


def test_unknown_hashes_are_marked(tmp_path, monkeypatch):
    write_pack(tmp_path)
    assert not FacePacks(lambda: [tmp_path]).find("buffalo_l").exact
    digest = hashlib.sha256((tmp_path / "buffalo_l" / "w600k_r50.onnx").read_bytes()).hexdigest()
    monkeypatch.setitem(packs._KNOWN, digest, "buffalo_l")
    packs._identified_once.cache_clear()
    assert FacePacks(lambda: [tmp_path]).find("buffalo_l").exact


def test_a_known_hash_beats_the_name(tmp_path, monkeypatch):
    """w600k_r50 under antelopev2's name is still buffalo_l's recogniser: never a wrong person in silence."""
    content = recogniser(3)
    monkeypatch.setitem(packs._KNOWN, hashlib.sha256(content).hexdigest(), "buffalo_l")
    (tmp_path / "glintr100.onnx").write_bytes(content)
    packs._identified_once.cache_clear()
    found = FacePacks(lambda: [tmp_path])
    assert found.find("buffalo_l").exact
    with pytest.raises(FaceModelMissing, match="antelopev2"):
        found.find("antelopev2")


def test_a_name_alone_is_not_enough(tmp_path):
    (tmp_path / "w600k_r50.onnx").write_bytes(detector())
    (tmp_path / "renamed.onnx").write_bytes(recogniser())
    with pytest.raises(FaceModelMissing, match="Licence"):
        FacePacks(lambda: [tmp_path]).find("buffalo_l")


def test_hostile_files_in_the_folders_hurt_nobody(tmp_path):
    (tmp_path / "w600k_r50.onnx").write_bytes(b"")
    (tmp_path / "det_10g.onnx").symlink_to("/dev/zero")
    os.mkfifo(tmp_path / "glintr100.onnx")
    (tmp_path / "loop").symlink_to(tmp_path)
    (tmp_path / "buffalo_l.zip").write_bytes(b"PK\x03\x04 cut off")
    with pytest.raises(FaceModelMissing, match="face models there: none; ") as error:
        FacePacks(lambda: [tmp_path]).find("buffalo_l")
    assert "none; buffalo_l.zip, w600k_r50.onnx is there, but cut off, damaged or another file" in str(error.value)
    write_pack(tmp_path / "good")
    assert FacePacks(lambda: [tmp_path]).find("buffalo_l").path.parent.name == "buffalo_l"


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_an_archive_that_is_damaged_anywhere_is_left_out(tmp_path, method):
    """Each decompressor has errors of its own."""
    content, made, refused = recogniser()[:50_000], io.BytesIO(), 0
    with zipfile.ZipFile(made, "w", method) as archive:
        archive.writestr("w600k_r50.onnx", content)
    whole, path = made.getvalue(), tmp_path / "buffalo_l.zip"
    for i in range(30):
        # Behind the header of its only member, where the content begins, and further behind
        place = 30 + len("w600k_r50.onnx") + (i if i < 20 else i * len(whole) // 40)
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 0xFF]) * 4 + whole[place + 4 :])
        os.utime(path, ns=(i, i))
        assert list(FacePacks(lambda: [tmp_path]).files()) == []
        refused += 1
        with contextlib.suppress(FaceModelError):
            assert ModelFile(path, "buffalo_l", False, "w600k_r50.onnx").read() == content
            refused -= 1
    assert refused >= 20  # the rest hit bytes that do not count


def test_a_replaced_file_is_seen(tmp_path):
    home = write_pack(tmp_path)
    use, image = analyser(tmp_path), picture((320, 320), radius=80)
    face = use.faces(image)[0]
    before = use.embedding(image, face, "buffalo_l")
    (home / "w600k_r50.onnx").write_bytes(recogniser(7))
    os.utime(home / "w600k_r50.onnx", ns=(1, 1))
    assert not np.allclose(use.embedding(image, face, "buffalo_l"), before)


# analysis


def test_a_file_that_could_not_be_read_is_looked_at_again(tmp_path, monkeypatch):
    write_pack(tmp_path)
    found = FacePacks(lambda: [tmp_path])
    with monkeypatch.context() as patch:
        patch.setattr(Path, "read_bytes", denied)
        with pytest.raises(FaceModelMissing):
            found.find(packs.DETECTOR)
    assert found.find(packs.DETECTOR).read()


def test_a_picture_is_analysed_once(tmp_path):
    write_pack(tmp_path)
    use = analyser(tmp_path)
    assert use.faces(picture((320, 320), radius=80)) == use.faces(picture((320, 320), radius=80))
    assert use.runs == 1
    use.faces(picture((200, 320), radius=80))
    assert use.runs == 2


def test_no_face_is_an_error_that_names_the_picture(tmp_path):
    write_pack(tmp_path)
    with pytest.raises(FaceMissing, match=r"cat\.png.*640 x 640.*white margin"):
        analyser(tmp_path).faces(picture(), "cat.png")


def test_a_face_found_with_a_margin_lies_in_the_picture(tmp_path):
    write_pack(tmp_path)
    use = analyser(tmp_path)
    face = Face((10.0, 20, 30, 40), ((1.0, 2.0),) * 5, 0.9)
    assert face.moved(-5, -7) == Face((5.0, 13, 25, 33), ((-4.0, -5.0),) * 5, 0.9)
    calls = []

    class Stub:
        def faces(self, image, sizes):
            calls.append((image.shape, tuple(sizes)))
            return [Face((700.0, 700, 760, 760), ((710.0, 710.0),) * 5, 0.9)] if len(calls) == 3 else []

    assert use._look(Stub(), Image.new("RGB", (640, 480)))[0].box == (380.0, 460.0, 440.0, 520.0)
    assert calls == [((480, 640, 3), (640,)), ((480, 640, 3), (128, 640)), ((960, 1280, 3), (128, 640))]
    # A margin around 100 megapixels would take gigabytes: a large picture is made smaller first.
    calls.clear()
    Stub.faces = lambda self, image, sizes: (
        calls.append(image.shape)
        or ([Face((1224.0, 712, 1324, 812), ((1274.0, 762.0),) * 5, 0.9)] if len(calls) == 3 else [])
    )
    (found,) = use._look(Stub(), Image.new("RGB", (8192, 4096)))
    assert found.box == (800.0, 800.0, 1200.0, 1200.0)
    assert found.points[0] == (1000.0, 1000.0)
    assert calls[2] == (2048, 4096, 3)


def face(x: float, y: float, side: float) -> Face:
    return Face((x - side, y - side, x + side, y + side), ((x, y),) * 5, 0.9)


@pytest.mark.parametrize(("choice", "index"), [("largest", 1), ("leftmost", 0), ("rightmost", 2), ("topmost", 2),
                                               ("centre", 1), (0, 0), (2, 2), ("1", 1)])  # fmt: skip
def test_which_face(choice, index):
    faces = [face(50, 90, 20), face(210, 190, 40), face(350, 60, 30)]
    assert choose(faces, choice, (400, 400)) is faces[index]
    assert choose(faces[::-1], choice, (400, 400)) is faces[index]


@pytest.mark.parametrize("choice", [3, "3", -1, "biggest", True, None, 1.5])
def test_other_choices_are_refused(choice):
    with pytest.raises(UnitError, match="face"):
        choose([face(1, 1, 1), face(2, 2, 1), face(3, 3, 1)], choice, (9, 9))


def test_missing_onnxruntime_names_the_remedy(monkeypatch):
    monkeypatch.setattr(runtime.importlib, "import_module", lambda name: (_ for _ in ()).throw(ImportError("no")))
    with pytest.raises(FacesUnavailable, match=r"pip install .onnxruntime>=1\.15,<1\.27"):
        Detector(detector(), "det")


def test_the_command_lists_the_faces_of_pictures(tmp_path, capsys):
    write_pack(tmp_path / "models")
    picture((112, 112), (500, 300)).save(tmp_path / "two.png")
    picture().save(tmp_path / "none.png")
    command = [
        "faces",
        str(tmp_path / "two.png"),
        str(tmp_path / "none.png"),
        "--models",
        str(tmp_path / "models"),
    ]
    assert main([*command, "--json", "--recogniser", "buffalo_l"]) == 1
    two, none = json.loads(capsys.readouterr().out)
    assert len(two["faces"]) >= 2
    assert two["faces"][0]["box"][0] < two["faces"][-1]["box"][0]
    assert sum(value**2 for value in two["faces"][0]["embedding"]) == pytest.approx(1, abs=1e-3)
    assert "no face was found in none.png" in none["error"]
    assert main(command[:2] + command[3:]) == 0
    assert "two.png: " in capsys.readouterr().out
    assert main(["faces", str(tmp_path / "two.png"), "--models", str(tmp_path / "nowhere")]) == 2
    assert "was not found" in capsys.readouterr().err


def test_a_user_without_a_home_has_no_folder_of_insightfaces(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a container that runs under any user id: Path.home raises there."""

    def none(name: str) -> None:
        raise KeyError(name)

    pwd = pytest.importorskip("pwd", reason="users have names in the system's list only on Unix")
    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.setattr(pwd, "getpwuid", none)
    with pytest.raises(RuntimeError):
        Path.home()
    assert own_folder().name == ".insightface"
    assert not own_folder().exists()


def test_a_trainings_encoder_travels_to_workers(tmp_path):
    """On Windows and macOS a worker is a process of its own, to which it is pickled."""
    write_pack(tmp_path)
    encoder, image = FaceEncoder([tmp_path]), picture((336, 336), radius=15)
    sent = pickle.loads(pickle.dumps(encoder))
    item = Item("0.png", image, image, "")
    assert torch.equal(sent.reference(item), encoder.reference(item))
    assert torch.equal(
        sent.encode_pixels(sent.reference(item)[None], "face").norm(dim=-1).round(decimals=4), torch.ones(1)
    )


@pytest.mark.parametrize(("said", "wanted"), [("", 4), ("1", 1), ("64", 4), ("0", 1), ("many", 4)])
def test_no_more_threads_than_the_environment_says(monkeypatch, said, wanted):
    monkeypatch.setenv("OMP_NUM_THREADS", said)
    assert runtime.threads() == wanted
