"""Beside what Forge and reForge bring along: their own IP-Adapter draws the same picture as ours, their guidance, tiles
and networks are followed, and what their ControlNet lists does not change."""

from __future__ import annotations

import pickle
from typing import Any

import pytest

from .forks import FOLDERS, Fork, absent, couple, full_title, largest
from .harness import b64, picture
from .test_generation import LONG

PICTURE = b64(picture(5, (224, 224)))  # of the encoder's size, so that both encode the same pixels
MULTI = "MultiDiffusion Integrated"
TILES = {"width": 128, "height": 64, "steps": 1}  # two tiles of 64 x 64


def ours(weight: float = 1.0, model: str = "ip-adapter_vit-l") -> dict[str, Any]:
    return {"model": model, "images": [PICTURE], "weight": weight}


def tiles(method: str = "MultiDiffusion", batch: int = 1) -> dict[str, Any]:
    """Tiles of 64 x 64 that do not overlap, so many in a call."""
    return {MULTI: {"args": [True, method, 64, 64, 0, batch]}}


# Not img2img: the forks' encoder of pictures draws from torch's own random numbers, so no picture comes twice.
SITUATIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "cfg 1": {"cfg_scale": 1},
    "AND": {"prompt": "a red house AND a blue boat"},
    "a batch": {"batch_size": 2},
    "unequal prompts": {"prompt": LONG},
    "a LoRA": {"prompt": "a red house <lora:probe:1>"},
    # reForge's divides by zero where the middle block is a single place.
    "self-attention guidance": {
        "width": 128,
        "height": 128,
        "scripts": {"SelfAttentionGuidance Integrated": {"args": [True, 0.5, 2.0]}},
    },
    # Its steps are counted from 0 to 1, so there must be two.
    "perturbed attention": {"steps": 2, "scripts": {"PerturbedAttentionGuidance Integrated": {"args": [True, 3.0]}}},
    "one part in a picture of the batch and two in the other": {
        "prompt": "a red house|AND a blue boat",
        "batch_size": 2,
        "script_name": "prompt matrix",
        "script_args": [False, False, "positive", "comma", 0],
    },
    "tiles": {**TILES, "scripts": tiles()},
    "mixed tiles": {**TILES, "scripts": tiles("Mixture of Diffusers")},
}


@pytest.mark.parametrize("name", SITUATIONS)
def test_the_same_picture_as_its_own_ip_adapter(fork: Fork, name: str) -> None:
    situation = {"steps": 1, **SITUATIONS[name]}
    scripts = full_title(fork, situation.pop("scripts", {}))
    theirs = fork.draw(scripts={**scripts, **fork.own_adapter(PICTURE)}, **situation)
    both = fork.draw(ours(), scripts=scripts, **situation)
    assert largest(theirs, both) <= 1
    assert largest(fork.draw(ours(0), scripts=scripts, **situation), both) > 10


@pytest.mark.parametrize("name", ["plain", "self-attention guidance", "perturbed attention", "mixed tiles"])
def test_off_is_the_base_bit_for_bit(fork: Fork, name: str) -> None:
    situation = {"steps": 1, **SITUATIONS[name]}
    scripts = full_title(fork, situation.pop("scripts", {}))
    base = fork.draw(scripts=scripts, **situation)
    fork.draw(ours(), scripts=scripts, **situation)
    assert largest(base, fork.draw(ours(0), scripts=scripts, **situation)) == 0
    assert largest(base, fork.draw(scripts=scripts, **situation)) == 0


def test_the_same_with_a_resampler(fork: Fork) -> None:
    """At cfg 1: its uncond is the encoding of a black picture, ours that of zeros, as the adapter was trained."""
    theirs = fork.draw(scripts=fork.own_adapter(PICTURE, model="ip-adapter-plus_vit-l"), cfg_scale=1, steps=1)
    assert largest(theirs, fork.draw(ours(model="ip-adapter-plus_vit-l"), cfg_scale=1, steps=1)) <= 1


def test_terms_add(fork: Fork) -> None:
    """Half by each is all by either; ours off leaves its picture as it is, bit for bit. (reForge's own multiplies by
    its weight twice.)"""
    one = {"steps": 1}
    whole = fork.draw(scripts=fork.own_adapter(PICTURE), **one)
    half = fork.own_adapter(PICTURE, 0.5**0.5 if fork.host == "reforge" else 0.5)
    assert largest(fork.draw(ours(0.5), scripts=half, **one), whole) <= 1
    alone = fork.draw(scripts=half, **one)
    assert largest(alone, whole) > 1
    assert largest(fork.draw(ours(0), scripts=half, **one), alone) == 0


@pytest.mark.parametrize("method", ["MultiDiffusion", "Mixture of Diffusers"])
@pytest.mark.parametrize("where", ["everywhere", "left half"])
def test_several_tiles_in_a_call_draw_what_one_in_a_call_draws(fork: Fork, method: str, where: str) -> None:
    mask = picture(0, (128, 64)).convert("L").point(lambda _: 0)
    mask.paste(255, (0, 0, 64, 64))
    unit = ours() if where == "everywhere" else {**ours(), "mask": b64(mask)}
    by_one, by_four = (full_title(fork, tiles(method, batch)) for batch in (1, 4))
    one, several = (fork.draw(unit, scripts=scripts, **TILES) for scripts in (by_one, by_four))
    assert largest(one, several) <= 1
    assert largest(fork.draw({**unit, "weight": 0}, scripts=by_four, **TILES), several) > 10


def test_tiles_of_a_batch_with_a_reference_each(fork: Fork) -> None:
    unit = {**ours(), "images": [PICTURE, b64(picture(6, (224, 224)))], "distribute": "one per picture"}
    scripts = [full_title(fork, tiles(batch=batch)) for batch in (1, 4)]
    one, several = (fork.draw(unit, scripts=tiled, batch_size=2, **TILES) for tiled in scripts)
    assert largest(one, several) <= 1


@pytest.mark.parametrize("batch", [1, 2])
def test_forge_couple_with_the_same_prompt_for_each_region(fork: Fork, batch: int) -> None:
    """It repeats the cond rows once for each region. With equal prompts the regions draw what no regions draw. (Prompts
    of several chunks it refuses by itself, with no unit: "k and v should be the same".)"""
    if not couple().is_dir():
        pytest.skip(f"no sd-forge-couple at {couple()} (set FORGE_COUPLE_DIR)")
    scripts = full_title(fork, {"Forge Couple": {"args": [True, False, "Basic", "", "Horizontal", "None", 0.5]}})
    one = {"steps": 1, "batch_size": batch}
    text = "a red house"
    lines = {"prompt": f"{text}\n{text}", "scripts": scripts, **one}
    plain, coupled = fork.draw(ours(), prompt=text, **one), fork.draw(ours(), **lines)
    assert largest(plain, coupled) <= 1
    base = fork.draw(**lines)
    assert largest(base, coupled) > 10
    assert largest(base, fork.draw(ours(0), **lines)) == 0


LISTS = ("/controlnet/model_list", "/controlnet/module_list", "/controlnet/control_types")


@pytest.mark.parametrize("host", sorted(FOLDERS))
def test_its_lists_are_the_same_with_and_without_the_extension(host: str) -> None:
    if reason := absent(host):
        pytest.skip(reason)
    lists = []
    for installed in (True, False):
        with Fork(host, with_extension=installed) as running:
            lists.append([running.get(path).json for path in LISTS])
            scripts = running.get("/sdapi/v1/scripts").json
            assert ("ip-adapter" in scripts["txt2img"]) is installed
            # Their order is that of the extensions' folders and of their files.
            lists[-1].append({tab: sorted({*names} - {"ip-adapter"}) for tab, names in scripts.items()})
    assert lists[0] == lists[1]
    assert "CLIP-ViT-H (IPAdapter)" in lists[0][1]["module_list"]


class Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return print, ("ran",)


@pytest.mark.parametrize("folder", ["ipadapter", "ControlNet"])
def test_a_refused_file_keeps_its_name(fork: Fork, folder: str) -> None:
    """The forks rename what their torch.load and safetensors readers refuse."""
    files = {
        "evil.bin": pickle.dumps({"image_proj": Evil(), "ip_adapter": {}}),
        "short.bin": b"PK\x03\x04 and no more",
        "cut.safetensors": b"\xff\xff\xff\x00\x00\x00\x00\x00{",
    }
    home = fork.data / "models" / folder
    before = sorted(path.name for path in home.iterdir())
    for name, content in files.items():
        (home / name).write_bytes(content)
    try:
        for name in files:
            assert fork.draw({**ours(), "model": name.partition(".")[0]}).status == 422
            assert fork.post("/ip-adapter/inspect", {"model": name}).status == 422
        assert sorted(path.name for path in home.iterdir()) == sorted([*before, *files])
    finally:
        for path in home.iterdir():
            if path.name not in before:
                path.unlink()
