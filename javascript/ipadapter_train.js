// The tab of trainings and evaluations: the lists of a part are asked for when it is first seen, and its state while one runs.
(() => {
    const EVERY = 2000; // ms
    const AGAIN = 5; // looks until lists that never came are asked for again
    const PARTS = ["ipadapter_train", "ipadapter_evaluate"];
    const byId = id => gradioApp().getElementById(id);
    const listed = {}, looks = {};
    let known = "";

    function look(part) {
        const state = byId(`${part}_state`)?.querySelector(".ipadapter-train");
        const runs = state?.dataset.alive === "1";
        const made = (!runs && state?.dataset.adapter) || "";
        if (made && made !== known) window.ipadapterListed?.(); // it is in the list of models now
        known = made || known;
        if (!byId(`${part}_name`)?.getClientRects().length) return;
        if (!listed[part]) {
            // A click may come before gradio listens; but a second answer would undo what was chosen since the first.
            listed[part] = Boolean(byId(`${part}_text`)?.querySelector("textarea")?.value || byId(`${part}_said`)?.textContent.trim());
            looks[part] = (looks[part] ?? 0) + 1;
            if (!listed[part] && looks[part] % AGAIN === 1) byId(`${part}_list`)?.click();
        } else if (runs) {
            byId(`${part}_poll`)?.click();
        }
    }

    onUiLoaded(() => setInterval(() => PARTS.forEach(look), EVERY));
})();
