"""Files made to do harm: what is refused, and with which reason. Ten thousand: ``python -m tests.hostile 10000``."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import warnings
import zipfile
from pathlib import Path

import pytest
import torch

from lib_ipadapter.errors import UnsafeFile
from lib_ipadapter.files.tensors import check_states, load_state, open_tensors
from tests.hostile_bytes import archive, items, name, number, stream, tensor, text
from tests.hostile_files import write_torchscript

ROOT = Path(__file__).parents[2]


def test_a_sample_of_each_kind_does_no_harm():
    """In a process of its own, as an audit hook stays for good and the peak of memory is the process's."""
    command = [sys.executable, "-m", "tests.hostile", "95", "1"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    result = json.loads(done.stdout)
    assert result["faults"] == []
    assert done.returncode == 0
    assert sum("read" in outcome for outcome in result["outcomes"]) > 5  # not everything is refused


def test_the_script_archive_is_real(tmp_path):
    """Or the tests with it could not fail: torch up to 2.5 runs it in spite of weights_only."""
    trap, path = tmp_path / "trap", write_torchscript(tmp_path / "a.bin", tmp_path / "trap")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.load(str(path))
    assert trap.exists()


REASONS = {
    "an unknown instruction": (archive(b"(" + text("x") + b"iposix\nsystem\n"), "instruction INST"),
    "a call of torch": (archive(name("torch", "load") + text("x") + b"\x85R"), "carries code: it asks for "
                                                                               "'torch.load'"),
    "a class of tensors": (archive(name("torch", "FloatTensor") + number(9**9) + b"\x85R"), "asks for "
                                                                                            "'torch.FloatTensor'"),
    "a storage of any size": (archive(name("torch", "FloatStorage") + number(9**9) + b"\x85R"), "no constructor "
                                                                                                "of tensors"),
    "more than the storage has": (archive(items((text("a"), tensor(shape=(5,))))), "needs 5 numbers, and its "
                                                                                   "storage has 4"),
    "more than the record has": (archive(items((text("a"), tensor(count=5)))), "fewer bytes than the 20"),
    "no such record": (archive(items((text("a"), tensor(key="../0")))), "storage ../0 has fewer bytes"),
    "a cut stream": (stream(items((text("a"), tensor())))[:-1], "a storage ends behind the file"),
    "big-endian": (stream(items()).replace(b"\x88u", b"\x89u"), "big-endian"),
    "many steps": (stream(b"]" * 500_001), "more than 500000 steps"),
    "keys that are tuples": (archive(items((b")", b"N"))), "key is neither text nor a number"),
    "one name twice": (
        archive(items((text("a.b"), tensor()), (text("a"), items((text("b"), tensor()))))),
        "two tensors in it are named a.b",
    ),
    "names that cannot be printed": (archive(items((text("\x1b[2J"), tensor()))), "cannot be printed"),
    "a zip in a zip": (archive(items()) + archive(items()), None),
    "a tar": (bytes(257) + b"ustar" + bytes(300), "a tar archive"),
    "gzip": (b"\x1f\x8b" + bytes(100), "a gzip archive; unpack it"),
}  # fmt: skip


@pytest.mark.parametrize("what", REASONS)
def test_every_refusal_says_its_reason(tmp_path, what):
    data, reason = REASONS[what]
    path = tmp_path / "a.bin"
    path.write_bytes(data)
    if reason is None:
        assert open_tensors(path).shapes == {}
        return
    with pytest.raises(UnsafeFile, match=r"^a\.bin: ") as caught:
        open_tensors(path)
    assert reason in str(caught.value)


@pytest.mark.parametrize(("method", "reason"), [(zipfile.ZIP_DEFLATED, "compressed"), (zipfile.ZIP_STORED, None)])
def test_compressed_archives_are_named(tmp_path, method, reason):
    with zipfile.ZipFile(tmp_path / "a.bin", "w", method) as made:
        made.writestr("x/data.pkl", b"\x80\x02" + items((text("a"), tensor())) + b".")
        made.writestr("x/data/0", bytes(16))
    if reason is None:
        assert open_tensors(tmp_path / "a.bin").tensors()["a"].tolist() == [0, 0, 0, 0]
        return
    with pytest.raises(UnsafeFile, match=reason):
        open_tensors(tmp_path / "a.bin")


def test_expanded_tensors_have_their_shape_and_no_memory(tmp_path):
    torch.save({"a": torch.ones(1).expand(1000, 1000), "b": torch.zeros(1).expand(2**34)}, tmp_path / "a.bin")
    file = open_tensors(tmp_path / "a.bin")
    assert file.shapes == {"a": (1000, 1000), "b": (2**34,)}
    assert file.read("a").sum() == 1e6
    with pytest.raises(UnsafeFile, match=r"its tensors have 68\d+ MB, and the file only 0\.0 MB"):
        file.read("b")


# what torch writes


def _same(a: object, b: object) -> bool:
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return isinstance(b, dict) and list(a) == list(b) and all(_same(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(_same, a, b))
    return a == b


@pytest.mark.parametrize(
    "options",
    [{}, {"_use_new_zipfile_serialization": False}, {"pickle_protocol": 4}],
    ids=["zip", "stream", "protocol 4"],
)
def test_states_read_as_torch_reads_them(tmp_path, options):
    module = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4))
    optimizer = torch.optim.Adam(module.parameters())
    module(torch.randn(5, 3)).sum().backward()
    optimizer.step()
    shared = torch.randn(8)
    content = {
        "model": module.state_dict(), "optimizer": optimizer.state_dict(), "parameters": list(module.parameters()),
        "strided": torch.randn(6, 4).t()[1:], "parts": (shared[:3], shared[3:]), "none": torch.empty(0, 3),
        "one": torch.tensor(2.5),
        "kinds": [torch.ones(3).to(kind) for kind in (torch.float16, torch.bfloat16, torch.float64, torch.bool,
        torch.uint8,
                                                        torch.int8)],
        "numbers": [1, -5, 2**40, 0.5, True, None, "text é"],
    }  # fmt: skip
    path = tmp_path / "state.pt"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.save(content, path, **options)
        expected = torch.load(path, weights_only=False)
    assert _same(expected, load_state(path))


def test_states_of_accelerate_may_hold_numpy_and_no_code(tmp_path):
    import numpy as np

    torch.save({"numpy": np.random.get_state(), "torch": torch.get_rng_state()}, tmp_path / "random_states_0.pkl")
    check_states(tmp_path)
    (tmp_path / "optimizer.bin").write_bytes(archive(name("posix", "system") + text("true") + b"\x85R"))
    with pytest.raises(UnsafeFile, match=r"optimizer\.bin: refused: it carries code: it asks for 'posix\.system'"):
        check_states(tmp_path)


def test_the_hosts_loaders_are_passed_by(tmp_path, monkeypatch):
    """The WebUI and Forge replace torch.load; Forge's renames what it refuses."""
    torch.save({"a": torch.ones(2)}, tmp_path / "a.bin")
    monkeypatch.setattr(torch, "load", None)
    monkeypatch.setattr(torch.serialization, "load", None)
    assert open_tensors(tmp_path / "a.bin").read("a").tolist() == [1, 1]


@pytest.mark.parametrize("path", ["/dev/zero", "pipe", ".", "long", "binary", "gone"])
def test_a_text_that_has_no_end_or_is_none_is_told_by_all_who_read_one(tmp_path, path):
    from lib_ipadapter.errors import FileError
    from lib_ipadapter.evaluation.items import read_items
    from lib_ipadapter.evaluation.remote import read_payload
    from lib_ipadapter.files.disk import read_text
    from lib_ipadapter.standalone.config import plain_yaml

    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "long").write_text("x" * (2**20 + 1))
    (tmp_path / "binary").write_bytes(b"\xff\xfe\xff")
    for read in (read_text, plain_yaml):
        with pytest.raises(FileError):
            read(tmp_path / path)
    for read in (read_payload, lambda file: read_items(tmp_path, file)):
        with pytest.raises(FileError):
            read(tmp_path / path)
