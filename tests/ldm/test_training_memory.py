"""Trainings that take less memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("ldm", reason="stable-diffusion-sdkit is not installed")
pytest.importorskip("accelerate", reason="accelerate is not installed")

from lib_ipadapter.errors import ConfigError, TrainingError
from lib_ipadapter.standalone.checkpoint import load_parts
from lib_ipadapter.training import compiled
from lib_ipadapter.training import trainer as trainer_module
from lib_ipadapter.training.trainer import Trainer
from tests.ldm.trainings import config, losses, plain, tensors, train, write_data


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_data(tmp_path_factory.mktemp("small"))


@pytest.mark.parametrize("storage", ["bf16", "fp8"])
def test_a_base_in_fewer_bytes_trains_nearly_the_same(folder, tmp_path, storage):
    if storage == "fp8" and not hasattr(torch, "float8_e4m3fn"):
        pytest.skip("torch has no float8")
    trainer = Trainer(config(folder, tmp_path / "stored", storage=storage, checkpointing=True))
    sizes = trainer.resident()
    trainer.run()
    usual = Trainer(config(folder, tmp_path / "usual"))
    usual.denoiser.remove()
    assert sizes["UNet"] < {"bf16": 0.52, "fp8": 0.29}[storage] * usual.resident()["UNet"]
    assert losses(tmp_path / "stored") != losses(plain(folder))
    np.testing.assert_allclose(losses(tmp_path / "stored"), losses(plain(folder)), rtol=0.1)
    held = tensors(tmp_path / "stored" / "ip_adapter.safetensors")
    assert all(value.dtype == torch.float32 for value in held.values())


def test_what_is_cached_leaves_the_device_and_comes_back_for_samples(folder, tmp_path, monkeypatch):
    """On the CPU nothing moves, so what is asked for is watched."""
    own = {"cache": True, "cache_text": True, "sample_every": 2, "sample_steps": 1, "steps": 2}
    trainer = Trainer(config(folder, tmp_path, **own))
    assert trainer.feed.needed == ()
    asked: list[tuple[str, ...]] = []
    monkeypatch.setattr(trainer.base, "keep", lambda *names: asked.append(names))
    trainer.run()
    assert asked == [("autoencoder", "text encoder"), ()]
    usual = Trainer(config(folder, tmp_path / "usual", cache=True))
    assert usual.feed.needed == ("text encoder",)
    usual.denoiser.remove()
    listed = usual.summary().partition("resident: ")[2]
    assert all(name in listed for name in ("UNet", "text encoder", "adapter", "its gradients", "optimizer"))


def test_a_model_that_is_not_kept_is_moved(folder, tmp_path):
    trainer = Trainer(config(folder, tmp_path))
    moved: dict[str, list[str]] = {"autoencoder": [], "text encoder": []}
    for name, model in trainer.base.besides().items():
        model.to = lambda device, name=name: moved[name].append(str(device))
    trainer.base.device = torch.device("meta")  # stands for a GPU
    trainer.base.keep("text encoder")
    assert moved == {"autoencoder": ["cpu"], "text encoder": ["meta"]}
    trainer.denoiser.remove()


def test_schedule_free_goes_on_bitwise_and_saves_the_average(folder, tmp_path):
    pytest.importorskip("schedulefree", reason="schedulefree is not installed")
    own = {"optimizer": "schedule-free"}
    trainer = Trainer(config(folder, tmp_path / "whole", steps=4, **own))
    whole = trainer.run().adapter
    train(folder, tmp_path / "parts", steps=2, save_every=1, **own)
    part = train(folder, tmp_path / "parts", steps=4, **own)
    assert losses(tmp_path / "whole") == losses(tmp_path / "parts")
    a, b = tensors(whole), tensors(part)
    assert all(torch.equal(a[key], b[key]) for key in a)
    learned = trainer.denoiser.adapter.tensors()
    assert any(not torch.equal(learned[key], a[key]) for key in a), "the average is not what is learned with"


def test_prodigy_goes_on_bitwise(folder, tmp_path):
    pytest.importorskip("prodigyopt", reason="prodigyopt is not installed")
    own = {"optimizer": "prodigy", "lr": 1.0}
    train(folder, tmp_path / "whole", steps=4, **own)
    train(folder, tmp_path / "parts", steps=2, **own)
    train(folder, tmp_path / "parts", steps=4, **own)
    assert losses(tmp_path / "whole") == losses(tmp_path / "parts")


# compile


@pytest.fixture
def fresh():
    """torch keeps what was compiled by a function's code."""
    dynamo = pytest.importorskip("torch._dynamo", reason="torch has no compiler")
    dynamo.reset()
    yield
    dynamo.reset()


def test_compiled_blocks_train_the_same(folder, tmp_path, monkeypatch, fresh):
    """By a backend that runs each graph as it is: that all of a kind become graphs, and nothing else is changed. Of one
    kind, since tracing takes its time."""
    graphs = []

    def as_it_is(graph: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> Any:
        graphs.append(graph)
        return graph.forward

    real = compiled.compile_blocks
    monkeypatch.setattr(trainer_module, "compile_blocks", lambda unet, device: real(unet, device, as_it_is))
    monkeypatch.setattr(compiled, "lacking", lambda device: "")
    monkeypatch.setattr(compiled, "BLOCKS", ("FeedForward",))
    train(folder, tmp_path / "compiled", steps=1, compile=True)
    assert losses(tmp_path / "compiled") == losses(plain(folder))[:1]
    assert len(graphs) > 16, "torch gave up compiling after some of the 16 blocks"


def test_a_residual_block_is_compiled_whole(folder, fresh):
    unet = load_parts(
        folder / "small-eps.safetensors", folder / "small-eps.yaml", torch.device("cpu"), torch.float32
    ).unet.requires_grad_(False)
    block = next(module for module in unet.modules() if type(module).__name__ == "ResBlock")
    graphs = []

    def as_it_is(graph: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> Any:
        graphs.append(graph)
        return graph.forward

    x = torch.randn(1, block.channels, 8, 8, requires_grad=True)
    emb = torch.randn(1, block.emb_channels)
    expected = block(x, emb)
    (wanted,) = torch.autograd.grad(expected.square().sum(), x)
    assert compiled.compile_blocks(block, torch.device("cpu"), as_it_is) == 1
    found = block(x, emb)
    (gradient,) = torch.autograd.grad(found.square().sum(), x)
    assert torch.equal(found, expected)
    assert torch.equal(gradient, wanted)
    assert len(graphs) == 2, "the trial, and the block as one graph"


def test_a_compiler_that_is_missing_or_fails_is_said(folder, tmp_path, monkeypatch, fresh):
    with monkeypatch.context() as absent:
        absent.setenv("PATH", str(tmp_path))
        absent.delenv("CXX", raising=False)
        with pytest.raises(TrainingError, match=r"a C\+\+ compiler .* leave compile off"):
            train(folder, tmp_path / "absent", compile=True)

    def broken(graph: Any, inputs: Any) -> Any:
        raise OSError("no space left for objects")

    monkeypatch.setattr(compiled, "lacking", lambda device: "")
    with pytest.raises(TrainingError, match=r"does not work here .*no space left for objects"):
        compiled.compile_blocks(torch.nn.Linear(2, 2), torch.device("cpu"), broken)
    with pytest.raises(ConfigError, match=r"storage: got 'fp8', expected auto with compile"):
        config(folder, tmp_path, compile=True, storage="fp8")
    with pytest.raises(ConfigError, match=r"checkpointing: got True, expected nothing with compile"):
        config(folder, tmp_path, compile=True, checkpointing=True)
