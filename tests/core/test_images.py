"""Pictures of all kinds arrive as a person sees them; what is no picture is refused with a reason."""

from __future__ import annotations

import base64
import io
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageCms, ImageFile

from lib_ipadapter.errors import ImageError
from lib_ipadapter.pictures import images

RED, GREEN, WHITE = (255, 0, 0), (0, 255, 0), (255, 255, 255)


def encoded(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def pixel(image: Image.Image, x: int = 0, y: int = 0) -> tuple[int, ...]:
    assert image.mode == "RGB"
    return tuple(image.getpixel((x, y)))


def near(found: tuple[int, ...], wanted: tuple[int, ...], by: int = 6) -> bool:
    return max(abs(a - b) for a, b in zip(found, wanted, strict=True)) <= by


@pytest.fixture
def gradient() -> Image.Image:
    ramp = np.linspace(0, 255, 48 * 32 * 3).reshape(32, 48, 3).astype(np.uint8)
    return Image.fromarray(ramp)


# sources


def test_all_sources_give_the_same_picture(gradient: Image.Image, tmp_path: Path) -> None:
    data = encoded(gradient)
    text = base64.b64encode(data).decode()
    (tmp_path / "a.png").write_bytes(data)
    sources = [
        data,
        bytearray(data),
        text,
        text.rstrip("="),
        "\n".join(text[i : i + 60] for i in range(0, len(text), 60)),
        f"data:image/png;base64,{text}",
        tmp_path / "a.png",
        gradient,
        np.asarray(gradient),
        np.asarray(gradient) / 255.0,
        np.asarray(gradient).astype(np.uint16) * 257,
    ]
    hashes = {images.content_hash(images.load(source)) for source in sources}
    assert hashes == {images.content_hash(gradient)}


def test_a_string_never_opens_a_file(tmp_path: Path, gradient: Image.Image) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(encoded(gradient))
    for text in (str(path), path.as_uri()):
        with pytest.raises(ImageError):
            images.load(text)


def test_the_given_picture_is_not_changed() -> None:
    image = Image.new("RGBA", (4, 2), (255, 0, 0, 0))
    before = image.tobytes()
    images.load(image)
    assert (image.mode, image.tobytes()) == ("RGBA", before)


# kinds


def test_greyscale_and_one_bit() -> None:
    assert pixel(images.load(encoded(Image.new("L", (3, 3), 77)))) == (77, 77, 77)
    assert pixel(images.load(encoded(Image.new("1", (3, 3), 1)))) == WHITE


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_transparency_lies_over_the_background(mode: str) -> None:
    colour = (255, 0, 0, 0) if mode == "RGBA" else (0, 0)
    data = encoded(Image.new(mode, (3, 3), colour))
    assert pixel(images.load(data)) == WHITE
    assert pixel(images.load(data, background=(1, 2, 3))) == (1, 2, 3)


def test_half_transparency_blends() -> None:
    found = pixel(images.load(Image.new("RGBA", (3, 3), (255, 0, 0, 128)), background=(0, 0, 0)))
    assert near(found, (128, 0, 0), by=1)


def test_palette_with_a_transparent_entry() -> None:
    image = Image.new("P", (4, 1), 1)
    image.putpalette([255, 0, 0, 0, 255, 0])
    image.putpixel((0, 0), 0)
    found = images.load(encoded(image, transparency=0))
    assert pixel(found, 0) == WHITE
    assert pixel(found, 1) == GREEN
    assert pixel(images.load(encoded(image))) == RED


def test_transparent_colour_of_a_png_without_alpha() -> None:
    data = encoded(Image.new("RGB", (3, 3), (10, 20, 30)), transparency=(10, 20, 30))
    assert pixel(images.load(data, background=(9, 9, 9))) == (9, 9, 9)


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_sixteen_bits_keep_their_brightness(kind: str) -> None:
    values = np.array([[0, 257 * 100, 65535, 200]], dtype=np.uint16)
    data = encoded(Image.fromarray(values), kind)
    found = np.asarray(images.load(data))[0, :, 0]
    assert found.tolist() == [0, 100, 255, 1]


def test_sixteen_bit_colour() -> None:
    header = struct.pack(">IIBBBBB", 1, 1, 16, 2, 0, 0, 0)
    row = zlib.compress(b"\0" + struct.pack(">HHH", 65535, 257 * 128, 0))
    data = b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", header) + _chunk(b"IDAT", row) + _chunk(b"IEND", b"")
    assert pixel(images.load(data)) == (255, 128, 0)


def test_modes_i_and_f() -> None:
    assert pixel(images.load(Image.fromarray(np.full((2, 2), 257 * 7, dtype=np.int32)))) == (7, 7, 7)
    assert pixel(images.load(Image.fromarray(np.full((2, 2), 0.5, dtype=np.float32)))) == (128, 128, 128)
    assert pixel(images.load(Image.new("F", (2, 2), 200.0))) == (200, 200, 200)


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP"])
def test_the_first_frame_of_animations(kind: str) -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in (RED, GREEN)]
    options = {"lossless": True} if kind == "WEBP" else {}
    data = encoded(frames[0], kind, save_all=True, append_images=frames[1:], duration=100, **options)
    assert near(pixel(images.load(data)), RED)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(orientation: int) -> None:
    upright = np.zeros((16, 32, 3), dtype=np.uint8)
    upright[:8, :16], upright[:8, 16:], upright[8:, :16] = RED, GREEN, WHITE
    exif = Image.Exif()
    exif[0x0112] = orientation
    # how a camera would have stored it: the inverse of the turn that the tag asks for
    turns = {
        1: lambda a: a,
        2: np.fliplr,
        3: lambda a: np.rot90(a, 2),
        4: np.flipud,
        5: lambda a: a.transpose(1, 0, 2),
        6: lambda a: np.rot90(a, 1),
        7: lambda a: np.rot90(a.transpose(1, 0, 2), 2),
        8: lambda a: np.rot90(a, -1),
    }
    stored = Image.fromarray(np.ascontiguousarray(turns[orientation](upright)))
    found = images.load(encoded(stored, exif=exif.tobytes()))
    assert np.array_equal(np.asarray(found), upright)


def test_malformed_exif_is_left_aside() -> None:
    data = encoded(Image.new("RGB", (8, 8), RED), "JPEG", exif=b"Exif\0\0II*\0\xff\xff\xff\xff")
    assert near(pixel(images.load(data)), RED)


def test_cmyk_jpeg_as_adobe_writes_it() -> None:
    """Pillow writes CMYK as Adobe does, inverted and with its marker."""
    data = encoded(Image.new("CMYK", (16, 16), (0, 255, 255, 0)), "JPEG", quality=100)
    assert b"Adobe" in data
    assert near(pixel(images.load(data), 8, 8), RED)


def test_cmyk_tiff() -> None:
    data = encoded(Image.new("CMYK", (16, 16), (255, 0, 255, 0)), "TIFF")
    assert near(pixel(images.load(data)), GREEN)


def test_colour_profiles_are_converted_to_srgb() -> None:
    """The same number under a linear profile is seen much brighter; a broken profile changes nothing."""
    image = Image.new("RGB", (4, 4), (64, 64, 64))
    linear = _linear_profile()
    assert near(pixel(images.load(encoded(image, icc_profile=linear))), (137, 137, 137))
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    assert near(pixel(images.load(encoded(image, icc_profile=srgb))), (64, 64, 64), by=1)
    assert pixel(images.load(encoded(image, icc_profile=b"no profile"))) == (64, 64, 64)


def _linear_profile() -> bytes:
    """sRGB's profile with its tone curves replaced by the identity (ICC.1:2010, curveType, count 0)."""
    profile = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    (count,) = struct.unpack_from(">I", profile, 128)
    for index in range(count):
        name, offset, _size = struct.unpack_from(">4sII", profile, 132 + 12 * index)
        if name in (b"rTRC", b"gTRC", b"bTRC"):
            struct.pack_into(">4sII", profile, offset, b"curv", 0, 0)
            struct.pack_into(">I", profile, 132 + 12 * index + 8, 12)
    return bytes(profile)


# refusals


def _chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def _huge_png() -> bytes:
    header = struct.pack(">IIBBBBB", 60000, 60000, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", header) + _chunk(b"IDAT", zlib.compress(bytes(1000)))


def _noisy() -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))


REFUSED = {
    "not base64": ("!!!", "not base64"),
    "base64 of no picture": (base64.b64encode(b"hello, world").decode(), "no picture that can be read"),
    "empty": (b"", "empty"),
    "empty data URI": ("data:image/png;base64,", "empty"),
    "data URI without base64": ("data:image/png,abc", "not base64"),
    "data URI without comma": ("data:image/png;base64", "not base64"),
    "http address": ("https://example.org/a.png", "is an address"),
    "upper-case address": (" HTTP://example.org/a.png", "is an address"),
    "file address": ("file:///etc/hostname", "is an address"),
    "truncated png": (encoded(_noisy())[:-2000], "cannot be decoded"),
    "truncated jpeg": (encoded(_noisy(), "JPEG")[:-800], "cannot be decoded"),
    "truncated header": (encoded(_noisy())[:20], "no picture|cannot be decoded"),
    "svg": (b'<svg xmlns="http://www.w3.org/2000/svg"/>', "SVG"),
    "svg in xml": (b'<?xml version="1.0"?>\n<svg/>', "SVG"),
    "web page": (b"<!DOCTYPE html><html></html>", "web page"),
    "postscript": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "no picture that can be read"),
    "decompression bomb": (_huge_png(), "megapixels|too large"),
    "NaN": (np.full((4, 4, 3), np.nan), "floats from nan"),
    "floats out of range": (np.full((4, 4, 3), 200.0), "floats from 200"),
    "floats below zero": (np.full((4, 4, 3), -1.0, dtype=np.float32), "floats from -1"),
    "one dimension": (np.zeros(4, dtype=np.uint8), "shape"),
    "four dimensions": (np.zeros((1, 4, 4, 3), dtype=np.uint8), "shape"),
    "five channels": (np.zeros((4, 4, 5), dtype=np.uint8), "shape"),
    "no pixels": (np.zeros((0, 4, 3), dtype=np.uint8), "at least one pixel"),
    "int64": (np.zeros((4, 4, 3), dtype=np.int64), "int64"),
    "objects": (np.full((4, 4), None), "object"),
    "a number": (7, "type int"),
    "nothing": (None, "type NoneType"),
    "missing file": (Path("no such file.png"), "cannot be opened"),
    "folder": (Path("."), "cannot be opened|empty"),
    "NaN in a TIFF": (Image.new("F", (2, 2), float("nan")), "floats from nan"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_refused_with_a_reason(what: str) -> None:
    source, reason = REFUSED[what]
    with pytest.raises(ImageError, match=reason):
        images.load(source)


def test_bytes_and_pixels_are_bounded_before_decoding(monkeypatch: pytest.MonkeyPatch) -> None:
    data = encoded(_noisy())
    monkeypatch.setattr(images, "MAX_BYTES", len(data) - 1)
    with pytest.raises(ImageError, match="MB"):
        images.load(data)
    with pytest.raises(ImageError, match="MB"):
        images.load(base64.b64encode(data + bytes(100)).decode())
    monkeypatch.setattr(images, "MAX_BYTES", len(data))
    monkeypatch.setattr(images, "MAX_PIXELS", 64 * 64 - 1)
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda _self: pytest.fail("decoded"))
    with pytest.raises(ImageError, match="megapixels"):
        images.load(data)


def test_pillows_own_bound_and_warnings_do_not_get_in_the_way(monkeypatch: pytest.MonkeyPatch) -> None:
    data = encoded(_noisy())
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 64 * 64 - 1)  # it would warn, and warnings are errors here
    assert images.load(data).size == (64, 64)


# fitting


@pytest.mark.parametrize("size", [(301, 200), (97, 233), (640, 480), (40, 31), (224, 224), (20, 500)])
def test_crop_equals_resizing_first_and_cropping_then(size: tuple[int, int]) -> None:
    """Exactly, except for strips, of which only the middle is resized: to one level of 255."""
    picture, shorter = _noisy().resize(size, Image.Resampling.BICUBIC), min(size)
    whole = picture.resize((224 * size[0] // shorter, 224 * size[1] // shorter), Image.Resampling.BICUBIC)
    left, top = (whole.width - 224) // 2, (whole.height - 224) // 2
    wanted = np.asarray(whole.crop((left, top, left + 224, top + 224)), dtype=int)
    found = np.asarray(images.fit(picture, 224, "crop"), dtype=int)
    assert abs(found - wanted).max() <= (1 if max(size) > 16 * shorter else 0)


@pytest.mark.parametrize("mode", ["crop", "pad", "stretch"])
@pytest.mark.parametrize("size", [(1, 1), (1, 9), (9, 1), (65000, 1), (1, 65000), (224, 224), (300, 200)])
def test_every_fit_gives_the_square(mode: str, size: tuple[int, int]) -> None:
    found = images.fit(Image.new("RGB", size, (10, 200, 30)), 224, mode)
    assert (found.mode, found.size) == ("RGB", (224, 224))
    assert pixel(found, 111, 111) == (10, 200, 30)


def test_pad_keeps_the_whole_in_the_middle_of_the_background() -> None:
    found = images.fit(Image.new("RGB", (200, 100), RED), 64, "pad", background=(1, 2, 3))
    assert pixel(found, 0, 0) == pixel(found, 63, 63) == (1, 2, 3)
    assert pixel(found, 0, 32) == pixel(found, 63, 32) == RED
    assert pixel(images.fit(Image.new("RGB", (2, 1), RED), 64, "pad")) == images.NEUTRAL


def test_crop_drops_the_ends_and_stretch_keeps_them() -> None:
    picture = Image.new("RGB", (300, 100), GREEN)
    picture.paste(RED, (0, 0, 50, 100))
    assert pixel(images.fit(picture, 64, "crop")) == GREEN
    assert pixel(images.fit(picture, 64, "stretch")) == RED


def test_an_unknown_fit_is_refused() -> None:
    with pytest.raises(ImageError, match="crop, pad or stretch"):
        images.fit(Image.new("RGB", (2, 2)), 64, "squeeze")


# hash


def test_the_hash_is_of_what_is_seen(gradient: Image.Image) -> None:
    first = images.content_hash(gradient)
    assert len(first) == 16
    assert int(first, 16) >= 0
    assert images.content_hash(images.load(encoded(gradient, "BMP"))) == first
    changed = gradient.copy()
    changed.putpixel((0, 0), (1, 1, 1))
    assert images.content_hash(changed) != first


def test_the_hash_tells_sizes_apart() -> None:
    wide, tall = Image.new("RGB", (8, 2)), Image.new("RGB", (2, 8))
    assert images.content_hash(wide) != images.content_hash(tall)
