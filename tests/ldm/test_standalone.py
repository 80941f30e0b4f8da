"""The standalone host on the small checkpoint that the real WebUI is tested with."""

from __future__ import annotations

import builtins
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

pytest.importorskip("ldm", reason="stable-diffusion-sdkit is not installed")

from lib_ipadapter.adapters.adapter import Adapter
from lib_ipadapter.attention.session import ImagePrompt, Session, Timing
from lib_ipadapter.errors import (
    FileError,
    IPAdapterError,
    ModelError,
    UnitError,
    UnsafeFile,
    UnsupportedModel,
    WrongBase,
)
from lib_ipadapter.standalone import Standalone
from lib_ipadapter.standalone.sampler import Schedule, alphas_cumprod, ddim
from lib_ipadapter.standalone.text import tokenize
from tests.ldm.small import clip_tower, difference, noise_picture, write_all

SIZE, STEPS = (64, 64), 4


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_all(tmp_path_factory.mktemp("small"))


@pytest.fixture(scope="module")
def host(folder: Path) -> Standalone:
    return load(folder / "small-eps.safetensors")


def load(path: Path) -> Standalone:
    return Standalone.load(path, path.with_suffix(".yaml"))


def image_prompt(folder: Path, name: str = "base", seed: int = 0, **fields: Any) -> ImagePrompt:
    adapter = Adapter.load(folder / f"{name}.safetensors")
    draw = torch.Generator().manual_seed(seed)
    tokens = torch.randn(2, adapter.spec.tokens, adapter.spec.context, generator=draw)
    return ImagePrompt(adapter, tokens, torch.ones(adapter.spec.tokens), **fields)


def draw(host: Standalone, *prompts: ImagePrompt, **fields: Any) -> Image.Image:
    pictures = host.generate("a cat", "blurred", prompts, **{"steps": STEPS, "size": SIZE, "seed": 1, **fields})
    return pictures[0]


class LdmModel:
    """What ldm's own DDIMSampler asks of a model."""

    def __init__(self, host: Standalone) -> None:
        config = host.parts.config
        self.host, self.num_timesteps, self.device = host, config.timesteps, host.device
        self.parameterization = config.parameterization
        self.alphas_cumprod = alphas_cumprod(config)
        self.alphas_cumprod_prev = torch.cat([torch.ones(1), self.alphas_cumprod[:-1]])
        self.betas = 1 - self.alphas_cumprod / self.alphas_cumprod_prev

    def apply_model(self, x: torch.Tensor, t: torch.Tensor, context: torch.Tensor) -> torch.Tensor:
        return self.host.unet(x, t, context)

    def _coefficients(self, t: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        alpha = self.alphas_cumprod[t].view(-1, 1, 1, 1)
        return alpha.sqrt(), (1 - alpha).sqrt()

    def predict_eps_from_z_and_v(self, x: torch.Tensor, t: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        a, s = self._coefficients(t)
        return a * v + s * x

    def predict_start_from_z_and_v(self, x: torch.Tensor, t: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        a, s = self._coefficients(t)
        return a * x - s * v


@pytest.mark.parametrize("parameterization", ["eps", "v"])
@pytest.mark.parametrize("steps", [4, 7])
def test_ddim_is_ldms_own(folder: Path, parameterization: str, steps: int) -> None:
    from ldm.models.diffusion.ddim import DDIMSampler

    host = load(folder / f"small-{parameterization}.safetensors")
    cond, uncond = host.encode_text(["a cat"]), host.encode_text([""])
    x = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(3))
    theirs, _ = DDIMSampler(LdmModel(host)).sample(
        steps, 1, (4, 8, 8), cond, x_T=x, unconditional_guidance_scale=7.5, unconditional_conditioning=uncond,
        verbose=False,
    )  # fmt: skip
    with torch.no_grad():
        ours = ddim(host.unet, Session([]), Schedule.make(host.parts.config, steps), x, cond, uncond, 7.5)
    assert theirs.abs().max() > 0.1
    assert (ours - theirs).norm() / theirs.norm() < 1e-5


def test_schedule_is_ldms_own(host: Standalone) -> None:
    """The betas of ldm's register_schedule, from its own function."""
    from ldm.modules.diffusionmodules.util import make_beta_schedule

    betas = make_beta_schedule("linear", 1000, linear_start=0.00085, linear_end=0.0120)
    expected = torch.tensor(np.cumprod(1.0 - betas), dtype=torch.float32)
    torch.testing.assert_close(alphas_cumprod(host.parts.config), expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize("steps", [3, 1000])
def test_steps_at_which_ldm_would_fail(host: Standalone, steps: int) -> None:
    times = Schedule.make(host.parts.config, steps).timesteps
    assert max(times) < 1000
    assert len(times) in (steps, steps - 1)


def test_text_is_transformers_clip(folder: Path) -> None:
    host = load(folder / "small-clip.ckpt")
    texts = ["a photo of a cat, sitting", ""]
    ours = host.encode_text(texts)
    assert ours.shape == (2, 77, 256)
    with torch.no_grad():
        expected = clip_tower()(tokenize(texts, True)).last_hidden_state
    torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-5)
    assert difference(draw(host), draw(host, seed=2)) > 10


def test_text_is_ldms_open_clip(host: Standalone, monkeypatch: pytest.MonkeyPatch) -> None:
    import open_clip
    from ldm.modules.encoders.modules import FrozenOpenCLIPEmbedder

    create = open_clip.create_model_and_transforms
    monkeypatch.setattr(open_clip, "create_model_and_transforms", lambda arch, **_: create(arch))
    theirs = FrozenOpenCLIPEmbedder("ViT-S-32-alt", device="cpu", layer="penultimate")
    from tests.webui.checkpoints import state_dict

    prefix = "cond_stage_model.model."
    state = {k[len(prefix) :]: v.float() for k, v in state_dict("sd1").items() if k.startswith(prefix)}
    theirs.model.load_state_dict(state, strict=False)
    texts = ["a photo of a cat", "blurred, ugly"]
    with torch.no_grad():
        torch.testing.assert_close(host.encode_text(texts), theirs.encode(texts), rtol=1e-5, atol=1e-5)


def test_a_penultimate_text_tower_needs_no_last_block(host: Standalone) -> None:
    """The small world's checkpoint has none."""
    from lib_ipadapter.standalone.text import OpenClipText
    from tests.webui.checkpoints import state_dict

    prefix = "cond_stage_model."
    state = {k[len(prefix) :]: v.float() for k, v in state_dict("sd1").items() if k.startswith(prefix)}
    count = len({key.split(".")[3] for key in state if ".resblocks." in key})
    for key in [key for key in state if f".resblocks.{count - 1}." in key]:
        del state[key]
    tower = OpenClipText({"arch": "ViT-S-32-alt", "layer": "penultimate"}, state)
    assert torch.equal(tower.encode(["a photo of a cat"]), host.encode_text(["a photo of a cat"]))
    with pytest.raises(ModelError, match=f"resblocks.{count - 1}.*does not|does not fit"):
        OpenClipText({"arch": "ViT-S-32-alt", "layer": "last"}, state)


def test_tokens_end_and_are_cut() -> None:
    assert tokenize(["cat"], True)[0, :4].tolist() == [49406, 2368, 49407, 49407]
    assert tokenize(["cat"], False)[0, :4].tolist() == [49406, 2368, 49407, 0]
    with pytest.warns(UserWarning, match="90 tokens is cut after 75"):
        assert tokenize(["cat " * 90], True)[0, -1] == 49407


def test_the_same_seed_gives_the_same_picture(host: Standalone) -> None:
    first = draw(host)
    assert difference(first, draw(host)) == 0
    assert difference(first, draw(host, seed=2)) > 10


def test_text_and_guidance_matter(host: Standalone) -> None:
    first = draw(host)
    other = host.generate("a dog on a wall", "blurred", steps=STEPS, size=SIZE, seed=1)[0]
    assert difference(first, other) > 0
    assert difference(first, draw(host, cfg=1.0)) > 0


def test_batch_draws_the_next_seeds(host: Standalone, folder: Path) -> None:
    prompt = image_prompt(folder)
    pictures = host.generate("a cat", "blurred", [prompt], steps=STEPS, size=SIZE, seed=1, batch=2)
    assert difference(pictures[0], draw(host, prompt)) <= 1
    assert difference(pictures[1], draw(host, prompt, seed=2)) <= 1


def test_weight_zero_is_the_base_model(host: Standalone, folder: Path) -> None:
    base = draw(host)
    assert difference(base, draw(host, image_prompt(folder, weight=0.0))) == 0
    assert difference(base, draw(host, image_prompt(folder, weight=1.0))) > 0
    assert difference(base, draw(host)) == 0  # nothing is left on the model


def test_a_window_without_steps_is_the_base_model(host: Standalone, folder: Path) -> None:
    assert difference(draw(host), draw(host, image_prompt(folder, timing=Timing(start=0.9, end=0.95)))) == 0
    assert difference(draw(host), draw(host, image_prompt(folder, timing=Timing(end=0.5)))) > 0


def test_conditional_tokens_go_to_conditional_rows(host: Standalone, folder: Path) -> None:
    """With cfg = 1 only the cond tokens are seen; the uncond set may be anything."""
    prompt = image_prompt(folder)
    other = ImagePrompt(prompt.adapter, torch.stack([prompt.tokens[0], prompt.tokens[1] * 3]), prompt.token_weights)
    assert difference(draw(host, prompt, cfg=1.0), draw(host, other, cfg=1.0)) == 0
    assert difference(draw(host, prompt), draw(host, other)) > 0


def test_two_units_act(host: Standalone, folder: Path) -> None:
    one, two = image_prompt(folder), image_prompt(folder, "plus", seed=5)
    assert difference(draw(host, one), draw(host, one, two)) > 0


def test_img2img_follows_its_strength(host: Standalone) -> None:
    init = noise_picture(0)
    weak, strong = (draw(host, init_image=init, strength=s, steps=10) for s in (0.1, 1.0))
    assert difference(weak, strong) > 0
    reconstruction = host.decode(host.encode(torch.zeros(1, 3, 64, 64)))
    assert reconstruction.shape == (1, 3, 64, 64)


def test_mask_keeps_the_black_pixels(host: Standalone, folder: Path) -> None:
    init, mask = noise_picture(0), Image.new("L", SIZE, 0)
    mask.paste(255, (0, 0, 32, 64))
    pictures = [draw(host, *p, init_image=init, mask=mask) for p in ([], [image_prompt(folder)])]
    for picture in pictures:
        assert difference(picture.crop((32, 0, 64, 64)), init.crop((32, 0, 64, 64))) == 0
        assert difference(picture.crop((0, 0, 32, 64)), init.crop((0, 0, 32, 64))) > 10
    assert difference(*pictures) > 0


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"steps": 0}, "steps"),
        ({"steps": 1001}, "steps"),
        ({"size": (65, 64)}, "width"),
        ({"size": (64, 0)}, "height"),
        ({"cfg": float("nan")}, "cfg"),
        ({"seed": -3}, "seed"),
        ({"batch": 0}, "batch"),
        ({"init_image": Image.new("RGB", SIZE), "strength": 0.0}, "strength"),
        ({"mask": Image.new("L", SIZE)}, "mask"),
    ],
)
def test_bad_arguments_are_named(host: Standalone, fields: dict[str, Any], field: str) -> None:
    with pytest.raises(UnitError, match=f"^{field}: got .*, expected") as caught:
        draw(host, **fields)
    assert caught.value.detail["field"] == field


def test_an_adapter_of_another_base_is_refused(host: Standalone, folder: Path) -> None:
    before = draw(host)
    with pytest.raises(WrongBase):
        draw(host, image_prompt(folder, "wide"))
    assert difference(before, draw(host)) == 0


def broken(folder: Path, tmp_path: Path, change: str) -> tuple[Path, Path]:
    """(checkpoint, yaml), one of which is bad in the way that ``change`` names."""
    good = folder / "small-eps.safetensors"
    config = yaml.safe_load(good.with_suffix(".yaml").read_text())
    params, text = config["model"]["params"], tmp_path / "model.yaml"
    if change == "target":
        params["cond_stage_config"]["target"] = "os.system"
    elif change == "inpainting":
        params["unet_config"]["params"]["in_channels"] = 9
    elif change == "field":
        params["unet_config"]["params"]["no_such_field"] = 1
    elif change == "width":
        params["unet_config"]["params"]["model_channels"] = 64
    elif change == "schedule":
        del params["linear_start"]
    elif change == "arch":
        params["cond_stage_config"]["params"]["arch"] = "no-such-tower"
    text.write_text("!!python/object/apply:os.system [echo]" if change == "tag" else yaml.safe_dump(config))
    if change == "cut":
        (tmp_path / "cut.safetensors").write_bytes(good.read_bytes()[:5000])
        return tmp_path / "cut.safetensors", text
    return {"adapter": folder / "base.safetensors", "absent": tmp_path / "absent.ckpt"}.get(change, good), text


@pytest.mark.parametrize(
    ("change", "kind", "words"),
    [
        ("target", UnsupportedModel, "os.system"),
        ("inpainting", UnsupportedModel, "9 input channels"),
        ("field", ModelError, "no_such_field"),
        ("width", ModelError, "does not fit its yaml"),
        ("schedule", FileError, "linear_start"),
        ("arch", UnsupportedModel, "no-such-tower"),
        ("tag", FileError, "not a plain yaml"),
        ("cut", UnsafeFile, "cut off"),
        ("adapter", ModelError, "no model.diffusion_model"),
        ("absent", FileError, "absent.ckpt: cannot be read"),
    ],
)
def test_bad_models_are_refused(
    folder: Path, tmp_path: Path, change: str, kind: type[IPAdapterError], words: str
) -> None:
    with pytest.raises(kind, match=words):
        Standalone.load(*broken(folder, tmp_path, change))


def test_without_ldm_the_command_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "ldm"]:
        monkeypatch.delitem(sys.modules, name)
    real = builtins.__import__

    def without(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.partition(".")[0] == "ldm":
            raise ImportError(name="ldm")
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ModelError, match=r"ldm is not installed; run: pip install .*stable-diffusion-sdkit"):
        load(folder / "small-eps.safetensors")


def test_float16_takes_a_gpu(folder: Path) -> None:
    with pytest.raises(ModelError, match="float16 on the CPU"):
        Standalone.load(folder / "small-eps.safetensors", folder / "small-eps.yaml", dtype=torch.float16)
