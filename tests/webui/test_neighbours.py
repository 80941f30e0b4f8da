"""Next to LoRA, hypernetworks, compiled UNets and the options for little memory."""

from __future__ import annotations

import pytest

from .harness import WebUI


@pytest.mark.parametrize("tag", ["<lora:probe:1>", "<hypernet:probe:1>"])
def test_networks_in_the_prompt(on_sd1: WebUI, unit, tag):
    prompt = "a red house on a hill"
    plain, drawn = on_sd1.known(prompt=prompt), on_sd1.known(unit, prompt=prompt)
    with_network = on_sd1.images(prompt=f"{prompt} {tag}")
    both = on_sd1.images(unit, prompt=f"{prompt} {tag}")
    assert with_network != plain, on_sd1.log[-1500:]
    assert len({*plain, *drawn, *with_network, *both}) == 4
    assert on_sd1.images({**unit, "weight": 0}, prompt=f"{prompt} {tag}") == with_network
    assert on_sd1.images(prompt=prompt) == plain
    assert on_sd1.images(unit, prompt=prompt) == drawn


def test_a_compiled_unet_is_refused(on_sd1: WebUI, unit):
    base = on_sd1.known()
    with on_sd1.set(sd_unet="[probe] compiled"):
        reply = on_sd1.draw(unit)
        assert reply.status == 422
        assert "[probe] compiled" in reply.json["errors"]
        assert "set SD Unet to None" in reply.json["errors"]
        assert on_sd1.draw().status == 200
    on_sd1.options(sd_unet="None")
    assert on_sd1.images() == base


def test_after_a_compiled_unet_the_next_job_is_right(on_sd1: WebUI, unit):
    """Nothing is drawn in between: the compiled UNet is still the one in use when the next job begins."""
    drawn = on_sd1.known(unit)
    with on_sd1.set(sd_unet="[probe] compiled"):
        assert on_sd1.draw().status == 200
        assert on_sd1.draw(unit).status == 422
    on_sd1.options(sd_unet="None")
    assert on_sd1.images(unit) == drawn


def test_the_option_of_one_request_counts_as_the_setting(on_sd1: WebUI, unit):
    drawn = on_sd1.known(unit)
    on_sd1.options(sd_unet="None")
    compiled = {"override_settings": {"sd_unet": "[probe] compiled"}}
    assert on_sd1.draw(unit, **compiled).status == 422
    assert on_sd1.images(unit) == drawn
    assert on_sd1.draw(**compiled).status == 200
    assert on_sd1.images(unit) == drawn
