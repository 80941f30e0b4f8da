"""``evaluate`` end to end on the small random checkpoint, and the concat ablation against the plain formula."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

pytest.importorskip("ldm", reason="stable-diffusion-sdkit is not installed")

from lib_ipadapter.adapters.adapter import Adapter
from lib_ipadapter.adapters.file import save_adapter
from lib_ipadapter.attention.session import Session
from lib_ipadapter.cli import main
from lib_ipadapter.errors import BrokenAdapter, UnitError, WrongBase
from lib_ipadapter.evaluation import Clip, Item, Options, evaluate
from lib_ipadapter.evaluation.methods import (
    AdapterMethod,
    BaseModel,
    ConcatMethod,
    Encoders,
    Job,
    Studio,
    adapter_method,
)
from lib_ipadapter.pictures import images
from lib_ipadapter.pictures.picture import Pictures
from lib_ipadapter.prompts.pipeline import Pipeline
from lib_ipadapter.prompts.references import NoStore
from lib_ipadapter.prompts.resolve import resolve
from lib_ipadapter.standalone.concat import METADATA, append, load_concat
from lib_ipadapter.standalone.sampler import Schedule, ddim
from lib_ipadapter.unit import Reference, Unit
from tests.ldm.small import write_all
from tests.small_clip import write_clip
from tests.synthetic import adapter_tensors
from tests.webui.networks import CONTEXT, EMBED

SIZE, STEPS = (64, 64), 3


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """write_all's files, two concat ablations, a CLIP, and three references with two texts each."""
    folder = write_all(tmp_path_factory.mktemp("evaluate"))
    for variant, width in {"base": EMBED, "plus": 128}.items():
        flat = adapter_tensors(variant, CONTEXT, (), width, seed=3)
        save_adapter(flat, folder / f"{variant}-concat.safetensors", METADATA)
    write_clip(folder)
    (folder / "references").mkdir()
    rows = []
    for i in range(3):
        noise_picture(i).save(folder / "references" / f"r{i}.png")
        rows.append({"file_name": f"r{i}.png", "text": f"a thing {i}", "full": f"all of thing {i}"})
    (folder / "references" / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return folder


@pytest.fixture(scope="module")
def studio(folder: Path) -> Studio:
    small = folder / "small-eps.safetensors"
    return Studio.load(small, small.with_suffix(".yaml"), steps=STEPS, size=SIZE)


@pytest.fixture(scope="module")
def encoders(folder: Path) -> Encoders:
    return Encoders([folder / "encoders"])


def noise_picture(seed: int, size: tuple[int, int] = (80, 64)) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def difference(a: Image.Image, b: Image.Image) -> int:
    """The largest, of 255."""
    return int(np.abs(np.asarray(a, dtype=int) - np.asarray(b, dtype=int)).max())


def jobs(weight: float | None = 0.8, count: int = 3) -> list[Job]:
    pictures = [noise_picture(i) for i in range(count)]
    digests = [images.content_hash(picture) for picture in pictures]
    return [
        Job(Item(str(i), "", p), p, d, f"thing {i}", weight, 5 + i)
        for i, (p, d) in enumerate(zip(pictures, digests, strict=True))
    ]


# batches of different references


@pytest.mark.parametrize("name", ["base", "plus"])
def test_a_batch_of_references_draws_what_single_ones_do(
    folder: Path, studio: Studio, encoders: Encoders, name: str
) -> None:
    method = adapter_method(name, folder / f"{name}.safetensors", BaseModel(studio), encoders)
    assert type(method) is AdapterMethod
    together = method.draw(jobs())
    for job, picture in zip(jobs(), together, strict=True):
        unit = Unit(images=(Reference(job.reference),), model=name, weight=0.8)
        pipeline = Pipeline(encoders.source(method.adapter.spec))
        resolved = resolve(unit, NoStore(), Pictures())
        prompt = pipeline.prompt(resolved, Adapter.load(folder / f"{name}.safetensors"))
        (alone,) = studio.host.generate(job.prompt, "", [prompt], steps=STEPS, cfg=studio.cfg, seed=job.seed, size=SIZE)
        assert difference(picture, alone) <= 1
        (base,) = studio.host.generate(job.prompt, "", [], steps=STEPS, cfg=studio.cfg, seed=job.seed, size=SIZE)
        assert difference(picture, base) > 10
    assert difference(together[0], together[1]) > 10


def test_lists_of_another_length_are_refused(studio: Studio) -> None:
    for wrong in ({"prompt": ["a"]}, {"prompt": "a", "seed": [1, 2, 3]}):
        with pytest.raises(UnitError, match="one for each of 2 pictures"):
            studio.host.generate(**{"batch": 2, "size": SIZE, "steps": 1, **wrong})
    with pytest.raises(UnitError, match="seed"):
        studio.host.generate("a", seed=[1, -1], batch=2, size=SIZE, steps=1)


# the concat ablation


@pytest.mark.parametrize("variant", ["base", "plus"])
def test_concat_is_the_unet_with_image_tokens_behind_the_text(
    folder: Path, studio: Studio, encoders: Encoders, variant: str
) -> None:
    host, path = studio.host, folder / f"{variant}-concat.safetensors"
    method = adapter_method("concat", path, BaseModel(studio), encoders)
    assert isinstance(method, ConcatMethod)
    drawn = method.draw(jobs(1.0))
    job, adapter = jobs(1.0)[1], load_concat(path)
    source = encoders.source(adapter.spec)
    (need,) = (source.named(one) for one in adapter.spec.needs)
    square = images.fit(job.reference, source.side(need), "crop")
    cond, uncond = (
        torch.cat([host.encode_text([text]), adapter.tokens(features)], dim=1)
        for text, features in (
            (job.prompt, source.encode(square, need)),
            ("", source.unconditional(need)),
        )
    )
    assert cond.shape[1] == 77 + adapter.spec.tokens
    x = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(job.seed))
    with torch.no_grad():
        schedule = Schedule.make(host.parts.config, STEPS)
        for index in reversed(range(STEPS)):
            t = torch.tensor([schedule.timesteps[index]])
            a, b = host.parts.unet(x, t, context=cond), host.parts.unet(x, t, context=uncond)
            x = schedule.step(x, b + studio.cfg * (a - b), index)
    pixels = ((host.decode(x)[0] + 1) * 127.5).round().to(torch.uint8).permute(1, 2, 0).numpy()
    assert difference(drawn[1], Image.fromarray(pixels)) <= 1
    (base,) = host.generate(job.prompt, steps=STEPS, cfg=studio.cfg, seed=job.seed, size=SIZE)
    assert difference(drawn[1], base) > 10


def test_no_appended_tokens_are_the_base_model(studio: Studio) -> None:
    host, options = studio.host, {"steps": STEPS, "size": SIZE, "seed": 4}
    nothing = torch.zeros(1, 0, CONTEXT)
    assert (
        difference(host.generate("a", **options)[0], host.generate("a", **options, appended=(nothing, nothing))[0]) == 0
    )
    zeros = torch.zeros(1, 4, CONTEXT)  # tokens of zeros take their share of the softmax: not the base model
    assert difference(host.generate("a", **options)[0], host.generate("a", **options, appended=(zeros, zeros))[0]) > 0
    with pytest.raises(WrongBase, match=f"5 wide.*{CONTEXT}"):
        append(host.encode_text(["a"]), torch.zeros(1, 4, 5))


def test_the_sets_of_a_sampling_without_guidance_are_the_cond_rows(folder: Path, studio: Studio) -> None:
    seen: list[list[int]] = []

    class Watching(Session):
        def begin_step(self, sets: Any, fraction: float) -> None:
            seen.append(list(sets))
            super().begin_step(sets, fraction)

    x, text = torch.zeros(2, 4, 8, 8), studio.host.encode_text(["a", "b"])
    schedule = Schedule.make(studio.host.parts.config, 1)
    with torch.no_grad():
        for cfg in (1.0, 2.0):
            ddim(studio.host.unet, Watching([]), schedule, x, text, text, cfg, sets=[0, 1, 2, 2])
    assert seen == [[0, 1], [0, 1, 2, 2]]


def test_concat_files_are_refused_elsewhere_and_others_here(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(BrokenAdapter, match=r"concat ablation .*evaluate"):
        Adapter.load(folder / "base-concat.safetensors")
    with pytest.raises(BrokenAdapter, match="attention: None, expected concat"):
        load_concat(folder / "base.safetensors")
    flat = adapter_tensors("base", CONTEXT, (), EMBED)
    for change, words in (
        ({"ip_adapter.1.to_k_ip.weight": torch.zeros(8, CONTEXT)}, "but it has K', V'"),
        ({"image_proj.norm.weight": None}, "no known image projection"),
        ({"image_proj.norm.bias": None}, "missing: image_proj.norm.bias"),
        ({"image_proj.norm.bias": torch.zeros(3)}, r"norm.bias is \[3\]"),
        ({"extra": torch.zeros(3)}, "left over: extra"),
    ):
        changed = {key: value for key, value in {**flat, **change}.items() if value is not None}
        save_adapter(changed, tmp_path / "concat.safetensors", METADATA)
        with pytest.raises(BrokenAdapter, match=words):
            load_concat(tmp_path / "concat.safetensors")
    assert load_concat(folder / "plus-concat.safetensors").spec.widths == ()


# the command


def arguments(folder: Path, out: Path, *more: str) -> list[str]:
    return [
        "evaluate", "--references", str(folder / "references"), "--clip", str(folder / "small-judge.safetensors"),
        "--checkpoint", str(folder / "small-eps.safetensors"), "--encoder", str(folder / "encoders"), "--out", str(out),
        "--width", "64", "--height", "64", "--steps", str(STEPS), "--device", "cpu", *more,
    ]  # fmt: skip


def adapters(folder: Path) -> list[str]:
    files = [
        f"decoupled={folder / 'base.safetensors'}",
        folder / "plus.safetensors",
        folder / "base-concat.safetensors",
    ]
    return [part for file in files for part in ("--adapter", str(file))]


def test_command_line(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    call = arguments(
        folder,
        out,
        *adapters(folder),
        "--weights",
        "0,0.5,1",
        "--text-baseline",
        "full",
        "--prompt",
        "none",
        "--seed",
        "9",
    )
    assert main(call) == 0
    said = capsys.readouterr()
    assert "base-concat cannot draw λ = 0.5: skipped" in said.err
    assert "21/21" in said.err
    first = said.out.partition("| method | λ |")[2].partition("\n\n")[0]  # behind it the differences
    table = [line.split(" | ")[:2] for line in f"| method | λ |{first}".splitlines() if line.startswith("| ")]
    assert [(name.strip("| "), weight) for name, weight in table[2:]] == [
        ("reference", "–"), ("base-model", "0"), ("decoupled", "0.5"), ("decoupled", "1"), ("plus", "0.5"),
        ("plus", "1"), ("base-concat", "1"), ("text", "–"),
    ]  # fmt: skip
    pictures = sorted(path.relative_to(out / "pictures").as_posix() for path in (out / "pictures").rglob("*.png"))
    assert len(pictures) == 21
    assert pictures[0] == "base-concat/1/r0-0.png"
    assert "text/none/r2-0.png" in pictures
    for name in ("results.json", "results.md", "grid.png", "curve.png", "scores.jsonl"):
        assert (out / name).is_file()
    stamps = {path: path.stat().st_mtime_ns for path in (out / "pictures").rglob("*.png")}
    first = json.loads((out / "results.json").read_text())
    assert main(call) == 0
    assert stamps == {path: path.stat().st_mtime_ns for path in (out / "pictures").rglob("*.png")}
    assert json.loads((out / "results.json").read_text()) == first
    # the base model at λ = 0 by `generate`
    alone = tmp_path / "alone.png"
    assert main(["generate", "--checkpoint", str(folder / "small-eps.safetensors"), "--seed", "10", "--steps",
    str(STEPS),
                 "--width", "64", "--height", "64", "--device", "cpu", "--out", str(alone)]) == 0  # fmt: skip
    assert difference(Image.open(alone), Image.open(out / "pictures" / "base-model" / "0" / "r1-0.png")) <= 1
    # and the measures by hand, of one picture
    clip = Clip.load(folder / "small-judge.safetensors")
    line = next(s for s in map(json.loads, (out / "scores.jsonl").read_text().splitlines())
                if (s["method"], s["weight"], s["key"]) == ("plus", 1.0, "r1"))  # fmt: skip
    picture = images.load(out / "pictures" / "plus" / "1" / "r1-0.png")
    vector = clip.images([picture])[0]
    assert line["clip_i"] == pytest.approx(float(vector @ clip.images([noise_picture(1)])[0]), abs=1e-4)
    assert line["clip_t"] == pytest.approx(float(vector @ clip.texts(["a thing 1"])[0]), abs=1e-4)


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--weights", "0,x"], "expected a number from"),
        (["--weights", "9"], "weights: got"),
        (["--adapter", "absent.safetensors"], "absent.safetensors"),
        (["--adapter", "wide=WIDE"], "wide"),
        (["--adapter", "BASE", "--adapter", "BASE"], "name of a method"),
        (["--adapter", "BASE", "--text-baseline", "fulll"], "fulll.*has full"),
        (["--adapter", "BASE", "--prompt", "{nothing}"], "nothing.*has full"),
        (["--clip", "BASE"], "no base.json beside it"),
        (["--encoder", "absent"], "encoder"),
        (["--references", "absent"], "absent: no such folder"),
        (["--webui", "http://127.0.0.1:9"], "--webui and --payload together"),
        (["--method-json", '{"name": "x"}'], '"payload"'),
        (["--method-json", "[" * 100_000], '"payload"'),
        (["--adapter", "BASE", "--width", "100"], "multiple of 64"),
        ([], "the base model alone has only 0"),
        (["--limit", "0"], "limit"),
    ],
)
def test_command_line_errors_are_one_line(
    folder: Path, tmp_path: Path, more: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    more = [m.replace("BASE", str(folder / "base.safetensors")) for m in more]
    more = [m.replace("WIDE", str(folder / "wide.safetensors")) for m in more]
    call = arguments(folder, tmp_path / "out", *more)
    if "--encoder" in more:
        call.remove(str(folder / "encoders"))
        call.remove("--encoder")
        call += ["--adapter", str(folder / "base.safetensors")]
    assert main(call) == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert re.search(words, errors[0])


def test_another_checkpoint_is_not_mixed_in(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = tmp_path / "other.safetensors"
    shutil.copy(folder / "small-v.safetensors", other)
    shutil.copy(folder / "small-v.yaml", other.with_suffix(".yaml"))
    out = tmp_path / "out"
    assert main(arguments(folder, out, "--weights", "0", "--limit", "1")) == 0
    assert main(arguments(folder, out, "--weights", "0", "--limit", "1", "--checkpoint", str(other))) == 2
    assert re.search(r"config was \"\w+\", is now", capsys.readouterr().err)


def test_the_library_with_pictures_in_memory_and_a_measure_of_ones_own(
    folder: Path, studio: Studio, encoders: Encoders, tmp_path: Path
) -> None:
    items = [Item(f"i{i}", "a thing", noise_picture(i)) for i in range(2)]
    method = adapter_method("base", folder / "base.safetensors", BaseModel(studio), encoders)
    clip = Clip.load(folder / "small-judge.safetensors")
    extra = {"brightness": lambda picture, item: float(np.asarray(picture).mean() / 255)}
    results = evaluate(items, [method], clip, tmp_path, Options(count=2), extra)
    row = results.row("base", 1.0)
    expected = np.mean([np.asarray(images.load(p)).mean() / 255 for p in (tmp_path / "pictures").rglob("*.png")])
    assert row.measures["brightness"].mean == pytest.approx(expected, abs=1e-6)
    assert "brightness" in results.markdown().splitlines()[0]
