// The curve over the steps: an SVG that the server draws, with its points in data-points. What is dragged here is drawn
// here meanwhile and then written into the text beside it, and the server draws it again.

(function() {
    const {byId} = window.ipadapter;
    const SVG = "http://www.w3.org/2000/svg";
    const clamp = (value, low, high) => Math.min(Math.max(value, low), high);
    let dragged = null; // {prefix, index, points}
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
    }

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

    // A slow server draws the state of an earlier edit over that of the last one: the last one again.
    function redraw() {
        gradioApp().querySelectorAll(".ipadapter-curve").forEach(svg => {
            const points = dragged?.prefix === prefixOf(svg) ? dragged.points : curvePoints(svg);
            if (joined(points) !== joined(parsed(svg.dataset.points))) setCurve(svg, points);
        });
    }

    onAfterUiUpdate(redraw);
})();
