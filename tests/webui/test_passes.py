"""Hires fix with a checkpoint of another base: units count only in the passes in which they act."""

from __future__ import annotations

import base64
import io

import pytest

from .harness import WebUI, picture, pixels
from .test_generation import HIRES, one, same

# sd1-wide has wider text tokens; "wide" is an adapter for it, sd1-base one for sd1
OTHER = {**HIRES, "hr_checkpoint_name": "sd1-wide.safetensors"}


@pytest.fixture
def wide(unit: dict) -> dict:
    return {**unit, "model": "wide"}


def steps(webui: WebUI) -> int:
    return webui.get("/probe/hooks").json["steps"]


@pytest.mark.parametrize("switch", [{"passes": "first"}, {"hires_factor": 0}], ids=str)
def test_a_unit_that_does_not_act_in_the_hires_pass_needs_not_fit_it(on_sd1: WebUI, unit, switch):
    base = on_sd1.known(**OTHER)
    assert on_sd1.known({**unit, **switch}, **OTHER) != base
    assert on_sd1.images(**OTHER) == base


def test_a_unit_for_the_hires_pass_needs_not_fit_the_first(on_sd1: WebUI, wide):
    base = on_sd1.known(**OTHER)
    assert on_sd1.known({**wide, "passes": "hires"}, **OTHER) != base
    assert on_sd1.images(**OTHER) == base


def test_a_unit_for_each_pass(on_sd1: WebUI, unit, wide):
    first, hires = {**unit, "passes": "first"}, {**wide, "passes": "hires"}
    both = one(on_sd1, first, hires, **OTHER)
    assert [pixels(both)] not in (on_sd1.known(first, **OTHER), on_sd1.known(hires, **OTHER), on_sd1.known(**OTHER))
    # A batch of two is rounded otherwise, without a unit too.
    reply = on_sd1.draw(first, hires, batch_size=2, n_iter=2, do_not_save_grid=True, **OTHER)
    same(on_sd1, reply.json["images"][-4], both)


@pytest.mark.parametrize("place", [0, 1])
def test_a_unit_that_does_not_fit_the_hires_pass_is_refused_before_the_first(on_sd1: WebUI, unit, place):
    off = {"enabled": False}
    before = steps(on_sd1)
    reply = on_sd1.draw(*[off] * place, unit, **OTHER)
    assert reply.status == 422
    assert f"IP-Adapter unit {place + 1}: sd1-base was made for" in reply.json["errors"]
    assert "text tokens are 384 wide in the model and 256" in reply.json["errors"]
    assert reply.json["detail"]["unit"] == place
    assert steps(on_sd1) == before  # nothing was sampled


def test_a_checkpoint_that_does_not_tell_is_checked_in_its_pass(on_sd1: WebUI, unit):
    """A pickle is not opened before the WebUI loads it; the error then names the unit all the same."""
    import torch
    from safetensors.torch import load_file

    folder = on_sd1.data / "models" / "Stable-diffusion"
    torch.save({"state_dict": load_file(folder / "sd1-wide.safetensors")}, folder / "pickled-wide.ckpt")
    (folder / "pickled-wide.yaml").write_bytes((folder / "sd1-wide.yaml").read_bytes())
    try:
        assert on_sd1.post("/sdapi/v1/refresh-checkpoints", {}).status == 200
        other = {**HIRES, "hr_checkpoint_name": "pickled-wide.ckpt"}
        assert on_sd1.draw({**unit, "passes": "first"}, **other).status == 200
        reply = on_sd1.draw(unit, **other)
        assert reply.status == 422
        assert "IP-Adapter unit 1: sd1-base was made for" in reply.json["errors"]
    finally:
        (folder / "pickled-wide.ckpt").unlink()
        (folder / "pickled-wide.yaml").unlink()
        on_sd1.post("/sdapi/v1/refresh-checkpoints", {})


def test_upscaling_a_finished_picture_has_a_hires_pass_alone(on_sd1: WebUI, unit, wide):
    """The button under the gallery: the first pass is left out."""
    buffer = io.BytesIO()
    picture(2, (64, 64)).save(buffer, "PNG")
    body = {"image": base64.b64encode(buffer.getvalue()).decode(), "hires": OTHER}

    def upscaled(*units: dict) -> tuple[int, str]:
        on_sd1.images()  # the picture is encoded by the VAE of the checkpoint that the last job left loaded
        reply = on_sd1.post("/probe/upscale", {**body, "units": list(units)})
        return reply.status, pixels(reply.json["image"]) if reply.status == 200 else reply.json["errors"]

    base = upscaled()
    assert base[0] == 200, base
    drawn = upscaled(wide)
    assert drawn[0] == 200, drawn
    assert drawn != base
    assert upscaled({**unit, "passes": "first"}) == base
    status, text = upscaled(unit)
    assert (status, "IP-Adapter unit 1: sd1-base" in text) == (422, True), text
    assert upscaled() == base
