// The menu of a unit: copying it to another one, changing places, emptying it.

(function() {
    const {TABS, byId, inTurn, isBusy, press, say, unitPrefixes} = window.ipadapter;
    let asked = ""; // what the server is told: "copy FROM TO" or "swap FROM TO"

    // gradio calls it with a handler's inputs; what we know goes in the first one's place.
    window.ipadapterExchanging = (text, ...values) => [asked, ...values];

    function choices(prefix) {
        const tab = TABS.find(name => prefix.startsWith(`ipadapter_${name}_`)), prefixes = unitPrefixes(tab), from = prefixes.indexOf(prefix);
        const exchange = (what, to) => () => {
            if (isBusy(prefix)) return;
            inTurn(prefix, () => {
                asked = `${what} ${from} ${to}`;
                return press(`ipadapter_${tab}`, "exchange");
            });
        };
        const others = prefixes.map((_, to) => to).filter(to => to !== from);
        return [
            ...others.map(to => [say("Copy to unit {}", to + 1), exchange("copy", to)]),
            ...others.map(to => [say("Swap with unit {}", to + 1), exchange("swap", to)]),
            ["Reset this unit", () => byId(`${prefix}_reset`)?.click()],
        ];
    }

    window.ipadapterMenu = prefix => {
        const dialog = document.createElement("dialog"), list = document.createElement("div");
        dialog.className = "ipadapter-menu";
        dialog.setAttribute("aria-label", "This unit");
        list.setAttribute("role", "menu");
        for (const [label, act] of choices(prefix)) {
            const item = document.createElement("button");
            Object.assign(item, {type: "button", textContent: label});
            item.setAttribute("role", "menuitem");
            item.addEventListener("click", () => {
                dialog.close();
                act();
            });
            list.append(item);
        }
        dialog.append(list);
        dialog.addEventListener("click", event => event.target === dialog && dialog.close());
        const away = () => dialog.close(); // it would stay where it is while its button moves
        window.addEventListener("scroll", away, {once: true});
        dialog.addEventListener("close", () => {
            window.removeEventListener("scroll", away);
            dialog.remove();
        });
        dialog.addEventListener("keydown", event => {
            const step = {ArrowDown: 1, ArrowUp: -1}[event.key], items = Array.from(list.children);
            if (!step) return;
            event.preventDefault();
            items[(items.indexOf(document.activeElement) + step + items.length) % items.length].focus();
        });
        gradioApp().append(dialog);
        dialog.showModal();
        const at = byId(`${prefix}_menu`).getBoundingClientRect();
        dialog.style.left = `${Math.max(0, at.right - dialog.offsetWidth)}px`;
        dialog.style.top = `${Math.max(0, Math.min(at.bottom + 2, window.innerHeight - dialog.offsetHeight))}px`;
        return [];
    };
})();
