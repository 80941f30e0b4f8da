"""A loaded page for several tests: loading takes longer than most tests do. Behind a test its page is put back, by
what a user has for that where there is such, and is used again only where it then looks as it did when it was new."""

from __future__ import annotations

import time
from typing import Any

TABS = ("txt2img", "img2img")
SECONDS = 6.0
SIZE = {"width": 1400, "height": 1500}

# Counts what the page waits for, and is a slow server: of the panel's events, answers to those after the
# window.answered-th that was asked are held. Says whether a panel's box was clicked: the WebUI parts it from the fold.
WAITING = """
const real = window.fetch;
window.asked = window.waiting = 0;
window.answered = Infinity;
window.fetch = async (...given) => {
    if (!String(given[0]?.url ?? given[0]).includes("predict")) return real(...given);
    const turn = window.asked += 1;
    window.waiting += 1;
    try {
        const answer = await real(...given);
        while (turn > window.answered) await new Promise(resolve => setTimeout(resolve, 20));
        return answer;
    } finally {
        window.waiting -= 1;
    }
};
window.apart = new Set();
document.addEventListener("click", event => {
    if (event.target.id?.endsWith("-visible-checkbox")) window.apart.add(event.target.id);
}, true);
"""

# A tab's inputs but for the panel's, of which there are more or fewer
OTHERS = """const others = tab => [...document.querySelectorAll(`#tab_${tab} :is(input, textarea, select)`)]
        .filter(input => !input.closest("[id^=ipadapter_]"));"""
# All that a test may have left behind, by place: values, texts, what is open, selected or stored; but for results,
# which nothing takes out of a gallery, and the picture that a crop was drawn on
LOOK = """tabs => {
    OTHERS
    const seen = {};
    const values = inputs => inputs.map(
        input => input.type === "file" ? input.files.length : [input.value, input.checked]);
    const within = (root, query) => [root, ...root.querySelectorAll("*")].filter(one => one.matches(query));
    const marks = (root, query) => within(root, query).map(one => one.className);
    const look = (...roots) => JSON.stringify(roots.map(root => [root.textContent,
        values(within(root, ":is(input, textarea, select):not([id$=crop_source] *)")),
        marks(root, ".label-wrap, .tab-nav button"), within(root, "img").map(image => image.src),
        marks(root, "[class*=ipadapter-]")]));
    const outside = node => node.matches(".tabitem") ? []
        : node.querySelector(".tabitem") ? [...node.children].flatMap(outside) : [node];
    for (const tab of tabs) {
        const units = document.querySelectorAll(`#ipadapter_${tab}_units > .tabitem`);
        units.forEach((unit, index) => { seen[`${tab} ${index}`] = look(unit); });
        seen[tab] = look(...outside(document.querySelector(`#ipadapter_${tab}`)));
        seen[`${tab} on`] = document.querySelector(`#ipadapter_${tab}-visible-checkbox`).checked;
        seen[`${tab} error`] = document.querySelectorAll(`#html_log_${tab} .error`).length;
        seen[`${tab} settings`] = JSON.stringify(values(others(tab)));
    }
    seen.dialogs = document.querySelectorAll("dialog, .ipadapter-page-note, ul.options").length;
    seen.tabs = [...document.querySelectorAll("#tabs > .tab-nav button")].map(tab => tab.className).join();
    seen.stored = JSON.stringify({...localStorage});
    seen.address = location.href;
    seen.waiting = [window.answered, window.waiting].join();
    return seen;
}"""
# What needs no server: texts of the WebUI's own, what is unfolded, selected and switched on
FOLD = """([tabs, settings]) => {
    OTHERS
    window.answered = Infinity;
    document.body.classList.remove("dark");
    for (const tab of tabs) {
        const inputs = others(tab);
        JSON.parse(settings[tab]).forEach((held, index) => {
            const input = inputs[index], value = held[0]; // of files there is but a number
            if (!input || value === undefined || input.value === value) return;
            if (input.type === "file" || input.type === "checkbox" || input.type === "radio") return;
            input.value = value;
            input.dispatchEvent(new Event("input", {bubbles: true}));
        });
    }
    document.querySelectorAll("dialog[open]").forEach(dialog => dialog.close());
    for (const tab of tabs) {
        const units = document.querySelector(`#ipadapter_${tab}_units`);
        units.querySelectorAll(".label-wrap.open").forEach(label => label.click());
        units.querySelector(".tab-nav button").click();
        document.querySelectorAll(`#html_log_${tab} .error`).forEach(error => error.remove());
        const panel = document.querySelector(`#ipadapter_${tab}`);
        if (window.apart.has(`ipadapter_${tab}-visible-checkbox`)) { // a new box
            const old = panel.visibleCheckbox;
            old.remove();
            setupAccordion(panel);
            panel.visibleCheckbox.ariaLabel = old.ariaLabel;
            panel.onVisibleCheckboxChange();
        }
        const title = panel.querySelector(".label-wrap");
        if (title.classList.contains("open")) title.click();
    }
    window.apart.clear();
    document.querySelector("#tabs > .tab-nav button").click();
    window.scrollTo(0, 0);
}"""
LOOK, FOLD = (script.replace("OTHERS", OTHERS) for script in (LOOK, FOLD))


def hold(page: Any) -> int:
    """From now on the server does not answer; how many events were asked before."""
    return int(page.evaluate("window.answered = window.asked"))


def answer(page: Any, asked: int | None = None) -> None:
    """It answers what is asked, or only the first so many."""
    page.evaluate("asked => { window.answered = asked ?? Infinity; }", asked)


def asked(page: Any, more_than: int) -> int:
    """How many events were asked, when they are more than so many."""
    page.wait_for_function("count => window.asked > count", arg=more_than)
    return int(page.evaluate("window.asked"))


def look(page: Any) -> dict[str, Any]:
    """How the page looks, by place."""
    return dict(page.evaluate(LOOK, list(TABS)))


def settled(page: Any) -> dict[str, Any]:
    """How a new page looks when nothing in it changes any more."""
    last: dict[str, Any] = {}
    for _ in range(50):
        page.wait_for_function("window.waiting === 0")
        if (seen := look(page)) == last:
            break
        last = seen
        page.wait_for_timeout(200)
    return last


def put_back(page: Any, new: dict[str, Any]) -> list[str]:
    """Puts the page back; the places that still differ from how they looked when it was ``new``."""
    if page.url != new["address"]:  # nothing puts that back
        return ["address"]
    page.set_viewport_size(SIZE)
    fold = [list(TABS), {tab: new[f"{tab} settings"] for tab in TABS}]
    page.evaluate(FOLD, fold)
    page.wait_for_function("window.waiting === 0")
    seen = look(page)
    for tab in TABS:
        for index in range(sum(name.startswith(f"{tab} ") and name[-1].isdigit() for name in new)):
            if seen.get(f"{tab} {index}") != new[f"{tab} {index}"]:
                page.evaluate("id => document.getElementById(id).click()", f"ipadapter_{tab}_{index}_reset")
    until = time.monotonic() + SECONDS
    while True:
        seen = look(page)
        differ = [name for name in new if seen.get(name) != new[name]]
        if not differ or time.monotonic() > until:
            return differ
        page.wait_for_timeout(200)
