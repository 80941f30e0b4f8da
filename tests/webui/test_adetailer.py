"""ADetailer's own code beside this extension: FaceID in the details only, and a person for each detail.

Its detector needs weights that cannot be had, so that package is replaced (detector/ultralytics.py), and nothing else.
Skipped without a checkout at ADETAILER_DIR, by default ~/adetailer. Packages that the WebUI's Python lacks (rich) may
lie in ADETAILER_PACKAGES, by default ~/adetailer-packages.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image, ImageChops

from tests.synthetic import adapter_tensors, write_adapter

from .harness import WebUI, _link, absent, b64, decode, python
from .logs import missing_package
from .networks import CONTEXT, SD1_WIDTHS
from .packages import missing

pytest.importorskip("onnx", reason="onnx is not installed: it writes the small face models")

from tests.face_models import picture, write_pack

FOLDER = Path(os.environ.get("ADETAILER_DIR", "~/adetailer")).expanduser()
PACKAGES = Path(os.environ.get("ADETAILER_PACKAGES", "~/adetailer-packages")).expanduser()
MODEL = "boxes.pt"
BOXES = ((0, 0, 24, 24), (36, 0, 60, 24), (0, 36, 24, 60))
ONE = picture((176, 208), radius=15)
OTHER = ImageChops.add(ONE, Image.new("RGB", ONE.size, (0, 200, 0)))  # the detector sees red without blue
CONFIG = {"ad_script_names": "ip_adapter"}
PEOPLE = [b64(ONE), b64(OTHER)]
NOBODY = Image.new("RGB", (300, 200), (0, 0, 120))


class WithADetailer(WebUI):
    """With ADetailer as a second extension."""

    def _prepare(self) -> None:
        super()._prepare()
        _link(FOLDER, self.data / "extensions" / "adetailer")
        models = self.data / "models"
        (models / "adetailer").mkdir()
        (models / "adetailer" / MODEL).touch()
        write_adapter(models / "ipadapter" / "sd1-faceid.safetensors",
                      adapter_tensors("faceid", CONTEXT, SD1_WIDTHS, seed=7, lora=4))  # fmt: skip
        write_pack(models / "insightface" / "models", "buffalo_l", seed=1)

    def finds(self, *boxes: tuple[int, int, int, int]) -> None:
        """What the detector finds in every picture."""
        lines = (",".join(map(str, box)) for box in boxes)
        (self.data / "models" / "adetailer" / MODEL).write_text("\n".join(lines))


@pytest.fixture(scope="module")
def beside(tmp_path_factory: pytest.TempPathFactory) -> Iterator[WithADetailer]:
    if reason := absent():
        pytest.skip(reason)
    if not (FOLDER / "scripts" / "!adetailer.py").is_file():
        pytest.skip(f"no ADetailer at {FOLDER} (set ADETAILER_DIR)")
    if missing(python(), "onnxruntime"):
        pytest.skip("the WebUI's Python has no onnxruntime")
    path = tmp_path_factory.mktemp("packages")
    if PACKAGES.is_dir():
        shutil.copytree(PACKAGES, path, dirs_exist_ok=True)
    shutil.copy(Path(__file__).with_name("detector") / "ultralytics.py", path)
    flags = ("--nowebui", "--ad-no-huggingface")
    with WithADetailer(("sd1",), extra=flags, path=path, config=CONFIG) as running:
        if package := missing_package(running.log, "adetailer"):
            pytest.skip(f"ADetailer cannot load without the package {package}")
        assert "ADetailer initialized" in running.log
        yield running


@pytest.fixture
def unit() -> dict[str, Any]:
    return {"model": "sd1-faceid", "images": PEOPLE[:1], "in_detailer": "only"}


def details(**fields: Any) -> dict[str, Any]:
    """ADetailer's script with one tab."""
    tab = {
        "ad_model": MODEL, "ad_dilate_erode": 0, "ad_mask_blur": 0, "ad_inpaint_only_masked_padding": 4,
        "ad_denoising_strength": 0.7, **fields,
    }  # fmt: skip
    return {"ADetailer": {"args": [True, False, tab]}}


def drawn(webui: WebUI, *units: Any, scripts: dict[str, Any] | None = None, **payload: Any) -> list[torch.Tensor]:
    """The pictures [H, W, 3] of a job with ADetailer."""
    reply = webui.draw(*units, scripts=details() if scripts is None else scripts, **payload)
    assert reply.status == 200, f"{reply.body[:1000]!r}\n{webui.log[-3000:]}"
    return [decode(image) for image in reply.json["images"]]


def part(image: torch.Tensor, box: tuple[int, int, int, int]) -> torch.Tensor:
    left, top, right, bottom = box
    return image[top:bottom, left:right]


def outside(image: torch.Tensor, boxes: tuple = BOXES) -> torch.Tensor:
    """Without the details, and the line of pixels to which ADetailer's masks reach."""
    image = image.clone()
    for left, top, right, bottom in boxes:
        image[max(top - 1, 0) : bottom + 2, max(left - 1, 0) : right + 2] = 0
    return image


def different(one: torch.Tensor, other: torch.Tensor) -> bool:
    return float((one - other).abs().mean()) > 0.5


def test_only_the_details_are_drawn_with_a_face(beside, unit):
    beside.finds(BOXES[0])
    (plain,), (changed,) = drawn(beside), drawn(beside, unit)
    assert torch.equal(outside(changed, BOXES[:1]), outside(plain, BOXES[:1]))
    assert different(part(changed, BOXES[0]), part(plain, BOXES[0]))
    (again,), (off,) = drawn(beside, unit), drawn(beside, {**unit, "weight": 0})
    assert torch.equal(again, changed)
    assert torch.equal(off, plain)
    (everywhere,) = drawn(beside, {**unit, "in_detailer": "yes"})
    assert different(outside(everywhere, BOXES[:1]), outside(plain, BOXES[:1]))
    (whole,), (kept,) = drawn(beside, {**unit, "in_detailer": "no"}), drawn(beside, unit, scripts={})
    assert different(outside(whole, BOXES[:1]), outside(plain, BOXES[:1]))
    (base,) = drawn(beside, scripts={})
    assert torch.equal(kept, base)
    assert torch.equal(drawn(beside)[0], plain)


def test_one_reference_for_each_detail(beside, unit):
    each = {**unit, "images": PEOPLE, "distribute": "one per detail"}
    beside.finds(*BOXES)
    (plain,), (mine,), (swapped,) = drawn(beside), drawn(beside, each), drawn(beside, {**each, "images": PEOPLE[::-1]})
    assert torch.equal(outside(mine), outside(plain))
    for box in BOXES[:2]:
        assert different(part(mine, box), part(plain, box))
        assert different(part(mine, box), part(swapped, box))
    assert "detail 3 has no reference left" in beside.log
    beside.finds(BOXES[0])
    assert torch.equal(part(drawn(beside, unit)[0], BOXES[0]), part(mine, BOXES[0]))
    # The second is the second person's, drawn where the first one's detail is done already.
    beside.finds(*BOXES[:2])
    (two,) = drawn(beside, each)
    assert torch.equal(part(two, BOXES[1]), part(mine, BOXES[1]))
    assert torch.equal(part(two, BOXES[0]), part(mine, BOXES[0]))


def test_each_picture_of_a_job_begins_with_the_first_person(beside, unit):
    each = {**unit, "images": PEOPLE, "distribute": "one per detail"}
    beside.finds(*BOXES[:2])
    job = {"batch_size": 2, "n_iter": 2, "do_not_save_grid": True}
    together = drawn(beside, each, **job)[-4:]
    for k in (1, 3):
        (alone,) = drawn(beside, each, seed=1 + k)
        assert (together[k] - alone).abs().mean() < 1


def test_a_second_tab_counts_on(beside, unit):
    """Two tabs that find one detail each are the first and the second detail of the picture."""
    each = {**unit, "images": PEOPLE, "distribute": "one per detail"}
    beside.finds(BOXES[0])
    tabs = details()["ADetailer"]["args"]
    scripts = {"ADetailer": {"args": [*tabs, tabs[-1]]}}
    second = {**unit, "images": PEOPLE[1:]}
    mine, plain = drawn(beside, each, scripts=scripts)[0], drawn(beside, scripts=scripts)[0]
    assert different(part(mine, BOXES[0]), part(plain, BOXES[0]))
    assert not torch.equal(mine, drawn(beside, second, scripts=scripts)[0])
    assert torch.equal(outside(mine, BOXES[:1]), outside(plain, BOXES[:1]))


def test_where_no_detail_is_drawn_it_is_said(beside, unit):
    said = "a unit acts in details only, and no detail was drawn with it"
    beside.finds()
    before = beside.log.count(said)
    (none,), (base,) = drawn(beside, unit), drawn(beside, scripts={})
    assert torch.equal(none, base)
    assert beside.log.count(said) == before + 1
    beside.finds(BOXES[0])
    beside.options(ad_script_names="dynamic_prompting")
    try:
        (plain,) = drawn(beside)
        assert torch.equal(drawn(beside, unit)[0], plain)
    finally:
        beside.options(**CONFIG)
    assert beside.log.count(said) == before + 2


def test_a_reference_without_a_face_is_no_silent_detail(beside, unit):
    """ADetailer swallows the error of its job: it stands below the picture, and in the log."""
    beside.finds(BOXES[0])
    before = len(beside.log)
    assert beside.draw({**unit, "images": [b64(NOBODY)]}, scripts=details()).status == 200
    said = "unit 1: no face was found in images[0]"
    assert said in beside.log[before:]
    below = beside.get("/probe/hooks").json["comments"]
    assert "stopped a job inside this one" in below
    assert said in below
    assert drawn(beside)[0].shape == (64, 64, 3)
    assert beside.get("/probe/hooks").json["comments"] == ""
