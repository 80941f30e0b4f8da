// The curve over the steps: an SVG that the server draws, with its points in data-points. What is dragged here is drawn
// here meanwhile and then written into the text beside it, and the server draws it again.

(function() {
    const {byId} = window.ipadapter;
    const SVG = "http://www.w3.org/2000/svg";
    const clamp = (value, low, high) => Math.min(Math.max(value, low), high);
    const STEP = 0.05; // of an arrow key
    let dragged = null; // {prefix, index, points}
    let focused = null; // {prefix, index} of the point that has the keyboard; drawn again, it still has it
    const written = {}; // the points that were written last, by the unit's prefix

    const prefixOf = svg => svg.closest('[id$="_charts"]')?.id.replace(/_charts$/, "");

    const chartOf = prefix => byId(`${prefix}_charts`)?.querySelector(".ipadapter-curve");

    const textOf = prefix => byId(`${prefix}_curve`)?.querySelector("textarea, input");

    const parsed = text => text.split(", ").map(pair => pair.split(":").map(Number));

    const joined = points => points.map(([x, y]) => `${x}:${y}`).join(", ");

    // What was drawn here counts over what the server has drawn of an earlier state meanwhile.
    function curvePoints(svg) {
        const prefix = prefixOf(svg), own = written[prefix];
        return parsed(own && textOf(prefix)?.value === own ? own : svg.dataset.points);
    }

    function onCurve(svg) {
        const {low, top, width, height} = svg.dataset;
        const scale = height / (top - low);
        return {x: x => x * width, y: y => (top - y) * scale, fraction: x => x / width, factor: y => top - y / scale};
    }

    function drawCurve(svg) {
        const at = onCurve(svg), points = parsed(svg.dataset.points).map(([x, y]) => [at.x(x), at.y(y)]);
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
        nameCircles(svg);
    }

    // For the keyboard and for screen readers: each point is a slider of its factor.
    function nameCircles(svg) {
        const points = parsed(svg.dataset.points);
        svg.querySelectorAll("circle:not([tabindex])").forEach((circle, i) => {
            const [x, y] = points[i], said = `factor ${y} at ${Math.round(x * 100)} % of the sampling`;
            const attributes = {
                tabindex: 0, role: "slider", "aria-label": `Point ${i + 1}`, "aria-valuetext": said,
                "aria-valuemin": svg.dataset.low, "aria-valuemax": svg.dataset.top, "aria-valuenow": y,
            };
            for (const [name, value] of Object.entries(attributes)) circle.setAttribute(name, value);
        });
        if (focused?.prefix === prefixOf(svg) && document.activeElement === document.body) focusCircle(svg, focused.index);
    }

    const focusCircle = (svg, index) => svg.querySelectorAll("circle")[index]?.focus({preventScroll: true});

    function setCurve(svg, points) {
        svg.dataset.points = joined(points);
        drawCurve(svg);
    }

    function writeCurve(prefix, points) {
        const text = textOf(prefix);
        if (!text) return;
        written[prefix] = text.value = joined(points);
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
        const svg = circle.closest("svg");
        dragged = {prefix: prefixOf(svg), index: Number(circle.dataset.index), points: curvePoints(svg)};
        event.preventDefault();
    });

    document.addEventListener("pointermove", event => {
        const svg = dragged && chartOf(dragged.prefix);
        if (!svg) return;
        const {points, index: i} = dragged, [x, y] = pointerOn(svg, event);
        const left = i ? points[i - 1][0] + 0.01 : 0, right = i < points.length - 1 ? points[i + 1][0] - 0.01 : 1;
        points[i] = [Math.round(clamp(x, left, right) * 100) / 100, y];
        dragged.moved = true;
        setCurve(svg, points);
    });

    function letGo() {
        const last = dragged;
        dragged = null;
        if (last?.moved) writeCurve(last.prefix, last.points);
    }

    document.addEventListener("pointerup", letGo);
    document.addEventListener("pointercancel", letGo);

    document.addEventListener("dblclick", event => {
        const svg = event.target.closest?.(".ipadapter-curve");
        if (!svg) return;
        const circle = event.target.closest("circle"), points = curvePoints(svg), added = pointerOn(svg, event);
        if (circle && points.length === 1) return;
        if (circle) points.splice(Number(circle.dataset.index), 1);
        else if (points.every(([x]) => Math.abs(x - added[0]) > 0.005)) points.push(added);
        setCurve(svg, points.sort((a, b) => a[0] - b[0]));
        writeCurve(prefixOf(svg), points);
    });

    // What a key makes of the points, and the point that has the keyboard then; null for another key.
    function byKey(key, points, i) {
        const [x, y] = points[i], rounded = value => Math.round(value * 100) / 100;
        const right = {ArrowLeft: -STEP, ArrowRight: STEP}[key], up = {ArrowDown: -STEP, ArrowUp: STEP}[key];
        if (up) points[i] = [x, rounded(y + up)];
        else if (right) points[i] = [rounded(clamp(x + right, i ? points[i - 1][0] + 0.01 : 0, points[i + 1] ? points[i + 1][0] - 0.01 : 1)), y];
        else if (key === "Delete" && points.length > 1) points.splice(i, 1);
        else if (key === "Enter" && points[i + 1]?.[0] - x >= 0.02) points.splice(i + 1, 0, [rounded((x + points[i + 1][0]) / 2), rounded((y + points[i + 1][1]) / 2)]);
        else return null;
        return Math.min(key === "Enter" ? i + 1 : i, points.length - 1);
    }

    document.addEventListener("keydown", event => {
        const circle = event.target.closest?.(".ipadapter-curve circle");
        if (!circle) return;
        const svg = circle.closest("svg"), prefix = prefixOf(svg), points = curvePoints(svg);
        const index = byKey(event.key, points, Number(circle.dataset.index));
        if (index === null) return;
        event.preventDefault();
        const [low, top] = [+svg.dataset.low, +svg.dataset.top];
        points[index][1] = clamp(points[index][1], low, top);
        focused = {prefix, index};
        setCurve(svg, points);
        focusCircle(svg, index);
        writeCurve(prefix, points);
    });

    document.addEventListener("focusin", event => {
        const circle = event.target.closest?.(".ipadapter-curve circle");
        focused = circle ? {prefix: prefixOf(circle.closest("svg")), index: Number(circle.dataset.index)} : null;
    });

    document.addEventListener("pointerdown", () => focused = null, true);

    // A slow server draws the state of an earlier edit over that of the last one: the last one again.
    function redraw() {
        gradioApp().querySelectorAll(".ipadapter-curve").forEach(svg => {
            const points = dragged?.prefix === prefixOf(svg) ? dragged.points : curvePoints(svg);
            if (joined(points) !== joined(parsed(svg.dataset.points))) setCurve(svg, points);
            nameCircles(svg);
        });
    }

    onAfterUiUpdate(redraw);
    // At once: the next key must not miss its point.
    onUiUpdate(() => {
        const svg = focused && document.activeElement === document.body && chartOf(focused.prefix);
        if (svg) nameCircles(svg);
    });
})();
