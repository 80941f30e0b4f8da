"""python -m lib_ipadapter generate."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
from PIL import Image

pytest.importorskip("ldm", reason="stable-diffusion-sdkit is not installed")

from lib_ipadapter.cli import main
from tests.ldm.small import difference, noise_picture, write_all

SIZE, STEPS = (64, 64), 4


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_all(tmp_path_factory.mktemp("small"))


def arguments(folder: Path, out: Path, *more: str) -> list[str]:
    picture = out.with_name("reference.png")
    noise_picture(4, (96, 64)).save(picture)
    head = [
        "generate",
        "--checkpoint",
        str(folder / "small-eps.safetensors"),
        "--prompt",
        "a cat",
        "--device",
        "cpu",
    ]
    sizes = ["--width", "64", "--height", "64", "--steps", "3", "--seed", "1", "--out", str(out)]
    return [
        *head,
        *sizes,
        "--encoder-dir",
        str(folder / "encoders"),
        *(m.replace("REF", str(picture)) for m in more),
    ]


def drawn(folder: Path, out: Path, *more: str) -> Image.Image:
    assert main(arguments(folder, out, *more)) == 0
    return Image.open(out)


def test_command_line(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, unit = tmp_path / "out.png", ["--adapter", str(folder / "base.safetensors"), "--image", "REF"]
    base = drawn(folder, out).copy()
    assert difference(base, drawn(folder, out, *unit, "--weight", "0")) == 0
    picture = drawn(folder, out, *unit, "--image", "REF", "--image-weight", "1", "--image-weight", "0.5")
    assert difference(base, picture) > 0
    text = picture.text  # type: ignore[attr-defined]
    assert text["parameters"].startswith("a cat\nSteps: 3, Sampler: DDIM, CFG scale: 7.5, Seed: 1, Size: 64x64")
    (written,) = json.loads(text["ip_adapter"])
    assert written["model"] == "base"
    assert [image["weight"] for image in written["images"]] == [1.0, 0.5]
    said = capsys.readouterr()
    assert "3/3" in said.err
    assert said.out.split() == [str(out)] * 3


def test_command_line_units_as_json_and_an_encoder_file(folder: Path, tmp_path: Path) -> None:
    out, plus = tmp_path / "out.png", str(folder / "plus.safetensors")
    as_json = json.dumps({"model": plus, "images": ["REF"], "weight": 0.7})
    encoder = ["--encoder", str(folder / "encoders" / "tiny-vit.safetensors")]
    first = drawn(folder, out, "--unit", as_json, *encoder).copy()
    assert difference(first, drawn(folder, out, "--adapter", plus, "--image", "REF", "--weight", "0.7")) == 0


def test_command_line_batch_and_mask(folder: Path, tmp_path: Path) -> None:
    mask = Image.new("L", SIZE, 0)
    mask.paste(255, (0, 0, 32, 64))
    mask.save(tmp_path / "mask.png")
    noise_picture(9).save(tmp_path / "init.png")
    more = ["--batch", "2", "--init-image", str(tmp_path / "init.png"), "--mask", str(tmp_path / "mask.png")]
    assert main(arguments(folder, tmp_path / "out.png", *more)) == 0
    for i in (1, 2):
        picture = Image.open(tmp_path / f"out-{i}.png")
        assert f"Seed: {i}," in picture.text["parameters"]  # type: ignore[attr-defined]
        assert difference(picture.crop((32, 0, 64, 64)), noise_picture(9).crop((32, 0, 64, 64))) == 0


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--adapter", "absent.safetensors", "--image", "REF"], "absent.safetensors"),
        (["--image", "REF"], "an --adapter"),
        (["--adapter", "BASE"], "at least one reference image"),
        (["--adapter", "BASE", "--image", "absent.png"], "absent.png"),
        (["--adapter", "BASE", "--image", "REF", "--weight", "9"], "weight"),
        (["--adapter", "BASE", "--image", "REF", "--image-weight", "1", "--image-weight", "1"], "1 weights"),
        (["--adapter", "WIDE", "--image", "REF"], "wide"),
        (["--unit", "{"], "JSON object"),
        (["--unit", '{"modell": 1}'], "modell"),
        (["--width", "100"], "multiple of 64"),
        (["--out", "out.jpg"], r"\.png"),
        (["--config", "absent.yaml"], "absent.yaml"),
        (["--mask", "REF"], "init image"),
    ],
)
def test_command_line_errors_are_one_line(
    folder: Path, tmp_path: Path, more: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    names = {"BASE": str(folder / "base.safetensors"), "WIDE": str(folder / "wide.safetensors")}
    code = main(arguments(folder, tmp_path / "out.png", *(names.get(m, m) for m in more)))
    error = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert code == 2
    assert len(error) == 1
    assert re.search(words, error[0])
    assert not (tmp_path / "out.png").exists()


def test_an_encoder_that_does_not_fit(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    wrong = tmp_path / "wrong.safetensors"
    shutil.copy(folder / "base.safetensors", wrong)
    more = ["--adapter", str(folder / "base.safetensors"), "--image", "REF", "--encoder", str(wrong)]
    assert main(arguments(folder, tmp_path / "out.png", *more)) == 2
    assert "wrong.safetensors" in capsys.readouterr().err


def test_region_inpaint_acts_where_the_mask_repaints(folder: Path, tmp_path: Path) -> None:
    """As the same mask given to the unit; without --mask and with maps it is refused."""
    half_mask = Image.new("L", SIZE, 0)
    half_mask.paste(255, (0, 0, 32, 64))
    half_mask.save(tmp_path / "mask.png")
    noise_picture(9).save(tmp_path / "init.png")
    painted = ["--init-image", str(tmp_path / "init.png"), "--mask", str(tmp_path / "mask.png")]

    def unit(**fields: object) -> list[str]:
        value = {
            "model": str(folder / "base.safetensors"),
            "images": [str(tmp_path / "reference.png")],
            "weight": 2.0,
        }
        return ["--unit", json.dumps({**value, **fields})]

    out = tmp_path / "out.png"
    everywhere = drawn(folder, out, *painted, *unit()).copy()
    inside = drawn(folder, out, *painted, *unit(region="inpaint")).copy()
    same = drawn(folder, out, *painted, *unit(mask=str(tmp_path / "mask.png")))
    assert difference(inside, same) == 0
    assert difference(inside, everywhere) > 0
    for more in (unit(region="inpaint"), [*painted, *unit(maps=True)]):
        assert main(arguments(folder, out, *more)) == 2
