// Pictures by paste, drop and choice of files.

(function() {
    const {TABS, accordion, activePrefix, fileFrom, isOn, putFiles, showNote, visible} = window.ipadapter;

    function pointedTab() {
        return TABS.find(tab => {
            const panel = accordion(tab);
            return visible(panel) && isOn(tab) && (panel.matches(":hover") || panel.contains(document.activeElement));
        });
    }

    const isText = event => Boolean(event.target.closest?.("textarea, input, [contenteditable]")) &&
        Array.from(event.clipboardData.types).includes("text/plain");

    // In the capture phase: otherwise the WebUI's own handler would put the picture into img2img as well.
    document.addEventListener("paste", event => {
        const tab = pointedTab();
        const files = event.clipboardData?.files ?? [];
        if (!tab || !files.length) return;
        if (isText(event)) { // tables and web pages bring a picture of themselves along
            event.stopPropagation();
            return;
        }
        if (!putFiles(activePrefix(tab), files)) return;
        event.preventDefault();
        event.stopPropagation();
    }, true);

    document.addEventListener("change", event => {
        const input = event.target;
        const area = input.matches?.('[id$="_inbox"] input[type="file"]') && dropArea(event);
        if (!area) return;
        event.stopPropagation();
        putFiles(area.id.replace(/_image_area$/, ""), input.files);
        input.value = "";
    }, true);

    function dropArea(event) {
        return event.target.closest?.(".ipadapter-images");
    }

    let leaving = 0;

    // While a drag is over the window the browser says so several times a second; not all say that it has left.
    function highlight(area) {
        clearTimeout(leaving);
        gradioApp().querySelectorAll(".ipadapter-images.ipadapter-over").forEach(other => {
            if (other !== area) other.classList.remove("ipadapter-over");
        });
        area?.classList.add("ipadapter-over");
        if (area) leaving = setTimeout(() => highlight(null), 1000);
    }

    document.addEventListener("dragover", event => {
        if (ipadapterCarrying(event)) return;
        const area = dropArea(event);
        highlight(area);
        if (!area) return;
        event.preventDefault();
        event.stopPropagation();
        event.dataTransfer.dropEffect = "copy";
    }, true);

    document.addEventListener("dragleave", event => {
        if (!event.relatedTarget) highlight(null);
    }, true);

    document.addEventListener("dragend", () => highlight(null), true);

    document.addEventListener("drop", async event => {
        if (ipadapterCarrying(event)) return;
        const area = dropArea(event);
        highlight(null);
        if (!area) return;
        event.preventDefault();
        event.stopPropagation();
        const prefix = area.id.replace(/_image_area$/, "");
        const url = event.dataTransfer.getData("text/uri-list").split("\n")[0].trim();
        if (event.dataTransfer.files.length) {
            putFiles(prefix, event.dataTransfer.files);
            return;
        }
        try {
            if (!url || !putFiles(prefix, [await fileFrom(url)])) showNote(prefix, "Only images can be references.");
        } catch (error) {
            showNote(prefix, `The picture could not be fetched: ${error.message}. Save it and drop the file.`);
        }
    }, true);
})();
