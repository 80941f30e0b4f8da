"""Hostile pictures and ONNX files: each gives faces or an error of ours, none crashes, none reads other files."""

from __future__ import annotations

import contextlib
import io
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from lib_ipadapter.errors import FaceModelError, FaceModelMissing, IPAdapterError
from lib_ipadapter.faces import FaceAnalyser, FacePacks, Recogniser, packs
from lib_ipadapter.faces.align import TEMPLATE, aligned_crop
from lib_ipadapter.faces.onnx_graph import refuse_hostile
from lib_ipadapter.pictures import images
from lib_ipadapter.prompts.faces import face_crop
from tests.face_models import detector, picture, recogniser, write_pack

ONE = picture((336, 336), radius=15)


def png(image: Image.Image, kind: str = "PNG", **more: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **more)
    return buffer.getvalue()


def many() -> Image.Image:
    """A red square on each of 400 cells: hundreds of faces."""
    return picture(*((16 + 32 * x, 16 + 32 * y) for x in range(20) for y in range(20)), radius=15)


NOISE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (640, 640, 3), np.uint8))
PICTURES: dict[str, bytes] = {
    "1 x 1": png(Image.new("RGB", (1, 1), "red")),
    "2 x 3": png(Image.new("RGB", (2, 3), "red")),
    "1 x 4000": png(Image.new("RGB", (1, 4000), "red")),
    "4000 x 1": png(Image.new("RGB", (4000, 1), "red")),
    "6000 x 6000": png(Image.new("RGB", (6000, 6000), (0, 0, 120))),
    "grey": png(ONE.convert("L")),
    "grey and alpha": png(ONE.convert("LA")),
    "16 bit": png(Image.fromarray(np.full((64, 64), 40000, np.uint16))),
    "alpha": png(ONE.convert("RGBA")),
    "palette": png(ONE.convert("P")),
    "bilevel": png(ONE.convert("1")),
    "CMYK": png(ONE.convert("CMYK"), "JPEG"),
    "all red": png(Image.new("RGB", (640, 640), "red")),
    "all white": png(Image.new("RGB", (640, 640), "white")),
    "noise": png(NOISE),
    "hundreds of faces": png(many()),
    "a face over the edge": png(picture((0, 0), radius=15)),
    "truncated": png(ONE)[:200],
    "half a JPEG": png(ONE, "JPEG")[: len(png(ONE, "JPEG")) // 2],
    "no picture": b"<html>not found</html>",
    "empty": b"",
    "a header alone": b"\x89PNG\r\n\x1a\n",
}


@pytest.fixture(scope="module")
def analyser(tmp_path_factory: pytest.TempPathFactory) -> FaceAnalyser:
    folder = tmp_path_factory.mktemp("packs")
    write_pack(folder)
    return FaceAnalyser(FacePacks(lambda: [folder]))


@pytest.mark.parametrize("name", PICTURES)
def test_pictures(analyser: FaceAnalyser, name: str) -> None:
    started = time.monotonic()
    with contextlib.suppress(IPAdapterError):
        loaded = images.load(PICTURES[name])
        for side in (112, 224):
            crop = face_crop(loaded, "largest", side, analyser, name)
            assert crop.size == (side, side)
            assert crop.mode == "RGB"
        assert len(analyser.of_crop(face_crop(loaded, "largest", 112, analyser, name), "buffalo_l")) == 512
    assert time.monotonic() - started < 20


def test_what_can_be_seen_is_seen(analyser: FaceAnalyser) -> None:
    """The control: of these the ones with faces give faces."""
    found = {}
    for name in PICTURES:
        with contextlib.suppress(IPAdapterError):
            found[name] = len(analyser.faces(images.load(PICTURES[name])))
    assert {"alpha", "CMYK", "palette", "all red", "hundreds of faces"} <= set(found)
    assert found["hundreds of faces"] >= 200
    assert not {"empty", "no picture", "all white", "grey", "6000 x 6000"} & set(found)


def model(nodes: list, outputs: list, weights: list = (), inputs: list | None = None, check: bool = True) -> bytes:
    given = inputs or [helper.make_tensor_value_info("input", TensorProto.FLOAT, [1, 3, None, None])]
    built = helper.make_model(
        helper.make_graph(nodes, "hostile", given, outputs, weights), opset_imports=[helper.make_opsetid("", 13)]
    )
    built.ir_version = 8
    if check:
        onnx.checker.check_model(built)
    return built.SerializeToString()


def constants(shapes: list[tuple[int, ...]], value: float = 0.0) -> bytes:
    """Outputs of these shapes, whatever the input."""
    weights = [numpy_helper.from_array(np.full(shape, value, np.float32), f"w{i}") for i, shape in enumerate(shapes)]
    nodes = [helper.make_node("Identity", [f"w{i}"], [f"o{i}"]) for i in range(len(shapes))]
    outputs = [helper.make_tensor_value_info(f"o{i}", TensorProto.FLOAT, list(s)) for i, s in enumerate(shapes)]
    return model(nodes, outputs, weights)


def external(folder: Path, absolute: bool = True, inside: str = "initializer") -> bytes:
    """Weights that lie in another file of the disk, or of the working folder. inside: where in the model."""
    secret = folder / "secret.bin"
    secret.write_bytes(np.arange(512, dtype=np.float32).tobytes())
    weight = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[1, 512], data_location=TensorProto.EXTERNAL)
    for key, value in (("location", str(secret) if absolute else secret.name), ("offset", "0"), ("length", "2048")):
        weight.external_data.add(key=key, value=value)
    out = helper.make_tensor_value_info("o", TensorProto.FLOAT, [1, 512])
    given = [helper.make_tensor_value_info("data", TensorProto.FLOAT, [None, 3, 112, 112])]
    node = helper.make_node("Identity", ["w"], ["o"])
    if inside == "initializer":
        return model([node], [out], [weight], given, check=False)
    constant = helper.make_node("Constant", [], ["w"], value=weight)
    if inside == "constant":
        return model([constant, node], [out], [], given, check=False)
    branch = helper.make_graph([constant, node], "branch", [], [out])
    yes = numpy_helper.from_array(np.array(True), "yes")
    either = helper.make_node("If", ["yes"], ["o"], then_branch=branch, else_branch=branch)
    return model([either], [out], [yes], given, check=False)


def endless(_: Path) -> bytes:
    """A loop that never ends, in front of a recogniser's output."""
    true = numpy_helper.from_array(np.array(True), "true")
    again = helper.make_node("Identity", ["going"], ["on"])
    body = helper.make_graph(
        [again], "body",
        [helper.make_tensor_value_info("i", TensorProto.INT64, []),
         helper.make_tensor_value_info("going", TensorProto.BOOL, [])],
        [helper.make_tensor_value_info("on", TensorProto.BOOL, [])],
    )  # fmt: skip
    zeros = numpy_helper.from_array(np.zeros((1, 512), np.float32), "w")
    nodes = [helper.make_node("Loop", ["", "true"], [], body=body), helper.make_node("Identity", ["w"], ["o"])]
    out = helper.make_tensor_value_info("o", TensorProto.FLOAT, [1, 512])
    given = [helper.make_tensor_value_info("data", TensorProto.FLOAT, [None, 3, 112, 112])]
    return model(nodes, [out], [true, zeros], given, check=False)


GOOD = [(12800, 1), (3200, 1), (800, 1), (12800, 4), (3200, 4), (800, 4), (12800, 10), (3200, 10), (800, 10)]
DETECTORS: dict[str, Callable[[Path], bytes]] = {
    "empty": lambda _: b"",
    "a web page": lambda _: b"<!DOCTYPE html>",
    "noise": lambda _: np.random.default_rng(1).bytes(5000),
    "zeros": lambda _: bytes(5000),
    "cut in the middle": lambda _: detector()[: len(detector()) // 2],
    "its last byte away": lambda _: detector()[:-1],
    "a recogniser": lambda _: recogniser(),
    "six outputs": lambda _: constants(GOOD[:6]),
    "no rows": lambda _: constants([(0, shape[1]) for shape in GOOD]),
    "too few rows": lambda _: constants([(7, shape[1]) for shape in GOOD]),
    "rows of another width": lambda _: constants([(shape[0], 3) for shape in GOOD], 1.0),
    "scores of one number": lambda _: constants([(1, 1)] * 9),
    "all faces": lambda _: constants(GOOD, 1.0),
    "NaN": lambda _: constants(GOOD, float("nan")),
    "infinite": lambda _: constants(GOOD, float("inf")),
    "huge": lambda _: constants(GOOD, 3e38),
    "negative": lambda _: constants(GOOD, -5.0),
    "an unknown operator": lambda _: model(
        [helper.make_node("Evil", ["input"], [f"o{i}" for i in range(9)], domain="evil")],
        [helper.make_tensor_value_info(f"o{i}", TensorProto.FLOAT, [None]) for i in range(9)], check=False,
    ),
}  # fmt: skip
RECOGNISERS: dict[str, Callable[[Path], bytes]] = {
    "cut": lambda _: recogniser()[:-100],
    "512 too wide": lambda _: recogniser(width=513),
    "one number": lambda _: recogniser(width=1),
    "weights in another file": external,
    "weights in a file of the working folder": lambda folder: external(folder, absolute=False),
    "a loop": endless,
    "all zero": lambda _: model(
        [helper.make_node("Identity", ["w"], ["o"])], [helper.make_tensor_value_info("o", TensorProto.FLOAT, [1, 512])],
        [numpy_helper.from_array(np.zeros((1, 512), np.float32), "w")],
        [helper.make_tensor_value_info("data", TensorProto.FLOAT, [None, 3, 112, 112])],
    ),
    "NaN": lambda _: model(
        [helper.make_node("Identity", ["w"], ["o"])], [helper.make_tensor_value_info("o", TensorProto.FLOAT, [1, 512])],
        [numpy_helper.from_array(np.full((1, 512), np.nan, np.float32), "w")],
        [helper.make_tensor_value_info("data", TensorProto.FLOAT, [None, 3, 112, 112])],
    ),
    "text for an input": lambda _: model(
        [helper.make_node("Identity", ["data"], ["o"])],
        [helper.make_tensor_value_info("o", TensorProto.STRING, [None, 3, 112, 112])], [],
        [helper.make_tensor_value_info("data", TensorProto.STRING, [None, 3, 112, 112])],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", DETECTORS)
def test_detectors(tmp_path: Path, name: str) -> None:
    home = write_pack(tmp_path / "packs")
    (home / "det_10g.onnx").write_bytes(DETECTORS[name](tmp_path))
    analyser = FaceAnalyser(FacePacks(lambda: [tmp_path / "packs"]))
    with contextlib.suppress(IPAdapterError):
        crop = face_crop(ONE, "largest", 112, analyser, "x")
        assert crop.size == (112, 112)


@pytest.mark.parametrize("name", RECOGNISERS)
def test_recognisers(tmp_path: Path, name: str) -> None:
    home = write_pack(tmp_path / "packs")
    (home / "w600k_r50.onnx").write_bytes(RECOGNISERS[name](tmp_path))
    analyser = FaceAnalyser(FacePacks(lambda: [tmp_path / "packs"]))
    crop = face_crop(ONE, "largest", 112, analyser, "x")
    with pytest.raises((FaceModelError, FaceModelMissing)) as caught:
        analyser.of_crop(crop, "buffalo_l")
    assert "w600k_r50.onnx" in str(caught.value)


@pytest.mark.parametrize("inside", ["initializer", "constant", "branch"])
def test_no_model_reads_other_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, inside: str) -> None:
    """onnxruntime opens the file of a tensor from the working folder, also for a model that it gets as bytes."""
    monkeypatch.chdir(tmp_path)
    content = external(tmp_path, absolute=False, inside=inside)
    with pytest.raises(FaceModelError, match="its weights are in another file"):
        Recogniser(content, "w600k_r50.onnx")
    # A second graph behind a harmless one: protobuf merges them.
    with pytest.raises(FaceModelError, match="its weights are in another file"):
        Recogniser(recogniser() + content, "w600k_r50.onnx")


def test_nor_has_one_a_loop(tmp_path: Path) -> None:
    with pytest.raises(FaceModelError, match="a loop, which no face model has"):
        Recogniser(endless(tmp_path), "w600k_r50.onnx")


def test_the_models_of_the_tests_are_none_of_them() -> None:
    """The control."""
    for content in (recogniser(), recogniser(normalises=True), detector(), detector(everywhere=True)):
        refuse_hostile(content, "x")


@pytest.mark.parametrize("size", [(40_000, 300), (300, 40_000)])
def test_a_picture_longer_than_opencv_warps(size: tuple[int, int]) -> None:
    """The crop is that of the same face in a smaller picture."""
    small = picture((150, 150), size=(300, 300), radius=80)
    long = Image.new("RGB", size, (0, 0, 120))
    long.paste(small, (0, 0))
    points = TEMPLATE * 1.5 + 66
    crop, wanted = (aligned_crop(np.asarray(one), points, 112).astype(int) for one in (long, small))
    assert np.abs(crop - wanted).mean() < 6
    assert wanted.std() > 30


def test_there_are_enough_of_them() -> None:
    assert len(PICTURES) + len(DETECTORS) + len(RECOGNISERS) >= 30


def test_many_files_are_read_once(tmp_path, monkeypatch):
    for i in range(300):
        (tmp_path / f"{i}.onnx").write_bytes(b"no model")
    read, found = [], FacePacks(lambda: [tmp_path])
    monkeypatch.setattr(packs, "_read", lambda path: read.append(path) or path.read_bytes())
    assert [*found.files(), *found.files()] == []
    assert len(read) == 300
