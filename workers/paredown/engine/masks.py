"""N:M patterns, shared by the methods that prune.

Shapes: O out_features, I in_features.
"""

import torch
from torch import Tensor

from paredown.contracts.recipes.pruning import parse_pattern
from paredown.engine.errors import RecipeUnfit


def pattern_mask(score_OI: Tensor, pattern: str, name: str) -> Tensor:
    """True where a weight goes: of every M neighbours along the input the N with the highest scores stay."""
    kept, of = parse_pattern(pattern)
    out_features, in_features = score_OI.shape
    if in_features % of:
        raise RecipeUnfit(
            f"Pattern {pattern} does not fit {name}: its {in_features} input channels are no multiple of {of}.",
            field="pattern",
        )
    score_OGM = score_OI.view(out_features, -1, of)
    dropped = score_OGM.topk(of - kept, dim=2, largest=False).indices
    return torch.zeros_like(score_OGM, dtype=torch.bool).scatter_(2, dropped, True).view_as(score_OI)
