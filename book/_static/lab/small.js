// A training in a chapter: one control, one picture, in the page. Where a chapter has an empty
// <div class="nl-small" data-…>, it becomes a button; the rest is loaded when that is pressed.
(() => {
  "use strict";
  const NAMES = { decay: "λ", lr: "η", rule: "update rule", adam: "Adam + L2", adamw: "AdamW" };
  const PICTURES = {
    norm: ["Norm of a layer", "norm", "restNorm"],
    angle: ["Angle of a step, in radians", "angle", "restAngle"],
  };
  const folder = new URL(".", document.currentScript.src).href;
  const still = matchMedia("(prefers-reduced-motion: reduce)").matches;
  let loading = null;

  function load(name) {
    return new Promise((resolve, reject) => {
      const script = Object.assign(document.createElement("script"), { src: folder + name });
      script.onload = resolve;
      script.onerror = () => reject(new Error(name));
      document.head.append(script);
    });
  }
  const make = (tag, about = {}, ...children) => {
    const one = Object.assign(document.createElement(tag), about);
    one.append(...children);
    return one;
  };

  function open(place) {
    const { control, values, begin, picture, steps = 2000, ...settings } = place.dataset;
    const [title, key, rest] = PICTURES[picture], lines = nlDraw.layered(key, rest);
    const numeric = control !== "rule", { START, RULES } = nlLab();
    for (const name of ["lr", "other", "decay"]) if (name in settings) settings[name] = Number(settings[name]);
    const chosen = { ...START, ...settings, steps: Number(steps), [control]: numeric ? Number(begin) : begin };
    const source = new Blob([`(${nlLab})().serve(self);`], { type: "text/javascript" });
    const worker = new Worker(URL.createObjectURL(source));
    let points = [], marks = [], going = false, finished = false, round = 0;
    const send = (order, more = {}) => worker.postMessage({ order, ...more });

    const legend = make("legend", { textContent: numeric ? `${NAMES[control]}, while it trains` : NAMES[control] });
    const choices = values.split(" ").map((value) => {
      const radio = make("input", { type: "radio", name: `nl-${place.id}`, value, checked: value === begin });
      radio.addEventListener("change", () => {
        chosen[control] = numeric ? Number(value) : value;
        if (!numeric) return start();
        if (points.length) marks.push(points.at(-1)[0].step);
        send("set", { run: 0, key: control, value: Number(value) });
      });
      return make("label", {}, radio, ` ${numeric ? nlDraw.number(Number(value)) : NAMES[value]}`);
    });
    const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
    for (const [name, value] of [["viewBox", "0 0 320 190"], ["role", "img"], ["aria-label", title]]) svg.setAttribute(name, value);
    const button = make("button", { type: "button", textContent: "Run" });
    const again = make("button", { type: "button", textContent: "Start again" });
    const words = make("p"), said = make("p", { className: "nl-away" });
    said.setAttribute("aria-live", "polite");
    place.className = "nl-lab nl-charts nl-small";
    place.replaceChildren(
      make("fieldset", {}, legend, ...choices),
      make("figure", {}, make("figcaption", { textContent: `${title}; thick: first layer, thin: second${chosen.rule === "unit_norm" ? "" : ", dashed: the formula"}` }), svg),
      make("div", { className: "nl-row" }, button, again), words, said,
    );

    function draw() {
      svg.innerHTML = nlDraw.plot([points.map(([one]) => [one.step, lines(one)])], chosen.steps, { marks, names: " " });
      const last = points.at(-1)?.[0], known = (x) => (Number.isFinite(x) ? `, formula ${nlDraw.number(x)}` : "");
      const recent = points.slice(-12).map(([one]) => one.layers[0].angle); // about 100 steps
      const angle = Math.sqrt(recent.reduce((sum, x) => sum + x * x, 0) / recent.length);
      words.textContent = last
        ? `Step ${last.step.toLocaleString("en")}, ${NAMES[control]} ${numeric ? nlDraw.number(chosen[control]) : NAMES[chosen.rule]}: loss ${nlDraw.number(last.loss)}; first layer: norm ${nlDraw.number(last.layers[0].norm)}${known(last.layers[0].restNorm)}, angle ${nlDraw.number(angle)}${known(last.layers[0].restAngle)}.`
        : "Step 0.";
      if (!going) said.textContent = words.textContent;
    }
    function start() {
      [points, marks, finished] = [[], [], false];
      const family = RULES[chosen.rule].adam && !("other" in settings) ? { other: 0.003 } : {};
      send("start", { runs: [{ ...chosen, ...family }], plan: [], round: ++round });
      if (going) go();
    }
    const go = () => send("go", { speed: still ? Infinity : 250 });
    function run(on) {
      going = on;
      button.textContent = on ? "Pause" : "Run";
      if (on && finished) start();
      else if (on) go();
      else send("pause");
    }
    worker.onmessage = ({ data }) => {
      if (data.round !== round) return;
      points.push(...data.points);
      ({ finished } = data);
      if (finished && going) run(false);
      if (!still || !going) draw();
    };
    button.addEventListener("click", () => run(!going));
    again.addEventListener("click", start);
    document.addEventListener("visibilitychange", () => {
      if (going && document.hidden) send("pause");
      else if (going) go();
    });
    send("data", { text: nlLabData });
    start();
    button.focus();
  }

  document.querySelectorAll(".nl-small").forEach((place, i) => {
    place.id ||= `small-${i}`;
    const button = make("button", { type: "button", textContent: place.dataset.say });
    button.addEventListener("click", async () => {
      button.disabled = true;
      loading ??= Promise.all(["data.js", "core.js", "draw.js"].map(load));
      await loading;
      open(place);
    });
    place.append(button);
  });
})();
