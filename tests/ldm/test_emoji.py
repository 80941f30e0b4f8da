"""The emoji example: what is prepared, held out and trained, a few steps on a few pictures."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

pytest.importorskip("ldm", reason="stable-diffusion-sdkit is not installed")

from examples.emoji import prepare, retrieval
from examples.emoji import train as emoji
from examples.small_world import loop, models
from lib_ipadapter.adapters.file import sha256
from lib_ipadapter.errors import DataError, DownloadError
from lib_ipadapter.evaluation import Item
from tests.small_world import write_random


@pytest.fixture
def packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Tarballs such as npm's, of 20 emoji; one has no words."""
    folder = tmp_path / "downloads"
    folder.mkdir()
    entries, files = [], {}
    for n in range(20):
        code = f"1F4{n:02X}"
        entries.append({"hexcode": code, "label": f"Thing {n}", "tags": [f"tag {n}", "thing"]})
        content = io.BytesIO()
        Image.new("RGBA", (64, 64), (12 * n, 255 - 12 * n, 90, 255)).save(content, "webp")
        files[f"package/assets/{code.lower()}.webp"] = content.getvalue()
    files["package/assets/1f999.webp"] = content.getvalue()
    monkeypatch.setattr(prepare, "PICTURES", tarball(folder, "pictures", files))
    words = {"package/en/data.json": json.dumps(entries).encode()}
    monkeypatch.setattr(prepare, "WORDS", tarball(folder, "words", words))
    return folder


def tarball(folder: Path, name: str, files: dict[str, bytes]) -> prepare.Package:
    path = folder / f"{name}-1.0.tgz"
    with tarfile.open(path, "w:gz") as archive:
        for key, content in files.items():
            member = tarfile.TarInfo(key)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return prepare.Package(name, "1.0", sha256(path))


def test_concepts():
    assert prepare.concept("1F44B-1F3FB") == prepare.concept("1f44b")
    assert prepare.concept("1f468-200d-1f33e") == prepare.concept("1f9d1-1f3fd-200d-1f33e")
    assert prepare.concept("1f3c3-200d-2640-fe0f") == prepare.concept("1f3c3")
    assert prepare.concept("1f600") != prepare.concept("1f601")


def test_emoji_are_prepared_whole_or_not_at_all(tmp_path, packages, capsys):
    out = tmp_path / "data"
    train_count, held_out = prepare.write(out, packages)
    assert train_count + held_out == 20
    assert "1f999" in capsys.readouterr().err
    picture = next((out / "train").glob("*.png"))
    assert Image.open(picture).size == (128, 128)
    assert picture.with_suffix(".txt").read_text().startswith("thing ")
    assert {prepare.is_held_out(path.stem) for path in (out / "train").glob("*.png")} == {False}
    assert prepare.main(["--data", str(out), "--downloads", str(packages)]) == 2

    (packages / "words-1.0.tgz").write_bytes(b"something else")
    with pytest.raises(DownloadError, match="sha256"):
        prepare.write(tmp_path / "again", packages)
    assert not (tmp_path / "again").exists()


def test_references_are_one_of_each_concept(tmp_path):
    for name in ("1f44b", "1f44b-1f3fb", "1f600", "1f601"):
        Image.new("RGB", (8, 8)).save(tmp_path / f"{name}.png")
        (tmp_path / f"{name}.txt").write_text(name)
    chosen = retrieval.references(tmp_path, 3)
    assert all(isinstance(item, Item) for item in chosen)
    assert len({prepare.concept(item.key) for item in chosen}) == 3
    with pytest.raises(DataError, match="3 concepts"):
        retrieval.references(tmp_path, 4)


def test_emoji_go_on_from_the_small_world(tmp_path, packages, monkeypatch):
    monkeypatch.setattr(loop, "PICTURES", 32)
    write_random(tmp_path, monkeypatch)
    prepare.write(tmp_path / "data", packages)
    for part in emoji.PARTS:
        assert emoji.main([part, "--folder", str(tmp_path), "--steps", "1"]) == 0
    state = load_file(tmp_path / "weights" / "emoji.safetensors")
    assert state.keys() == load_file(models.CHECKPOINT).keys()
    # By one step, at a rate that has just begun to rise
    after = torch.load(tmp_path / "base.state.pt")["model"]
    before = models.part_of_checkpoint("model.diffusion_model.")
    assert 0 < max(float((after[key] - before[key]).abs().max()) for key in after) < 1e-4
    assert f"arch: {emoji.ARCH}" in (tmp_path / "weights" / "emoji.yaml").read_text()


def test_emoji_without_data(tmp_path, capsys):
    assert emoji.main(["clip", "--folder", str(tmp_path)]) == 2
    assert "prepare.py" in capsys.readouterr().err
