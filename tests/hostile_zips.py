"""Hostile zips, tars, and what is no file: more of hostile_files.py."""

from __future__ import annotations

import io
import json
import os
import socket
import stat
import struct
import tarfile
import warnings
import zipfile

from tests.hostile_bytes import archive, items, kind, stream, tensor, text
from tests.hostile_files import entry

# zips


@kind
def zip_bombs(rng, path, trap):
    with zipfile.ZipFile(
        path, "w", rng.choice([zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA]), compresslevel=1
    ) as made:
        made.writestr(
            "archive/data.pkl",
            b"\x80\x02" + items((text("image_proj"), tensor())) + b"." + b"]" * rng.choice([0, 0, 17 << 20]),
        )
        for n in range(rng.choice([1, 3])):
            made.writestr(f"archive/data/{n}", bytes(rng.choice([16, 16, 8 << 20])))


@kind
def strange_zips(rng, path, trap):
    data = archive(items((text("image_proj"), tensor())))
    end = data.rindex(b"PK\x05\x06")
    local, central = 0, data.index(b"PK\x01\x02")
    patched = bytearray(data)
    at, value = rng.choice([
        (central + 8, b"\x01\x00"), (central + 10, rng.choice([b"\x63\x00", b"\x0e\x00", b"\x08\x00", b"\x60\x00"])),
        (central + 20, b"\xff\xff\xff\xff"), (central + 24, b"\xff\xff\xff\x7f"), (central + 42, b"\xf0\xff\xff\x7f"),
        (end + 12, b"\xff" * 4),
        (end + 16, b"\xff" * 4), (end + 8, b"\xff\xff\xff\xff"), (local + 26, b"\xff\xff"), (local + 28, b"\xff\xff"),
        (end + 20, b"\xff\xff"),
        (central + 6, b"\xff\xff"), (local, b"PK\x07\x08"), (central + 28, b"\xff\xff"), (central + 30, b"\xff\xff"),
        (central + 8, b"\xff\xff"),
    ])  # fmt: skip
    patched[at : at + len(value)] = value
    path.write_bytes(patched)


@kind
def strange_entries(rng, path, trap):
    pickle = b"\x80\x02" + items((text("image_proj"), tensor())) + b"."
    with warnings.catch_warnings(), zipfile.ZipFile(path, "w") as made:
        warnings.simplefilter("ignore")
        made.writestr(
            rng.choice(
                [
                    "archive/data.pkl",
                    "/data.pkl",
                    "../data.pkl",
                    "a/b/data.pkl",
                    "ARCHIVE/DATA.PKL",
                    "data.pkl",
                ]
            ),
            pickle,
        )
        link = zipfile.ZipInfo("archive/data/0")
        link.external_attr = (stat.S_IFLNK | 0o777) << 16
        made.writestr(link, rng.choice(["/etc/passwd", "../../secret", "/dev/zero"]).ljust(16))
        for more in rng.sample(["archive/data.pkl", "archive/data/0", "/etc/passwd", "../../evil", "C:\\evil",
        "archive/.data/x", "\ud83d\ude00"
                                .encode("utf-16", "surrogatepass").decode("utf-16"), "archive/byteorder",
                                "archive/data/0/"], 3):  # fmt: skip
            made.writestr(more, rng.choice([b"big", b"", archive(items()), pickle]))
        for n in range(rng.choice([0, 0, 0, 3_000])):
            made.writestr(f"archive/data/x{n}", b"")
        made.comment = bytes(rng.choice([0, 60_000]))


@kind
def overlapping_entries(rng, path, trap):
    data = bytearray(archive(items((text("image_proj"), tensor())), {"0": bytes(16), "1": bytes(16), "2": bytes(5000)}))
    heads = [at for at in range(len(data)) if data[at : at + 4] == b"PK\x01\x02"]
    for at in heads[1:]:
        data[at + 20 : at + 28] = struct.pack("<II", 5000, 5000)
        data[at + 42 : at + 46] = struct.pack("<I", rng.choice([0, len(data) // 2]))
    path.write_bytes(data)


@kind
def a_large_directory(rng, path, trap):
    path.write_bytes(b"PK\x03\x04" + bytes(10))
    size = 90 << 20
    with path.open("r+b") as file:
        file.truncate(size)
        file.seek(size)
        file.write(struct.pack("<4s4H2IH", b"PK\x05\x06", 0, 0, 65535, 65535, size - 14, 14, 0))


@kind
def old_tars(rng, path, trap):
    with tarfile.open(path, "w") as made:
        for member, link in (
            ("storages", "/etc/passwd"),
            ("tensors", "../../secret"),
            ("pickle", ""),
            ("sys_info", ""),
        ):
            info = tarfile.TarInfo(rng.choice([member, f"../{member}", f"/{member}"]))
            if link:
                info.type, info.linkname = rng.choice([tarfile.SYMTYPE, tarfile.LNKTYPE]), link
                made.addfile(info)
            else:
                info.size = 4
                made.addfile(info, io.BytesIO(b"\x80\x02}."))


# what is no file


@kind
def not_a_file(rng, path, trap):
    what = rng.randrange(7)
    if what == 0:
        os.mkfifo(path)
    elif what == 1:
        with socket.socket(socket.AF_UNIX) as made:
            made.bind(str(path))
    elif what == 2:
        path.mkdir()
    elif what == 3:
        path.symlink_to(
            rng.choice(["/dev/zero", "/dev/stdin", "/dev/tty", "/dev/full", "/proc/self/mem", "/proc/self/environ"])
        )
    elif what == 4:
        path.symlink_to(path)
    elif what == 5:
        path.symlink_to(path.with_name("nowhere"))
    else:
        path.symlink_to("/etc/passwd")


@kind
def sparse_giants(rng, path, trap):
    size = rng.choice([1 << 30, 1 << 36, 1 << 40])
    header = json.dumps({"image_proj.proj.weight": entry(shape=[size // 4], data_offsets=[0, size])}).encode()
    start = struct.pack("<Q", len(header)) + header
    with path.open("wb") as file:
        file.write(
            rng.choice(
                [
                    start,
                    archive(items((text("a"), tensor()))),
                    stream(items((text("a"), tensor(count=size // 4)))),
                ]
            )
        )
        file.truncate(size + len(start))
