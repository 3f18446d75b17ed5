"""A small decoder, tracked and measured by hand, under the optimizers that people train it with."""

import time

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import normlib as nl
from normlib import theory

STREAM = ("embed.weight", "mix.weight", "down.weight")


class Decoder(nn.Module):
    """One block, normalized before each part and at the end; no biases, ε nearly 0.

    What writes to the residual stream (`STREAM`) is scale-invariant together.
    """

    def __init__(self, width=16, words=11, dtype=torch.float64):
        super().__init__()
        self.embed = nn.Embedding(words, width)
        self.heads = nn.Linear(width, 3 * width, bias=False)
        self.mix = nn.Linear(width, width, bias=False)
        self.up = nn.Linear(width, 4 * width, bias=False)
        self.down = nn.Linear(4 * width, width, bias=False)
        self.last = nn.Linear(width, words, bias=False)
        self.to(dtype)

    def forward(self, tokens):
        h = self.embed(tokens)
        q, k, v = self.heads(F.rms_norm(h, h.shape[-1:], eps=1e-30)).chunk(3, -1)
        h = h + self.mix(F.scaled_dot_product_attention(q, k, v, is_causal=True))
        h = h + self.down(F.gelu(self.up(F.rms_norm(h, h.shape[-1:], eps=1e-30))))
        return self.last(F.rms_norm(h, h.shape[-1:], eps=1e-30))


OPTIMIZERS = {
    "AdamW": lambda p: torch.optim.AdamW(p, lr=3e-3, weight_decay=0.1),
    "SGD": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, weight_decay=0.01),
    "Muon": lambda p: torch.optim.Muon(p, lr=0.01, weight_decay=0.1),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_tracked_decoder_is_what_is_measured_by_hand(name):
    torch.manual_seed(0)
    model = Decoder()
    optimizer = OPTIMIZERS[name](list(model.parameters()))
    group = dict.fromkeys(STREAM, 1)
    rule = theory.sgd(0.9) if name == "SGD" else theory.adamw()
    tracker = nl.track(optimizer, model, groups=[group], rule=rule)
    tensors = dict(model.named_parameters())
    rows = {n: (n,) for n in tensors} | {"embed.weight + mix.weight + down.weight": STREAM}
    by_hand = {row: [] for row in rows}
    for _ in range(6):
        tokens = torch.randint(11, (4, 9))
        optimizer.zero_grad()
        F.cross_entropy(model(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten()).backward()

        def vectors(of):
            return {row: torch.cat([of(tensors[n]).detach().ravel().clone() for n in names])
                    for row, names in rows.items()}  # fmt: skip

        old, gradient = vectors(lambda p: p), vectors(lambda p: p.grad)
        optimizer.step()
        new = vectors(lambda p: p)
        for row in rows:
            w, g, after = old[row], gradient[row], new[row]
            turned = torch.acos(F.cosine_similarity(w, after, dim=0))
            along = F.cosine_similarity(w, g, dim=0)
            change = after.square().sum() - w.square().sum()
            by_hand[row].append([float(x) for x in (w.norm(), g.norm(), along, turned, change)])
    record, forces = tracker.to_dataset(), tracker.forces()
    assert list(record.parameter) == list(rows)
    for row, values in by_hand.items():
        norm, gradient, along, turned, change = np.array(values).T
        one = record.sel(parameter=row)
        np.testing.assert_allclose(one.weight_norm, norm, rtol=1e-12)
        np.testing.assert_allclose(one.gradient_norm, gradient, rtol=1e-12)
        np.testing.assert_allclose(one.alignment, along, atol=1e-12)
        np.testing.assert_allclose(one.angle, turned, rtol=1e-6)
        np.testing.assert_allclose(forces.change.sel(parameter=row), change, rtol=1e-8, atol=1e-12)
    # Together the stream is scale-invariant, its tensors alone are not.
    assert abs(record.alignment[-1]).max() < 1e-10
    assert all(abs(record.alignment.sel(parameter=n)).max() > 1e-3 for n in STREAM)


def test_a_tracker_of_every_tenth_step_costs_little():
    """Under 5 % of a step, of a decoder whose step takes some milliseconds: best of several."""
    torch.manual_seed(0)
    model = Decoder(width=128, dtype=torch.float32)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    tokens = torch.randint(11, (16, 65))

    def seconds():
        begin = time.perf_counter()
        for _ in range(20):
            optimizer.zero_grad()
            F.cross_entropy(model(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten()).backward()
            optimizer.step()
        return time.perf_counter() - begin

    seconds()
    plain, tracked = [], []
    for _ in range(12):
        plain.append(seconds())
        with nl.track(optimizer, model, record_every=10):
            tracked.append(seconds())
    assert min(tracked) < 1.05 * min(plain)
