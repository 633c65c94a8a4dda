"""Perplexity of each language or subject that the job names, on base and artifact, by the block stream."""

import math
import time

import torch

from paredown.contracts.job import Phase
from paredown.contracts.report import DomainResult, Evaluation
from paredown.contracts.work import WorkOrder
from paredown.engine import data
from paredown.engine.errors import NanFound
from paredown.engine.evaluation.perplexity import perplexity
from paredown.engine.inputs import Inputs
from paredown.engine.progress import Journey, Part
from paredown.engine.stream import CompressedModel
from paredown.engine.weights import ModelReader


def domain_parts(order: WorkOrder, inputs: Inputs) -> dict[str, Part]:
    """The part of the run that measures domains, where there are any."""
    models = 1 if order.origin else 2
    tokens = sum(blocks.tokens_NT.numel() for blocks in inputs.domains)
    return {"domains": Part(Phase.EVALUATE, models * tokens, "measuring domains")} if tokens else {}


def measure_domains(
    order: WorkOrder, inputs: Inputs, compressed: CompressedModel, device: torch.device, journey: Journey
) -> tuple[DomainResult, ...]:
    """Under the evaluation's protocol with another text; of an artifact's artifact without the base, which is not here.

    Raises NanFound.
    """
    if order.evaluation is None or not inputs.domains:
        return ()
    models: list[ModelReader] = [compressed] if order.origin else [inputs.files, compressed]
    runs = len(models) * len(inputs.domains)
    found: list[DomainResult] = []
    with journey.part("domains"):
        for index, (domain, blocks) in enumerate(zip(order.evaluation.domains, inputs.domains, strict=True)):
            settings = order.evaluation.model_copy(update={"source": domain.source})
            protocol = data.protocol(settings, blocks, order.dtype)
            measured = []
            for turn, model in enumerate(models):
                started = time.monotonic()
                before = index * len(models) + turn

                def on_progress(done: int, total: int, before: int = before) -> None:
                    journey.step_or_stop(before * total + done, runs * total)

                value, predicted = perplexity(
                    model, blocks.tokens_NT, device=device, dtype=getattr(torch, order.dtype), on_progress=on_progress
                )
                if not math.isfinite(value):
                    raise NanFound(
                        f"The perplexity on {domain.name} is {value}: the model gives no usable probabilities."
                    )
                measured.append(
                    Evaluation(
                        protocol=protocol,
                        protocol_hash=data.protocol_hash(protocol),
                        perplexity=value,
                        predicted_tokens=predicted,
                        device=device.type,
                        seconds=round(time.monotonic() - started, 3),
                    )
                )
            *base, artifact = measured
            found.append(DomainResult(name=domain.name, base=base[0] if base else None, artifact=artifact))
    return tuple(found)
