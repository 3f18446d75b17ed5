"""What torch's operations demand of the degrees of what they take. Knows `units`."""

from collections.abc import Callable, Iterable
from fractions import Fraction
from typing import Any

from torch import Tensor
from torch.utils._pytree import tree_leaves

from normlib.diagnostics.pieces import row_layout, transposed_layout
from normlib.diagnostics.units import Degree, Traced, Units, combined

TINY, HUGE = 1e-3, 1e30  # what is added as ε, and what stands for infinity in masks
Found = Degree | Traced | None | Callable[[Tensor], Degree | Traced]
Rule = Callable[[Units, Any, Any], Found]

SAME = """relu leaky_relu rrelu abs neg negative positive sum nansum mean amax amin max min sort
    topk kthvalue median cumsum cummax norm vector_norm matrix_norm std avg_pool1d avg_pool2d
    avg_pool3d max_pool1d max_pool2d max_pool3d boolean_dispatch fn adaptive_avg_pool1d
    adaptive_avg_pool2d adaptive_avg_pool3d adaptive_max_pool2d interpolate upsample roll flip
    gather index_select take take_along_dim masked_select repeat repeat_interleave tile tril triu
    diagonal fold unfold pixel_shuffle pixel_unshuffle channel_shuffle grid_sample rot90 real
    nan_to_num zero_ as_strided prelu"""
SUMS = "add sub rsub subtract maximum minimum"
JOINED = """cat concat concatenate stack hstack vstack dstack index_add scatter_add scatter
    scatter_reduce index_copy index_put masked_scatter copy setitem lerp"""
PRODUCTS = "mul multiply bmm mv dot inner outer tensordot einsum bilinear kron cross multi_dot"
POWERS: dict[str, Fraction | int] = {
    "square": 2,
    "sqrt": Fraction(1, 2),
    "rsqrt": Fraction(-1, 2),
    "reciprocal": -1,
    "var": 2,
}
# What has no scale, whatever that of its arguments is.
FREE = """normalize cosine_similarity sign sgn heaviside zeros_like ones_like empty_like full_like
    rand_like randn_like new_zeros new_ones new_empty new_full new_tensor bernoulli"""

# What no scale passes.
ENDS = set(
    """gelu silu mish tanh sigmoid softmax log_softmax gumbel_softmax softmin exp exp2 expm1 log
    log2 log10 log1p erf elu selu celu softplus softsign hardswish hardsigmoid logsigmoid hardshrink
    softshrink tanhshrink threshold glu sin cos logsumexp logaddexp atan atan2 asin acos sinh cosh
    cumprod prod round floor ceil trunc fmod remainder lstm gru rnn_tanh rnn_relu lstm_cell
    gru_cell rnn_tanh_cell rnn_relu_cell pow cross_entropy nll_loss mse_loss l1_loss smooth_l1_loss
    huber_loss binary_cross_entropy binary_cross_entropy_with_logits kl_div poisson_nll_loss
    gaussian_nll_loss hinge_embedding_loss margin_ranking_loss triplet_margin_loss ctc_loss
    soft_margin_loss multi_margin_loss cosine_embedding_loss cdist dist logit
    quantize_per_tensor fake_quantize_per_tensor_affine local_response_norm""".split()  # noqa: SIM905
)


def argument(args: Any, kwargs: Any, place: int, *names: str) -> Any:
    """One that may be given by its place or by one of its names."""
    if len(args) > place:
        return args[place]
    return next((kwargs[name] for name in names if name in kwargs), None)


def terms(values: Any) -> Iterable[Any]:
    """What is summed: tensors and numbers, without those that fit any degree."""
    for value in tree_leaves(values):
        if isinstance(value, Tensor):
            if value.is_floating_point():
                yield value
        elif isinstance(value, float | int) and not isinstance(value, bool):
            yield value


def common(units: Units, values: Iterable[Any]) -> Degree:
    """The degree that all summands must have."""
    degrees = []
    for value in values:
        if isinstance(value, Tensor) and not value.numel():
            continue
        if id(value) in units.seen:
            degrees.append(units.degree(value))
        elif not neutral(value):
            degrees.append({})
    for other in degrees[1:]:
        units.equal(degrees[0], other)
    return degrees[0] if degrees else {}


def neutral(value: Any) -> bool:
    """Whether a constant may be added to anything: zeros, an ε, a mask of zeros and infinities."""
    if isinstance(value, Tensor):
        if value.numel() == 1:
            value = abs(value.item())
        else:
            size = value.detach().abs()
            return bool(((size == 0) | (size > HUGE)).all())
    return abs(value) < TINY or abs(value) > HUGE


def summed(units: Units, args: Any, kwargs: Any) -> Degree:
    given = [*args, *(kwargs[name] for name in ("input", "other") if name in kwargs)]
    for one, number in (given[:2], given[1::-1]):
        owner = units.parameter(one)
        if owner is not None and isinstance(number, float | int) and not neutral(number):
            units.forms[owner.name].add(f"{number:g} + w")
    return common(units, terms(given))


def joined(units: Units, args: Any, kwargs: Any) -> Degree:
    """Floating tensors that stand together, among integers that say where."""
    return common(units, [v for v in terms([args, kwargs]) if isinstance(v, Tensor)])


def chosen(units: Units, args: Any, kwargs: Any) -> Degree:
    """`where`: the condition chooses between two summands."""
    return common(units, terms([args, kwargs.get("input"), kwargs.get("other")]))


def filled(units: Units, args: Any, kwargs: Any) -> Degree:
    return common(units, [args[0], argument(args, kwargs, 2, "value")])


def multiplied(units: Units, args: Any, kwargs: Any) -> Degree:
    factors = [v for v in tree_leaves((args, kwargs)) if isinstance(v, Tensor)]
    return combined(*((units.degree(v), 1) for v in factors))


def divided(units: Units, args: Any, kwargs: Any) -> Degree:
    other = argument(args, kwargs, 1, "other")
    return combined((units.degree(args[0]), 1), (units.degree(other), -1))


def divided_into(units: Units, args: Any, kwargs: Any) -> Degree:
    return combined((units.degree(args[0]), -1), (units.degree(args[1]), 1))


def same(units: Units, args: Any, kwargs: Any) -> Degree:
    """The degree of the first, and of a second that it is compared with."""
    first = argument(args, kwargs, 0, "input", "x")
    second = args[1] if len(args) > 1 and units.seen.get(id(args[1])) else None
    return common(units, [first] if second is None else [first, second])


def sloped(units: Units, args: Any, kwargs: Any) -> Degree:
    """PReLU: its slope is a number without a scale."""
    units.equal(units.degree(argument(args, kwargs, 1, "weight")), {})
    return units.degree(args[0])


def powered(exponent: Fraction | int) -> Rule:
    return lambda units, args, kwargs: combined((units.degree(args[0]), exponent))


def raised(units: Units, args: Any, kwargs: Any) -> Degree:
    exponent = argument(args, kwargs, 1, "exponent")
    if isinstance(exponent, Tensor) or not isinstance(args[0], Tensor):
        return ended(units, "pow", args, kwargs)
    return combined((units.degree(args[0]), Fraction(exponent).limit_denominator(12)))


def clamped(units: Units, args: Any, kwargs: Any) -> Degree:
    """Bounds that are zero, tiny or infinite pass a scale, others do not."""
    bounds = [v for v in tree_leaves((args[1:], kwargs)) if isinstance(v, float | int | Tensor)]
    return common(units, [args[0], *bounds])


def free(units: Units, args: Any, kwargs: Any) -> Degree:
    for value in tree_leaves((args, kwargs)):
        units.degree(value)
    return {}


def ended(units: Units, name: str, args: Any, kwargs: Any) -> Degree:
    """An operation that no scale passes."""
    if name not in ENDS:
        units.unknown[name] = None
    for value in tree_leaves((args, kwargs)):
        if id(value) in units.seen:
            units.equal(units.degree(value), {})
            owner = units.parameter(value)
            if owner is not None and name in ("exp", "softplus", "sigmoid", "tanh"):
                units.forms[owner.name].add(f"{name}(w)")
    return {}


def linear(units: Units, args: Any, kwargs: Any) -> Found:
    weight, bias = argument(args, kwargs, 1, "weight"), argument(args, kwargs, 2, "bias")
    return units.product(units.degree(argument(args, kwargs, 0, "input")), weight, bias, False)


def addmm(units: Units, args: Any, kwargs: Any) -> Found:
    return units.product(units.degree(args[1]), args[2], args[0], True)


def matmul(units: Units, args: Any, kwargs: Any) -> Found:
    """Features lie along the last axis where the second factor is a parameter."""
    first, second = args[0], argument(args, kwargs, 1, "other", "mat2")
    if units.parameter(second) is None or second.ndim < 2 or units.parameter(first) is not None:
        return multiplied(units, args, kwargs)
    return units.product(units.degree(first), second, None, True)


def convolution(units: Units, args: Any, kwargs: Any) -> Found:
    weight, bias = argument(args, kwargs, 1, "weight"), argument(args, kwargs, 2, "bias")
    owner, layout = units.parameter(weight), None
    if owner is not None:
        layout = row_layout(units.shapes[owner.name])
    return units.product(units.degree(args[0]), weight, bias, False, layout)


def transposed(units: Units, args: Any, kwargs: Any) -> Found:
    weight, bias = argument(args, kwargs, 1, "weight"), argument(args, kwargs, 2, "bias")
    owner, layout = units.parameter(weight), None
    if owner is not None:
        groups = argument(args, kwargs, 6, "groups") or 1
        layout = transposed_layout(units.shapes[owner.name], groups)
    return units.product(units.degree(args[0]), weight, bias, False, layout)


def norm(*places: int, statistics: tuple[int, bool] | None = None) -> Rule:
    """Ends the scale of its input; a gain gives a new one, which the bias shares.

    `places` are those of gain and bias; `statistics` says where a flag chooses the input's own
    statistics, and what it is if it is not given. Running ones are constants.
    """

    def rule(units: Units, args: Any, kwargs: Any) -> Degree:
        degree = units.degree(args[0])
        if statistics is not None:
            given = argument(args, kwargs, statistics[0], "training", "use_input_stats")
            if not (statistics[1] if given is None else given):
                units.equal(degree, {})
        gain = argument(args, kwargs, places[0], "weight")
        bias = argument(args, kwargs, places[1], "bias") if len(places) > 1 else None
        degree = units.degree(gain) if gain is not None else {}
        if bias is not None:
            units.equal(units.degree(bias), degree)
        return degree

    return rule


def attention(units: Units, args: Any, kwargs: Any) -> Degree:
    """The logits are numbers without a scale; what is averaged keeps its own."""
    given = [argument(args, kwargs, *one) for one in enumerate(("query", "key", "value"))]
    query, key, value = map(units.degree, given)
    units.equal(combined((query, 1), (key, 1)), {})
    mask = argument(args, kwargs, 3, "attn_mask")
    if id(mask) in units.seen:
        units.equal(units.degree(mask), {})
    return value


def looked_up(units: Units, args: Any, kwargs: Any) -> Degree:
    weight = argument(args, kwargs, 1, "weight")
    owner = units.parameter(weight)
    if owner is not None:
        units.used(owner.name, "embedding")
    return units.degree(weight)


def padded(units: Units, args: Any, kwargs: Any) -> Degree:
    return common(units, [args[0], argument(args, kwargs, 3, "value") or 0])


def multi_head(units: Units, args: Any, kwargs: Any) -> Degree:
    """torch's own attention, which cuts one projection in three or takes three."""
    query, key, value = args[:3]
    packed, packed_bias = args[5], args[6]
    apart = [kwargs.get(f"{name}_proj_weight") for name in "qkv"]
    degrees = []
    for k, x in enumerate((query, key, value)):
        weight = units.third(packed, k) if packed is not None else apart[k]
        degree = combined((units.degree(x), 1), (units.degree(weight), 1))
        if packed_bias is not None:
            units.equal(units.degree(units.third(packed_bias, k)), degree)
        units.activations.append(degree)
        degrees.append(degree)
        for one in (weight, args[11]):
            owner = units.parameter(one)
            if owner is not None:
                units.used(owner.name, "matrix")
    for k, extra in ((1, args[7]), (2, args[8])):
        if extra is not None:
            units.equal(units.degree(extra), degrees[k])
    units.equal(combined((degrees[0], 1), (degrees[1], 1)), {})
    out = combined((degrees[2], 1), (units.degree(args[11]), 1))
    if args[12] is not None:
        units.equal(units.degree(args[12]), out)
    for tensor in (packed, packed_bias):
        owner = units.parameter(tensor)
        if owner is not None:
            units.labels[owner.name] = "qkv"
    return out


RULES: dict[str, Rule] = {
    **dict.fromkeys(SAME.split(), same),
    **dict.fromkeys(SUMS.split(), summed),
    **dict.fromkeys(PRODUCTS.split(), multiplied),
    **dict.fromkeys(FREE.split(), free),
    **{name: powered(exponent) for name, exponent in POWERS.items()},
    **dict.fromkeys(JOINED.split(), joined),
    **dict.fromkeys(["div", "divide", "true_divide"], divided),
    **dict.fromkeys(["conv1d", "conv2d", "conv3d"], convolution),
    **dict.fromkeys(["conv_transpose1d", "conv_transpose2d", "conv_transpose3d"], transposed),
    **dict.fromkeys(["matmul", "mm", "grouped_mm"], matmul),
    **dict.fromkeys(["clamp", "clip", "clamp_min", "clamp_max", "relu6", "hardtanh"], clamped),
    "rdiv": divided_into,
    "prelu": sloped,
    "pow": raised,
    "where": chosen,
    "masked_fill": filled,
    "pad": lambda units, args, kwargs: common(
        units, [args[0], argument(args, kwargs, 3, "value") or 0]
    ),
    "embedding": looked_up,
    "linear": linear,
    "addmm": addmm,
    "layer_norm": norm(2, 3),
    "rms_norm": norm(2),
    "group_norm": norm(2, 3),
    "instance_norm": norm(3, 4, statistics=(5, True)),
    "batch_norm": norm(3, 4, statistics=(5, False)),
    "weight_norm": lambda units, args, kwargs: units.degree(args[1]),
    "scaled_dot_product_attention": attention,
    "multi_head_attention_forward": multi_head,
}
