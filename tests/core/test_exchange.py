"""The unit's menu, and pictures that a pasted text names: gradio is a stand-in, the handlers are the panel's."""

from __future__ import annotations

import sys
from types import ModuleType, SimpleNamespace

import pytest
from PIL import Image


@pytest.fixture
def panel(monkeypatch):
    gradio = ModuleType("gradio")
    gradio.update = lambda **values: SimpleNamespace(**values)
    monkeypatch.setitem(sys.modules, "gradio", gradio)
    host = ModuleType("modules")
    host.shared = SimpleNamespace()
    monkeypatch.setitem(sys.modules, "modules", host)
    before = set(sys.modules)
    from lib_ipadapter.webui.panel import exchange, references, saved

    yield SimpleNamespace(exchange=exchange, references=references, saved=saved)
    for name in set(sys.modules) - before:
        if name.startswith("lib_ipadapter.webui"):
            del sys.modules[name]


def units():
    files = [SimpleNamespace(name="/tmp/a.png")]
    return [{"weight": i, "images": files if i == 0 else None, "model": f"m{i}"} for i in range(3)]


def test_copy_and_swap(panel):
    first = {"weight": 0, "images": ["/tmp/a.png"], "model": "m0"}
    assert panel.exchange.exchanged("copy 0 2", units()) == [None, None, first]
    assert panel.exchange.exchanged("swap 1 0", units()) == [{"weight": 1, "images": None, "model": "m1"}, first, None]


@pytest.mark.parametrize(
    "asked", ["", None, "copy", "copy 0", "copy 0 0", "copy 0 3", "copy -1 0", "drop 0 1", "swap x 1"]
)
def test_nothing_else_changes_anything(panel, asked):
    assert panel.exchange.exchanged(asked, units()) == [None, None, None]


def test_the_pictures_of_a_pasted_text_come_back(panel, tmp_path):
    """F13."""
    import json

    from lib_ipadapter.webui.panel import html

    paths = []
    for i, colour in enumerate(("red", "blue")):
        paths.append(str(tmp_path / f"{i}.png"))
        Image.new("RGB", (8, 8), colour).save(paths[-1])
    names = [html.picture_hash(path) for path in paths]
    shared = []
    models = SimpleNamespace(host=SimpleNamespace(serves_others=lambda: bool(shared)))
    events = panel.references.ReferenceEvents(0, models)
    held = [SimpleNamespace(name=paths[1])]
    assert events.find(json.dumps(names), held, "x") == [paths, ""]
    at_hand = events.find(json.dumps(names[1:]), held, "x")
    assert not any(hasattr(update, "value") for update in at_hand), "they are there"
    unknown = events.find(json.dumps([names[0], "0" * 16]), held, "x")
    assert not any(isinstance(update, list) for update in unknown), "not only some of them"
    shared.append("listen")
    of_another = events.find(json.dumps(names), held, "x")
    assert not any(isinstance(update, list) for update in of_another), "another person's"
    shared.clear()
    (tmp_path / "0.png").unlink()
    gone = events.find(json.dumps(names), held, "x")
    assert not any(isinstance(update, list) for update in gone)


def test_what_stays_is_not_written(panel):
    """An answer that came late put back the weight of a reference that was taken out meanwhile, or a model that was
    no longer chosen."""
    files = [SimpleNamespace(name=f"/tmp/{i}.png") for i in range(2)]
    new = [SimpleNamespace(name="/tmp/new.png")]
    models = SimpleNamespace(suggested=lambda: "near")
    events, saved = panel.references.ReferenceEvents(0, models), panel.saved.SavedEvents(models)
    stays = SimpleNamespace()
    assert saved.choose("1, 0.5", [], files[:1]) == [stays, stays]  # the last one was taken out
    assert saved.choose("1, 0.5, 0.3", ["embeds: a"], files[:1])[0] == stays  # one of two
    assert saved.choose("0.5", ["embeds: a"], files[:1]) == ["0.5, 1", True]
    assert saved.dropped(["a"], files, "1, 0.5, 0.3", ["a", "b"]) == [["a", "b"], stays]
    assert saved.dropped(["a", "b"], files, "1, 0.5, 0.3, 0.2", ["b"]) == [["b"], "1, 0.5, 0.2"]
    # What belongs to each reference is written with them, or it would belong to others.
    paths = ["/tmp/0.png", "/tmp/1.png"]
    assert events.add(new, files, "", ["a"], "", "", "mine") == [
        [*paths, "/tmp/new.png"],
        "",
        stays,
        "",
        "",
        True,
        stays,
    ]
    assert events.add(new, files, "1, 0.5", [], "", "", "None")[1:] == ["1, 0.5, 1", stays, "", "", True, "near"]
    assert events.remove(files, "1, 0.5, 1", ["a"], "", "", "2") == [stays, "1, 0.5", [], "", "", stays]
    assert events.remove(files, "", ["a"], "", "", "0") == [paths[1:], "", stays, "", "", stays]
    assert events.move(files, "", ["a"], "", "", "0,1") == [paths[::-1], "", stays, "", ""]
    assert events.use_input("", [], files, "mine") == ["", ["input: img2img"], True, stays]
