// The panel in the page: how many units act, and pictures on their way into a unit. The other files, ipadapter_*.js,
// load after this one and use what it leaves in window.ipadapter.

(function() {
    const IMAGE = /^image\//;
    // Systems that know no MIME type for a picture give none, or this one: then the name counts, and the server judges.
    const UNKNOWN = ["", "application/octet-stream"];
    const NAMED = /\.(png|apng|jpe?g|jfif|webp|gif|bmp|dib|tiff?|tga|jp2|jpx|avif|heic|heif|ppm|ico)$/i;
    const PATIENCE = 300000; // ms that a slow server is waited for
    const TABS = ["txt2img", "img2img"];
    let pending = null; // uploaded files on their way into a unit
    let turn = Promise.resolve(); // changes of references, one after the other
    const changing = new Map(); // by unit: how many changes it waits for
    const whenDrawn = new Map(); // by unit

    // In the language of the page, which the WebUI puts on texts by itself, but not on titles inside of what is added later.
    const say = (text, number = "") => (window.localization?.[text] ?? text).replace("{}", number);

    const byId = id => gradioApp().getElementById(id);

    const accordion = tab => byId(`ipadapter_${tab}`);

    const visible = element => Boolean(element && element.offsetParent);

    function unitPrefixes(tab) {
        const areas = accordion(tab)?.querySelectorAll(".ipadapter-images") ?? [];
        return Array.from(areas, area => area.id.replace(/_image_area$/, ""));
    }

    function isOn(tab) {
        return Boolean(byId(`ipadapter_${tab}-visible-checkbox`)?.checked);
    }

    function isEnabled(prefix) {
        return Boolean(byId(`${prefix}_enabled`)?.querySelector("input")?.checked);
    }

    const tiles = (prefix, more = "") => byId(`${prefix}_thumbnails`)?.querySelectorAll(`.ipadapter-thumb${more}`) ?? [];

    const referenceCount = prefix => tiles(prefix).length;

    const pictureCount = prefix => tiles(prefix, ":not(.ipadapter-named)").length;

    const modelOf = prefix => byId(`${prefix}_model`)?.querySelector("input")?.value ?? "";

    // A unit in which nothing is chosen does not count, on the server either.
    const isChosen = prefix => referenceCount(prefix) > 0 || !["", "None"].includes(modelOf(prefix));

    function activePrefix(tab) {
        const prefixes = unitPrefixes(tab);
        return prefixes.find(prefix => visible(byId(`${prefix}_image_area`))) ?? prefixes[0];
    }

    // title and tabs

    function titleOf(tab, acting, waiting) {
        if (isOn(tab)) return acting ? `IP-Adapter [${acting}]` : "IP-Adapter";
        return waiting ? `IP-Adapter (off, ${waiting} reference${waiting > 1 ? "s" : ""})` : "IP-Adapter";
    }

    function setTitle(tab, title) {
        const span = accordion(tab)?.querySelector(".label-wrap > span");
        const text = Array.from(span?.childNodes ?? []).find(node => node.nodeType === Node.TEXT_NODE && node.data.trim());
        if (text && text.data.trim() !== title) text.data = title;
    }

    function markTabs(tab, acting) {
        const buttons = byId(`ipadapter_${tab}_units`)?.querySelector(".tab-nav")?.querySelectorAll("button") ?? [];
        buttons.forEach((button, i) => button.classList.toggle("ipadapter-acts", acting[i] ?? false));
    }

    function updateTitles() {
        for (const tab of TABS) {
            const prefixes = unitPrefixes(tab), acting = prefixes.map(prefix => isOn(tab) && isEnabled(prefix) && isChosen(prefix));
            const waiting = prefixes.map(referenceCount).reduce((sum, count) => sum + count, 0);
            setTitle(tab, titleOf(tab, acting.filter(Boolean).length, waiting));
            markTabs(tab, acting);
        }
    }

    // pictures

    const isPicture = file => IMAGE.test(file.type) || (UNKNOWN.includes(file.type) && NAMED.test(file.name));

    // Until the server has drawn a unit's tiles again, a click on one would mean another reference.
    const isBusy = prefix => changing.has(prefix);

    function busy(prefix, more) {
        const count = (changing.get(prefix) ?? 0) + more;
        if (count) changing.set(prefix, count);
        else changing.delete(prefix);
        byId(`${prefix}_image_area`)?.classList.toggle("ipadapter-busy", count > 0);
    }

    // Each change reads the references so far.
    function inTurn(prefix, change) {
        busy(prefix, 1);
        turn = turn.then(change).catch(console.error).finally(() => busy(prefix, -1));
    }

    // Clicks a hidden button that changes references, of a unit or of a tab's panel, and waits for the tiles.
    function press(whose, button) {
        return new Promise(resolve => {
            whenDrawn.set(whose, resolve);
            setTimeout(resolve, PATIENCE);
            byId(`${whose}_${button}`)?.click();
        });
    }

    window.ipadapterDrawn = whose => {
        whenDrawn.get(whose)?.();
        return [];
    };

    // gradio 3.41 forgets an upload whenever the page updates meanwhile, so files are uploaded here and handed
    // over as what its own upload would have left.
    function putFiles(prefix, files) {
        const pictures = Array.from(files).filter(isPicture);
        showNote(prefix, pictures.length < files.length ? "Only images can be references." : "");
        if (!pictures.length) return false;
        inTurn(prefix, async() => {
            try {
                pending = await uploaded(pictures);
                await press(prefix, "add");
            } catch (error) {
                showNote(prefix, `The upload failed: ${error.message}`);
            }
        });
        return true;
    }

    async function uploaded(pictures) {
        const form = new FormData();
        pictures.forEach(file => form.append("files", file, file.name || "picture.png"));
        const response = await fetch("./upload", {method: "POST", body: form});
        if (!response.ok) throw new Error(`the server answered ${response.status}`);
        const paths = await response.json();
        // What gradio 3 and gradio 4 want of an uploaded file.
        return paths.map((path, i) => {
            const {name, size, type} = pictures[i];
            return {
                name: path, path, orig_name: name, size, mime_type: type || null, is_file: true, data: null, meta: {_type: "gradio.FileData"},
            };
        });
    }

    // A gallery's addresses are paths, in which a "%" may stand for itself.
    function lastPart(url) {
        if (url.startsWith("data:")) return "";
        const part = new URL(url, location.href).pathname.split("/").pop();
        try {
            return decodeURIComponent(part);
        } catch {
            return part;
        }
    }

    async function fileFrom(url) {
        const response = await fetch(url);
        if (!response.ok) throw new Error(`${url}: ${response.status}`);
        const blob = await response.blob();
        return new File([blob], lastPart(url).slice(-80) || "picture.png", {type: blob.type || "image/png"});
    }

    function open(tab) {
        const checkbox = byId(`ipadapter_${tab}-visible-checkbox`);
        if (checkbox && !checkbox.checked) checkbox.click();
        const label = accordion(tab)?.querySelector(".label-wrap");
        if (label && !label.classList.contains("open")) label.click();
    }

    function showUnit(tab, prefix) {
        const index = unitPrefixes(tab).indexOf(prefix);
        byId(`ipadapter_${tab}_units`)?.querySelector(".tab-nav")?.querySelectorAll("button")[index]?.click();
    }

    function selectedPicture(tab) {
        if (tab === "pnginfo") return byId("pnginfo_image")?.querySelector("img")?.src;
        const gallery = byId(`${tab}_gallery`);
        const picture = gallery?.querySelector(".preview img") ?? gallery?.querySelector(".thumbnail-item img");
        return picture?.src;
    }

    window.ipadapterSend = async function(from) {
        const url = selectedPicture(from);
        if (!url) return;
        const tab = from === "img2img" ? "img2img" : "txt2img";
        const prefix = unitPrefixes(tab).find(unit => !referenceCount(unit)) ?? activePrefix(tab);
        if (from === "extras" || from === "pnginfo") switch_to_txt2img();
        try {
            const file = await fileFrom(url);
            open(tab);
            showUnit(tab, prefix);
            putFiles(prefix, [file]);
            accordion(tab).scrollIntoView({behavior: "smooth", block: "nearest"});
        } catch (error) {
            showNote(prefix, `The picture could not be fetched: ${error.message}`);
        }
    };

    // gradio calls these with a handler's inputs and then its outputs; what we know goes in an input's place.
    window.ipadapterAdding = (inbox, ...others) => [pending, ...others];

    // Beside gradio's own elements: what it draws itself must not be touched.
    function showNote(prefix, text) {
        const area = byId(`${prefix}_image_area`);
        area?.querySelector(".ipadapter-page-note")?.remove();
        if (!area || !text) return;
        const line = document.createElement("p");
        line.className = "ipadapter-error ipadapter-page-note";
        line.setAttribute("role", "alert");
        line.textContent = text;
        area.append(line);
    }

    // What the page said is over when the unit is emptied, or generates.
    document.addEventListener("click", event => {
        const button = event.target.closest?.('[id^="ipadapter_"][id$="_clear"], [id^="ipadapter_"][id$="_reset"], #txt2img_generate, #img2img_generate');
        if (button) gradioApp().querySelectorAll(".ipadapter-page-note").forEach(line => line.remove());
    });

    const prefixOf = element => element.closest(".ipadapter-images").id.replace(/_image_area$/, "");

    document.addEventListener("change", () => setTimeout(updateTitles, 50));
    onUiLoaded(updateTitles);
    onAfterUiUpdate(updateTitles);

    window.ipadapter = {
        TABS, accordion, activePrefix, byId, fileFrom, inTurn, isBusy, isOn, pictureCount, prefixOf, press, putFiles, say, selectedPicture, showNote,
        tiles, unitPrefixes, visible,
    };
})();
