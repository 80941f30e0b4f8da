// The tab of trainings and evaluations: the lists of a part are asked for when it is first seen, and its state while one runs.
(() => {
    const EVERY = 2000; // ms
    const PARTS = ["ipadapter_train", "ipadapter_evaluate"];
    const byId = id => gradioApp().getElementById(id);
    const listed = {};
    let known = "";

    function look(part) {
        const state = byId(`${part}_state`)?.querySelector(".ipadapter-train");
        const runs = state?.dataset.alive === "1";
        const made = (!runs && state?.dataset.adapter) || "";
        if (made && made !== known) window.ipadapterListed?.(); // it is in the list of models now
        known = made || known;
        if (!byId(`${part}_name`)?.getClientRects().length) return;
        if (!listed[part]) {
            byId(`${part}_list`)?.click();
            listed[part] = Boolean(byId(`${part}_text`)?.querySelector("textarea")?.value || byId(`${part}_said`)?.textContent.trim());
        } else if (runs) {
            byId(`${part}_poll`)?.click();
        }
    }

    onUiLoaded(() => setInterval(() => PARTS.forEach(look), EVERY));
})();
