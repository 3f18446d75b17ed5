// Numbers and curves as text: SVG from what the trainings of core.js say. No page.
const nlDraw = (() => {
  "use strict";
  const LEFT = 46, RIGHT = 300, TOP = 10, BOTTOM = 166;

  const digits = (n) => [...String(n)].map((c) => "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"["-0123456789".indexOf(c)]).join("");
  function number(x, precision = 2) {
    if (!Number.isFinite(x)) return "unknown";
    if (x === 0 || (Math.abs(x) >= 1e-3 && Math.abs(x) < 1e5)) {
      return x.toLocaleString("en", { maximumSignificantDigits: Math.abs(x) >= 100 ? 3 : precision });
    }
    const [front, power] = x.toExponential(precision - 1).split("e");
    return `${Number(front) === 1 ? "" : `${Number(front)} · `}10${digits(Number(power))}`;
  }

  // The lines of a point: a value of each layer, and where the balance is.
  const layered = (key, rest) => (one) => [
    ...one.layers.map((layer, i) => [layer[key], i ? "nl-thin" : ""]),
    ...(rest ? one.layers.map((layer, i) => [layer[rest], `nl-rest ${i ? "nl-thin" : ""}`]) : []),
  ];

  function ticks(low, high) { // powers of ten, and between them as needed
    let found = [];
    for (const steps of [[1], [1, 3], [1, 2, 5], [1, 1.5, 2, 3, 4, 5, 6, 8]]) {
      found = [];
      for (let k = Math.floor(Math.log10(low)); k <= Math.log10(high); k++) {
        found.push(...steps.map((step) => step * 10 ** k).filter((x) => x >= low && x <= high));
      }
      if (found.length > 2) break;
    }
    return found.filter((_, i) => i % Math.ceil(found.length / 5) === 0);
  }

  // Curves over the steps. Each run is a list of [step, [[value, class], …]].
  function plot(all, horizon, { linear = false, marks = [], names = "AB" } = {}) {
    const x = (step) => LEFT + (RIGHT - LEFT) * step / horizon;
    let low = Infinity, high = 0;
    for (const [, values] of all.flat()) {
      for (const [value] of values) {
        if (!(value > 0 && value < Infinity)) continue;
        low = Math.min(low, value);
        high = Math.max(high, value);
      }
    }
    if (!high) [low, high] = [0.1, 1];
    [low, high] = linear ? [0, 1.05 * high] : [low / 1.1, Math.max(high, 2 * low) * 1.1];
    const share = (value) => (linear ? value / high : Math.log(value / low) / Math.log(high / low));
    const y = (value) => BOTTOM - (BOTTOM - TOP) * share(value);
    let svg = `<path class="nl-axis" d="M${LEFT} ${TOP}V${BOTTOM}H${RIGHT}"/>`;
    for (const tick of linear ? [0, 0.2, 0.4, 0.6, 0.8].filter((x) => x < high) : ticks(low, high)) {
      const text = linear ? `${number(100 * tick)} %` : number(tick);
      svg += `<path class="nl-axis" d="M${LEFT} ${y(tick)}H${RIGHT}"/><text x="${LEFT - 4}" y="${y(tick) + 4}" text-anchor="end">${text}</text>`;
    }
    for (const step of [0, horizon / 2, horizon]) {
      svg += `<text x="${x(step)}" y="${BOTTOM + 15}" text-anchor="middle">${step.toLocaleString("en")}</text>`;
    }
    for (const step of marks) svg += `<path class="nl-mark" d="M${x(step)} ${TOP}V${BOTTOM}"/>`;
    all.forEach((run, i) => {
      for (let k = 0; run.length && k < run[0][1].length; k++) {
        let path = "", pen = "M";
        for (const [step, values] of run) {
          const value = values[k][0], seen = value > 0 && value < Infinity;
          if (seen) path += `${pen}${x(step).toFixed(1)} ${y(value).toFixed(1)}`;
          pen = seen ? "L" : "M";
        }
        svg += `<path class="${i ? "nl-b" : "nl-a"} ${run[0][1][k][1]}" d="${path}"/>`;
      }
      const last = run.at(-1);
      if (last?.[1][0][0] > 0) {
        svg += `<text class="${i ? "nl-b" : "nl-a"}" x="${x(last[0]) + 4}" y="${y(last[1][0][0]) + (i ? 11 : -3)}">${names[i]}</text>`;
      }
    });
    return svg;
  }

  return { number, layered, plot };
})();
