"""Running WebUIs, shared by the tests of a session; each starts when the first test asks for it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from . import forks
from .harness import WebUI, absent, b64, controlnet, picture
from .logs import missing_package


@pytest.fixture(scope="session")
def webui() -> Iterator[WebUI]:
    """The WebUI with every small checkpoint, over its API only."""
    if reason := absent():
        pytest.skip(reason)
    kinds = ("sd1", "sd1-other", "sd1-wide", "pix2pix", "sdxl", "sdxl-refiner")
    # All stay loaded, as many tests change between them; test_generation.py keeps one, as the WebUI does by default.
    with WebUI(kinds, config={"sd_checkpoints_limit": len(kinds)}) as running:
        yield running


@pytest.fixture(scope="session")
def webui_with_controlnet() -> Iterator[WebUI]:
    """The WebUI with sd-webui-controlnet installed beside this extension."""
    if reason := absent():
        pytest.skip(reason)
    if not (controlnet() / "scripts" / "controlnet.py").is_file():
        pytest.skip(f"no sd-webui-controlnet at {controlnet()} (set CONTROLNET_DIR)")
    with WebUI(("sd1",), with_controlnet=True) as running:
        if missing := missing_package(running.log, "sd-webui-controlnet"):
            pytest.skip(f"sd-webui-controlnet cannot load without the package {missing}")
        yield running


@pytest.fixture(scope="session", params=sorted(forks.FOLDERS))
def fork(request: pytest.FixtureRequest) -> Iterator[forks.Fork]:
    """Forge or reForge, with a checkpoint of SD1.5's shape and adapters that fit it."""
    if reason := forks.absent(request.param):
        pytest.skip(reason)
    with forks.Fork(request.param) as running:
        yield running


@pytest.fixture(scope="session")
def reference() -> str:
    """A reference picture, base64."""
    return b64(picture(0))


@pytest.fixture(scope="session")
def unit(reference: str) -> dict:
    """A base adapter for the sd1 checkpoints at λ = 1."""
    return {"model": "sd1-base", "images": [reference]}


@pytest.fixture
def on_sd1(webui: WebUI) -> WebUI:
    """The WebUI with the sd1 checkpoint loaded."""
    webui.options(sd_model_checkpoint="sd1.safetensors")
    return webui


@pytest.fixture
def on_sdxl(webui: WebUI) -> WebUI:
    """The WebUI with the SDXL-shaped checkpoint loaded."""
    webui.options(sd_model_checkpoint="sdxl.safetensors")
    return webui
