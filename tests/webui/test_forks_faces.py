"""Faces in Forge and reForge: the WebUI's own tests (test_faces.py) with adapters of SD1.5's widths."""

from __future__ import annotations

import pytest

from tests.synthetic import SD1_WIDTHS, adapter_tensors, write_adapter

from .forks import Fork, python
from .harness import WebUI
from .packages import missing
from .test_faces import (
    CLIP,
    face,
    test_a_face_changes_the_picture_and_off_is_the_base,
    test_a_lora_that_acts_twice_is_said,
    test_the_lora_by_hooks_is_the_lora_that_the_webui_merges,
    test_two_people_by_masks,
    write_as_lora,
    write_pack,
)

__all__ = [
    "face",
    "test_a_face_changes_the_picture_and_off_is_the_base",
    "test_a_lora_that_acts_twice_is_said",
    "test_the_lora_by_hooks_is_the_lora_that_the_webui_merges",
    "test_two_people_by_masks",
]


@pytest.fixture(scope="module")
def faces(fork: Fork) -> Fork:
    """The fork with face adapters and a pack of small face models."""
    if missing(python(fork.host), "onnxruntime"):
        pytest.skip(f"{fork.host}'s Python has no onnxruntime")
    sd1 = {"context": 768, "widths": SD1_WIDTHS, "feature_width": CLIP, "seed": 7, "inner": 256}
    files = {
        "sd1-faceid": adapter_tensors("faceid", **sd1, lora=4),
        "sd1-faceid-plusv2": adapter_tensors("faceid-plus", **sd1, lora=4),
        "sd1-portrait": adapter_tensors("faceid", **sd1, tokens=16),
    }
    for name, flat in files.items():
        write_adapter(fork.data / "models" / "ipadapter" / f"{name}.safetensors", flat)
    write_as_lora(files["sd1-faceid"], fork.data / "models" / "Lora" / "faceid.safetensors")
    write_pack(fork.data / "models" / "insightface" / "models", "buffalo_l", seed=1)
    fork.get("/ip-adapter/model_list")
    fork.post("/sdapi/v1/refresh-loras", {})
    return fork


@pytest.fixture
def on_face(faces: Fork) -> WebUI:
    return faces
