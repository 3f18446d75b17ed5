// The lab's trainings, in double precision and without a page: a function, so that its text is a
// worker's program too. Rules, initial weights and averages are torch's; parameters have the names
// of `nl.mlp(32).module(...)`. tests/built/test_lab.py compares 50 steps of each rule with torch.
function nlLab() {
  "use strict";
  const INPUTS = 40, WIDTH = 32, CLASSES = 10, BATCH = 100, TRAIN = 4000, TEST = 1000;
  const EPS = 1e-30; // of a normalization and of Adam: practically 0, as exact exchanges need it
  const MU = 0.9, B1 = 0.9, B2 = 0.999;
  const KAPPA = (1 + B1) / (1 - B1);
  const TRAIL = 25, APART = 4; // directions kept, and steps between two of them

  // p and q: w times a goes with η times a^p and λ divided by a^q.
  const RULES = {
    sgd: { p: 2, q: 2 },
    momentum: { p: 2, q: 2 },
    nesterov: { p: 2, q: 2 },
    adam: { p: 1, q: 2, adam: true },
    adamw: { p: 1, q: 1, adam: true, decoupled: true },
    adamc: { p: 1, q: 1, adam: true, decoupled: true },
    cautious: { p: 1, q: 1, adam: true, decoupled: true },
    unit_norm: { p: 0, q: 0 },
  };

  function random(seed) { // mulberry32: uniform in [0, 1)
    let state = seed >>> 0;
    return () => {
      state = (state + 0x6d2b79f5) >>> 0;
      let z = Math.imul(state ^ (state >>> 15), state | 1);
      z ^= z + Math.imul(z ^ (z >>> 7), z | 61);
      return ((z ^ (z >>> 14)) >>> 0) / 4294967296;
    };
  }

  // One printable character is one value in tenths: "P" is 0.
  function decode(text) {
    const images = Float64Array.from(text.x, (letter) => (letter.charCodeAt(0) - 80) / 10);
    return { images, labels: Uint8Array.from(text.y, Number) };
  }

  // Matrices, row by row ---------------------------------------------------------------------------

  // z = x wᵀ for x (n, k), w (o, k) and even n and o: two rows by two at a time.
  function product(x, w, z, n, k, o) {
    for (let i = 0; i < n; i += 2) {
      for (let j = 0; j < o; j += 2) {
        let s = 0, t = 0, u = 0, v = 0;
        for (let a = i * k, b = j * k, end = a + k; a < end; a++, b++) {
          const x0 = x[a], x1 = x[a + k], w0 = w[b], w1 = w[b + k];
          s += x0 * w0;
          t += x0 * w1;
          u += x1 * w0;
          v += x1 * w1;
        }
        const at = i * o + j;
        z[at] = s;
        z[at + 1] = t;
        z[at + o] = u;
        z[at + o + 1] = v;
      }
    }
  }

  const [across, down] = [new Float64Array(BATCH * INPUTS), new Float64Array(BATCH * INPUTS)];
  function transpose(x, n, k, into) {
    for (let i = 0; i < n; i++) for (let j = 0; j < k; j++) into[j * n + i] = x[i * k + j];
    return into;
  }

  // For z = x wᵀ: dw = dzᵀ x, and dx = dz w unless it is null.
  function backward(dz, x, w, dw, dx, n, k, o) {
    product(transpose(dz, n, o, across), transpose(x, n, k, down), dw, o, n, k);
    if (dx) product(dz, transpose(w, o, k, down), dx, n, o, k);
  }

  // The sum of each column of d, or of d times hat.
  function columns(d, into, count, hat = null) {
    into.fill(0);
    for (let at = 0; at < d.length; at += count) {
      for (let c = 0; c < count; c++) into[c] += hat ? d[at + c] * hat[at + c] : d[at + c];
    }
  }

  const dot = (a, b, from = 0, to = a.length) => {
    let sum = 0;
    for (let i = from; i < to; i++) sum += a[i] * b[i];
    return sum;
  };
  const norm = (a, from, to) => Math.sqrt(dot(a, a, from, to));
  const scale = (a, factor, from = 0, to = a.length) => {
    for (let i = from; i < to; i++) a[i] *= factor;
  };

  // The network: 40-32-32-10 ---------------------------------------------------------------------

  class Network {
    constructor(kind, seed) {
      this.kind = kind; // "batch", "layer" or "none"
      this.parameters = [];
      const next = random(seed);
      const add = (name, rows, columns, start, hidden = false) => {
        const value = Float64Array.from({ length: rows * columns }, start);
        const zeros = () => new Float64Array(value.length);
        const one = { name, rows, columns, value, hidden, gradient: zeros(), m: zeros(), v: zeros() };
        this.parameters.push(one);
        return one;
      };
      const uniform = (fanIn) => () => (2 * next() - 1) / Math.sqrt(fanIn);
      this.layers = [INPUTS, WIDTH].map((inputs, i) => {
        const layer = { inputs, weight: add(`linear${i + 1}.weight`, WIDTH, inputs, uniform(inputs), true) };
        if (kind === "none") {
          layer.shift = add(`linear${i + 1}.bias`, 1, WIDTH, uniform(inputs));
        } else {
          layer.gain = add(`norm${i + 1}.weight`, 1, WIDTH, () => 1);
          layer.shift = add(`norm${i + 1}.bias`, 1, WIDTH, () => 0);
        }
        for (const name of ["z", "hat", "out", "dz"]) layer[name] = new Float64Array(BATCH * WIDTH);
        layer.mean = new Float64Array(WIDTH);
        layer.variance = new Float64Array(WIDTH).fill(1);
        layer.root = new Float64Array(Math.max(BATCH, WIDTH));
        return layer;
      });
      this.head = add("head.weight", CLASSES, WIDTH, uniform(WIDTH));
      this.bias = add("head.bias", 1, CLASSES, uniform(WIDTH));
      this.logits = new Float64Array(BATCH * CLASSES);
    }

    // Groups of entries that are normalized together: channels over the batch, or images.
    groups() {
      return this.kind === "batch" ? [WIDTH, BATCH, 1, WIDTH] : [BATCH, WIDTH, WIDTH, 1];
    }

    // hat = z without its mean, over its standard deviation; running averages for the test images.
    normalize({ z, hat, root, mean, variance }, training) {
      const [groups, count, stride, step] = this.groups(), batch = this.kind === "batch";
      for (let g = 0; g < groups; g++) {
        const start = g * stride, end = start + count * step;
        let middle = 0, spread = 0;
        if (batch && !training) {
          middle = mean[g];
          spread = variance[g];
        } else {
          for (let i = start; i < end; i += step) middle += z[i];
          middle /= count;
          for (let i = start; i < end; i += step) {
            const far = z[i] - middle;
            spread += far * far;
          }
          spread /= count;
          if (batch) {
            mean[g] += 0.1 * (middle - mean[g]);
            variance[g] += 0.1 * (spread * count / (count - 1) - variance[g]);
          }
        }
        root[g] = 1 / Math.sqrt(spread + EPS);
        for (let i = start; i < end; i += step) hat[i] = (z[i] - middle) * root[g];
      }
    }

    forward(x, training) {
      for (const layer of this.layers) {
        const { z, hat, out, gain, shift } = layer;
        product(x, layer.weight.value, z, BATCH, layer.inputs, WIDTH);
        if (gain) this.normalize(layer, training);
        for (let i = 0; i < BATCH; i++) {
          for (let c = 0, at = i * WIDTH; c < WIDTH; c++, at++) {
            const a = (gain ? gain.value[c] * hat[at] : z[at]) + shift.value[c];
            out[at] = a > 0 ? a : 0;
          }
        }
        x = out;
      }
      product(x, this.head.value, this.logits, BATCH, WIDTH, CLASSES);
      for (let i = 0; i < this.logits.length; i++) this.logits[i] += this.bias.value[i % CLASSES];
    }

    // The loss of a batch, and all gradients.
    gradients(x, labels) {
      this.forward(x, true);
      const { logits } = this, [first, last] = this.layers;
      let loss = 0;
      for (let i = 0; i < BATCH; i++) { // logits become their gradient
        const start = i * CLASSES, end = start + CLASSES, right = start + labels[i];
        let top = -Infinity, sum = 0;
        for (let at = start; at < end; at++) top = Math.max(top, logits[at]);
        for (let at = start; at < end; at++) sum += Math.exp(logits[at] - top);
        loss += (top + Math.log(sum) - logits[right]) / BATCH;
        for (let at = start; at < end; at++) logits[at] = Math.exp(logits[at] - top) / sum / BATCH;
        logits[right] -= 1 / BATCH;
      }
      columns(logits, this.bias.gradient, CLASSES);
      backward(logits, last.out, this.head.value, this.head.gradient, last.dz, BATCH, WIDTH, CLASSES);
      for (const [layer, input, below] of [[last, first.out, first.dz], [first, x, null]]) {
        const { weight, dz, hat, out, gain, shift } = layer;
        for (let i = 0; i < dz.length; i++) if (out[i] <= 0) dz[i] = 0;
        columns(dz, shift.gradient, WIDTH);
        if (gain) {
          columns(dz, gain.gradient, WIDTH, hat);
          this.through(layer);
        }
        backward(dz, input, weight.value, weight.gradient, below, BATCH, layer.inputs, WIDTH);
      }
      return loss;
    }

    // The gradient of z from that of γ hat + β.
    through({ dz, hat, gain, root }) {
      for (let i = 0; i < dz.length; i++) dz[i] *= gain.value[i % WIDTH];
      const [groups, count, stride, step] = this.groups();
      for (let g = 0; g < groups; g++) {
        const start = g * stride, end = start + count * step;
        let mean = 0, along = 0;
        for (let i = start; i < end; i += step) {
          mean += dz[i] / count;
          along += dz[i] * hat[i] / count;
        }
        for (let i = start; i < end; i += step) dz[i] = root[g] * (dz[i] - mean - hat[i] * along);
      }
    }

    // The share of test images that are not recognised.
    error({ images, labels }) {
      let wrong = 0;
      for (let at = TRAIN; at < TRAIN + TEST; at += BATCH) {
        this.forward(images.subarray(at * INPUTS, (at + BATCH) * INPUTS), false);
        for (let i = 0; i < BATCH; i++) {
          const start = i * CLASSES, own = this.logits[start + labels[at + i]];
          let best = true;
          for (let c = 0; c < CLASSES; c++) best &&= own >= this.logits[start + c];
          if (!best) wrong++;
        }
      }
      return wrong / TEST;
    }
  }

  // Update rules -----------------------------------------------------------------------------------

  function factor(schedule, done) { // of the learning rate, when a share of the steps is done
    if (schedule === "step") return done < 0.5 ? 1 : done < 0.75 ? 0.1 : 0.01;
    return schedule === "linear" ? 1 - done : 1;
  }

  // One step of a parameter; returns the share of ‖w‖² that is decayed, 1 but for cautious decay.
  function update(name, parameter, lr, decay, step) {
    const { value: w, gradient: g, m, v } = parameter, { adam, decoupled } = RULES[name];
    const first = 1 - B1 ** step, second = 1 - B2 ** step;
    let decayed = 0, whole = 0;
    for (let i = 0; i < w.length; i++) {
      const d = decoupled ? g[i] : g[i] + decay * w[i];
      if (!adam) {
        if (name !== "sgd") m[i] = MU * m[i] + d;
        w[i] -= lr * (name === "sgd" ? d : name === "nesterov" ? d + MU * m[i] : m[i]);
        continue;
      }
      m[i] += (1 - B1) * (d - m[i]);
      v[i] = B2 * v[i] + (1 - B2) * d * d;
      const u = m[i] / first / (Math.sqrt(v[i] / second) + EPS);
      const masked = name === "cautious" && u * w[i] < 0;
      whole += w[i] * w[i];
      if (!masked) decayed += w[i] * w[i];
      if (decoupled && !masked) w[i] *= 1 - lr * decay;
      w[i] -= lr * u;
    }
    return adam && whole ? decayed / whole : 1;
  }

  function project(parameter, byRow) {
    const { value, rows, columns } = parameter, size = byRow ? columns : rows * columns;
    for (let at = 0; at < value.length; at += size) {
      scale(value, 1 / norm(value, at, at + size), at, at + size);
    }
  }

  // What the balance of growth and decay predicts for a vector of d entries with unit gradient G,
  // as `normlib.theory` does: its norm, the angle a step turns it, and the relaxation time.
  function balance(name, lr, decay, G, d) {
    const product = lr * decay, unknown = { norm: NaN, angle: NaN, time: NaN };
    if (!(product > 0)) return unknown;
    if (name === "sgd" || name === "momentum" || name === "nesterov") {
      const mu = name === "sgd" ? 0 : MU, boost = name === "nesterov" ? 1 + 2 * mu - 2 * mu ** 3 : 1;
      return {
        norm: (lr * G * G / (decay * (1 - mu) * (2 - product / (1 + mu)))) ** 0.25,
        angle: Math.sqrt(2 * product * boost / (1 + mu)),
        time: (1 - mu) / (4 * product),
      };
    }
    if (name === "adam") {
      const rest = Math.cbrt(lr * Math.sqrt(d) * G / (2 * decay));
      return {
        norm: rest,
        angle: Math.cbrt(2 * lr * product * d / G) / Math.sqrt(KAPPA),
        time: G / (3 * product * Math.sqrt(d) * rest),
      };
    }
    if (name === "unit_norm") return unknown;
    const angle = Math.sqrt(2 * product / KAPPA);
    return { norm: Math.sqrt(lr * d / (2 * decay)), angle, time: 1 / (2 * product) };
  }

  // A training -----------------------------------------------------------------------------------

  const START = {
    rule: "momentum", norm: "batch", lr: 0.1, decay: 0.005, other: 0.05, schedule: "constant",
    steps: 2000, seed: 0, scale: 1,
  };

  class Training {
    constructor(settings, data) {
      Object.assign(this, START, settings);
      this.data = data;
      this.network = new Network(this.norm, this.seed);
      this.hidden = this.network.layers.map((layer) => layer.weight);
      this.next = random(this.seed + 1000);
      this.order = Uint16Array.from({ length: TRAIN }, (_, i) => i);
      this.x = new Float64Array(BATCH * INPUTS);
      this.labels = new Uint8Array(BATCH);
      this.done = 0;
      this.trail = [];
      this.layers = this.hidden.map(() => ({ G: NaN, share: NaN }));
      for (const weight of this.hidden) {
        scale(weight.value, this.scale);
        if (this.rule === "unit_norm") project(weight, this.norm === "batch");
      }
      this.clear();
    }

    clear() { // the sums over the steps since the last point
      this.sum = { count: 0, loss: 0, angles: this.hidden.map(() => 0) };
    }

    batch() {
      const at = (this.done * BATCH) % TRAIN;
      if (at === 0) {
        for (let i = TRAIN - 1; i > 0; i--) {
          const j = Math.floor(this.next() * (i + 1));
          [this.order[i], this.order[j]] = [this.order[j], this.order[i]];
        }
      }
      for (let i = 0; i < BATCH; i++) {
        const image = this.order[at + i];
        this.labels[i] = this.data.labels[image];
        this.x.set(this.data.images.subarray(image * INPUTS, (image + 1) * INPUTS), i * INPUTS);
      }
      return this.order.slice(at, at + BATCH);
    }

    // Learning rate and decay of the hidden weights at the coming step.
    rates() {
      const share = factor(this.schedule, this.done / this.steps);
      return [share * this.lr, this.decay * (this.rule === "adamc" ? share : 1), share];
    }

    step() {
      this.batch();
      const loss = this.network.gradients(this.x, this.labels), [lr, decay, share] = this.rates();
      const before = this.hidden.map((weight) => weight.value.slice());
      if (this.done % APART === 0) this.follow();
      this.done++;
      for (const parameter of this.network.parameters) {
        if (!parameter.hidden) {
          const name = this.rule === "unit_norm" ? "momentum" : this.rule;
          update(name, parameter, share * this.other, 0, this.done);
          continue;
        }
        const i = this.hidden.indexOf(parameter), layer = this.layers[i];
        const r = norm(parameter.value), G2 = dot(parameter.gradient, parameter.gradient) * r * r;
        layer.G = Math.sqrt(this.done === 1 ? G2 : 0.98 * layer.G ** 2 + 0.02 * G2);
        const decayed = update(this.rule, parameter, lr, decay, this.done);
        layer.share = this.done === 1 ? decayed : 0.98 * layer.share + 0.02 * decayed;
        if (this.rule === "unit_norm") project(parameter, this.norm === "batch");
        const after = norm(parameter.value);
        let chord = 0;
        for (let k = 0; k < before[i].length; k++) {
          chord += (before[i][k] / r - parameter.value[k] / after) ** 2;
        }
        this.sum.angles[i] += (2 * Math.asin(Math.min(1, Math.sqrt(chord) / 2))) ** 2;
      }
      this.sum.count++;
      this.sum.loss += loss;
      return loss;
    }

    // Keep the direction of the first unit's weights.
    follow() {
      const { value, columns } = this.hidden[0], w = value.slice(0, columns);
      scale(w, 1 / norm(w));
      this.trail.push(w);
      if (this.trail.length > TRAIL + 1) this.trail.shift();
    }

    // The kept directions, on the plane through the oldest and the newest.
    path() {
      const [first] = this.trail, last = this.trail.at(-1);
      if (!first) return [];
      const across = last.map((x, i) => x - dot(first, last) * first[i]), length = norm(across);
      return this.trail.map((w) => [dot(w, first), length > 1e-12 ? dot(w, across) / length : 0]);
    }

    // Means since the last point: what the pictures show, beside what the formulas predict.
    point(withError) {
      const [lr, decay] = this.rates(), { count, loss, angles } = this.sum;
      const { p } = RULES[this.rule], known = this.norm !== "none";
      const layers = this.hidden.map((weight, i) => {
        const { G, share } = this.layers[i], r = norm(weight.value);
        const rest = balance(this.rule, lr, decay * share, G, weight.value.length);
        return {
          norm: r, angle: Math.sqrt(angles[i] / count), effective: lr / r ** p,
          restNorm: known ? rest.norm : NaN, restAngle: known ? rest.angle : NaN,
        };
      });
      const error = withError ? this.network.error(this.data) : null;
      this.clear();
      return { step: this.done, loss: loss / count, error, layers };
    }

    // Interventions on the hidden weights, their rate and their decay.
    act(what, value) {
      if (what === "scale") for (const weight of this.hidden) scale(weight.value, value);
      if (what === "lr") this.lr *= value;
      if (what === "decay") [this.decay, this.kept] = this.decay ? [0, this.decay] : [this.kept ?? 0, 0];
      if (what === "exchange") {
        const { p, q, adam } = RULES[this.rule];
        this.lr *= value ** p;
        this.decay /= value ** q;
        for (const weight of p ? this.hidden : []) {
          scale(weight.value, value);
          scale(weight.m, 1 / value);
          if (adam) scale(weight.v, value ** -2);
        }
      }
    }
  }

  // The worker: trainings side by side, step by step ----------------------------------------------

  function serve(scope) {
    let data, trainings = [], plan = [], round, points, every, going = false, speed, allowance, last, timer;

    function advance() {
      const { done } = trainings[0];
      for (const event of plan) {
        if (event.step === done) trainings[event.run].act(event.what, event.value);
      }
      for (const training of trainings) training.step();
      if ((done + 1) % every === 0) {
        const withError = (done + 1) % (4 * every) === 0;
        points.push(trainings.map((training) => training.point(withError)));
      }
    }
    const finished = () => trainings[0].done >= trainings[0].steps;
    function report() {
      const runs = trainings.map((one) => ({
        path: one.path(), radius: norm(one.hidden[0].value, 0, INPUTS),
        lr: one.lr, decay: one.decay, done: one.done,
      }));
      scope.postMessage({ round, points, runs, finished: finished() });
      points = [];
    }
    function work() {
      const now = performance.now(), end = now + 40;
      const most = Math.max(1, speed / 5);
      allowance = speed === Infinity ? speed : Math.min(allowance + (now - last) * speed / 1000, most);
      last = now;
      while (allowance >= 1 && !finished() && performance.now() < end) {
        advance();
        allowance--;
      }
      if (finished()) going = false;
      report();
      if (going) timer = setTimeout(work, speed === Infinity ? 0 : 40);
    }
    const orders = {
      data(message) { data = decode(message.text); },
      start(message) {
        trainings = message.runs.map((settings) => new Training(settings, data));
        ({ plan, round } = message);
        every = Math.max(1, Math.round(trainings[0].steps / 250));
        points = [];
        report();
      },
      go(message) {
        clearTimeout(timer);
        speed = message.speed;
        allowance = 0;
        last = performance.now();
        going = true;
        work();
      },
      pause() {
        going = false;
        clearTimeout(timer);
      },
      steps(message) {
        for (let i = 0; i < message.count && !finished(); i++) advance();
        report();
      },
      set({ run, key, value }) { trainings[run][key] = value; },
      act({ run, what, value }) {
        trainings[run].act(what, value);
        report();
      },
    };
    scope.onmessage = ({ data: message }) => orders[message.order](message);
  }

  return { RULES, START, Training, Network, balance, decode, factor, serve };
}
