"""InstantID in the real WebUI: its adapter and its ControlNet on a small SDXL-shaped checkpoint, and every message."""

from __future__ import annotations

import base64
import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file

from tests.controlnets import ldm_control
from tests.synthetic import adapter_tensors, write_adapter

from .harness import WebUI, b64, checkpoint, decode, python, refused, without
from .networks import CONTEXT, SD1_WIDTHS, SDXL_WIDTHS
from .packages import missing
from .test_generation import one, same
from .test_xyz import AXES, label, plot

pytest.importorskip("onnx", reason="onnx is not installed: it writes the small face models")

from tests.face_models import picture, write_pack

TWO = picture((176, 208), (496, 432), radius=15)  # each covers one cell of the detector: one face
NOBODY = Image.new("RGB", (300, 200), (0, 0, 120))
HIRES = {"enable_hr": True, "hr_scale": 2, "denoising_strength": 0.6, "hr_upscaler": "Latent"}
UNET = "model.diffusion_model."


def write_control(source: Path, path: Path) -> None:
    """A ControlNet for the UNet of a checkpoint."""
    parts = tuple(UNET + part for part in ("time_embed", "label_emb", "input_blocks", "middle_block"))
    with safe_open(str(source), framework="pt") as file:  # of a checkpoint of real width, no more than that
        names = [name for name in file.keys() if name.startswith(parts)]  # noqa: SIM118
        unet = {name[len(UNET) :]: file.get_tensor(name).float() for name in names}
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({key: value.half().contiguous() for key, value in ldm_control(unet).items()}, path)


def write_all(
    webui: WebUI, kind: str = "sdxl", widths=SDXL_WIDTHS, context: int = CONTEXT, source: Path | None = None
) -> None:
    """InstantID's adapter, its ControlNet under any name, and face models, for a small checkpoint or the one given."""
    if missing(python(), "onnxruntime"):
        pytest.skip("the WebUI's Python has no onnxruntime")
    models = webui.data / "models"
    flat = adapter_tensors("unnorm", context, widths, tokens=16, seed=7)
    write_adapter(models / "ipadapter" / f"{kind}-instantid.safetensors", flat, ip_adapter_variant="instantid")
    write_control(source or checkpoint(kind), models / "ControlNet" / "people" / f"InstantID of {kind}.safetensors")
    write_pack(models / "insightface" / "models", "antelopev2", seed=1)
    webui.get("/ip-adapter/model_list")


@pytest.fixture(scope="module")
def posed(webui: WebUI) -> WebUI:
    write_all(webui)
    return webui


@pytest.fixture
def on_person(posed: WebUI, on_sdxl: WebUI) -> WebUI:
    return on_sdxl


@pytest.fixture(scope="module")
def person() -> dict:
    return {"model": "sdxl-instantid", "images": [b64(TWO)]}


def control(webui: WebUI, kind: str = "sdxl"):
    return webui.data / "models" / "ControlNet" / "people" / f"InstantID of {kind}.safetensors"


def test_it_acts_and_off_is_the_base(on_person, person):
    base, drawn = on_person.known(), on_person.known(person)
    alone = on_person.images({**person, "pose_weight": 0})
    assert len({*base, *drawn, *alone}) == 3
    assert on_person.images(person) == drawn
    assert on_person.images({**person, "control_model": "none"}) == alone
    with without(control(on_person)):
        assert on_person.images({**person, "pose_weight": 0}) == alone
    assert on_person.images({**person, "weight": 0}) == base
    assert on_person.images({**person, "start": 0.9}) == base  # 3 steps: 0, 1/3, 2/3
    assert on_person.images({**person, "pose_start": 0.9}) == alone
    assert on_person.images() == base


def test_each_field_of_the_pose_changes_the_picture(on_person, person):
    other = b64(picture((400, 208), radius=15))
    each = [{}, {"pose": other}, {"pose_weight": 0.3}, {"pose_end": 0.3}, {"pose_face": "all"}, {"curve": "0:1, 1:0.2"}]
    pictures = [tuple(on_person.images({**person, **fields})) for fields in each]
    assert len(set(pictures)) == len(pictures)
    named = {**person, "control_model": "people/InstantID of sdxl"}
    assert tuple(on_person.images(named)) == pictures[0]


def test_batched_split_and_joined_rows_give_the_same_picture(on_person, person):
    for prompt in ("a red house", "a red house AND a tree"):
        together = one(on_person, person, prompt=prompt)
        with on_person.set(batch_cond_uncond=False):
            same(on_person, together, one(on_person, person, prompt=prompt), 2.0)


def test_a_batch_and_references_in_turn(on_person, person):
    pair = {**person, "images": [b64(TWO), b64(picture((400, 208), radius=15))], "distribute": "one per picture"}
    drawn = on_person.draw(pair, batch_size=2).json["images"]
    alone = on_person.draw(person, batch_size=2).json["images"]
    pictures = [image for image in drawn if decode(image).shape == decode(drawn[-1]).shape]
    same(on_person, pictures[0], next(i for i in alone if decode(i).shape == decode(alone[-1]).shape), 2.0)
    assert (decode(pictures[1]) - decode(alone[-1])).abs().max() > 0


def test_hires_fix(on_person, person):
    base, both = on_person.known(**HIRES), on_person.images(person, **HIRES)
    only = on_person.images({**person, "passes": "hires"}, **HIRES)
    assert len({*base, *both, *only}) == 3
    assert on_person.images({**person, "passes": "hires", "pose_weight": 0}, **HIRES) not in (base, only)
    assert on_person.images({**person, "passes": "hires", "hires_factor": 0}, **HIRES) == base


def test_img2img_inpaint_and_the_redrawn_picture_s_own_pose(on_person, person):
    job = {"mode": "img2img", "init_images": [b64(TWO)], "denoising_strength": 0.7}
    base, drawn = on_person.images(**job), on_person.images(person, **job)
    own = on_person.images({**person, "pose_from": "redrawn", "pose_face": "rightmost"}, **job)
    assert len({*base, *drawn, *own}) == 3
    assert on_person.images({**person, "pose": b64(TWO), "pose_face": "rightmost"}, **job) == own
    mask = Image.new("L", TWO.size)
    mask.paste(255, (100, 100, 300, 300))
    for cut in (False, True):
        inpaint = {**job, "mask": b64(mask), "inpaint_full_res": cut, "mask_blur": 0}
        base, drawn = on_person.images(**inpaint), on_person.images(person, **inpaint)
        assert len({*base, *drawn, *on_person.images({**person, "pose_weight": 0}, **inpaint)}) == 3
    assert "reference, or a job that redraws one picture" in refused(on_person, {**person, "pose_from": "redrawn"})


def test_two_people_by_masks(on_person, person):
    half = Image.new("L", (64, 64), 0)
    half.paste(255, (0, 0, 32, 64))
    units = [
        {**person, "face": "leftmost", "mask": b64(half)},
        {**person, "face": "rightmost", "mask": b64(half), "invert": True},
    ]
    drawn = on_person.images(*units)
    assert drawn not in (on_person.known(), on_person.images(units[0]), on_person.images(units[1]))
    assert on_person.images(*({**unit, "pose_weight": 0} for unit in units)) != drawn


def test_what_is_missing_or_wrong(on_person, person):
    folder = on_person.data / "models" / "ControlNet"
    with without(control(on_person)):
        said = refused(on_person, person)
        assert "InstantID's ControlNet is missing" in said
        assert str(folder) in said
        assert "IP-Adapter unit 1" in said
    assert "no ControlNet named 'depth'" in refused(on_person, {**person, "control_model": "depth"})
    assert "pose: got '2 entries', expected one picture" in refused(on_person, {**person, "pose": [b64(TWO)] * 2})
    assert "no face was found in pose" in refused(on_person, {**person, "pose": b64(NOBODY)})
    base = {"model": "sdxl-base", "images": person["images"], "pose": b64(TWO)}
    assert "since the adapter is not InstantID's" in refused(on_person, base)
    write_control(checkpoint("sd1"), folder / "other.safetensors")
    try:
        said = refused(on_person, {**person, "control_model": "other"})
        assert "the ControlNet other.safetensors was made for" in said
        (folder / "other.safetensors").write_bytes((folder / "other.safetensors").read_bytes()[:-1000])
        assert "other.safetensors" in refused(on_person, {**person, "control_model": "other"})
    finally:
        (folder / "other.safetensors").unlink()
    on_person.images(person)


def test_the_keypoint_picture_over_the_api(on_person):
    reply = on_person.post("/ip-adapter/faces", {"image": b64(TWO)})
    assert reply.status == 200, reply.body
    drawn = np.asarray(Image.open(io.BytesIO(base64.b64decode(reply.json["keypoints"]))))
    assert drawn.shape == (640, 640, 3)
    for face in reply.json["faces"]:
        x, y = face["points"][2]
        assert drawn[int(y), int(x)].any()
    small = {"image": b64(TWO), "face": "leftmost", "width": 320, "height": 320}
    found = Image.open(io.BytesIO(base64.b64decode(on_person.post("/ip-adapter/faces", small).json["keypoints"])))
    assert found.size == (320, 320)
    assert not np.asarray(found)[160:].any()
    assert on_person.post("/ip-adapter/faces", {"image": b64(TWO), "width": 9999, "height": 64}).status == 422


def test_infotext_and_axes(on_person, person):
    info = on_person.draw({**person, "pose_weight": 0.4, "pose": b64(TWO)}).json["info"]
    assert "pose_weight" in info
    axis = next(one for one in AXES if one.name == "pose_weight")
    reply = plot(on_person, person, label(axis), "0.3")
    assert reply.status == 200, reply.body[:1000]


def memory(webui: WebUI) -> float:
    """MB of private memory of the WebUI's process."""
    lines = Path(f"/proc/{webui.process.pid}/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith(("Private_Dirty", "Anonymous"))) / 2048


def test_ten_generations_take_no_more_memory(on_person, person):
    for _ in range(3):
        on_person.images(person, steps=1)
    before = memory(on_person)
    for seed in range(10):
        on_person.images(person, steps=1, seed=seed)
    grown = memory(on_person) - before
    print(f"\nten generations: {grown:+.1f} MB over {before:.0f} MB")
    assert before > 300
    assert grown < 30
    with on_person.set(ipadapter_control_stays="nowhere"):
        first = on_person.images(person)
    assert on_person.images(person) == first


def test_beside_units_of_the_controlnet_extension(webui_with_controlnet):
    from .test_controlnet import controlnet, model

    webui = webui_with_controlnet
    write_all(webui, "sd1", SD1_WIDTHS)
    webui.defaults = {"steps": 1}
    person = {"model": "sd1-instantid", "images": [b64(TWO)], "control_model": "people/InstantID of sd1"}
    theirs = controlnet(model=model(webui, "random_control"))
    base, beside, ours = webui.images(), webui.images(scripts=theirs), webui.images(person)
    both = webui.images(person, scripts=theirs)
    alone = webui.images({**person, "pose_weight": 0}, scripts=theirs)
    assert len({each[0] for each in (base, beside, ours, both, alone)}) == 5  # its map comes behind the picture
    assert webui.images(person, scripts=theirs) == both
    assert webui.images(scripts=theirs) == beside
    assert webui.images() == base
