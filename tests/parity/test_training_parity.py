"""Training over a folder that diffusers saved, and the trained file in diffusers' own loader."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from lib_ipadapter.adapters.adapter import Adapter
from lib_ipadapter.attention.session import ImagePrompt, Session
from lib_ipadapter.errors import FileError
from lib_ipadapter.training.base import Sizes, Text, open_base
from lib_ipadapter.training.config import TrainConfig
from lib_ipadapter.training.trainer import Trainer
from tests.parity.folders import write
from tests.webui.networks import write_encoder

diffusers = pytest.importorskip("diffusers", reason="diffusers is not installed")
pytest.importorskip("accelerate", reason="accelerate is not installed")

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("models")
    write(root / "sd15", "sd15")
    write(root / "sdxl", "sdxl", "v_prediction")
    write_encoder(root / "encoders")
    data = root / "data"
    data.mkdir()
    rng = np.random.default_rng(0)
    for i in range(6):
        Image.fromarray(rng.integers(0, 256, (70, 90, 3)).astype(np.uint8)).save(data / f"{i}.png")
        (data / f"{i}.txt").write_text(f"picture {i}")
    return root


def train(root: Path, kind: str, out: Path, **fields: Any) -> Trainer:
    values = {
        "base": str(root / kind), "data": str(root / "data"), "out": str(out), "resolution": 64, "steps": 2, "batch": 2,
        "encoder": str(root / "encoders" / "tiny-vit.safetensors"), "workers": 0, "tensorboard": False, "lr": 1e-3,
        "resampler_dim": 64, "resampler_heads": 1, "resampler_depth": 4,  # the only depth that diffusers reads
    }  # fmt: skip
    trainer = Trainer(TrainConfig.parse({**values, **fields}))
    trainer.run()
    return trainer


def losses(out: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (out / "log.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("variant", ["base", "plus"])
def test_diffusers_loads_what_was_trained_and_predicts_the_same(root, tmp_path, variant):
    train(root, "sd15", tmp_path, variant=variant)
    pipeline = diffusers.StableDiffusionPipeline.from_pretrained(root / "sd15", local_files_only=True)
    pipeline.load_ip_adapter(
        str(tmp_path), subfolder="", weight_name="ip_adapter.safetensors", image_encoder_folder=None
    )
    pipeline.set_ip_adapter_scale(1.0)
    adapter = Adapter.load(tmp_path / "ip_adapter.safetensors")
    draw = torch.Generator().manual_seed(0)
    shape = (2, 48) if variant == "base" else (2, 17, 128)
    # In float64, where rounding is no matter of the processor; K' and V' alone are multiplied in float32,
    # and the random UNet makes 1e-7 there up to 3e-6 in the end.
    features, x, text = (
        torch.randn(size, generator=draw, dtype=torch.float64) for size in (shape, (2, 4, 8, 8), (2, 77, 64))
    )
    times = torch.tensor([3, 800])
    with torch.no_grad():
        theirs = pipeline.unet.double()(x, times, text, added_cond_kwargs={"image_embeds": [features[:, None]]}).sample
    unet = open_base(root / "sd15", None, CPU, torch.float32).unet.double()
    tokens = adapter.projection.double()(features).detach()
    session = Session([ImagePrompt(adapter, tokens, torch.ones(tokens.shape[1]))])
    with session.attached(unet), torch.no_grad():
        session.begin_step([0, 1], 0.0)
        ours = unet(x, times, text).sample
    assert (ours - theirs).norm() <= 2e-5 * theirs.norm()
    with torch.no_grad():
        alone = unet(x, times, text).sample
        # The training's own way in, in float32, and the adapter's
        predicted = open_base(root / "sd15", None, CPU, torch.float32).predict(x.float(), times, Text(text.float()))
        again = Adapter.load(tmp_path / "ip_adapter.safetensors").tokens(features.float())
    assert (alone - ours).abs().max() > 1e-4
    assert (predicted - alone).norm() <= 1e-4 * alone.norm()
    assert (again - tokens).norm() <= 1e-5 * tokens.norm()


def test_texts_are_encoded_as_the_pipelines_do(root):
    captions = ["a red star", ""]
    base = open_base(root / "sd15", None, CPU, torch.float32)
    pipeline = diffusers.StableDiffusionPipeline.from_pretrained(root / "sd15", local_files_only=True)
    with torch.no_grad():
        theirs, _ = pipeline.encode_prompt(captions, CPU, 1, False)
    torch.testing.assert_close(base.text(captions).tokens, theirs)
    large = open_base(root / "sdxl", None, CPU, torch.float32)
    pipeline = diffusers.StableDiffusionXLPipeline.from_pretrained(root / "sdxl", local_files_only=True)
    with torch.no_grad():
        theirs, _, pooled, _ = pipeline.encode_prompt(captions, device=CPU, do_classifier_free_guidance=False)
    text = large.text(captions)
    torch.testing.assert_close(text.tokens, theirs)
    torch.testing.assert_close(text.pooled, pooled)
    assert (large.v, large.resolution, base.v, base.resolution) == (True, 1024, False, 512)


def test_sdxl_gets_its_size_conditions(root, tmp_path):
    trainer = train(root, "sdxl", tmp_path)
    batch = next(trainer.feed.batches(0))
    # 90x70 pictures: the shorter edge becomes 64, so 82x64, of which 9 are cut at the left
    assert batch.sizes.ids[0].tolist() == [70, 90, 0, 9, 64, 64]
    base, draw = trainer.base, torch.Generator().manual_seed(0)
    x, times, text = (
        torch.randn(2, 4, 8, 8, generator=draw),
        torch.tensor([3, 800]),
        base.text(["one", "two"]),
    )
    other = Sizes(batch.sizes.ids * 8)
    with torch.no_grad():
        assert not torch.equal(base.predict(x, times, text, batch.sizes), base.predict(x, times, text, other))
    assert np.isfinite(losses(tmp_path)).all()


def test_checkpointing_changes_nothing(root, tmp_path):
    train(root, "sdxl", tmp_path / "plain")
    train(root, "sdxl", tmp_path / "checkpointed", checkpointing=True)
    np.testing.assert_allclose(losses(tmp_path / "plain"), losses(tmp_path / "checkpointed"), rtol=1e-5)


def test_a_folder_of_something_else_is_refused(tmp_path):
    with pytest.raises(FileError, match=r"unet/config\.json"):
        open_base(tmp_path, None, CPU, torch.float32)
