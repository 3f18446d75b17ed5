// The lab's page: controls, pictures and words around the trainings of core.js, which run in a
// worker made from that file's text, so that the page also works from a disk.
(() => {
  "use strict";
  const by = (id) => document.getElementById(`nl-${id}`);
  const { RULES } = nlLab(), { number, plot } = nlDraw;
  const still = matchMedia("(prefers-reduced-motion: reduce)").matches;
  const form = by("settings"), fields = form.elements;
  const LAYERS = ["first", "second"];

  // Numbers in words -----------------------------------------------------------------------------

  const times = (x) => number(x >= 1 ? x : 1 / x);
  const label = (name) => fields.namedItem(name).selectedOptions[0].textContent;

  // Settings: the form, the address, and run B -----------------------------------------------------

  const RATES = { // where each family of rules trains well: sliders' places
    sgd: { lr: -1, decay: -2.3, other: -1.3 },
    adam: { lr: -2, decay: -1, other: -2.5 },
  };
  const rate = (name) => {
    const place = Number(fields[name].value);
    return name === "decay" && place <= Number(fields.decay.min) ? 0 : Number((10 ** place).toPrecision(2));
  };

  function settings() { // of both runs
    const a = Object.fromEntries(["rule", "norm", "schedule"].map((name) => [name, fields[name].value]));
    for (const name of ["lr", "decay", "other"]) a[name] = rate(name);
    for (const name of ["steps", "seed"]) a[name] = Number(fields[name].value);
    const b = { ...a }, [what, value] = fields.differ.value.split(":");
    if (what in a && typeof a[what] === "string") b[what] = value;
    else if (what === "seed") b.seed += 1;
    else if (what === "scale") b.scale = Number(value);
    else if (what === "exchange") {
      const { p, q } = RULES[b.rule];
      b.scale = Number(value);
      b.lr *= value ** p;
      b.decay /= value ** q;
    } else if (what) b[what] *= Number(value);
    return [a, b];
  }

  function address() {
    const where = new URLSearchParams(new FormData(form));
    if (experiment) where.set("try", experiment.key);
    by("share").value = `${location.href.split("#")[0]}#${where}`;
    if (touched) history.replaceState(null, "", `#${where}`);
  }

  function fill(values) {
    for (const [name, value] of Object.entries(values)) {
      const field = fields.namedItem(name);
      if (!field) continue;
      const before = field.value;
      field.value = value;
      if (!field.value && name !== "differ") field.value = before; // a link from elsewhere
    }
    readouts();
  }

  function readouts() {
    for (const name of ["lr", "decay", "other"]) {
      const text = number(rate(name));
      fields[name].closest("label").querySelector("span").textContent = text;
      fields[name].setAttribute("aria-valuetext", text);
    }
  }

  // Experiments: one click, a prediction, and what was measured -------------------------------------

  const EXPERIMENTS = {
    ten: {
      settings: { decay: -2.7, steps: 2400 },
      plan: [{ step: 600, run: 1, what: "scale", value: 10 }],
      note: "the same; × 10 at step 600",
      question: "At step 600 the hidden weights of B are multiplied by 10. How far does a step turn them, once momentum has forgotten the old gradients?",
      answers: ["as far as before", "10 times less", "100 times less"],
      judge() {
        const before = mean(1, "angle", 500, 600), after = mean(1, "angle", 645, 680);
        const end = mean(1, "angle", 2200, 2400);
        return [nearest(before / after, [1, 10, 100]),
          `The angle fell from ${number(before)} to ${number(after)}, ${times(before / after)} times less; at the end it was ${number(end)} again: decay had shortened the weights.`];
      },
    },
    off: {
      settings: { steps: 2400 },
      plan: [{ step: 600, run: 1, what: "decay", value: 0 }],
      note: "the same; λ = 0 from step 600",
      question: "At step 600 the decay of B is switched off. What follows?",
      answers: ["hardly anything", "longer weights, and smaller angles", "a larger test error: nothing regularizes"],
      judge() {
        const [errorA, errorB] = [0, 1].map((run) => 100 * mean(run, "error", 2000, 2400));
        const [long, turn] = ["norm", "angle"].map((key) => mean(1, key, 2200, 2400) / mean(0, key, 2200, 2400));
        return [errorB > errorA + 2 ? 2 : long > 1.2 && turn < 0.8 ? 1 : 0,
          `At the end B's weights are ${number(long)} times as long as A's and turn by ${number(turn)} times the angle. Test error: A ${number(errorA)} %, B ${number(errorB)} %.`];
      },
    },
    partner: {
      settings: { differ: "exchange:4" },
      note: "4w, with 16η and λ/16",
      question: "B starts with weights 4 times as long, 16 times the learning rate and a sixteenth of the decay. What does its loss do?",
      answers: ["it diverges", "it falls differently", "the same as A's"],
      judge() {
        const most = Math.max(...points.map(([a, b]) => Math.abs(b.loss / a.loss - 1)));
        return [Number.isFinite(most) ? (most < 1e-6 ? 2 : 1) : 0,
          `The largest relative difference of the two losses in ${points.length} points is ${number(most)}.${most === 0 ? " Not one bit differs: multiplying by a power of 2 does not round." : ""}`];
      },
    },
    adam: {
      settings: { rule: "adam", ...RATES.adam, differ: "rule:adamw" },
      note: "AdamW, the same η and λ",
      question: "The same η and λ: A adds the decay to the gradient, B takes it off the weights. Which turns its weights further in a step?",
      answers: ["A, Adam with L2", "both alike", "B, AdamW"],
      judge() {
        const angle = (run, layer) => mean(run, "angle", 1500, 2000, layer);
        const ratio = angle(0, 0) / angle(1, 0);
        return [nearest(ratio, [2, 1, 0.5]),
          `A's first layer turns ${number(ratio)} times as far as B's. Between the layers of A the angles differ by a factor of ${times(angle(0, 1) / angle(0, 0))}, between those of B by ${times(angle(1, 1) / angle(1, 0))}.`];
      },
    },
    quarter: {
      settings: {},
      plan: [{ step: 600, run: 1, what: "lr", value: 0.25 }],
      note: "the same; η ÷ 4 at step 600",
      question: "At step 600 the learning rate of B's hidden weights is divided by 4. How far does a step turn them in the end?",
      answers: ["4 times less than A's", "2 times less", "as far as A's"],
      judge() {
        const at = (from, to) => mean(0, "angle", from, to) / mean(1, "angle", from, to);
        return [nearest(at(1500, 2000), [4, 2, 1]),
          `From step 640 to 680 B turned ${number(at(640, 680))} times less than A, in the last 500 steps ${number(at(1500, 2000))} times less.`];
      },
    },
  };
  for (const [key, one] of Object.entries(EXPERIMENTS)) one.key = key;

  // The mean over steps of what a run showed, of its first layer unless another is named.
  function mean(run, key, from, to, layer = 0) {
    const values = points.map((point) => point[run]).filter(({ step }) => step > from && step <= to)
      .map((one) => (key === "error" ? one.error : one.layers[layer][key])).filter((x) => x !== null);
    return values.reduce((sum, x) => sum + x, 0) / values.length;
  }
  function nearest(value, choices) {
    const far = choices.map((choice) => Math.abs(Math.log(value / choice)));
    return far.indexOf(Math.min(...far));
  }

  function attempt(key) {
    experiment = EXPERIMENTS[key];
    fill({ rule: "momentum", norm: "batch", schedule: "constant", steps: 2000, seed: 0, differ: "", ...RATES.sgd, ...experiment.settings });
    const legend = Object.assign(document.createElement("legend"), { textContent: experiment.question });
    by("question").replaceChildren(legend, ...experiment.answers.map((text, i) => {
      const answer = document.createElement("label");
      const radio = Object.assign(document.createElement("input"), { type: "radio", name: "nl-answer", value: i });
      answer.append(radio, ` ${text}`);
      return answer;
    }));
    start();
    by("question").querySelector("input").focus({ preventScroll: true });
  }

  function verdict() {
    if (disturbed) {
      by("verdict").textContent = "You changed something on the way: start again for a verdict.";
      return;
    }
    const [right, text] = experiment.judge(), said = by("question").querySelector(":checked");
    const opening = !said ? `Nearest to what was measured: “${experiment.answers[right]}”.`
      : Number(said.value) === right ? "As you predicted." : `You predicted “${experiment.answers[said.value]}”; nearest to what was measured is “${experiment.answers[right]}”.`;
    by("verdict").textContent = `${opening} ${text}`;
  }

  // The worker ---------------------------------------------------------------------------------------

  let experiment = null, disturbed = false, touched = false; // touched: the address follows
  let points = [], runs = [], marks = [], going = false, finished = false, round = 0;
  const source = new Blob([`(${nlLab})().serve(self);`], { type: "text/javascript" });
  const worker = new Worker(URL.createObjectURL(source));
  const send = (order, more = {}) => worker.postMessage({ order, ...more });
  worker.onmessage = ({ data }) => {
    if (data.round !== round) return; // of a training that has been replaced
    points.push(...data.points);
    ({ runs, finished } = data);
    if (finished && going) run(false);
    if (finished && experiment && points.length) verdict();
    later();
  };
  send("data", { text: nlLabData });

  function start() {
    const plan = experiment?.plan ?? [];
    [points, finished] = [[], false];
    marks = plan.map(({ step }) => step);
    send("start", { runs: settings(), plan, round: ++round });
    by("verdict").textContent = "";
    by("question").hidden = !experiment;
    disturbed = false;
    for (const button of document.querySelectorAll("[data-try]")) {
      button.setAttribute("aria-pressed", String(button.dataset.try === experiment?.key));
    }
    address();
    if (going) go();
  }
  const go = () => send("go", { speed: still ? Infinity : Number(by("speed").value) });
  function run(on) {
    going = on;
    by("run").textContent = on ? "Pause" : "Run";
    if (on && finished) start();
    else if (on) go();
    else send("pause");
  }

  // Pictures -----------------------------------------------------------------------------------------

  const CHARTS = {
    loss: (one) => [[one.loss, ""]],
    error: (one) => [[one.error, ""]],
    norm: nlDraw.layered("norm", "restNorm"),
    angle: nlDraw.layered("angle", "restAngle"),
    effective: nlDraw.layered("effective"),
  };

  function chart(id, lines) {
    const all = [0, 1].map((i) => points.filter((point) => lines(point[i])[0][0] !== null)
      .map((point) => [point[i].step, lines(point[i])]));
    by(id).innerHTML = plot(all, Number(fields.steps.value), { linear: id === "error", marks });
  }

  const turned = (run) => number(run.path.length ? Math.acos(Math.min(1, run.path.at(-1)[0])) * 180 / Math.PI : 0);
  function circle() {
    const most = Math.max(...runs.map((run) => run.radius)), size = (run) => 84 * run.radius / most;
    by("circle").innerHTML = runs.map((run, i) => {
      const to = run.path.map(([x, y]) => `${(size(run) * x).toFixed(1)} ${(-size(run) * y).toFixed(1)}`);
      const [x, y] = run.path.at(-1) ?? [1, 0], name = i ? "nl-b" : "nl-a";
      const path = to.length ? `<path class="${name}" d="M${to.join("L")}"/><path class="${name}" d="M0 0L${to.at(-1)}"/>` : "";
      return `<circle class="${name}" r="${size(run)}" stroke-dasharray="1 3"/>${path}
        <text class="${name}" x="${size(run) * x + (i ? -16 : 6)}" y="${-size(run) * y - 4}">${"AB"[i]}</text>`;
    }).join("");
  }

  // Words: what the pictures show, for everybody, and now and then for those who listen --------------

  function words() {
    const last = points.at(-1);
    if (!last) return "Step 0.";
    const texts = last.map((one, i) => {
      const [layer] = one.layers, error = points.findLast((point) => point[i].error !== null)?.[i].error;
      if (!Number.isFinite(one.loss)) return `${"AB"[i]} has diverged.`;
      const angle = (key) => mean(i, key, one.step - 100, one.step);
      const known = (x) => (Number.isFinite(x) ? ` (formula ${number(x)})` : "");
      return `${"AB"[i]}: loss ${number(one.loss)}${error === undefined ? "" : `, test error ${number(100 * error)} %`}; the first layer's norm is ${number(layer.norm)}${known(layer.restNorm)}, and a step turns it by ${number(angle("angle"))}${known(angle("restAngle"))}, a mean over 100 steps.`;
    });
    const turns = runs.map((run, i) => `${"AB"[i]} ${turned(run)}°`).join(", ");
    return `Step ${last[0].step.toLocaleString("en")}. ${texts.join(" ")} In 100 steps one unit's weights turned: ${turns}.`;
  }

  function describe() {
    const [a, b] = settings();
    const rates = (i, one) => `η ${number(runs[i]?.lr ?? one.lr)}, λ ${number(runs[i]?.decay ?? one.decay)}`;
    by("run-0").textContent = `${label("rule")}, ${rates(0, a)}`;
    by("run-1").textContent = `${experiment?.note ?? (fields.differ.value ? label("differ") : "the same")}: ${rates(1, b)}`;
  }

  let waiting = false, spoken = 0;
  function later() {
    if (waiting || (still && going && !finished)) return;
    waiting = true;
    setTimeout(draw, 80);
  }
  function draw() {
    waiting = false;
    for (const [id, lines] of Object.entries(CHARTS)) chart(id, lines);
    circle();
    describe();
    const text = words();
    by("words").textContent = text;
    if (!going || performance.now() - spoken > 5000) {
      spoken = performance.now();
      by("live").textContent = text;
      for (const picture of document.querySelectorAll(".nl-charts svg")) {
        picture.setAttribute("aria-label", `${picture.previousElementSibling.textContent}, runs A and B. ${text}`);
      }
    }
  }

  // Controls -----------------------------------------------------------------------------------------

  form.addEventListener("input", ({ target }) => {
    const { name } = target;
    touched = disturbed = true;
    readouts();
    if (["lr", "decay", "other"].includes(name)) { // while it runs
      settings().forEach((one, run) => send("set", { run, key: name, value: one[name] }));
      address();
      describe();
      return;
    }
    experiment = null;
    if (name === "rule") fill(RULES[target.value].adam ? RATES.adam : RATES.sgd);
    start();
  });
  by("run").addEventListener("click", () => run(!going));
  by("again").addEventListener("click", start);
  by("speed").addEventListener("change", () => going && go());
  by("seed").addEventListener("click", () => {
    fields.seed.value = (Number(fields.seed.value) + 1) % 10000;
    touched = true;
    experiment = null;
    start();
  });
  for (const button of document.querySelectorAll("[data-try]")) {
    button.addEventListener("click", () => {
      touched = true;
      attempt(button.dataset.try);
    });
  }
  for (const button of document.querySelectorAll("[data-steps]")) {
    button.addEventListener("click", () => send("steps", { count: Number(button.dataset.steps) }));
  }
  for (const button of document.querySelectorAll("[data-act]")) {
    button.addEventListener("click", () => {
      const [what, value] = button.dataset.act.split(":");
      for (const run of by("target").value) send("act", { run: Number(run), what, value: Number(value) });
      marks.push(runs[0]?.done ?? 0);
      disturbed = true;
    });
  }
  document.addEventListener("visibilitychange", () => {
    if (going && document.hidden) send("pause");
    else if (going) go();
  });

  by("lab").hidden = false;
  by("still").hidden = !still;
  const given = Object.fromEntries(new URLSearchParams(location.hash.slice(1)));
  if (given.try in EXPERIMENTS) attempt(given.try);
  else {
    fill(given);
    start();
  }
})();
