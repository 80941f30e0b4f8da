"""Exceptions, interrupts and runs inside runs leave nothing behind."""

from __future__ import annotations

from .harness import decode


def probe(command: str) -> dict:
    return {"Probe": {"args": [command]}}


def left(webui) -> int:
    return webui.get("/probe/hooks").json["unet"]


def test_an_exception_in_the_middle_leaves_nothing_attached(on_sd1, unit):
    base, drawn, before = on_sd1.known(), on_sd1.known(unit), left(on_sd1)
    reply = on_sd1.draw(unit, scripts=probe("raise"))
    assert reply.status == 500
    assert reply.json["error"] == "Failure"
    assert on_sd1.get("/probe/hooks").json["inside"] > 32  # they were on: two for each of 16 layers, and more
    assert left(on_sd1) == before
    assert on_sd1.images() == base
    assert on_sd1.images(unit) == drawn


def test_an_interrupt_leaves_nothing_attached(on_sd1, unit):
    base, before = on_sd1.known(), left(on_sd1)
    assert on_sd1.draw(unit, scripts=probe("interrupt"), n_iter=2).status == 200
    assert left(on_sd1) == before
    assert on_sd1.images() == base


def test_a_finished_run_leaves_nothing_attached(on_sd1, unit):
    before = left(on_sd1)
    on_sd1.images(unit)
    assert left(on_sd1) == before


def test_a_nested_run_is_prompted_when_it_is_given_the_script(on_sd1, unit):
    """ADetailer's rule: the inner run has the scripts whose file it is told, by its stem."""
    nested, without = probe("nested:ip_adapter"), probe("nested:none")
    base = on_sd1.images(scripts=without)
    assert on_sd1.images(scripts=nested) == base
    followed = on_sd1.draw(unit, scripts=nested).json["images"][0]
    plain = on_sd1.draw(unit, scripts=without).json["images"][0]
    assert (decode(followed) - decode(plain)).abs().mean() > 0.5
    assert left(on_sd1) == left(on_sd1)
    assert on_sd1.images(scripts=without) == base


def test_after_a_nested_run_the_outer_one_goes_on(on_sd1, unit):
    """Two iterations: the second one is prompted as if nothing had run in between."""
    payload = {"n_iter": 2, "do_not_save_grid": True}
    alone = on_sd1.images(unit, seed=2)
    outer = on_sd1.images(unit, scripts=probe("nested:none"), **payload)
    inner = on_sd1.images(unit, scripts=probe("nested:ip_adapter"), **payload)
    assert len({*outer, *inner, *alone}) == len(outer) + len(inner) + 1
    assert on_sd1.images(unit, seed=2) == alone


def test_a_copy_of_the_job_is_a_job_of_its_own(on_sd1, unit):
    """A script that draws a shallow copy of p without our script gets the base model's picture."""
    plain = on_sd1.images(seed=99)
    assert on_sd1.images(scripts=probe("copied")) == plain
    assert on_sd1.images(unit, scripts=probe("copied")) == plain
