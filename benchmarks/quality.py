"""What recipes cost in perplexity: real text, one protocol for all of them, the packaged 135 M model.

    PARE_TEST_DATA=… python benchmarks/quality.py sparsegpt-50% wanda-50% '[{"method": "gptq", "bits": 3}]' …

Calibration is on 32 × 512 tokens of WikiText-2's validation text, evaluation on 20 × 1024 of the first half of its test
text, where no option says otherwise. Seconds are those of compressing. A recipe is a label of RECIPES or
JSON. Without PARE_TEST_DATA both texts are Python's own documentation, and figures compare only with each other.
"""

import argparse
import json
import os
import tempfile
from pathlib import Path

from packaged import GGUF, documentation, model_directory, wikitext
from pydantic import TypeAdapter

from paredown.contracts.job import Calibration, EvaluationSettings, Format
from paredown.contracts.recipes import Recipe
from paredown.contracts.report import Evaluation
from paredown.contracts.work import WorkOrder
from paredown.engine.run import run

RECIPES = {
    "magnitude-50%": '[{"method": "magnitude"}]',
    "wanda-50%": '[{"method": "wanda"}]',
    "sparsegpt-50%": '[{"method": "sparsegpt"}]',
    "wanda-2:4": '[{"method": "wanda", "pattern": "2:4"}]',
    "sparsegpt-2:4": '[{"method": "sparsegpt", "pattern": "2:4"}]',
    "e-sparse-2:4": '[{"method": "e-sparse"}]',
    "sparsegpt-50%+gptq-4": '[{"method": "sparsegpt"}, {"method": "gptq"}]',
    "sparsegpt-50%+rtn-4": '[{"method": "sparsegpt"}, {"method": "rtn"}]',
    "wanda-50%+rtn-4": '[{"method": "wanda"}, {"method": "rtn"}]',
    "rtn-4": '[{"method": "rtn"}]',
    "awq-4": '[{"method": "awq"}]',
    "smoothquant": '[{"method": "smoothquant"}]',
    "fp8": '[{"method": "fp8"}]',
    "fp8-static": '[{"method": "fp8-static"}]',
    "fp8-gptq": '[{"method": "fp8-gptq"}]',
    "gptq-4-embeddings-8": '[{"method": "gptq", "embeddings": 8}]',
    "gptq-4": '[{"method": "gptq"}]',
    "gptq-3": '[{"method": "gptq", "bits": 3}]',
    "svd-20%": '[{"method": "svd"}]',
    "svd-20%-plain": '[{"method": "svd", "whitening": false}]',
    "owq-3.01": '[{"method": "owq", "bits": 3}]',
    "owq-3.1": '[{"method": "owq", "bits": 3, "extra_bits": 0.1}]',
    "rtn-3": '[{"method": "rtn", "bits": 3}]',
    "squeezellm-3": '[{"method": "squeezellm", "bits": 3}]',
    "squeezellm-3-paper": '[{"method": "squeezellm", "bits": 3, "compensate": false}]',
    "squeezellm-3-dense": '[{"method": "squeezellm", "bits": 3, "outliers": 0, "sensitive": 0}]',
    "gptq-4-search": '[{"method": "gptq", "damping_search": true}]',
    "gptq-3-search": '[{"method": "gptq", "bits": 3, "damping_search": true}]',
    "gptq-2-search": '[{"method": "gptq", "bits": 2, "damping_search": true, "symmetric": false}]',
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipes", nargs="*", default=list(RECIPES))
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32", help="of the forward passes")
    parser.add_argument("--format", choices=[*Format], default=Format.AUTO, help="gguf also runs llama.cpp")
    parser.add_argument("--samples", type=int, default=32, help="calibration sequences of 512 tokens")
    parser.add_argument("--asymmetry", type=float, default=0, help="of calibration: GPTAQ's share")
    parser.add_argument("--evaluation-samples", type=int, default=20, help="evaluation sequences")
    parser.add_argument("--evaluation-length", type=int, default=1024, help="tokens of each")
    parser.add_argument(
        "--prove", action=argparse.BooleanOptionalAction, default=True, help="run a GGUF file in llama.cpp as well"
    )
    arguments = parser.parse_args()
    directory = model_directory()
    baseline: Evaluation | None = None
    with tempfile.TemporaryDirectory(prefix="pare-quality-") as name:
        calibration, evaluation = texts(Path(name))
        for number, given in enumerate(arguments.recipes):
            recipe = TypeAdapter(Recipe).validate_json(RECIPES.get(given, given))
            order = WorkOrder(
                model_dir=directory,
                gguf_file=GGUF,
                recipe=recipe,
                calibration=Calibration(samples=arguments.samples, sequence_length=512, asymmetry=arguments.asymmetry),
                calibration_text=calibration,
                evaluation=EvaluationSettings(
                    samples=arguments.evaluation_samples,
                    sequence_length=arguments.evaluation_length,
                    speed=arguments.prove and arguments.format == Format.GGUF,
                ),
                evaluation_text=evaluation,
                baseline=baseline,
                format=arguments.format,
                dtype=arguments.dtype,
                runtimes=("llama.cpp",) if arguments.prove else (),
                work_dir=Path(name) / f"{number}-work",
                output_dir=Path(name) / f"{number}-out",
            )
            report = run(order, lambda _progress: None, lambda: False).report
            assert report.base is not None
            assert report.artifact is not None
            if baseline is None:
                print(f"{'base':<36}{report.base.perplexity:>9.2f}", flush=True)
            baseline = report.base
            print(
                f"{given if given in RECIPES else json.dumps(json.loads(given)):<36}"
                f"{report.artifact.perplexity:>9.2f}{report.phase_seconds['compress']:>8.0f} s"
                f"{report.size_bytes / 1e6:>8.1f} MB{report.average_bits:>6.2f} bits{report.sparsity:>7.1%} zeros",
                flush=True,
            )
            for proof in report.runtimes[:1]:
                figures = report.speeds["artifact"], report.speeds["base"]
                prefill = " of ".join(f"{figure.prefill_tokens_per_second:.0f}" for figure in figures)
                decode = " of ".join(f"{figure.decode_tokens_per_second:.0f}" for figure in figures)
                print(
                    f"  {proof.runtime:<34}{proof.perplexity:>9.2f}   reads {prefill}, writes {decode} tokens a second "
                    "(artifact of base)",
                    flush=True,
                )


def texts(directory: Path) -> tuple[Path, Path]:
    """Calibration and evaluation text."""
    return wikitext() if os.environ.get("PARE_TEST_DATA") else documentation(directory)


if __name__ == "__main__":
    main()
