"""What the block stream gathers of a linear's inputs, only as far as a recipe's methods need it.

Linears that share an input share one InputStatistics, and with it one factorization.
Shapes: I in_features, T tokens.
"""

from collections.abc import Iterator, Mapping
from collections.abc import Set as AbstractSet
from contextlib import contextmanager, nullcontext
from copy import copy
from enum import StrEnum

import torch
from torch import Tensor

from paredown.contracts.pieces import SAMPLED_TOKENS
from paredown.engine.errors import HessianSingular, NanFound


class Statistic(StrEnum):
    """A figure over the calibration tokens that a method may ask for."""

    ENERGY = "energy"  # sum of squares of each input channel: O(T I)
    ENTROPY = "entropy"  # of each input channel's values; its energy too: O(T I)
    MAGNITUDE = "magnitude"  # mean absolute value of each input channel: O(T I)
    PEAK = "peak"  # largest absolute value of each input channel: O(T I)
    SAMPLE = "sample"  # the inputs of some tokens, as they are
    HESSIAN = "hessian"  # XᵀX, of the least-squares loss of the layer's output: O(T I²)
    SHIFT = "shift"  # (X̃ - X)ᵀX, where X̃ are the same tokens' inputs in the base model; beside HESSIAN: O(T I²)


# Share of the Hessian's mean diagonal added to it where a weight is moved towards the base's output: ten times GPTQ's,
# because what is moved stays, while a rounding error is small. Perplexity was lower so on a 135 M model.
_SHIFT_DAMPING = 0.1
# Bins of equal width into which a channel's values fall when their entropy is taken.
_BINS = 100
# A symmetric product is computed in so many panels of columns, since the part above their diagonal blocks need not be;
# bfloat16 units take whole inputs into their layout for each panel, so fewer are faster there.
_PANELS = 6
_BFLOAT16_PANELS = 4
_ENERGY_PANELS = 3
# Tokens squared at once, so that the temporaries stay in a core's cache.
_SQUARED_TOKENS = 128
# Triangles up to this size are inverted directly.
_SMALL_TRIANGLE = 128
# A whole matrix is copied so many rows at a time, so that no other one of its size exists.
_COPIED_ROWS = 512


class InputStatistics:
    """Statistics of one input, in float32 on the device of the inputs. Sums over tokens, not means."""

    def __init__(self, name: str, in_features: int, needs: AbstractSet[Statistic], device: torch.device) -> None:
        self.name = name
        self.needs = needs
        self.num_tokens = 0
        self._hessian_II: Tensor | None = None
        self._energy_I: Tensor | None = None
        self._histogram: _Histogram | None = None
        self._magnitude_I: Tensor | None = None
        self._peak_I: Tensor | None = None
        self._sample: _Sample | None = None
        self._shift_II: Tensor | None = None
        self._factors: dict[tuple[float, bool, int], tuple[Tensor, Tensor | None]] = {}
        self._lower: dict[float, Tensor] = {}
        if Statistic.HESSIAN in needs:
            self._hessian_II = torch.zeros(in_features, in_features, device=device)
        elif needs:
            self._energy_I = torch.zeros(in_features, device=device)
        if Statistic.SHIFT in needs:
            self._shift_II = torch.zeros(in_features, in_features, device=device)
        if Statistic.ENTROPY in needs:
            self._histogram = _Histogram()
        if Statistic.MAGNITUDE in needs:
            self._magnitude_I = torch.zeros(in_features, device=device)
        if Statistic.PEAK in needs:
            self._peak_I = torch.zeros(in_features, device=device)
        if Statistic.SAMPLE in needs:
            self._sample = _Sample(in_features, device)

    def add(self, inputs_TI: Tensor, base_TI: Tensor | None = None) -> None:
        """Take in one micro-batch; `base_TI` are the same tokens' inputs in the base model, where SHIFT is wanted."""
        self.num_tokens += inputs_TI.shape[0]
        is_bfloat16 = inputs_TI.dtype == torch.bfloat16
        if self._energy_I is not None:
            self._energy_I += _energy(inputs_TI)
        if self.needs == {Statistic.ENERGY}:
            return
        inputs_TI = inputs_TI.float()
        with _bfloat16_units() if is_bfloat16 else nullcontext():
            if self._hessian_II is not None:
                _add_gram(self._hessian_II, inputs_TI, _BFLOAT16_PANELS if is_bfloat16 else _PANELS)
            if self._shift_II is not None:
                assert base_TI is not None, "SHIFT is gathered without the base's inputs"
                self._shift_II.addmm_((base_TI.float() - inputs_TI).T, inputs_TI)
        if self._histogram is not None:
            self._histogram.add(inputs_TI)
        if self._magnitude_I is not None:
            self._magnitude_I += inputs_TI.abs().sum(0)
        if self._peak_I is not None:
            torch.maximum(self._peak_I, inputs_TI.abs().amax(0), out=self._peak_I)
        if self._sample is not None:
            self._sample.add(inputs_TI)

    def figures(self) -> dict[str, Tensor]:
        """All that was gathered, once it is complete."""
        figures = {
            "tokens": torch.tensor(self.num_tokens),
            "hessian": self._hessian_II,
            "energy": self._energy_I,
            "magnitude": self._magnitude_I,
            "peak": self._peak_I,
            "sample": None if self._sample is None else self._sample.inputs_TI,
            **({} if self._histogram is None else self._histogram.figures()),
        }
        return {name: figure for name, figure in figures.items() if figure is not None}

    def restore(self, figures: Mapping[str, Tensor]) -> None:
        """Take `figures` of statistics with the same needs."""
        self.num_tokens = int(figures["tokens"])
        self._hessian_II = figures.get("hessian")
        self._energy_I = figures.get("energy")
        self._magnitude_I = figures.get("magnitude")
        self._peak_I = figures.get("peak")
        if self._sample is not None:
            self._sample.inputs_TI = figures["sample"]
        if self._histogram is not None:
            self._histogram.restore(figures)

    def complete(self) -> None:
        """Close the sums. Raises NanFound where an input was not finite."""
        if self._hessian_II is not None:
            _mirror_lower(self._hessian_II)
        energy_I = self._hessian_II.diagonal() if self._hessian_II is not None else self._energy_I
        for figures in (energy_I, self._magnitude_I, self._peak_I, self._shift_II):
            if figures is not None and not all_finite(figures):
                raise NanFound(f"The inputs of {self.name} are not finite over the calibration text.")

    def assume_uniform(self) -> None:
        """In place of what was gathered: inputs whose channels are independent and equally active.

        With it a method does what it would do without calibration: GPTQ rounds to nearest, Wanda goes by magnitude.
        """
        if self._hessian_II is not None:
            self._hessian_II.zero_().fill_diagonal_(1)
        if self._energy_I is not None:
            self._energy_I.fill_(1)
        if self._magnitude_I is not None:
            self._magnitude_I.fill_(max(self.num_tokens, 1))

        if self._histogram is not None:
            self._histogram.level(self.energy_I)

    @property
    def has_hessian(self) -> bool:
        return self._hessian_II is not None

    @property
    def energy_I(self) -> Tensor:
        """Sum of squares of each input channel."""
        if self._hessian_II is not None:
            return self._hessian_II.diagonal()
        assert self._energy_I is not None, "a method reads ENERGY without declaring it"
        return self._energy_I

    @property
    def entropy_I(self) -> Tensor:
        """Entropy of each input channel's values, in nats; 0 where a channel always had the same value."""
        assert self._histogram is not None, "a method reads ENTROPY without declaring it"
        return self._histogram.entropy_I()

    @property
    def magnitude_I(self) -> Tensor:
        """Mean absolute value of each input channel; zero where no token came by."""
        assert self._magnitude_I is not None, "a method reads MAGNITUDE without declaring it"
        return self._magnitude_I / max(self.num_tokens, 1)

    @property
    def peak_I(self) -> Tensor:
        """Largest absolute value of each input channel."""
        assert self._peak_I is not None, "a method reads PEAK without declaring it"
        return self._peak_I

    @property
    def sample_TI(self) -> Tensor:
        """The inputs of some tokens, evenly spread over all of them."""
        assert self._sample is not None, "a method reads SAMPLE without declaring it"
        return self._sample.inputs_TI

    @property
    def hessian_II(self) -> Tensor:
        """XᵀX, symmetric, without damping."""
        assert self._hessian_II is not None, "a method reads HESSIAN without declaring it"
        return self._hessian_II

    def reordered(self, order_I: Tensor) -> "InputStatistics":
        """The same statistics with the input channels in another order."""
        other = copy(self)
        other._factors = {}
        other._lower = {}
        if self._hessian_II is not None:
            other._hessian_II = self._hessian_II[order_I][:, order_I]
        for name in ("_energy_I", "_magnitude_I", "_peak_I"):
            if (figures_I := getattr(self, name)) is not None:
                setattr(other, name, figures_I[order_I])
        if self._histogram is not None:
            other._histogram = self._histogram.reordered(order_I)
        if self._sample is not None:
            other._sample = copy(self._sample)
            other._sample.inputs_TI = self._sample.inputs_TI[:, order_I]
        return other

    def divided(self, scale_I: Tensor) -> "InputStatistics":
        """Hessian and energy of the same inputs, each channel divided by its scale."""
        other = copy(self)
        other._factors = {}
        other._hessian_II = self.hessian_II / (scale_I.unsqueeze(1) * scale_I)
        return other

    def output_energy(self, weight_OI: Tensor) -> float:
        """‖XWᵀ‖²: the sum of squares of what the weight makes of all tokens."""
        hessian_II, total = self.hessian_II, 0.0
        step = -(-len(hessian_II) // _ENERGY_PANELS)
        for start in range(0, len(hessian_II), step):
            end = min(start + step, len(hessian_II))
            panel_OI = weight_OI[:, start:end]
            # What lies below a diagonal block stands for what lies beside it too.
            product_OI = (2 * weight_OI[:, end:]) @ hessian_II[end:, start:end]
            product_OI.addmm_(panel_OI, hessian_II[start:end, start:end])
            total += float(product_OI.mul_(panel_OI).sum(dtype=torch.float64))
        return total

    def toward_base(self, weight_OI: Tensor, asymmetry: float) -> Tensor:
        """W + α W (X̃ - X)ᵀX inv(H): for α = 1 the weight whose output from these inputs is nearest the base's.

        After Li et al., "GPTAQ", arXiv:2504.02692, who take in the same correction column by column. Raises
        HessianSingular.
        """
        assert self._shift_II is not None, "the base's inputs were not gathered"
        step_IO = torch.cholesky_solve((weight_OI @ self._shift_II).T, self.lower_factor(_SHIFT_DAMPING).float())
        return torch.add(weight_OI, step_IO.T, alpha=asymmetry)

    def row_energy_O(self, weight_OI: Tensor) -> Tensor:
        """output_energy of each output row."""
        return (weight_OI @ self.hessian_II).mul_(weight_OI).sum(1)

    def inverse_factor(self, damping: float, activation_order: bool, together: int = 1) -> tuple[Tensor, Tensor | None]:
        """(upper_II, order_I): the inverse of the damped Hessian, its channels in `order_I`, is upper_IIᵀ upper_II.

        `damping` is a share of the mean diagonal. `order_I` sorts channels by falling energy, so many neighbours
        `together`; None leaves them. Computed once for all linears that share the input. Raises HessianSingular.
        """
        key = (damping, activation_order, together)
        if key not in self._factors:
            self._factors[key] = self._factorize(damping, activation_order, together)
        return self._factors[key]

    def lower_factor(self, damping: float) -> Tensor:
        """lower_II in float64 with lower_II lower_IIᵀ the damped Hessian; `damping` is a share of the mean diagonal.

        Computed once for all linears that share the input. Raises HessianSingular.
        """
        if damping not in self._lower:
            damped_II = self.hessian_II.double()
            mean = float(damped_II.diagonal().mean())
            # Inputs that were always zero have no scale of their own.
            damped_II.diagonal().add_(damping * mean or 1.0)
            lower_II = _factored(damped_II)
            if lower_II is None or not all_finite(lower_II):
                raise HessianSingular(self.name, damping)
            self._lower[damping] = lower_II
        return self._lower[damping]

    def _factorize(self, damping: float, activation_order: bool, together: int) -> tuple[Tensor, Tensor | None]:
        diagonal_I = self.hessian_II.diagonal()
        # Channels that were never active are rounded by themselves: their row of the Hessian is zero but for this one.
        dead_I = diagonal_I == 0
        order_I = _falling(diagonal_I, together) if activation_order else None
        reversed_I = (
            torch.arange(len(diagonal_I) - 1, -1, -1, device=diagonal_I.device) if order_I is None else order_I.flip(0)
        )
        # In float64 it has twice the Hessian's bytes, which are the most of a large block's memory; so there is one.
        damped_II = _permuted(self.hessian_II, reversed_I)
        shift = damping * float(diagonal_I.double().mean())
        damped_II.diagonal().add_(torch.where(dead_I[reversed_I], shift or 1.0, shift))
        # H = R Rᵀ with R upper triangular, found as the Cholesky factor of H read backwards; then inv(H) = inv(R)ᵀ
        # inv(R), which is the factor that GPTQ takes from a second Cholesky of an explicit inverse.
        lower_II = _factored(damped_II)
        if lower_II is None:
            raise HessianSingular(self.name, damping)
        # The factor's condition is the root of the Hessian's, so that float32 will do from here.
        inverse_II = lower_II.float()
        del damped_II, lower_II
        _invert_lower(inverse_II)
        upper_II = inverse_II.flip(0, 1)
        if not all_finite(upper_II):
            raise HessianSingular(self.name, damping)
        return upper_II, order_I


class _Histogram:
    """How often each channel's values fell into each bin.

    The bins of a channel span its values in the first micro-batch; the first and last also take what lies beyond.
    """

    def __init__(self) -> None:
        self._low_I = self._width_I = self._counts_IK = torch.empty(0)

    def add(self, inputs_TI: Tensor) -> None:
        if not all_finite(inputs_TI):
            # Falls into no bin; `complete` names the layer.
            return
        channels = inputs_TI.shape[1]
        if not len(self._counts_IK):
            self._low_I, high_I = inputs_TI.amin(0), inputs_TI.amax(0)
            self._width_I = ((high_I - self._low_I) / _BINS).clamp(min=torch.finfo(torch.float32).tiny)
            self._counts_IK = torch.zeros(channels, _BINS, dtype=torch.int64, device=inputs_TI.device)
        bins_TI = ((inputs_TI - self._low_I) / self._width_I).clamp_(0, _BINS - 1).long()
        bins_TI += torch.arange(channels, device=inputs_TI.device) * _BINS
        self._counts_IK += torch.bincount(bins_TI.flatten(), minlength=channels * _BINS).view(channels, _BINS)

    def figures(self) -> dict[str, Tensor]:
        return {"bins_low": self._low_I, "bins_width": self._width_I, "bins_counts": self._counts_IK}

    def restore(self, figures: Mapping[str, Tensor]) -> None:
        self._low_I, self._width_I = figures["bins_low"], figures["bins_width"]
        self._counts_IK = figures["bins_counts"]

    def level(self, like_I: Tensor) -> None:
        """As if every channel's values fell into all bins alike."""
        self._low_I, self._width_I = torch.zeros_like(like_I), torch.ones_like(like_I)
        self._counts_IK = torch.ones(len(like_I), _BINS, dtype=torch.int64, device=like_I.device)

    def entropy_I(self) -> Tensor:
        share_IK = self._counts_IK / self._counts_IK.sum(1, keepdim=True)
        entropy_I: Tensor = torch.special.entr(share_IK).sum(1)
        return entropy_I

    def reordered(self, order_I: Tensor) -> "_Histogram":
        other = copy(self)
        other._low_I, other._width_I, other._counts_IK = (
            figure[order_I] for figure in (self._low_I, self._width_I, self._counts_IK)
        )
        return other


class _Sample:
    """Every n-th token, from the first on: n doubles whenever there are twice as many as wanted."""

    def __init__(self, in_features: int, device: torch.device) -> None:
        # A mixture's expert may see no token at all.
        self.inputs_TI = torch.empty(0, in_features, device=device)
        self._seen = 0
        self._step = 1

    def add(self, inputs_TI: Tensor) -> None:
        chosen_TI = inputs_TI[-self._seen % self._step :: self._step]
        self._seen += len(inputs_TI)
        self.inputs_TI = torch.cat([self.inputs_TI, chosen_TI]) if len(self.inputs_TI) else chosen_TI.clone()
        while len(self.inputs_TI) >= 2 * SAMPLED_TOKENS:
            self.inputs_TI = self.inputs_TI[::2].clone()
            self._step *= 2


def all_finite(tensor: Tensor) -> bool:
    """Whether no value is NaN or infinite: the extremes tell, in one pass over memory."""
    return all(bool(extreme.isfinite()) for extreme in tensor.aminmax())


def _falling(energy_I: Tensor, together: int) -> Tensor:
    """Channels by falling energy, where so many neighbours stay together."""
    order_R = energy_I.view(-1, together).sum(1).argsort(descending=True, stable=True)
    return (order_R.unsqueeze(1) * together + torch.arange(together, device=energy_I.device)).flatten()


def _permuted(matrix_II: Tensor, order_I: Tensor) -> Tensor:
    """Rows and columns in another order, in float64."""
    permuted_II = torch.empty_like(matrix_II, dtype=torch.float64)
    for start in range(0, len(order_I), _COPIED_ROWS):
        rows = slice(start, start + _COPIED_ROWS)
        permuted_II[rows] = matrix_II[order_I[rows]][:, order_I].double()
    return permuted_II


def _factored(matrix_II: Tensor) -> Tensor | None:
    """The lower Cholesky factor of a symmetric matrix, in the matrix's own memory; None where there is none."""
    # LAPACK wants columns one after the other, as a symmetric matrix read the other way round has them: only then the
    # factor takes the place of what it is found from.
    lower_II = matrix_II.T
    info = torch.empty((), dtype=torch.int32, device=matrix_II.device)
    torch.linalg.cholesky_ex(lower_II, out=(lower_II, info))
    return lower_II if int(info) == 0 else None


def _invert_lower(lower_II: Tensor) -> None:
    """Put a triangular matrix's inverse in its place, by halves and so mostly in plain products: half the time of
    solving for the identity."""
    size = lower_II.shape[0]
    if size <= _SMALL_TRIANGLE:
        identity_II = torch.eye(size, dtype=lower_II.dtype, device=lower_II.device)
        lower_II.copy_(torch.linalg.solve_triangular(lower_II, identity_II, upper=False))
        return
    half = size // 2
    first, second = slice(0, half), slice(half, size)
    _invert_lower(lower_II[first, first])
    _invert_lower(lower_II[second, second])
    left = lower_II[second, first] @ lower_II[first, first]
    torch.matmul(lower_II[second, second], left.neg_(), out=lower_II[second, first])


def _energy(inputs_TI: Tensor) -> Tensor:
    """Sums of squares over the tokens, in float32."""
    squares_PI = torch.zeros(min(_SQUARED_TOKENS, len(inputs_TI)), inputs_TI.shape[1], device=inputs_TI.device)
    for part_TI in torch.split(inputs_TI, _SQUARED_TOKENS):
        part_TI = part_TI.float()
        squares_PI[: len(part_TI)].addcmul_(part_TI, part_TI)
    return squares_PI.sum(0)


def _add_gram(gram_II: Tensor, inputs_TI: Tensor, panels: int) -> None:
    """gram += XᵀX, only on and below the diagonal panels: a little more than half of the product."""
    size = gram_II.shape[0]
    step = -(-size // panels)
    inputs_IT = inputs_TI.T
    for start in range(0, size, step):
        end = min(start + step, size)
        gram_II[start:, start:end].addmm_(inputs_IT[start:], inputs_TI[:, start:end])


@contextmanager
def _bfloat16_units() -> Iterator[None]:
    """Products of float32 numbers that were bfloat16 on a processor's bfloat16 units, where it has any.

    They lose nothing on their way there, and sums are float32 as before; only the order of summing is another.
    """
    products = torch.backends.mkldnn.matmul  # type: ignore[attr-defined]  # put there at run time
    before = products.fp32_precision
    products.fp32_precision = "bf16"
    try:
        yield
    finally:
        products.fp32_precision = before


def _mirror_lower(gram_II: Tensor) -> None:
    """Copy the lower triangle to the upper one."""
    size = len(gram_II)
    for start in range(0, size, _COPIED_ROWS):
        end = min(start + _COPIED_ROWS, size)
        gram_II[start:end, end:] = gram_II[end:, start:end].T
        corner_II = gram_II[start:end, start:end]
        corner_II.copy_(corner_II.tril() + corner_II.tril(-1).T)
