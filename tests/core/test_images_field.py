"""Pictures as other programs write them: oversized text and profiles, damaged chunks, HEIC, masks in alpha."""

from __future__ import annotations

import io
import os
import struct
import sys
import threading
import types
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageCms, PngImagePlugin

from lib_ipadapter.errors import ImageError
from lib_ipadapter.pictures import images, png

BLACK, RED = (0, 0, 0), (255, 0, 0)


def chunk(name: bytes, data: bytes, damage: int = 0) -> bytes:
    checksum = zlib.crc32(name + data) ^ damage
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", checksum)


def png_with(*chunks: bytes, mode: str = "RGB", colour: Any = RED, size: tuple[int, int] = (4, 2)) -> bytes:
    """A PNG with more chunks behind its header."""
    buffer = io.BytesIO()
    Image.new(mode, size, colour).save(buffer, "PNG")
    data = buffer.getvalue()
    return data[:33] + b"".join(chunks) + data[33:]


def srgb_profile(size: int) -> bytes:
    profile = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    profile += bytes(size - len(profile))
    profile[:4] = struct.pack(">I", size)
    return bytes(profile)


BIG = b"x" * (2 * 2**20)
ODD_PNGS = {
    "zTXt of 2 MB": chunk(b"zTXt", b"workflow\0\0" + zlib.compress(BIG)),
    "iTXt of 2 MB": chunk(b"iTXt", b"prompt\0\1\0\0\0" + zlib.compress(BIG)),
    "tEXt of 2 MB": chunk(b"tEXt", b"parameters\0" + BIG),
    "a hundred texts of 1 MB": b"".join(chunk(b"zTXt", b"a\0\0" + zlib.compress(BIG[: 2**20 - 1])) for _ in range(100)),
    "a text bomb": chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(200 * 2**20))),
    "iCCP of 2 MB": chunk(b"iCCP", b"display\0\0" + zlib.compress(srgb_profile(2 * 2**20))),
    "iCCP that is no zlib": chunk(b"iCCP", b"display\0\0no zlib"),
    "wrong checksum in tEXt": chunk(b"tEXt", b"a\0b", damage=1),
    "wrong checksum in gAMA": chunk(b"gAMA", struct.pack(">I", 45455), damage=1),
    "wrong checksum in tRNS": chunk(b"tRNS", bytes([0, 255, 0, 0, 0, 0]), damage=1),
    "a text without end of keyword": chunk(b"iTXt", b"nothing"),
    "orientation text of 2 MB": chunk(b"zTXt", b"XML:com.adobe.xmp\0\0" + zlib.compress(BIG)),
}


@pytest.mark.parametrize("what", ODD_PNGS)
def test_what_no_picture_needs_does_not_stop_it(what: str) -> None:
    found = images.load(png_with(ODD_PNGS[what]))
    assert (found.size, found.getpixel((3, 1))) == ((4, 2), RED)


def test_texts_behind_the_pixels_do_not_either() -> None:
    data = png_with()
    data = data[:-12] + chunk(b"zTXt", b"a\0\0" + zlib.compress(BIG)) + data[-12:]
    assert images.load(data).getpixel((0, 0)) == RED


def test_pillows_bounds_stay_and_threads_do_not_meet() -> None:
    before = PngImagePlugin.MAX_TEXT_CHUNK, PngImagePlugin.MAX_TEXT_MEMORY
    data, failed = png_with(ODD_PNGS["zTXt of 2 MB"]), []

    def read() -> None:
        for _ in range(5):
            try:
                images.load(data)
            except ImageError as error:
                failed.append(error)

    threads = [threading.Thread(target=read) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed
    assert before == (PngImagePlugin.MAX_TEXT_CHUNK, PngImagePlugin.MAX_TEXT_MEMORY)


def test_a_large_profile_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    used: list[int] = []
    convert = ImageCms.ImageCmsProfile
    monkeypatch.setattr(
        ImageCms,
        "ImageCmsProfile",
        lambda x: (used.append(len(x.getvalue())) if isinstance(x, io.BytesIO) else None) or convert(x),
    )
    images.load(png_with(ODD_PNGS["iCCP of 2 MB"]))
    assert used == [2 * 2**20]


def test_a_profile_beyond_the_bound_is_refused_without_being_unpacked() -> None:
    bomb = chunk(b"iCCP", b"display\0\0" + zlib.compress(bytes(200 * 2**20)))
    with pytest.raises(ImageError, match=r"colour profile \(iCCP\) unpacks to more than 16 MB"):
        images.load(png_with(bomb))


def test_what_changes_the_pixels_is_kept() -> None:
    transparent = png_with(chunk(b"tRNS", struct.pack(">HHH", 255, 0, 0)))
    assert images.load(transparent, (1, 2, 3)).getpixel((0, 0)) == (1, 2, 3)
    exif = Image.Exif()
    exif[0x0112] = 6
    assert images.load(png_with(chunk(b"eXIf", exif.tobytes()[6:]))).size == (2, 4)
    xmp = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><tiff:Orientation>6</tiff:Orientation></x:xmpmeta>'
    raw = b"\nexif\n%8d\n%s\n" % (len(exif.tobytes()), exif.tobytes().hex().encode())
    for text in (
        chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + xmp),
        chunk(b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(raw)),
    ):
        data = png_with(text)
        expected = Image.open(io.BytesIO(data))
        expected.load()
        assert expected.getexif().get(0x0112) == 6  # Pillow's own reading
        assert images.load(data).size == (2, 4)


def test_an_animation_is_its_first_frame() -> None:
    buffer = io.BytesIO()
    frames = [Image.new("RGB", (8, 8), colour) for colour in (RED, BLACK)]
    frames[0].save(buffer, "PNG", save_all=True, append_images=frames[1:])
    cleaned, _ = png.cleaned(buffer.getvalue())
    assert b"fdAT" not in cleaned
    assert b"acTL" not in cleaned
    assert images.load(buffer.getvalue()).getpixel((7, 7)) == RED


@pytest.mark.parametrize(("name", "part"), [(b"IHDR", "header"), (b"PLTE", "palette")])
def test_the_damaged_part_is_named(name: bytes, part: str) -> None:
    buffer = io.BytesIO()
    Image.new("P", (4, 2), 1).save(buffer, "PNG")
    data = bytearray(buffer.getvalue())
    at = data.index(name)
    size = struct.unpack_from(">I", data, at - 4)[0]
    data[at + 4 + size] ^= 1
    with pytest.raises(ImageError, match=f"{part} .* is damaged"):
        images.load(bytes(data))


def test_any_cut_or_flipped_bit_is_read_or_refused() -> None:
    data = png_with(ODD_PNGS["wrong checksum in tEXt"], mode="RGBA", colour=(9, 8, 7, 6), size=(40, 30))
    rng = np.random.default_rng(0)
    for _ in range(300):
        broken = bytearray(data)
        broken[int(rng.integers(8, len(data)))] ^= 1 << int(rng.integers(8))
        try:
            assert images.load(bytes(broken)[: int(rng.integers(8, len(data) + 1))]).mode == "RGB"
        except ImageError:
            continue


# other kinds


def heic(brands: bytes = b"heicmif1") -> bytes:
    return struct.pack(">I", 16 + len(brands)) + b"ftyp" + brands[:4] + bytes(4) + brands[4:] + bytes(64)


def test_heic_without_a_decoder_says_what_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    with pytest.raises(ImageError, match=r"HEIC picture.*JPEG or PNG.*pillow-heif"):
        images.load(heic())


def test_heic_is_read_where_there_is_a_decoder(monkeypatch: pytest.MonkeyPatch) -> None:
    """The decoder's class is used, and the formats of the process stay as they are."""
    stub = types.ModuleType("pillow_heif")
    stub.HeifImageFile = lambda file: Image.new("RGB", (3, 5), RED)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "pillow_heif", stub)
    before = set(Image.OPEN)
    assert images.load(heic()).size == (3, 5)
    assert set(Image.OPEN) == before


def test_heic_is_bounded_before_it_is_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    class Huge(Image.Image):
        size = (60000, 60000)  # type: ignore[assignment]

        def load(self) -> Any:
            pytest.fail("decoded")

    stub = types.ModuleType("pillow_heif")
    stub.HeifImageFile = lambda file: Huge()  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "pillow_heif", stub)
    with pytest.raises(ImageError, match="megapixels"):
        images.load(heic())


def test_real_heic() -> None:
    pillow_heif = pytest.importorskip("pillow_heif", reason="pillow-heif is not installed")
    buffer = io.BytesIO()
    pillow_heif.from_pillow(Image.new("RGB", (64, 48), RED)).save(buffer, quality=90)
    assert images.load(buffer.getvalue()).size == (64, 48)


OTHERS = {
    "Photoshop": b"8BPS\0\1" + bytes(40),
    "PDF": b"%PDF-1.7\n" + bytes(40),
    "JPEG XL": b"\0\0\0\x0cJXL \r\n\x87\n" + bytes(40),
    "video": struct.pack(">I", 24) + b"ftypisom" + bytes(40),
    "zip": b"PK\x03\x04" + bytes(40),
}


@pytest.mark.parametrize("what", OTHERS)
def test_other_kinds_are_named(what: str) -> None:
    with pytest.raises(ImageError, match=what):
        images.load(OTHERS[what])


def test_an_icon_with_a_huge_picture_inside(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its directory says 16 x 16, and some hosts switch Pillow's own bound off."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    header = struct.pack(">IIBBBBB", 60000, 60000, 8, 0, 0, 0, 0)
    inside = png.SIGNATURE + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(1000)))
    entry = struct.pack("<BBBBHHII", 16, 16, 0, 0, 1, 32, len(inside), 22)
    with pytest.raises(ImageError, match="megapixels"):
        images.load(struct.pack("<HHH", 0, 1, 1) + entry + inside)


def test_jfif_is_a_picture(tmp_path: Path) -> None:
    Image.new("RGB", (8, 8), RED).save(tmp_path / "a.jfif", "JPEG")
    assert images.load(tmp_path / "a.jfif").size == (8, 8)
    assert ".jfif" in images.SUFFIXES


def test_a_pipe_is_no_picture(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    with pytest.raises(ImageError, match="no file"):
        images.load(tmp_path / "pipe.png")


def test_exif_that_can_be_read_but_not_be_written_turns_the_picture() -> None:
    """Pillow's exif_transpose fails on it (a width that is text): the orientation counts all the same."""
    tags = struct.pack("<HHIHH", 0x0112, 3, 1, 6, 0) + struct.pack("<HHI4s", 0x0100, 2, 4, b"abc\0")
    exif = b"Exif\0\0II*\0\x08\0\0\0" + struct.pack("<H", 2) + tags + bytes(4)
    buffer = io.BytesIO()
    Image.new("RGB", (8, 4)).save(buffer, "JPEG", exif=exif)
    assert images.load(buffer.getvalue()).size == (4, 8)


# masks and references


def shaped(colour: tuple[int, int, int]) -> Image.Image:
    """``colour`` all over; opaque on the left half, transparent on the right."""
    picture = Image.new("RGBA", (8, 4), (*colour, 0))
    picture.paste((*colour, 255), (0, 0, 4, 4))
    return picture


@pytest.mark.parametrize("colour", [BLACK, (255, 255, 255)])
def test_the_shape_of_a_mask_may_be_in_its_alpha(colour: tuple[int, int, int]) -> None:
    mask = images.load_mask(shaped(colour))
    assert (mask.mode, mask.getbbox()) == ("RGB", (0, 0, 4, 4))
    assert mask.getpixel((0, 0)) == (255, 255, 255)


def test_masks_whose_shape_is_in_their_colours_stay() -> None:
    drawn = Image.new("L", (8, 4), 0)
    drawn.paste(200, (2, 0, 4, 4))
    assert images.load_mask(drawn).tobytes() == images.load(drawn, BLACK).tobytes()
    drawn_with_alpha = Image.merge("RGBA", (drawn, drawn, drawn, Image.new("L", (8, 4), 255)))
    assert images.load_mask(drawn_with_alpha).tobytes() == images.load(drawn, BLACK).tobytes()
    assert images.load_mask(Image.new("RGBA", (8, 4), (0, 0, 0, 255))).getbbox() is None  # black, and opaque


def test_a_reference_with_nothing_to_see_is_refused() -> None:
    with pytest.raises(ImageError, match="transparent all over"):
        images.load_reference(Image.new("RGBA", (4, 4), (255, 0, 0, 0)))
    found = images.load_reference(shaped(RED))
    assert (found.getpixel((0, 0)), found.getpixel((7, 0))) == (RED, (255, 255, 255))
