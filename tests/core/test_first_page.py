"""README and docs: links lead somewhere, the first page stays short, and its pictures can be made again."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from examples.small_world.recipes import RECIPES, sheet
from examples.small_world.recipes import scene as small_scene

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").glob("*.md"), *ROOT.glob("examples/*/README.md")])


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_links_lead_to_files(page):
    links = re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8"))
    missing = [link for link in links if "://" not in link and not (page.parent / link).exists()]
    assert not missing


def test_the_first_page_stays_short():
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 110


def test_every_picture_of_a_recipe_is_shown_and_can_be_made_again():
    shown = set(re.findall(r"docs/((?:strip|recipe-[a-z-]+))\.png", (ROOT / "README.md").read_text(encoding="utf-8")))
    assert shown == set(RECIPES)


def test_a_sheet_holds_its_pictures_side_by_side():
    one, other = small_scene("star", "red", "plain", "white"), small_scene("ring", "blue", "plain", "sky")
    made = sheet([("one", one), ("other", other)])
    assert made.crop((10, 26, 138, 154)).tobytes() == one.tobytes()
    assert made.crop((148, 26, 276, 154)).tobytes() == other.tobytes()
