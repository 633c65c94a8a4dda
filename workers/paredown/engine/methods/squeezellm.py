"""SqueezeLLM: each row has a codebook of its own, by k-means that weighs sensitive weights more; outliers keep 16 bit.

Paper: Kim et al., "SqueezeLLM: Dense-and-Sparse Quantization", arXiv:2306.07629. The paper weighs each weight by the
diagonal of the Fisher information, from gradients of the loss. Here it is the diagonal of the inputs' second moment,
which is the same for all rows: the sensitivity of the layer's own output, for which no backward pass is needed; with
`compensate` its root (columns.channel_importance).
Dense-and-sparse: the largest weights of a row, and those with the loudest inputs, are kept beside the codes and take no
part in the clustering. With `compensate`, which the paper has not, columns are rounded to their codebooks one after the
other as in GPTQ, and later ones absorb the error; weights kept in 16 bit absorb it as well.
In one dimension clusters are runs of the sorted weights, so a step of k-means reads their sums
off prefix sums, and all rows step at once.
Shapes: O out_features, I in_features, K values of a codebook, S weights of a row that are kept.
Units: damping is a share of the Hessian's mean diagonal.
"""

import torch
from torch import Tensor

from paredown.contracts.recipes import Squeezellm
from paredown.engine.columns import channel_importance, ordered, restored, sweep
from paredown.engine.compact import CodebookLinear
from paredown.engine.method import LinearMethod, LinearWeight
from paredown.engine.statistics import InputStatistics, Statistic

# Steps of k-means; a step costs a search in K-1 borders for each row, so more than enough of them are free.
_STEPS = 60
# Weights clustered at once: some ten numbers of eight bytes are held for each.
_CHUNK = 2**21


def compress(linear: LinearWeight, inputs: InputStatistics, config: Squeezellm) -> None:
    """Raises HessianSingular."""
    weight_OI = linear.weight_OI
    # Channels that were silent in calibration still count for something.
    energy_I = inputs.energy_I / inputs.energy_I.mean().clamp(min=1e-30)
    sensitivity_I = channel_importance(energy_I) if config.compensate else energy_I.clamp(min=1e-4)
    counts_OI = sensitivity_I.expand_as(weight_OI)
    if linear.pruned_OI is not None:
        counts_OI = counts_OI.masked_fill(linear.pruned_OI, 0.0)
    positions_OS = _kept(weight_OI, counts_OI, config)
    counts_OI = counts_OI.scatter(1, positions_OS, 0.0)
    codebooks_OK = _codebooks(linear, counts_OI, config)
    if config.compensate:
        codes_OI, kept_OS = _compensated(linear, inputs, codebooks_OK, positions_OS, config)
    else:
        codes_OI = nearest(codebooks_OK.float(), weight_OI)
        kept_OS = weight_OI.gather(1, positions_OS)
    linear.quantize(
        CodebookLinear(
            codes_OI.to(torch.uint8), codebooks_OK, positions_OS.int(), kept_OS.to(linear.storage_dtype), config.bits
        )
    )


def _codebooks(linear: LinearWeight, counts_OI: Tensor, config: Squeezellm) -> Tensor:
    """codebooks_OK in the storage dtype, rising; some rows at a time."""
    values = 2**config.bits
    rows = max(1, _CHUNK // counts_OI.shape[1])
    parts = zip(torch.split(linear.weight_OI, rows), torch.split(counts_OI, rows), strict=True)
    if linear.pruned_OI is None:
        codebooks_OK = torch.cat([cluster(weight_OI, part_OI, values) for weight_OI, part_OI in parts])
    else:
        # Zero is a value of every codebook, so that pruned weights stay zero.
        free_OK = torch.cat([cluster(weight_OI, part_OI, values - 1) for weight_OI, part_OI in parts])
        codebooks_OK = torch.cat([free_OK, free_OK.new_zeros(len(free_OK), 1)], dim=1)
    return codebooks_OK.to(linear.storage_dtype).sort(dim=1).values


def _compensated(
    linear: LinearWeight, inputs: InputStatistics, codebooks_OK: Tensor, positions_OS: Tensor, config: Squeezellm
) -> tuple[Tensor, Tensor]:
    """(codes_OI, kept_OS) when columns still to come absorb the error of each."""
    upper_II, order_I = inputs.inverse_factor(config.damping, activation_order=True)
    weight_IO = ordered(linear.weight_OI.T, order_I)
    kept_OI = torch.zeros_like(linear.weight_OI, dtype=torch.bool).scatter_(1, positions_OS, True)
    kept_IO = ordered(kept_OI.T, order_I)
    pruned_IO = None if linear.pruned_OI is None else ordered(linear.pruned_OI.T, order_I)
    values_OK = codebooks_OK.float()
    codes_IO = torch.empty(weight_IO.shape, dtype=torch.uint8, device=weight_IO.device)
    settled_IO = torch.empty_like(weight_IO)

    def settle(column: int, weight_O: Tensor) -> Tensor:
        if pruned_IO is not None:
            weight_O = weight_O.masked_fill(pruned_IO[column], 0.0)
        codes_O1 = nearest(values_OK, weight_O.unsqueeze(1))
        codes_IO[column] = codes_O1.squeeze(1)
        exact_O = weight_O.to(linear.storage_dtype).float()
        settled_IO[column] = torch.where(kept_IO[column], exact_O, values_OK.gather(1, codes_O1).squeeze(1))
        return settled_IO[column]

    sweep(weight_IO, upper_II, settle)
    codes_OI = restored(codes_IO, order_I).T.contiguous()
    return codes_OI, restored(settled_IO, order_I).T.gather(1, positions_OS)


def _kept(weight_OI: Tensor, counts_OI: Tensor, config: Squeezellm) -> Tensor:
    """positions_OS of the weights that stay in 16 bit: first the largest, then the most sensitive of the others."""
    outliers, sensitive = config.kept(weight_OI.shape[1])
    largest_OS = weight_OI.abs().topk(outliers, dim=1).indices
    others_OI = counts_OI.scatter(1, largest_OS, -1.0)
    return torch.cat([largest_OS, others_OI.topk(sensitive, dim=1).indices], dim=1)


def nearest(codebooks_OK: Tensor, weight_OI: Tensor) -> Tensor:
    """The number of the value closest to each weight; codebooks are in rising order."""
    borders_OK = (codebooks_OK[:, 1:] + codebooks_OK[:, :-1]) / 2
    return torch.searchsorted(borders_OK, weight_OI.contiguous())


def cluster(weight_OI: Tensor, counts_OI: Tensor, values: int) -> Tensor:
    """codebooks_OK in float64, rising: weighted k-means of each row from two starts, of which the better one is kept.

    The starts are as many equal shares of the row's total count, and of its range; nothing is drawn at random.
    """
    sorted_OI, order_OI = weight_OI.double().sort(dim=1)
    counts_OI = counts_OI.gather(1, order_OI)
    # Sums over all weights before each place, and over the whole row at the end.
    count_OJ, sum_OJ = (
        torch.nn.functional.pad(figure_OI.cumsum(1), (1, 0)) for figure_OI in (counts_OI, counts_OI * sorted_OI)
    )
    shares_K = (torch.arange(values, dtype=torch.float64, device=weight_OI.device) + 0.5) / values
    places_OK = torch.searchsorted(count_OJ[:, 1:].contiguous(), count_OJ[:, -1:] * shares_K)
    by_count_OK = sorted_OI.gather(1, places_OK.clamp_(max=weight_OI.shape[1] - 1))
    counted_OI = counts_OI > 0
    low_O1 = sorted_OI.masked_fill(~counted_OI, torch.inf).amin(1, keepdim=True).nan_to_num(posinf=0)
    high_O1 = sorted_OI.masked_fill(~counted_OI, -torch.inf).amax(1, keepdim=True).nan_to_num(neginf=0)
    by_range_OK = low_O1 + (high_O1 - low_O1) * shares_K
    best_OK, best_gain_O = by_count_OK, torch.full_like(low_O1.squeeze(1), -torch.inf)
    for start_OK in (by_count_OK, by_range_OK):
        found_OK, gain_O = _settled(start_OK, sorted_OI, count_OJ, sum_OJ)
        better_O = gain_O > best_gain_O
        best_OK = torch.where(better_O.unsqueeze(1), found_OK, best_OK)
        best_gain_O = torch.where(better_O, gain_O, best_gain_O)
    return best_OK


def _settled(means_OK: Tensor, sorted_OI: Tensor, count_OJ: Tensor, sum_OJ: Tensor) -> tuple[Tensor, Tensor]:
    """(means after all steps, by how much they lower each row's squared error below that of a single zero)."""
    gain_O = torch.zeros_like(means_OK[:, 0])
    before_OK: Tensor | None = None
    for _ in range(_STEPS):
        borders_OK = (means_OK[:, 1:] + means_OK[:, :-1]) / 2
        inner_OK = torch.searchsorted(sorted_OI, borders_OK)
        if before_OK is not None and torch.equal(inner_OK, before_OK):
            break
        before_OK = inner_OK
        ends_OJ = torch.nn.functional.pad(inner_OK, (1, 1))
        ends_OJ[:, -1] = sorted_OI.shape[1]
        count_OK = count_OJ.gather(1, ends_OJ).diff(dim=1)
        sum_OK = sum_OJ.gather(1, ends_OJ).diff(dim=1)
        # A run without any count keeps its place.
        means_OK = torch.where(count_OK > 0, sum_OK / count_OK.clamp(min=1e-30), means_OK)
        gain_O = (sum_OK * means_OK).sum(1)
    return means_OK, gain_O


METHOD = LinearMethod(config=Squeezellm, needs=frozenset({Statistic.HESSIAN}), compress=compress)
