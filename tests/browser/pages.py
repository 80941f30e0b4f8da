"""What the browser tests do to the WebUI's page, in the words of a user."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import numpy as np
from PIL import Image

ARGS = (
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
)  # fmt: skip
COLOURS = ((205, 70, 60), (45, 95, 200), (60, 150, 90), (225, 170, 40))


def picture(seed: int = 0, size: tuple[int, int] = (320, 200)) -> bytes:
    """A PNG that differs by ``seed``: a coloured sky, a sun and hills."""
    width, height = size
    y, x = np.mgrid[:height, :width].astype(np.float32)
    sky = np.array(COLOURS[seed % len(COLOURS)]) * (0.55 + 0.45 * (1 - y / height))[..., None]
    hills = y > height * (0.7 + 0.08 * np.sin(x / width * 9 + seed))
    sky[hills] = np.array(COLOURS[(seed + 2) % len(COLOURS)]) * 0.6
    sun = (x - width * 0.5) ** 2 + (y - height * 0.42) ** 2 < (min(size) * 0.18) ** 2
    sky[sun] = (250, 240, 200)
    buffer = io.BytesIO()
    Image.fromarray(sky.clip(0, 255).astype(np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def upload(seed: int, name: str | None = None, size: tuple[int, int] = (320, 200)) -> dict[str, Any]:
    """A picture as Playwright's set_input_files takes it."""
    return {"name": name or f"picture{seed}.png", "mimeType": "image/png", "buffer": picture(seed, size)}


class PanelPage:
    """One tab's panel of a loaded page. Waits instead of sleeping."""

    def __init__(self, page: Any, tab: str = "txt2img", patience: float = 30) -> None:
        self.page = page
        self.patience = patience  # seconds
        self.tab = tab
        self.root = f"#ipadapter_{tab}"

    def unit(self, index: int, name: str) -> Any:
        """A component of a unit, by the name in its elem_id."""
        # gradio writes the id of an HTML component twice, nested
        return self.page.locator(f"{self.root}_{index}_{name}").first

    def until(self, what: Callable[[], Any], wanted: Any, seconds: float | None = None) -> None:
        """Waits until ``what()`` gives ``wanted``; fails with what it gave last."""
        seconds, seen = seconds or self.patience, what()
        for _ in range(int(seconds * 10)):
            if seen == wanted:
                return
            self.page.wait_for_timeout(100)
            seen = what()
        raise AssertionError(f"got {seen!r} after {seconds} s, expected {wanted!r}")

    # accordion

    def title(self) -> str:
        return self.page.locator(f"{self.root} .label-wrap > span").first.inner_text().strip()

    def is_on(self) -> bool:
        return self.page.locator(f"{self.root}-visible-checkbox").is_checked()

    def open(self) -> PanelPage:
        if not self.is_on():
            self.page.locator(f"{self.root} .label-wrap > span").first.click()
        self.until(self.is_on, True)
        self.page.locator(f"{self.root}_units").wait_for(state="visible")
        return self

    def show_unit(self, index: int) -> None:
        self.page.locator(f"{self.root}_units .tab-nav button").nth(index).click()

    # pictures

    def add(self, index: int, *files: Any) -> None:
        self.unit(index, "inbox").locator("input[type=file]").set_input_files(list(files))

    def thumbs(self, index: int = 0) -> int:
        return self.unit(index, "thumbnails").locator(".ipadapter-open img").count()

    def sources(self, index: int = 0) -> list[str]:
        images = self.unit(index, "thumbnails").locator(".ipadapter-open img")
        return list(images.evaluate_all("images => images.map(image => image.getAttribute('src'))"))

    def note(self, index: int = 0) -> str:
        return self.unit(index, "note").inner_text().strip()

    def weights_text(self, index: int = 0) -> str:
        return self.unit(index, "image_weights").locator("input, textarea").input_value()

    def set_weight(self, index: int, place: int, value: float) -> None:
        """Types into a tile's weight."""
        box = self.unit(index, "thumbnails").locator(".ipadapter-weight input").nth(place)
        box.fill(str(value))
        box.blur()

    def unfold(self, index: int, name: str) -> None:
        """Opens a folded group, by the name in its elem_id."""
        self.unit(index, name).locator(".label-wrap").first.click()

    def state(self, index: int, name: str) -> str:
        """What a folded group's header says."""
        return self.unit(index, name).locator(".ipadapter-state").first.inner_text().strip()

    # values

    def is_enabled(self, index: int) -> bool:
        return self.unit(index, "enabled").locator("input").is_checked()

    def number(self, index: int, name: str) -> float:
        return float(self.unit(index, name).locator("input[type=number]").input_value())

    def set_number(self, index: int, name: str, value: float) -> None:
        box = self.unit(index, name).locator("input[type=number]")
        box.fill(str(value))
        box.blur()

    def choice(self, index: int, name: str) -> str:
        radio = self.unit(index, name).locator("label:has(input:checked)")
        return radio.inner_text().strip() if radio.count() else self.dropdown(index, name)

    def dropdown(self, index: int, name: str) -> str:
        return self.unit(index, name).locator("input").input_value()

    def choose(self, index: int, name: str, value: str) -> None:
        box = self.unit(index, name)
        if box.locator("input[type=radio]").count():
            box.locator("label", has_text=value).first.click()
            return
        box.locator("input").click()
        self.page.locator(f'ul.options li[aria-label="{value}"]').first.click()
        self.until(lambda: self.dropdown(index, name), value)

    def model(self, index: int = 0) -> str:
        return self.dropdown(index, "model")

    def listed(self, index: int, name: str) -> list[str]:
        """What a dropdown offers."""
        self.unit(index, name).locator("input").click()
        options = self.page.locator("ul.options li")
        for _ in range(30):  # there may be none
            if options.count():
                break
            self.page.wait_for_timeout(100)
        found = options.evaluate_all("options => options.map(option => option.ariaLabel)")
        self.unit(index, name).locator("input").blur()
        options.first.wait_for(state="detached")
        return found

    def models(self, index: int = 0) -> list[str]:
        return self.listed(index, "model")

    def choose_model(self, index: int, name: str) -> None:
        self.unit(index, "model").locator("input").click()
        self.page.locator(f'ul.options li[aria-label="{name}"]').first.click()
        self.until(lambda: self.model(index), name)

    def info(self, index: int = 0) -> str:
        return self.unit(index, "info").inner_text().strip()

    def edit_mask(self, index: int, field: str, *presses: str, stroke: tuple[tuple[float, float], ...] = ()) -> None:
        """Opens the mask editor of a field, presses buttons by value, paints along ``stroke`` (fractions), applies."""
        self.unit(index, f"{field}_pad").locator(".ipadapter-paint").click()
        self._paint(presses, stroke)

    def mask_tile(self, index: int, place: int, *presses: str, stroke: tuple[tuple[float, float], ...] = ()) -> None:
        """The same for the mask of one reference, from its crop dialog."""
        self.unit(index, "thumbnails").locator(".ipadapter-open").nth(place).click()
        self.page.click('dialog.ipadapter-crop button[value="mask"]')
        self._paint(presses, stroke)

    def from_menu(self, index: int, label: str) -> None:
        """Chooses from the unit's menu."""
        self.unit(index, "menu").click()
        self.page.get_by_role("menuitem", name=label).click()

    def _paint(self, presses: tuple[str, ...], stroke: tuple[tuple[float, float], ...]) -> None:
        self.page.wait_for_selector("dialog.ipadapter-mask[open]")
        for value in presses:
            self.page.click(f'dialog.ipadapter-mask button[value="{value}"]')
        if stroke:
            box = self.page.locator(".ipadapter-mask-canvas").bounding_box()
            at = [(box["x"] + x * box["width"], box["y"] + y * box["height"]) for x, y in stroke]
            self.page.mouse.move(*at[0])
            self.page.mouse.down()
            for point in at[1:]:
                self.page.mouse.move(*point, steps=5)
            self.page.mouse.up()
        self.page.click('dialog.ipadapter-mask button[value="apply"]')
        self.page.wait_for_selector("dialog.ipadapter-mask", state="detached")
        self.page.wait_for_timeout(700)  # the value goes to the server and its preview comes back
        self.page.wait_for_function("!window.waiting")
