"""Ordinary PyTorch trainings, one network at a time, that the wide ones are compared with."""

import torch
import torch.nn.functional as F


def minibatches(data, seed, epochs, batch_size=100):
    """The batches that a sweep of this seed sees, as indices."""
    order = torch.Generator().manual_seed(seed)
    for _ in range(epochs):
        shuffled = torch.randperm(len(data.x_train), generator=order)
        yield from shuffled.split(batch_size)


def train(net, data, wide, k, make_optimizer, weight_decay, decay, batches):
    """Train network k of `wide` as an ordinary torch model from its present weights; return it."""
    model = net.module(data.shape, data.classes).to(data.x_train.dtype)
    model.load_state_dict(wide.state_dict(k))
    named = dict(model.named_parameters())
    groups = []
    for p in wide.parameters.values():
        members = {
            "all": True,
            "weights": p.kind == "weight",
            "invariant": bool(p.invariant),
            "hidden_pairs": p.name.startswith("norm") and p.name[4] < str(net.depth),
            "last_pair": p.name.startswith(f"norm{net.depth}."),
        }
        decays = any(members[word] for word in decay.split("+"))
        groups.append({"params": [named[p.key]], "weight_decay": weight_decay if decays else 0.0})
    optimizer = make_optimizer(groups)
    model.train()
    for batch in batches:
        optimizer.zero_grad()
        F.cross_entropy(model(data.x_train[batch]), data.y_train[batch]).backward()
        optimizer.step()
    return model
