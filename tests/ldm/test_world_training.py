"""The small world's training from nothing: a few steps on a few pictures."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

pytest.importorskip("ldm", reason="stable-diffusion-sdkit is not installed")

from examples.small_world import data, export, fine, fit, loop, models, towers, train
from examples.small_world.drawer import Drawer
from examples.small_world.muon import Muon, orthogonal
from lib_ipadapter.adapters.adapter import Adapter
from lib_ipadapter.adapters.file import open_adapter
from lib_ipadapter.encoders.clip import ImageEncoder
from lib_ipadapter.errors import ConfigError, DataError, TrainingError
from lib_ipadapter.evaluation.items import read_items
from lib_ipadapter.standalone.text import tokenize
from lib_ipadapter.training.config import TrainConfig
from lib_ipadapter.training.yaml_file import read_yaml
from tests.small_world import write_stand_in

ROOT = Path(__file__).resolve().parents[2]
FEW = 8


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "PICTURES", FEW)


def spread(run: Path) -> None:
    """An autoencoder's state whose latents have neither mean 0 nor deviation 1."""
    torch.manual_seed(5)
    model = models.make_autoencoder()
    with torch.no_grad():
        model.quant_conv.bias += torch.arange(8.0) - 2
        model.quant_conv.weight[:4] *= torch.tensor([1.0, 2, 3, 4])[:, None, None, None]
    run.mkdir(parents=True, exist_ok=True)
    torch.save({"ema": model.state_dict()}, run / "autoencoder.state.pt")


def words(run: Path) -> None:
    torch.manual_seed(6)
    torch.save({"ema": towers.Named(models.make_clip(), 64).state_dict()}, run / "words.state.pt")


def weights(run: Path, name: str) -> dict[str, torch.Tensor]:
    held: dict[str, torch.Tensor] = torch.load(run / f"{name}.state.pt")["model"]
    return held


def test_texts_are_encoded_up_to_their_end():
    torch.manual_seed(0)
    clip = models.make_clip().eval()
    texts = ["a red circle", "a large plain heart at the top and a small ring on a mint background", ""]
    with torch.no_grad():
        wanted = clip.encode_text(tokenize(texts, pad_with_end=False))
        torch.testing.assert_close(towers.encode_text(clip, texts), wanted, rtol=1e-5, atol=1e-5)


def test_attributes_of_pictures_of_one_thing_count():
    torch.manual_seed(0)
    named = towers.Named(models.make_clip(), 96)
    scenes = [data.scene_of(1, i) for i in range(30)]
    assert {len(scene.things) for scene in scenes} == {1, 2}
    said = [towers.shown(scene) for scene in scenes]
    seen = torch.randn(30, 96)
    loss = named.loss(seen, said)
    alone = torch.tensor([len(scene.things) == 1 for scene in scenes])
    seen[~alone] += 10
    assert torch.equal(named.loss(seen, said), loss)
    seen[alone] += 10
    assert not torch.equal(named.loss(seen, said), loss)


def test_the_text_tower_learns_to_say_what_captions_name(tmp_path, monkeypatch):
    """Where the UNet reads it, at a text's end and behind; the picture tower stays."""
    monkeypatch.setattr(loop, "PICTURES", 64)
    torch.manual_seed(0)
    clip = models.make_clip()
    torch.save({"ema": clip.state_dict()}, tmp_path / "clip.state.pt")
    texts = [data.caption(data.scene_of(1, i)) for i in range(40) if len(data.scene_of(1, i).things) == 1]
    tokens = tokenize(texts, pad_with_end=False)
    said = [data.named(text) for text in texts]

    @torch.no_grad()
    def loss(named: towers.Named, behind: int) -> float:
        read = towers.words_read(named.clip, tokens)
        return float(named.loss(towers.at(read, tokens.argmax(-1) + behind), said))

    def trained(steps: int) -> towers.Named:
        (tmp_path / "words.state.pt").unlink(missing_ok=True)
        towers.train_words(tmp_path, steps)
        named = towers.Named(models.make_clip(), 64)
        named.load_state_dict(weights(tmp_path, "words"))
        return named

    before, after = trained(1), trained(25)
    for behind in (0, 5, 40):
        assert loss(after, behind) < 0.8 * loss(before, behind)
    fresh, state = clip.state_dict(), after.clip.state_dict()
    changed = {key.split(".")[0] for key in fresh if not torch.equal(fresh[key], state[key])}
    assert "visual" not in changed
    assert {"token_embedding", "transformer", "ln_final"} <= changed


def test_parts_that_begin_side_by_side_may_both_draw_the_pictures(tmp_path, few, monkeypatch):
    def draw(index: int) -> Image.Image:
        if index == 5:  # another process begins now, and is done before this one
            with monkeypatch.context() as other:
                other.setattr(os, "getpid", lambda: -1)
                assert np.array_equal(loop.pictures(tmp_path)[7], np.asarray(loop.sample(7)))
        return loop.sample(index)

    drawn = loop.pictures(tmp_path, draw)
    assert all(np.array_equal(drawn[index], np.asarray(loop.sample(index))) for index in range(FEW))
    assert [path.name for path in tmp_path.iterdir()] == ["pictures.npy"]


def test_drawing_that_is_stopped_leaves_nothing(tmp_path, few):
    def stopped(index: int) -> Image.Image:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        loop.pictures(tmp_path, stopped)
    assert not list(tmp_path.iterdir())


@torch.no_grad()
def test_latents_are_normal_and_decoded_as_before(tmp_path, few):
    spread(tmp_path)
    latents, model = train.normal_latents(tmp_path)
    raw = models.make_autoencoder()
    raw.load_state_dict(loop.trained(tmp_path, "autoencoder"))
    torch.testing.assert_close(latents.mean((0, 2, 3)), torch.zeros(4), atol=1e-4, rtol=0)
    torch.testing.assert_close(latents.std((0, 2, 3)), torch.ones(4), atol=1e-4, rtol=0)
    pixels = loop.values(loop.pictures(tmp_path)[:3])
    torch.testing.assert_close(model.encode(pixels), latents[:3], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(model.decode(latents[:3]), raw.decode(raw.encode(pixels)), rtol=1e-4, atol=1e-4)
    # Those that an adapter is trained on are those that the UNet was.
    assert float(model.posterior(pixels)[1].max()) < 1e-3


@pytest.mark.parametrize(("weighting", "power"), [("none", 0), ("debiased", 0.5)])
def test_a_timesteps_loss_counts_by_its_noise(weighting, power):
    """Of a model that predicts nothing the loss is 1 at every timestep, without the weight."""

    class Silent(torch.nn.Module):
        def forward(self, x, times, context):
            self.times = times
            return torch.zeros_like(x)

    torch.manual_seed(0)
    model, rng = Silent(), np.random.default_rng(0)
    latents = torch.zeros(4, 4, 32, 32)
    loss_of = train.denoising(model, latents, models.make_clip(), lambda index, rng: "a ring", weighting)
    snr = models.schedule() / (1 - models.schedule())
    shares = (5 / snr).clamp(max=1)
    mean = float((shares * snr**-power).sum() / shares.sum())
    losses = []
    for step in range(8):
        losses.append(float(loss_of(step, np.arange(4), rng)))
        assert losses[-1] == pytest.approx(float((snr**-power)[model.times].mean()) / mean, rel=0.05)
    assert (max(losses) > 2 * min(losses)) == bool(power)


@pytest.mark.parametrize("shape", [(64, 64), (32, 48), (96, 32), (32, 16, 3, 3), (200, 8)])
def test_a_step_of_muon_is_nearly_orthogonal(shape):
    """The published iteration, in float64, is what it is compared with: long matrices take a way of their own."""
    torch.manual_seed(0)
    scales = torch.logspace(0, -2, shape[0]).view(-1, *[1] * (len(shape) - 1))
    weight = torch.randn(shape) * scales
    x = weight.double().flatten(1)
    x = x / x.norm()
    for _ in range(5):
        gram = x @ x.T
        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
    step = orthogonal(weight)
    torch.testing.assert_close(step.flatten(1).double(), x, rtol=1e-3, atol=1e-4)
    values = torch.linalg.svdvals(step.flatten(1))
    assert values.max() < 1.3
    assert values.median() > 0.6


def test_muon_remembers_and_decays():
    weight = torch.nn.Parameter(torch.eye(4, 6))
    optimizer = Muon([weight], lr=0.5)
    first, second = torch.randn(4, 6), torch.randn(4, 6)
    weight.grad = first.clone()
    optimizer.step()
    # Nesterov's: the momentum is 0.05 of the gradient, and the gradient counts for 0.05 once more.
    expected = torch.eye(4, 6) * (1 - 0.5 * 0.01) - 0.5 * orthogonal(first)
    torch.testing.assert_close(weight.detach(), expected)
    weight.grad = second.clone()
    optimizer.step()
    momentum = 0.95 * 0.05 * first + 0.05 * second
    expected = expected * (1 - 0.5 * 0.01) - 0.5 * orthogonal(0.05 * second + 0.95 * momentum)
    torch.testing.assert_close(weight.detach(), expected)
    assert torch.equal(second, weight.grad)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, torch.Tensor]:
    """The base after two steps of one process."""
    folder = tmp_path_factory.mktemp("whole")
    spread(folder)
    words(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "PICTURES", FEW)
        assert train.main(["base", "--folder", str(folder), "--steps", "2"]) == 0
    return weights(folder, "base")


def test_going_on_is_what_not_stopping_is(tmp_path, few, monkeypatch, whole):
    monkeypatch.setattr(loop, "SAVE_EVERY", 1)
    run = loop.Training.run
    spread(tmp_path / "stopped")
    words(tmp_path / "stopped")

    def stopped(self, size, loss_of):
        def until(step, indices, rng):
            if step == 1:
                raise KeyboardInterrupt
            return loss_of(step, indices, rng)

        return run(self, size, until)

    monkeypatch.setattr(loop.Training, "run", stopped)
    with pytest.raises(KeyboardInterrupt):
        train.train_base(tmp_path / "stopped", 2)
    monkeypatch.setattr(loop.Training, "run", run)
    assert torch.load(tmp_path / "stopped" / "base.state.pt")["step"] == 1
    train.train_base(tmp_path / "stopped", 2)
    gone_on = weights(tmp_path / "stopped", "base")
    assert all(torch.equal(whole[key], gone_on[key]) for key in whole)


def test_two_processes_are_one(tmp_path, whole):
    two = tmp_path / "two"
    spread(two)
    words(two)
    script = tmp_path / "few.py"
    script.write_text(
        f"from examples.small_world import loop, train\nloop.PICTURES = {FEW}\nraise SystemExit(train.main())\n"
    )
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [sys.executable, *launcher, str(script), "base", "--folder", str(two), "--steps", "2"], cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    trained = weights(two, "base")
    # Adam divides by the gradient's size, so that rounding may turn a step where there is hardly any gradient.
    for key, value in whole.items():
        assert (value - trained[key]).abs().mean() < 1e-5, key


def test_a_part_asks_for_those_before_it(tmp_path, few, capsys):
    assert train.main(["decoder", "--folder", str(tmp_path)]) == 2
    assert "autoencoder.state.pt" in capsys.readouterr().err
    with pytest.raises(TrainingError, match="words first"):
        train.train_base(tmp_path, 1)


def test_a_resampler_is_fitted_to_the_base_adapters_tokens(tmp_path):
    weights = write_stand_in(tmp_path / "weights")
    export.write_training(tmp_path / "data", 8)
    config = TrainConfig.parse({
        **read_yaml(fit.PLUS), "data": str(tmp_path / "data"), "encoder": str(weights / models.CLIP_FILE.name),
    })  # fmt: skip
    start, out = weights / models.BASE_ADAPTER.name, tmp_path / "new" / "fitted.safetensors"
    hardly, well = (fit.fit(start, out, config, steps) for steps in (4, 600))
    assert well < 0.3 < hardly
    plus = Adapter.load(out)
    assert (plus.spec.variant, plus.spec.tokens) == ("plus", config.tokens)
    before, after = open_adapter(start).tensors(), open_adapter(out).tensors()
    layers = [key for key in before if key.startswith("ip_adapter.")]
    assert len(layers) == 32
    assert all(torch.equal(before[key], after[key]) for key in layers)
    # On a picture, what the base adapter says: each of its tokens four times.
    picture = data.sample(export.SEED, 3).picture.resize((64, 64))
    seen = ImageEncoder.load(weights / models.CLIP_FILE.name, torch.device("cpu")).encode(picture)
    base, fitted = Adapter.load(start).tokens(seen.pooled), plus.tokens(seen.penultimate)
    assert (fitted.unflatten(1, (4, 4)) - base[:, :, None]).pow(2).mean() < 0.1 * base.var()


def test_fitting_passes_over_broken_pictures_and_says_what_is_wrong(tmp_path, capsys):
    weights, out = write_stand_in(tmp_path / "weights"), tmp_path / "out.safetensors"
    export.write_training(tmp_path / "data", 4)
    (tmp_path / "data" / "00002.png").write_bytes(b"broken")
    given = {
        **read_yaml(fit.PLUS),
        "data": str(tmp_path / "data"),
        "encoder": str(weights / models.CLIP_FILE.name),
    }
    fit.fit(weights / models.BASE_ADAPTER.name, out, TrainConfig.parse(given), 1)
    assert out.is_file()
    with pytest.raises(ConfigError, match="multiple of the 4"):
        fit.fit(weights / models.BASE_ADAPTER.name, out, TrainConfig.parse({**given, "tokens": 6}), 1)
    for path in (tmp_path / "data").glob("*.png"):
        path.write_bytes(b"broken")
    with pytest.raises(DataError, match="no picture there can be read"):
        fit.fit(weights / models.BASE_ADAPTER.name, out, TrainConfig.parse(given), 1)
    assert fit.main([str(tmp_path / "none.safetensors"), str(out)]) == 2
    assert "none.safetensors" in capsys.readouterr().err


def test_regions_and_types_are_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever draws each half's own reference is always right, and never shows the other's."""
    export.write_held_out(tmp_path / "held-out", 6)
    weights = write_stand_in(tmp_path / "weights")
    items = read_items(tmp_path / "held-out")
    drawer = Drawer(weights, steps=2)
    drawn = fine.halves(drawer, items[0].load(), items[1].load(), 1)
    assert [half.size for half in drawn] == [(data.SIDE, data.SIDE)] * 2
    # Another reference in the right half changes that half more than the left one.
    other = fine.halves(drawer, items[0].load(), items[2].load(), 1)
    left, right = (
        abs(np.asarray(a, dtype=float) - np.asarray(b, dtype=float)).mean() for a, b in zip(drawn, other, strict=True)
    )
    assert right > 2 * left
    assert len(fine.types(drawer, items[:1], ["composition"])) == 2
    monkeypatch.setattr(fine, "halves", lambda drawer, left, right, seed: [left, right])
    for name, own, others, count in fine.regions(drawer, items):
        assert (own, others) == (("100 %", "0 %") if int(count) else ("-", "-")), name
        assert int(count) or name == "size"
