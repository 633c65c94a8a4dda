"""SVD-LLM: replace a weight by the product of two thin matrices that changes the layer's output least.

Paper: Wang et al., "SVD-LLM: Truncation-aware Singular Value Decomposition for Large Language Model Compression",
arXiv:2403.07378. With S the Cholesky factor of the inputs' second moment, S Sᵀ = XᵀX, a singular value of W S is the
output error of dropping it, so what is left of W S = U Σ Vᵀ after truncation is the best product of its rank for these
inputs. Without `whitening` S is the identity: plain SVD of the weight, the baseline. Both ways of writing the truncated
product avoid dividing by singular values: U Uᵀ W where there are fewer rows than columns, (W S) V Vᵀ S⁻¹ elsewhere.
Later layers see the error of earlier ones, because that is how the stream runs.
Shapes: O out_features, I in_features, R rank, M the smaller of O and I.
Units: ratio is the share of the layer's parameters removed; damping is a share of the Hessian's mean diagonal.
"""

import torch
from torch import Tensor

from paredown.contracts.recipes import Svd
from paredown.engine.compact import FactoredLinear
from paredown.engine.method import LinearMethod, LinearWeight
from paredown.engine.statistics import InputStatistics, Statistic


def compress(linear: LinearWeight, inputs: InputStatistics, config: Svd) -> None:
    """Raises HessianSingular."""
    rank = config.rank(*linear.weight_OI.shape)
    lower_II = inputs.lower_factor(config.damping) if config.whitening else None
    left_OR, right_RI = factorized(linear.weight_OI.double(), lower_II, rank)
    linear.quantize(FactoredLinear(left_OR.to(linear.storage_dtype), right_RI.to(linear.storage_dtype)))


def factorized(weight_OI: Tensor, lower_II: Tensor | None, rank: int) -> tuple[Tensor, Tensor]:
    """The factors of that rank whose product, times `lower_II`, is closest to the weight times `lower_II`."""
    whitened_OI = weight_OI if lower_II is None else weight_OI @ lower_II
    if weight_OI.shape[0] <= weight_OI.shape[1]:
        left_OR = _leading(whitened_OI @ whitened_OI.T, rank)
        right_RI = left_OR.T @ weight_OI
    else:
        basis_IR = _leading(whitened_OI.T @ whitened_OI, rank)
        left_OR = whitened_OI @ basis_IR
        right_RI = basis_IR.T
        if lower_II is not None:
            right_RI = torch.linalg.solve_triangular(lower_II, right_RI, upper=False, left=False)
    # Columns and rows of equal norm: neither factor leaves the range of a 16-bit number.
    balance_R = (right_RI.norm(dim=1) / left_OR.norm(dim=0)).nan_to_num(1, 1).sqrt()
    balance_R = torch.where(balance_R > 0, balance_R, 1)
    return left_OR * balance_R, right_RI / balance_R.unsqueeze(1)


def _leading(gram_MM: Tensor, rank: int) -> Tensor:
    """Eigenvectors of the largest eigenvalues; torch gives them in rising order."""
    basis_MM: Tensor = torch.linalg.eigh(gram_MM).eigenvectors
    return basis_MM[:, -rank:]


METHOD = LinearMethod(config=Svd, needs=frozenset({Statistic.HESSIAN}), compress=compress, rowwise=False)
