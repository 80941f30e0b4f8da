"""Makes docs/first-picture.webp, the first use of the panel in the small world, and docs/panel.png:

    python -m tests.browser.film

Needs what the browser suite needs. The frames are the real page, what happens on them is what a user does.
"""

from __future__ import annotations

import io
import os
import shutil
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont

from examples.small_world import data, models
from tests.webui.harness import REPO
from tests.webui.test_small_world import SmallWorld
from tests.webui.with_page import WithPage

from .conftest import load
from .pages import ARGS, PanelPage
from .test_generate import generate

DOCS = REPO / "docs"
SIZE, SHOWN = (1100, 1330), 660  # of the page in pixels, and the film's width
CAPTION = 30
_FONT = "DejaVuSans.ttf"


class World(SmallWorld, WithPage):
    """The small world with the page."""

    def __init__(self, weights: Path) -> None:
        super().__init__(weights)
        self.extra = ()


class Film:
    """Frames of a page, each with what happens in it."""

    def __init__(self, page: Any) -> None:
        self.page = page
        self.frames: list[Image.Image] = []
        self.durations: list[int] = []

    def frame(self, caption: str, ms: int = 1600) -> None:
        """The page as it is."""
        self.page.wait_for_timeout(400)
        shot = Image.open(io.BytesIO(self.page.screenshot())).convert("RGB")
        height = round(shot.height * SHOWN / shot.width)
        whole = Image.new("RGB", (SHOWN, height + CAPTION), (30, 64, 175))
        whole.paste(shot.resize((SHOWN, height), Image.Resampling.LANCZOS), (0, CAPTION))
        try:
            letters: Any = ImageFont.truetype(_FONT, 16)
        except OSError:
            letters = ImageFont.load_default()
        ImageDraw.Draw(whole).text((10, 6), caption, "white", letters)
        self.frames.append(whole)
        self.durations.append(ms)

    def save(self, path: Path) -> None:
        """Writes the film."""
        first, *others = self.frames
        first.save(path, save_all=True, append_images=others, duration=self.durations, loop=0, quality=72, method=6)


def main() -> None:
    from playwright.sync_api import sync_playwright

    chromium = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
    reference = io.BytesIO()
    data.sample(3, 2, unseen=True).picture.resize((256, 256), Image.Resampling.NEAREST).save(reference, "PNG")
    file = {"name": "star.png", "mimeType": "image/png", "buffer": reference.getvalue()}
    with World(models.WEIGHTS) as webui, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, headless=True, args=list(ARGS))
        page = browser.new_page(viewport={"width": SIZE[0], "height": SIZE[1]})
        page.set_default_timeout(60_000)
        load(page, webui.url)
        page.wait_for_timeout(2000)
        for name, value in (("steps", 12), ("width", data.SIDE), ("height", data.SIDE), ("seed", 5)):
            box = page.locator(f"#txt2img_{name} input[type=number]").first
            box.fill(str(value))
            box.blur()
        film, panel = Film(page), PanelPage(page)
        film.frame("txt2img, as ever")
        panel.open()
        page.locator("#txt2img_generate").scroll_into_view_if_needed()
        film.frame("1. Open IP-Adapter")
        panel.add(0, file)
        panel.until(panel.thumbs, 1)
        film.frame("2. Drop an image on it")
        panel.choose_model(0, models.BASE_ADAPTER.stem)
        panel.until(lambda: "found" in panel.info(), True)
        film.frame("3. Choose a model, if it has not chosen itself")
        page.locator("#ipadapter_txt2img").screenshot(path=str(DOCS / "panel.png"))
        generate(page)
        film.frame("4. Generate: it takes after the image, without a word of text", 3000)
        page.locator("#txt2img_prompt textarea").fill("a red heart")
        panel.set_number(0, "weight", 0.5)
        generate(page)
        film.frame('Weight 0.5 leaves room for the prompt: "a red heart"', 3000)
        browser.close()
    film.save(DOCS / "first-picture.webp")
    print(f"{DOCS / 'first-picture.webp'}: {(DOCS / 'first-picture.webp').stat().st_size // 1000} kB")


if __name__ == "__main__":
    main()
