// The tiles of the references: taking one out, moving one, its weight, and the last tile, which takes more. Places count in the
// tiles that are shown; until the server has drawn them again, another click would mean another picture.

(function() {
    const {byId, inTurn, isBusy, pictureCount, prefixOf, press, tiles} = window.ipadapter;
    let place = ""; // what the server is told: the place of a reference, or "from,to"
    let carried = null; // {prefix, index} of the tile that is dragged
    let held = null; // {prefix, index, part}: the control of a tile that has the keyboard
    const PARTS = [".ipadapter-open", ".ipadapter-remove", ".ipadapter-weight input"];

    // gradio calls it with a handler's inputs and then its outputs; what we know goes in an input's place.
    window.ipadapterPlace = (files, weights, saved, box, masks) => [files, weights, saved, box, masks, place];

    function tell(prefix, button, text) {
        if (isBusy(prefix)) return;
        inTurn(prefix, () => {
            place = text;
            return press(prefix, button);
        });
    }

    function move(prefix, from, to) {
        if (from !== to && to >= 0 && to < pictureCount(prefix)) tell(prefix, "move", `${from},${to}`);
    }

    // One of the faces that were found: the option of the unit.
    function choose(prefix, number) {
        const text = byId(`${prefix}_face`)?.querySelector("textarea, input");
        if (!text) return;
        text.value = number;
        updateInput(text);
    }

    document.addEventListener("click", event => {
        const remove = event.target.closest?.(".ipadapter-remove"), adder = event.target.closest?.(".ipadapter-adder"),
            face = event.target.closest?.(".ipadapter-face"), input = event.target.closest?.(".ipadapter-input");
        if (remove) tell(prefixOf(remove), "remove", remove.dataset.index);
        if (input) tell(prefixOf(input), "use_input", "");
        if (face) choose(prefixOf(face), face.dataset.face);
        if (adder) byId(`${prefixOf(adder)}_inbox`)?.querySelector("input[type=file]")?.click();
    });

    // The weights are one text with a number for each tile.
    document.addEventListener("change", event => {
        const input = event.target.closest?.(".ipadapter-weight input");
        if (!input) return;
        const prefix = prefixOf(input), text = byId(`${prefix}_image_weights`)?.querySelector("textarea, input");
        const weights = Array.from(tiles(prefix), tile => tile.querySelector(".ipadapter-weight input")?.value || "1");
        text.value = weights.every(weight => Number(weight) === 1) ? "" : weights.join(", ");
        updateInput(text);
    });

    document.addEventListener("keydown", event => {
        const open = event.altKey && event.target.closest?.(".ipadapter-open");
        const step = {ArrowLeft: -1, ArrowRight: 1}[event.key];
        if (!open || !step) return;
        event.preventDefault();
        const prefix = prefixOf(open), from = Number(open.dataset.index), to = from + step;
        if (held && !isBusy(prefix) && to >= 0 && to < pictureCount(prefix)) held.index = to;
        move(prefix, from, to);
    });

    // The server draws the tiles anew, and what had the keyboard is gone: it goes on in the same place.
    document.addEventListener("focusin", event => {
        const tile = event.target.closest?.(".ipadapter-thumb"), part = PARTS.find(one => event.target.matches?.(one));
        const prefix = tile && prefixOf(tile);
        held = tile && part ? {prefix, index: Array.from(tiles(prefix)).indexOf(tile), part} : null;
    });

    document.addEventListener("pointerdown", event => {
        if (!event.target.closest?.(".ipadapter-thumb")) held = null;
    });

    onUiUpdate(() => {
        if (!held || document.activeElement !== document.body) return;
        const shown = tiles(held.prefix), tile = shown[Math.min(held.index, shown.length - 1)];
        const next = tile?.querySelector(held.part) ?? byId(`${held.prefix}_thumbnails`)?.querySelector(".ipadapter-adder");
        next?.focus({preventScroll: true});
    });

    // In the capture phase and before ipadapter_drop.js's handlers could take the tile for a picture from outside.
    // A tile that goes while it is dragged ends no drag; files come from outside.
    window.ipadapterCarrying = event => {
        if (event.dataTransfer?.types.includes("Files")) carried = null;
        return Boolean(carried);
    };

    document.addEventListener("dragstart", event => {
        const open = event.target.closest?.(".ipadapter-open");
        carried = open ? {prefix: prefixOf(open), index: Number(open.dataset.index)} : null;
        if (open) event.dataTransfer.setData("text/plain", open.title);
    });

    document.addEventListener("dragover", event => {
        if (carried && event.target.closest?.(".ipadapter-thumb")) event.preventDefault();
    });

    document.addEventListener("drop", event => {
        const tile = carried && event.target.closest?.(".ipadapter-thumb:not(.ipadapter-named)"), from = carried;
        carried = null;
        if (!tile || prefixOf(tile) !== from.prefix) return;
        event.preventDefault();
        move(from.prefix, from.index, Number(tile.dataset.index));
    });

    document.addEventListener("dragend", () => carried = null);
})();
