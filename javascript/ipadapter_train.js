// The Train tab: its lists are asked for when it is first seen, and its state while a training runs.
(() => {
    const EVERY = 2000; // ms
    const byId = id => gradioApp().getElementById(id);
    let listed = false, known = "";

    function look() {
        const tab = byId("tab_ipadapter_train");
        const state = byId("ipadapter_train_state")?.querySelector(".ipadapter-train");
        const runs = state?.dataset.alive === "1";
        const made = (!runs && state?.dataset.adapter) || "";
        if (made && made !== known) window.ipadapterListed?.(); // it is in the list of models now
        known = made;
        if (!tab?.getClientRects().length) return;
        if (!listed) {
            byId("ipadapter_train_list")?.click();
            listed = Boolean(byId("ipadapter_train_text")?.querySelector("textarea")?.value || byId("ipadapter_train_said")?.textContent.trim());
        } else if (runs) {
            byId("ipadapter_train_poll")?.click();
        }
    }

    onUiLoaded(() => setInterval(look, EVERY));
})();
