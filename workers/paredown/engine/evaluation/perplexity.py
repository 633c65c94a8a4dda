"""Perplexity by the block stream: one block of weights in memory at a time, as when compressing.

Where a recipe rounds activations, linears read them rounded here as they do in the artifact's reader.
Perplexity is exp(mean negative log-likelihood) over the T-1 tokens that each sequence of T predicts.
Shapes: N sequences, T tokens of each, B sequences of a micro-batch, P predicted positions of a part, H hidden size, V
vocabulary.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from paredown.contracts.pieces import HEAD_TOKENS
from paredown.engine.activations import entering, roundings
from paredown.engine.architectures import Skeleton
from paredown.engine.forward import BlockForward
from paredown.engine.memory import trim_heap
from paredown.engine.weights import ModelReader

# Is told of every predicted position, in order and part by part: hidden_PH before the head, logits_PV, target_P.
Observer = Callable[[Tensor, Tensor, Tensor], None]


def perplexity(
    model: ModelReader,
    tokens_NT: Tensor,
    *,
    device: torch.device,
    dtype: torch.dtype,
    on_progress: Callable[[int, int], None] = lambda _done, _all: None,
    observe: Observer | None = None,
) -> tuple[float, int]:
    """(perplexity, predicted tokens). Weights are cast to `dtype`; the loss itself is computed in float32.

    `observe` sees states and logits on their way, and changes neither. A perplexity that is not finite is returned as
    it is: the gate decides what that means.
    """
    skeleton = Skeleton(model.config, dtype)
    with torch.inference_mode():
        skeleton.load_outer(model.tensor, device)
        forward = BlockForward(skeleton, tokens_NT, device)
        skeleton.release_outer()
        for index in range(skeleton.num_blocks):
            skeleton.put_from(model.tensor, skeleton.block_names(index), device)
            names = skeleton.linear_names(index)
            with entering(skeleton.model, names, roundings(model, names)):
                for micro_batch in range(len(forward.tokens)):
                    forward.keep(micro_batch, forward.call(index, micro_batch))
            skeleton.release_block(index)
            # Else what each block leaves between pieces still in use adds up to more than the block.
            trim_heap()
            on_progress(index + 1, skeleton.num_blocks)
        skeleton.load_outer(model.tensor, device)
        loss = sum(
            summed_loss(skeleton, forward.final(micro_batch), tokens_BT.to(device), observe)
            for micro_batch, tokens_BT in enumerate(forward.tokens)
        )
    predicted = tokens_NT.shape[0] * (tokens_NT.shape[1] - 1)
    mean = loss / predicted
    # exp overflows above 709, where a model is broken beyond any comparison.
    return (math.exp(mean) if mean < 700 else math.inf) if not math.isnan(mean) else math.nan, predicted


def summed_loss(skeleton: Skeleton, hidden_BTH: Tensor, tokens_BT: Tensor, observe: Observer | None = None) -> float:
    """Sum of the negative log-likelihoods."""
    hidden_PH, target_P = hidden_BTH[:, :-1].flatten(0, 1), tokens_BT[:, 1:].flatten()
    total = 0.0
    for part_PH, part_P in zip(torch.split(hidden_PH, HEAD_TOKENS), torch.split(target_P, HEAD_TOKENS), strict=True):
        logits_PV = skeleton.logits(part_PH)
        total += float(functional.cross_entropy(logits_PV, part_P, reduction="none").sum(dtype=torch.float64))
        if observe is not None:
            observe(part_PH, logits_PV, part_P)
    return total
