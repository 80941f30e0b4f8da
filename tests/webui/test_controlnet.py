"""Next to sd-webui-controlnet: its units and ours in one generation."""

from __future__ import annotations

import base64
import io

import pytest
import torch

from .harness import WebUI, b64, decode, picture
from .networks import EMBED


@pytest.fixture(scope="module")
def webui(webui_with_controlnet: WebUI) -> WebUI:
    webui_with_controlnet.defaults = {"steps": 1}
    return webui_with_controlnet


@pytest.fixture(scope="module")
def ours(reference: str) -> dict:
    return {"model": "sd1-base", "images": [reference]}


def controlnet(**unit: object) -> dict:
    """A ControlNet unit as alwayson script."""
    fields = {"enabled": True, "module": "none", "weight": 1.0, "image": b64(picture(3, (64, 64))), **unit}
    return {"controlnet": {"args": [fields]}}


def model(webui: WebUI, name: str) -> str:
    return next(m for m in webui.get("/controlnet/model_list").json["model_list"] if m.startswith(name))


def features() -> str:
    """What its IP-Adapter unit takes in the place of a picture: pooled features."""
    buffer = io.BytesIO()
    generator = torch.Generator().manual_seed(4)
    torch.save({"image_embeds": torch.randn(1, EMBED, generator=generator)}, buffer)
    return base64.b64encode(buffer.getvalue()).decode()


def units(webui: WebUI) -> dict[str, dict]:
    return {
        "controlnet": controlnet(model=model(webui, "random_control")),
        "reference-only": controlnet(module="reference_only", model="None"),
        "its ip-adapter": controlnet(model=model(webui, "ip-adapter_cn"), ipadapter_input=[features()], image=None),
    }


@pytest.fixture(scope="module")
def alone(webui: WebUI, ours: dict) -> tuple[str, str]:
    """The picture without any unit, and with ours alone."""
    return webui.images()[0], webui.images(ours)[0]


@pytest.mark.parametrize("kind", ["controlnet", "reference-only", "its ip-adapter"])
def test_each_of_its_units_with_and_without_ours(webui, ours, alone, kind):
    base, mine = alone
    unit = units(webui)[kind]
    theirs = webui.images(scripts=unit)[0]
    both = webui.images(ours, scripts=unit)[0]
    assert len({base, theirs, both, mine}) == 4
    # Off, or at λ = 0, ours changes nothing of it; and neither leaves anything behind.
    assert webui.images({**ours, "weight": 0}, scripts=unit)[0] == theirs
    assert webui.images(scripts=unit)[0] == theirs
    assert webui.images()[0] == base


def test_its_ip_adapter_and_ours_add_up(webui, ours):
    """The same adapter with the same features, half by it and half by ours, or all by either."""
    half = controlnet(model=model(webui, "ip-adapter_cn"), ipadapter_input=[features()], image=None, weight=0.5)
    reply = webui.draw({**ours, "weight": 0.5}, scripts=half)
    assert reply.status == 200, reply.body[:500]
    alone = webui.draw(scripts=half).json["images"][0]
    assert (decode(reply.json["images"][0]) - decode(alone)).abs().mean() > 0.5


def test_with_its_batched_and_split_rows(webui, ours):
    unit = units(webui)["controlnet"]
    together = decode(webui.draw(ours, scripts=unit).json["images"][0])
    with webui.set(batch_cond_uncond=False):
        split = decode(webui.draw(ours, scripts=unit).json["images"][0])
    assert (together - split).abs().mean() < 0.1


def test_img2img_and_hires_with_a_controlnet(webui, ours):
    unit = units(webui)["controlnet"]
    payload = {"mode": "img2img", "init_images": [b64(picture(5, (64, 64)))], "denoising_strength": 0.8}
    assert webui.images(ours, scripts=unit, **payload)[0] != webui.images(scripts=unit, **payload)[0]
    hires = {"enable_hr": True, "hr_scale": 2, "hr_upscaler": "Latent", "denoising_strength": 0.7}
    assert webui.images(ours, scripts=unit, **hires)[0] != webui.images(scripts=unit, **hires)[0]
