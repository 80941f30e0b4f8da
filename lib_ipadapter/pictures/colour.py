"""Colours as they are seen: depth, transparency, colour profile, orientation."""

from __future__ import annotations

import io
import logging
from typing import Any

import numpy as np
from PIL import Image, ImageCms

from ..errors import ImageError

logger = logging.getLogger(__name__)


def eight_bits(array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """``array`` as uint8. Raises ImageError for floats outside 0..1 and other types."""
    if array.dtype == np.uint8:
        return array
    if array.dtype == np.bool_:
        return array.astype(np.uint8) * 255
    if array.dtype == np.uint16:
        return ((array.astype(np.uint32) + 128) // 257).astype(np.uint8)
    if not np.issubdtype(array.dtype, np.floating):
        raise ImageError(f"an array of {array.dtype} is no picture; expected uint8, uint16, bool or floats from 0 to 1")
    low, high = float(array.min()), float(array.max())
    if not (low >= -1e-3 and high <= 1 + 1e-3):  # true for NaN as well
        raise ImageError(f"an array of floats from {low:g} to {high:g} is no picture; expected 0 to 1")
    levels: np.ndarray[Any, Any] = np.rint(np.clip(array, 0, 1) * 255).astype(np.uint8)
    return levels


# EXIF 2.3, tag 274: how the stored picture must be turned to be upright
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def orientation(image: Image.Image) -> Image.Transpose | None:
    """How to turn the stored picture upright by its EXIF; None: it is. Not ImageOps.exif_transpose, which writes
    the EXIF anew and so fails on tags that can be skipped in reading."""
    try:
        return _TURNS.get(image.getexif().get(0x0112, 1))
    except Exception:  # malformed EXIF is no reason to refuse a picture that can be seen
        logger.debug("EXIF that cannot be read is ignored", exc_info=True)
        return None


def shallow(image: Image.Image) -> Image.Image:
    """16-bit, 32-bit and float greyscale to 8 bits, with their transparent value; others unchanged."""
    if not (image.mode.startswith("I") or image.mode == "F"):
        return image
    values = np.asarray(image)
    grey = eight_bits(_as_uint16(values) if image.mode != "F" else _as_unit(values))
    transparent = image.info.get("transparency")
    if not isinstance(transparent, int):
        return Image.fromarray(grey)
    alpha = np.where(values == transparent, 0, 255).astype(np.uint8)
    return Image.merge("LA", (Image.fromarray(grey), Image.fromarray(alpha)))


def _as_uint16(values: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Integers as 16 bits; deeper ones by their brightest value, as viewers show them."""
    high = int(values.max())
    if high > 65535:
        return np.clip(values / high * 65535, 0, 65535).astype(np.uint16)
    return np.clip(values, 0, 65535).astype(np.uint16)


def _as_unit(values: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Floats as 0..1; those that Pillow took from 8 bits are 0..255."""
    scale = 255.0 if 1.001 < float(values.max()) <= 255.0 else 1.0
    unit: np.ndarray[Any, Any] = values / scale
    return unit


def split(image: Image.Image) -> tuple[Image.Image, Image.Image | None]:
    """(colours in L, RGB or CMYK, alpha or None)."""
    see_through = image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info
    if see_through and image.mode != "CMYK":
        image = image.convert("RGBA")
        return image.convert("RGB"), image.getchannel("A")
    return (image if image.mode in ("L", "RGB", "CMYK") else image.convert("RGB")), None


def to_srgb(image: Image.Image, profile: bytes | None) -> Image.Image:
    """``image`` as sRGB by its colour profile; as it stands, without one or with one that does not fit."""
    if profile:
        try:
            return _by_profile(image, profile)
        except (ImageCms.PyCMSError, OSError, ValueError, TypeError) as error:
            logger.debug("a colour profile that cannot be used is ignored: %s", error)
    return image.convert("RGB")


def _by_profile(image: Image.Image, profile: bytes) -> Image.Image:
    source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
    space = source.profile.xcolor_space.strip()
    if space == "GRAY" and image.mode == "RGB":
        image = image.convert("L")
    if space == "RGB" and image.mode == "L":
        image = image.convert("RGB")
    intent = ImageCms.Intent.RELATIVE_COLORIMETRIC if space != "CMYK" else ImageCms.Intent.PERCEPTUAL
    converted = ImageCms.profileToProfile(image, source, ImageCms.createProfile("sRGB"), intent, outputMode="RGB")
    assert converted is not None  # only with inPlace
    return converted
