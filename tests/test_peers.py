"""The benchmark's peer trains the same networks."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import normlib as nl

jax = pytest.importorskip("jax")
from tools import peers  # noqa: E402  (needs jax)


@pytest.mark.parametrize("net", [nl.convnet(width=8, depth=2), nl.mlp(width=16)], ids=repr)
def test_jax_trains_as_the_plain_loop_does(net, data):
    settings = {"weight_decay": 1e-3, "momentum": 0.9}
    torch.manual_seed(0)
    start = peers.initial(net, data, 2)
    torch.manual_seed(0)
    model = net.module(data.shape, data.classes)
    optimizer = torch.optim.SGD(model.parameters(), 0.03, nesterov=True, **settings)
    order = np.arange(2000).reshape(20, 100)
    trained = peers.program(net, data, **settings)(start, np.float32([0.03, 0.1]), order)
    for batch in torch.from_numpy(order):
        optimizer.zero_grad()
        F.cross_entropy(model(data.x_train[batch]), data.y_train[batch]).backward()
        optimizer.step()
    for name, p in model.named_parameters():
        ours = p.detach().numpy()
        np.testing.assert_allclose(trained[name][0], ours, atol=1e-5)
        assert np.abs(trained[name][1] - ours).max() > 1e-4  # another learning rate
