"""How fast sweeps are, beside other ways to train the same networks. Writes one table.

    python tools/bench.py            print the tables
    python tools/bench.py --write    write them as book/performance.md too
    python tools/bench.py --quick    one round of the smallest cases, to see that it works
    python tools/bench.py --cuda     the sweeps on a CUDA device; with --write, as
                                     book/performance_cuda.md, which the page includes

Every figure is the median of paired runs: in each round all methods take their turn, so that a
machine whose speed drifts changes them together. Times are milliseconds per step and network.
"""

import argparse
import datetime
import functools
import json
import math
import platform
import statistics
import subprocess
import sys
import time
from pathlib import Path

import joblib
import numpy as np
import torch
import torch.nn.functional as F

import normlib as nl
from normlib.sweeps import training
from normlib.sweeps.spec import DTYPES
from normlib.sweeps.workers import cores, keeping_memory

ROOT = Path(__file__).resolve().parent.parent
LR, WEIGHT_DECAY, MOMENTUM, BATCH = 0.03, 1e-3, 0.9, 100


def random_images(shape, count=2000):
    """Images of a shape, where only the speed matters."""
    x, y = torch.randn(count, *shape), torch.randint(10, (count,))
    return nl.Dataset(x, y, x[:100], y[:100], 10, "random images")


# Ways to train k networks for some steps; each returns milliseconds per step and network -------


def finish():
    """A GPU works on while Python goes on; wait for it."""
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()


def grid(net, data, k, **settings):
    return nl.Sweep(
        net, data, nl.nesterov(MOMENTUM), lr=list(LR * (1 + 1e-3 * np.arange(k))),
        weight_decay=WEIGHT_DECAY, batch_size=BATCH, **settings,
    )  # fmt: skip


def sweep(net, data, k, steps, **settings):
    """As a part of a sweep trains and measures, in one process with all threads."""
    place = data.x_train.device
    spec = grid(net, data, k, device=str(place), **settings)
    data = data.to(place, DTYPES[spec.precision])
    start = time.perf_counter()
    for part in spec.parts(min(k, 32) if place.type == "cpu" else k):
        training.train(spec, part, data, stop=steps)
    finish()
    return 1e3 * (time.perf_counter() - start) / (steps * k)


def _part(spec, part, data, steps):
    torch.set_num_threads(1)
    with keeping_memory():
        training.train(spec, part, data, stop=steps)


def workers(net, data, k, steps, jobs=None):
    """The same in one process a core, as `nl.sweep` does it; starting them is not counted."""
    jobs = jobs or cores()
    spec, task = grid(net, data, k), joblib.delayed(_part)
    parts = list(spec.parts(min(32, math.ceil(k / jobs))))
    with joblib.Parallel(n_jobs=jobs) as parallel:
        parallel(task(spec, parts[0], data, 2) for _ in range(jobs))
        start = time.perf_counter()
        parallel(task(spec, part, data, steps) for part in parts)
    return 1e3 * (time.perf_counter() - start) / (steps * k)


def train_one(net, x, y, steps):
    """The plain PyTorch loop."""
    model = net.module(x.shape[1:], 10).to(x.device)
    optimizer = torch.optim.SGD(
        model.parameters(), LR, MOMENTUM, weight_decay=WEIGHT_DECAY, nesterov=True
    )
    batches = torch.randperm(len(x)).to(x.device).split(BATCH)
    batches = [b for b in batches if len(b) == BATCH]
    for step in range(steps):
        batch = batches[step % len(batches)]
        optimizer.zero_grad()
        F.cross_entropy(model(x[batch]), y[batch]).backward()
        optimizer.step()


def loop(net, data, k, steps):
    networks = min(k, 2)  # one after the other: the time per network does not depend on k
    start = time.perf_counter()
    for _ in range(networks):
        train_one(net, data.x_train, data.y_train, steps)
    finish()
    return 1e3 * (time.perf_counter() - start) / (steps * networks)


def _alone(net, x, y, steps):
    torch.set_num_threads(1)
    train_one(net, x, y, steps)


def processes(net, data, k, steps):
    """The plain loop in one process a core, one thread each; starting them is not counted."""
    jobs = cores()
    networks = jobs * max(1, min(2, k // jobs))
    with joblib.Parallel(n_jobs=jobs) as parallel:
        tasks = joblib.delayed(_alone)
        parallel(tasks(net, data.x_train, data.y_train, 2) for _ in range(jobs))
        start = time.perf_counter()
        parallel(tasks(net, data.x_train, data.y_train, steps) for _ in range(networks))
        seconds = time.perf_counter() - start
    return 1e3 * seconds / (steps * networks)


def vmap(net, data, k, steps):
    """torch.func: one stacked model, gradients by vmap."""
    place = data.x_train.device
    base = net.module(data.shape, 10)
    torch.func.replace_all_batch_norm_modules_(base)
    models = [net.module(data.shape, 10).to(place) for _ in range(k)]
    for model in models:
        torch.func.replace_all_batch_norm_modules_(model)
    parameters, _ = torch.func.stack_module_state(models)
    parameters = {name: p.detach() for name, p in parameters.items()}
    buffers = {name: torch.zeros_like(p) for name, p in parameters.items()}

    def loss(p, x, y):
        return F.cross_entropy(torch.func.functional_call(base, p, (x,)), y)

    gradient = torch.func.vmap(torch.func.grad(loss), in_dims=(0, None, None))
    batches = torch.randperm(len(data.x_train)).to(place).split(BATCH)
    start = time.perf_counter()
    for step in range(steps):
        batch = batches[step % (len(batches) - 1)]
        grads = gradient(parameters, data.x_train[batch], data.y_train[batch])
        for name, p in parameters.items():
            g = grads[name] + WEIGHT_DECAY * p
            buffers[name].mul_(MOMENTUM).add_(g)
            p.sub_(LR * (g + MOMENTUM * buffers[name]))
    finish()
    return 1e3 * (time.perf_counter() - start) / (steps * k)


def jax(net, data, k, steps):
    """JAX: vmap over networks, jit, scan over steps; compiling is not counted."""
    from tools import peers  # needs the extra `bench`

    settings = {"lr": LR, "weight_decay": WEIGHT_DECAY, "momentum": MOMENTUM, "batch": BATCH}
    milliseconds, compiling[net, k] = peers.train(net, data, k, steps, **settings)
    return milliseconds


compiling: dict = {}  # seconds, by network and K


# A tracker's cost --------------------------------------------------------------------------------


def tracked(pairs, size=64, make=torch.optim.SGD):
    """Milliseconds of a step of ResNet-18, and what measuring it adds, as medians.

    One training whose steps are measured and not measured in turn, so that each pair has the
    machine at the same speed. A step that is not measured costs two calls of Python functions.
    """
    from torchvision.models import resnet18  # nothing else here needs torchvision

    model = resnet18(num_classes=10)
    optimizer = make(model.parameters(), lr=LR, weight_decay=WEIGHT_DECAY)
    x, y = torch.randn(8, 3, size, size), torch.randint(10, (8,))
    times = []
    with nl.track(optimizer, model, record_every=2):
        for _ in range(2 * pairs + 4):
            start = time.perf_counter()
            optimizer.zero_grad()
            F.cross_entropy(model(x), y).backward()
            optimizer.step()
            times.append(1e3 * (time.perf_counter() - start))
    measured, plain = np.reshape(times[4:], (pairs, 2)).T  # the first four are not counted
    return np.median(plain), np.median(measured - plain)


# The lab -----------------------------------------------------------------------------------------

STEPS_OF_THE_LAB = """([source, text]) => {
  const { Training, decode } = new Function(`${source}; return nlLab;`)()();
  const training = new Training({}, decode(text));
  for (let i = 0; i < 100; i++) training.step();
  const start = performance.now();
  for (let i = 0; i < 1000; i++) training.step();
  return 1e6 / (performance.now() - start);
}"""
LONGEST_TASK = """() => new Promise((done) => {
  let longest = 0;
  const see = (list) => list.getEntries().forEach((one) => {
    longest = Math.max(longest, one.duration);
  });
  new PerformanceObserver(see).observe({ type: "longtask", buffered: true });
  document.querySelector("#nl-speed").value = "Infinity";
  document.querySelector("#nl-run").click();
  setTimeout(() => done(longest), 5000);
})"""


def lab():
    """Steps a second of one training in headless Chromium, and the page's longest task in ms."""
    from tools.browser import installed, launch

    folder = ROOT / "book" / "_static" / "lab"
    text = (folder / "data.js").read_text(encoding="utf-8").split("=", 1)[1].strip(" ;\n")
    core = (folder / "core.js").read_text(encoding="utf-8")
    with launch(installed()) as browser:
        page = browser.new_page()
        speed = page.evaluate(STEPS_OF_THE_LAB, [core, json.loads(text)])
        page.goto((ROOT / "_build" / "html" / "book" / "lab.html").as_uri())
        longest = page.evaluate(LONGEST_TASK)
    return speed, longest


# Where the time goes -----------------------------------------------------------------------------

GROUPS = {
    "convolutions, forward": ("mkldnn_convolution", "convolution"),
    "convolutions, backward": ("mkldnn_convolution_backward", "convolution_backward"),
    "batch norm, forward": ("native_batch_norm",),
    "batch norm, backward": ("native_batch_norm_backward",),
    "ReLU and its backward": ("relu_", "clamp_min_", "threshold_backward"),
    "matrix products": ("mm", "bmm", "baddbmm", "addmm", "baddbmm_"),
    "copies to another layout": ("copy_", "clone", "contiguous"),
    "fills with zero": ("zero_", "fill_"),
}


def profiled(net, data, k, steps=20):
    """Milliseconds a step and network, one thread, by groups of torch's operations."""
    spec = grid(net, data, k, record_every=100)
    part = next(iter(spec.parts(k)))
    activities = [torch.profiler.ProfilerActivity.CPU]
    with training.threads(1), keeping_memory():
        training.train(spec, part, data, stop=3)
        with torch.profiler.profile(activities=activities) as profile:
            training.train(spec, part, data, stop=steps)
    found = dict.fromkeys([*GROUPS, "everything else"], 0.0)
    for event in profile.key_averages():
        name = event.key.removeprefix("aten::")
        group = next((group for group, names in GROUPS.items() if name in names), "everything else")
        found[group] += event.self_cpu_time_total / (1e3 * steps * k)
    return found


def copying(megabytes=8):
    """Bytes a second that one thread reads and writes in a copy of such a size."""
    a = torch.zeros(megabytes * 2**18)
    b = torch.empty_like(a)
    with training.threads(1):
        return 2 * megabytes * 2**20 / timed(lambda: b.copy_(a))


# A reader's first result -------------------------------------------------------------------------


def first_result():
    """Seconds of the README's first example in a process of its own, torch's import included."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    code = text.split("```python\n", 1)[1].split("```", 1)[0]
    start = time.perf_counter()
    subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
    return time.perf_counter() - start


# Importing ---------------------------------------------------------------------------------------


def importing(statement):
    """Seconds that a statement takes in a process of its own that has torch already."""
    code = (
        "import time, torch; start = time.perf_counter();"
        f"{statement}; print(time.perf_counter() - start)"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return float(run.stdout)


# The floor ---------------------------------------------------------------------------------------


def forward(net, shape):
    """Floating point operations of each layer's products, one network and minibatch."""
    model, found = net.module(shape, 10), []

    def count(module, inputs, output):
        if isinstance(module, torch.nn.Conv2d | torch.nn.Linear):
            fan_in = module.weight[0].numel()
            found.append(2 * fan_in * output.numel())

    for module in model:
        module.register_forward_hook(count)
    model(torch.zeros(BATCH, *shape))
    return found


def arithmetic(net, shape):
    """Floating point operations of one step: forward, and twice that backward, less ∂/∂input."""
    found = forward(net, shape)
    return 3 * sum(found) - found[0]


def timed(action, times=20):
    """Median time of an action, when it is warm."""
    found = []
    for _ in range(times + 5):
        finish()
        start = time.perf_counter()
        action()
        finish()
        found.append(time.perf_counter() - start)
    return statistics.median(found[5:])


def matmul_speed(size=1024, device="cpu", dtype=torch.float32):
    """Floating point operations a second of large matrix products here, in single precision."""
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    return 2 * size**3 / timed(lambda: a @ b)


# Tables ------------------------------------------------------------------------------------------


def paired(methods, rounds):
    """Median of each method's time over rounds in which all take their turn."""
    for method in methods.values():
        method()  # not counted
    times = {name: [] for name in methods}
    for _ in range(rounds):
        for name, method in methods.items():
            times[name].append(method())
    return times


def ratio(times, other, ours="sweep"):
    return statistics.median(b / a for a, b in zip(times[ours], times[other], strict=True))


def memory(k, epochs=1, arguments=""):
    """Peak memory of a sweep of k ConvNets in a process of its own, MB above an idle one."""
    code = (
        "import threading, time, numpy as np, psutil, normlib as nl; data = nl.mnist1d();"
        "process = psutil.Process(); sizes = [process.memory_info().rss];"
        "watch = lambda: [(sizes.append(process.memory_info().rss), time.sleep(0.005))"
        " for _ in iter(int, 1)];"
        "threading.Thread(target=watch, daemon=True).start();"
        "nl.sweep(nl.convnet(), data, nl.nesterov(), progress=False,"
        f"lr=list(0.001 * np.arange(1, {k} + 1)), epochs={epochs}, {arguments});"
        "print(max(sizes) - sizes[0])"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return int(run.stdout) / 1024**2


PAGE = """# Performance

Sweeps train many networks side by side as one wide network. This page says what that gives on one
machine. It is written by `make bench`; every figure is the median of paired runs, in which all
methods take their turn in each round. Times are **milliseconds per step and network**, minibatch
100, Nesterov momentum.

- **sweep**: K networks as one in one process with all threads, in single precision and with the
  measurements of `nl.sweep`, without the evaluation at its end (as for all methods); **bfloat16**:
  the same with `precision="bfloat16"`.
- **workers**: K networks in one process a core with one thread each, as `nl.sweep` does it for
  sweeps that are worth it; the start of the processes is not counted.
- **loop**: the plain PyTorch loop, one network after the other, all threads.
- **processes**: the plain loop in one process a core, one thread each (joblib); the start of the
  processes is not counted.
- **vmap**: `torch.func.vmap` over stacked parameters, without running averages.
- **JAX**: `vmap` over networks, `jit` and `scan` over steps, without running averages; compiling,
  one to two seconds, is not counted.
- **floor**: the time that the multiplications and additions alone would take at the speed of
  matrix products of 1024 × 1024 with all threads, measured in every round; **of the floor**: that
  over the time with workers.

{tables}

## What bounds it

With few networks, the time is that of starting some hundred and fifty small operations a step,
about ten microseconds each, whatever their size.

With many it is, in the ConvNet, the products of small matrices (the profile above). The grouped
convolutions between hidden layers multiply 25 × 75; torch's kernels want channels in multiples of
sixteen, and backward the stride of 2 leaves gaps. The rest is many passes over arrays of 3 to 6
megabytes.

What made the difference on a CPU:

- The channels-last layout in every operation. With one input channel torch leaves it, so the first
  convolution is a matrix product here.
- The first layer's batch norm without reading its output. All networks see the same images, and
  mean and variance of a linear map follow from those of its few inputs (5 here), so the
  normalization is part of the weights. With the next line that took a fifth off a step.
- The gradient of a weight matrix as the faster of the two products that give it: with few inputs
  or outputs one order takes three to five times as long as the other.
- Workers keep memory from one step to the next instead of handing it back to the system, which
  would return it as pages of zeros: 10 to 25 %. Only processes of our own do; yours is left as it
  is.
- Updates that pass over memory once for each term.

What brought nothing, and is not here: the convolutions' gradient of their inputs as batched matrix
products, or as a forward convolution that makes even and odd places at once (faster alone, not in a
training); the backward pass of ReLU in place. Kernels padded to 32 channels make the convolutions
alone a third faster and all else a quarter larger; that was not tried in a training.
`torch.compile` is not offered: at K = 32 it brought between
nothing and 15 % on the ConvNet, for 6 to 30 seconds of compilation, and made the fully connected
network almost twice as slow.

In the fully connected network a third of the time is products of 100 × 100, which go nearly as fast
as large ones. The rest passes over memory: batch norm and ReLU, and the update of 15,000 weights
a network for 100 images, three terms of 2 megabytes each at K = 32. Networks for 32 × 32 images
with 64 channels are bound by the products themselves; side by side they gain nothing on a CPU.

## On a GPU

```{{include}} performance_cuda.md
```

What bounds it there. With few networks the time is that of starting some 150 operations a step
from Python, about 3 milliseconds, whatever K is: so many networks side by side cost little more
than one, and JAX, which compiles all steps into one program, is far ahead of everything that runs
under Python. With many narrow networks the convolutions decide. cuDNN computes the gradient of a
grouped convolution's input group by group; with that a step of 512 ConvNets took 73 milliseconds.
As one batched matrix product over all windows it takes 4.6. With 64 channels cuDNN is faster, and
is used. On a CPU the matrix product is slower than torch's grouped convolution (0.76 against 0.56
milliseconds a step and network, two threads, K = 32; in groups of eight networks that fit the
cache 0.94), so it is not used there. CUDA graphs were not tried.

Every chapter but the tenth ran on that GPU with its checks. In double precision sweeps agree with
the CPU to 10⁻⁸ for ten update rules and batch, layer and weight norm. A sweep that asked for 128
networks side by side where there was memory for 32 found that out and went on with 32.

## Other engines

A part of a sweep is a task of its own. `n_jobs` computes parts in processes of one machine; `with
joblib.parallel_config(backend="dask")` or `"ray"` around the call hands them to a cluster (the
extra `cluster`); with several GPUs they take parts in turn. The results are the same bits, as long
as a part has the same number of threads. What is finished stays in the folder `checkpoint_dir`,
which all must see, and the same call computes the rest.

On paper, the full-size CIFAR-10 grids: 385 networks of 15,000 steps, eleven parts of 35. A step of
32 such networks takes 5 milliseconds on an H100, so a part takes about a minute and a half, and
all a quarter of an hour, or two to three minutes on eight GPUs. (Five parts at once beside other
work had not ended after five minutes, when our time on that machine was over.) On the CPU of this
page a part was estimated at 3.3 hours of its two cores, so all take some 73 core-hours; as 97
tasks of at most four networks they take three quarters of an hour on a hundred cores. Beyond that
the number of tasks bounds it. A task carries the images (150 MB) to its worker once, and writes a
file of less than a megabyte.

## When to use something else

- **One network.** The plain loop is as fast.
- **Large networks.** From images of 32 × 32 and 64 channels on, networks side by side gain nothing
  on a CPU and a factor of ten on a GPU; one network that fills the device gains nothing there
  either.
- **Many small networks on a GPU, for long.** JAX with `vmap`, `jit` and `scan` is up to 26 times
  as fast (the table above). On a CPU it is the other way round for the ConvNet.
- **Other architectures.** `torch.func.vmap` takes any module; sweeps know two, and measure norms
  and angles as they go.
"""


CUDA = """Milliseconds per step and network. The floor is that of bfloat16 matrix products of
8192 × 8192. Each figure is the median of paired runs. JAX works in its default precision, and its
compilation is counted apart; vmap and the loop are torch's, in single precision.

{tables}
"""


def cuda(rounds, quick=False):
    """The same networks on a CUDA device, as Markdown."""
    device, run, lines = "cuda", functools.partial, []
    lines.append(f"{datetime.date.today()}; {torch.cuda.get_device_name()}, "
                 f"torch {torch.__version__}, {rounds} rounds.")  # fmt: skip
    images = random_images((3, 32, 32))
    cases = (
        ("ConvNet, 25 channels, MNIST-1D", nl.convnet(), nl.mnist1d(), (32, 512), 100),
        ("MLP, 100 units, MNIST-1D", nl.mlp(), nl.mnist1d(), (32, 512), 100),
        ("ConvNet, 64 channels, 3 × 32 × 32", nl.convnet(width=64), images, (32, 128), 30),
    )
    for name, net, data, ks, steps in cases[:1] if quick else cases:
        there, operations = data.to(device, torch.float32), arithmetic(net, data.shape)
        lines += ["", f"**{name}.**", ""]
        lines += ["| K | sweep | bfloat16 | loop | vmap | JAX | floor | JAX compiles, s |"]
        lines += ["|---" * 8 + "|"]
        for k in ks[:1] if quick else ks:
            methods = {
                "sweep": run(sweep, net, there, k, steps),
                "bfloat16": run(sweep, net, there, k, steps, precision="bfloat16"),
                "loop": run(loop, net, there, k, steps),
                "vmap": run(vmap, net, there, k, max(5, steps // 10)),
                "jax": run(jax, net, data, k, steps),
                "floor": lambda operations=operations: (
                    1e3 * operations / matmul_speed(8192, device, torch.bfloat16)
                ),
            }
            middle = [statistics.median(t) for t in paired(methods, rounds).values()]
            lines.append(f"| {k} | " + " | ".join(f"{t:.3g}" for t in middle)
                         + f" | {compiling[net, k]:.0f} |")  # fmt: skip
            print(lines[-1], flush=True)
    return CUDA.format(tables="\n".join(lines))


AUDITED = ("ResNet-50, 64 px", "ViT-B/16, 64 px", "GPT-2 small, 64 tokens")


def audited(name: str) -> tuple[torch.nn.Module, float]:
    """A model at full size, and the seconds that its audit takes."""
    torch.manual_seed(0)
    loss, labels = None, torch.arange(8)
    if name.startswith("GPT"):
        import transformers

        config = transformers.GPT2Config(n_positions=64, use_cache=False)
        model = transformers.GPT2LMHeadModel(config)
        ids = torch.randint(0, 50257, (8, 64))
        inputs, labels, loss = {"input_ids": ids, "labels": ids}, None, lambda out: out.loss
    else:
        inputs = torch.randn(8, 3, 64, 64)
        from torchvision import models as zoo

        model = zoo.resnet50() if "ResNet" in name else zoo.vit_b_16(image_size=64)
    start = time.perf_counter()
    nl.audit(model, inputs, labels, loss)
    return model, time.perf_counter() - start


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--write", action="store_true")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--cuda", action="store_true")
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    quick, run = arguments.quick, functools.partial
    rounds = 1 if quick else arguments.rounds
    if arguments.cuda:
        page = cuda(rounds, quick)
        print(page)
        if arguments.write:
            (ROOT / "book" / "performance_cuda.md").write_text(page, encoding="utf-8")
        return
    lines = []

    def say(line=""):
        print(line, flush=True)
        lines.append(line)

    data = nl.mnist1d()
    say(f"{datetime.date.today()}; {platform.machine()}, {torch.get_num_threads()} threads, "
        f"torch {torch.__version__}; {rounds} rounds.")  # fmt: skip
    cases = (
        ("ConvNet, 25 channels, MNIST-1D", nl.convnet(), data, (1, 8, 32, 128), 60),
        ("MLP, 100 units, MNIST-1D", nl.mlp(), data, (1, 8, 32, 128), 60),
        ("ConvNet, 64 channels, images of 3 × 32 × 32", nl.convnet(width=64),
         random_images((3, 32, 32)), (1, 4), 20),
    )  # fmt: skip
    for name, net, images, ks, steps in cases:
        operations = arithmetic(net, images.shape)
        say()
        say(f"**{name}.** {operations / 1e6:.1f} million operations a step and network.")
        say()
        say("| K | sweep | workers | bfloat16 | loop | processes | vmap | JAX | floor |")
        say("|---" * 9 + "|")
        compared = []
        for k in ks[:1] if quick else ks:
            n = max(5, steps // 20) if quick else steps
            methods = {
                "sweep": run(sweep, net, images, k, n),
                "workers": run(workers, net, images, k, n),
                "bfloat16": run(sweep, net, images, k, n, precision="bfloat16"),
                "loop": run(loop, net, images, k, n),
                "processes": run(processes, net, images, k, n),
                "vmap": run(vmap, net, images, k, max(5, n // 10)),
                "jax": run(jax, net, images, k, max(5, n // 10)),
                "floor": lambda operations=operations: 1e3 * operations / matmul_speed(),
            }
            times = paired(methods, rounds)
            middle = {method: statistics.median(t) for method, t in times.items()}
            ratios = [ratio(times, "sweep", "workers")]
            ratios += [
                ratio(times, other, "workers") for other in ("loop", "processes", "vmap", "jax")
            ]
            ratios.append(ratio(times, "loop", "bfloat16"))
            say(f"| {k} | " + " | ".join(f"{t:.2f}" for t in middle.values()) + " |")
            compared.append(f"| {k} | " + " | ".join(f"{r:.1f}" for r in ratios)
                            + f" | {100 * ratio(times, 'floor', 'workers'):.0f} % |")  # fmt: skip
        say()
        say(
            "| K | sweep/workers | loop/workers | processes/workers | vmap/workers | JAX/workers | "
            "loop/bfloat16 | of the floor |"
        )
        say("|---" * 8 + "|")
        for line in compared:
            say(line)

    say()
    say("**How it grows**, ConvNets on MNIST-1D, single precision.")
    say()
    say("| what | | | |")
    say("|---|---|---|---|")
    settings = [
        ("networks K", {k: run(sweep, nl.convnet(), data, k, 80) for k in (16, 64, 128)}),
        ("channels, K = 16", {w: run(sweep, nl.convnet(w), data, 16, 80) for w in (12, 25, 50)}),
        ("training images, K = 16",
         {n: run(sweep, nl.convnet(), random_images((1, 1, 40), n), 16, 80)
          for n in (1000, 4000, 16000)}),
    ]  # fmt: skip
    several = {f"{n}": run(workers, nl.convnet(), data, 64, 80, jobs=n) for n in (1, cores())}
    every = {
        f"every {n}": run(sweep, nl.convnet(), data, 32, 80, record_every=n) for n in (1, 10, 80)
    }
    settings += [("worker processes, K = 64", several), ("steps recorded, K = 32", every)]
    for what, methods in settings[:1] if quick else settings:
        times = paired(methods, rounds)
        middle = [f"{value}: {statistics.median(t):.2f} ms" for value, t in times.items()]
        say(f"| {what} | {' | '.join(middle)} |")
    sizes = (8,) if quick else (8, 16, 32)
    peaks = {k: memory(k, arguments=f"chunk_size={k}") for k in sizes}
    middle = [f"{k}: {peak:.0f} MB" for k, peak in peaks.items()]
    say(f"| peak memory, networks side by side | {' | '.join(middle)} |")
    if not quick:
        slope = np.polyfit(list(peaks), list(peaks.values()), 1)[0]
        say()
        say(f"Memory grows by {slope:.1f} MB a network that stands in one chunk, and does not "
            f"depend on their number otherwise: a sweep of 54 networks with the default chunk "
            f"takes {memory(54):.0f} MB.")  # fmt: skip

    say()
    say("**Where a step's time goes**, ConvNet on MNIST-1D, K = 32, one thread, as torch's "
        "profiler has it.")  # fmt: skip
    say()
    say("| what | ms a step and network | share |")
    say("|---|---|---|")
    runs = [profiled(nl.convnet(), data, 8 if quick else 32) for _ in range(rounds)]
    parts = {group: statistics.median(found[group] for found in runs) for group in runs[0]}
    whole = sum(parts.values())
    for group, part in parts.items():
        say(f"| {group} | {part:.3f} | {100 * part / whole:.0f} % |")
    with training.threads(1):
        peak = matmul_speed()
    grouped = sum(forward(nl.convnet(), data.shape)[1:-1])  # neither the first nor the head
    say()
    say(f"One thread multiplies large matrices at {peak / 1e9:.0f} and copies 8 MB at "
        f"{copying() / 1e9:.0f} billion operations and bytes a second. The grouped convolutions go "
        f"forward at {grouped / parts['convolutions, forward'] / 1e6:.0f} and backward at "
        f"{2 * grouped / parts['convolutions, backward'] / 1e6:.0f} billion operations a "
        f"second.")  # fmt: skip
    say()
    say(f"**The README's first example**, 45 networks, from the start of Python to the end: "
        f"{statistics.median(first_result() for _ in range(1 if quick else 3)):.0f} "
        f"seconds.")  # fmt: skip
    say()
    say("**What `nl.track` adds** to training ResNet-18, batch 8 of 64 × 64 pixels, on this CPU.")
    say()
    say("| optimizer | milliseconds a step | a measured step adds | `record_every=10` adds |")
    say("|---|---|---|---|")
    for make in (torch.optim.SGD, torch.optim.AdamW):
        plain, added = tracked(2 if quick else 20 * rounds, make=make)
        say(f"| {make.__name__} | {plain:.0f} | {added:.0f} ms | {10 * added / plain:.1f} % |")
    say()
    say("**What `nl.audit` takes**, batch 8, groups along the whole network, on this CPU.")
    say()
    say("| model | parameters | seconds |")
    say("|---|---|---|")
    for name in AUDITED[: 1 if quick else None]:
        model, seconds = audited(name)
        size = sum(p.numel() for p in model.parameters()) / 1e6
        say(f"| {name} | {size:.0f} million | {seconds:.0f} |")
    say()
    speed, longest = lab()
    say(f"**The lab**, in headless Chromium: {speed:.0f} steps a second of one training; the "
        f"longest task on the page's own thread while two train as fast as they can, "
        f"{longest:.0f} ms.")  # fmt: skip
    say()
    say("**Importing**, beyond torch, in a process of its own.")
    say()
    say("| statement | seconds |")
    say("|---|---|")
    for statement in ("import normlib", "from normlib import audit", "from normlib import sweep"):
        middle = statistics.median(importing(statement) for _ in range(rounds))
        say(f"| `{statement}` | {middle:.2f} |")
    if arguments.write:
        page = PAGE.format(tables="\n".join(lines))
        (ROOT / "book" / "performance.md").write_text(page, encoding="utf-8")


if __name__ == "__main__":
    main()
