"""Models on which an audit is easily wrong: what is frozen, hidden, cut, or made up."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import normlib as nl

LABELS = torch.arange(12) % 4


def verdicts(found):
    return dict(found.to_dataframe().verdict)


class FrozenNorms(nn.Sequential):
    """Batch norms that stay in eval mode, as in the backbones of detectors."""

    def train(self, mode=True):
        super().train(mode)
        for module in self.modules():
            if isinstance(module, nn.BatchNorm1d):
                module.eval()
        return self


@pytest.mark.parametrize("mode", [True, False])
def test_a_batch_norm_that_stays_in_eval_mode_is_a_constant_factor(mode):
    """Whatever the mode of the model when it is audited: in training its norms are in eval."""
    layers = nn.Linear(5, 7), nn.BatchNorm1d(7), nn.ReLU(), nn.Linear(7, 4)
    model = FrozenNorms(*layers).train(mode)
    found = nl.audit(model, torch.randn(12, 5), LABELS)
    assert set(verdicts(found).values()) == {"not invariant", "inverse"}
    assert verdicts(found)["0.bias"] == "not invariant"
    assert model.training == mode
    assert not model[1].training
    assert nl.audit(nn.Sequential(*layers).train(), torch.randn(12, 5), LABELS).invariant == [
        "0.weight"
    ]


def test_a_penalty_on_parameters_that_the_loss_captured_is_seen():
    model = nn.Sequential(nn.Linear(5, 7), nn.BatchNorm1d(7), nn.ReLU(), nn.Linear(7, 4))
    held = list(model.parameters())

    def penalised(output, labels):
        return F.cross_entropy(output, labels) + 0.1 * sum(p.pow(2).sum() for p in held)

    found = nl.audit(model, torch.randn(12, 5), LABELS, penalised)
    assert set(verdicts(found).values()) == {"not invariant"}


def test_constants_of_the_loss_may_be_in_single_precision():
    model = nn.Sequential(nn.Linear(5, 7), nn.BatchNorm1d(7), nn.Linear(7, 4))
    weight = torch.tensor([1.0, 2.0, 3.0, 4.0])
    loss = lambda out, y: F.cross_entropy(out, y, weight=weight) + (out * weight).mean()  # noqa: E731
    assert nl.audit(model, torch.randn(12, 5), LABELS, loss).invariant == ["0.weight"]


class Mixer(nn.Module):
    """Attention over tokens; `cut` is how the fused projection's output is parted."""

    def __init__(self, name="mix", heads=3, groups=3, width=4, norm=True, bias=False):
        super().__init__()
        self.sizes = [heads * width, groups * width, groups * width]
        self.name, self.width, self.norm = name, width, norm
        d = heads * width
        self.embed = nn.Embedding(11, d)
        setattr(self, name, nn.Linear(d, sum(self.sizes), bias=bias))
        self.end, self.head = nn.Linear(d, d, bias=False), nn.Linear(d, 4)

    def forward(self, ids):
        x = F.layer_norm(self.embed(ids), (self.embed.embedding_dim,))
        parts = getattr(self, self.name)(x).split(self.sizes, -1)
        q, k, v = (part.unflatten(-1, (-1, self.width)).transpose(1, 2) for part in parts)
        if self.norm:
            q, k = F.normalize(q, dim=-1), F.normalize(k, dim=-1)
        mixed = F.scaled_dot_product_attention(q, k, v, enable_gqa=True)
        return self.head((x + self.end(mixed.transpose(1, 2).flatten(2))).mean(1))


TOKENS = torch.arange(72).view(12, 6) * 7 % 11


@pytest.mark.parametrize("name", ["mix", "W_pack", "kqv_heads"])
@pytest.mark.parametrize(("heads", "groups"), [(3, 3), (6, 2), (5, 1)])
def test_a_fused_projection_is_cut_where_the_forward_cuts_it(name, heads, groups):
    """Never by its name; grouped-query attention has fewer keys than queries."""
    torch.manual_seed(0)
    table = nl.audit(Mixer(name, heads, groups), TOKENS, LABELS).to_dataframe()
    q, k, v = (row for label, row in table.iterrows() if label.startswith(name))
    assert (q["shape"][0], k["shape"][0], v["shape"][0]) == (4 * heads, 4 * groups, 4 * groups)
    assert (q.verdict, q.blocks) == ("invariant", heads)
    assert (k.verdict, k.blocks) == ("invariant", groups)
    assert v.verdict == "inverse"


def test_the_verdict_of_queries_and_keys_flips_with_their_norm():
    torch.manual_seed(0)
    with_norm, without = (
        nl.audit(Mixer(norm=norm), TOKENS, LABELS).to_dataframe().verdict[1:4] for norm in (1, 0)
    )
    assert with_norm.tolist() == ["invariant", "invariant", "inverse"]
    assert without.tolist() == ["inverse", "inverse", "inverse"]


def test_a_cut_may_be_given():
    torch.manual_seed(0)
    found = nl.audit(Mixer(), TOKENS, LABELS, split={"mix.weight": [4, 8, 12, 12]})
    assert [name for name in verdicts(found) if name.startswith("mix")] == [
        "mix.weight[0:4]", "mix.weight[4:12]", "mix.weight[12:24]", "mix.weight[24:36]"
    ]  # fmt: skip


def test_parts_that_lie_interleaved_are_told_apart():
    """Head by head query, key, value, as in GPT-NeoX."""

    class Interleaved(Mixer):
        def forward(self, ids):
            x = F.layer_norm(self.embed(ids), (12,))
            q, k, v = self.mix(x).unflatten(-1, (3, 12)).transpose(1, 2).chunk(3, -1)
            q, k = F.rms_norm(q, (4,)), F.rms_norm(k, (4,))
            mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
            return self.head((x + self.end(mixed)).mean(1))

    torch.manual_seed(0)
    found = nl.audit(Interleaved(), TOKENS, LABELS)
    rows = found.to_dataframe().iloc[1:4]
    assert rows.verdict.tolist() == ["invariant", "invariant", "inverse"]
    part = found.blocks(rows.index[0])[:, 0]
    assert part.tolist() == [0] * 4 + [-1] * 8 + [1] * 4 + [-1] * 8 + [2] * 4 + [-1] * 8


class ThreeInOne(nn.Module):
    """One parameter that holds three matrices."""

    def __init__(self):
        super().__init__()
        self.embed, self.head = nn.Embedding(11, 12), nn.Linear(12, 4)
        self.three = nn.Parameter(torch.randn(3, 12, 12) / 4)

    def forward(self, ids):
        x = F.layer_norm(self.embed(ids), (12,))
        q, k, v = (x @ w for w in self.three)
        q, k = F.rms_norm(q, (12,)), F.rms_norm(k, (12,))
        return self.head((x + F.scaled_dot_product_attention(q, k, v)).mean(1))


def test_a_stack_of_matrices_is_cut_into_them():
    table = nl.audit(ThreeInOne(), TOKENS, LABELS).to_dataframe()
    assert table.verdict[:3].tolist() == ["invariant", "invariant", "not invariant"]
    assert table["shape"].iloc[0] == (12, 12)


@pytest.mark.parametrize("tokens", [torch.zeros(12, 6, dtype=torch.long), TOKENS])
def test_tokens_that_are_all_alike_hide_nothing(tokens):
    """Embeddings get noise, as floating inputs do."""
    torch.manual_seed(0)
    table = nl.audit(Mixer(norm=False), tokens, LABELS).to_dataframe()
    assert table.verdict.iloc[1:5].tolist() == ["inverse"] * 4


class Norm(nn.Module):
    """A mean-square norm that keeps its ε somewhere."""

    def __init__(self, where):
        super().__init__()
        self.where = where
        if where == "buffer":
            self.register_buffer("floor", torch.tensor(3e-6))
        elif where == "attribute":
            self.small_number = 3e-6

    def forward(self, x):
        power = x.square().mean(-1, keepdim=True)
        if self.where == "clamp":
            return x / power.clamp(min=1e-9).sqrt()
        if self.where == "deviation":
            return x / (power.sqrt() + 1e-6)
        if self.where == "torch":
            return torch.layer_norm(x, x.shape[-1:])
        if self.where == "in place":
            return x * power.add_(3e-6).rsqrt()
        eps = {"buffer": lambda: self.floor, "attribute": lambda: self.small_number}
        return x * torch.rsqrt(eps.get(self.where, lambda: 3e-6)() + power)


@pytest.mark.parametrize(
    "where", ["buffer", "attribute", "literal", "clamp", "deviation", "torch", "in place"]
)
def test_an_epsilon_is_found_wherever_it_is_kept(where):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 7, bias=False), Norm(where), nn.Tanh(), nn.Linear(7, 4))
    found = nl.audit(model, torch.randn(12, 5), LABELS)
    row = found.to_dataframe().iloc[0]
    assert (row.verdict, row.note) == ("invariant", "")
    assert (row.eps_violation > 1e-9) == (where != "clamp")


def test_an_epsilon_that_cannot_be_removed_is_told_by_rescaling():
    """Here it is in a tensor: neither an argument nor a number that is added."""

    class Stubborn(nn.Module):
        def forward(self, x):
            eps = torch.full_like(x[..., :1], 1e-5)
            return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps)

    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 7, bias=False), Stubborn(), nn.Tanh(), nn.Linear(7, 4))
    row = nl.audit(model, torch.randn(12, 5), LABELS).to_dataframe().iloc[0]
    assert row.verdict == "invariant"
    assert row.note == "but for an ε that could not be removed"
    assert 0 < row.eps_violation < 1e-2


@pytest.mark.parametrize("squash", [nn.Softsign, nn.Tanh])
def test_what_saturates_is_not_mistaken_for_a_norm(squash):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 7, bias=False), squash(), nn.Linear(7, 4))
    assert verdicts(nl.audit(model, torch.randn(12, 5), LABELS))["0.weight"] == "not invariant"


class Sign(torch.autograd.Function):
    @staticmethod
    def forward(ctx, w):
        return w.sign()

    @staticmethod
    def backward(ctx, gradient):
        return gradient  # straight through


def test_a_gradient_that_is_a_stand_in_does_not_hide_an_exact_invariance():
    class Binary(nn.Linear):
        def forward(self, x):
            return F.linear(x, Sign.apply(self.weight), self.bias)

    torch.manual_seed(0)
    model = nn.Sequential(Binary(5, 7), nn.Tanh(), nn.Linear(7, 4))
    row = nl.audit(model, torch.randn(12, 5), LABELS).to_dataframe().iloc[0]
    assert (row.verdict, row.blocks) == ("invariant", 7)
    assert "straight-through" in row.note


@pytest.mark.parametrize(
    ("form", "words"),
    [
        (lambda w: 1 + w, "enters as 1 + w: decay pulls that to 1, not to 0"),
        (lambda w: w.exp(), "enters as exp(w): decay pulls that to exp(0), not to 0"),
    ],
)
def test_decay_of_a_gain_of_another_form_pulls_to_another_value(form, words):
    class Gain(nn.Module):
        def __init__(self):
            super().__init__()
            self.gain = nn.Parameter(torch.randn(5))

        def forward(self, x):
            return F.rms_norm(x, (5,)) * form(self.gain.float())

    model = nn.Sequential(Gain(), nn.Linear(5, 4))
    row = nl.audit(model, torch.randn(12, 5), LABELS).to_dataframe().iloc[0]
    assert (row.verdict, row.note) == ("not invariant", words)


class Experts(nn.Module):
    """Kernels without double precision, and a router that sends each token to one expert."""

    def __init__(self, dtype_checked=True):
        super().__init__()
        self.router = nn.Linear(8, 3, bias=False)
        self.up = nn.Parameter(torch.randn(3, 8, 8) / 3)
        self.checked = dtype_checked

    def forward(self, x):
        if self.checked and x.dtype != torch.float32:
            raise RuntimeError("expected single precision")
        chosen = self.router(x).argmax(-1)
        return torch.stack([row @ self.up[k] for row, k in zip(x, chosen.tolist(), strict=True)])


def test_operations_without_double_precision_are_audited_in_single():
    torch.manual_seed(0)
    layers = nn.Linear(6, 8), nn.LayerNorm(8), Experts(), nn.LayerNorm(8), nn.Linear(8, 4)
    found = nl.audit(nn.Sequential(*layers), torch.randn(12, 6), LABELS)
    assert "single precision" in found.notes[0]
    assert "expected single precision" in found.notes[0]
    table = found.to_dataframe()
    assert table.verdict["0.weight"] == "joint"
    assert table.verdict["4.bias"] == "not invariant"
    assert "single precision" in repr(found)


def test_a_router_that_only_chooses_is_no_dead_tensor_and_experts_that_wait_are_named():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), Experts(False), nn.LayerNorm(8), nn.Linear(8, 4))
    table = nl.audit(model, torch.randn(12, 6), LABELS).to_dataframe()
    router = table.loc["1.router.weight"]
    assert (router.verdict, router.decay) == ("invariant", "nothing")
    assert "only chooses" in router.note


def test_rows_that_the_data_do_not_reach_are_counted():
    model = nn.Sequential(nn.Embedding(50, 6), nn.Flatten(), nn.LayerNorm(18), nn.Linear(18, 4))
    ids = torch.arange(36).view(12, 3) % 9
    row = nl.audit(model, ids, LABELS).to_dataframe().iloc[0]
    assert row.note == "41 of 50 rows get no gradient on this data"


def test_inputs_that_promise_an_order_are_left_in_it():
    class Packed(nn.Module):
        def __init__(self):
            super().__init__()
            self.rnn, self.head = nn.GRU(5, 6, batch_first=True), nn.Linear(6, 4)

        def forward(self, x, lengths):
            packed = nn.utils.rnn.pack_padded_sequence(x, lengths, batch_first=True)
            return self.head(F.layer_norm(self.rnn(packed)[1][0], (6,)))

    inputs = torch.randn(12, 4, 5), torch.arange(15, 3, -1) // 4
    with pytest.raises(ValueError, match="shuffle=False"):
        nl.audit(Packed(), inputs, LABELS)
    found = nl.audit(Packed(), inputs, LABELS, shuffle=False)
    assert verdicts(found)["head.weight"] == "not invariant"


def test_a_wrapped_model_is_audited_by_its_own_names():
    layers = nn.Linear(5, 7, bias=False), nn.BatchNorm1d(7), nn.Linear(7, 4)
    found = nl.audit(nn.DataParallel(nn.Sequential(*layers)), torch.randn(12, 5), LABELS)
    assert found.invariant == ["0.weight"]


@pytest.mark.parametrize("groups", [1, 2])
def test_transposed_and_grouped_convolutions_are_invariant_per_output_channel(groups):
    torch.manual_seed(0)
    layer = nn.ConvTranspose2d(4, 6, 3, groups=groups, bias=False)
    ends = nn.BatchNorm2d(6), nn.Flatten(), nn.Linear(150, 4)
    found = nl.audit(nn.Sequential(layer, *ends), torch.randn(12, 4, 3, 3), LABELS)
    row = found.to_dataframe().iloc[0]
    assert (row.verdict, row.per, row.blocks) == ("invariant", "channel", 6)
    block = found.blocks("0.weight")
    x, net = torch.randn(12, 4, 3, 3).double(), nn.Sequential(layer, ends[0]).double()
    ends[0].eps = 1e-20
    before = net(x)
    factors = torch.tensor(np.random.default_rng(0).uniform(0.5, 2, 6))
    with torch.no_grad():
        layer.weight.mul_(factors[block])
    torch.testing.assert_close(net(x), before)


def test_weight_standardization_cosine_attention_and_soft_caps_are_understood():
    class Standardized(nn.Linear):
        def forward(self, x):
            w = self.weight - self.weight.mean(1, keepdim=True)
            return F.linear(x, w / (w.std(1, keepdim=True) + 1e-5), self.bias)

    class Capped(nn.Module):
        def forward(self, x):
            return 30 * torch.tanh(x / 30)

    torch.manual_seed(0)
    cosine = nn.Linear(7, 7, bias=False)

    class Cosine(nn.Module):
        def __init__(self):
            super().__init__()
            self.key = cosine

        def forward(self, x):
            return F.normalize(self.key(x), dim=-1)

    model = nn.Sequential(Standardized(5, 7), nn.Tanh(), Cosine(), nn.Linear(7, 4), Capped())
    found = verdicts(nl.audit(model, torch.randn(12, 5), LABELS))
    assert found["0.weight"] == "invariant"
    assert found["2.key.weight"] == "invariant"
    assert found["3.weight"] == "not invariant"


@pytest.mark.parametrize("wrap", ["new", "old", "spectral"])
def test_reparametrized_weights_are_understood(wrap):
    torch.manual_seed(0)
    layer = nn.Linear(5, 7)
    parametrize = nn.utils.parametrizations
    with pytest.warns() if wrap == "old" else torch.no_grad():
        layer = {
            "new": parametrize.weight_norm,
            "old": nn.utils.weight_norm,
            "spectral": parametrize.spectral_norm,
        }[wrap](layer)
    model = nn.Sequential(layer, nn.ReLU(), nn.Linear(7, 4, bias=False))
    table = nl.audit(model, torch.randn(12, 5), LABELS).to_dataframe()
    direction = {
        "new": "0.parametrizations.weight.original1",
        "old": "0.weight_v",
        "spectral": "0.parametrizations.weight.original",
    }[wrap]
    assert table.verdict[direction] == "invariant"
