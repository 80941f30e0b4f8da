"""The command line: ``embed``, and units of ``generate`` with what it wrote."""

from __future__ import annotations

import argparse

import pytest
import torch
from PIL import Image

from lib_ipadapter.cli import main
from lib_ipadapter.options import from_flags
from lib_ipadapter.standalone import generate
from tests.synthetic import adapter_tensors, write_adapter

pytest.importorskip("open_clip", reason="open_clip is not installed")

from tests.webui.networks import write_encoder


@pytest.fixture
def place(tmp_path):
    write_encoder(tmp_path / "encoder")
    write_adapter(tmp_path / "a.safetensors", adapter_tensors("plus", feature_width=128))
    (tmp_path / "pictures").mkdir()
    for i in range(2):
        Image.linear_gradient("L").rotate(90 * i).save(tmp_path / "pictures" / f"{i}.png")
    return tmp_path


def prompts(place, *arguments):
    parser = argparse.ArgumentParser()
    generate.add_arguments(parser)
    adapter = [] if "--unit" in arguments else ["--adapter", str(place / "a.safetensors")]
    args = parser.parse_args(["--checkpoint", "none", *adapter, *map(str, arguments)])
    options = from_flags(generate.GenerateOptions, args)
    return generate.image_prompts(generate.read_units(options), options, torch.device("cpu")), options


def test_embeds_prompt_as_their_pictures_do(place, capsys):
    encoder = ("--encoder", place / "encoder" / "tiny-vit.safetensors")
    pictures = [word for i in range(2) for word in ("--image", place / "pictures" / f"{i}.png")]
    pictures += ["--image-weight", 1, "--image-weight", 0.5]
    given = [str(word) for word in (*encoder, *pictures)]
    out = place / "two.safetensors"
    assert main(["embed", "--adapter", str(place / "a.safetensors"), *given, "--out", str(out)]) == 0
    assert str(out) in capsys.readouterr().out
    (wanted,), _ = prompts(place, *given)
    (found,), _ = prompts(place, "--embeds", out)
    assert torch.equal(found.tokens, wanted.tokens)
    assert torch.equal(found.token_weights, wanted.token_weights)
    # The same folder, one by one
    unit = (
        f'{{"model": "{place}/a.safetensors", "images": [{{"folder": "{place}/pictures"}}], '
        '"distribute": "one per picture"}'
    )
    (each,), args = prompts(place, *encoder, "--unit", unit, "--batch", 3)
    assert each.tokens.shape[0] == 4
    assert torch.equal(each.tokens[0], wanted.tokens[0, :4])
    assert torch.equal(each.tokens[2], wanted.tokens[0, 4:])
    assert generate._sets([each], args.batch) == [0, 2, 4, 1, 3, 5]


def test_what_embed_refuses(place, capsys):
    assert main(["embed", "--adapter", str(place / "a.safetensors"), "--out", str(place / "x.pt")]) == 2
    assert main(["embed", "--out", str(place / "x.safetensors")]) == 2
    assert "one unit, got 0" in capsys.readouterr().err


def test_faces_on_the_command_line(place, capsys):
    """A FaceID-Plus adapter: ``embed`` and ``generate`` find the face models by --face-models."""
    pytest.importorskip("onnx", reason="onnx is not installed: it writes the small face models")
    from tests.face_models import picture, write_pack

    write_pack(place / "faces")
    adapter = write_adapter(place / "plusv2.safetensors", adapter_tensors("faceid-plus", feature_width=128, lora=2))
    picture((176, 208), (496, 432), radius=15).save(place / "two.png")
    given = ["--encoder", place / "encoder" / "tiny-vit.safetensors", "--face", "rightmost"]
    given += ["--face-models", place / "faces"]
    unit = f'{{"model": "{adapter}", "images": ["{place}/two.png"], "face": "%s", "lora": 0.5, "shortcut": 0.3}}'
    (left, right), _ = prompts(place, *given[:2], *given[4:], "--unit", unit % 0, "--unit", unit % "rightmost")
    assert not torch.equal(left.tokens, right.tokens)
    assert (left.lora, left.tokens.shape) == (0.5, (2, 4, 64))
    out = place / "person.safetensors"
    words = ["embed", "--adapter", adapter, *given, "--image", place / "two.png", "--out", out]
    assert main(list(map(str, words))) == 0
    saved = f'{{"model": "{adapter}", "images": [{{"embeds": "{out}"}}], "shortcut": 0.3}}'
    (found,), _ = prompts(place, *given[:2], "--unit", saved)
    assert torch.equal(found.tokens, right.tokens)
    capsys.readouterr()
    words[words.index(place / "faces")] = place / "nowhere"
    assert main(list(map(str, words))) == 2
    assert "was not found. Put buffalo_l.zip" in capsys.readouterr().err
