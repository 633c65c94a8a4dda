"""Which input channels of a linear may change places, and an order of them that serves an N:M pattern better.

A linear's input channels can be reordered where the rows of the linears that produce them can follow: the model
computes what it did, and stock runtimes load it. In a block that holds for what the MLP's last linear reads and,
within each head, for what attention's last linear reads. What the other linears read is the residual stream, whose
order all blocks share.
Shapes: I in_features = B blocks × K repeats × C channels; R rows that score one block; G groups of M channels.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from paredown.contracts.pieces import EXCHANGING_ROUNDS, EXCHANGING_ROWS


@dataclass(frozen=True)
class Exchange:
    """Channels may change places within each of `blocks` equal parts of a linear's input.

    Each part consists of `repeats` copies of the same channels, which keep one order: heads that share their values
    (grouped-query attention). `producers` are the linears whose rows follow, each with the first of those rows.
    """

    blocks: int
    repeats: int
    producers: tuple[tuple[str, int], ...]

    def columns(self, order_BC: Tensor) -> Tensor:
        """Order of the linear's input channels."""
        blocks, channels = order_BC.shape
        first_BK = torch.arange(blocks * self.repeats, device=order_BC.device).view(blocks, self.repeats) * channels
        return (first_BK.unsqueeze(2) + order_BC.unsqueeze(1)).flatten()

    def rows(self, order_BC: Tensor) -> Tensor:
        """Order of the producers' rows, from their first on."""
        blocks, channels = order_BC.shape
        first_B1 = torch.arange(blocks, device=order_BC.device).unsqueeze(1) * channels
        return (first_B1 + order_BC).flatten()

    def scores(self, score_OI: Tensor) -> Tensor:
        """The scores of each block, score_BRC: copies of a channel count as rows of it."""
        out_features = score_OI.shape[0]
        score_OBKC = score_OI.view(out_features, self.blocks, self.repeats, -1)
        return score_OBKC.permute(1, 0, 2, 3).flatten(1, 2)


def shuffled(score_RC: Tensor, kept: int, of: int) -> Tensor:
    """An order of the channels in which an N:M pattern keeps at least as much of the scores as in their own order.

    First globally: channels are dealt out to the groups by falling mean score, so that the important ones do not share
    a group. Then locally: pairs of groups exchange the two channels that gain most, round after round.
    """
    identity_C = torch.arange(score_RC.shape[1], device=score_RC.device)
    # Every so many rows: enough to know a channel, and the search's time does not grow with the layer.
    sample_RC = score_RC[:: -(-score_RC.shape[0] // EXCHANGING_ROWS)]
    order_GM = score_RC.mean(0).argsort(descending=True, stable=True).view(of, -1).T.contiguous()
    if _retained(sample_RC, order_GM, kept) < _retained(sample_RC, identity_C.view(-1, of), kept):
        order_GM = identity_C.view(-1, of)
    for turn in range(EXCHANGING_ROUNDS):
        order_GM = _exchanged(sample_RC, order_GM, kept, turn)
    gained = _retained(score_RC, order_GM, kept) > _retained(score_RC, identity_C.view(-1, of), kept)
    return order_GM.flatten() if gained else identity_C


def _retained(score_RC: Tensor, order_GM: Tensor, kept: int) -> float:
    """The sum of the scores that the pattern keeps."""
    return float(score_RC[:, order_GM].topk(kept, dim=2).values.double().sum())


def _exchanged(score_RC: Tensor, order_GM: Tensor, kept: int, turn: int) -> Tensor:
    """Each group meets one other, and they exchange the two channels that gain most, if any do."""
    groups, of = order_GM.shape
    # Neighbours at first, then ever more distant ones: position g meets g + stride, in pairs that do not overlap.
    position_G = torch.arange(groups, device=order_GM.device)
    stride = 1 + turn % max(groups // 2, 1)
    first_P = position_G[(position_G // stride % 2 == 0) & (position_G + stride < groups)]
    second_P = first_P + stride
    score_CR = score_RC.T.contiguous()
    first_PMR, second_PMR = score_CR[order_GM[first_P]], score_CR[order_GM[second_P]]
    best_P = first_PMR.topk(kept, dim=1).values.sum((1, 2)) + second_PMR.topk(kept, dim=1).values.sum((1, 2))
    # A gain must exceed what rounding may feign.
    best_P *= 1 + 1e-6
    result_GM = order_GM.clone()
    for i in range(of):
        for j in range(of):
            one_PMR, other_PMR = first_PMR.clone(), second_PMR.clone()
            one_PMR[:, i], other_PMR[:, j] = second_PMR[:, j], first_PMR[:, i]
            total_P = one_PMR.topk(kept, dim=1).values.sum((1, 2)) + other_PMR.topk(kept, dim=1).values.sum((1, 2))
            better_P = total_P > best_P
            best_P = torch.where(better_P, total_P, best_P)
            swapped_GM = order_GM.clone()
            swapped_GM[first_P, i], swapped_GM[second_P, j] = order_GM[second_P, j], order_GM[first_P, i]
            for side_P in (first_P[better_P], second_P[better_P]):
                result_GM[side_P] = swapped_GM[side_P]
    return result_GM
