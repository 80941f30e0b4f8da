"""Pictures of all kinds to RGB as a person sees them, and RGB to the encoder's square.

Bounded: MAX_BYTES and MAX_PIXELS are checked before anything is decoded. A string is base64 or a data
URI, never a path or an address, so a request can make nothing else be opened.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import io
import logging
import re
import warnings
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
from PIL import Image, ImageCms

from ..errors import ImageError

MAX_BYTES = 64 * 2**20  # of the encoded file
MAX_PIXELS = 100_000_000
WHITE, BLACK = (255, 255, 255), (0, 0, 0)
NEUTRAL = (123, 117, 104)  # CLIP's mean colour: near zero once normalised
FORMATS = ("PNG", "JPEG", "MPO", "WEBP", "GIF", "BMP", "DIB", "TIFF", "ICO", "PPM", "TGA", "JPEG2000", "AVIF")

Colour = tuple[int, int, int]
logger = logging.getLogger(__name__)


def load(source: Any, background: Colour = WHITE) -> Image.Image:
    """An RGB picture of base64 text, a data URI, bytes, a Path, a PIL image or an array.

    The first frame of animations, upright by its EXIF, in sRGB by its colour profile, transparent parts
    over ``background``. Arrays: [H, W] or [H, W, 1 to 4] of uint8, uint16, bool, or floats from 0 to 1.
    Raises ImageError.
    """
    if isinstance(source, Image.Image):
        return _finish(_bounded(source), background)
    if isinstance(source, np.ndarray):
        return _finish(_from_array(source), background)
    return _finish(_decode(_bytes_of(source)), background)


def _bytes_of(source: Any) -> bytes:
    if isinstance(source, str):
        return _from_text(source)
    if isinstance(source, Path):
        return _from_file(source)
    if isinstance(source, (bytes, bytearray, memoryview)):
        return bytes(source)
    raise ImageError(
        f"a picture of type {type(source).__name__} cannot be read; expected base64 text, a data URI, bytes, "
        "a Path, a PIL image or an array"
    )


def _from_file(path: Path) -> bytes:
    try:
        size = path.stat().st_size
        _check_bytes(size)
        return path.read_bytes()
    except OSError as error:
        raise ImageError(f"the picture {path.name} cannot be opened: {error.strerror or error}") from error


def _from_text(text: str) -> bytes:
    shown = text if len(text) <= 40 else f"{text[:37]}..."
    if re.match(r"\s*(https?|ftp|file):", text, re.IGNORECASE):
        raise ImageError(
            f"{shown!r} is an address; addresses are not opened here, send the picture itself as base64"
        )
    if text[:5].lower() == "data:":
        head, comma, text = text.partition(",")
        if not comma or not head.lower().endswith(";base64"):
            raise ImageError(f"the data URI {shown!r} is not base64; expected data:image/...;base64,...")
    _check_bytes(len(text) * 3 // 4)
    compact = "".join(text.split()).rstrip("=")
    try:
        data = base64.b64decode(compact + "=" * (-len(compact) % 4), validate=True)
    except (binascii.Error, ValueError) as error:
        raise ImageError(f"{shown!r} is not base64 ({error}); expected base64 of a picture file") from error
    return data


def _check_bytes(count: int) -> None:
    if count > MAX_BYTES:
        raise ImageError(
            f"the picture has {count / 2**20:.1f} MB; at most {MAX_BYTES // 2**20} are read, make it smaller"
        )


def _check_size(width: int, height: int) -> None:
    if width < 1 or height < 1:
        raise ImageError(f"the picture is {width}x{height}; expected at least one pixel")
    if width * height > MAX_PIXELS:
        raise ImageError(
            f"the picture is {width}x{height}, {width * height / 1e6:.0f} megapixels; "
            f"at most {MAX_PIXELS / 1e6:.0f} are read; make it smaller"
        )


def _decode(data: bytes) -> Image.Image:
    """The first frame, decoded."""
    _check_bytes(len(data))
    _check_kind(data)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # our own bound stands instead of Pillow's warning
            image = Image.open(io.BytesIO(data), formats=_formats())
    except Image.DecompressionBombError as error:
        raise ImageError(
            f"the picture is too large: {error}; at most {MAX_PIXELS / 1e6:.0f} megapixels"
        ) from error
    except Image.UnidentifiedImageError:
        raise ImageError(
            f"{len(data)} bytes that begin with {data[:8]!r} are no picture that can be read; expected one "
            f"of {', '.join(_formats())}, whole"
        ) from None
    except Exception as error:  # decoders raise all kinds on malformed headers
        _undecodable(error)
    return _bounded(image)


def _formats() -> list[str]:
    """Formats whose decoders this Pillow has; the rest stay closed (EPS, for one, starts a program)."""
    Image.init()
    return [name for name in FORMATS if name in Image.OPEN]


def _check_kind(data: bytes) -> None:
    if not data:
        raise ImageError("the picture is empty (0 bytes); expected a picture file")
    head = data[:1024].lstrip().lower()
    if head.startswith((b"<svg", b"<?xml", b"<!doctype svg")):
        raise ImageError("the picture is an SVG drawing, which has no pixels; export it as PNG")
    if head.startswith((b"<!doctype", b"<html")):
        raise ImageError("the picture is a web page; expected a picture file")


def _bounded(image: Image.Image) -> Image.Image:
    """``image`` with its pixels loaded, if they are not too many."""
    _check_size(*image.size)
    try:
        image.load()
    except Exception as error:  # decoders raise all kinds on malformed data
        _undecodable(error)
    return image


def _undecodable(error: Exception) -> NoReturn:
    raise ImageError(
        f"the picture cannot be decoded ({str(error) or type(error).__name__}); is it cut short? Save it anew"
    ) from error


def _from_array(array: np.ndarray[Any, Any]) -> Image.Image:
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[:, :, 0]
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in (2, 3, 4)):
        raise ImageError(
            f"an array of shape {list(array.shape)} is no picture; expected [H, W] or [H, W, 1 to 4]"
        )
    _check_size(array.shape[1], array.shape[0])
    return Image.fromarray(np.ascontiguousarray(_eight_bits(array)))


def _eight_bits(array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """``array`` as uint8. Raises ImageError for floats outside 0..1 and other types."""
    if array.dtype == np.uint8:
        return array
    if array.dtype == np.bool_:
        return array.astype(np.uint8) * 255
    if array.dtype == np.uint16:
        return ((array.astype(np.uint32) + 128) // 257).astype(np.uint8)
    if not np.issubdtype(array.dtype, np.floating):
        raise ImageError(
            f"an array of {array.dtype} is no picture; expected uint8, uint16, bool or floats from 0 to 1"
        )
    low, high = float(array.min()), float(array.max())
    if not (low >= -1e-3 and high <= 1 + 1e-3):  # true for NaN as well
        raise ImageError(f"an array of floats from {low:g} to {high:g} is no picture; expected 0 to 1")
    levels: np.ndarray[Any, Any] = np.rint(np.clip(array, 0, 1) * 255).astype(np.uint8)
    return levels


def _finish(image: Image.Image, background: Colour) -> Image.Image:
    """Eight bits, sRGB, over the background, upright. Never changes the picture it was given."""
    orientation = _orientation(image)
    try:
        shallow = _shallow(image)
        colours, alpha = _split(shallow)
        colours = _to_srgb(colours, image.info.get("icc_profile"))
    except ImageError:
        raise
    except Exception as error:  # e.g. a mode that Pillow cannot convert
        _undecodable(error)
    if alpha is not None:
        canvas = Image.new("RGB", image.size, background)
        canvas.paste(colours, mask=alpha)
        colours = canvas
    return colours.transpose(orientation) if orientation is not None else colours


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


def _orientation(image: Image.Image) -> Image.Transpose | None:
    try:
        return _TURNS.get(image.getexif().get(0x0112, 1))
    except Exception:  # malformed EXIF is no reason to refuse a picture that can be seen
        logger.debug("EXIF that cannot be read is left aside", exc_info=True)
        return None


def _shallow(image: Image.Image) -> Image.Image:
    """16-bit, 32-bit and float greyscale to 8 bits, with their transparent value; others unchanged."""
    if not (image.mode.startswith("I") or image.mode == "F"):
        return image
    values = np.asarray(image)
    grey = _eight_bits(_as_uint16(values) if image.mode != "F" else _as_unit(values))
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


def _split(image: Image.Image) -> tuple[Image.Image, Image.Image | None]:
    """(colours in L, RGB or CMYK, alpha or None)."""
    see_through = image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info
    if see_through and image.mode != "CMYK":
        image = image.convert("RGBA")
        return image.convert("RGB"), image.getchannel("A")
    return (image if image.mode in ("L", "RGB", "CMYK") else image.convert("RGB")), None


def _to_srgb(image: Image.Image, profile: bytes | None) -> Image.Image:
    """``image`` as sRGB by its colour profile; as it stands, without one or with one that does not fit."""
    if profile:
        try:
            return _by_profile(image, profile)
        except (ImageCms.PyCMSError, OSError, ValueError, TypeError) as error:
            logger.debug("a colour profile that cannot be used is left aside: %s", error)
    return image.convert("RGB")


def _by_profile(image: Image.Image, profile: bytes) -> Image.Image:
    own = ImageCms.ImageCmsProfile(io.BytesIO(profile))
    space = own.profile.xcolor_space.strip()
    if space == "GRAY" and image.mode == "RGB":
        image = image.convert("L")
    if space == "RGB" and image.mode == "L":
        image = image.convert("RGB")
    intent = ImageCms.Intent.RELATIVE_COLORIMETRIC if space != "CMYK" else ImageCms.Intent.PERCEPTUAL
    converted = ImageCms.profileToProfile(
        image, own, ImageCms.createProfile("sRGB"), intent, outputMode="RGB"
    )
    assert converted is not None  # only with inPlace
    return converted


def fit(image: Image.Image, size: int, mode: str = "crop", background: Colour = NEUTRAL) -> Image.Image:
    """RGB ``image`` as the encoder's square of ``size`` pixels.

    crop: the shorter edge to ``size``, the middle of the longer one (as transformers' CLIPImageProcessor
    does). pad: the whole picture in the middle of ``background``. stretch: the whole, out of proportion.
    Raises ImageError for another mode.
    """
    if mode == "crop":
        return _crop(image, size)
    if mode == "pad":
        return _pad(image, size, background)
    if mode == "stretch":
        return image.resize((size, size), Image.Resampling.BICUBIC)
    raise ImageError(f"fit: got {mode!r}, expected crop, pad or stretch")


def _crop(image: Image.Image, size: int) -> Image.Image:
    """As transformers: resize, then crop. Of very long pictures only the middle is resized (equal but for
    Pillow's 32-bit coordinates), so that a strip of a few kilobytes cannot ask for gigabytes."""
    width, height = image.size
    shorter = min(width, height)
    new_width, new_height = int(size * width / shorter), int(size * height / shorter)
    left, top = (new_width - size) // 2, (new_height - size) // 2
    if max(new_width, new_height) <= 16 * size:
        whole = image.resize((new_width, new_height), Image.Resampling.BICUBIC)
        return whole.crop((left, top, left + size, top + size))
    per_x, per_y = width / new_width, height / new_height
    box = (left * per_x, top * per_y, min((left + size) * per_x, width), min((top + size) * per_y, height))
    return image.resize((size, size), Image.Resampling.BICUBIC, box=box)


def _pad(image: Image.Image, size: int, background: Colour) -> Image.Image:
    longer = max(image.size)
    width, height = (max(1, round(edge * size / longer)) for edge in image.size)
    canvas = Image.new("RGB", (size, size), background)
    whole = image.resize((width, height), Image.Resampling.BICUBIC)
    canvas.paste(whole, ((size - width) // 2, (size - height) // 2))
    return canvas


def content_hash(image: Image.Image) -> str:
    """16 hex digits of the picture's size and RGB values: equal for equal pixels, whatever the file."""
    rgb = image if image.mode == "RGB" else image.convert("RGB")
    digest = hashlib.sha256(f"{rgb.width}x{rgb.height}:".encode())
    digest.update(rgb.tobytes())
    return digest.hexdigest()[:16]
