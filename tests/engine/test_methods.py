"""Each method against a hand-computed example, and against the property that its paper claims."""

import math
from typing import Any

import pytest
import torch
from compressed_tensors.quantization import QuantizationArgs
from compressed_tensors.quantization.lifecycle.forward import dequantize
from tests.engine.conftest import CPU
from torch import Tensor

from paredown.contracts.recipes import Esparse, Gptq, Magnitude, Owq, Rtn, Sparsegpt, Squeezellm, Stage, Svd, Wanda
from paredown.engine.compact import CodebookLinear, MixedLinear
from paredown.engine.errors import GroupSizeUnfit, HessianSingular, NanFound, RecipeUnfit
from paredown.engine.method import LinearWeight
from paredown.engine.methods import METHODS
from paredown.engine.methods.sparsegpt import compress_jointly
from paredown.engine.methods.squeezellm import cluster
from paredown.engine.quantized import KQuantLinear
from paredown.engine.shuffle import Exchange, shuffled
from paredown.engine.statistics import InputStatistics, Statistic

SEEDS = range(5)


def linear(weight_OI: Tensor, dtype: torch.dtype = torch.bfloat16) -> LinearWeight:
    return LinearWeight("layer", weight_OI.float().clone(), dtype)


def statistics(inputs_TI: Tensor) -> InputStatistics:
    gathered = InputStatistics("layer", inputs_TI.shape[1], {Statistic.HESSIAN, Statistic.ENTROPY}, CPU)
    gathered.add(inputs_TI)
    gathered.complete()
    return gathered


def apply(stage: Stage, target: LinearWeight, inputs: InputStatistics) -> LinearWeight:
    METHODS[stage.method].compress(target, inputs, stage)
    return target


def random_layer(seed: int, rows: int = 24, columns: int = 128, tokens: int = 400) -> tuple[Tensor, Tensor]:
    """A weight and correlated inputs, some channels much larger than others, as in trained models."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(columns, columns, generator=generator) / columns**0.5 + torch.eye(columns)
    scale = torch.rand(columns, generator=generator).mul(3).exp()
    inputs_TI = torch.randn(tokens, columns, generator=generator) @ mixing * scale
    return torch.randn(rows, columns, generator=generator), inputs_TI


def output_error(inputs_TI: Tensor, before_OI: Tensor, after_OI: Tensor) -> float:
    return float((inputs_TI @ (before_OI - after_OI).T).square().sum())


UNUSED = InputStatistics("layer", 4, set(), CPU)


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("group_size", [64, None])
def test_a_search_for_scales_of_eight_bits_loses_no_more_than_none(symmetric: bool, group_size: Any) -> None:
    weight_OI, _ = random_layer(3, rows=64, columns=576)
    errors = {}
    for scale_search in ("min_max", "least_squares"):
        stage = Rtn(bits=8, symmetric=symmetric, group_size=group_size, scale_search=scale_search)
        left = apply(stage, linear(weight_OI, torch.float32), statistics(torch.eye(576))).weight_OI
        errors[scale_search] = float((left - weight_OI).square().sum())
    assert errors["least_squares"] < errors["min_max"]


def test_rtn_symmetric_by_hand() -> None:
    # Largest weight 7.5 on a grid of −8…7: the scale is 7.5·2/15 = 1, so 7.5 itself is cut to 7.
    config = Rtn(bits=4, group_size=None, scale_search="min_max")
    result = apply(config, linear(torch.tensor([[7.5, -7.5, 0.4, -2.6]])), UNUSED)
    assert result.quantized is not None
    assert result.quantized.codes_OI.tolist() == [[7, -8, 0, -3]]
    assert result.quantized.scales_OG.tolist() == [[1.0]]
    assert result.quantized.zeros_OG is None
    assert result.weight_OI.tolist() == [[7.0, -8.0, 0.0, -3.0]]


def test_rtn_asymmetric_by_hand() -> None:
    # From −1 to 6.5 in 15 steps of 0.5: zero lies at code 2.
    config = Rtn(bits=4, group_size=None, symmetric=False, scale_search="min_max")
    result = apply(config, linear(torch.tensor([[-1.0, 6.5, 0.0, 0.7]])), UNUSED)
    assert result.quantized is not None
    assert result.quantized.zeros_OG is not None
    assert result.quantized.codes_OI.tolist() == [[0, 15, 2, 3]]
    assert result.quantized.scales_OG.tolist() == [[0.5]]
    assert result.quantized.zeros_OG.tolist() == [[2]]
    assert result.weight_OI.tolist() == [[-1.0, 6.5, 0.0, 0.5]]


def test_rtn_searched_scale_by_hand() -> None:
    # A row that lies on a grid of scale 1 is found there, though its largest weight alone would ask for 8·2/15.
    weight = torch.tensor([[1.0, 2.0, 3.0, -4.0, 5.0, -6.0, 7.0, -8.0] * 4])
    result = apply(Rtn(bits=4, group_size=32), linear(weight), InputStatistics("layer", 32, set(), CPU))
    assert result.quantized is not None
    assert torch.equal(result.weight_OI, weight)
    assert result.quantized.scales_OG.tolist() == [[1.0]]


def test_the_code_more_below_zero_goes_to_the_side_of_the_largest_weight() -> None:
    weight = torch.tensor([[-1.0, -2.0, -3.0, 4.0, -5.0, 6.0, -7.0, 8.0] * 4])
    result = apply(Rtn(bits=4, group_size=32), linear(weight), InputStatistics("layer", 32, set(), CPU))
    assert result.quantized is not None
    assert torch.equal(result.weight_OI, weight)
    assert result.quantized.scales_OG.tolist() == [[-1.0]]


def test_magnitude_by_hand() -> None:
    # The smallest half of the whole layer: both weights of the second row.
    result = apply(Magnitude(sparsity=0.5), linear(torch.tensor([[3.0, -4.0], [1.0, -2.0]])), UNUSED)
    assert result.weight_OI.tolist() == [[3.0, -4.0], [0.0, 0.0]]


def test_magnitude_drops_exactly_its_share_of_equal_weights() -> None:
    result = apply(Magnitude(sparsity=0.3), linear(torch.ones(5, 4)), UNUSED)
    assert int((result.weight_OI == 0).sum()) == 6


def test_wanda_by_hand() -> None:
    # The example of the paper's Figure 1: norms 1, 2, 8, 3 keep other weights than magnitude alone would.
    weight = torch.tensor([[4.0, 0.0, 1.0, -1.0], [3.0, -2.0, -1.0, -3.0], [-3.0, 1.0, 0.0, 2.0]])
    norms = torch.tensor([1.0, 2.0, 8.0, 3.0])
    result = apply(Wanda(sparsity=0.5), linear(weight), statistics(torch.diag(norms)))
    assert result.weight_OI.tolist() == [[4.0, 0.0, 1.0, 0.0], [0.0, 0.0, -1.0, -3.0], [-3.0, 0.0, 0.0, 2.0]]


def test_gptq_by_hand() -> None:
    # Two columns with H = [[2, 1], [1, 2]]: the first is rounded, and the second takes half of its error along
    # (H₁₂/H₂₂), which lifts it over the middle of two grid points.
    inputs = torch.linalg.cholesky(torch.tensor([[2.0, 1.0], [1.0, 2.0]], dtype=torch.float64)).T.float()
    config = Gptq(
        bits=4, group_size=None, activation_order=False, symmetric=False, scale_search="min_max", damping=1e-6
    )
    weight = torch.tensor([[0.4, 15.0 - 0.6], [0.4, 15.0]])
    result = apply(config, linear(weight), statistics(inputs))
    assert result.quantized is not None
    # Row 1: scale 14.4/15 → 0.96; row 2: scale 1. The error of 0.4 → 0 adds 0.2 to the second weight.
    assert result.quantized.codes_OI.tolist() == [[0, 15], [0, 15]]
    config = config.model_copy(update={"group_size": None})
    lifted = linear(torch.tensor([[0.4, 6.4, 15.0]]))
    inputs = torch.eye(3)
    inputs[:2, :2] = torch.linalg.cholesky(torch.tensor([[2.0, 1.0], [1.0, 2.0]])).T
    result = apply(config, lifted, statistics(inputs))
    assert result.quantized is not None
    # 6.4 alone would go to 6; with half of 0.4 it is 6.6 and goes to 7.
    assert result.quantized.codes_OI.tolist() == [[0, 7, 15]]


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6, 8])
@pytest.mark.parametrize("group_size", [32, None])
def test_values_are_bit_equal_to_what_the_format_gives_back(
    bits: int, group_size: int | None, symmetric: bool, dtype: torch.dtype
) -> None:
    weight_OI, inputs_TI = random_layer(bits)
    config = Gptq.model_validate({"bits": bits, "group_size": group_size, "symmetric": symmetric})
    quantized = apply(config, linear(weight_OI, dtype), statistics(inputs_TI)).quantized
    assert quantized is not None
    # The format's codes are signed, whatever the grid.
    shift = 0 if symmetric else 2 ** (bits - 1)
    strategy = {"strategy": "group", "group_size": group_size} if group_size else {"strategy": "channel"}
    expected = dequantize(
        (quantized.codes_OI.to(torch.int16) - shift).to(torch.int8),
        quantized.scales_OG,
        None if quantized.zeros_OG is None else (quantized.zeros_OG.to(torch.int16) - shift).to(torch.int8),
        QuantizationArgs(num_bits=bits, type="int", symmetric=symmetric, **strategy),
    )
    assert quantized.dequantized().dtype == dtype
    assert torch.equal(quantized.dequantized().view(torch.int16), expected.view(torch.int16))


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("symmetric", [True, False])
def test_gptq_loses_less_output_than_rtn_on_the_same_grid(seed: int, bits: int, symmetric: bool) -> None:
    weight_OI, inputs_TI = random_layer(seed)
    gathered = statistics(inputs_TI)
    grid = {"bits": bits, "group_size": 64, "symmetric": symmetric, "scale_search": "min_max"}
    rounded = apply(Rtn.model_validate(grid), linear(weight_OI), gathered)
    solved = apply(Gptq.model_validate(grid), linear(weight_OI), gathered)
    assert rounded.quantized is not None
    assert solved.quantized is not None
    assert torch.equal(rounded.quantized.scales_OG, solved.quantized.scales_OG)
    assert output_error(inputs_TI, weight_OI, solved.weight_OI) < output_error(inputs_TI, weight_OI, rounded.weight_OI)


@pytest.mark.parametrize("seed", SEEDS)
def test_gptq_in_order_loses_less_output_than_rtn(seed: int) -> None:
    weight_OI, inputs_TI = random_layer(seed)
    gathered = statistics(inputs_TI)
    rounded = apply(Rtn(bits=3, group_size=32), linear(weight_OI), gathered)
    solved = apply(Gptq(bits=3, group_size=32, activation_order=False), linear(weight_OI), gathered)
    assert output_error(inputs_TI, weight_OI, solved.weight_OI) < output_error(inputs_TI, weight_OI, rounded.weight_OI)


@pytest.mark.parametrize("activation_order", [True, False])
def test_gptq_equals_a_plain_loop_over_columns(activation_order: bool) -> None:
    """Lazy updates change the order of sums, not the result: Algorithm 1 of the paper, one column at a time."""
    weight_OI, inputs_TI = random_layer(0, columns=320, tokens=900)
    gathered = statistics(inputs_TI)
    config = Gptq(bits=4, group_size=None, activation_order=activation_order)
    result = apply(config, linear(weight_OI), gathered)
    assert result.quantized is not None
    scale = result.quantized.scales_OG.double()[:, 0]
    hessian = (inputs_TI.T @ inputs_TI).double()
    hessian += torch.eye(320) * 0.01 * hessian.diagonal().mean()
    order = hessian.diagonal().argsort(descending=True, stable=True) if activation_order else torch.arange(320)
    remaining = hessian[order][:, order].inverse()
    work = weight_OI.double()[:, order]
    codes = torch.empty_like(work)
    for column in range(320):
        codes[:, column] = (work[:, column] / scale).round().clamp(-8, 7)
        value = (codes[:, column] * scale).bfloat16().double()
        error = (work[:, column] - value) / remaining[column, column]
        work -= torch.outer(error, remaining[column])
        remaining -= torch.outer(remaining[:, column], remaining[column]) / remaining[column, column]
    expected = torch.empty_like(codes).index_copy_(1, order, codes)
    different = int((expected != result.quantized.codes_OI).sum())
    assert different <= 0.005 * codes.numel(), f"{different} codes differ"


@pytest.mark.parametrize("search", [Rtn(bits=3, group_size=32), Rtn(bits=4, group_size=None, symmetric=False)])
def test_searched_scales_have_less_squared_error_than_min_max(search: Rtn) -> None:
    weight_OI, _ = random_layer(7)
    searched = apply(search, linear(weight_OI), UNUSED)
    plain = apply(search.model_copy(update={"scale_search": "min_max"}), linear(weight_OI), UNUSED)
    assert (searched.weight_OI - weight_OI).square().sum() < (plain.weight_OI - weight_OI).square().sum()


@pytest.mark.parametrize("bits", [3, 4])
def test_scales_that_know_the_inputs_lose_less_output(bits: int) -> None:
    """One loud channel in each group: without its weight in the search, its few large products decide the error."""
    plain, known = 0.0, 0.0
    for seed in SEEDS:
        weight_OI, inputs_TI = random_layer(seed)
        inputs_TI[:, ::32] *= 20
        gathered = statistics(inputs_TI)
        config = Gptq.model_validate({"bits": bits, "group_size": 32})
        known += output_error(inputs_TI, weight_OI, apply(config, linear(weight_OI), gathered).weight_OI)
        flat = config.model_copy(update={"scale_search": "min_max"})
        plain += output_error(inputs_TI, weight_OI, apply(flat, linear(weight_OI), gathered).weight_OI)
    assert known < 0.8 * plain


@pytest.mark.parametrize("activation_order", [True, False])
@pytest.mark.parametrize("symmetric", [True, False])
def test_searched_damping_is_the_best_of_those_tried_in_every_row(symmetric: bool, activation_order: bool) -> None:
    weight_OI, inputs_TI = random_layer(2)
    gathered = statistics(inputs_TI)
    settings = {"bits": 3, "group_size": 32, "symmetric": symmetric, "activation_order": activation_order}

    def errors_O(**more: object) -> Tensor:
        result = apply(Gptq.model_validate(settings | more), linear(weight_OI), gathered)
        return (inputs_TI @ (weight_OI - result.weight_OI).T).square().sum(0)

    each = torch.stack([errors_O(damping=damping) for damping in (0.01, 0.001, 0.003, 0.03, 0.1)])
    assert torch.allclose(errors_O(damping_search=True), each.amin(0), rtol=1e-3)
    assert len(each.argmin(0).unique()) > 1


def test_a_damping_search_passes_over_what_does_not_factorize() -> None:
    weight_OI, _ = random_layer(0)
    gathered = statistics(torch.full((4, 128), 1e4) + torch.arange(128))
    # 1e-12 is singular here, and so is all that lies near it.
    with pytest.raises(HessianSingular, match=r"1e-12, 1e-13, 3e-13, 3e-12, 1e-11"):
        apply(Gptq(group_size=32, damping=1e-12, damping_search=True), linear(weight_OI), gathered)
    borderline = next(
        damping for damping in (10.0**-power for power in range(12, 0, -1)) if _factorizes(gathered, 10 * damping)
    )
    with pytest.raises(HessianSingular):
        apply(Gptq(group_size=32, damping=borderline), linear(weight_OI), gathered)
    apply(Gptq(group_size=32, damping=borderline, damping_search=True), linear(weight_OI), gathered)


def _factorizes(gathered: InputStatistics, damping: float) -> bool:
    try:
        gathered.inverse_factor(damping, True)
    except HessianSingular:
        return False
    return True


def test_sparsegpt_by_hand() -> None:
    # H = [[2, 1], [1, 2]], so inv(H) without later columns is 2/3, then 1/2. Of 1²/(2/3) and 3²/(1/2) the first goes,
    # and the second makes up for it with H₁₂/H₂₂ = 1/2. In the second row 4²/(2/3) = 24 stays and 2²/(1/2) = 8 goes;
    # nothing comes after it that could make up for it.
    inputs = torch.linalg.cholesky(torch.tensor([[2.0, 1.0], [1.0, 2.0]], dtype=torch.float64)).T.float()
    config = Sparsegpt(sparsity=0.5, damping=1e-6)
    result = apply(config, linear(torch.tensor([[1.0, 3.0], [4.0, 2.0]])), statistics(inputs))
    assert torch.allclose(result.weight_OI, torch.tensor([[0.0, 3.5], [4.0, 0.0]]), atol=1e-5)
    assert result.pruned_OI is not None
    assert result.pruned_OI.tolist() == [[True, False], [False, True]]


@pytest.mark.parametrize("loudness", [1e-3, 1.0, 1e3])
@pytest.mark.parametrize("recipe", [{"sparsity": 0.5}, {"pattern": "2:4"}])
def test_sparsegpt_drops_first_what_reads_silent_channels(recipe: dict[str, object], loudness: float) -> None:
    """Half of every four channels never speak, so that half of the weights go for nothing."""
    weight_OI, inputs_TI = random_layer(0)
    inputs_TI = inputs_TI.abs() * loudness
    inputs_TI[:, ::2] = 0
    result = apply(Sparsegpt.model_validate(recipe), linear(weight_OI), statistics(inputs_TI))
    assert result.pruned_OI is not None
    assert bool(result.pruned_OI[:, ::2].all())
    assert not bool(result.pruned_OI[:, 1::2].any())
    assert torch.allclose(result.weight_OI[:, 1::2], weight_OI[:, 1::2])


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("shape", [{"sparsity": 0.5}, {"pattern": "2:4"}, {"sparsity": 0.75}])
def test_sparsegpt_loses_less_output_than_wanda_and_wanda_than_magnitude(seed: int, shape: dict[str, object]) -> None:
    weight_OI, inputs_TI = random_layer(seed)
    gathered = statistics(inputs_TI)
    solved, scored, plain = (
        output_error(inputs_TI, weight_OI, apply(stage.model_validate(shape), linear(weight_OI), gathered).weight_OI)
        for stage in (Sparsegpt, Wanda, Magnitude)
    )
    assert solved < scored < plain


@pytest.mark.parametrize("pattern", [None, "2:4"])
def test_sparsegpt_equals_a_plain_loop_over_columns(pattern: str | None) -> None:
    """Lazy updates change the order of sums, not the result: Algorithm 1 of the paper, one column at a time, with the
    share of 128 columns and the order of N:M groups that the module's docstring tells of."""
    weight_OI, inputs_TI = random_layer(0, columns=320, tokens=900)
    result = apply(Sparsegpt(sparsity=0.5, pattern=pattern), linear(weight_OI), statistics(inputs_TI))
    hessian = (inputs_TI.T @ inputs_TI).double()
    hessian += torch.eye(320) * 0.01 * hessian.diagonal().mean()
    if pattern:
        groups = hessian.diagonal().view(-1, 4).sum(1).argsort(descending=True)
        order = (groups.unsqueeze(1) * 4 + torch.arange(4)).flatten()
        hessian, weight_OI = hessian[order][:, order], weight_OI[:, order]
        result.weight_OI = result.weight_OI[:, order]
    # Row j of the inverse over the columns from j on, for every j.
    rows = [hessian[column:, column:].inverse()[0] for column in range(320)]
    work = weight_OI.double()
    pruned = torch.zeros_like(work, dtype=torch.bool)
    first_score = work.square() / torch.tensor([float(row[0]) for row in rows])
    threshold = first_score.flatten().kthvalue(first_score.numel() // 2).values
    together = 4 if pattern else 128
    for column in range(320):
        if column % together == 0:
            last = min(column + together, 320)
            score = work[:, column:last].square() / torch.tensor(
                [float(rows[index][0]) for index in range(column, last)]
            )
            if pattern:
                pruned[:, column:last].scatter_(1, score.argsort(1)[:, :2], True)
            else:
                count = int((first_score[:, column:last] <= threshold).sum())
                pruned[:, column:last] = score <= score.flatten().kthvalue(count).values
        error = work[:, column] * pruned[:, column] / rows[column][0]
        work[:, column:] -= torch.outer(error, rows[column])
        work[:, column] *= ~pruned[:, column]
    different = (work - result.weight_OI).abs() > 1e-3
    assert float(different.float().mean()) < 0.01


@pytest.mark.parametrize("sparsity", [0.1, 0.5, 0.75])
def test_sparsegpt_prunes_exactly_its_share_of_a_layer(sparsity: float) -> None:
    weight_OI, inputs_TI = random_layer(3, columns=192)
    result = apply(Sparsegpt(sparsity=sparsity), linear(weight_OI), statistics(inputs_TI))
    assert int((result.weight_OI == 0).sum()) == int(24 * 192 * sparsity + 1e-9)


def test_sparsegpt_keeps_what_was_pruned_before_and_counts_it() -> None:
    weight_OI, inputs_TI = random_layer(3)
    gathered = statistics(inputs_TI)
    for shape in (Sparsegpt(sparsity=0.5), Sparsegpt(pattern="2:4")):
        target = apply(Magnitude(pattern="3:4"), linear(weight_OI), gathered)
        before_OI = target.weight_OI == 0
        apply(shape, target, gathered)
        assert bool((target.weight_OI[before_OI] == 0).all())
        assert int((target.weight_OI == 0).sum()) == 24 * 64


@pytest.mark.parametrize(
    ("shape", "activation_order", "share"),
    [
        ({"sparsity": 0.5}, True, 0.85),
        ({"sparsity": 0.5}, False, 0.85),
        ({"pattern": "2:4"}, True, 0.85),
        # Least is left to make up for a pattern; a grid whose odd code is on the right side has less to lose besides.
        ({"pattern": "2:4"}, False, 0.92),
    ],
)
def test_pruning_and_rounding_in_one_sweep_lose_less_output_than_one_after_the_other(
    shape: dict[str, object], activation_order: bool, share: float
) -> None:
    pruning = Sparsegpt.model_validate(shape)
    rounding = Gptq(bits=3, group_size=32, activation_order=activation_order)
    joint = after_each_other = 0.0
    for seed in SEEDS:
        weight_OI, inputs_TI = random_layer(seed, columns=256)
        gathered = statistics(inputs_TI)
        target = linear(weight_OI)
        compress_jointly(target, gathered, pruning, rounding)
        joint += output_error(inputs_TI, weight_OI, target.weight_OI)
        assert target.pruned_OI is not None
        assert int(target.pruned_OI.sum()) == 24 * 128
        assert bool((target.weight_OI[target.pruned_OI] == 0).all())
        if pruning.pattern:
            assert bool((target.pruned_OI.view(-1, 4).sum(1) == 2).all())
        simple = apply(pruning, linear(weight_OI), gathered)
        apply(Rtn(bits=3, group_size=32), simple, gathered)
        after_each_other += output_error(inputs_TI, weight_OI, simple.weight_OI)
    assert joint < share * after_each_other


@pytest.mark.parametrize("settings", [{}, {"activation_order": False}, {"damping_search": True}])
@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6])
def test_gptq_on_super_blocks_loses_less_output_than_rounding_to_nearest(
    bits: int, settings: dict[str, object]
) -> None:
    found = nearest = 0.0
    stage = {"bits": bits, "k_quant": True}
    for seed in SEEDS:
        weight_OI, inputs_TI = random_layer(seed, columns=512)
        gathered = statistics(inputs_TI)
        solving = Gptq.model_validate(stage | settings).for_width(512)
        solved = apply(solving, linear(weight_OI, torch.float16), gathered)
        assert isinstance(solved.quantized, KQuantLinear)
        assert torch.equal(solved.weight_OI, solved.quantized.dequantized())
        found += output_error(inputs_TI, weight_OI, solved.weight_OI)
        rounded = apply(Rtn.model_validate(stage).for_width(512), linear(weight_OI, torch.float16), gathered)
        nearest += output_error(inputs_TI, weight_OI, rounded.weight_OI)
    assert found < 0.5 * nearest


@pytest.mark.parametrize("bits", [3, 6])
def test_super_blocks_without_minima_keep_zeros(bits: int) -> None:
    weight_OI, inputs_TI = random_layer(1, columns=256)
    gathered = statistics(inputs_TI)
    target = apply(Wanda(), linear(weight_OI, torch.float16), gathered)
    assert target.pruned_OI is not None
    apply(Gptq.model_validate({"bits": bits, "k_quant": True}).for_width(256), target, gathered)
    assert not target.weight_OI[target.pruned_OI].any()


def test_entropy_by_hand() -> None:
    # 200 tokens: spread evenly over all bins, always the same value, one of two values, and one token in 200 apart.
    steps = torch.arange(200.0)
    inputs_TI = torch.stack([steps, torch.full((200,), 3.0), steps % 2, (steps == 7).float() * 1e3], dim=1)
    gathered = InputStatistics("layer", 4, {Statistic.ENTROPY}, CPU)
    for part_TI in inputs_TI[torch.randperm(200, generator=torch.Generator().manual_seed(0))].split(200):
        gathered.add(part_TI)
    rare = 1 / 200
    expected = [math.log(100), 0, math.log(2), -rare * math.log(rare) - (1 - rare) * math.log(1 - rare)]
    assert torch.allclose(gathered.entropy_I, torch.tensor(expected), atol=1e-3)
    assert torch.allclose(gathered.energy_I, inputs_TI.square().sum(0))


def test_esparse_by_hand() -> None:
    # Equal weights and equal norms: of each four channels the two whose values vary stay.
    signs = torch.tensor([1.0, -1.0]).repeat(32)
    spread = torch.linspace(-1, 1, 64) * 3**0.5
    inputs_TI = torch.stack([signs, spread, signs, spread], dim=1)
    config = Esparse(pattern="2:4", entropy_weight=1, shuffle=False)
    result = apply(config, linear(torch.ones(3, 4)), statistics(inputs_TI))
    assert result.weight_OI.tolist() == [[0, 1, 0, 1]] * 3
    # A weight that is large enough outweighs them.
    result = apply(config, linear(torch.tensor([[9.0, 1.0, 1.0, 1.1]])), statistics(inputs_TI))
    assert result.weight_OI.tolist() == [[9, 0, 0, pytest.approx(1.1)]]


def test_esparse_without_entropy_is_wanda() -> None:
    weight_OI, inputs_TI = random_layer(3)
    gathered = statistics(inputs_TI)
    ours = apply(Esparse(pattern="2:4", entropy_weight=0, shuffle=False), linear(weight_OI), gathered)
    assert torch.equal(ours.weight_OI, apply(Wanda(pattern="2:4"), linear(weight_OI), gathered).weight_OI)


def test_a_shuffle_keeps_more_of_what_matters() -> None:
    generator = torch.Generator().manual_seed(0)
    for channels, kept, of in ((32, 2, 4), (96, 1, 4), (64, 4, 8)):
        score_RC = (
            torch.rand(40, channels, generator=generator) * torch.rand(channels, generator=generator).mul(4).exp()
        )
        order_C = shuffled(score_RC, kept, of)
        assert sorted(order_C.tolist()) == list(range(channels))
        plain, better = (
            score_RC[:, order].view(40, -1, of).topk(kept, dim=2).values.sum()
            for order in (torch.arange(channels), order_C)
        )
        assert better > 1.01 * plain
    # All that matters in one group: after the shuffle nothing of it is lost.
    score_RC = torch.full((5, 16), 0.01)
    score_RC[:, :4] = 1
    groups_GM = shuffled(score_RC, 2, 4).view(-1, 4)
    assert (groups_GM < 4).sum(1).max() <= 2
    # Channels that are all alike stay where they are.
    assert shuffled(torch.ones(5, 16), 2, 4).tolist() == list(range(16))


@pytest.mark.parametrize(("blocks", "repeats"), [(1, 1), (4, 1), (2, 3)])
def test_rows_follow_the_channels_that_they_produce(blocks: int, repeats: int) -> None:
    channels = 8
    exchange = Exchange(blocks, repeats, (("producer", 0),))
    generator = torch.Generator().manual_seed(0)
    order_BC = torch.stack([torch.randperm(channels, generator=generator) for _ in range(blocks)])
    produced_R = torch.arange(blocks * channels)
    # Each block of produced values is read by so many heads.
    read_I = produced_R.view(blocks, 1, channels).expand(blocks, repeats, channels).flatten()
    follows_I = (
        produced_R[exchange.rows(order_BC)].view(blocks, 1, channels).expand(blocks, repeats, channels).flatten()
    )
    assert torch.equal(read_I[exchange.columns(order_BC)], follows_I)


@pytest.mark.parametrize("stage", [Wanda(pattern="2:4"), Esparse()])
def test_scores_and_weights_stay_together_in_a_shuffle(stage: Stage) -> None:
    weight_OI, inputs_TI = random_layer(3)
    target = linear(weight_OI)
    target.exchange = Exchange(2, 1, ())
    apply(stage, target, statistics(inputs_TI))
    kept_OI = target.in_place(target.weight_OI)
    assert torch.equal(kept_OI[kept_OI != 0], weight_OI[kept_OI != 0])
    assert bool(((target.weight_OI == 0).view(24, -1, 4).sum(2) == 2).all())
    assert (target.order_BC is not None) == isinstance(stage, Esparse)


@pytest.mark.parametrize("sparsity", [0.1, 0.5, 0.75])
def test_wanda_prunes_exactly_its_share_of_each_row(sparsity: float) -> None:
    weight_OI, inputs_TI = random_layer(3, columns=96)
    result = apply(Wanda(sparsity=sparsity), linear(weight_OI), statistics(inputs_TI))
    assert (result.weight_OI == 0).sum(1).tolist() == [int(96 * sparsity)] * 24
    kept = result.weight_OI != 0
    assert torch.equal(result.weight_OI[kept], weight_OI[kept])


@pytest.mark.parametrize(
    "stage", [Wanda(pattern="2:4"), Magnitude(pattern="1:8"), Wanda(pattern="3:4"), Sparsegpt(pattern="2:4")]
)
def test_a_pattern_holds_in_every_group_of_neighbours(stage: Wanda | Magnitude | Sparsegpt) -> None:
    weight_OI, inputs_TI = random_layer(4)
    result = apply(stage, linear(weight_OI), statistics(inputs_TI))
    assert stage.pattern is not None
    kept, of = (int(part) for part in stage.pattern.split(":"))
    assert set((result.weight_OI.view(-1, of) != 0).sum(1).tolist()) == {kept}


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("activation_order", [True, False])
def test_gptq_keeps_pruned_weights_at_zero_and_makes_up_for_them(symmetric: bool, activation_order: bool) -> None:
    weight_OI, inputs_TI = random_layer(5)
    gathered = statistics(inputs_TI)
    target = apply(Wanda(sparsity=0.5), linear(weight_OI), gathered)
    pruned_OI = target.weight_OI == 0
    config = Gptq(bits=4, group_size=32, symmetric=symmetric, activation_order=activation_order)
    apply(config, target, gathered)
    assert target.quantized is not None
    codes_OI = target.quantized.codes_OI
    zeros = target.quantized.zeros_OG
    expected = torch.zeros_like(codes_OI) if zeros is None else zeros.repeat_interleave(32, 1)
    assert torch.equal(codes_OI[pruned_OI], expected[pruned_OI])
    assert bool((target.weight_OI[pruned_OI] == 0).all())
    simple = apply(Wanda(sparsity=0.5), linear(weight_OI), gathered)
    apply(Rtn(bits=4, group_size=32, symmetric=symmetric), simple, gathered)
    assert bool((simple.weight_OI[pruned_OI] == 0).all())
    assert output_error(inputs_TI, weight_OI, target.weight_OI) < output_error(inputs_TI, weight_OI, simple.weight_OI)


@pytest.mark.parametrize("activation_order", [True, False])
def test_channels_that_were_never_active_are_rounded_by_themselves(activation_order: bool) -> None:
    weight_OI, inputs_TI = random_layer(6)
    inputs_TI[:, [0, 17, 127]] = 0
    config = Gptq(bits=4, group_size=None, activation_order=activation_order)
    result = apply(config, linear(weight_OI), statistics(inputs_TI))
    assert result.quantized is not None
    nearest = (weight_OI / result.quantized.scales_OG.float()).round().clamp(-8, 7)
    different = nearest != result.quantized.codes_OI
    assert not bool(different[:, [0, 17, 127]].any())
    assert bool(different.any())


def test_a_layer_that_was_never_active_is_rounded() -> None:
    weight_OI, inputs_TI = random_layer(6)
    result = apply(Gptq(bits=4, group_size=32), linear(weight_OI), statistics(torch.zeros_like(inputs_TI)))
    assert torch.equal(result.weight_OI, apply(Rtn(bits=4, group_size=32), linear(weight_OI), UNUSED).weight_OI)


def test_a_row_of_zeros_stays_zero() -> None:
    weight_OI, inputs_TI = random_layer(6)
    weight_OI[3] = 0
    for stage in (Rtn(group_size=32), Rtn(group_size=32, symmetric=False), Gptq(group_size=32)):
        result = apply(stage, linear(weight_OI), statistics(inputs_TI))
        assert bool((result.weight_OI[3] == 0).all())


def test_a_hessian_that_does_not_factorize_names_layer_and_damping() -> None:
    weight_OI, _ = random_layer(0)
    inputs_TI = torch.full((4, 128), 1e4) + torch.arange(128)
    gathered = statistics(inputs_TI)
    with pytest.raises(HessianSingular, match=r"layer.*damping 1e-12") as caught:
        apply(Gptq(group_size=32, damping=1e-12), linear(weight_OI), gathered)
    assert caught.value.field == "damping"
    apply(Gptq(group_size=32, damping=0.01), linear(weight_OI), gathered)


@pytest.mark.parametrize("statistic", Statistic)
def test_inputs_that_are_not_finite_name_the_layer(statistic: Statistic) -> None:
    gathered = InputStatistics("model.layers.3.mlp.fc1", 4, {statistic}, CPU)
    gathered.add(torch.tensor([[1.0, 2.0, float("nan"), 3.0]]), torch.ones(1, 4))
    with pytest.raises(NanFound, match=r"model\.layers\.3\.mlp\.fc1"):
        gathered.complete()


def test_what_is_not_finite_in_the_base_beside_names_the_layer() -> None:
    gathered = InputStatistics("model.layers.3.mlp.fc1", 4, {Statistic.HESSIAN, Statistic.SHIFT}, CPU)
    gathered.add(torch.ones(1, 4), torch.tensor([[1.0, 2.0, float("inf"), 3.0]]))
    with pytest.raises(NanFound, match=r"model\.layers\.3\.mlp\.fc1"):
        gathered.complete()


def test_both_statistics_give_the_same_energy() -> None:
    _, inputs_TI = random_layer(1)
    both = []
    for statistic in (Statistic.ENERGY, Statistic.HESSIAN):
        gathered = InputStatistics("layer", 128, {statistic}, CPU)
        for part in inputs_TI.split(150):
            gathered.add(part)
        gathered.complete()
        both.append(gathered.energy_I)
    assert torch.allclose(both[0], both[1], rtol=1e-5)
    assert torch.allclose(both[0], inputs_TI.square().sum(0), rtol=1e-5)


def test_what_was_bfloat16_loses_nothing_in_the_hessian() -> None:
    inputs_TI = torch.randn(512, 200, generator=torch.Generator().manual_seed(0)).bfloat16()
    gathered = InputStatistics("layer", 200, {Statistic.HESSIAN}, CPU)
    before = torch.backends.mkldnn.matmul.fp32_precision

    gathered.add(inputs_TI)
    gathered.complete()

    exact_II = inputs_TI.double().T @ inputs_TI.double()
    assert torch.allclose(gathered.hessian_II.double(), exact_II, rtol=1e-5, atol=1e-3)
    assert torch.backends.mkldnn.matmul.fp32_precision == before, "products elsewhere are float32's"


def test_the_hessian_and_its_factor_are_what_they_say() -> None:
    weight_OI, inputs_TI = random_layer(2, columns=100)
    gathered = statistics(inputs_TI)
    hessian = (inputs_TI.double().T @ inputs_TI.double()).float()
    assert torch.allclose(gathered.hessian_II, hessian, rtol=1e-4, atol=1e-2)
    assert gathered.output_energy(weight_OI) == pytest.approx(float((inputs_TI @ weight_OI.T).square().sum()), rel=1e-4)
    upper_II, order_I = gathered.inverse_factor(0.01, True)
    assert order_I is not None
    assert bool((upper_II.tril(-1) == 0).all())
    damped = hessian.double() + torch.eye(100) * 0.01 * hessian.diagonal().mean()
    product = (upper_II.T @ upper_II).double() @ damped[order_I][:, order_I]
    assert torch.allclose(product, torch.eye(100).double(), atol=1e-3)


def test_settings_that_do_not_fit_a_layer_are_refused() -> None:
    weight_OI, inputs_TI = random_layer(0, columns=96)
    with pytest.raises(GroupSizeUnfit, match=r"64 does not divide the 96 input channels of layer"):
        apply(Rtn(group_size=64), linear(weight_OI), UNUSED)
    for stage in (Wanda(pattern="2:7"), Sparsegpt(pattern="2:7")):
        with pytest.raises(RecipeUnfit, match=r"2:7 does not fit layer"):
            apply(stage, linear(weight_OI), statistics(inputs_TI))


def test_svd_by_hand() -> None:
    # Of diag(4, 1) plain truncation keeps the 4; where the second input is ten times as large, the 1 makes more output.
    weight = torch.tensor([[4.0, 0.0], [0.0, 1.0]])
    inputs = statistics(torch.diag(torch.tensor([1.0, 10.0])))
    plain = apply(Svd(ratio=0.5, whitening=False), linear(weight), inputs)
    assert torch.allclose(plain.weight_OI, torch.tensor([[4.0, 0.0], [0.0, 0.0]]), atol=1e-2)
    whitened = apply(Svd(ratio=0.5, damping=1e-6), linear(weight), inputs)
    assert torch.allclose(whitened.weight_OI, torch.tensor([[0.0, 0.0], [0.0, 1.0]]), atol=1e-2)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("rows", [24, 200])
def test_svd_loses_what_the_dropped_singular_values_say_and_less_than_plain(seed: int, rows: int) -> None:
    """The paper's theorem: the squared output error is the sum of the squares of what was truncated."""
    weight_OI, inputs_TI = random_layer(seed, rows=rows)
    gathered = statistics(inputs_TI)
    config = Svd(ratio=0.4, damping=1e-9)
    whitened = apply(config, linear(weight_OI), gathered)
    plain = apply(config.model_copy(update={"whitening": False}), linear(weight_OI), gathered)
    values_M = torch.linalg.svdvals(inputs_TI.double() @ weight_OI.double().T)
    least = float(values_M[config.rank(rows, 128) :].square().sum())
    error = output_error(inputs_TI, weight_OI, whitened.weight_OI)
    # Factors are stored in bfloat16, which costs about 2⁻⁹ of the output.
    total = output_error(inputs_TI, weight_OI, torch.zeros_like(weight_OI))
    assert least - 1e-4 * total < error < least + 1e-4 * total
    assert error < 0.9 * output_error(inputs_TI, weight_OI, plain.weight_OI)


def test_svd_of_a_layer_whose_inputs_were_always_zero_is_plain() -> None:
    weight_OI, inputs_TI = random_layer(0)
    silent = apply(Svd(), linear(weight_OI), statistics(torch.zeros_like(inputs_TI)))
    plain = apply(Svd(whitening=False), linear(weight_OI), statistics(inputs_TI))
    assert torch.allclose(silent.weight_OI, plain.weight_OI, atol=0.02)


def energies(values_I: list[float]) -> InputStatistics:
    return statistics(torch.diag(torch.tensor(values_I).sqrt()))


def test_squeezellm_by_hand() -> None:
    # Four values for {0, 1 | 10 | 20 | 30}: of 0 and 1 the second counts three times, so their value is 0.75.
    weight = torch.tensor([[10.0, 0.0, 30.0, 1.0, 20.0]])
    config = Squeezellm(bits=2, outliers=0, sensitive=0, compensate=False)
    result = apply(config, linear(weight), energies([1.0, 1.0, 1.0, 3.0, 1.0]))
    assert isinstance(result.quantized, CodebookLinear)
    assert result.quantized.codebooks_OK.tolist() == [[0.75, 10.0, 20.0, 30.0]]
    assert result.quantized.codes_OI.tolist() == [[1, 0, 3, 0, 2]]
    assert result.weight_OI.tolist() == [[10.0, 0.75, 30.0, 0.75, 20.0]]


def test_squeezellm_keeps_the_largest_and_the_most_sensitive_weights() -> None:
    # Of ten, one as the largest (the −40 at 2) and one as the most sensitive (the 7 at 5): both exact, and the other
    # eight need four values only.
    weight = torch.tensor([[1.0, 1.0, -40.0, 2.0, 2.0, 7.0, 3.0, 3.0, 4.0, 4.0]])
    config = Squeezellm(bits=2, outliers=0.1, sensitive=0.1)
    result = apply(config, linear(weight), energies([1.0] * 5 + [50.0] + [1.0] * 4))
    assert isinstance(result.quantized, CodebookLinear)
    assert result.quantized.positions_OS.tolist() == [[2, 5]]
    assert result.quantized.codebooks_OK.tolist() == [[1.0, 2.0, 3.0, 4.0]]
    assert torch.equal(result.weight_OI, weight)


def test_squeezellm_keeps_what_was_pruned_at_zero() -> None:
    weight_OI, inputs_TI = random_layer(0)
    pruned = linear(weight_OI.abs() + 3)
    mask_OI = torch.rand(weight_OI.shape, generator=torch.Generator().manual_seed(0)) < 0.5
    pruned.prune(mask_OI)
    result = apply(Squeezellm(bits=2, outliers=0.02), pruned, statistics(inputs_TI))
    assert bool((result.weight_OI[mask_OI] == 0).all())
    assert not bool((result.weight_OI[~mask_OI] == 0).any())


def test_clusters_are_the_best_there_are() -> None:
    """Against every way of cutting the sorted row into runs, which in one dimension are all that can be best."""
    generator = torch.Generator().manual_seed(0)
    weight_OI = torch.randn(40, 12, generator=generator)
    counts_OI = torch.rand(40, 12, generator=generator).double() + 0.05
    found_OK = cluster(weight_OI, counts_OI, 3)
    assert bool((found_OK.diff(dim=1) >= 0).all())
    error_O = ((weight_OI.unsqueeze(2) - found_OK.unsqueeze(1)).square().amin(2) * counts_OI).sum(1)
    sorted_OI, order_OI = weight_OI.double().sort(dim=1)
    counts_OI = counts_OI.gather(1, order_OI)

    def error_of(first: int, last: int) -> Tensor:
        part, count = sorted_OI[:, first:last], counts_OI[:, first:last]
        mean_O1 = (part * count).sum(1, keepdim=True) / count.sum(1, keepdim=True)
        return ((part - mean_O1).square() * count).sum(1)

    cuts = [(one, two) for one in range(1, 11) for two in range(one + 1, 12)]
    best_O = torch.stack([error_of(0, one) + error_of(one, two) + error_of(two, 12) for one, two in cuts]).amin(0)
    assert bool((error_O >= best_O - 1e-9).all())
    # k-means finds a local optimum; the better of two starts is mostly the best, and never far from it.
    assert float(error_O.sum()) < 1.1 * float(best_O.sum())


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("bits", [3, 4])
@pytest.mark.parametrize("compensate", [False, True])
def test_codebooks_lose_less_output_than_a_uniform_grid_of_as_many_bits(seed: int, bits: int, compensate: bool) -> None:
    weight_OI, inputs_TI = random_layer(seed)
    gathered = statistics(inputs_TI)
    grid = (Gptq if compensate else Rtn).model_validate({"bits": bits, "group_size": None})
    dense = Squeezellm.model_validate({"bits": bits, "outliers": 0, "sensitive": 0, "compensate": compensate})
    sparse = dense.model_copy(update={"outliers": 0.02, "sensitive": 0.01})
    uniform, clustered, with_kept = (
        output_error(inputs_TI, weight_OI, apply(stage, linear(weight_OI), gathered).weight_OI)
        for stage in (grid, dense, sparse)
    )
    assert with_kept < clustered < uniform


@pytest.mark.parametrize("seed", SEEDS)
def test_squeezellm_loses_less_output_when_columns_absorb_the_errors_of_others(seed: int) -> None:
    weight_OI, inputs_TI = random_layer(seed)
    gathered = statistics(inputs_TI)
    paper, absorbing = (
        output_error(inputs_TI, weight_OI, apply(stage, linear(weight_OI), gathered).weight_OI)
        for stage in (Squeezellm(bits=3, compensate=False), Squeezellm(bits=3))
    )
    assert absorbing < 0.7 * paper


def test_rows_are_clustered_alike_however_many_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    weight_OI, inputs_TI = random_layer(1)
    gathered = statistics(inputs_TI)
    whole = apply(Squeezellm(bits=3), linear(weight_OI), gathered)
    monkeypatch.setattr("paredown.engine.methods.squeezellm._CHUNK", 5 * 128)
    monkeypatch.setattr("paredown.engine.compact._CHUNK", 7 * 128)
    assert torch.equal(apply(Squeezellm(bits=3), linear(weight_OI), gathered).weight_OI, whole.weight_OI)


def test_owq_by_hand() -> None:
    # H = [[2, 1], [1, 2]] and a grid of 1: rounding changes 0.4 and 1.0 by 0.4 and 0, 15 by nothing. With one weak
    # column, the first, the others are rounded first; the second is exact, so nothing is left to absorb.
    inputs = torch.eye(3)
    inputs[:2, :2] = torch.linalg.cholesky(torch.tensor([[2.0, 1.0], [1.0, 2.0]])).T
    grid = {"bits": 4, "group_size": None, "symmetric": False, "scale_search": "min_max", "damping": 1e-6}
    config = Owq.model_validate(grid | {"extra_bits": 4})
    assert config.weak(3) == 1
    result = apply(config, linear(torch.tensor([[0.4, 1.0, 15.0]])), statistics(inputs))
    assert isinstance(result.quantized, MixedLinear)
    assert result.quantized.columns_W.tolist() == [0]
    assert torch.allclose(result.weight_OI, torch.tensor([[0.4, 1.0, 15.0]]), atol=2e-3)
    # H = [[8, 2], [2, 2]]: 0.6 goes up to 1, and the weak 0.5 before it makes up for that with 0.4 · H₁₂/H₁₁ = 0.1.
    result = apply(config, linear(torch.tensor([[0.5, 0.6, 15.0]])), statistics(inputs * torch.tensor([2.0, 1.0, 1.0])))
    assert isinstance(result.quantized, MixedLinear)
    assert result.quantized.columns_W.tolist() == [0]
    assert torch.allclose(result.weight_OI, torch.tensor([[0.4, 1.0, 15.0]]), atol=2e-3)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("symmetric", [True, False])
def test_owq_loses_less_output_than_gptq_and_less_with_every_column(seed: int, symmetric: bool) -> None:
    weight_OI, inputs_TI = random_layer(seed)
    gathered = statistics(inputs_TI)
    grid = {"bits": 3, "group_size": 32, "symmetric": symmetric}
    errors = [
        output_error(inputs_TI, weight_OI, apply(stage, linear(weight_OI), gathered).weight_OI)
        for stage in (
            Gptq.model_validate(grid),
            *(Owq.model_validate(grid | {"extra_bits": columns / 8}) for columns in (0, 1, 4, 16)),
        )
    ]
    assert errors[1] == errors[0], "without weak columns it is gptq"
    assert errors[1:] == sorted(errors[1:], reverse=True)
    assert errors[-1] < 0.5 * errors[0]


def test_owq_chooses_the_columns_that_rounding_hurts_most() -> None:
    weight_OI, inputs_TI = random_layer(0)
    # Two loud channels, of which one has weights that lie on the grid already.
    weight_OI = weight_OI.clamp(-3, 3)
    inputs_TI[:, 7] *= 300
    inputs_TI[:, 70] *= 300
    weight_OI[:, 70] = 0
    result = apply(Owq(bits=3, group_size=32, extra_bits=1 / 8), linear(weight_OI), statistics(inputs_TI))
    assert isinstance(result.quantized, MixedLinear)
    assert result.quantized.columns_W.tolist() == [7]
    assert torch.allclose(result.weight_OI[:, 7], weight_OI[:, 7], rtol=0.05, atol=0.05)


def test_owq_keeps_what_was_pruned_at_zero_in_weak_columns_too() -> None:
    weight_OI, inputs_TI = random_layer(3)
    pruned = linear(weight_OI)
    mask_OI = torch.rand(weight_OI.shape, generator=torch.Generator().manual_seed(0)) < 0.5
    pruned.prune(mask_OI)
    result = apply(Owq(bits=3, group_size=32, extra_bits=1), pruned, statistics(inputs_TI))
    assert isinstance(result.quantized, MixedLinear)
    assert len(result.quantized.columns_W) == 8
    assert bool((result.weight_OI[mask_OI] == 0).all())
