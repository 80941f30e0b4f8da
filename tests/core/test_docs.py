"""The tables of docs/ are those that the declarations make."""

from __future__ import annotations

import argparse
import re
from pathlib import Path

import pytest

from lib_ipadapter.errors import ConfigError
from lib_ipadapter.evaluation.options import EvaluateOptions
from lib_ipadapter.options import add_flags, fields_of, from_flags
from lib_ipadapter.standalone.options import EmbedOptions, GenerateOptions
from lib_ipadapter.training.config import TrainConfig
from lib_ipadapter.unit import FIELDS
from lib_ipadapter.unit.weights import TYPES
from tests import docs
from tests.core.test_house import ROOMS


def test_the_tables_are_up_to_date():
    assert [path.name for path in docs.stale()] == [], "run python -m tests.docs --write"


def test_every_table_is_in_a_document():
    blocks = [block[2] for path in docs.documents() for block in docs.BLOCK.finditer(path.read_text(encoding="utf-8"))]
    assert sorted(blocks) == sorted(docs.TABLES)


@pytest.mark.parametrize(("name", "words"), [
    ("options.md", [field.label for field in FIELDS] + [f"*{kind}*" for kind in TYPES]),
    ("api.md", [f"`{name}`" for field in FIELDS for name in (field.name, *field.aliases)]),
    ("training.md", [f"`{option.name}`" for option in fields_of(TrainConfig)]),
    ("evaluation.md", [f"`{option.flag}`" for option in fields_of(EvaluateOptions)]),
    ("command-line.md", [f"`{o.flag}`" for cls in (GenerateOptions, EmbedOptions) for o in fields_of(cls)]),
])  # fmt: skip
def test_every_option_is_in_its_document(name, words):
    text = (docs.DOCS / name).read_text(encoding="utf-8")
    assert [word for word in words if f"| {word}" not in text and word not in text] == []


def test_a_changed_table_is_stale(tmp_path: Path, monkeypatch):
    text = (docs.DOCS / "options.md").read_text(encoding="utf-8")
    (tmp_path / "options.md").write_text(text.replace("| Weight | ", "| Wait | "), encoding="utf-8")
    monkeypatch.setattr(docs, "DOCS", tmp_path)
    assert [path.name for path in docs.stale()] == ["options.md"]
    assert docs.renewed((tmp_path / "options.md").read_text(encoding="utf-8")) == text


def test_the_address_of_a_published_copy_stands_in_one_place(monkeypatch):
    text = docs.README.read_text(encoding="utf-8")
    assert text.count(docs.ADDRESS) == 1
    monkeypatch.setenv("IPADAPTER_ADDRESS", "https://example.org/me/it")
    made = docs.renewed(text)
    assert made == text.replace(docs.ADDRESS, "https://example.org/me/it")
    monkeypatch.delenv("IPADAPTER_ADDRESS")
    assert docs.renewed(made) == text


def test_every_option_says_what_it_does():
    for cls in (GenerateOptions, EmbedOptions, EvaluateOptions, TrainConfig):
        for option in fields_of(cls):
            assert option.help.endswith("."), option.name


def flags_of(cls, *words):
    parser = argparse.ArgumentParser()
    add_flags(parser, cls)
    return from_flags(cls, parser.parse_args(list(words)))


NEEDED = ("--references", "r", "--out", "o", "--clip", "c")


def test_flags_become_the_options():
    options = flags_of(
        EvaluateOptions, *NEEDED, "--weights", "0,0.5", "--adapter", "a=x", "--adapter", "b", "--fit", "pad"
    )
    assert (options.weights, options.adapter, options.fit) == ((0.0, 0.5), ("a=x", "b"), "pad")
    assert (options.references, options.steps, options.limit, options.precision) == (
        Path("r"),
        50,
        None,
        None,
    )
    assert flags_of(EvaluateOptions, *NEEDED).weights == (1.0,)
    made = flags_of(GenerateOptions, "--checkpoint", "c", "--image", "x.png", "--image-weight", "-0.5", "--seed", "-1")
    assert (made.image, made.image_weight, made.seed, made.out) == (
        (Path("x.png"),),
        (-0.5,),
        -1,
        Path("out.png"),
    )
    assert {option.name: option.default for option in fields_of(GenerateOptions)} == {
        **vars(made), "checkpoint": None, "image": (), "image_weight": (),
    }  # fmt: skip


@pytest.mark.parametrize(("words", "message"), [
    (NEEDED[:4], "clip: got None, expected a path; it has no default"),
    ((*NEEDED, "--weights", "much"), "weights: got 'much', expected a number from -1 to 5"),
    ((*NEEDED, "--weights", ""), "weights: got '', expected a number"),
    ((*NEEDED, "--weights", "9"), "weights: got 9.0"),
    ((*NEEDED, "--count", "0"), "count: got 0, expected a whole number from 1 to 10000"),
    ((*NEEDED, "--count", "1.5"), "count: got '1.5'"),
    ((*NEEDED, "--timeout", "0"), "timeout: got 0.0, expected a number above 0"),
    ((*NEEDED, "--out", ""), "out: got '', expected a path"),
])  # fmt: skip
def test_a_bad_flag_names_itself_the_value_and_what_was_expected(words, message):
    with pytest.raises(ConfigError) as caught:
        flags_of(EvaluateOptions, *words)
    assert str(caught.value).startswith(message)


def test_the_architecture_has_the_rooms_in_their_order():
    text = (docs.DOCS / "architecture.md").read_text(encoding="utf-8")
    rows = [line for line in text.splitlines() if line.startswith("| `")]
    named = [name for row in rows for name in re.findall(r"`(\w+)/?`", row.split("|")[1])]
    assert named == [room for room in ROOMS if room not in ("", "cli", "__main__")]
