"""PuLID in the real WebUI: both versions, each option, masks and passes, every message where something is missing."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from tests.facexlib_code import real, write_parser
from tests.synthetic import pulid_tensors, write_adapter

from .harness import WebUI, b64, pixels, python, refused, without
from .networks import CONTEXT, SD1_WIDTHS, SDXL_WIDTHS
from .packages import missing
from .test_generation import one, same
from .test_references import saved
from .test_xyz import AXES, label, plot

pytest.importorskip("onnx", reason="onnx is not installed: it writes the small face models")
pytest.importorskip("timm", reason="timm is not installed: it writes the small tower")

from tests.face_models import write_pack

from .test_faces import NOBODY, TWO

POOLED, HIDDEN = 40, 192
MODELS = ("sd1-pulid", "sd1-pulid-converted", "sd1-pulid11")


def write_eva(folder: Path) -> None:
    """A small EVA02 with its open_clip config beside it."""
    import timm

    name = "eva02_tiny_patch14_224"
    torch.manual_seed(0)
    tower = timm.create_model(name, img_size=28, num_classes=POOLED, global_pool="token")
    save_file({f"visual.trunk.{k}": v.contiguous() for k, v in tower.state_dict().items()}, folder / "eva.safetensors")
    vision = {"image_size": 28, "timm_model_name": name, "timm_pool": "token", "timm_proj": None}
    (folder / "eva.json").write_text(json.dumps({"embed_dim": POOLED, "vision_cfg": vision}))


def write_parsing(folder: Path) -> None:
    """facexlib's network, random; the mean of its last weights is taken away, so that no class wins everywhere."""
    torch.manual_seed(0)
    with pytest.MonkeyPatch.context() as patch:
        made = real(patch)(num_class=19)
    with torch.no_grad():
        made.conv_out.conv_out.weight -= made.conv_out.conv_out.weight.mean(1, keepdim=True)
    write_parser(folder, made)


@pytest.fixture(scope="module")
def people(webui: WebUI) -> WebUI:
    """The shared WebUI with PuLID's files and all that they need, small."""
    prepare(webui, python(), CONTEXT, {"sd1": SD1_WIDTHS, "sdxl": SDXL_WIDTHS})
    return webui


def prepare(webui: WebUI, python: Path, context: int, families: dict[str, tuple[int, ...]]) -> None:
    """Files for models of these widths. Skips the test where its Python has not what they need."""
    if absent := missing(python, "onnxruntime", "timm", "facexlib"):
        pytest.skip(f"the WebUI's Python has no {', '.join(absent)}")
    models = webui.data / "models"
    for family, widths in families.items():
        sizes = {"context": context, "pooled": POOLED, "hidden": HIDDEN, "widths": widths}
        files = {
            "pulid": pulid_tensors("v1", **sizes),
            "pulid-converted": pulid_tensors("v1", converted=True, seed=4, **sizes),
            "pulid11": pulid_tensors("v1.1", **sizes),
        }
        for name, flat in files.items():
            write_adapter(models / "ipadapter" / f"{family}-{name}.safetensors", flat)
    write_eva(models / "clip_vision")
    write_parsing(models / "GFPGAN")
    write_pack(models / "insightface" / "models", "antelopev2", seed=1)
    webui.get("/ip-adapter/model_list")


@pytest.fixture
def on_people(people: WebUI, on_sd1: WebUI) -> WebUI:
    return on_sd1


@pytest.fixture(scope="module")
def face() -> dict:
    return {"model": "sd1-pulid", "images": [b64(TWO)], "weight": 0.8}


@pytest.mark.parametrize("model", MODELS)
def test_a_face_changes_the_picture_and_off_is_the_base(on_people, face, model):
    unit = {**face, "model": model}
    base, drawn = on_people.known(), on_people.images(unit)
    assert drawn != base
    assert on_people.images(unit) == drawn
    assert on_people.images({**unit, "face": "rightmost"}) not in (base, drawn)
    assert on_people.images({**unit, "weight": 0}) == base
    assert on_people.images({**unit, "start": 0.9}) == base  # 3 steps: 0, 1/3, 2/3
    assert on_people.images({**unit, "end": 0.3}) not in (base, drawn)
    assert on_people.images() == base


def test_each_mode_and_preset(on_people, face):
    found = {
        (mode, zeros): on_people.images({**face, "pulid_mode": mode, "zero_tokens": zeros})
        for mode in ("off", "ortho", "ortho_v2")
        for zeros in (0, 16)
    }
    assert len({tuple(images) for images in found.values()}) == len(found)
    assert on_people.images({**face, "pulid": "style"}) == found["ortho", 16]
    assert on_people.known(face) == on_people.images({**face, "pulid_mode": "ortho_v2", "zero_tokens": 8})
    newer = {**face, "model": "sd1-pulid11"}
    assert on_people.images(newer) == on_people.images({**newer, "pulid_mode": "ortho_v2", "zero_tokens": 20})
    assert on_people.images({**newer, "pulid": "fidelity"}) == on_people.images({**newer, "zero_tokens": 8})


def test_sdxl(people, on_sdxl, face):
    base = on_sdxl.known()
    drawn = []
    for model in ("sdxl-pulid", "sdxl-pulid11"):
        unit = {**face, "model": model}
        drawn += [on_sdxl.images(unit), on_sdxl.images({**unit, "pulid_mode": "off"})]
        assert on_sdxl.images({**unit, "weight": 0}) == base
    assert len({tuple(images) for images in [base, *drawn]}) == 5
    assert on_sdxl.images() == base


def test_beside_another_unit_the_order_does_not_matter(on_people, face):
    other = {"model": "sd1-base", "images": face["images"], "weight": 0.7}
    both = one(on_people, face, other)
    same(on_people, both, one(on_people, other, face))
    assert [pixels(both)] not in (on_people.known(face), on_people.known(other))


def test_rows_one_by_one(on_people, face):
    """Without the WebUI's joint cond and uncond, and with several pictures."""
    together = one(on_people, face)
    with on_people.set(batch_cond_uncond=False):
        same(on_people, one(on_people, face), together)
    batch = on_people.images(face, batch_size=2)
    assert batch[-2] != batch[-1]


def test_hires_fix_and_inpainting(on_people, face):
    hires = {"enable_hr": True, "hr_scale": 2, "denoising_strength": 0.6, "hr_upscaler": "Latent"}
    base = on_people.known(**hires)
    drawn = [on_people.images({**face, "passes": passes}, **hires) for passes in ("both", "first", "hires")]
    assert len({tuple(images) for images in [base, *drawn]}) == 4
    assert on_people.images({**face, "passes": "hires", "hires_factor": 0}, **hires) == base
    mask = Image.new("L", (64, 64))
    mask.paste(255, (0, 0, 32, 64))
    job = {"mode": "img2img", "init_images": [b64(TWO.resize((64, 64)))], "mask": b64(mask), "denoising_strength": 0.7,
           "inpainting_fill": 1, "mask_blur": 0}  # fmt: skip
    base = on_people.images(**job)
    assert on_people.images(face, **job) != base
    assert on_people.images({**face, "region": "inpaint"}, **job) != base
    assert on_people.images({**face, "weight": 0}, **job) == base
    assert on_people.images(**job) == base


@pytest.mark.parametrize("model", ["sd1-pulid", "sd1-pulid11"])
def test_two_people_by_masks(on_people, face, model):
    half = Image.new("L", (64, 64), 0)
    half.paste(255, (0, 0, 32, 64))
    units = [
        {**face, "model": model, "face": "leftmost", "mask": b64(half)},
        {**face, "model": model, "face": "rightmost", "mask": b64(half), "invert": True},
    ]
    drawn = on_people.images(*units)
    alone = [on_people.images(unit) for unit in units]
    assert len({tuple(images) for images in (drawn, *alone, on_people.known())}) == 4
    swapped = [{**units[0], "face": "rightmost"}, {**units[1], "face": "leftmost"}]
    assert on_people.images(*swapped) != drawn


def test_several_pictures_of_one_person(on_people, face):
    several = [b64(TWO), b64(TWO.transpose(Image.Transpose.FLIP_LEFT_RIGHT))]
    for model in ("sd1-pulid", "sd1-pulid11"):
        unit = {**face, "model": model, "face": "leftmost"}
        found = [on_people.images({**unit, "images": images, "combine": how})
                 for images in (several, several[:1]) for how in ("concat", "average")]  # fmt: skip
        assert found[2] == found[3]
        assert len({tuple(images) for images in found}) == 3
    weighted = [several[0], {"image": several[1], "weight": 0.5}]
    said = refused(on_people, {**face, "model": "sd1-pulid11", "images": weighted})
    assert "expected weights of 1, since the adapter takes all faces at once" in said


@pytest.mark.parametrize(("field", "typed"), [("pulid", "style"), ("pulid_mode", "off"), ("zero_tokens", "2")])
def test_axes_of_the_plot(on_people, face, field, typed):
    axis = next(one for one in AXES if one.name == field)
    reply = plot(on_people, face, label(axis), typed)
    assert reply.status == 200, reply.body[:1000]


def test_infotext_inspect_and_embeds(on_people, face):
    reply = on_people.draw({**face, "pulid": "style", "zero_tokens": 4})
    info = reply.json["info"]
    assert all(word in info for word in ("pulid", "style", "zero_tokens"))
    for model, variant in (("sd1-pulid", "pulid"), ("sd1-pulid11", "pulid-v1.1")):
        found = on_people.post("/ip-adapter/inspect", {"model": model}).json
        assert (found["variant"], found["encoder"]) == (variant, "antelopev2")
        unit = {**face, "model": model, "face": "rightmost"}
        with saved(on_people, "person", unit):
            named = {**unit, "images": [{"embeds": "person"}]}
            assert on_people.images(named) == on_people.images(unit)
    schema = on_people.get("/ip-adapter/schema").json["properties"]
    assert schema["pulid"]["enum"] == ["auto", "fidelity", "style", "v1.1"]


def test_messages(on_people, face):
    assert "no face was found in images[0]" in refused(on_people, {**face, "images": [b64(NOBODY)]})
    assert "pulid_mode: got 'v2'" in refused(on_people, {**face, "pulid_mode": "v2"})
    assert "zero_tokens: got 1.5" in refused(on_people, {**face, "zero_tokens": 1.5})
    assert "layer" in refused(on_people, {**face, "model": "sdxl-pulid"})


@pytest.mark.parametrize(
    ("file", "said"),
    [
        ("GFPGAN/parsing_bisenet.pth", "the face parsing model parsing_bisenet.pth was not found. Download it from"),
        ("insightface/models/antelopev2/glintr100.onnx", "glintr100.onnx (of the pack antelopev2)"),
        ("clip_vision/eva.safetensors", "the adapter takes pooled features of width 40"),
    ],
)
def test_a_missing_file_is_named(on_people, face, file, said):
    with without(on_people.data / "models" / file):
        assert said in refused(on_people, {**face, "images": [b64(TWO.rotate(180))]})
    on_people.images(face)


@pytest.mark.parametrize(
    ("file", "said"),
    [
        ("GFPGAN/parsing_bisenet.pth", "parsing_bisenet.pth: "),
        ("insightface/models/antelopev2/glintr100.onnx", "glintr100.onnx"),
        ("clip_vision/eva.safetensors", "eva.safetensors"),
        ("ipadapter/sd1-pulid.safetensors", "sd1-pulid.safetensors: missing: image_proj.mapping_patch_4.6.weight"),
    ],
)
def test_a_wrong_file_is_named(on_people, face, file, said):
    path = on_people.data / "models" / file
    good = path.read_bytes()
    try:
        if file.startswith("insightface"):
            path.write_bytes(good[: len(good) // 2])
        else:
            state = torch.load(path) if path.suffix == ".pth" else _tensors(path)
            del state[[*state][-1] if file.startswith(("GFP", "clip")) else "id_adapter.mapping_patch_4.6.weight"]
            (torch.save if path.suffix == ".pth" else save_file)(state, path)
        assert said in refused(on_people, {**face, "images": [b64(TWO.rotate(90))]})
    finally:
        path.write_bytes(good)
    on_people.images(face)


def _tensors(path: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return load_file(path)
