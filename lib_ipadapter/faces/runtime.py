"""onnxruntime and cv2, imported when a face is first looked for; a missing one is an error with the remedy."""

from __future__ import annotations

import importlib
import os
from typing import Any

from ..errors import FaceModelError, FacesUnavailable
from .onnx_graph import refuse_hostile

THREADS = 4  # more oversubscribe the CPU in containers; one picture takes well below a second
_RUNTIME = "onnxruntime>=1.15,<1.27"  # newer ones need a protobuf that the WebUI's other packages refuse
MAX_BYTES = 1 << 30  # of an ONNX file; the largest known one has 261 MB


def _package(name: str, install: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise FacesUnavailable(
            f"faces need the Python package {name}, which cannot be imported ({error}). Install it into the WebUI's "
            f'environment: pip install "{install}"',
            package=name,
        ) from error


def available() -> None:
    """Raises FacesUnavailable where a package is missing."""
    cv2()
    _package("onnxruntime", _RUNTIME)


def cv2() -> Any:
    """OpenCV. Raises FacesUnavailable."""
    return _package("cv2", "opencv-python-headless")


def threads() -> int:
    """Those of a session: THREADS, or fewer where the environment's OMP_NUM_THREADS says so, as torch takes it."""
    said = os.environ.get("OMP_NUM_THREADS", "")
    return min(THREADS, max(1, int(said))) if said.isdecimal() else THREADS


def session(content: bytes, name: str) -> Any:
    """An onnxruntime session on the CPU for the bytes of an ONNX file, which must hold all of its weights. Raises
    FacesUnavailable, FaceModelError."""
    runtime = _package("onnxruntime", _RUNTIME)
    refuse_hostile(content, name)
    options = runtime.SessionOptions()
    options.intra_op_num_threads = threads()
    options.log_severity_level = 4  # a refused file is our error, not a log line
    try:
        return runtime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime has no public base class for its exceptions
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        raise FaceModelError(
            f"{name}: not an ONNX model that onnxruntime can load ({reason}); download it again", file=name
        ) from None


def run(model: Any, name: str, blob: Any) -> list[Any]:
    """The model's outputs for ``blob`` [1, 3, H, W] float32. Raises FaceModelError."""
    try:
        outputs: list[Any] = model.run(None, {model.get_inputs()[0].name: blob})
    except Exception as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        raise FaceModelError(f"{name}: the model cannot be run ({reason}); download it again", file=name) from None
    return outputs
