// What is folded away or listed elsewhere: the headers of folded groups say what in them differs from the defaults; lists of
// models, presets and saved references are asked for when the page is there and when they change.

(function() {
    const {TABS, byId, unitPrefixes} = window.ipadapter;
    const LONG = 28; // characters of a text that are shown

    const reads = {
        bool: element => Boolean(element.querySelector("input")?.checked),
        number: element => Number(element.querySelector("input[type=number]")?.value),
        choice: element => (element.querySelector("input:checked") ?? element.querySelector("input:not([type=radio])"))?.value,
        string: element => element.querySelector("textarea, input")?.value ?? "",
        image: element => element.querySelector("textarea, input")?.value ? true : null,
        images: element => element.querySelectorAll(".file-preview tr").length || null,
    };
    reads.text = reads.string;

    function said({name, label, kind, value: usual}, prefix) {
        const element = byId(`${prefix}_${name}`);
        const value = element ? reads[kind](element) : usual;
        // a mask is not seen, and does not count, where another region is chosen
        if (name === "mask" && (reads.choice(byId(`${prefix}_region`)) ?? "mask") !== "mask") return "";
        if (value === undefined || value === usual || value === "" || value === null) return "";
        if (kind === "bool") return value ? label.toLowerCase() : `not ${label.toLowerCase()}`;
        if (kind === "image") return label.toLowerCase();
        const text = String(value);
        return `${label.toLowerCase()} ${text.length > LONG ? `${text.slice(0, LONG)}\u2026` : text}`;
    }

    function showState(prefix, fold, fields) {
        const header = byId(`${prefix}_${fold}`)?.querySelector(".label-wrap");
        if (!header) return;
        const text = fields.map(field => said(field, prefix)).filter(Boolean).join(" \u00b7 ");
        let state = header.querySelector(".ipadapter-state");
        if (!state) {
            state = document.createElement("span");
            state.className = "ipadapter-state";
            header.insertBefore(state, header.lastElementChild);
        }
        if (state.textContent !== text) state.textContent = text;
    }

    function showStates() {
        for (const tab of TABS) {
            const folds = byId(`ipadapter_${tab}_folds`)?.querySelector("[data-folds]")?.dataset.folds;
            if (!folds) continue;
            for (const prefix of unitPrefixes(tab)) {
                for (const [fold, fields] of Object.entries(JSON.parse(folds))) showState(prefix, fold, fields);
            }
        }
    }

    let due = 0;

    function soon() {
        clearTimeout(due);
        due = setTimeout(showStates, 100);
    }

    document.addEventListener("change", soon);
    document.addEventListener("input", soon);
    onAfterUiUpdate(soon);

    // gradio's number boxes and the accordion's checkbox have no label of their own.
    function nameInputs() {
        for (const tab of TABS) {
            byId(`ipadapter_${tab}-visible-checkbox`)?.setAttribute("aria-label", "IP-Adapter");
            byId(`ipadapter_${tab}`)?.querySelectorAll("input[type=number]:not([aria-label]), input[type=range]:not([aria-label])").forEach(input => {
                const label = input.closest(".block")?.querySelector("label > span")?.textContent.trim();
                if (label) input.setAttribute("aria-label", label);
            });
        }
    }

    // gradio 3's headers are no buttons, and the keyboard passes them by. Their arrows become some: a checkbox stands in the
    // header of the panel.
    function reachHeaders(tab) {
        byId(`ipadapter_${tab}`)?.querySelectorAll("div.label-wrap > :last-child:not([role])").forEach(arrow => {
            const header = arrow.parentElement, tell = () => arrow.setAttribute("aria-expanded", header.classList.contains("open"));
            arrow.tabIndex = 0;
            arrow.setAttribute("role", "button");
            arrow.setAttribute("aria-label", header.querySelector("span").textContent.trim());
            arrow.addEventListener("keydown", event => {
                if (event.key !== "Enter" && event.key !== " ") return;
                event.preventDefault();
                arrow.click();
            });
            new MutationObserver(tell).observe(header, {attributeFilter: ["class"]});
            tell();
        });
    }

    // lists

    function isSaved(kind, name) {
        return TABS.some(tab => {
            const names = JSON.parse(byId(`ipadapter_${tab}_names`)?.querySelector("[data-names]")?.dataset.names ?? "{}");
            return names[kind]?.some(known => known.toLowerCase() === String(name).toLowerCase()); // one file, for some systems
        });
    }

    // gradio calls these with a handler's inputs, the name first. Without a name the server does nothing.
    const asking = question => kind => (name, ...others) =>
        [isSaved(kind, name) && !confirm(question(kind, name)) ? null : name ?? "", ...others];
    const keeping = asking((kind, name) => `Replace the ${kind} "${name}"?`), deleting = asking((kind, name) => `Delete the ${kind} "${name}"?`);
    window.ipadapterKeepingPreset = keeping("preset");
    window.ipadapterKeepingEmbeds = keeping("embeds");
    window.ipadapterDeletingPreset = deleting("preset");
    window.ipadapterDeletingEmbeds = deleting("embeds");

    window.ipadapterListed = () => {
        TABS.forEach(tab => byId(`ipadapter_${tab}_list`)?.click());
        return [];
    };

    let checkpoint = null;

    function watchCheckpoint() {
        const setting = byId("setting_sd_model_checkpoint"), box = setting ?? gradioApp().querySelector(".model_selection"); // Forge's has no id
        const value = box?.querySelector("input")?.value;
        if (!value || value === checkpoint) return;
        const ask = () => TABS.forEach(tab => byId(`ipadapter_${tab}_checkpoint`)?.click());
        if (checkpoint !== null) ask();
        // Forge notes what was chosen in an event of its own, which a slow server may come to after ours.
        if (checkpoint !== null && !setting) setTimeout(ask, 3000);
        checkpoint = value;
    }

    // gradio loses a click while it still sets the page up, so it is repeated until the lists are there.
    function askForLists(tries) {
        const missing = TABS.filter(tab => !byId(`ipadapter_${tab}_names`)?.querySelector("[data-names]"));
        missing.forEach(tab => byId(`ipadapter_${tab}_list`)?.click());
        if (missing.length && tries) setTimeout(() => askForLists(tries - 1), 700);
    }

    onUiLoaded(() => {
        setTimeout(() => askForLists(30), 300);
        showStates();
        nameInputs();
        TABS.forEach(reachHeaders);
    });
    onAfterUiUpdate(watchCheckpoint);
})();
