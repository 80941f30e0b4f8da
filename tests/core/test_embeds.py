"""Embeds: saved features as references, without encoder or pictures; folders; references in turn."""

from __future__ import annotations

import json
import pickle
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file

from lib_ipadapter.adapters.adapter import Adapter
from lib_ipadapter.attention.session import Session
from lib_ipadapter.errors import FileError, UnitError
from lib_ipadapter.files.embeds import EmbedsFolder, read
from lib_ipadapter.pictures.images import content_hash
from lib_ipadapter.prompts import features
from lib_ipadapter.prompts.prepare import Pictures, prepare
from lib_ipadapter.prompts.references import PictureFolders, expanded, in_turn, singles, spread
from lib_ipadapter.unit import COMBINES, Unit, schema
from lib_ipadapter.unit.fields import MAX_IMAGES
from lib_ipadapter.unit.names import Named
from lib_ipadapter.unit.weights import LayerRule
from tests.synthetic import adapter_tensors, write_adapter
from tests.tiny import UNet, inputs, prompt

WIDTH = 48


class Source:
    """Features by the picture's colour, without an encoder."""

    def features(self, picture, fit, spec):
        return self._random(picture.getpixel((0, 0))[0], spec)

    def unconditional(self, spec):
        return torch.zeros(1, WIDTH) if spec.feature == "pooled" else self._random(999, spec)

    def _random(self, seed, spec):
        shape = (1, WIDTH) if spec.feature == "pooled" else (1, 17, WIDTH)
        return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


class NoSource:
    """An encoder that is not there."""

    def features(self, picture, fit, spec):
        raise AssertionError("encoded")

    unconditional = features


def picture(colour: int) -> Image.Image:
    return Image.new("RGB", (8, 8), (colour, 0, 0))


@pytest.fixture(params=["base", "plus", "full"])
def adapter(request, tmp_path):
    return Adapter.load(
        write_adapter(tmp_path / "a.safetensors", adapter_tensors(request.param, feature_width=WIDTH))
    )


@pytest.fixture
def folder(tmp_path):
    return EmbedsFolder(tmp_path / "embeds")


class Shelf:
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
    pictures = [reference.image for reference in one.images]
    hashes = [content_hash(image) for image in pictures]
    folder.save(features.embeds(name, one, Pictures(pictures), hashes, Source(), adapter.spec))


def prepared(one, folder, adapter, source):
    one = expanded(one, Shelf(folder))
    return prepare(one, Pictures([reference.image for reference in one.images]), adapter, source)


def same(a, b):
    return torch.equal(a.tokens, b.tokens) and torch.equal(a.token_weights, b.token_weights)


@pytest.mark.parametrize("how", COMBINES)
def test_the_tokens_are_those_of_the_pictures_without_an_encoder(folder, adapter, how):
    one = of([1, 2, 3], [1.0, 0.5, 0.25], combine=how)
    saved(folder, adapter, "three", one)
    expected = prepare(one, Pictures([reference.image for reference in one.images]), adapter, Source())
    again = prepared(unit({"embeds": "three"}, combine=how), folder, adapter, NoSource() if adapter.spec.feature
                     == "penultimate" else OnlyZeros())  # fmt: skip
    assert same(again, expected)
    assert not same(again, prepared(of([1, 2, 4], combine=how), folder, adapter, Source()))


class OnlyZeros(NoSource):
    def unconditional(self, spec):
        return torch.zeros(1, WIDTH)


@pytest.mark.parametrize("how", COMBINES)
def test_they_mix_with_pictures(folder, adapter, how):
    saved(folder, adapter, "two", of([1, 2], [1.0, 0.5]))
    mixed = unit(
        {"image": picture(7), "weight": 2}, {"embeds": "two", "weight": 0.5}, picture(9), combine=how
    )
    alone = of([7, 1, 2, 9], [2, 0.5, 0.25, 1], combine=how)
    expected = prepare(alone, Pictures([reference.image for reference in alone.images]), adapter, Source())
    assert same(prepared(mixed, folder, adapter, Source()), expected)


def test_what_a_file_says(folder, adapter):
    saved(folder, adapter, "Gesicht, 1", of([1, 2], [1.0, 0.5], fit="pad"))
    report = folder.reports()["Gesicht, 1"]
    assert report["pictures"] == [
        {"hash": content_hash(picture(1)), "weight": 1.0},
        {"hash": content_hash(picture(2)), "weight": 0.5},
    ]
    assert (report["feature"], report["width"], report["fit"]) == (adapter.spec.feature, WIDTH, "pad")
    with safe_open(str(folder.folder / "Gesicht, 1.safetensors"), "pt") as file:
        extra = ["unconditional"] if adapter.spec.feature == "penultimate" else []
        assert sorted(file.keys()) == ["reference.0", "reference.1", *extra]
        assert file.metadata()["ip_adapter_embeds"] == "1"
    assert [path.name for path in folder.folder.iterdir()] == ["Gesicht, 1.safetensors"]
    folder.remove("Gesicht, 1")
    assert folder.names() == []


@pytest.mark.parametrize("name", ["", "../up", "a/b", "..", ".hidden", "a\0b", "CON", "x.", None, 3])
def test_names_that_are_no_file_names_are_refused(folder, tmp_path, name):
    for act in (folder.load, folder.remove, folder.check):
        with pytest.raises(UnitError, match=r"^embeds: got"):
            act(name)
    with pytest.raises(UnitError, match=r"^folder: got"):
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
    with pytest.raises(
        FileError, match=r"48 wide, and the adapter takes pooled features of ViT-H-14, 1024 wide"
    ):
        prepared(unit({"embeds": "small"}), folder, big, Source())


def rewritten(folder, change):
    """The file of "x" with its tensors and header changed."""
    path = folder.folder / "x.safetensors"
    with safe_open(str(path), "pt") as file:
        tensors, told = {key: file.get_tensor(key) for key in file.keys()}, dict(file.metadata())  # noqa: SIM118
    change(tensors, told)
    save_file(tensors, str(path), told)


@pytest.mark.parametrize(("change", "message"), [
    (lambda t, m: m.pop("ip_adapter_embeds"), "holds no embeds"),
    (lambda t, m: m.update(ip_adapter_embeds="2"), "version is 2, expected 1"),
    (lambda t, m: m.pop("encoder"), "broken"), (lambda t, m: m.update(feature="x"), "broken"),
    (lambda t, m: m.update(width="47"), "broken"), (lambda t, m: m.update(width="x"), "broken"),
    (lambda t, m: m.update(pictures="[]"), "broken"), (lambda t, m: m.update(pictures="{"), "broken"),
    (lambda t, m: m.update(pictures="[1, 2]"), "broken"), (lambda t, m: m.update(pictures="[" * 9000), "broken"),
    (lambda t, m: m.update(pictures=json.dumps([{"hash": "a", "weight": 99}] * 2)), "broken"),
    (lambda t, m: t.pop("reference.1"), "broken"), (lambda t, m: t.update(more=torch.zeros(1)), "broken"),
    (lambda t, m: t.update({"reference.1": torch.full((1, WIDTH), torch.nan)}), "broken"),
    (lambda t, m: t.update({"reference.1": torch.zeros(1, WIDTH, dtype=torch.int64)}), "broken"),
    (lambda t, m: t.update({"reference.1": torch.zeros(2, WIDTH)}), "broken"),
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
    torch.save({"reference.0": torch.zeros(1, WIDTH)}, folder.folder / "x.safetensors")
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
    assert {key for form in forms[1:] for key in form["required"]} == {"image", "embeds", "folder"}


@pytest.mark.parametrize("entry", [
    {"embeds": ""}, {"embeds": 3}, {"folder": None}, {"embeds": "a", "image": "aGk="}, {"embeds": "a", "folder": "b"},
    {"embeds": "a", "weight": 9}, {"embeds": "a", "w": 1}, {"weight": 1},
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
                expanded(one, Shelf(folder))
        else:
            expanded(one, Shelf(folder))
    with pytest.raises(UnitError, match="sum is not 0"):
        expanded(unit({"embeds": "two"}, {"embeds": "one", "weight": -0.5}, combine="average"), Shelf(folder))
    with pytest.raises(UnitError, match=f"at most {MAX_IMAGES}"):
        expanded(unit(*[{"embeds": "two"}] * 33), Shelf(folder))


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
    one = spread(unit("aGk=", {"folder": "trip", "weight": 0.5}), Shelf(folders=folders))
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
        spread(unit({"folder": "trip"}), Shelf(folders=folders))
    (folders.root / "empty").mkdir()
    with pytest.raises(UnitError, match="a folder with pictures"):
        spread(unit({"folder": "empty"}), Shelf(folders=folders))


# in turn


def test_which_reference_a_picture_takes():
    def taken(places, count=3):
        one = unit(*(picture(i) for i in range(count)), distribute="one per picture")
        return [single.images[0].image.getpixel((0, 0))[0] for single in singles(one, places, Shelf())]

    assert taken([0, 1]) == [0, 1]
    assert taken(range(8)) == [0, 1, 2]  # and again from the first
    assert taken([4]) == [1]
    single = singles(of([1, 2], combine="subtract", distribute="one per picture"), [0], Shelf())[0]
    with pytest.raises(UnitError, match="at least two"):
        expanded(single, Shelf())


@pytest.fixture
def unet():
    torch.manual_seed(0)
    return UNet(per_part=(6, 1, 9)).eval()  # as many layers as SD1.5.requires_grad_(False)


@pytest.mark.parametrize("fields", [
    {}, {"scaling": "K+V"}, {"scaling": "K+mean(V) with C penalty"}, {"precise": True},
])  # fmt: skip
def test_each_picture_equals_a_run_with_its_own_reference(unet, fields):
    fields = dict(fields)
    if fields.pop("precise", False):
        fields["rule"] = LayerRule("style transfer precise", 0.7, None)
    first = prompt(unet, **fields)
    others = [prompt(unet, seed) for seed in (1, 2)]
    weights = [torch.full((4,), weight) for weight in (1.0, 0.5, 2.0)]
    alone = [
        replace(first, tokens=one.tokens, token_weights=weight)
        for one, weight in zip([first, *others], weights, strict=True)
    ]
    x, context = inputs(6)
    sets = [0, 2, 4, 1, 3, 5]  # pictures 0, 1, 2: cond, then uncond
    together = run(unet, [in_turn(alone)], x, context, sets)
    for k, one in enumerate(alone):
        single = run(unet, [one], x, context, [0, 0, 0, 1, 1, 1])
        assert torch.equal(together[k::3], single[k::3])
        assert not torch.equal(together[(k + 1) % 3 :: 3], single[(k + 1) % 3 :: 3])


def test_they_begin_again_and_other_units_are_not_touched(unet):
    one, two, other = prompt(unet), prompt(unet, 1), prompt(unet, 2, weight=0.3)
    two = replace(one, tokens=two.tokens)
    x, context = inputs(4)
    both = run(
        unet, [in_turn([one, two]), other], x, context, [4, 6, 5, 7]
    )  # pictures 2 and 3: references 0 and 1
    assert torch.equal(both[0::2], run(unet, [one, other], x, context, [0, 0, 1, 1])[0::2])
    assert torch.equal(both[1::2], run(unet, [two, other], x, context, [0, 0, 1, 1])[1::2])


def test_prompts_of_other_lengths_are_refused(unet):
    with pytest.raises(UnitError, match=r"got 4 and 8.*average"):
        in_turn([prompt(unet), prompt(unet, tokens=8)])


def run(unet, prompts, x, context, sets):
    session = Session(prompts)
    with session.attached(unet):
        session.begin_step(sets, 0.0)
        return unet(x, context=context)
