// The mask editor: a dialog with a canvas of its own, so that it works in every host, whatever its gradio.
// ipadapterMask.open({title, size: [width, height], backdrops: [{name, url}], mask: data URI or ""}) resolves to the mask
// as a PNG data URI, white where it acts; to "" if nothing or everything is painted; to null if it was cancelled.

(function() {
    "use strict";

    const MOST = 1024; // pixels of the mask's longer side
    const UNDO = 30;
    const SIZES = {start: 64, least: 2, most: 400};

    const TOOLS = [
        ["brush", "Brush", "Paint (B)"], ["eraser", "Eraser", "Erase (E)"],
    ];
    const ACTIONS = [
        ["undo", "Undo", "Ctrl+Z"], ["clear", "Clear", "Nothing painted"], ["fill", "Fill", "Everything painted"],
        ["invert", "Invert", "Painted and unpainted areas change places"],
        ["left", "Left half", ""], ["right", "Right half", ""], ["top", "Top half", ""], ["bottom", "Bottom half", ""],
    ];
    const HALVES = {left: [0, 0, 0.5, 1], right: [0.5, 0, 1, 1], top: [0, 0, 1, 0.5], bottom: [0, 0.5, 1, 1]};

    const make = (kind, attributes = {}, ...children) => {
        const element = document.createElement(kind);
        for (const [name, value] of Object.entries(attributes)) {
            if (name in element && name !== "list") element[name] = value;
            else element.setAttribute(name, value);
        }
        element.append(...children);
        return element;
    };

    function loaded(url) {
        return new Promise((resolve, reject) => {
            const image = new Image();
            image.onload = () => resolve(image);
            image.onerror = () => reject(new Error("this file is not an image that the browser can show"));
            image.src = url;
        });
    }

    // The painted area: a canvas that is white where the mask acts and transparent elsewhere.
    class Mask {
        constructor(width, height) {
            this.canvas = make("canvas", {width, height});
            this.pen = this.canvas.getContext("2d", {willReadFrequently: true});
            this.past = [];
        }

        remember() {
            const {width, height} = this.canvas;
            this.past.push(this.pen.getImageData(0, 0, width, height));
            if (this.past.length > UNDO) this.past.shift();
        }

        undo() {
            const before = this.past.pop();
            if (before) this.pen.putImageData(before, 0, 0);
            return Boolean(before);
        }

        stroke(from, to, size, erase) {
            Object.assign(this.pen, {
                globalCompositeOperation: erase ? "destination-out" : "source-over",
                strokeStyle: "#fff", lineWidth: size, lineCap: "round", lineJoin: "round",
            });
            this.pen.beginPath();
            this.pen.moveTo(...from);
            this.pen.lineTo(to[0], to[1] + (from[0] === to[0] && from[1] === to[1] ? 0.01 : 0));
            this.pen.stroke();
        }

        fill(left, top, right, bottom) {
            const {width, height} = this.canvas;
            this.pen.globalCompositeOperation = "source-over";
            this.pen.fillStyle = "#fff";
            const x = Math.round(left * width), y = Math.round(top * height);
            this.pen.fillRect(x, y, Math.round(right * width) - x, Math.round(bottom * height) - y);
        }

        clear() {
            this.pen.clearRect(0, 0, this.canvas.width, this.canvas.height);
        }

        // Brightness of a picture, or its alpha where the brightness is even, becomes the painted area.
        take(image) {
            const {width, height} = this.canvas;
            const scratch = make("canvas", {width, height}), pen = scratch.getContext("2d");
            pen.drawImage(image, 0, 0, width, height);
            const pixels = pen.getImageData(0, 0, width, height), data = pixels.data;
            const levels = new Uint8ClampedArray(width * height), alphas = new Uint8ClampedArray(width * height);
            for (let i = 0; i < levels.length; i++) {
                const alpha = data[4 * i + 3];
                levels[i] = (0.299 * data[4 * i] + 0.587 * data[4 * i + 1] + 0.114 * data[4 * i + 2]) * alpha / 255;
                alphas[i] = alpha;
            }
            const even = values => values.every(value => Math.abs(value - values[0]) < 2);
            const chosen = even(levels) ? alphas : levels;
            if (even(chosen)) return false;
            for (let i = 0; i < chosen.length; i++) data.set([255, 255, 255, chosen[i]], 4 * i);
            this.pen.putImageData(pixels, 0, 0);
            return true;
        }

        invert() {
            const {width, height} = this.canvas, pixels = this.pen.getImageData(0, 0, width, height), data = pixels.data;
            for (let i = 0; i < data.length; i += 4) data.set([255, 255, 255, 255 - data[i + 3]], i);
            this.pen.putImageData(pixels, 0, 0);
        }

        // The fraction that is painted, and whether all of it is the same.
        painted() {
            const {width, height} = this.canvas, data = this.pen.getImageData(0, 0, width, height).data;
            let sum = 0, least = 255, most = 0;
            for (let i = 3; i < data.length; i += 4) {
                sum += data[i];
                least = Math.min(least, data[i]);
                most = Math.max(most, data[i]);
            }
            return {fraction: sum / 255 / (width * height), even: least === most};
        }

        url() {
            if (this.painted().even) return "";
            const {width, height} = this.canvas, made = make("canvas", {width, height}), pen = made.getContext("2d");
            pen.fillStyle = "#000";
            pen.fillRect(0, 0, width, height);
            pen.drawImage(this.canvas, 0, 0);
            return made.toDataURL("image/png");
        }
    }

    function bounded([width, height]) {
        const scale = Math.min(1, MOST / Math.max(width, height));
        return [Math.max(1, Math.round(width * scale)), Math.max(1, Math.round(height * scale))];
    }

    class Editor {
        constructor({title, size, backdrops = []}, done) {
            const [width, height] = bounded(size);
            this.mask = new Mask(width, height);
            this.done = done;
            this.tool = "brush";
            this.zoom = 1;
            this.at = [width / 2, height / 2]; // of the keyboard's brush
            this.penDown = false;
            this.build(title, backdrops);
            this.bind();
            this.show();
        }

        build(title, backdrops) {
            const {width, height} = this.mask.canvas;
            const button = ([value, text, hint], group) => make("button", {type: "button", value, title: window.localization?.[hint] ?? hint, className: "ipadapter-tool", "data-group": group}, text);
            this.backdrop = make("img", {alt: "", draggable: false, className: "ipadapter-mask-backdrop", hidden: true});
            this.cursor = make("i", {className: "ipadapter-mask-cursor", hidden: true});
            this.canvas = this.mask.canvas;
            Object.assign(this.canvas, {tabIndex: 0, className: "ipadapter-mask-canvas"});
            this.canvas.setAttribute("role", "application");
            this.canvas.setAttribute("aria-label", "Canvas. Arrow keys move the brush, space puts it down or lifts it, [ and ] change its size.");
            this.stage = make("div", {className: "ipadapter-mask-stage"}, this.backdrop, this.canvas, this.cursor);
            this.stage.style.setProperty("--ratio", String(width / height));
            this.size = make("input", {type: "range", min: SIZES.least, max: SIZES.most, value: Math.min(SIZES.start, Math.max(width, height) / 6)});
            this.note = make("p", {className: "ipadapter-mask-note"});
            this.note.setAttribute("role", "status");
            this.file = make("input", {type: "file", accept: "image/*", hidden: true});
            const heading = make("h2", {id: "ipadapter_mask_title"}, title);
            const shown = backdrops.map(({name}, index) => button([String(index), name, "Show it below the mask"], "backdrop"));
            this.dialog = make("dialog", {className: "ipadapter-mask"},
                heading,
                make("div", {className: "ipadapter-tools"}, ...TOOLS.map(tool => button(tool, "tool")),
                    make("label", {}, "Size ", this.size), ...ACTIONS.map(action => button(action, "action")),
                    button(["load", "Load image", "White areas of an image file become the mask"], "action"),
                    button(["out", "−", "Zoom out"], "zoom"), button(["in", "+", "Zoom in"], "zoom")),
                ...(shown.length ? [make("div", {className: "ipadapter-tools"}, "Below the mask: ", button(["", "Nothing", ""], "backdrop"), ...shown)] : []),
                make("div", {className: "ipadapter-mask-view"}, this.stage), this.note, this.file,
                make("div", {className: "ipadapter-tools"}, button(["apply", "Apply", ""], "end"), button(["cancel", "Cancel", "Escape"], "end")));
            this.dialog.setAttribute("aria-labelledby", heading.id);
            this.backdrops = backdrops;
        }

        bind() {
            this.dialog.addEventListener("click", event => {
                const button = event.target.closest?.("button");
                if (button) this.press(button.dataset.group, button.value);
            });
            this.dialog.addEventListener("keydown", event => this.key(event));
            this.dialog.addEventListener("close", () => {
                this.dialog.remove();
                this.done(this.result ?? null);
            });
            this.file.addEventListener("change", () => this.file.files[0] && this.load(this.file.files[0]));
            const canvas = this.canvas;
            canvas.addEventListener("pointerdown", event => {
                if (event.button > 0) return;
                event.preventDefault();
                canvas.setPointerCapture(event.pointerId);
                this.mask.remember();
                this.last = this.place(event);
                this.draw(this.last, this.pressure(event));
            });
            canvas.addEventListener("pointermove", event => {
                this.showCursor(this.place(event));
                if (!this.last) return;
                for (const each of event.getCoalescedEvents?.() ?? [event]) this.draw(this.place(each), this.pressure(each));
            });
            for (const name of ["pointerup", "pointercancel", "lostpointercapture"]) {
                canvas.addEventListener(name, () => {
                    if (this.last) this.report();
                    this.last = null;
                });
            }
            canvas.addEventListener("pointerleave", () => this.cursor.hidden = true);
        }

        // A pen presses; a mouse and a finger do not tell.
        pressure(event) {
            return event.pointerType === "pen" && event.pressure ? 0.3 + 0.7 * event.pressure : 1;
        }

        place(event) {
            const box = this.canvas.getBoundingClientRect();
            return [(event.clientX - box.left) / box.width * this.canvas.width, (event.clientY - box.top) / box.height * this.canvas.height];
        }

        draw(to, pressure = 1) {
            this.mask.stroke(this.last ?? to, to, this.size.value * pressure, this.tool === "eraser");
            this.last = to;
        }

        press(group, value) {
            if (group === "tool") this.tool = value;
            if (group === "zoom") this.zoom = Math.min(8, Math.max(1, this.zoom * (value === "in" ? 1.5 : 1 / 1.5)));
            if (group === "backdrop") this.under(value === "" ? null : this.backdrops[Number(value)].url);
            if (group === "end") return this.end(value === "apply");
            if (group === "action") this.act(value);
            return this.show();
        }

        act(value) {
            if (value === "load") return this.file.click();
            if (value === "undo") return void this.mask.undo();
            this.mask.remember();
            if (value === "invert") return this.mask.invert();
            this.mask.clear();
            if (value === "fill") this.mask.fill(0, 0, 1, 1);
            if (value in HALVES) this.mask.fill(...HALVES[value]);
        }

        under(url) {
            this.backdrop.hidden = !url;
            if (url) this.backdrop.src = url;
        }

        async load(file) {
            const url = URL.createObjectURL(file);
            try {
                const image = await loaded(url);
                this.mask.remember();
                this.report(this.mask.take(image) ? "" : `${file.name} is the same all over, so it is no mask.`);
            } catch (error) {
                this.report(`${file.name}: ${error.message}.`);
            } finally {
                URL.revokeObjectURL(url);
                this.file.value = "";
            }
        }

        key(event) {
            const ranged = event.target === this.size;
            if (event.key === "z" && (event.ctrlKey || event.metaKey)) this.act("undo");
            else if (event.key === "b") this.tool = "brush";
            else if (event.key === "e") this.tool = "eraser";
            else if (event.key === "[" || event.key === "]") this.size.value = this.size.value * (event.key === "]" ? 1.25 : 0.8);
            else if (event.target === this.canvas && !ranged && this.move(event)) ;
            else return;
            event.preventDefault();
            event.stopPropagation();
            this.show();
        }

        // The keyboard's brush. False for another key.
        move(event) {
            const steps = {ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1]};
            if (event.key === " ") {
                this.penDown = !this.penDown;
                if (this.penDown) {
                    this.mask.remember();
                    this.last = null;
                    this.draw([...this.at]);
                }
                this.last = null;
            } else if (event.key in steps) {
                const step = event.shiftKey ? 1 : Math.max(2, this.size.value / 4), {width, height} = this.canvas;
                const from = [...this.at];
                this.at = this.at.map((value, i) => Math.min(Math.max(value + steps[event.key][i] * step, 0), [width, height][i]));
                if (this.penDown) {
                    this.last = from;
                    this.draw([...this.at]);
                    this.last = null;
                }
            } else {
                return false;
            }
            this.showCursor(this.at);
            return true;
        }

        showCursor([x, y]) {
            const {width, height} = this.canvas, size = this.size.value;
            this.cursor.hidden = false;
            Object.assign(this.cursor.style, {
                left: `${x / width * 100}%`, top: `${y / height * 100}%`, width: `${size / width * 100}%`, height: `${size / height * 100}%`,
            });
        }

        show() {
            for (const button of this.dialog.querySelectorAll('[data-group="tool"]')) {
                button.setAttribute("aria-pressed", String(button.value === this.tool));
            }
            this.stage.style.setProperty("--zoom", String(this.zoom));
            this.dialog.querySelector('[value="undo"]').disabled = !this.mask.past.length;
            this.report();
        }

        report(problem = "") {
            const {fraction, even} = this.mask.painted();
            const state = even ? (fraction ? "Everything is painted: the same as no mask." : "Nothing is painted: no mask.")
                : `${Math.round(fraction * 100)} % of the picture is painted.`;
            this.note.textContent = problem || state;
            this.dialog.querySelector('[value="undo"]').disabled = !this.mask.past.length;
        }

        end(apply) {
            this.result = apply ? this.mask.url() : null;
            this.dialog.close();
        }
    }

    async function open(options) {
        let editor;
        const result = new Promise(resolve => editor = new Editor(options, resolve));
        (typeof gradioApp === "function" ? gradioApp() : document.body).append(editor.dialog);
        if (options.backdrops?.length) editor.under(options.backdrops[0].url);
        if (options.mask) {
            try {
                editor.mask.take(await loaded(options.mask));
            } catch (error) {
                editor.report(`The present mask cannot be shown: ${error.message}.`);
            }
        }
        editor.dialog.showModal();
        editor.canvas.focus();
        editor.show();
        return result;
    }

    window.ipadapterMask = {open};
})();
