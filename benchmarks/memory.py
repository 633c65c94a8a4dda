"""How much memory compressing takes when a model grows: with its depth, and at the size of 7 billion parameters.

    python benchmarks/memory.py [--directory /tmp] [--skip-7b]

Random models lie on disk as safetensors (13.5 GB for the large one, in --directory); gptq-4 runs over them in a process
of its own, whose peak resident memory is read at the end. The large model's run ends after two of its 32 blocks, since
memory is that of one block whatever follows. "Beyond hidden states" subtracts what enters and leaves a block.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from transformers import LlamaConfig

from paredown.engine.architectures import Skeleton

# Compresses a model with gptq-4 until so many blocks are done, and prints its peak memory.
COMPRESS = """
import json, sys, time
from pathlib import Path
import torch
from paredown.contracts.recipes import Gptq
from paredown.engine.errors import Drained
from paredown.engine.memory import peak_memory_bytes
from paredown.engine.stream import compress_model
from paredown.engine.weights import open_model

directory, samples, length, stop_after = Path(sys.argv[1]), *map(int, sys.argv[2:])
files = open_model(directory)
tokens_NT = torch.randint(files.config.vocab_size, (samples, length), generator=torch.Generator().manual_seed(0))
done = 0

def on_progress(finished, _all):
    global done
    done = finished

started = time.perf_counter()
try:
    compress_model(
        files, [Gptq(group_size=128)], tokens_NT, device=torch.device("cpu"), dtype=torch.bfloat16,
        work_dir=directory / "work", identity="benchmark", on_progress=on_progress,
        should_drain=lambda: done >= stop_after,
    )
except Drained:
    pass
print(json.dumps({"peak": peak_memory_bytes(torch.device("cpu")), "seconds": time.perf_counter() - started}))
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--directory", type=Path, help="where the random models are written")
    parser.add_argument("--skip-7b", action="store_true", help="only the small models of growing depth")
    arguments = parser.parse_args()
    print(f"{'gptq-4 over a random llama':<34}{'on disk':>12}{'peak memory':>14}{'seconds':>10}", flush=True)
    small = {"hidden_size": 1024, "intermediate_size": 2816, "num_attention_heads": 16, "vocab_size": 8192}
    peaks = [measure(small | {"num_hidden_layers": blocks}, 8, 512, blocks, arguments.directory) for blocks in (8, 16)]
    print(f"  twice the blocks take {peaks[1] / peaks[0] - 1:+.1%} memory")
    if not arguments.skip_7b:
        large = {"hidden_size": 4096, "intermediate_size": 11008, "num_attention_heads": 32, "vocab_size": 32000}
        peak = measure(large | {"num_hidden_layers": 32}, 4, 512, 2, arguments.directory)
        states = 2 * 4 * 512 * 4096 * 2
        print(f"  beyond hidden states of {states / 1e6:.0f} MB: {(peak - states) / 1e9:.2f} GB")


def measure(sizes: dict[str, int], samples: int, length: int, blocks: int, parent: Path | None) -> int:
    """Peak bytes of a run that ends after so many blocks."""
    with tempfile.TemporaryDirectory(prefix="pare-memory-", dir=parent) as name:
        directory = Path(name)
        written = write_random(LlamaConfig(**sizes), directory)
        command = [sys.executable, "-c", COMPRESS, name, *map(str, (samples, length, blocks))]
        finished = subprocess.run(command, capture_output=True, text=True, check=False)
        if finished.returncode != 0:
            raise SystemExit(finished.stderr[-3000:])
        answer: dict[str, Any] = json.loads(finished.stdout)
    label = f"{sizes['num_hidden_layers']} blocks of width {sizes['hidden_size']}, {samples} × {length} tokens"
    print(
        f"{label:<34}{written / 1e9:>9.2f} GB{answer['peak'] / 2**20:>10.0f} MiB{answer['seconds']:>10.0f}", flush=True
    )
    return int(answer["peak"])


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
    (directory / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    (directory / "config.json").write_text(json.dumps(config.to_dict() | {"architectures": ["LlamaForCausalLM"]}))
    return total


if __name__ == "__main__":
    main()
