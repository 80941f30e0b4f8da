"""Bad requests and files: each gets its own clear error, and the next plain picture is what it was."""

from __future__ import annotations

import base64
import io
import zlib

import pytest
from PIL import Image
from safetensors.torch import load_file, save_file

from .harness import WebUI, b64, picture


def png(width: int, height: int) -> str:
    """A PNG whose header announces this size, and little more: a decompression bomb for the naive."""
    import struct

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 99))
    return base64.b64encode(body + chunk(b"IEND", b"")).decode()


def text(data: bytes) -> str:
    return base64.b64encode(data).decode()


IMAGE = b64(picture(0))
SVG = text(b'<svg xmlns="http://www.w3.org/2000/svg"></svg>')
HALF = text(base64.b64decode(IMAGE)[:60])
# name: (fields over a good unit, field named in the body, part of the message); core/test_unit.py has more fields
BAD_FIELDS = {
    "weight is text": ({"weight": "strong"}, "weight", "expected a number from -1 to 5"),
    "start above end": ({"start": 0.8, "end": 0.2}, "start", "not above end (0.2)"),
    "unknown field": ({"wieght": 1}, "wieght", "one of the fields"),
    "image weight too high": (
        {"images": [{"image": IMAGE, "weight": 7}]},
        "images[0].weight",
        "from -1 to 5",
    ),
    "too many images": ({"images": [IMAGE] * 65}, "images", "1 to 64"),
    "model not listed": ({"model": "sd1-bass"}, "model", "Did you mean sd1-base"),
    "model a path": ({"model": "/etc/passwd"}, "model", "no adapter named"),
    "model climbs": ({"model": "../Stable-diffusion/sd1"}, "model", "no adapter named"),
    "not base64": ({"images": ["this is *not* base64"]}, "images[0]", ""),
    "base64 of no picture": ({"images": [text(b"hello, this is no picture at all")]}, "images[0]", ""),
    "a picture cut off": ({"images": [HALF]}, "images[0]", ""),
    "an SVG": ({"images": [SVG]}, "images[0]", ""),
    "a data URI of text": ({"images": ["data:text/plain;base64,aGVsbG8="]}, "images[0]", ""),
    "a bomb": ({"images": [png(60000, 60000)]}, "images[0]", ""),
    "second image bad": ({"images": [IMAGE, "%%%"]}, "images[1]", ""),
    "a path as image": ({"images": ["/etc/passwd"]}, "images[0]", ""),
    "a URL to this machine": ({"images": ["http://127.0.0.1:1/a.png"]}, "images[0]", "local"),
    "a URL of another scheme": ({"images": ["file:///etc/passwd"]}, "images[0]", ""),
    "another base model": ({"model": "wide"}, "model", "text tokens are 256 wide in the model and 384"),
    "an adapter of SDXL": ({"model": "sdxl-base"}, "model", "16 cross-attention layers and the adapter 70"),
    "encoder missing": ({"model": "needs-vit-h"}, None, "ViT-H-14"),
    "no such encoder": ({"model": "no-encoder"}, None, "width 33"),
}
BAD_ARGS = {
    "args is text": (["hello"], "args"),
    "args is a number": ([7], "args"),
    "a unit that is a number": ([[7]], "unit"),
    "a unit that is null": ([[None]], "unit"),
    "a unit that is a list": ([[["a"]]], "unit"),
}
BAD_FILES = {
    "empty": (b"", "the file is empty"),
    "a web page": (b"<!DOCTYPE html><html></html>", "a web page, not a model"),
    "noise": (bytes(range(1, 255)) * 20, "neither a safetensors file nor a pickle"),
    "a Git LFS pointer": (b"version https://git-lfs.github.com/spec/v1\n", "Git LFS pointer"),
}


@pytest.fixture(scope="module")
def base(webui: WebUI) -> list[str]:
    webui.options(sd_model_checkpoint="sd1.safetensors")
    return webui.known()


def refused(reply, message: str) -> dict:
    assert reply.status == 422, reply.body[:500]
    body = reply.json
    assert message in body["errors"], body["errors"]
    assert "Traceback" not in reply.body.decode()
    assert body["detail"]["message"] == body["errors"]
    return body["detail"]


@pytest.mark.parametrize("name", BAD_FIELDS)
def test_a_bad_field(on_sd1, unit, base, name):
    fields, field, message = BAD_FIELDS[name]
    detail = refused(on_sd1.draw({**unit, **fields}), message)
    assert detail["unit"] == 0
    assert detail.get("field") == field or field is None
    if field and not field.startswith("images") and field != "model":
        assert {"value", "expected"} <= set(detail)


@pytest.mark.parametrize("name", BAD_ARGS)
def test_bad_args(on_sd1, base, name):
    args, field = BAD_ARGS[name]
    assert refused(on_sd1.draw(*args), "expected")["field"] == field


@pytest.mark.parametrize("name", BAD_FILES)
def test_a_bad_file(on_sd1, unit, base, name):
    content, message = BAD_FILES[name]
    path = on_sd1.data / "models" / "ipadapter" / "bad.safetensors"
    path.write_bytes(content)
    try:
        refused(on_sd1.draw({**unit, "model": "bad"}), message)
        reply = on_sd1.post("/ip-adapter/inspect", {"model": "bad"})
        assert reply.status == 422
        assert message in reply.json["errors"]
    finally:
        path.unlink()


def test_weights_that_are_not_finite_name_their_unit(on_sd1, unit, base):
    """They are found while the picture is sampled."""
    folder = on_sd1.data / "models" / "ipadapter"
    tensors = load_file(folder / "sd1-base.safetensors")
    tensors["ip_adapter.3.to_k_ip.weight"].fill_(float("nan"))
    save_file(tensors, folder / "nan.safetensors")
    detail = refused(on_sd1.draw(unit, {**unit, "model": "nan"}), "unit 2: nan.safetensors: NaN or infinite weights")
    assert detail["unit"] == 1
    (folder / "nan.safetensors").unlink()
    assert on_sd1.images() == base


def test_the_second_unit_is_named(on_sd1, unit, base):
    assert refused(on_sd1.draw(unit, {**unit, "weight": 9}), "unit 2: weight")["unit"] == 1


def test_the_server_goes_on_and_the_next_picture_is_right(on_sd1, unit, base):
    """Last in this file: after all of the above."""
    drawn = on_sd1.known(unit)
    assert on_sd1.draw({**unit, "weight": 9}).status == 422
    assert on_sd1.images() == base
    assert on_sd1.images(unit) == drawn


def test_all_kinds_of_pictures_are_read(on_sd1, unit, base):
    for mode in ("L", "P", "RGBA", "LA", "CMYK", "1", "I"):
        buffer = io.BytesIO()
        Image.new("RGB", (40, 30), (200, 30, 90)).convert(mode).save(buffer, "TIFF" if mode == "CMYK" else "PNG")
        assert on_sd1.draw({**unit, "images": [text(buffer.getvalue())]}).status == 200, mode


def test_settings_that_were_written_by_hand_count_as_the_defaults(on_sd1, unit):
    drawn = on_sd1.known(unit)
    numbers = ("cache_mb", "projected_mb", "cached_adapters", "units", "default_fit")
    odd = {f"ipadapter_{name}": "many" for name in numbers}
    with on_sd1.set(**odd, ipadapter_model_folders="a\0b"):
        new = {**unit, "images": [b64(picture(41))]}
        assert on_sd1.images(new) != drawn
        assert on_sd1.images(unit) == drawn
        assert "sd1-base" in on_sd1.get("/ip-adapter/model_list").json["model_list"]
