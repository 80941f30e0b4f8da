"""Against the classes of the reference package (tencent-ailab/IP-Adapter): image tokens of every kind with their
unconditional ones, and whole UNet calls with the LoRA that FaceID files bring along. Random weights, float32.

Skipped where no checkout is at IP_ADAPTER_DIR, by default ~/IP-Adapter.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from lib_ipadapter.adapters.adapter import Adapter
from lib_ipadapter.attention.session import ImagePrompt, Session
from lib_ipadapter.cache import Lazy
from lib_ipadapter.encoders.clip import normalised
from lib_ipadapter.encoders.spec import ENCODERS
from lib_ipadapter.prompts.combine import combine
from lib_ipadapter.prompts.encode import Features
from lib_ipadapter.prompts.project import TokenCache, Tokens, project
from tests.synthetic import adapter_tensors, nested, write_adapter

pytest.importorskip("diffusers", reason="diffusers is not installed")

from tests.parity.test_unet_parity import SD1, SDXL, TOLERANCE, face_id_state, inputs, relative, small

FOLDER = Path(os.environ.get("IP_ADAPTER_DIR", "~/IP-Adapter")).expanduser()
CONTEXTS = [768, 2048]
DEPTHS = {768: 4, 2048: 1}  # of four blocks alike; those of SDXL are far larger


@pytest.fixture(scope="module", autouse=True)
def package() -> Iterator[None]:
    """The reference package is importable inside."""
    if not (FOLDER / "ip_adapter" / "ip_adapter_faceid.py").is_file():
        pytest.skip(f"no tencent-ailab/IP-Adapter at {FOLDER} (set IP_ADAPTER_DIR)")
    sys.path.insert(0, str(FOLDER))
    try:
        yield
    finally:
        sys.path.remove(str(FOLDER))


def theirs_of(cls: Any, context: int, flat: dict[str, Tensor], **fields: Any) -> Any:
    """An instance of one of their classes with the projection that it makes, strictly filled by ``flat``."""
    made = cls.__new__(cls)
    unet = SimpleNamespace(config=SimpleNamespace(cross_attention_dim=context))
    vars(made).update({"device": "cpu", "torch_dtype": torch.float32, "pipe": SimpleNamespace(unet=unet), **fields})
    made.image_proj_model = made.init_proj()
    made.image_proj_model.load_state_dict(nested(flat)["image_proj"])
    return made


def ours_of(adapter: Adapter, features: list[dict[str, Tensor]], nothing: dict[str, Tensor], how: str = "concat",
            shortcut: float = 1.0) -> Tokens:  # fmt: skip
    """The tokens that a unit with these references has."""
    lazy = [Lazy(i, lambda one=one: one) for i, one in enumerate(features)]  # type: ignore[misc]
    given = Features(tuple(lazy), Lazy("nothing", lambda: nothing))
    return project(combine(how, given, [1.0] * len(lazy)), adapter, TokenCache(lambda: 2**30), shortcut)


def check(mine: Tokens, cond: Tensor, uncond: Tensor, what: str) -> None:
    errors = relative(mine.cond, cond), relative(mine.uncond, uncond)
    print(f"\n{what}: tokens {tuple(cond.shape)}, relative errors {errors[0]:.1e}, uncond {errors[1]:.1e}")
    assert mine.cond.shape == cond.shape
    assert mine.uncond.shape == uncond.shape
    assert relative(cond, uncond) > 0.02
    assert max(errors) <= TOLERANCE


def embeddings(count: int) -> Tensor:
    draw = torch.Generator().manual_seed(5)
    return torch.nn.functional.normalize(torch.randn(count, 512, generator=draw), dim=-1)


@pytest.mark.parametrize("context", CONTEXTS)
def test_tokens_of_face_id(context, tmp_path):
    from ip_adapter.ip_adapter_faceid import IPAdapterFaceID

    flat = adapter_tensors("faceid", context, (32,), 512, 4)
    face = embeddings(1)
    cond, uncond = theirs_of(IPAdapterFaceID, context, flat, num_tokens=4).get_image_embeds(face)
    adapter = Adapter.load(write_adapter(tmp_path / "a.safetensors", flat))
    check(ours_of(adapter, [{"face": face}], {"face": torch.zeros(1, 512)}), cond, uncond, f"FaceID, {context}")


@pytest.mark.parametrize("context", CONTEXTS)
def test_tokens_of_a_portrait_of_five_pictures(context, tmp_path):
    from ip_adapter.ip_adapter_faceid_separate import IPAdapterFaceID

    flat = adapter_tensors("faceid", context, (32,), 512, 16)
    faces = embeddings(5)
    theirs = theirs_of(IPAdapterFaceID, context, flat, num_tokens=16, n_cond=5)
    cond, uncond = theirs.get_image_embeds(faces[None])
    adapter = Adapter.load(write_adapter(tmp_path / "a.safetensors", flat))
    assert adapter.spec.variant == "portrait"
    mine = ours_of(adapter, [{"face": face[None]} for face in faces], {"face": torch.zeros(1, 512)})
    check(mine, cond, uncond, f"portrait, {context}")


class Patches(torch.nn.Module):
    """In the encoder's place: the penultimate state of patches, by one random layer."""

    config = SimpleNamespace(hidden_size=1280)

    def __init__(self) -> None:
        super().__init__()
        self.patches = torch.nn.Conv2d(3, 1280, 14, 14)

    def forward(self, pixels: Tensor, output_hidden_states: bool) -> Any:
        tokens = self.patches(pixels).flatten(2).transpose(1, 2)
        state = torch.cat([tokens.mean(1, keepdim=True), tokens], dim=1)
        return SimpleNamespace(hidden_states=[torch.zeros_like(state), state, torch.zeros_like(state)])


def test_tokens_of_face_id_plus(tmp_path):
    """Their own way from the aligned crop on: the processor, the state of the encoder, and that of zero pixels. SDXL's
    width: test_projection_parity has it."""
    context = 768
    from ip_adapter.ip_adapter_faceid import IPAdapterFaceIDPlus
    from transformers import CLIPImageProcessor

    flat = adapter_tensors("faceid-plus", context, (32,), 1280, 4, inner=context, depth=4)
    encoder, face = Patches().requires_grad_(False), embeddings(1)
    crop = Image.fromarray(np.random.default_rng(0).integers(0, 256, (224, 224, 3), np.uint8))
    theirs = theirs_of(IPAdapterFaceIDPlus, context, flat, num_tokens=4, image_encoder=encoder,
                       clip_image_processor=CLIPImageProcessor())  # fmt: skip
    pixels = normalised(crop, ENCODERS["ViT-H-14"])
    seen, empty = (encoder(one, True).hidden_states[-2] for one in (pixels, torch.zeros_like(pixels)))
    held = Adapter.load(write_adapter(tmp_path / "a.safetensors", flat))
    nothing = {"face": torch.zeros(1, 512), "penultimate": empty}
    for kind, shortcut in product(("faceid-plus", "faceid-plusv2"), (1.0, 0.4)):
        cond, uncond = theirs.get_image_embeds(face, crop, shortcut, kind == "faceid-plusv2")
        mine = ours_of(held.as_kind(kind), [{"face": face, "penultimate": seen}], nothing, shortcut=shortcut)
        check(mine, cond, uncond, f"{kind}, {context}, s = {shortcut}")


@pytest.mark.parametrize("context", CONTEXTS)
def test_tokens_of_base_and_full(context, tmp_path):
    from ip_adapter.ip_adapter import ImageProjModel, MLPProjModel

    kinds = {
        "base": (ImageProjModel(context, 1024, 4), torch.randn(1, 1024), 1024),
        "full": (MLPProjModel(context, 1280), torch.randn(1, 257, 1280), 1280),
    }
    for kind, (theirs, feature, width) in kinds.items():
        flat = adapter_tensors(kind, context, (32,), width, 4)
        theirs.load_state_dict(nested(flat)["image_proj"])
        adapter = Adapter.load(write_adapter(tmp_path / f"{kind}.safetensors", flat))
        name, empty = adapter.spec.feature, torch.zeros_like(feature)
        with torch.no_grad():
            mine = ours_of(adapter, [{name: feature}], {name: empty})
            check(mine, theirs(feature), theirs(empty), f"{kind}, {context}")


@pytest.mark.parametrize(
    ("kind", "context", "width", "dim"),
    [("plus", 768, 1280, 768), ("plus", 2048, 1280, 1280), ("unnorm", 2048, 512, 1280)],
)
def test_tokens_of_the_resampler(kind, context, width, dim, tmp_path):
    """plus over a picture's state; unnorm and InstantID over one raw embedding."""
    from ip_adapter.resampler import Resampler

    flat = adapter_tensors(kind, context, (32,), width, 16, dim=dim, inner=dim, depth=DEPTHS[context])
    theirs = Resampler(dim=dim, depth=DEPTHS[context], dim_head=64, heads=dim // 64, num_queries=16,
                       embedding_dim=width, output_dim=context, ff_mult=4)  # fmt: skip
    theirs.load_state_dict(nested(flat)["image_proj"])
    adapter = Adapter.load(write_adapter(tmp_path / f"{'portrait-' if kind == 'unnorm' else ''}a.safetensors", flat))
    assert adapter.spec.variant == kind
    feature = torch.randn(1, 257, width) if kind == "plus" else 20 * embeddings(1)
    name, shaped = adapter.spec.feature, feature if kind == "plus" else feature[:, None]
    with torch.no_grad():
        mine = ours_of(adapter, [{name: feature}], {name: torch.zeros_like(feature)})
        check(mine, theirs(shaped), theirs(torch.zeros_like(shaped)), f"{kind}, {context}")


@pytest.mark.parametrize("kind", ["faceid", "portrait"])
@pytest.mark.parametrize("config", [SD1, SDXL], ids=["sd1", "sdxl"])
def test_a_unet_call(config, kind, tmp_path):
    """Their loader puts the file into their processors, by its own numbers: the image branch, and FaceID's LoRA."""
    from ip_adapter import ip_adapter_faceid, ip_adapter_faceid_separate

    unet = small(config)
    state = face_id_state(unet)
    if kind == "portrait":
        state["ip_adapter"] = {key: value for key, value in state["ip_adapter"].items() if "_lora" not in key}
    file = tmp_path / "adapter.bin"
    torch.save(state, file)
    x, t, text, _ = inputs()
    face = embeddings(1)
    base = unet(x, t, text).sample
    adapter = Adapter.load(file)
    assert bool(adapter.spec.lora_rank) == (kind == "faceid")
    mine_tokens = ours_of(adapter, [{"face": face}], {"face": torch.zeros(1, 512)})
    tokens = torch.cat([mine_tokens.cond, mine_tokens.uncond])
    session = Session([ImagePrompt(adapter, tokens, torch.ones(tokens.shape[1]), weight=0.8)])
    with session.attached(unet):
        session.begin_step([0, 1], 0.0)
        mine = unet(x, t, text).sample
    assert torch.equal(unet(x, t, text).sample, base)
    pipe = SimpleNamespace(unet=unet, to=lambda device: pipe)
    module, more = (ip_adapter_faceid, {"lora_rank": 8}) if kind == "faceid" else (ip_adapter_faceid_separate, {})
    theirs = module.IPAdapterFaceID(pipe, str(file), "cpu", torch_dtype=torch.float32, **more)
    theirs.set_scale(0.8)
    with torch.no_grad():
        reference = unet(x, t, torch.cat([text, torch.cat(theirs.get_image_embeds(face))], dim=1)).sample
    error, effect = relative(mine, reference), relative(base, reference)
    print(f"\nUNet call, {kind}: relative error {error:.1e}, effect {effect:.2f}")
    assert effect > 0.01
    assert error <= TOLERANCE
