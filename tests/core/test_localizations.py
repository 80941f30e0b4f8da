"""Translations of the page: each text has one in each language, and there is none for a text that is gone."""

from __future__ import annotations

import json
import re

import pytest

from tests.words import ROOT, words

LANGUAGES = ("de_DE", "es_ES", "fr_FR", "ja_JP", "ko_KR", "ru_RU", "zh_CN")


def entries(language: str) -> dict[str, str]:
    return json.loads((ROOT / "localizations" / f"{language}.json").read_text(encoding="utf-8"))


def test_these_are_all():
    assert sorted(path.stem for path in (ROOT / "localizations").iterdir()) == sorted(LANGUAGES)


@pytest.mark.parametrize("language", LANGUAGES)
def test_every_text_has_a_translation_and_no_other(language):
    found, shown = entries(language), words()
    assert [text for text in shown if text not in found] == [], "add them to localizations/"
    assert [text for text in found if text not in shown] == [], "no text of the page any more"
    assert [text for text, translated in found.items() if not translated.strip()] == []


@pytest.mark.parametrize("language", LANGUAGES)
def test_what_is_typed_stays_as_it_is(language):
    """Examples in quotation marks, places for numbers, and names of choices."""
    for text, translated in entries(language).items():
        for part in re.findall(r'"[^"]*\d[^"]*"|\{\}|ortho_v2|ip_adapter|--\w+vram|\bnorm average\b', text):
            assert part in translated, (text, part)


def test_a_new_label_would_be_missing(monkeypatch):
    import dataclasses

    from lib_ipadapter.unit import FIELDS
    from tests import words as collected

    new = dataclasses.replace(FIELDS[-1], label="Quite new", help="It is.", name="new")
    monkeypatch.setattr(collected, "FIELDS", (*FIELDS, new))
    assert [text for text in collected.words() if text not in entries("ja_JP")] == ["Quite new", "It is."]
