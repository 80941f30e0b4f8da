// The panel's behaviour in the page: pictures by paste, drop and "send to", the count in the title.

(function() {
    const IMAGE = /^image\//;
    const TABS = ["txt2img", "img2img"];
    let removal = -1; // place of the picture whose remove button was clicked last
    let pending = null; // uploaded files on their way into a unit
    let turn = Promise.resolve(); // uploads, one after the other
    let whenAdded = () => {};

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

    function pictureCount(prefix) {
        return byId(`${prefix}_thumbnails`)?.querySelectorAll(".ipadapter-thumb").length ?? 0;
    }

    function activePrefix(tab) {
        const prefixes = unitPrefixes(tab);
        return prefixes.find(prefix => visible(byId(`${prefix}_image_area`))) ?? prefixes[0];
    }

    // title and tabs

    function setTitle(tab, count) {
        const span = accordion(tab)?.querySelector(".label-wrap > span");
        const text = Array.from(span?.childNodes ?? []).find(node => node.nodeType === Node.TEXT_NODE && node.data.trim());
        const title = count ? `IP-Adapter [${count}]` : "IP-Adapter";
        if (text && text.data.trim() !== title) text.data = title;
    }

    function markTabs(tab, acting) {
        const buttons = byId(`ipadapter_${tab}_units`)?.querySelector(".tab-nav")?.querySelectorAll("button") ?? [];
        buttons.forEach((button, i) => button.classList.toggle("ipadapter-acts", acting[i] ?? false));
    }

    function updateTitles() {
        for (const tab of TABS) {
            const acting = unitPrefixes(tab).map(prefix => isOn(tab) && isEnabled(prefix));
            setTitle(tab, acting.filter(Boolean).length);
            markTabs(tab, acting);
        }
    }

    // pictures

    // gradio 3.41 forgets an upload whenever the page updates meanwhile, so files are uploaded here and handed
    // over as what its own upload would have left. One after the other: each hand-over reads the list so far.
    function putFiles(prefix, files) {
        const pictures = Array.from(files).filter(file => IMAGE.test(file.type));
        showNote(prefix, pictures.length < files.length ? "Only pictures can be references." : "");
        if (!pictures.length) return false;
        turn = turn.then(() => handOver(prefix, pictures)).catch(error => {
            showNote(prefix, `The upload failed: ${error.message}`);
        });
        return true;
    }

    async function handOver(prefix, pictures) {
        busy(prefix, true);
        try {
            pending = await uploaded(pictures);
            const added = new Promise(resolve => {
                whenAdded = resolve;
                setTimeout(resolve, 30000);
            });
            byId(`${prefix}_add`).click();
            await added;
        } finally {
            busy(prefix, false);
        }
    }

    async function uploaded(pictures) {
        const form = new FormData();
        pictures.forEach(file => form.append("files", file, file.name || "picture.png"));
        const response = await fetch("./upload", {method: "POST", body: form});
        if (!response.ok) throw new Error(`the server answered ${response.status}`);
        const paths = await response.json();
        return paths.map((path, i) => (
            {name: path, orig_name: pictures[i].name, size: pictures[i].size, is_file: true, data: null}
        ));
    }

    const busy = (prefix, on) => byId(`${prefix}_inbox`)?.classList.toggle("ipadapter-busy", on);

    async function fileFrom(url) {
        const response = await fetch(url);
        if (!response.ok) throw new Error(`${url}: ${response.status}`);
        const blob = await response.blob();
        const name = decodeURIComponent(new URL(url, location.href).pathname.split("/").pop() || "picture.png");
        return new File([blob], name.slice(-80), {type: blob.type || "image/png"});
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
        const gallery = byId(`${tab}_gallery`);
        const picture = gallery?.querySelector(".preview img") ?? gallery?.querySelector(".thumbnail-item img");
        return picture?.src;
    }

    window.ipadapterSend = async function(from) {
        const url = selectedPicture(from);
        if (!url) return;
        const tab = from === "img2img" ? "img2img" : "txt2img";
        const prefix = unitPrefixes(tab).find(unit => !pictureCount(unit)) ?? activePrefix(tab);
        if (from === "extras") switch_to_txt2img();
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
    window.ipadapterAdding = (inbox, files, weights, saved) => [pending, files, weights, saved];
    window.ipadapterAdded = () => whenAdded();
    window.ipadapterRemoval = (files, weights, saved) => [files, weights, saved, removal];

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

    // the curve over the steps: an SVG that the server draws, with its points in data-points; what is dragged here
    // is drawn here meanwhile and then written into the text beside it, and the server draws it again.

    const SVG = "http://www.w3.org/2000/svg";
    const clamp = (value, low, high) => Math.min(Math.max(value, low), high);
    let dragged = null; // {svg, index}

    function curvePoints(svg) {
        return svg.dataset.points.split(", ").map(pair => pair.split(":").map(Number));
    }

    function onCurve(svg) {
        const {low, top, width, height} = svg.dataset;
        const scale = height / (top - low);
        return {x: x => x * width, y: y => (top - y) * scale, fraction: x => x / width, factor: y => top - y / scale};
    }

    function drawCurve(svg) {
        const at = onCurve(svg), points = curvePoints(svg).map(([x, y]) => [at.x(x), at.y(y)]);
        const line = [[0, points[0][1]], ...points, [at.x(1), points[points.length - 1][1]]];
        const stepped = line.flatMap(([x, y], i) => (i && svg.dataset.steps === "1" ? [[x, line[i - 1][1]], [x, y]] : [[x, y]]));
        svg.querySelectorAll("polyline, circle").forEach(old => old.remove());
        const add = (kind, attributes) => {
            const element = document.createElementNS(SVG, kind);
            for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
            svg.append(element);
        };
        add("polyline", {points: stepped.map(pair => pair.join(",")).join(" ")});
        points.forEach(([cx, cy], index) => add("circle", {cx, cy, r: 5, "data-index": index}));
    }

    function setCurve(svg, points) {
        svg.dataset.points = points.map(([x, y]) => `${x}:${y}`).join(", ");
        drawCurve(svg);
    }

    function writeCurve(svg) {
        const prefix = svg.closest('[id$="_charts"]').id.replace(/_charts$/, "");
        const text = byId(`${prefix}_curve`)?.querySelector("textarea, input");
        if (!text) return;
        text.value = svg.dataset.points;
        updateInput(text);
    }

    function pointerOn(svg, event) {
        const at = onCurve(svg), where = new DOMPoint(event.clientX, event.clientY).matrixTransform(svg.getScreenCTM().inverse());
        const rounded = value => Math.round(value * 100) / 100;
        return [rounded(clamp(at.fraction(where.x), 0, 1)), rounded(clamp(at.factor(where.y), +svg.dataset.low, +svg.dataset.top))];
    }

    document.addEventListener("pointerdown", event => {
        const circle = event.target.closest?.(".ipadapter-curve circle");
        if (!circle) return;
        dragged = {svg: circle.closest("svg"), index: Number(circle.dataset.index)};
        event.preventDefault();
    });

    document.addEventListener("pointermove", event => {
        if (!dragged) return;
        const points = curvePoints(dragged.svg), i = dragged.index, [x, y] = pointerOn(dragged.svg, event);
        const left = i ? points[i - 1][0] + 0.01 : 0, right = i < points.length - 1 ? points[i + 1][0] - 0.01 : 1;
        points[i] = [Math.round(clamp(x, left, right) * 100) / 100, y];
        setCurve(dragged.svg, points);
    });

    document.addEventListener("pointerup", () => {
        if (dragged) writeCurve(dragged.svg);
        dragged = null;
    });

    document.addEventListener("dblclick", event => {
        const svg = event.target.closest?.(".ipadapter-curve");
        if (!svg) return;
        const circle = event.target.closest("circle"), points = curvePoints(svg), added = pointerOn(svg, event);
        if (circle && points.length === 1) return;
        if (circle) points.splice(Number(circle.dataset.index), 1);
        else if (points.every(([x]) => Math.abs(x - added[0]) > 0.005)) points.push(added);
        setCurve(svg, points.sort((a, b) => a[0] - b[0]));
        writeCurve(svg);
    });

    // the part of a reference that counts: a rectangle dragged over the whole picture, written into the crop box's
    // text, where boxes of several pictures stand between semicolons

    let cropping = null; // {prefix, index, count}

    window.ipadapterCropping = files => [files, String(cropping.index)];

    window.ipadapterCrop = source => {
        const chosen = cropping;
        if (chosen?.use) {
            cropping = null;
            chosen.use(source);
            return [];
        }
        if (!chosen || !source) return [];
        const dialog = document.createElement("dialog");
        dialog.className = "ipadapter-crop";
        dialog.innerHTML = '<div class="ipadapter-crop-area"><img draggable="false"><i></i></div><p>Drag over the part that counts.</p>' +
            '<button type="button" value="use">Use it</button> <button type="button" value="whole">The whole</button> ' +
            '<button type="button" value="">Cancel</button>';
        const area = dialog.firstElementChild, frame = area.querySelector("i");
        area.querySelector("img").src = source;
        let box = chosen.box, from = null;
        const draw = () => {
            const [left, top, right, bottom] = (box ?? [0, 0, 1, 1]).map(share => share * 100);
            Object.assign(frame.style, {left: `${left}%`, top: `${top}%`, width: `${right - left}%`, height: `${bottom - top}%`});
        };
        const share = event => {
            const at = area.getBoundingClientRect();
            const rounded = value => Math.round(clamp(value, 0, 1) * 1000) / 1000;
            return [rounded((event.clientX - at.left) / at.width), rounded((event.clientY - at.top) / at.height)];
        };
        area.addEventListener("pointerdown", event => {
            from = share(event);
            area.setPointerCapture(event.pointerId);
            event.preventDefault();
        });
        area.addEventListener("pointermove", event => {
            if (!from) return;
            const to = share(event), [left, right] = [from[0], to[0]].sort((a, b) => a - b), [top, bottom] = [from[1], to[1]].sort((a, b) => a - b);
            if (right - left < 0.02 || bottom - top < 0.02) return;
            box = [left, top, right, bottom];
            draw();
        });
        area.addEventListener("pointerup", () => from = null);
        dialog.addEventListener("click", event => {
            const choice = event.target.closest("button")?.value;
            if (choice === undefined) return;
            if (choice) writeBox(chosen, choice === "use" ? box : null);
            dialog.close();
        });
        dialog.addEventListener("close", () => dialog.remove());
        draw();
        gradioApp().append(dialog);
        dialog.showModal();
        return [];
    };

    function writeBox({prefix, index, count}, box) {
        const text = byId(`${prefix}_box`)?.querySelector("textarea, input");
        if (!text) return;
        const held = text.value.split(";").map(part => part.trim());
        const boxes = held.length === count ? held : Array(count).fill(held.length === 1 ? held[0] : "");
        boxes[index] = box ? box.join(", ") : "";
        text.value = boxes.some(Boolean) ? boxes.join("; ") : "";
        updateInput(text);
    }

    // masks: ipadapter_mask.js edits them; the result goes into a hidden text

    function shownPicture(selector) {
        return gradioApp().querySelector(selector)?.src;
    }

    // What can be shown below the mask of a region, the most telling first.
    function backdropsOfRegion(tab) {
        const found = [
            ["Inpaint image", tab === "img2img" && shownPicture("#img2maskimg img")], ["img2img image", tab === "img2img" && shownPicture("#img2img_image img")],
            ["Last result", selectedPicture(tab)],
        ];
        return found.filter(([, url]) => url).map(([name, url]) => ({name, url}));
    }

    const outputSize = tab => ["width", "height"].map(side => Number(byId(`${tab}_${side}`)?.querySelector("input")?.value) || 512);

    function firstReference(prefix) {
        if (!pictureCount(prefix)) return Promise.resolve("");
        return new Promise(resolve => {
            cropping = {index: 0, use: resolve};
            byId(`${prefix}_open_crop`).click();
        });
    }

    function sizeOf(url) {
        return new Promise(resolve => {
            const image = new Image();
            image.onload = () => resolve([image.naturalWidth, image.naturalHeight]);
            image.onerror = () => resolve([512, 512]);
            image.src = url;
        });
    }

    const maskText = (prefix, field) => byId(`${prefix}_${field}`)?.querySelector("textarea, input");

    function writeMask(prefix, field, url) {
        const text = maskText(prefix, field);
        text.value = url;
        updateInput(text);
    }

    async function editMask(prefix, field) {
        const tab = TABS.find(name => prefix.startsWith(`ipadapter_${name}_`)), mask = maskText(prefix, field).value;
        let options = {title: "Region: where the image acts", size: outputSize(tab), backdrops: backdropsOfRegion(tab), mask};
        if (field === "focus") {
            const url = await firstReference(prefix);
            const backdrops = url ? [{name: "Reference 1", url}] : [];
            options = {title: "Reference mask: which part of the references is used", size: url ? await sizeOf(url) : [512, 512], backdrops, mask};
        }
        const edited = await ipadapterMask.open(options);
        if (edited !== null) writeMask(prefix, field, edited);
    }

    document.addEventListener("click", event => {
        const button = event.target.closest?.(".ipadapter-paint, .ipadapter-unpaint");
        if (!button) return;
        const field = button.dataset.field, prefix = button.closest('[id$="_pad"]').id.replace(new RegExp(`_${field}_pad$`), "");
        if (button.classList.contains("ipadapter-paint")) editMask(prefix, field);
        else writeMask(prefix, field, "");
    });

    // events

    document.addEventListener("click", event => {
        const picture = event.target.closest?.(".ipadapter-thumb img");
        if (!picture) return;
        const prefix = picture.closest(".ipadapter-images").id.replace(/_image_area$/, "");
        const box = picture.dataset.box ? picture.dataset.box.split(",").map(Number) : null;
        cropping = {prefix, index: Number(picture.dataset.index), count: pictureCount(prefix), box};
        byId(`${prefix}_open_crop`)?.click();
    });

    document.addEventListener("click", event => {
        const button = event.target.closest?.(".ipadapter-remove");
        if (!button) return;
        removal = Number(button.dataset.index);
        const prefix = button.closest(".ipadapter-images").id.replace(/_image_area$/, "");
        byId(`${prefix}_remove`)?.click();
    });

    function pointedTab() {
        return TABS.find(tab => {
            const panel = accordion(tab);
            return visible(panel) && isOn(tab) && (panel.matches(":hover") || panel.contains(document.activeElement));
        });
    }

    // In the capture phase: otherwise the WebUI's own handler would put the picture into img2img as well.
    document.addEventListener("paste", event => {
        const tab = pointedTab();
        const files = event.clipboardData?.files ?? [];
        if (!tab || !files.length || !putFiles(activePrefix(tab), files)) return;
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

    function highlight(area) {
        gradioApp().querySelectorAll(".ipadapter-images.ipadapter-over").forEach(other => {
            if (other !== area) other.classList.remove("ipadapter-over");
        });
        area?.classList.add("ipadapter-over");
    }

    document.addEventListener("dragover", event => {
        const area = dropArea(event);
        highlight(area);
        if (!area) return;
        event.preventDefault();
        event.stopPropagation();
        event.dataTransfer.dropEffect = "copy";
    }, true);

    document.addEventListener("dragend", () => highlight(null), true);

    document.addEventListener("drop", async event => {
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
            if (!url || !putFiles(prefix, [await fileFrom(url)])) showNote(prefix, "Only pictures can be references.");
        } catch (error) {
            showNote(prefix, `The picture could not be fetched: ${error.message}. Save it and drop the file.`);
        }
    }, true);

    document.addEventListener("change", () => setTimeout(updateTitles, 50));
    onUiLoaded(updateTitles);
    onAfterUiUpdate(updateTitles);
})();
