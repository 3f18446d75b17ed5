"""The networks of the benchmark in JAX: vmap over K of them, jit, scan over steps.

What a JAX user would write; an honest peer, not a port: the same layers, data, minibatches and
Nesterov steps, one compiled program. Needs the extra `bench`.
"""

import time

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from normlib.data import Dataset
from normlib.networks import Net


def initial(net: Net, data: Dataset, k: int) -> dict[str, jax.Array]:
    """The same start for all K, from torch's initialisation; parameters by the module's keys."""
    module = net.module(data.shape, data.classes)
    one = {name: p.detach().numpy() for name, p in module.named_parameters()}
    return {name: jnp.asarray(np.repeat(p[None], k, axis=0)) for name, p in one.items()}


def forward(net: Net, shape: tuple[int, ...], p: dict[str, jax.Array], x: jax.Array):
    """Logits of one network in training; batch norm by the batch, running averages left out."""
    for i, layer in enumerate(net.layers, start=1):
        w = p[f"{layer}.weight"]
        if w.ndim == 4:
            stride = [1 if side == 1 else 2 for side in w.shape[2:]]
            padding = [(side // 2, side // 2) for side in w.shape[2:]]
            kinds = ("NHWC", "OIHW", "NHWC")
            x = lax.conv_general_dilated(x, w, stride, padding, dimension_numbers=kinds)
        else:
            x = x.reshape(len(x), -1) @ w.T
        axes = tuple(range(x.ndim - 1))
        mean, var = x.mean(axes), x.var(axes)
        x = (x - mean) * lax.rsqrt(var + net.eps) * p[f"norm{i}.weight"] + p[f"norm{i}.bias"]
        x = jax.nn.relu(x)
    if x.ndim == 4:  # torch flattens (channels, height, width)
        x = x.transpose(0, 3, 1, 2)
    return x.reshape(len(x), -1) @ p["head.weight"].T + p["head.bias"]


def program(net: Net, data: Dataset, weight_decay: float, momentum: float):
    """A function of (parameters of K networks, rates, batches (steps, B)): trained parameters."""
    x, y = jnp.asarray(data.x_train.numpy()), jnp.asarray(data.y_train.numpy())
    x = x.transpose(0, 2, 3, 1)

    def loss(p, images, labels):
        logits = jax.nn.log_softmax(forward(net, data.shape, p, images))
        return -jnp.take_along_axis(logits, labels[:, None], 1).mean()

    def one(p, buffers, lr, images, labels):
        def moved(w, g, b):
            g = g + weight_decay * w
            b = momentum * b + g
            return w - lr * (g + momentum * b), b

        grads = jax.grad(loss)(p, images, labels)
        pairs = {name: moved(p[name], grads[name], buffers[name]) for name in p}
        return {n: w for n, (w, _) in pairs.items()}, {n: b for n, (_, b) in pairs.items()}

    many = jax.vmap(one, in_axes=(0, 0, 0, None, None))

    @jax.jit
    def train(p, lr, batches):
        def step(state, batch):
            return many(*state, lr, x[batch], y[batch]), None

        (p, _), _ = lax.scan(step, (p, jax.tree.map(jnp.zeros_like, p)), batches)
        return p

    return train


def train(
    net: Net, data: Dataset, k: int, steps: int,
    *, lr: float, weight_decay: float, momentum: float, batch: int,
) -> tuple[float, float]:  # fmt: skip
    """Milliseconds a step and network, and the seconds that compiling takes beforehand."""
    run, start = program(net, data, weight_decay, momentum), initial(net, data, k)
    rates = jnp.asarray(lr * (1 + 1e-3 * np.arange(k)), dtype=jnp.float32)
    order = np.random.default_rng(0).permutation(len(data.x_train))[
        : len(data.x_train) // batch * batch
    ]
    batches = jnp.asarray(np.resize(order.reshape(-1, batch), (steps, batch)))
    began = time.perf_counter()
    compiled = run.lower(start, rates, batches).compile()
    seconds = time.perf_counter() - began
    began = time.perf_counter()
    jax.block_until_ready(compiled(start, rates, batches))
    return 1e3 * (time.perf_counter() - began) / (steps * k), seconds
