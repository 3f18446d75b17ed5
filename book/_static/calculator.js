// The calculator of the page on practice. Its formulas are those of normlib.theory, which a test
// compares in a browser; the rest is the form, words for what they give, and the address.
const nlBalance = (rule, { lr, decay, beta = 0.9, beta2 = 0.99, G = NaN, d = NaN }) => {
  const x = lr * decay;
  if (rule === "sgd" || rule === "nesterov") {
    const boost = rule === "nesterov" ? 1 + 2 * beta - 2 * beta ** 3 : 1;
    const timescale = (1 - beta) / x;
    return { angle: Math.sqrt(2 * x * boost / (1 + beta)), timescale, relaxation: timescale / 4 };
  }
  if (rule === "adam") {
    const norm = Math.cbrt(lr * Math.sqrt(d) * G / (2 * decay));
    const timescale = G / (x * Math.sqrt(d) * norm);
    const s = Math.sqrt((1 - beta) / (1 + beta));
    return { angle: s * Math.cbrt(2 * lr * x * d / G), timescale, relaxation: timescale / 3 };
  }
  // Decay apart from the gradient: the angle needs only how alike neighbouring steps are.
  const alike = {
    adamw: () => (1 + beta) / (1 - beta),
    lion: () => 2 / (Math.PI * ((1 - beta) ** 2 + beta ** 2 * (1 - beta2) / (1 + beta2))),
    muon: () => 1 / (((1 - beta) * (1 + beta)) ** 2 + (beta * (1 - beta) * beta) ** 2 / (1 - beta ** 2)),
  }[rule]();
  return { angle: Math.sqrt(2 * x / alike), timescale: 1 / x, relaxation: 1 / (2 * x) };
};

(() => {
  "use strict";
  const form = document.getElementById("nl-calculator");
  if (!form) return;
  const fields = form.elements, out = document.getElementById("nl-calculated");
  const BETA = { adamw: 0.9, muon: 0.95, sgd: 0.9, nesterov: 0.9, lion: 0.9, adam: 0.9 };
  const POWER = { adam: 2 }; // of η in the product that counts

  const raised = (n) => [...String(n)].map((c) => "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"["-0123456789".indexOf(c)]).join("");
  const number = (x) => {
    if (x === 0 || (Math.abs(x) >= 1e-3 && Math.abs(x) < 1e7)) {
      return x.toLocaleString("en", { maximumSignificantDigits: Math.abs(x) >= 1000 ? 4 : 3 });
    }
    const [front, power] = x.toExponential(1).split("e");
    return `${Number(front)} · 10${raised(Number(power))}`;
  };

  function words(rule, one) {
    const { lr, decay, batch, size, steps } = one;
    const { angle, timescale, relaxation } = nlBalance(rule, one), epoch = size / batch;
    const needed = 3 * relaxation, power = POWER[rule] ?? 1;
    const kept = power === 2 ? "η²λ" : "ηλ";
    const lines = [];
    if (Number.isFinite(angle)) {
      lines.push(`<b>Angle:</b> at the balance each step turns the weights by ${number(angle)} rad, ${number(angle * 180 / Math.PI)}°.`);
      lines.push(`<b>Memory:</b> the weights average over about ${number(timescale)} steps, ${number(timescale / epoch)} epochs, ${number(timescale * batch)} examples or tokens.`);
      const share = needed / steps;
      lines.push(`<b>Start:</b> they forget the length they started with in about ${number(needed)} steps (three relaxation times), ${share < 1 ? `${number(100 * share)} % of this training` : `<b>${number(share)} times this training</b>: its start counts to the end, and λ matters less`}.`);
    } else {
      lines.push("Adam with L2 needs the unit gradient G and the number of entries d of a layer: <code>nl.track</code> prints both.");
    }
    lines.push(`<b>η doubled:</b> λ ${number(decay / 2 ** power)} keeps ${kept} and the same training, once the start is forgotten.`);
    if (power === 1) {
      lines.push(`<b>Batch doubled</b> at the same data: half as many steps, and the memory counted in examples doubles; λ ${number(2 * decay)} keeps it <i>(advice)</i>.`);
      lines.push(`<b>Data doubled</b> at the same η and batch: λ ${number(decay / 2)} keeps the memory's share of the training <i>(advice)</i>.`);
    }
    return lines.map((line) => `<li>${line}</li>`).join("");
  }

  function update(event) {
    const rule = fields.rule.value;
    if (event?.target === fields.rule) fields.beta.value = BETA[rule];
    for (const one of form.querySelectorAll("[data-only]")) one.hidden = !one.dataset.only.split(" ").includes(rule);
    form.querySelector("#nl-beta").textContent = ["sgd", "nesterov", "muon"].includes(rule) ? "momentum μ" : "β₁";
    const values = Object.fromEntries([...fields].filter((f) => f.type === "number").map((f) => [f.name, f.valueAsNumber]));
    const wrong = [...fields].find((f) => f.type === "number" && !f.closest("[hidden]") && !f.checkValidity());
    out.innerHTML = wrong ? `<li>${wrong.closest("label").querySelector("span").textContent}: ${wrong.validationMessage}</li>` : words(rule, values);
    if (event) history.replaceState(null, "", `#${new URLSearchParams(new FormData(form))}`);
  }

  for (const [name, value] of new URLSearchParams(location.hash.slice(1))) {
    const field = fields.namedItem(name), before = field?.value;
    if (!field) continue;
    field.value = value;
    if (!field.value) field.value = before; // a link from elsewhere
  }
  form.hidden = false;
  form.addEventListener("input", update);
  update();
})();
