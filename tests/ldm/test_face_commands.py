"""Face adapters on the command line: ``evaluate`` with identity, ``generate``, on a small random checkpoint."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

pytest.importorskip("ldm.modules.diffusionmodules.openaimodel", reason="ldm is not installed")
pytest.importorskip("onnx", reason="onnx is not installed: it writes the small face models")

from lib_ipadapter.cli import main
from tests.face_models import picture, write_pack
from tests.ldm.small import write_all
from tests.small_clip import write_clip
from tests.synthetic import adapter_tensors, write_adapter
from tests.webui.networks import CONTEXT, SD1_WIDTHS


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """write_all's files, face adapters and models, a CLIP, and three references of which the last has no face."""
    folder = write_all(tmp_path_factory.mktemp("faces"))
    write_clip(folder)
    write_pack(folder / "faces")
    for variant in ("faceid", "faceid-plus"):
        flat = adapter_tensors(variant, CONTEXT, SD1_WIDTHS, 128, inner=256, lora=4, seed=7)
        write_adapter(folder / f"{variant}v2.safetensors", flat)
    (folder / "people").mkdir()
    for i, centre in enumerate(((176, 208), (496, 432))):
        picture(centre, radius=15).save(folder / "people" / f"{i}.png")
        (folder / "people" / f"{i}.txt").write_text(f"person {i}")
    return folder


def arguments(folder: Path, out: Path, *more: object) -> list[str]:
    return list(map(str, [
        "evaluate", "--references", folder / "people", "--clip", folder / "small-judge.safetensors",
        "--checkpoint", folder / "small-eps.safetensors", "--encoder", folder / "encoders", "--out", out,
        "--width", 64, "--height", 64, "--steps", 2, "--device", "cpu", "--face-models", folder / "faces", *more,
    ]))  # fmt: skip


def test_evaluate_measures_face_adapters_and_identity(folder: Path, tmp_path: Path, capsys):
    adapters = ("--adapter", folder / "faceidv2.safetensors", "--adapter", folder / "faceid-plusv2.safetensors")
    assert main(arguments(folder, tmp_path / "out", *adapters, "--weights", "0,1", "--identity", "buffalo_l")) == 0
    said = capsys.readouterr().out
    assert "faces found" in said
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    rows = {(row["method"], row["weight"]): row["measures"] for row in results["rows"]}
    assert rows["reference", None]["identity"]["mean"] == pytest.approx(1)
    assert rows["reference", None]["face_found"]["mean"] == 1
    assert {name for name, _ in rows} == {"reference", "base-model", "faceidv2", "faceid-plusv2"}
    methods = results["settings"]["methods"]
    assert len(methods["faceidv2"]["detector"]) == len(methods["faceidv2"]["buffalo_l"]) == 64
    assert "encoder" in methods["faceid-plusv2"]
    assert "encoder" not in methods["faceidv2"]
    pictures = tmp_path / "out" / "pictures"
    drawn = {path.relative_to(pictures): Image.open(path).tobytes() for path in pictures.rglob("*.png")}
    assert len(set(drawn.values())) == len(drawn) == 6


def test_evaluate_says_what_is_missing(folder: Path, tmp_path: Path, capsys):
    call = arguments(folder, tmp_path / "out", "--adapter", folder / "faceidv2.safetensors")
    call[call.index(str(folder / "faces"))] = str(tmp_path / "nowhere")
    assert main(call) == 2
    assert "w600k_r50.onnx" in capsys.readouterr().err
    Image.new("RGB", (300, 200), (0, 0, 120)).save(folder / "people" / "wall.png")
    (folder / "people" / "wall.txt").write_text("a wall")
    try:
        assert main(arguments(folder, tmp_path / "out", "--adapter", folder / "faceidv2.safetensors")) == 2
        assert "no face was found in" in capsys.readouterr().err
    finally:
        (folder / "people" / "wall.png").unlink()
        (folder / "people" / "wall.txt").unlink()


def test_generate_draws_with_the_lora_inside_the_file(folder: Path, tmp_path: Path):
    def drawn(name: str, *more: object) -> bytes:
        out = tmp_path / f"{name}.png"
        words = [
            "generate", "--checkpoint", folder / "small-eps.safetensors", "--adapter", folder / "faceidv2.safetensors",
            "--image", folder / "people" / "0.png", "--face-models", folder / "faces", "--width", 64, "--height", 64,
            "--steps", 2, "--seed", 1, "--device", "cpu", "--out", out, *more,
        ]  # fmt: skip
        assert main(list(map(str, words))) == 0
        return Image.open(out).tobytes()

    whole, weak, without = drawn("a"), drawn("b", "--lora", 0.4), drawn("c", "--lora", 0)
    base, off = drawn("d", "--weight", 0), drawn("e", "--weight", 0, "--lora", 0)
    assert len({whole, weak, without, base}) == 4
    assert base == off
    assert drawn("f") == whole
