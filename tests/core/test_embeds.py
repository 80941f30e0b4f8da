"""Embeds: saved features as references, without encoder or pictures; folders; references in turn."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file

from lib_ipadapter.adapters.adapter import Adapter
from lib_ipadapter.errors import FileError, UnitError
from lib_ipadapter.pictures.images import content_hash
from lib_ipadapter.pictures.picture import Pictures
from lib_ipadapter.prompts.embeds import EmbedsFolder, read
from lib_ipadapter.prompts.pipeline import Pipeline
from lib_ipadapter.prompts.references import PictureFolders
from lib_ipadapter.prompts.resolve import resolve, without_folders
from lib_ipadapter.unit import COMBINES, Unit, schema
from lib_ipadapter.unit.fields import MAX_IMAGES
from lib_ipadapter.unit.names import Named
from tests.synthetic import adapter_tensors, write_adapter

WIDTH = 48


class Source:
    """Features by the picture's colour, without an encoder."""

    def encode(self, square, need):
        return self._random(square.getpixel((0, 0))[0], need)

    def unconditional(self, need):
        return torch.zeros(1, WIDTH) if need.feature == "pooled" else self._random(999, need)

    def side(self, need):
        return 8

    def identity(self, need):
        return "colours"

    def named(self, need):
        return need

    def _random(self, seed, need):
        shape = (1, WIDTH) if need.feature == "pooled" else (1, 17, WIDTH)
        return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


class NoSource(Source):
    """An encoder that is not there."""

    def encode(self, square, need):
        raise AssertionError("encoded")

    unconditional = side = identity = encode


def picture(colour: int) -> Image.Image:
    return Image.new("RGB", (8, 8), (colour, 0, 0))


@pytest.fixture(params=["base", "plus", "full"])
def adapter(request, tmp_path):
    return Adapter.load(write_adapter(tmp_path / "a.safetensors", adapter_tensors(request.param, feature_width=WIDTH)))


@pytest.fixture
def folder(tmp_path):
    return EmbedsFolder(tmp_path / "embeds")


class Store:
    def __init__(self, saved=None, folders=None):
        self.saved, self.folders = saved, folders

    def embeds(self, name):
        return self.saved.load(name)

    def folder(self, name):
        return self.folders.pictures(name)


def unit(*images, **fields):
    return Unit.parse({"model": "m", "images": list(images), **fields})


def of(colours, weights=None, **fields):
    pairs = zip(colours, weights or [1.0] * len(colours), strict=True)
    return unit(*({"image": picture(colour), "weight": weight} for colour, weight in pairs), **fields)


def saved(folder, adapter, name, one):
    resolved = resolve(one, Store(folder), Pictures())
    folder.save(Pipeline(Source()).embeds(name, resolved, adapter.spec))


def prepared(one, folder, adapter, source):
    return Pipeline(source).prompt(resolve(one, Store(folder), Pictures()), adapter)


def resolved(one, store):
    return resolve(one, store, Pictures()).unit


def same(a, b):
    return torch.equal(a.tokens, b.tokens) and torch.equal(a.token_weights, b.token_weights)


@pytest.mark.parametrize("how", COMBINES)
def test_the_tokens_are_those_of_the_pictures_without_an_encoder(folder, adapter, how):
    one = of([1, 2, 3], [1.0, 0.5, 0.25], combine=how)
    saved(folder, adapter, "three", one)
    expected = prepared(one, folder, adapter, Source())
    again = prepared(unit({"embeds": "three"}, combine=how), folder, adapter, NoSource() if adapter.spec.feature
                     == "penultimate" else OnlyZeros())  # fmt: skip
    assert same(again, expected)
    assert not same(again, prepared(of([1, 2, 4], combine=how), folder, adapter, Source()))


class OnlyZeros(NoSource):
    def unconditional(self, need):
        return torch.zeros(1, WIDTH)


@pytest.mark.parametrize("how", COMBINES)
def test_they_mix_with_pictures(folder, adapter, how):
    saved(folder, adapter, "two", of([1, 2], [1.0, 0.5]))
    mixed = unit({"image": picture(7), "weight": 2}, {"embeds": "two", "weight": 0.5}, picture(9), combine=how)
    alone = of([7, 1, 2, 9], [2, 0.5, 0.25, 1], combine=how)
    expected = prepared(alone, folder, adapter, Source())
    assert same(prepared(mixed, folder, adapter, Source()), expected)


def test_what_a_file_says(folder, adapter):
    saved(folder, adapter, "Gesicht, 1", of([1, 2], [1.0, 0.5], fit="pad"))
    report = folder.reports()["Gesicht, 1"]
    assert report["pictures"] == [
        {"hash": content_hash(picture(1)), "weight": 1.0},
        {"hash": content_hash(picture(2)), "weight": 0.5},
    ]
    assert report["features"] == [vars(need) for need in adapter.spec.needs]
    assert report["fit"] == "pad"
    name = adapter.spec.feature
    with safe_open(str(folder.folder / "Gesicht, 1.safetensors"), "pt") as file:
        extra = ["unconditional.penultimate"] if name == "penultimate" else []
        assert sorted(file.keys()) == [f"reference.0.{name}", f"reference.1.{name}", *extra]
        assert file.metadata()["ip_adapter_embeds"] == "1"
    assert [path.name for path in folder.folder.iterdir()] == ["Gesicht, 1.safetensors"]
    folder.remove("Gesicht, 1")
    assert folder.names() == []


@pytest.mark.parametrize("name", ["", "../up", "a/b", "..", ".hidden", "a\0b", "CON", "x.", None, 3])
def test_names_that_are_no_file_names_are_refused(folder, tmp_path, name):
    for act in (folder.load, folder.remove, folder.check):
        with pytest.raises(UnitError, match=r"^embeds: (got|type a name)"):
            act(name)
    with pytest.raises(UnitError, match=r"^folder: (got|type a name)"):
        PictureFolders(tmp_path).pictures(name)


def test_an_unknown_name_tells_those_that_are_there(folder, adapter):
    saved(folder, adapter, "known", of([1]))
    with pytest.raises(UnitError, match="saved embeds: known"):
        folder.load("other")


def other(tmp_path, variant, width=WIDTH):
    tensors = adapter_tensors(variant, feature_width=width)
    return Adapter.load(write_adapter(tmp_path / f"other-{variant}.safetensors", tensors))


def test_another_kind_of_feature_is_named_with_the_remedy(folder, tmp_path):
    base, plus = other(tmp_path, "base"), other(tmp_path, "plus")
    saved(folder, base, "pooled", of([1]))
    message = r"pooled\.safetensors: these embeds are pooled features.*the adapter takes penultimate.*save the pictures"
    with pytest.raises(FileError, match=message):
        prepared(unit({"embeds": "pooled"}), folder, plus, Source())


def test_another_encoder_is_named_with_the_remedy(folder, tmp_path):
    saved(folder, other(tmp_path, "base"), "small", of([1]))
    big = other(tmp_path, "base", 1024)
    with pytest.raises(FileError, match=r"48 wide, and the adapter takes pooled features of ViT-H-14, 1024 wide"):
        prepared(unit({"embeds": "small"}), folder, big, Source())


def rewritten(folder, change):
    """The file of "x" with its tensors and header changed."""
    path = folder.folder / "x.safetensors"
    with safe_open(str(path), "pt") as file:
        tensors, told = {key: file.get_tensor(key) for key in file.keys()}, dict(file.metadata())  # noqa: SIM118
    change(tensors, told)
    save_file(tensors, str(path), told)


def header(**fields):
    """Changes fields of the header's only feature."""
    return lambda tensors, told: told.update(features=json.dumps([{**json.loads(told["features"])[0], **fields}]))


@pytest.mark.parametrize(("change", "message"), [
    (lambda t, m: m.pop("ip_adapter_embeds"), "holds no embeds"),
    (lambda t, m: m.update(ip_adapter_embeds="2"), "version is 2, expected 1"),
    (lambda t, m: m.pop("features"), "broken"), (header(encoder=None, feature="x"), "broken"),
    (header(width=47), "broken"), (header(width="x"), "broken"), (lambda t, m: m.update(features="[]"), "broken"),
    (lambda t, m: m.update(features="7"), "broken"), (lambda t, m: m.update(features="[3]"), "broken"),
    (lambda t, m: m.update(pictures="[]"), "broken"), (lambda t, m: m.update(pictures="{"), "broken"),
    (lambda t, m: m.update(pictures="[1, 2]"), "broken"), (lambda t, m: m.update(pictures="[" * 9000), "broken"),
    (lambda t, m: m.update(pictures=json.dumps([{"hash": "a", "weight": 99}] * 2)), "broken"),
    (lambda t, m: t.pop("reference.1.pooled"), "broken"), (lambda t, m: t.update(more=torch.zeros(1)), "broken"),
    (lambda t, m: t.update({"reference.1.pooled": torch.full((1, WIDTH), torch.nan)}), "broken"),
    (lambda t, m: t.update({"reference.1.pooled": torch.zeros(1, WIDTH, dtype=torch.int64)}), "broken"),
    (lambda t, m: t.update({"reference.1.pooled": torch.zeros(2, WIDTH)}), "broken"),
])  # fmt: skip
def test_broken_files_are_told_by_name(folder, tmp_path, change, message):
    saved(folder, other(tmp_path, "base"), "x", of([1, 2]))
    rewritten(folder, lambda tensors, told: None)
    folder.load("x")
    rewritten(folder, change)
    with pytest.raises(FileError, match=rf"^x\.safetensors: .*{message}"):
        folder.load("x")
    assert set(folder.reports()) == {"x"}


class Evil:
    def __reduce__(self):
        return Path.touch, (Path("/tmp/ipadapter-pickle-ran"),)


def test_no_pickle_is_opened(folder, tmp_path):
    folder.folder.mkdir()
    for data in (pickle.dumps(Evil()), b"", b"PK\3\4", b"<html>"):
        (folder.folder / "x.safetensors").write_bytes(data)
        with pytest.raises(FileError, match=r"^x\.safetensors"):
            folder.load("x")
    torch.save({"reference.0.pooled": torch.zeros(1, WIDTH)}, folder.folder / "x.safetensors")
    with pytest.raises(FileError, match="no embeds that can be read"):
        read(folder.folder / "x.safetensors")
    assert not Path("/tmp/ipadapter-pickle-ran").exists()


def test_a_file_that_is_cut_off(folder, tmp_path):
    saved(folder, other(tmp_path, "base"), "x", of([1, 2]))
    path = folder.folder / "x.safetensors"
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(FileError, match="save them again"):
        folder.load("x")


# units


def test_entries_of_a_unit():
    one = unit({"embeds": "a", "weight": 0.5}, {"folder": "b"}, "aGk=", combine="subtract")
    assert [reference.image for reference in one.images] == [
        Named("embeds", "a"),
        Named("folder", "b"),
        "aGk=",
    ]
    assert [reference.weight for reference in one.images] == [0.5, 1.0, 1.0]
    forms = schema()["properties"]["images"]["items"]["oneOf"]
    assert {key for form in forms[1:] for key in form["required"]} == {"image", "embeds", "folder", "input"}


@pytest.mark.parametrize("entry", [
    {"embeds": ""}, {"embeds": 3}, {"folder": None}, {"embeds": "a", "image": "aGk="}, {"embeds": "a", "folder": "b"},
    {"embeds": "a", "weight": 9}, {"embeds": "a", "w": 1}, {"weight": 1}, {"embeds": "a", "mask": "aGk="},
    {"image": "aGk=", "mask": 3}, {"image": "aGk=", "mask": ""}, {"input": "txt2img"}, {"input": 1},
])  # fmt: skip
def test_bad_entries(entry):
    with pytest.raises(UnitError, match=r"^images\[0\]"):
        unit(entry)


def test_what_the_references_must_satisfy_is_asked_once_they_are_there(folder, tmp_path):
    base = other(tmp_path, "base")
    saved(folder, base, "one", of([1]))
    saved(folder, base, "two", of([1, 2], [1, -0.5]))
    for name, fields, message in (
        ("one", {"combine": "subtract"}, "at least two"),
        ("two", {"combine": "average"}, None),
        ("two", {"combine": "subtract"}, None),
    ):
        one = unit({"embeds": name}, **fields)
        if message:
            with pytest.raises(UnitError, match=message):
                resolved(one, Store(folder))
        else:
            resolved(one, Store(folder))
    with pytest.raises(UnitError, match="sum is not near 0"):
        resolved(unit({"embeds": "two"}, {"embeds": "one", "weight": -0.5}, combine="average"), Store(folder))
    with pytest.raises(UnitError, match=f"at most {MAX_IMAGES}"):
        resolved(unit(*[{"embeds": "two"}] * 33), Store(folder))


# folders


@pytest.fixture
def folders(tmp_path):
    (tmp_path / "references" / "trip" / "below").mkdir(parents=True)
    for name in ("10.png", "2.PNG", "b.jpg", ".hidden.png", "notes.txt", "below/x.png"):
        picture(3).save(tmp_path / "references" / "trip" / name, "PNG")
    return PictureFolders(tmp_path / "references")


def test_a_folders_pictures_in_natural_order(folders, tmp_path):
    assert [path.name for path in folders.pictures("trip")] == ["2.PNG", "10.png", "b.jpg"]
    assert folders.others("trip") == ["notes.txt"]
    assert folders.names() == ["trip"]
    assert PictureFolders(tmp_path / "none").names() == []
    with pytest.raises(UnitError, match="name of a folder in references: trip"):
        folders.pictures("tripp")


def test_a_folder_stands_for_its_pictures(folders):
    one = without_folders(unit("aGk=", {"folder": "trip", "weight": 0.5}), Store(folders=folders))
    assert [getattr(reference.image, "name", None) for reference in one.images] == [
        None,
        "2.PNG",
        "10.png",
        "b.jpg",
    ]
    assert [reference.weight for reference in one.images] == [1, 0.5, 0.5, 0.5]


def test_folders_are_bounded(folders):
    for i in range(MAX_IMAGES):
        (folders.root / "trip" / f"more{i}.png").touch()
    with pytest.raises(UnitError, match=f"got '{MAX_IMAGES + 3} images', expected at most {MAX_IMAGES}"):
        without_folders(unit({"folder": "trip"}), Store(folders=folders))
    (folders.root / "empty").mkdir()
    with pytest.raises(UnitError, match="a folder with pictures"):
        without_folders(unit({"folder": "empty"}), Store(folders=folders))
