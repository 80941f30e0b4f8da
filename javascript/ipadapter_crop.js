// Pictures to draw on: the crop of a reference, a rectangle dragged over the whole picture, written into the text of the crops, where
// those of several pictures stand between semicolons; and masks, which ipadapter_mask.js edits: of a reference, in the JSON list of
// them, and of the region.

(function() {
    const {TABS, byId, isBusy, pictureCount, prefixOf, selectedPicture} = window.ipadapter;
    const clamp = (value, low, high) => Math.min(Math.max(value, low), high);

    let cropping = null; // {prefix, index, count, box} of the picture that the server was asked for, until it comes
    let impatience = 0;
    const PATIENCE = 30000; // ms
    const SHOWN = 448; // pixels at least of a picture's longer side

    window.ipadapterCropping = files => [files, String(cropping?.index ?? -1)];

    window.ipadapterCrop = source => {
        const chosen = cropping;
        forget();
        if (chosen && source) openDialog(chosen, source);
        return [];
    };

    function forget() {
        clearTimeout(impatience);
        cropping = null;
    }

    function openDialog(chosen, source) {
        const dialog = document.createElement("dialog");
        dialog.className = "ipadapter-crop";
        dialog.setAttribute("aria-labelledby", "ipadapter_crop_title");
        dialog.innerHTML = '<h2 id="ipadapter_crop_title">Crop the reference image</h2><div class="ipadapter-crop-area"><img draggable="false" alt="The reference image"><i></i></div><p class="ipadapter-sides"></p><p>Drag to select the part to use. A square of it is still cut as Fit says.</p>' +
            '<button type="button" value="use">Apply</button> <button type="button" value="whole">Whole image</button> ' +
            '<button type="button" value="mask">Paint a mask\u2026</button> <button type="button" value="unmask">Remove the mask</button> ' +
            '<button type="button" value="">Cancel</button>';
        const mask = masksOf(chosen)[chosen.index];
        dialog.querySelector('[value="unmask"]').hidden = !mask;
        const area = dialog.querySelector(".ipadapter-crop-area"), frame = area.querySelector("i");
        const image = area.querySelector("img");
        image.addEventListener("load", () => { // a small picture is shown larger, to be dragged on
            const {naturalWidth: width, naturalHeight: height} = image;
            const zoom = Math.min(0.88 * innerWidth / width, 0.75 * innerHeight / height, SHOWN / Math.max(width, height));
            if (zoom > 1) image.style.width = `${Math.floor(zoom * width)}px`;
        });
        image.src = source;
        let box = chosen.box, from = null;
        // For the keyboard: the sides of the part in per cent.
        const sides = ["left", "top", "right", "bottom"].map(name => {
            const label = document.createElement("label"), input = document.createElement("input");
            Object.assign(input, {type: "number", min: 0, max: 100, step: 1});
            input.addEventListener("change", () => {
                const typed = sides.map(side => clamp(Number(side.value) / 100, 0, 1));
                if (typed[2] - typed[0] >= 0.02 && typed[3] - typed[1] >= 0.02) box = typed;
                draw();
            });
            label.append(`${name} `, input, " %");
            dialog.querySelector(".ipadapter-sides").append(label);
            return input;
        });
        const draw = () => {
            (box ?? [0, 0, 1, 1]).forEach((part, i) => sides[i].value = Math.round(part * 1000) / 10);
            const [left, top, right, bottom] = (box ?? [0, 0, 1, 1]).map(part => part * 100);
            Object.assign(frame.style, {left: `${left}%`, top: `${top}%`, width: `${right - left}%`, height: `${bottom - top}%`});
        };
        const pointed = event => {
            const at = area.getBoundingClientRect();
            const rounded = value => Math.round(clamp(value, 0, 1) * 1000) / 1000;
            return [rounded((event.clientX - at.left) / at.width), rounded((event.clientY - at.top) / at.height)];
        };
        area.addEventListener("pointerdown", event => {
            from = pointed(event);
            area.setPointerCapture(event.pointerId);
            event.preventDefault();
        });
        area.addEventListener("pointermove", event => {
            if (!from) return;
            const to = pointed(event), [left, right] = [from[0], to[0]].sort((a, b) => a - b), [top, bottom] = [from[1], to[1]].sort((a, b) => a - b);
            if (right - left < 0.02 || bottom - top < 0.02) return;
            box = [left, top, right, bottom];
            draw();
        });
        area.addEventListener("pointerup", () => from = null);
        dialog.addEventListener("click", event => {
            const choice = event.target.closest("button")?.value;
            if (choice === undefined) return;
            if (choice === "whole") writeBox(chosen, null);
            else if (choice && box !== chosen.box) writeBox(chosen, box); // also before a mask is painted or removed
            if (choice === "unmask") writeMaskOf(chosen, "");
            dialog.close();
            if (choice === "mask") editMaskOf(chosen, source, mask);
        });
        dialog.addEventListener("pointerdown", event => event.target === dialog && isOutside(dialog, event) && dialog.close());
        dialog.addEventListener("close", () => dialog.remove());
        draw();
        gradioApp().append(dialog);
        dialog.showModal();
    }

    function isOutside(element, {clientX, clientY}) {
        const {left, top, right, bottom} = element.getBoundingClientRect();
        return clientX < left || clientX > right || clientY < top || clientY > bottom;
    }

    function writeBox({prefix, index, count}, box) {
        const text = byId(`${prefix}_box`)?.querySelector("textarea, input");
        if (!text) return;
        const given = text.value.split(";").map(part => part.trim());
        const boxes = given.length === count ? given : Array(count).fill(given.length === 1 ? given[0] : "");
        boxes[index] = box ? box.join(", ") : "";
        text.value = boxes.some(Boolean) ? boxes.join("; ") : "";
        updateInput(text);
    }

    function masksOf({prefix, count}) {
        try {
            const masks = JSON.parse(maskText(prefix, "image_masks").value);
            if (masks.length === count) return masks;
        } catch (error) {
            // none yet
        }
        return Array(count).fill("");
    }

    function writeMaskOf(chosen, url) {
        const masks = masksOf(chosen);
        masks[chosen.index] = url;
        writeMask(chosen.prefix, "image_masks", masks.some(Boolean) ? JSON.stringify(masks) : "");
    }

    async function editMaskOf(chosen, source, mask) {
        const title = "Mask: the white part of the reference is used", backdrops = [{name: "Reference", url: source}];
        const edited = await ipadapterMask.open({title, size: await sizeOf(source), backdrops, mask});
        if (edited !== null) writeMaskOf(chosen, edited);
    }

    // masks: ipadapter_mask.js edits them; the result goes into a hidden text

    // Forge's canvas has an empty one where there is no picture.
    function shownPicture(selector) {
        const image = gradioApp().querySelector(selector);
        return image?.naturalWidth ? image.src : "";
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
        const edited = await ipadapterMask.open({title: "Region: where the image acts", size: outputSize(tab), backdrops: backdropsOfRegion(tab), mask});
        if (edited !== null) writeMask(prefix, field, edited);
    }

    document.addEventListener("click", event => {
        const button = event.target.closest?.(".ipadapter-paint, .ipadapter-unpaint");
        if (!button) return;
        const field = button.dataset.field, prefix = button.closest('[id$="_pad"]').id.replace(new RegExp(`_${field}_pad$`), "");
        if (button.classList.contains("ipadapter-paint")) editMask(prefix, field);
        else writeMask(prefix, field, "");
    });

    document.addEventListener("click", event => {
        const picture = event.target.closest?.(".ipadapter-open");
        if (!picture || cropping || isBusy(prefixOf(picture))) return; // the answer of a slow server belongs to the picture that was clicked first
        const prefix = prefixOf(picture);
        const box = picture.dataset.box ? picture.dataset.box.split(",").map(Number) : null;
        cropping = {prefix, index: Number(picture.dataset.index), count: pictureCount(prefix), box};
        impatience = setTimeout(forget, PATIENCE);
        byId(`${prefix}_open_crop`)?.click();
    });
})();
