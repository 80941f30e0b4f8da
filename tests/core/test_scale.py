"""benchmarks/scale.py: what a training of many pictures takes, by hand."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

pytest.importorskip("ldm", reason="stable-diffusion-sdkit is not installed")

from benchmarks import memory, scale


def test_a_training_by_hand():
    """A step is 2 · 10 + 6 · 2 (+ 8) operations; 100 GPUs do 640 a second each, 20 pictures from the caches."""
    work = scale.Work(forward=10, encode=8, parameters=2, latents=5, features=3, texts=2, tokens=4)
    gpu = scale.Gpu(flops=1280, share=0.5)
    assert (work.step(True), work.step(False)) == (32, 40)
    found = scale.reckon(work, 7200, 2, 100, gpu, batch=4, picture_bytes=50, cached=True)
    assert found.rate == 2000
    assert found.days * 24 * 3600 == pytest.approx(7.2)
    assert found.hours == pytest.approx(7.2 * 100 / 3600)
    assert (found.tokens, found.pictures_bytes, found.cache_bytes) == (57600, 360000, 72000)
    assert found.read == 2000 * 10
    # 5 steps a second, each 2 · 99/100 · 2 parameters of 4 bytes
    assert found.reduced == pytest.approx(5 * 2 * 0.99 * 8)
    live = scale.reckon(work, 7200, 2, 100, gpu, batch=4, picture_bytes=50, cached=False)
    assert (live.rate, live.read, live.cache_bytes) == (1600, 80000, 0)
    assert scale.reckon(work, 1, 1, 2, gpu, 1, 1, True, measured=7.0).rate == 14


def test_a_transformer_by_hand():
    """One layer of width 4 over 3 tokens: 12 matrices' worth of w² (q, k, v, out, 4 + 4 of the MLP), and QK', AV."""
    assert scale.transformer({"width": 4, "layers": 2}, 3) == 2 * (2 * 3 * 16 * 12 + 4 * 9 * 4)


def test_the_papers_figures():
    work = scale.work_of("sd15", 512)
    assert "64 M samples, 6.4 times each of 10 M" in scale.check_paper(work)
    assert work.parameters / 1e6 == pytest.approx(22, abs=0.5)
    # SD1.5's UNet at 512 pixels is known as 0.4 T multiplications with additions
    assert work.forward / 2e12 == pytest.approx(0.40, abs=0.02)


def test_a_runs_log_gives_the_speed(tmp_path: Path):
    rows = [{"pictures_per_second": 1000.0}] * 10 + [{"pictures_per_second": v} for v in (3.0, 8.0, 4.0)]
    (tmp_path / "log.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert scale.log_rate(tmp_path / "log.jsonl", 2) == 2.0
    (tmp_path / "short.jsonl").write_text("")
    with pytest.raises(SystemExit, match="fewer than 11 steps"):
        scale.log_rate(tmp_path / "short.jsonl", 1)


def test_the_memory_that_is_computed_is_what_a_step_holds():
    """Of a narrow UNet at 128 pixels, where scores of attention are small."""
    _, parameters, kept = memory.kept_bytes("sd15", 128, 1, False, "auto", 32, torch.float32)
    computed, held = 16 * parameters + kept, memory.measured_bytes(128, 1, False, 32)
    assert 0.9 * computed < held < 1.1 * computed
