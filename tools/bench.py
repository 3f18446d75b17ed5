"""How fast sweeps are, beside other ways to train the same networks. Writes one table.

    python tools/bench.py                 print the tables
    python tools/bench.py --write         write them into book/performance.md too
    python tools/bench.py --quick         one run of the smallest case, to see that it works

Every figure is the median of paired runs: in each round all methods take their turn, so that a
machine whose speed drifts changes them together. Times are milliseconds per step and network.
"""

import argparse
import datetime
import functools
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

ROOT = Path(__file__).resolve().parent.parent
LR, WEIGHT_DECAY, MOMENTUM, BATCH = 0.03, 1e-3, 0.9, 100


def random_images(shape, count=2000):
    """Images of a shape, where only the speed matters."""
    x, y = torch.randn(count, *shape), torch.randint(10, (count,))
    return nl.Dataset(x, y, x[:100], y[:100], 10, "random images")


# Ways to train k networks for some steps; each returns milliseconds per step and network -------


def sweep(net, data, k, steps, **settings):
    part = nl.Dataset(data.x_train, data.y_train, data.x_test[:100], data.y_test[:100], 10, "")
    per_epoch = len(data.x_train) // BATCH
    epochs = max(1, round(steps / per_epoch))
    start = time.perf_counter()
    nl.sweep(
        net, part, nl.nesterov(MOMENTUM), lr=list(LR * (1 + 1e-3 * np.arange(k))),
        weight_decay=WEIGHT_DECAY, epochs=epochs, batch_size=BATCH, progress=False,
        every=100, **settings,
    )  # fmt: skip
    return 1e3 * (time.perf_counter() - start) / (epochs * per_epoch * k)


def train_one(net, x, y, steps):
    """The plain PyTorch loop."""
    model = net.module(x.shape[1:], 10)
    optimizer = torch.optim.SGD(
        model.parameters(), LR, MOMENTUM, weight_decay=WEIGHT_DECAY, nesterov=True
    )
    batches = torch.randperm(len(x)).split(BATCH)
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
    return 1e3 * (time.perf_counter() - start) / (steps * networks)


def _alone(net, x, y, steps):
    torch.set_num_threads(1)
    train_one(net, x, y, steps)


def processes(net, data, k, steps):
    """The plain loop in one process a core, one thread each; starting them is not counted."""
    jobs = joblib.cpu_count(only_physical_cores=False)
    networks = max(jobs, min(k, 2 * jobs))
    with joblib.Parallel(n_jobs=jobs) as parallel:
        tasks = joblib.delayed(_alone)
        parallel(tasks(net, data.x_train, data.y_train, 2) for _ in range(jobs))
        start = time.perf_counter()
        parallel(tasks(net, data.x_train, data.y_train, steps) for _ in range(networks))
        seconds = time.perf_counter() - start
    return 1e3 * seconds / (steps * networks)


def vmap(net, data, k, steps):
    """torch.func: one stacked model, gradients by vmap."""
    base = net.module(data.shape, 10)
    torch.func.replace_all_batch_norm_modules_(base)
    models = [net.module(data.shape, 10) for _ in range(k)]
    for model in models:
        torch.func.replace_all_batch_norm_modules_(model)
    parameters, _ = torch.func.stack_module_state(models)
    parameters = {name: p.detach() for name, p in parameters.items()}
    buffers = {name: torch.zeros_like(p) for name, p in parameters.items()}

    def loss(p, x, y):
        return F.cross_entropy(torch.func.functional_call(base, p, (x,)), y)

    gradient = torch.func.vmap(torch.func.grad(loss), in_dims=(0, None, None))
    batches = torch.randperm(len(data.x_train)).split(BATCH)
    start = time.perf_counter()
    for step in range(steps):
        batch = batches[step % (len(batches) - 1)]
        grads = gradient(parameters, data.x_train[batch], data.y_train[batch])
        for name, p in parameters.items():
            g = grads[name] + WEIGHT_DECAY * p
            buffers[name].mul_(MOMENTUM).add_(g)
            p.sub_(LR * (g + MOMENTUM * buffers[name]))
    return 1e3 * (time.perf_counter() - start) / (steps * k)


# The floor ---------------------------------------------------------------------------------------


def arithmetic(net, shape):
    """Floating point operations of one step: forward, and twice that backward, less ∂/∂input."""
    model, found = net.module(shape, 10), []

    def count(module, inputs, output):
        if isinstance(module, torch.nn.Conv2d | torch.nn.Linear):
            fan_in = module.weight[0].numel()
            found.append(2 * fan_in * output.numel())

    for module in model:
        module.register_forward_hook(count)
    model(torch.zeros(BATCH, *shape))
    return 3 * sum(found) - found[0]


def matmul_speed():
    """Floating point operations a second of large single precision matrix products here."""
    a, b = torch.randn(1024, 1024), torch.randn(1024, 1024)
    for _ in range(5):
        a @ b
    times = []
    for _ in range(20):
        start = time.perf_counter()
        a @ b
        times.append(time.perf_counter() - start)
    return 2 * 1024**3 / statistics.median(times)


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


def memory(net_name, k):
    """Peak memory of a sweep of k networks in a process of its own, MB above an idle one."""
    code = (
        "import resource, sys; import numpy as np; import normlib as nl; data = nl.mnist1d();"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss; "
        f"nl.sweep(nl.{net_name}(), data, nl.nesterov(), lr=list(0.01 * np.arange(1, {k} + 1)), "
        f"epochs=1, chunk={k}, progress=False); "
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return int(run.stdout) / (1024 if sys.platform != "darwin" else 1024**2)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--write", action="store_true")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--cases", default="convnet,mlp,cifar")
    arguments = parser.parse_args()
    rounds = 1 if arguments.quick else arguments.rounds
    steps = 10 if arguments.quick else 80
    lines = []

    def say(line=""):
        print(line, flush=True)
        lines.append(line)

    speed = matmul_speed()
    threads = torch.get_num_threads()
    say(f"{datetime.date.today()}, {platform.machine()}, {threads} threads, "
        f"torch {torch.__version__}, matrix products at {speed / 1e9:.0f} GFLOP/s")  # fmt: skip
    data = nl.mnist1d()
    cases = [
        ("convnet", nl.convnet(), data, (1, 8, 32, 128)),
        ("mlp", nl.mlp(), data, (1, 8, 32, 128)),
    ]
    cases.append(("cifar", nl.convnet(width=64), random_images((3, 32, 32), 1000), (1, 4)))
    for name, net, images, ks in cases:
        if name not in arguments.cases:
            continue
        floor = 1e3 * arithmetic(net, images.shape) / speed
        say()
        say(f"**{name}**, batch {BATCH}; the arithmetic alone: {floor:.3f} ms")
        say()
        say("| K | sweep | bfloat16 | loop | processes | vmap | loop/sweep | processes/sweep "
            "| vmap/sweep | loop/bfloat16 | of the floor |")  # fmt: skip
        say("|---" * 11 + "|")
        for k in ks[:1] if arguments.quick else ks:
            n = steps if name != "cifar" else 20
            run = functools.partial
            methods = {
                "sweep": run(sweep, net, images, k, n * 2),
                "bfloat16": run(sweep, net, images, k, n * 2, precision="bfloat16"),
                "loop": run(loop, net, images, k, n),
                "processes": run(processes, net, images, k, n),
                "vmap": run(vmap, net, images, k, max(5, n // 4)),
            }
            times = paired(methods, rounds)
            middle = {name: statistics.median(t) for name, t in times.items()}
            say(f"| {k} | " + " | ".join(f"{t:.2f}" for t in middle.values())
                + f" | {ratio(times, 'loop'):.1f} | {ratio(times, 'processes'):.1f}"
                + f" | {ratio(times, 'vmap'):.1f} | {ratio(times, 'loop', 'bfloat16'):.1f}"
                + f" | {100 * floor / middle['sweep']:.0f} % |")  # fmt: skip


if __name__ == "__main__":
    main()
