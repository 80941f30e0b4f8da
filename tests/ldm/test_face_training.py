"""Training FaceID: faces found once, the LoRA beside, and a file that the rest of the package uses."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest
import torch

pytest.importorskip("onnx", reason="onnx is not installed: it writes the small face models")

from lib_ipadapter.adapters.adapter import Adapter
from lib_ipadapter.attention.session import COND, ImagePrompt, Session
from lib_ipadapter.encoders.clip import ImageEncoder
from lib_ipadapter.errors import ConfigError, FaceModelMissing, TrainingError, WrongBase
from lib_ipadapter.training.config import TrainConfig
from lib_ipadapter.training.data import Preparation
from lib_ipadapter.training.faces import FaceEncoder, FacePlusEncoder, unpacked
from lib_ipadapter.training.run_folder import ADAPTER
from lib_ipadapter.training.source import Item
from lib_ipadapter.training.trainer import Trainer
from tests.face_models import picture, write_pack
from tests.ldm.small import write_all
from tests.ldm.trainings import config, losses, plain, tensors, train

PEOPLE = 5


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small checkpoint, face models, and a data set of which one picture is broken and one has no face."""
    root = write_all(tmp_path_factory.mktemp("faces"))
    write_pack(root / "faces")
    (root / "data").mkdir()
    for i in range(PEOPLE):
        picture((48 + 128 * i, 208), size=(640, 640), radius=15).save(root / "data" / f"{i}.png")
        (root / "data" / f"{i}.txt").write_text(f"person {i}")
    picture().save(root / "data" / "wall.png")
    (root / "data" / "wall.txt").write_text("a wall")
    (root / "data" / "broken.png").write_bytes(b"no picture")
    (root / "data" / "broken.txt").write_text("nothing")
    return root


FACE = {"variant": "faceid", "encoder": "", "cache": True, "lora_rank": 4}


def of(folder: Path, **fields) -> dict:
    return {**FACE, "face_models": str(folder / "faces"), **fields}


def test_it_learns_and_its_file_is_one_that_we_read(folder):
    out = plain(folder, **of(folder, steps=4))
    path = out / ADAPTER
    adapter = Adapter.load(path)
    assert (adapter.spec.variant, adapter.spec.lora_rank, adapter.spec.tokens) == ("faceid", 4, 4)
    assert adapter.spec.needs[0].encoder == "buffalo_l"
    assert len(adapter.lora()) == 4 * 32
    held = tensors(path)
    moved = [float(value.abs().max()) for key, value in held.items() if "_lora.up" in key]
    assert len(moved) == 4 * 32
    assert min(moved) > 0, "a LoRA that did not move"
    assert len(losses(out)) == 4
    listed = (out / "broken.txt").read_text()
    assert "wall.png" in listed
    assert "no face was found in it" in listed
    assert "broken.png" in listed


def test_the_base_is_bit_for_bit_what_it_was(folder, tmp_path):
    trainer = Trainer(config(folder, tmp_path, **of(folder)))
    unet = trainer.base.parts.unet
    before = {name: value.clone() for name, value in unet.state_dict().items()}
    trainer.run()
    assert all(torch.equal(before[name], value) for name, value in unet.state_dict().items())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in unet.modules())


def test_what_is_trained_is_what_a_generation_runs(folder, tmp_path):
    """With the LoRA: the prediction inside the training equals that of a Session with the saved file."""
    trainer = Trainer(config(folder, tmp_path, **of(folder, steps=6, lr=1e-2)))
    outcome = trainer.run()
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(2, 4, 8, 8, generator=draw)
    faces = torch.nn.functional.normalize(torch.randn(2, 512, generator=draw), dim=-1)
    t, text = torch.tensor([300, 300]), trainer.base.text(["a", "b"])
    fresh = Trainer(config(folder, tmp_path / "again", **of(folder, init=str(outcome.adapter))))
    with torch.no_grad():
        inside = fresh.denoiser(x, t, text, None, faces)
        fresh.denoiser.rest()
        base = fresh.base.predict(x, t, text, None)
    fresh.denoiser.remove()
    adapter = Adapter.load(outcome.adapter)
    prompts = [ImagePrompt(adapter, torch.cat([adapter.tokens(faces[i : i + 1])] * 2), torch.ones(4)) for i in (0, 1)]
    for i, prompt in enumerate(prompts):
        for strength, same in ((1.0, True), (0.0, False)):
            session = Session([ImagePrompt(adapter, prompt.tokens, prompt.token_weights, lora=strength)])
            with torch.no_grad(), session.attached(fresh.base.unet):
                session.begin_step([COND], 0.0)
                one = type(text)(text.tokens[i : i + 1], None)
                outside = fresh.base.predict(x[i : i + 1], t[i : i + 1], one, None)
            difference = float((outside - inside[i : i + 1]).norm() / inside[i : i + 1].norm())
            assert (difference < 1e-4) == same, (i, strength, difference)
    assert (inside - base).norm() / base.norm() > 1e-3


def test_a_training_goes_on_with_its_lora(folder, tmp_path):
    """Stopped and resumed it has the losses of one that was not; the LoRA of ``init`` is its start."""
    fields = of(folder, steps=4)
    whole = plain(folder, **fields)
    train(folder, tmp_path / "parts", **{**fields, "steps": 2})
    train(folder, tmp_path / "parts", **fields)
    assert losses(tmp_path / "parts") == pytest.approx(losses(whole), rel=1e-5)
    first = whole / ADAPTER
    trainer = Trainer(config(folder, tmp_path / "next", **of(folder, init=str(first))))
    trainer.denoiser.remove()
    held = tensors(first)
    assert all(torch.equal(value, held[key]) for key, value in trainer.adapter.tensors().items())


def test_without_a_lora_and_with_samples(folder, tmp_path):
    path = train(folder, tmp_path, **of(folder, lora_rank=0, sample_every=3, sample_steps=2))
    assert Adapter.load(path).spec.lora_rank == 0
    assert (tmp_path / "samples" / "step-00000003.png").is_file()


def plus(folder: Path, variant: str = "faceid-plusv2", **fields) -> dict:
    return of(folder, variant=variant, encoder=str(folder / "encoders" / "tiny-vit.safetensors"), **fields)


@pytest.mark.parametrize("variant", ["faceid-plus", "faceid-plusv2"])
def test_it_learns_the_look_of_a_face_too(folder, tmp_path, variant):
    """FaceID-Plus: what is trained is what a generation runs, from a picture on, and the file says which version."""
    path = train(folder, tmp_path, **plus(folder, variant, steps=6, lr=1e-2, cache_half=False))
    adapter = Adapter.load(path)
    assert (adapter.spec.variant, adapter.spec.lora_rank, adapter.spec.kinds) == (variant, 4, (variant,))
    held = tensors(path)
    assert min(float(v.abs().max()) for key, v in held.items() if "_lora.up" in key) > 0
    assert any("perceiver_resampler.layers.0" in key for key in held)
    assert "no face was found in it" in (tmp_path / "broken.txt").read_text()
    fresh = Trainer(config(folder, tmp_path / "again", **plus(folder, variant, init=str(path), cache_half=False)))
    draw, t, text = torch.Generator().manual_seed(0), torch.tensor([300]), fresh.base.text(["a"])
    x, two = torch.randn(1, 4, 8, 8, generator=draw), fresh.feed.first_pictures(2)
    (cache,) = fresh.feed.caches.values()
    cached = [cache.get(i, "")["features"][None] for i in range(2)]
    with torch.no_grad():
        inside = [fresh.denoiser(x, t, text, None, features) for features in cached]
    fresh.denoiser.remove()
    for k, picture_ in enumerate(two):
        features = fresh.feed.encoder.of_picture(picture_)
        assert torch.allclose(features, cached[k], atol=1e-5)
        face, states = unpacked(features)
        prompt = adapter.tokens({"face": face, "penultimate": states})
        session = Session([ImagePrompt(adapter, torch.cat([prompt] * 2), torch.ones(4))])
        with torch.no_grad(), session.attached(fresh.base.unet):
            session.begin_step([COND], 0.0)
            outside = fresh.base.predict(x, t, text, None)
        assert float((outside - inside[k]).norm() / inside[k].norm()) < 1e-4
    assert float((inside[0] - inside[1]).norm() / inside[0].norm()) > 1e-5


def test_plus_goes_on_draws_samples_and_drops_to_no_face(folder, tmp_path):
    whole = plus(folder, steps=4, save_every=2)
    train(folder, tmp_path / "whole", **whole)
    train(folder, tmp_path / "parts", **{**whole, "steps": 2})
    path = train(folder, tmp_path / "parts", **{**whole, "sample_every": 4, "sample_steps": 2})
    assert losses(tmp_path / "parts") == pytest.approx(losses(tmp_path / "whole"), rel=1e-5)
    assert (tmp_path / "parts" / "samples" / "step-00000004.png").is_file()
    encoder = Trainer(config(folder, tmp_path / "x", **plus(folder))).feed.encoder
    face, states = unpacked(encoder.nothing())
    assert not face.any()
    assert torch.equal(states, encoder.clip.unconditional("penultimate").penultimate)
    with pytest.raises(WrongBase, match="is of variant faceid-plusv2, the config says faceid"):
        Trainer(config(folder, tmp_path / "y", **plus(folder, "faceid-plus", init=str(path))))


def test_the_encoder_travels_to_workers(folder):
    """As it does on Windows, where a worker is a process of its own."""
    tower = ImageEncoder.load(folder / "encoders" / "tiny-vit.safetensors")
    item = Item("0.png", picture((336, 336), radius=15), picture((336, 336), radius=15), "")
    for encoder in (FaceEncoder([folder / "faces"]), FacePlusEncoder([folder / "faces"], tower)):
        wanted = encoder.reference(item)
        sent = pickle.loads(pickle.dumps(Preparation(64, encoder)))
        assert torch.equal(sent(item)["reference"], wanted)


@pytest.mark.parametrize(("fields", "words"), [
    ({"variant": "faceid-plus"}, "encoder: .*the weight file"),
    ({"cache": False}, "cache: .*true: variant faceid finds"), ({"encoder": "x.safetensors"}, "encoder: .*nothing"),
    ({"attention": "concat"}, "attention: .*decoupled"), ({"variant": "base"}, "encoder: .*the weight file"),
])  # fmt: skip
def test_configs_that_cannot_be_are_refused(fields, words):
    with pytest.raises(ConfigError, match=words):
        TrainConfig.parse({"base": "b", "data": "d", "out": "o", **FACE, **fields})


def test_missing_models_and_data_without_faces_are_errors(folder, tmp_path):
    with pytest.raises(FaceModelMissing, match=r"w600k_r50\.onnx"):
        train(folder, tmp_path / "a", **{**of(folder), "face_models": str(tmp_path)})
    (tmp_path / "walls").mkdir()
    picture().save(tmp_path / "walls" / "wall.png")
    (tmp_path / "walls" / "wall.txt").write_text("a wall")
    from lib_ipadapter.errors import DataError

    with pytest.raises((DataError, TrainingError), match="not one picture of the data can be read"):
        train(folder, tmp_path / "b", **of(folder, data=str(tmp_path / "walls")))
