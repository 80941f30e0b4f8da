"""Next to extensions that run the model more often, in another order or at another size than the WebUI does
(probe/scripts/neighbours.py). Each leaves the base picture as it is, so ours must stay as it is too."""

from __future__ import annotations

import json
from typing import Any

import pytest

from .harness import WebUI, b64, decode, picture
from .test_regions import WHITE, half


def drawn(webui: WebUI, kind: str, *units: Any, **payload: Any) -> list[str]:
    reply = webui.draw(*units, scripts={"Neighbours": {"args": [kind]}}, **payload)
    assert reply.status == 200, reply.body[:1000]
    return reply.json["images"]


def difference(a: list[str], b: list[str]) -> float:
    return max(float((decode(x) - decode(y)).abs().mean()) for x, y in zip(a, b, strict=True))


@pytest.fixture(scope="module")
def turns() -> dict[str, Any]:
    images = [b64(picture(seed)) for seed in (1, 2)]
    return {"model": "sd1-base", "images": images, "distribute": "one per picture"}


@pytest.mark.parametrize("together", [True, False], ids=["one call", "two calls"])
@pytest.mark.parametrize("kind", ["pag", "sag", "early"])
def test_extra_calls_take_the_tokens_of_their_rows(on_sd1: WebUI, unit, kind, together):
    with on_sd1.set(batch_cond_uncond=together):
        base, ours = drawn(on_sd1, ""), drawn(on_sd1, "", unit)
        assert difference(base, ours) > 5
        assert difference(drawn(on_sd1, kind), base) < 0.2
        assert difference(drawn(on_sd1, kind, unit), ours) < 0.2


def test_extra_calls_of_a_batch_with_a_reference_each(on_sd1: WebUI, turns):
    payload = {"batch_size": 2}
    ours = drawn(on_sd1, "", turns, **payload)
    for kind in ("pag", "sag"):
        assert difference(drawn(on_sd1, kind, turns, **payload), ours) < 0.2


def test_a_call_that_nobody_can_explain_stops_the_job(on_sd1: WebUI, unit):
    with_unit = on_sd1.draw(unit, scripts={"Neighbours": {"args": ["foreign"]}})
    assert with_unit.status == 500
    assert "another extension rearranges the batch" in json.dumps(with_unit.json)
    assert on_sd1.images(unit) == on_sd1.known(unit)


def test_rows_that_are_permuted_behind_us(on_sd1: WebUI, turns):
    payload = {"batch_size": 2, "prompt": "a house AND a tree"}
    with on_sd1.set(batch_cond_uncond=False):
        ours = drawn(on_sd1, "", turns, **payload)
        swapped = drawn(on_sd1, "", {**turns, "images": turns["images"][::-1]}, **payload)
        assert difference(ours, swapped) > 5
        assert difference(drawn(on_sd1, "permuted", **payload), drawn(on_sd1, "", **payload)) < 0.2
        assert difference(drawn(on_sd1, "permuted", turns, **payload), ours) < 0.2


def test_a_mask_on_rescaled_blocks(on_sd1: WebUI, unit):
    payload = {"width": 128, "height": 192, "steps": 2}
    base, whole = drawn(on_sd1, "kohya", **payload), drawn(on_sd1, "kohya", unit, **payload)
    assert difference(drawn(on_sd1, "kohya", {**unit, "mask": WHITE}, **payload), whole) == 0
    left = drawn(on_sd1, "kohya", {**unit, "mask": half()}, **payload)
    change = (decode(left[0]) - decode(base[0])).abs().mean(-1)
    middle = change.shape[1] // 2
    assert (
        change[:, : middle - 16].mean() > 1.25 * change[:, middle + 16 :].mean()
    )  # a random model spreads it; 1.46 measured


def test_windows_of_a_batch(on_sd1: WebUI, turns, unit):
    payload = {"batch_size": 4}
    for units in ((), (unit,), ({**turns, "images": [b64(picture(seed)) for seed in range(4)]},)):
        assert difference(drawn(on_sd1, "windows", *units, **payload), drawn(on_sd1, "", *units, **payload)) < 0.2


def test_a_pass_over_another_picture_is_left_alone(on_sd1: WebUI, unit):
    def liked(*units: Any) -> str:
        reply = on_sd1.draw(*units, scripts={"Neighbours": {"args": ["liked"]}})
        assert reply.status == 200, reply.body[:1000]
        return json.loads(reply.json["info"])["extra_generation_params"]["Probe liked"]

    assert liked(unit) == liked()
    assert difference(drawn(on_sd1, "liked", unit), drawn(on_sd1, "", unit)) < 0.2


def test_sheets_of_maps_come_after_what_other_scripts_do_with_the_pictures(on_sd1: WebUI, unit):
    """LLuL goes through all pictures and expects them to have the job's size."""
    images = drawn(on_sd1, "sizes", {**unit, "maps": True})
    sizes = [decode(image).shape for image in images]
    assert len(sizes) == 3  # the picture, what the probe made of it, our sheet
    assert sizes[0] == sizes[1] != sizes[2]
    assert "the size of the job" not in on_sd1.log
