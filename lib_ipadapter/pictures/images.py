"""Pictures of all kinds to RGB as a person sees them, and RGB to the encoder's square.

MAX_BYTES and MAX_PIXELS are checked before anything is decoded. A string is base64 or a data URI, never a
path or an address, so a request cannot open anything else.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import io
import re
import warnings
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
from PIL import Image

from ..errors import ImageError
from . import colour, heif, kinds, png

MAX_BYTES = 64 * 2**20  # of the encoded file
MAX_PIXELS = 100_000_000
WHITE, BLACK = (255, 255, 255), (0, 0, 0)
NEUTRAL = (123, 117, 104)  # CLIP's mean colour: near zero once normalised
FORMATS = ("PNG", "JPEG", "MPO", "WEBP", "GIF", "BMP", "DIB", "TIFF", "ICO", "PPM", "TGA", "JPEG2000", "AVIF")

# Names of files that are pictures: in folders of references, of training data and of evaluations alike
SUFFIXES = (
    ".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".gif", ".bmp", ".dib", ".tif", ".tiff", ".tga", ".jp2",
    ".avif", ".ppm", ".ico", ".heic", ".heif",
)  # fmt: skip

Colour = tuple[int, int, int]
_LAID_DOWN = (
    Image.Transpose.ROTATE_90, Image.Transpose.ROTATE_270, Image.Transpose.TRANSPOSE, Image.Transpose.TRANSVERSE
)  # fmt: skip


def load(source: Any, background: Colour = WHITE) -> Image.Image:
    """An RGB picture of base64 text, a data URI, bytes, a Path, a PIL image or an array.

    The first frame of animations, upright by its EXIF, in sRGB by its colour profile, transparent parts
    over ``background``. Arrays: [H, W] or [H, W, 1 to 4] of uint8, uint16, bool, or floats from 0 to 1.
    Raises ImageError.
    """
    colours, alpha = _seen(_decoded(source))
    return _over(colours, alpha, background)


def load_cut_out(source: Any) -> Image.Image:
    """As ``load``, with what is transparent: RGBA, or RGB for a picture without an alpha channel. Raises ImageError."""
    colours, alpha = _seen(_decoded(source))
    return colours if alpha is None else Image.merge("RGBA", (*colours.split(), alpha))


def over(picture: Image.Image, background: Colour) -> Image.Image:
    """RGB of what ``load_cut_out`` gives."""
    return _over(picture.convert("RGB"), picture.getchannel("A") if picture.mode == "RGBA" else None, background)


def size(source: Path | bytes) -> tuple[int, int]:
    """(width, height) of what ``load`` gives, by the file's head alone where it says so. Raises ImageError."""
    try:
        with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source, formats=_formats()) as image:
            turn = colour.orientation(image)
            width, height = image.size
    except Exception:  # a HEIC, or what is no picture: load knows
        return load(source).size
    return (height, width) if turn in _LAID_DOWN else (width, height)


def load_reference(source: Any) -> Image.Image:
    """As ``load``, over white. Raises ImageError for a picture that is transparent all over, too."""
    colours, alpha = _seen(_decoded(source))
    if alpha is not None and alpha.getbbox() is None:
        raise ImageError("the picture is transparent all over, so there is nothing to see; give another one")
    return _over(colours, alpha, WHITE)


def load_mask(source: Any) -> Image.Image:
    """A mask as RGB, white where it acts: the picture over black; where that is black all over, its opacity,
    as editors save a selection whose shape is in the alpha channel only. Raises ImageError."""
    colours, alpha = _seen(_decoded(source))
    mask = _over(colours, alpha, BLACK)
    if alpha is None or alpha.getextrema() == (255, 255) or not _is_black(mask):
        return mask
    return Image.merge("RGB", (alpha, alpha, alpha))


def _is_black(picture: Image.Image) -> bool:
    """Whether all of an RGB picture is black, but for what lossy formats add."""
    return all(high <= 8 for _, high in picture.getextrema())


def _decoded(source: Any) -> Image.Image:
    if isinstance(source, Image.Image):
        return _bounded(source)
    if isinstance(source, np.ndarray):
        return _from_array(source)
    return _decode(_bytes_of(source))


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
        if path.exists() and not path.is_file():
            raise ImageError(f"the picture {path.name} cannot be opened: it is no file")
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
            _check_bytes(max(len(data), file.seek(0, io.SEEK_END)))
    except OSError as error:
        raise ImageError(f"the picture {path.name} cannot be opened: {error.strerror or error}") from error
    except ImageError:
        raise
    except ValueError as error:  # a null byte in the path
        raise ImageError(f"the picture {path.name} cannot be opened: {error}") from error
    return data


def _from_text(text: str) -> bytes:
    shown = text if len(text) <= 40 else f"{text[:37]}..."
    if re.match(r"\s*(https?|ftp|file):", text, re.IGNORECASE):
        raise ImageError(f"{shown!r} is an address; addresses are not opened here, send the picture itself as base64")
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
    profile = None
    if data.startswith(png.SIGNATURE):
        data, profile = png.cleaned(data)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # our own bound stands instead of Pillow's warning
            image = heif.opened(data) if heif.is_heif(data) else _opened(data)
    except Image.DecompressionBombError as error:
        raise ImageError(f"the picture is too large: {error}; at most {MAX_PIXELS / 1e6:.0f} megapixels") from error
    except ImageError:
        raise
    except Exception as error:  # decoders raise all kinds on malformed headers
        _undecodable(error)
    if profile:
        image.info["icc_profile"] = profile
    return _bounded(image)


def _opened(data: bytes) -> Image.Image:
    """By Pillow; its pixels are not decoded yet, but for icons."""
    for width, height in kinds.icon_sizes(data):
        _check_size(width, height)
    try:
        return Image.open(io.BytesIO(data), formats=_formats())
    except Image.UnidentifiedImageError:
        what = kinds.named(data)
        if what:
            raise ImageError(f"the picture is {what}") from None
        raise ImageError(
            f"this is no picture that can be read (it begins with {data[:8]!r}, {len(data)} bytes): use a whole file "
            f"of one of {', '.join(_formats())}"
        ) from None


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
        raise ImageError(f"an array of shape {list(array.shape)} is no picture; expected [H, W] or [H, W, 1 to 4]")
    _check_size(array.shape[1], array.shape[0])
    return Image.fromarray(np.ascontiguousarray(colour.eight_bits(array)))


def _seen(image: Image.Image) -> tuple[Image.Image, Image.Image | None]:
    """(RGB in sRGB, alpha or None), eight bits, upright. Never changes the picture it was given."""
    turn = colour.orientation(image)
    try:
        colours, alpha = colour.split(colour.shallow(image))
        colours = colour.to_srgb(colours, image.info.get("icc_profile"))
    except ImageError:
        raise
    except Exception as error:  # e.g. a mode that Pillow cannot convert
        _undecodable(error)
    if turn is None:
        return colours, alpha
    return colours.transpose(turn), alpha.transpose(turn) if alpha else None


def _over(colours: Image.Image, alpha: Image.Image | None, background: Colour) -> Image.Image:
    if alpha is None:
        return colours
    canvas = Image.new("RGB", colours.size, background)
    canvas.paste(colours, mask=alpha)
    return canvas


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
