"""Pictures from the real WebUI: the base model where it must be, and the same picture on every path."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from .harness import WebUI, b64, decode, picture, pixels

LONG = ", ".join(f"a {c} {t} by the {p}" for c in ("red", "green", "blue", "grey") for t in ("house", "tree", "boat")
                 for p in ("river", "hill", "sea"))  # fmt: skip
OPTIMISERS = [
    "None", "Doggettx", "InvokeAI", "V1", "sub-quadratic", "sdp - scaled dot product",
    "sdp-no-mem - scaled dot product without memory efficient attention",
]  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def one_model(webui: WebUI) -> Iterator[None]:
    """Only one model stays loaded, as by default: the next one takes its place."""
    with webui.set(sd_checkpoints_limit=1):
        yield


def same(webui: WebUI, a: str, b: str, tolerance: float = 1.0) -> None:
    """Two base64 pictures are equal to rounding: no pixel channel differs by more than a step or two."""
    difference = (decode(a) - decode(b)).abs()
    assert difference.mean() < tolerance / 10, f"mean difference {difference.mean():.3f}"
    assert difference.max() <= 3 * tolerance, f"largest difference {difference.max():.0f}"


def one(webui: WebUI, *units: object, **payload: object) -> str:
    reply = webui.draw(*units, **payload)
    assert reply.status == 200, reply.body[:1000]
    return reply.json["images"][0]


def test_a_unit_changes_the_picture_and_off_is_the_base_hash_for_hash(on_sd1, unit):
    base, drawn = on_sd1.known(), on_sd1.known(unit)
    assert drawn != base
    assert on_sd1.images(unit) == drawn
    assert on_sd1.images({**unit, "weight": 0}) == base
    assert on_sd1.images({**unit, "enabled": False}) == base
    assert on_sd1.images({**unit, "start": 0.9}) == base  # 3 steps: 0, 1/3, 2/3
    assert on_sd1.images(False) == base
    assert on_sd1.images() == base


def test_sdxl(on_sdxl, unit):
    base, drawn = on_sdxl.known(), on_sdxl.images({**unit, "model": "sdxl-base"})
    assert drawn != base
    assert on_sdxl.images({**unit, "model": "sdxl-plus"}) not in (base, drawn)
    assert on_sdxl.images({**unit, "model": "sdxl-base", "weight": 0}) == base
    assert on_sdxl.images() == base


@pytest.mark.parametrize("variant", ["sd1-plus", "sd1-full", "pickled"])
def test_every_variant_acts(on_sd1, unit, variant):
    drawn = on_sd1.images({**unit, "model": variant})
    assert drawn != on_sd1.known()
    if variant == "pickled":  # the same weights as sd1-base in another container
        assert drawn == on_sd1.known(unit)


@pytest.mark.parametrize("prompt", ["a red house", LONG], ids=["equal length", "unequal length"])
def test_batched_split_and_padded_give_the_same_picture(on_sd1, unit, prompt):
    drawn = {}
    for batched in (True, False):
        with on_sd1.set(batch_cond_uncond=batched):
            drawn[batched] = one(on_sd1, unit, prompt=prompt)
    same(on_sd1, drawn[True], drawn[False])
    assert drawn[True] != one(on_sd1, prompt=prompt)


def test_and_prompts_split_over_chunks_that_mix_cond_and_uncond(on_sd1, unit):
    prompt = "a red house AND a blue boat AND a green tree"
    whole = on_sd1.draw(unit, prompt=prompt, batch_size=2).json["images"]
    with on_sd1.set(batch_cond_uncond=False):
        split = on_sd1.draw(unit, prompt=prompt, batch_size=2).json["images"]
    for a, b in zip(whole[-2:], split[-2:], strict=True):
        same(on_sd1, a, b)


def test_images_of_a_batch_are_those_drawn_alone(on_sd1, unit):
    together = on_sd1.draw(unit, batch_size=2, n_iter=2, do_not_save_grid=True).json["images"][-4:]
    for i, image in enumerate(together):
        same(on_sd1, image, one(on_sd1, unit, seed=1 + i))


def test_skipped_uncond(on_sd1, unit):
    with on_sd1.set(skip_early_cond=0.4):
        assert on_sd1.images(unit, steps=4) != on_sd1.images(steps=4)
    with on_sd1.set(s_min_uncond=4.0):
        ngms = on_sd1.images(unit, steps=4)
        assert ngms != on_sd1.images(steps=4)
    assert ngms != on_sd1.known(unit, steps=4)


@pytest.fixture(scope="module")
def by_invoke(webui, unit):
    """The picture with the optimiser that the others are compared with."""
    webui.options(sd_model_checkpoint="sd1.safetensors")
    with webui.set(cross_attention_optimization="InvokeAI"):
        return one(webui, unit)


@pytest.mark.parametrize("optimiser", OPTIMISERS)
def test_every_optimiser_gives_the_same_picture(on_sd1, unit, by_invoke, optimiser):
    with on_sd1.set(cross_attention_optimization=optimiser):
        same(on_sd1, one(on_sd1, unit), by_invoke, 2.0)
        assert on_sd1.images({**unit, "weight": 0}) == on_sd1.images()


SAMPLERS = [
    "DPM++ 2M", "DPM++ SDE", "DPM++ 2M SDE", "DPM++ 2S a", "DPM++ 3M SDE", "Euler a", "LMS", "Heun", "DPM2", "DPM2 a",
    "DPM fast", "DPM adaptive", "Restart", "DDIM", "DDIM CFG++", "PLMS", "UniPC", "LCM",
]  # fmt: skip


EACH_KIND = ("DPM++ 2M", "DDIM", "UniPC")  # of k-diffusion, and the two kinds that the WebUI has beside it


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_every_sampler(on_sd1, unit, sampler):
    job = {"sampler_name": sampler, "steps": 4}
    base = on_sd1.images(**job)
    assert on_sd1.images(unit, **job) != base
    if sampler in EACH_KIND:
        assert on_sd1.images({**unit, "weight": 0}, **job) == base


def test_start_and_end_share_the_sampling(on_sd1, unit):
    whole = on_sd1.known(unit, steps=4)
    first = on_sd1.images({**unit, "end": 0.5}, steps=4)
    second = on_sd1.images({**unit, "start": 0.5}, steps=4)
    base = on_sd1.known(steps=4)
    assert len({*whole, *first, *second, *base}) == 4
    halves = [{**unit, "end": 0.5}, {**unit, "start": 0.5}]
    assert on_sd1.images(*halves, steps=4) == whole


def test_units_add_up(on_sd1, unit):
    half = {**unit, "weight": 0.5}
    same(on_sd1, one(on_sd1, half, half), one(on_sd1, unit))


def test_args_may_be_one_list_of_any_number_of_units(on_sd1, unit):
    assert on_sd1.images([unit]) == on_sd1.known(unit)
    many = [{**unit, "weight": 0.025} for _ in range(40)]
    same(on_sd1, one(on_sd1, many), one(on_sd1, unit))


def test_several_images(on_sd1, unit, reference):
    other = b64(picture(1))
    twice = {**unit, "images": [reference, reference]}
    same(on_sd1, one(on_sd1, twice), one(on_sd1, unit))  # attention over copies is attention over one
    both = {**unit, "images": [reference, other]}
    mean = {**both, "combine": "average"}
    drawn = {on_sd1.known(unit)[0], *(on_sd1.images(x)[0] for x in ({**unit, "images": [other]}, both, mean))}
    assert len(drawn) == 4
    weighted = {**unit, "images": [{"image": reference, "weight": 0.5}]}
    assert on_sd1.images(weighted) == on_sd1.images({**unit, "weight": 0.5})


def test_fit_matters_for_a_picture_that_is_not_square(on_sd1, unit):
    drawn = {on_sd1.images({**unit, "fit": fit})[0] for fit in ("crop", "pad", "stretch")}
    assert len(drawn) == 3
    square = {**unit, "images": [b64(picture(3, (64, 64)))]}
    assert len({on_sd1.images({**square, "fit": fit})[0] for fit in ("crop", "pad", "stretch")}) == 1


HIRES = {
    "enable_hr": True,
    "hr_scale": 2,
    "hr_upscaler": "Latent",
    "denoising_strength": 0.7,
    "hr_second_pass_steps": 3,
}


def test_hires_fix_acts_in_both_passes(on_sd1, unit):
    base = on_sd1.known(**HIRES)
    assert on_sd1.images(unit, **HIRES) != base
    assert on_sd1.images({**unit, "weight": 0}, **HIRES) == base


@pytest.mark.parametrize("sampler", ["DDIM", "DPM2"])
def test_hires_fix_with_another_checkpoint_and_sampler(on_sd1, unit, sampler):
    hires = {**HIRES, "hr_checkpoint_name": "sd1-other.safetensors", "hr_sampler_name": sampler}
    base = on_sd1.images(**hires)
    drawn = on_sd1.images(unit, **hires)
    assert drawn != base
    assert on_sd1.images(unit, **hires) == drawn
    assert on_sd1.images(**hires) == base


def test_hires_fix_with_a_checkpoint_that_does_not_fit_is_an_error(on_sd1, unit):
    base = on_sd1.known()
    reply = on_sd1.draw(unit, **HIRES, hr_checkpoint_name="sd1-wide.safetensors")
    assert reply.status == 422
    assert "text tokens are 384 wide in the model and 256" in reply.json["errors"]
    assert on_sd1.images() == base


def test_refiner_of_another_shape_only_finishes(on_sdxl, unit):
    unit = {**unit, "model": "sdxl-base"}
    refined = {"refiner_checkpoint": "sdxl-refiner.safetensors", "refiner_switch_at": 0.5, "steps": 4}
    base = on_sdxl.images(**refined)
    reply = on_sdxl.draw(unit, **refined)
    assert reply.status == 200, reply.body[:1000]
    assert "did not act in the refiner" in on_sdxl.log
    assert [pixels(image) for image in reply.json["images"]] != base
    assert on_sdxl.images(**refined) == base


def test_refiner_of_the_same_shape_is_prompted_too(on_sd1, unit):
    refined = {"refiner_checkpoint": "sd1-other.safetensors", "refiner_switch_at": 0.5, "steps": 4}
    late = {**unit, "start": 0.5}
    assert on_sd1.images(late, **refined) != on_sd1.images(**refined)


def img2img(**payload):
    return {
        "mode": "img2img",
        "init_images": [b64(picture(5, (64, 64)))],
        "denoising_strength": 0.8,
        **payload,
    }


def test_img2img(on_sd1, unit):
    on_sd1.images(**img2img())  # the WebUI's first img2img after loading a model differs from its next
    base = on_sd1.images(**img2img())
    assert on_sd1.images(unit, **img2img()) != base
    assert on_sd1.images({**unit, "weight": 0}, **img2img()) == base


def test_the_picture_of_img2img_is_a_reference(on_sd1, unit):
    """As it is when the job runs, so that the unit need not be changed for another one."""
    on_sd1.images(**img2img())  # the first after loading a model differs
    live = {**unit, "images": [{"input": "img2img", "weight": 0.5}]}
    for number in (5, 6):
        payload = img2img(init_images=[b64(picture(number, (64, 64)))])
        given = {**unit, "images": [{"image": b64(picture(number, (64, 64))), "weight": 0.5}]}
        assert on_sd1.images(live, **payload) == on_sd1.images(given, **payload)
    (text,) = json.loads(on_sd1.draw(live, **payload).json["info"])["infotexts"]
    assert r"{\"input\": \"img2img\", \"weight\": 0.5}" in text
    two = img2img(init_images=[b64(picture(5, (64, 64))), b64(picture(6, (64, 64)))], batch_size=2)
    on_sd1.images(**two)
    turns = {**unit, "images": [{"input": "img2img"}], "distribute": "one per picture"}
    wanted = {**turns, "images": [b64(picture(5, (64, 64))), b64(picture(6, (64, 64)))]}
    assert on_sd1.images(turns, **two) == on_sd1.images(wanted, **two)


def test_txt2img_has_no_picture_of_img2img(on_sd1, unit):
    reply = on_sd1.draw({**unit, "images": [{"input": "img2img"}]})
    assert reply.status == 422
    assert reply.json["detail"]["field"] == "images"
    assert "expected a job of img2img" in reply.body.decode()


@pytest.mark.parametrize("only_masked", [False, True])
def test_inpaint_keeps_what_is_outside_the_mask(on_sd1, unit, only_masked):
    from PIL import Image

    mask = Image.new("L", (64, 64), 0)
    mask.paste(255, (16, 16, 48, 48))
    payload = img2img(mask=b64(mask), inpaint_full_res=only_masked, mask_blur=0, inpainting_fill=1)
    base = decode(one(on_sd1, **payload))
    drawn = decode(one(on_sd1, unit, **payload))
    change = (base - drawn).abs().sum(-1)
    assert change[16:48, 16:48].mean() > 1
    assert change[:12].max() == 0


def test_instruct_pix2pix_has_two_uncond_rows(webui, unit):
    webui.options(sd_model_checkpoint="pix2pix.safetensors")
    for scale in (1.0, 2.0):
        payload = img2img(image_cfg_scale=scale)
        webui.images(**payload)
        base = webui.images(**payload)
        assert webui.images(unit, **payload) != base
        assert webui.images({**unit, "weight": 0}, **payload) == base


@pytest.mark.parametrize(
    "settings",
    [
        {"token_merging_ratio": 0.5},
        {"hypertile_enable_unet": True},
        {"pad_cond_uncond": True},
        {"pad_cond_uncond_v0": True},
        {"upcast_attn": True},
        {"comma_padding_backtrack": 0},
    ],
    ids=lambda s: next(iter(s)),
)
def test_next_to_the_webuis_own_options(on_sd1, unit, settings):
    with on_sd1.set(**settings):
        base = on_sd1.images(prompt=LONG)
        assert on_sd1.images(unit, prompt=LONG) != base
        assert on_sd1.images({**unit, "weight": 0}, prompt=LONG) == base


def test_switching_checkpoints_between_runs(webui, unit):
    webui.options(sd_model_checkpoint="sd1.safetensors")
    base, drawn = webui.images(), webui.images(unit)
    webui.options(sd_model_checkpoint="sdxl.safetensors")
    assert webui.draw(unit).status == 422
    webui.images({**unit, "model": "sdxl-base"})
    webui.options(sd_model_checkpoint="sd1.safetensors")
    assert webui.images() == base
    assert webui.images(unit) == drawn


def test_an_override_checkpoint_of_the_request(on_sd1, unit):
    other = {"override_settings": {"sd_model_checkpoint": "sd1-other.safetensors"}}
    assert on_sd1.images(unit, **other) != on_sd1.images(**other)
