"""What an audit advises an optimizer: which tensors decay, and why."""

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import normlib as nl


class Decoder(nn.Module):
    """One block of a decoder with rotary-free attention, a gated MLP and an untied head."""

    def __init__(self, d=12, tied=False):
        super().__init__()
        self.embed = nn.Embedding(9, d)
        self.norms = nn.ModuleList(nn.RMSNorm(d) for _ in range(3))
        self.qkv, self.out = nn.Linear(d, 3 * d, bias=False), nn.Linear(d, d, bias=False)
        self.up, self.down = nn.Linear(d, 4 * d, bias=False), nn.Linear(2 * d, d, bias=False)
        self.head = nn.Linear(d, 9, bias=False)
        if tied:
            self.head.weight = self.embed.weight

    def forward(self, ids):
        x = self.embed(ids)
        q, k, v = (u.unflatten(-1, (2, -1)).transpose(1, 2) for u in
                   self.qkv(self.norms[0](x)).chunk(3, -1))  # fmt: skip
        x = x + self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        gate, up = self.up(self.norms[1](x)).chunk(2, -1)
        x = x + self.down(F.silu(gate) * up)
        return self.head(self.norms[2](x))


IDS = torch.arange(48).view(8, 6) % 9


@pytest.fixture(scope="module", params=[False, True], ids=["untied", "tied"])
def decoder(request):
    torch.manual_seed(0)
    model = Decoder(tied=request.param)
    return model, nl.audit(model, IDS, IDS.flip(1))


def images():
    layers = nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten(), nn.Linear(96, 4)
    return nn.Sequential(*layers)


PICTURE = (8, 3, 6, 6)


def decayed(groups):
    return {name for group in groups if group["weight_decay"] for name in group["names"]}


def test_a_decoder_decays_its_matrices_and_no_gain(decoder):
    model, found = decoder
    groups = found.param_groups(0.1, other=0.0)
    assert decayed(groups) == {name for name, p in model.named_parameters() if p.ndim == 2}


def test_every_trainable_parameter_is_in_exactly_one_group(decoder):
    model, found = decoder
    groups = found.param_groups(0.1, other=0.01, pairs=0.03)
    held = [id(p) for group in groups for p in group["params"]]
    assert sorted(held) == sorted(map(id, model.parameters()))
    torch.optim.AdamW(groups, lr=1e-3).step()


def test_other_has_no_default():
    found = nl.audit(nn.Linear(5, 3), torch.randn(16, 5))
    with pytest.raises(TypeError, match="other"):
        found.param_groups(0.1)


def test_the_head_behind_a_norm_gets_the_decay_of_pairs_and_what_is_frozen_none():
    model = images()
    model[4].bias.requires_grad_(False)
    groups = nl.audit(model, torch.randn(PICTURE)).param_groups(0.1, other=0.01, pairs=0.03)
    found = {name: group["weight_decay"] for group in groups for name in group["names"]}
    assert found == {
        "0.weight": 0.1, "4.weight": 0.03, "1.weight": 0.01, "1.bias": 0.01, "0.bias": 0.01
    }  # fmt: skip


def test_jointly_invariant_tensors_get_the_decay_together():
    model = nn.Sequential(nn.Linear(5, 6), nn.LayerNorm(6), nn.ReLU(), nn.Linear(6, 3))
    groups = nl.audit(model, torch.randn(16, 5)).param_groups(0.1, other=0.0)
    assert groups[0]["params"] == [model[0].weight, model[0].bias]


def test_a_warning_says_that_next_to_nothing_decays():
    found = nl.audit(nn.Linear(5, 3), torch.randn(16, 5))
    with pytest.warns(UserWarning, match=r"0 of 2 tensors decay, 0\.0% of the entries: nearly"):
        found.param_groups(0.1, other=0.0)


def test_the_groups_print_as_a_table_that_says_how_much_decays(decoder):
    groups = decoder[1].param_groups(0.1, other=0.0)
    lines = repr(groups).splitlines()
    assert all(group["why"] in repr(groups) for group in groups)
    assert lines[-1].endswith("% of the entries")
    assert "<table" in groups._repr_html_()


def test_rules_by_verdict_and_name_win_over_the_advice(decoder):
    rules = {"*norms*": {"weight_decay": 0.5}, "inverse": {"lr": 0.2}}
    groups = decoder[1].param_groups(0.1, other=0.0, rules=rules, lr=0.1)
    settings = {name: group for group in groups for name in group["names"]}
    assert settings["norms.0.weight"]["weight_decay"] == 0.5
    assert settings["norms.0.weight"]["lr"] == 0.2
    assert settings["qkv.weight"]["lr"] == 0.2
    with pytest.raises(ValueError, match="no parameter has the verdict or a name like no"):
        decoder[1].param_groups(0.1, other=0.0, rules={"no.such": {"lr": 1.0}})


def test_layers_further_from_the_end_learn_more_slowly():
    model = nn.Sequential(nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 3))
    found = nl.audit(model, torch.randn(16, 5))
    groups = found.param_groups(0.1, other=0.1, lr=1.0, layer_decay=0.5)
    rates = {name: group["lr"] for group in groups for name in group["names"]}
    assert rates["4.weight"] == 1.0
    assert rates["0.weight"] == rates["2.weight"] / 4  # each ReLU is a layer of its own
    with pytest.raises(ValueError, match="layer_decay needs lr"):
        found.param_groups(0.1, other=0.0, layer_decay=0.5)


def test_muon_gets_the_matrices_between_layers_with_matched_decay(decoder):
    model, found = decoder
    muon, adamw = found.muon_groups(0.1, other=0.0, lr=0.02, lr_adamw=0.001)
    hidden = {name for group in muon for name in group["names"]}
    assert hidden == {"qkv.weight", "out.weight", "up.weight", "down.weight"}
    for group in [*muon, *adamw]:
        taken = group["lr"] * group["weight_decay"]
        assert taken == pytest.approx(1e-4 if max(p.ndim for p in group["params"]) > 1 else 0)
    torch.optim.Muon(muon)
    torch.optim.AdamW(adamw)
    everything = [id(p) for group in [*muon, *adamw] for p in group["params"]]
    assert sorted(everything) == sorted(map(id, model.parameters()))


def test_corrected_decay_falls_with_the_rate():
    model = images()
    found = nl.audit(model, torch.randn(PICTURE))
    groups = found.param_groups(0.1, other=0.05, pairs=0.03, corrected=True)
    optimizer = torch.optim.SGD(groups, lr=1.0)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, 4)
    handle, seen = nl.correct_decay(optimizer), []
    for _ in range(3):
        optimizer.step()
        seen.append([group["weight_decay"] for group in optimizer.param_groups])
        schedule.step()
    np.testing.assert_allclose([row[0] for row in seen], [0.1, 0.075, 0.05])
    assert all(row[1:] == seen[0][1:] for row in seen)
    handle.remove()
    with pytest.raises(ValueError, match="no group"):
        nl.correct_decay(torch.optim.SGD(model.parameters(), lr=0.1))


def test_the_picture_shows_each_row_in_the_colour_of_its_verdict():
    found = nl.audit(images(), torch.randn(PICTURE))
    figure = found.plot()
    axes = figure.axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == list(
        found.to_dataframe().index
    )
    assert set(found.to_dataframe().verdict) == {t.get_text() for t in axes.get_legend().texts}
    plt.close(figure)
