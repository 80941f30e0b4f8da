"""The CLIP that measures, against open_clip."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from lib_ipadapter.errors import BrokenEncoder, FileError
from lib_ipadapter.evaluation import Clip
from tests.by_colour import plain
from tests.small_clip import SMALL_CLIP, write_clip


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
@pytest.mark.parametrize("custom", [False, True])
def test_embeddings_are_open_clips_own(tmp_path: Path, suffix: str, custom: bool) -> None:
    import open_clip
    from open_clip.transform import image_transform

    config = {
        **SMALL_CLIP,
        "custom_text": custom,
        "preprocess_cfg": {"mean": [0.5, 0.4, 0.3], "std": [0.2, 0.3, 0.4]},
    }
    path, theirs = write_clip(tmp_path, config, suffix)
    clip = Clip.load(path)
    pixels = np.random.default_rng(0).integers(0, 256, (48, 60, 3), dtype=np.uint8)
    pictures = [Image.fromarray(pixels), plain("red", (50, 33)), plain("blue", (32, 32))]
    transform = image_transform(32, is_train=False, mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4))
    texts = ["a red thing", "many words " * 30, ""]
    with torch.no_grad():
        expected = theirs.encode_image(torch.stack([transform(p) for p in pictures]), normalize=True)
        expected_texts = theirs.encode_text(open_clip.tokenize(texts, 20), normalize=True)
    assert torch.allclose(clip.images(pictures), expected, atol=1e-5)
    assert torch.allclose(clip.texts(texts), expected_texts, atol=1e-5)
    assert (expected[0] - expected[1]).abs().max() > 0.01
    many = clip.images(pictures * 20)  # more than one batch
    assert torch.allclose(many[-3:], expected, atol=1e-5)


def test_a_standard_architecture_by_name(tmp_path: Path) -> None:
    import open_clip

    path, _ = write_clip(tmp_path)
    (tmp_path / "named-judge.json").write_text(path.with_suffix(".json").read_text())
    open_clip.add_model_config(tmp_path / "named-judge.json")
    path.with_suffix(".json").unlink()
    assert Clip.load(path, "named-judge").texts(["a"]).shape == (1, 24)
    with pytest.raises(FileError, match=r"no small-judge\.json beside it.*--clip-arch"):
        Clip.load(path)
    with pytest.raises(FileError, match=r"no-such.*ViT-L-14"):
        Clip.load(path, "no-such")


def test_bad_judges_are_refused(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    path, _ = write_clip(tmp_path)
    state = {key: value.clone() for key, value in load_file(path).items()}  # not mapped: the file is written again
    for change, words in (
        ({"ln_final.weight": None}, "1 keys missing .ln_final.weight"),
        ({"extra": torch.zeros(1)}, "1 keys unknown .extra"),
        ({"text_projection": torch.zeros(2, 2)}, "1 keys of another shape .text_projection"),
    ):
        changed = {key: value for key, value in {**state, **change}.items() if value is not None}
        save_file(changed, str(path))
        with pytest.raises(BrokenEncoder, match=words):
            Clip.load(path)
    save_file({**state, "attn_mask": torch.zeros(20, 20)}, str(path))
    Clip.load(path)
    save_file({**state, "visual.proj": torch.full_like(state["visual.proj"], float("nan"))}, str(path))
    with pytest.raises(BrokenEncoder, match="NaN"):
        Clip.load(path).images([plain("red")])
    text = {**SMALL_CLIP["text_cfg"], "hf_model_name": "x"}  # type: ignore[dict-item]
    path.with_suffix(".json").write_text(json.dumps({**SMALL_CLIP, "text_cfg": text}))
    with pytest.raises(BrokenEncoder, match="not of open_clip's own making"):
        Clip.load(path)
    for content in ("{}", "[" * 100_000):
        path.with_suffix(".json").write_text(content)
        with pytest.raises(FileError, match="no open_clip config"):
            Clip.load(path)


def test_nothing_is_built_by_a_config_that_is_not_the_files(tmp_path: Path) -> None:
    """Its text tower alone would take 40 GB."""
    path, _ = write_clip(tmp_path)
    text = {**SMALL_CLIP["text_cfg"], "vocab_size": 10**9, "width": 16, "heads": 2}  # type: ignore[dict-item]
    for changed, words in ((text, "of another shape"), ({**text, "vocab_size": "x"}, "tokeniser"),
                           ({**text, "layers": None}, "cannot build")):  # fmt: skip
        path.with_suffix(".json").write_text(json.dumps({**SMALL_CLIP, "text_cfg": changed}))
        with pytest.raises(BrokenEncoder, match=words):
            Clip.load(path)


def test_openai_s_activation_needs_no_config_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Older releases of open_clip have none whose name ends in -quickgelu."""
    import open_clip

    path, _ = write_clip(tmp_path)
    config = json.loads(path.with_suffix(".json").read_text())
    monkeypatch.setattr(open_clip, "get_model_config", {"some-judge": config}.get)
    plain, quick = (Clip.load(path, name) for name in ("some-judge", "some-judge-quickgelu"))
    picture = Image.new("RGB", (32, 32), "teal")
    assert (plain.images([picture]) - quick.images([picture])).abs().max() > 1e-6
    with pytest.raises(FileError, match="another-quickgelu"):
        Clip.load(path, "another-quickgelu")
