"""How much memory compressing takes when a model grows: with its depth, and at the size of 7 billion parameters.

    python benchmarks/memory.py [--directory /tmp] [--skip-7b] [--peer PYTHON]

Random models lie on disk as safetensors (13.5 GB for the large one, in --directory); gptq-4 runs over them in a process
of its own, whose peak resident memory is read at the end. The large model's run ends after two of its 32 blocks, since
memory is that of one block whatever follows. "Beyond hidden states" subtracts what enters and leaves a block.
With `--peer`, the interpreter of an environment that has llm-compressor, both prune a model of 1.1 billion parameters
with wanda: at the 135 million of benchmarks/engine.py most of either's memory is Python, torch and transformers.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy
import torch
from packaged import GGUF, model_directory
from safetensors.torch import save_file
from transformers import LlamaConfig

from paredown.engine.architectures import Skeleton
from paredown.engine.data import load_tokenizer
from paredown.worker.process import allocator

GPTQ = '[{"method": "gptq", "group_size": 128}]'
WANDA = '[{"method": "wanda"}]'

# Compresses a model until so many blocks are done, and prints its peak memory.
COMPRESS = """
import itertools, json, sys, time
from pathlib import Path
import numpy, torch
from pydantic import TypeAdapter
from paredown.contracts.recipes import Recipe
from paredown.engine.errors import Drained
from paredown.engine.memory import peak_memory_bytes
from paredown.engine.stream import compress_model
from paredown.engine.weights import open_model

directory, recipe, stop_after = Path(sys.argv[1]), TypeAdapter(Recipe).validate_json(sys.argv[2]), int(sys.argv[3])
files = open_model(directory)
tokens_NT = torch.from_numpy(numpy.load(directory / "tokens.npy"))
blocks = itertools.count()
started = time.perf_counter()
try:
    compress_model(
        files, recipe, tokens_NT, device=torch.device("cpu"), dtype=torch.bfloat16,
        work_dir=directory / "work", identity="benchmark", on_progress=lambda *_: None,
        should_drain=lambda: next(blocks) == stop_after,
    )
except Drained:
    pass
print(json.dumps({"peak": peak_memory_bytes(torch.device("cpu")), "seconds": time.perf_counter() - started}))
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--directory", type=Path, help="where the random models are written")
    parser.add_argument("--skip-7b", action="store_true", help="leave out the largest model")
    parser.add_argument("--peer", type=Path, help="interpreter of an environment with llm-compressor")
    arguments = parser.parse_args()
    print(f"{'a random llama':<44}{'on disk':>12}{'peak memory':>14}{'seconds':>10}", flush=True)
    small = {"hidden_size": 1024, "intermediate_size": 2816, "num_attention_heads": 16, "vocab_size": 8192}
    peaks = [measure(small | {"num_hidden_layers": blocks}, 8, 512, GPTQ, blocks, arguments)[0] for blocks in (8, 16)]
    print(f"  twice the blocks take {peaks[1] / peaks[0] - 1:+.1%} memory")
    if arguments.peer:
        middle = {"hidden_size": 2048, "intermediate_size": 5632, "num_attention_heads": 32, "vocab_size": 32000}
        ours, peer = measure(middle | {"num_hidden_layers": 22}, 4, 512, WANDA, 22, arguments)
        assert peer is not None
        print(f"  of llm-compressor's: {ours / peer:.2f}")
    if not arguments.skip_7b:
        large = {"hidden_size": 4096, "intermediate_size": 11008, "num_attention_heads": 32, "vocab_size": 32000}
        peak, _ = measure(large | {"num_hidden_layers": 32}, 4, 512, GPTQ, 2, arguments)
        states = 2 * 4 * 512 * 4096 * 2
        print(f"  beyond hidden states of {states / 1e6:.0f} MB: {(peak - states) / 1e9:.2f} GB")


def measure(
    sizes: dict[str, int], samples: int, length: int, recipe: str, blocks: int, arguments: argparse.Namespace
) -> tuple[int, int | None]:
    """Peak bytes of a run that ends after so many blocks, and the peer's, which prunes, where there is one."""
    with tempfile.TemporaryDirectory(prefix="pare-memory-", dir=arguments.directory) as name:
        directory = Path(name)
        written = write_random(LlamaConfig(**sizes), directory)
        generator = torch.Generator().manual_seed(0)
        tokens_NT = torch.randint(sizes["vocab_size"], (samples, length), generator=generator)
        numpy.save(directory / "tokens.npy", tokens_NT.numpy())
        [method] = json.loads(recipe)
        label = f"{method['method']}, {sizes['num_hidden_layers']} blocks of width {sizes['hidden_size']}"

        def show(who: str, answer: dict[str, Any]) -> int:
            print(
                f"{f'{label}{who}':<44}{written / 1e9:>9.2f} GB{answer['peak'] / 2**20:>10.0f} MiB"
                f"{answer['seconds']:>10.0f}",
                flush=True,
            )
            return int(answer["peak"])

        # As a worker starts its engine.
        command = [sys.executable, "-c", COMPRESS, name, recipe, str(blocks)]
        ours = show("", json.loads(execute(command, **allocator())))
        if not arguments.peer or recipe != WANDA:
            return ours, None
        tokens, answer = str(directory / "tokens.npy"), directory / "answer.json"
        # It wants one beside the model, though the text comes as tokens.
        load_tokenizer(model_directory(), GGUF).save_pretrained(name)
        script = str(Path(__file__).with_name("peer.py"))
        execute([str(arguments.peer), script, name, tokens, tokens, "wanda-50%", "bfloat16", str(answer)])
        return ours, show(", llm-compressor", json.loads(answer.read_text()))


def execute(command: list[str], **variables: str) -> str:
    environment = {**os.environ, **variables}
    finished = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if finished.returncode != 0:
        raise SystemExit(finished.stderr[-3000:])
    return finished.stdout


def write_random(config: Any, directory: Path) -> int:
    """A checkpoint in bfloat16, a shard for each block; returns its bytes."""
    skeleton = Skeleton(config, torch.bfloat16)
    shapes = skeleton.parameter_shapes()
    parts = [skeleton.outer_names(), *(skeleton.block_names(index) for index in range(skeleton.num_blocks))]
    index: dict[str, str] = {}
    total = 0
    generator = torch.Generator().manual_seed(0)
    for number, names in enumerate(parts, 1):
        file = f"model-{number:05d}-of-{len(parts):05d}.safetensors"
        tensors = {
            name: torch.empty(shapes[name], dtype=torch.bfloat16).normal_(0, 0.02, generator=generator)
            for name in names
        }
        save_file(tensors, directory / file, {"format": "pt"})
        index |= dict.fromkeys(tensors, file)
        total += sum(2 * tensor.numel() for tensor in tensors.values())
    (directory / "model.safetensors.index.json").write_text(
        json.dumps({"metadata": {"total_size": total}, "weight_map": index})
    )
    (directory / "config.json").write_text(json.dumps(config.to_dict() | {"architectures": ["LlamaForCausalLM"]}))
    return total


if __name__ == "__main__":
    main()
