"""Faces in the real WebUI: FaceID adapters, the LoRA inside them, and every message where something is missing."""

from __future__ import annotations

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from tests.synthetic import adapter_tensors, write_adapter

from .harness import WebUI, b64, pixels, python, refused, without
from .networks import CONTEXT, SD1_WIDTHS, SDXL_WIDTHS
from .packages import missing
from .test_generation import one, same
from .test_references import saved
from .test_xyz import AXES, label, plot

pytest.importorskip("onnx", reason="onnx is not installed: it writes the small face models")

from tests.face_models import detector, picture, write_pack

TWO = picture((176, 208), (496, 432), radius=15)  # each covers one cell of the detector: one face
NOBODY = Image.new("RGB", (300, 200), (0, 0, 120))
CLIP = 128  # width of the tiny encoder's penultimate features


def place_of(layer: int) -> str:
    """diffusers' name of SD1's i-th transformer block, in file order, as LoRA files have it."""
    if layer < 6:
        return f"down_blocks_{layer // 2}_attentions_{layer % 2}"
    return f"up_blocks_{1 + (layer - 6) // 3}_attentions_{(layer - 6) % 3}" if layer < 15 else "mid_block_attentions_0"


def write_as_lora(flat: dict[str, torch.Tensor], path) -> None:
    """The LoRA of a FaceID file as the file that its author publishes beside it."""
    tensors = {}
    for key, value in flat.items():
        if "_lora." not in key:
            continue
        _, number, target, part, _ = key.split(".")
        target = target.removesuffix("_lora").replace("to_out", "to_out_0")
        layer = f"{place_of(int(number) // 2)}_transformer_blocks_0_attn{1 + int(number) % 2}"
        tensors[f"lora_unet_{layer}_{target}.lora_{part}.weight"] = value
    save_file(tensors, path)


def write_all(webui: WebUI) -> None:
    """Face adapters, a LoRA as its author publishes it, and a pack of small face models."""
    if missing(python(), "onnxruntime"):
        pytest.skip("the WebUI's Python has no onnxruntime")
    folder = webui.data / "models" / "ipadapter"
    sd1 = {"context": CONTEXT, "widths": SD1_WIDTHS, "feature_width": CLIP, "seed": 7, "inner": 256}
    files = {
        "sd1-faceid": adapter_tensors("faceid", **sd1, lora=4),
        "sd1-faceid-plusv2": adapter_tensors("faceid-plus", **sd1, lora=4),
        "sd1-portrait": adapter_tensors("faceid", **sd1, tokens=16),
        "sdxl-faceid": adapter_tensors("faceid", **{**sd1, "widths": SDXL_WIDTHS}, lora=4),
    }
    for name, flat in files.items():
        write_adapter(folder / f"{name}.safetensors", flat)
    (webui.data / "models" / "Lora").mkdir(exist_ok=True)
    write_as_lora(files["sd1-faceid"], webui.data / "models" / "Lora" / "faceid.safetensors")
    write_pack(webui.data / "models" / "insightface" / "models", "buffalo_l", seed=1)
    webui.get("/ip-adapter/model_list")
    webui.post("/sdapi/v1/refresh-loras", {})


@pytest.fixture(scope="module")
def faces(webui: WebUI) -> WebUI:
    write_all(webui)
    return webui


@pytest.fixture
def on_face(faces: WebUI, on_sd1: WebUI) -> WebUI:
    return on_sd1


@pytest.fixture(scope="module")
def face() -> dict:
    return {"model": "sd1-faceid", "images": [b64(TWO)]}


@pytest.mark.parametrize("model", ["sd1-faceid", "sd1-faceid-plusv2", "sd1-portrait"])
def test_a_face_changes_the_picture_and_off_is_the_base(on_face, face, model):
    unit = {**face, "model": model}
    base, drawn = on_face.known(), on_face.images(unit)
    assert drawn != base
    assert on_face.images(unit) == drawn
    assert on_face.images({**unit, "weight": 0}) == base
    assert on_face.images({**unit, "start": 0.9}) == base  # 3 steps: 0, 1/3, 2/3
    assert on_face.images({**unit, "end": 0.3}) not in (base, drawn)
    assert on_face.images() == base


def test_each_field_of_a_face_changes_the_picture(on_face, face):
    unit = {**face, "model": "sd1-faceid-plusv2"}
    pictures = [on_face.images(unit)]
    for fields in ({"face": "rightmost"}, {"shortcut": 0.2}, {"lora": 0.4}, {"lora": 0}, {"kind": "faceid-plus"}):
        pictures.append(on_face.images({**unit, **fields}))
    assert len({tuple(images) for images in pictures}) == len(pictures)
    assert on_face.images({**unit, "face": 1}) == pictures[1]
    assert on_face.images({**unit, "face": "rightmost", "box": "0, 0, 0.5, 1"}) == on_face.images(
        {**unit, "box": "0, 0, 0.5, 1"}
    )


def latents(webui: WebUI, *units: dict, **payload: object) -> torch.Tensor:
    """What is sampled, before the autoencoder and the rounding to 8 bits."""
    file = webui.data / "latents.pt"
    file.unlink(missing_ok=True)
    webui.images(*units, scripts={"Latents": {"args": [str(file)]}}, **payload)
    return torch.load(file)


def relative(one: torch.Tensor, other: torch.Tensor) -> float:
    return float((one - other).norm() / other.norm())


def by_hooks_and_merged(
    webui: WebUI, face: dict, prompt: str = "a red house on a hill", **payload: object
) -> tuple[float, float]:
    """(Relative difference of the LoRA by hooks from the WebUI's own way, that of no LoRA at all)."""
    off = {**face, "lora": 0}
    hooked = latents(webui, {**face, "lora": 0.8}, prompt=prompt, **payload)
    merged = latents(webui, off, prompt=f"{prompt} <lora:faceid:0.8>", **payload)
    alone = latents(webui, off, prompt=prompt, **payload)
    found = relative(hooked, merged), relative(alone, merged)
    print(f"\nlatents: by hooks {found[0]:.1e} from the WebUI's, without the LoRA {found[1]:.1e}")
    return found


@pytest.mark.parametrize("prompt", ["a red house on a hill", "a red house on a hill <lora:probe:0.5>"])
def test_the_lora_by_hooks_is_the_lora_that_the_webui_merges(on_face, face, prompt):
    """Beside another LoRA too, which the WebUI merges into the very modules that the hooks are on."""
    error, effect = by_hooks_and_merged(on_face, face, prompt)
    assert error <= 1e-4
    assert effect > 1e-2


def fresh(webui: WebUI) -> None:
    """sd1 in modules of its own again: the WebUI keeps weights in fp8 with the old ones, to put back after a LoRA."""
    with webui.set(sd_checkpoints_limit=1):
        for name in ("sdxl", "sd1"):
            webui.options(sd_model_checkpoint=f"{name}.safetensors")


def test_with_fp8_storage(on_face, face):
    """The WebUI merges into fp8 weights, which rounds the LoRA; its other way, by forwards, is what the hooks are. On
    the CPU it then computes in bfloat16, whose rounding is all that differs: one call, as CFG and steps multiply it."""
    once = {"steps": 1, "cfg_scale": 1}
    with on_face.set(fp8_storage="Enable"):
        base = on_face.images()
        with on_face.set(lora_functional=True):
            error, effect = by_hooks_and_merged(on_face, face, **once)
        rounded, _ = by_hooks_and_merged(on_face, face, **once)
        assert on_face.images({**face, "weight": 0}) == base
    on_face.options(fp8_storage="Disable")
    fresh(on_face)
    print(f"fp8: by forwards {error:.1e}, merged {rounded:.1e}, without {effect:.1e}")
    assert error <= 0.02
    assert effect > 5 * error


def test_a_lora_that_acts_twice_is_said(on_face, face):
    tag = {"prompt": "a red house on a hill <lora:faceid:0.5>"}
    said = "unit 1: the LoRA faceid in the prompt is the one inside sd1-faceid, so their strengths add up"
    before = on_face.log.count(said)
    on_face.images({**face, "lora": 0}, **tag)
    on_face.images({**face, "weight": 0}, **tag)
    on_face.images(face, prompt="a red house on a hill <lora:probe:0.5>")
    assert on_face.log.count(said) == before
    on_face.images(face, n_iter=2, **tag)
    assert on_face.log.count(said) == before + 1


def test_a_loras_file_beside_it_and_its_hires_pass(on_face, face):
    """The WebUI's own LoRA, which is on the very modules that the hooks are on, stays in force."""
    probe = {"prompt": "a red house on a hill <lora:probe:0.5>"}
    beside = on_face.images(face, **probe)
    assert beside not in (on_face.known(face), on_face.images(**probe))
    hires = {"enable_hr": True, "hr_scale": 2, "denoising_strength": 0.6, "hr_upscaler": "Latent"}
    base = on_face.known(**hires)
    assert on_face.images({**face, "passes": "hires"}, **hires) not in (base, on_face.images(face, **hires))
    assert on_face.images({**face, "passes": "hires", "hires_factor": 0}, **hires) == base


def test_sdxl(faces, on_sdxl, face):
    unit = {**face, "model": "sdxl-faceid"}
    base = on_sdxl.known()
    drawn = on_sdxl.images(unit)
    assert drawn not in (base, on_sdxl.images({**unit, "lora": 0}))
    assert on_sdxl.images({**unit, "weight": 0}) == base
    assert on_sdxl.images() == base


def test_two_people_by_masks(on_face, face):
    half = Image.new("L", (64, 64), 0)
    half.paste(255, (0, 0, 32, 64))
    units = [
        {**face, "face": "leftmost", "mask": b64(half)},
        {**face, "face": "rightmost", "mask": b64(half), "invert": True},
    ]
    drawn = on_face.images(*units)
    assert drawn not in (on_face.known(), on_face.images(units[0]), on_face.images(units[1]))
    swapped = [{**units[0], "face": "rightmost"}, {**units[1], "face": "leftmost"}]
    assert on_face.images(*swapped) != drawn


def test_the_region_of_a_face_in_the_picture(on_face, face):
    """Over an init image of two faces: what the unit changes is around the chosen one, in the WebUI's own order."""
    job = {"mode": "img2img", "init_images": [b64(TWO)], "denoising_strength": 0.5}
    unit = {"model": "sd1-base", "images": face["images"], "region": "face"}
    base = on_face.images(**job)
    drawn = {
        name: on_face.images({**unit, **fields}, **job)
        for name, fields in {"first": {"region_face": 0}, "second": {"region_face": 1}, "all": {"region": "mask"},
                             "grown": {"region_face": 0, "grow": 4}}.items()
    }  # fmt: skip
    assert len({tuple(images) for images in [base, *drawn.values()]}) == 5
    mask = Image.new("L", TWO.size)
    mask.paste(255, (128, 144, 192, 240))
    by_mask = one(on_face, {**unit, "region": "mask", "mask": b64(mask)}, **job)
    same(on_face, by_mask, one(on_face, {**unit, "region_face": 0, "grow": 1}, **job))
    assert "Region face needs one picture that is redrawn" in refused(on_face, unit)


@pytest.mark.parametrize("upscaler", ["Latent", "None"])
def test_the_region_of_a_face_in_a_hires_pass(on_face, face, upscaler):
    """The small checkpoint draws no face that the small detector sees: it says so, and for which picture."""
    job = {"enable_hr": True, "hr_scale": 2, "denoising_strength": 0.6, "hr_upscaler": upscaler}
    unit = {"model": "sd1-base", "images": face["images"], "region": "face", "passes": "hires"}
    said = refused(on_face, unit, **job)
    assert "no face was found in the picture that is redrawn (64 x 64 pixels" in said
    assert "in the hires pass only" in refused(on_face, {**unit, "passes": "both"}, **job)
    assert "batch size 1" in refused(on_face, unit, **job, batch_size=2)


@pytest.mark.parametrize("upscaler", ["Latent", "None"])
def test_a_hires_pass_acts_around_the_face_that_is_found(on_face, face, upscaler):
    """With a detector that sees faces everywhere."""
    job = {"enable_hr": True, "hr_scale": 2, "denoising_strength": 0.6, "hr_upscaler": upscaler}
    unit = {"model": "sd1-base", "images": face["images"], "passes": "hires", "region": "face", "grow": 1}
    pack = on_face.data / "models" / "insightface" / "models" / "buffalo_l"
    good = (pack / "det_10g.onnx").read_bytes()
    base, whole = on_face.known(**job), on_face.images({**unit, "region": "mask"}, **job)
    try:
        (pack / "det_10g.onnx").write_bytes(detector(everywhere=True))
        drawn = [on_face.images({**unit, "region_face": which}, **job) for which in ("leftmost", "rightmost")]
    finally:
        (pack / "det_10g.onnx").write_bytes(good)
    assert len({tuple(images) for images in (base, whole, *drawn)}) == 4
    assert on_face.images(**job) == base


def test_units_of_one_file_have_its_lora_once(on_face, face):
    twice = one(on_face, face, {**face, "lora": 0.5})
    same(on_face, twice, one(on_face, face, {**face, "lora": 0}), 2.0)


@pytest.mark.parametrize(("field", "typed"), [("face", "rightmost"), ("face", "1"), ("shortcut", "0.2"),
                                              ("lora", "0.4"), ("kind", "faceid-plus")])  # fmt: skip
def test_axes_of_the_plot(on_face, face, field, typed):
    unit = {**face, "model": "sd1-faceid-plusv2"}
    axis = next(one for one in AXES if one.name == field)
    reply = plot(on_face, unit, label(axis), typed)
    assert reply.status == 200, reply.body[:1000]
    given = float(typed) if axis.kind == "number" else typed
    changed = on_face.images({**unit, field: given}, steps=2)
    assert [pixels(reply.json["images"][-1])] == changed
    assert changed != on_face.known(unit, steps=2)


def test_messages(on_face, face):
    said = refused(on_face, {**face, "images": [b64(NOBODY)]})
    assert "no face was found in images[0] (300 x 200 pixels; tried at 640 pixels" in said
    assert "IP-Adapter unit 1" in said
    assert "face: got 2, expected a number below 2" in refused(on_face, {**face, "face": 2})
    assert "noise: got 0.5, expected 0" in refused(on_face, {**face, "noise": 0.5})
    assert "kind: got 'unnorm', expected auto, or faceid" in refused(on_face, {**face, "kind": "unnorm"})
    said = refused(on_face, {**face, "model": "sdxl-faceid"})
    assert "layer" in said


@pytest.mark.parametrize(("file", "said"), [("w600k_r50", "w600k_r50.onnx (of the pack buffalo_l)"),
                                            ("det_10g", "det_10g.onnx or scrfd_10g_bnkps.onnx")])  # fmt: skip
def test_a_missing_model_of_the_pack(on_face, face, file, said):
    pack = on_face.data / "models" / "insightface" / "models" / "buffalo_l"
    with without(pack / f"{file}.onnx"):
        message = refused(on_face, face)
    assert said in message
    assert "Put buffalo_l.zip, or its files, into" in message
    assert "non-commercial" in message
    on_face.images(face)


def test_a_recogniser_that_is_not_the_published_one_is_said(on_face, face):
    """It gives another person, and no error: the panel's chip alone is not seen over the API."""
    before = len(on_face.log)
    on_face.images(face)
    assert "w600k_r50.onnx is not buffalo_l's published file, by its hash" in on_face.log[before:]


def test_a_broken_model_of_the_pack(on_face, face):
    pack = on_face.data / "models" / "insightface" / "models" / "buffalo_l"
    good = (pack / "w600k_r50.onnx").read_bytes()
    try:
        (pack / "w600k_r50.onnx").write_bytes(good[: len(good) // 2])
        assert "w600k_r50.onnx" in refused(on_face, {**face, "images": [b64(picture((336, 336), radius=15))]})
    finally:
        (pack / "w600k_r50.onnx").write_bytes(good)


def test_the_route_that_finds_faces(on_face):
    reply = on_face.post("/ip-adapter/faces", {"image": b64(TWO)})
    assert reply.status == 200, reply.body
    found = reply.json
    assert (found["width"], found["height"], len(found["faces"])) == (640, 640, 2)
    assert [face["box"] for face in found["faces"]] == [[128, 144, 192, 240], [448, 368, 512, 464]]
    assert all(len(face["points"]) == 5 and 0.5 <= face["score"] <= 1 for face in found["faces"])
    for body, status in (({"image": b64(NOBODY)}, 422), ({"image": "x"}, 422), ({}, 422), ([], 422), (None, 422)):
        reply = on_face.post("/ip-adapter/faces", body)
        assert reply.status == status, reply.body
    assert "no face was found in image" in on_face.post("/ip-adapter/faces", {"image": b64(NOBODY)}).json["errors"]


def test_what_a_file_is_and_embeds_of_a_face(on_face, face):
    unit = {**face, "model": "sd1-faceid-plusv2"}
    found = on_face.post("/ip-adapter/inspect", {"model": unit["model"]}).json
    assert (found["variant"], found["lora_rank"], found["encoder"]) == ("faceid-plusv2", 4, "buffalo_l")
    with saved(on_face, "person", {**unit, "face": "rightmost"}):
        named = {**unit, "images": [{"embeds": "person"}]}
        assert on_face.images(named) == on_face.images({**unit, "face": "rightmost"})
        reply = on_face.draw({**named, "model": "sd1-faceid"})
        assert reply.status == 422
        assert "the adapter takes face features of buffalo_l" in reply.json["detail"]["message"]


def test_the_infotext_tells_the_face(on_face, face):
    reply = on_face.draw({**face, "face": "rightmost", "lora": 0.6})
    info = reply.json["info"]
    assert "rightmost" in info
    assert "lora" in info
