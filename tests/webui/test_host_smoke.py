"""The WebUI, its small checkpoints and the harness themselves: what the other tests here stand on."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from .harness import WebUI, checkout, decode

LOADED = ("sd1", "sd1-other", "sd1-wide", "sdxl")


@pytest.mark.parametrize("kind", LOADED)
def test_a_checkpoint_draws_a_picture_that_is_one(webui: WebUI, kind: str):
    webui.options(sd_model_checkpoint=f"{kind}.safetensors")
    reply = webui.draw(steps=2)
    assert reply.status == 200, reply.body[:1000]
    picture = decode(reply.json["images"][0])
    assert picture.shape == (64, 64, 3)
    # The WebUI turns NaN into a black picture, or an error when it checks for it.
    assert picture.std() > 5
    assert picture.std(dim=(0, 1)).min() > 1


def test_pictures_repeat_and_depend_on_seed_and_prompt(on_sd1: WebUI):
    first = on_sd1.images()
    assert on_sd1.images() == first
    assert on_sd1.images(seed=2) != first
    assert on_sd1.images(prompt="a green boat") != first
    assert on_sd1.images(negative_prompt="a green boat") != first


def test_sdxl_is_one_for_the_webui(on_sdxl: WebUI):
    first = on_sdxl.images(steps=1)
    assert on_sdxl.images(steps=1, prompt="a green boat") != first
    # Only SDXL's conditioner knows where a picture was cropped.
    with on_sdxl.set(sdxl_crop_top=64):
        assert on_sdxl.images(steps=1) != first


def test_the_extension_is_loaded_and_the_log_is_clean(webui: WebUI):
    assert "ip-adapter" in webui.get("/sdapi/v1/scripts").json["txt2img"]
    assert "Error loading script" not in webui.log
    assert "Error calling" not in webui.log


def files_newer_than(folder: Path, moment: float) -> list[Path]:
    """Files under a checkout that were written after ``moment``, its environment and history apart."""
    found = []
    for root, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if name not in (".git", "venv", "__pycache__")]
        found += [path for name in files if (path := Path(root, name)).lstat().st_mtime > moment]
    return found


def test_the_checkout_stays_as_it_is(webui: WebUI):
    """Settings, caches and models of the tests live in a folder of their own."""
    webui.options(sd_model_checkpoint="sd1.safetensors")
    webui.images()
    started = (webui.data / "extensions").stat().st_mtime
    assert files_newer_than(webui.data, started) != []  # else the moment is wrong
    assert files_newer_than(checkout(), started) == []
