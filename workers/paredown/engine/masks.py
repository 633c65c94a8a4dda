"""Which weights go, shared by the methods that prune: the lowest of a whole, or of each N:M group.

Shapes: O out_features, I in_features.
"""

import numpy
import torch
from torch import Tensor

from paredown.contracts.recipes.pruning import parse_pattern
from paredown.engine.errors import RecipeUnfit


def check_pattern(pattern: str, in_features: int, name: str) -> None:
    """Raises RecipeUnfit where the rows of the linear do not divide into the pattern's groups."""
    _, of = parse_pattern(pattern)
    if in_features % of:
        raise RecipeUnfit(
            f"Pattern {pattern} does not fit {name}: its {in_features} input channels are no multiple of {of}.",
            field="pattern",
        )


def pattern_mask(score_OI: Tensor, pattern: str, name: str) -> Tensor:
    """True where a weight goes: of every M neighbours along the input the N with the highest scores stay.

    Raises RecipeUnfit.
    """
    kept, of = parse_pattern(pattern)
    out_features, in_features = score_OI.shape
    check_pattern(pattern, in_features, name)
    score_OGM = score_OI.reshape(out_features, -1, of)
    dropped = score_OGM.topk(of - kept, dim=2, largest=False, sorted=False).indices
    return torch.zeros_like(score_OGM, dtype=torch.bool).scatter_(2, dropped, True).view_as(score_OI)


def lowest(score: Tensor, count: int) -> Tensor:
    """True for exactly so many of the lowest scores; of equal ones the first go."""
    return lowest_in_rows(score.reshape(1, -1), count).view_as(score)


def lowest_in_rows(score_OI: Tensor, count: int) -> Tensor:
    """True for exactly so many of each row's lowest scores; of equal ones the first go."""
    if count == 0:
        return torch.zeros_like(score_OI, dtype=torch.bool)
    highest_O1 = _kth_lowest(score_OI, count)
    mask_OI = score_OI <= highest_O1
    if int(mask_OI.count_nonzero()) == count * len(score_OI):
        return mask_OI
    below_OI = score_OI < highest_O1
    ties_OI = mask_OI ^ below_OI
    return below_OI | (ties_OI & (ties_OI.cumsum(1) <= count - below_OI.sum(1, keepdim=True)))


def _kth_lowest(score_OI: Tensor, count: int) -> Tensor:
    """Of each row the score that so many, itself among them, do not exceed: O × 1."""
    if score_OI.device.type != "cpu":
        return score_OI.kthvalue(count, dim=1, keepdim=True).values
    # On a processor's vector units, which torch does not use here: a sixth of its time.
    return torch.from_numpy(numpy.partition(score_OI.numpy(), count - 1, axis=1)[:, count - 1 : count])
