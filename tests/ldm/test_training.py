"""Training an adapter over the small checkpoint: what is trained, what is not, and that it can be gone on with."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open

pytest.importorskip("ldm", reason="stable-diffusion-sdkit is not installed")
pytest.importorskip("accelerate", reason="accelerate is not installed")

from lib_ipadapter.adapters.adapter import Adapter
from lib_ipadapter.attention.session import COND, ImagePrompt, Session
from lib_ipadapter.errors import WrongBase
from lib_ipadapter.training import objective
from lib_ipadapter.training.run_folder import ADAPTER
from lib_ipadapter.training.trainer import Trainer
from tests.ldm.trainings import PICTURES, ROOT, config, forked, losses, plain, tensors, train, write_data
from tests.training_pictures import tar


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_data(tmp_path_factory.mktemp("small"))


@pytest.mark.parametrize("variant", ["base", "plus", "full"])
def test_each_variant_trains_and_its_file_is_one_that_we_read(folder, tmp_path, variant):
    path = train(folder, tmp_path, variant=variant)
    adapter = Adapter.load(path)
    assert adapter.spec.variant == variant
    assert len(adapter.spec.widths) == 16
    held = tensors(path)
    assert all(value.dtype == torch.float32 and value.isfinite().all() for value in held.values())
    with safe_open(str(path), "pt") as file:
        header = file.metadata()
    assert header["steps"] == "3"
    assert header["dataset_size"] == str(PICTURES)
    assert header["variant"] == variant
    assert len(header["base_sha256"]) == len(header["encoder_sha256"]) == 64


def test_the_base_is_bit_for_bit_what_it_was_and_only_the_adapter_has_gradients(folder, tmp_path):
    trainer = Trainer(config(folder, tmp_path))
    parts = trainer.base.parts
    modules = {"unet": parts.unet, "autoencoder": parts.autoencoder, "text": parts.text}
    before = {f"{n}.{k}": v.clone() for n, m in modules.items() for k, v in m.state_dict().items()}
    start = {name: value.clone() for name, value in trainer.denoiser.adapter.state_dict().items()}
    trainer.run()
    after = {f"{n}.{k}": v for n, m in modules.items() for k, v in m.state_dict().items()}
    assert all(torch.equal(before[key], after[key]) for key in before)
    assert all(p.grad is None and not p.requires_grad for m in modules.values() for p in m.parameters())
    now = trainer.denoiser.adapter.state_dict()
    assert all(not torch.equal(start[name], now[name]) for name in start), "a parameter that did not move"
    assert not parts.unet._forward_pre_hooks
    assert {name.split(".")[0] for name in dict(trainer.denoiser.named_parameters())} == {"adapter"}


def test_k_and_v_begin_as_the_layers_own(folder, tmp_path):
    trainer = Trainer(config(folder, tmp_path))
    for layer, key, value in zip(trainer.base.layers, trainer.adapter.to_k, trainer.adapter.to_v, strict=True):
        assert torch.equal(key, layer.module.to_k.weight)
        assert torch.equal(value, layer.module.to_v.weight)
    trainer.denoiser.remove()


@pytest.mark.parametrize("variant", ["base", "plus"])
def test_what_is_trained_is_what_a_generation_runs(folder, tmp_path, variant):
    """The prediction inside the training equals that of a Session with the saved file."""
    trainer = Trainer(config(folder, tmp_path, variant=variant))
    trainer.run()
    draw = torch.Generator().manual_seed(0)
    x, features = (
        torch.randn(2, 4, 8, 8, generator=draw),
        trainer.feed.nothing.repeat(2, *[1] * (trainer.feed.nothing.ndim - 1)),
    )
    features = features + torch.randn(features.shape, generator=draw)
    times, text = torch.tensor([10, 700]), trainer.base.text(["one", "two"])
    denoiser = objective.Denoiser(trainer.base, trainer.denoiser.adapter, concat=False)
    with torch.no_grad():
        trained = denoiser(x, times, text, None, features)
    denoiser.remove()
    adapter = Adapter.load(tmp_path / "ip_adapter.safetensors")
    tokens = adapter.tokens(features).detach()
    prompt = ImagePrompt(adapter, tokens, torch.ones(tokens.shape[1]))
    session = Session([prompt])
    with session.attached(trainer.base.unet), torch.no_grad():
        session.begin_step([COND, 1], 0.0)
        used = trainer.base.predict(x, times, text)
        session.end_step()
        alone = trainer.base.predict(x, times, text)
    torch.testing.assert_close(trained, used, rtol=1e-4, atol=1e-5)
    assert (trained - alone).abs().max() > 1e-3


@pytest.mark.parametrize(
    ("steps", "fields"), [(3, {"ema": 0.9, "variant": "plus", "accumulate": 2}), (6, {"workers": 2})], ids=str
)
def test_going_on_is_bitwise_what_not_stopping_is(folder, tmp_path, steps, fields):
    """Each goes on shortly before all pictures were seen once."""
    begun = 2 * steps // 3
    whole = train(folder, tmp_path / "whole", steps=steps, **fields)
    train(folder, tmp_path / "parts", steps=begun, save_every=begun // 2, **fields)
    part = train(folder, tmp_path / "parts", steps=steps, **fields)
    assert losses(tmp_path / "whole") == losses(tmp_path / "parts")
    a, b = tensors(whole), tensors(part)
    assert all(torch.equal(a[key], b[key]) for key in a)


@pytest.mark.parametrize(
    ("variant", "caches"),
    [("base", ("cache",)), ("base", ("cache_text",)), ("base", ("cache", "cache_text")), ("plus", ("cache",))],
    ids=str,
)
def test_caches_change_nothing_bit_for_bit(folder, tmp_path, variant, caches):
    """On the CPU every row is encoded alone, whatever it is beside; half of the texts are dropped."""
    own = {"variant": variant, "drop_text": 0.5, "cache_half": False, "batch": 3}
    live = plain(folder, **own)
    cached = train(folder, tmp_path / "cached", **own, **dict.fromkeys(caches, True))
    assert losses(tmp_path / "cached") == losses(live)
    ours, theirs = tensors(cached), tensors(live / ADAPTER)
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)


def test_a_second_training_takes_all_from_the_caches(folder, tmp_path, monkeypatch):
    own = {"cache": True, "cache_text": True, "cache_dir": str(tmp_path / "cache"), "workers": 1}
    train(folder, tmp_path / "first", **own)
    trainer = Trainer(config(folder, tmp_path / "second", **own))

    def asked(*args: Any) -> Any:
        raise AssertionError("an encoder was asked for what is cached")

    for owner, name in ((trainer.base, "text"), (trainer.base, "moments"), (trainer.feed.encoder, "encode_pixels")):
        monkeypatch.setattr(owner, name, asked)
    trainer.run()
    assert losses(tmp_path / "first") == losses(tmp_path / "second")


def test_another_caption_is_another_cache_of_texts(folder, tmp_path):
    data = tmp_path / "data"
    shutil.copytree(folder / "data", data)
    own = {"cache_text": True, "cache_dir": str(tmp_path / "cache"), "data": str(data), "drop_text": 0.0, "steps": 2}
    train(folder, tmp_path / "first", **own)
    for path in data.glob("*.txt"):
        path.write_text(path.read_text().replace("picture", "drawing"))
    train(folder, tmp_path / "second", **own)
    assert losses(tmp_path / "first") != losses(tmp_path / "second")
    train(folder, tmp_path / "live", data=str(data), drop_text=0.0, steps=2)
    assert losses(tmp_path / "live") == losses(tmp_path / "second")


def test_gradient_checkpointing_changes_nothing(folder, tmp_path):
    train(folder, tmp_path / "checkpointed", checkpointing=True)
    np.testing.assert_allclose(losses(plain(folder)), losses(tmp_path / "checkpointed"), rtol=1e-5)


def test_v_prediction_and_bf16(folder, tmp_path):
    v = str(folder / "small-v.safetensors")
    train(folder, tmp_path / "v", base=v)
    train(folder, tmp_path / "v16", base=v, precision="bf16")
    exact, half = losses(tmp_path / "v"), losses(tmp_path / "v16")
    assert exact != losses(plain(folder))
    np.testing.assert_allclose(exact, half, rtol=0.05)


def test_two_processes_do_what_one_with_twice_the_batch_does(folder, tmp_path):
    """By the command line under torch's own launcher."""
    path = tmp_path / "two.yaml"
    path.write_text(json.dumps(config(folder, tmp_path / "two", batch=2, steps=4).as_dict()))  # JSON is YAML
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    done = subprocess.run(
        [sys.executable, *launcher, "-m", "lib_ipadapter", "train", str(path)], cwd=ROOT, capture_output=True,
        text=True, timeout=300, env={**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    train(folder, tmp_path / "one", batch=4, steps=4)
    np.testing.assert_allclose(losses(tmp_path / "two"), losses(tmp_path / "one"), rtol=1e-5)
    a, b = (
        tensors(tmp_path / "two" / "ip_adapter.safetensors"),
        tensors(tmp_path / "one" / "ip_adapter.safetensors"),
    )
    for key in a:
        torch.testing.assert_close(a[key], b[key], rtol=1e-3, atol=2e-4)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the system has no fork")
def test_uneven_shards_a_slow_process_and_a_lost_one_change_no_loss(folder, tmp_path):
    """Three processes over shards of 6, 1 and 3 samples, two of which are broken: one is slow, another is killed in
    step 4; all are started again, and go on from step 2. The losses are those of one process with their batches
    together."""
    held = [(folder / "data" / f"{i:02}.png", f"picture {i}") for i in range(PICTURES)]
    files = [{f"{i}.png": path.read_bytes(), f"{i}.txt": text} for i, (path, text) in enumerate(held)]
    files[8] = {"8.png": files[8]["8.png"][:200], "8.txt": "cut short"}  # the other broken one is picture 3
    shards = tmp_path / "shards"
    shards.mkdir()
    for name, part in (("a", files[:6]), ("b", files[6:7]), ("c", files[7:])):
        tar(shards / f"{name}.tar", {key: value for sample in part for key, value in sample.items()})
    own = {"data": str(shards), "steps": 5, "save_every": 2}
    one = config(folder, tmp_path / "one", batch=3, **own).as_dict()
    many = config(folder, tmp_path / "many", batch=1, **own).as_dict()
    runs = [
        {"config": one, "world": 1},
        {"config": many, "world": 3, "slow": 2, "lost": [1, 4]},
        {"config": many, "world": 3, "slow": 0},
    ]
    single, lost, again = forked(runs)
    assert single == [0]
    assert lost[1] == -signal.SIGKILL
    assert 0 not in lost, "a process trained on without the one that was lost"
    assert again == [0, 0, 0]
    steps = [json.loads(line)["step"] for line in (tmp_path / "many" / "log.jsonl").read_text().splitlines()]
    assert steps == [1, 2, 3, 4, 5]
    np.testing.assert_allclose(losses(tmp_path / "many"), losses(tmp_path / "one"), rtol=1e-5)
    a, b = (tensors(tmp_path / name / "ip_adapter.safetensors") for name in ("many", "one"))
    # Adam divides by the gradient's size, so that rounding may turn a step where there is hardly any gradient.
    assert all((a[key] - b[key]).abs().mean() < 1e-6 for key in a)


def test_going_on_from_a_file(folder, tmp_path):
    first = plain(folder) / ADAPTER
    trainer = Trainer(config(folder, tmp_path / "second", init=str(first)))
    held = tensors(first)
    assert all(torch.equal(held[key], value) for key, value in trainer.adapter.tensors().items())
    trainer.run()


def test_beginning_with_another_variants_layers(folder, tmp_path):
    first = tensors(plain(folder) / ADAPTER)
    layers = str(plain(folder) / ADAPTER)
    begun = Trainer(config(folder, tmp_path / "second", variant="plus", init_layers=layers))
    taken = begun.adapter.tensors()
    assert all(torch.equal(first[key], value) for key, value in taken.items() if key.startswith("ip_adapter"))
    fresh = Trainer(config(folder, tmp_path / "third", variant="plus")).adapter.tensors()
    assert all(torch.equal(fresh[key], value) for key, value in taken.items() if key.startswith("image_proj"))
    assert fresh.keys() == taken.keys()
    with pytest.raises(WrongBase, match=r"wide\.safetensors"):
        Trainer(config(folder, tmp_path, init_layers=str(folder / "wide.safetensors")))


def test_an_adapter_of_another_base_or_variant_cannot_be_gone_on_with(folder, tmp_path):
    with pytest.raises(WrongBase, match=r"wide\.safetensors"):
        Trainer(config(folder, tmp_path, init=str(folder / "wide.safetensors")))
    with pytest.raises(WrongBase, match="variant plus"):
        Trainer(config(folder, tmp_path, init=str(folder / "plus.safetensors")))


def test_all_dropped_trains_towards_the_unconditional(folder, tmp_path):
    """With the image always dropped, what the pictures are for the encoder does not matter."""
    own = {"steps": 2, "drop_image": 1.0, "drop_text": 0.0, "drop_both": 0.0}
    train(folder, tmp_path / "a", **own)
    other = folder / "encoders" / "other.safetensors"
    state = tensors(folder / "encoders" / "tiny-vit.safetensors")
    from safetensors.torch import save_file

    save_file({key: value * 1.5 for key, value in state.items()}, str(other))
    other.with_suffix(".json").write_bytes((folder / "encoders" / "tiny-vit.json").read_bytes())
    train(folder, tmp_path / "b", **own, encoder=str(other))
    train(folder, tmp_path / "c", encoder=str(other), steps=2)
    assert losses(tmp_path / "a") == losses(tmp_path / "b")
    assert losses(tmp_path / "c") != losses(plain(folder))[:2]


def test_concat_trains_the_projection_alone(folder, tmp_path):
    path = train(folder, tmp_path, attention="concat")
    held = tensors(path)
    assert set(held) == {f"image_proj.{key}" for key in ("proj.weight", "proj.bias", "norm.weight", "norm.bias")}
    with safe_open(str(path), "pt") as file:
        assert file.metadata()["attention"] == "concat"


@pytest.mark.parametrize("attention", ["decoupled", "concat"])
def test_parameters_in_half_precision_over_a_base_in_another(folder, tmp_path, attention):
    """As DeepSpeed keeps them."""
    trainer = Trainer(config(folder, tmp_path, attention=attention))
    batch = next(trainer.feed.batches(0))
    denoiser = trainer.denoiser
    arguments = (torch.randn(2, 4, 8, 8), torch.tensor([5, 700]), trainer.base.text(batch.captions), None)
    exact = denoiser(*arguments, batch.features)
    denoiser.adapter.to(torch.bfloat16)
    half = denoiser(*arguments, batch.features)
    half.square().mean().backward()
    assert all(parameter.grad is not None for parameter in denoiser.parameters())
    torch.testing.assert_close(half, exact, rtol=0.1, atol=0.1)
    denoiser.remove()


def test_gradients_are_clipped(folder, tmp_path):
    """Clipped to next to nothing they are far below Adam's epsilon, so that the weights stay where they are."""

    def moved(**fields):
        trainer = Trainer(config(folder, tmp_path / str(fields), steps=2, weight_decay=0.0, **fields))
        before = {key: value.clone() for key, value in trainer.adapter.tensors().items()}
        after = tensors(trainer.run().adapter)
        return max(float((after[key] - before[key]).abs().max()) for key in before)

    free = moved(max_norm=0.0)
    assert free > 1e-3
    assert moved(max_norm=1.0) > 1e-3
    assert moved(max_norm=1e-12) < 1e-3 * free
