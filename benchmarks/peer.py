"""llm-compressor on the same model and tokens; runs in an environment of its own, and knows nothing of ours.

    PEER_PYTHON benchmarks/peer.py MODEL_DIR CALIBRATION.npy EVALUATION.npy METHOD DTYPE ANSWER.json

Its own best settings: static activation order, and the `mse` observer for scales. Writes seconds of its `oneshot`, peak
resident memory when that ends, and perplexity over the evaluation's sequences, as JSON into a file.
"""

import importlib.metadata
import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy
import torch
from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
from datasets import Dataset
from llmcompressor import oneshot
from llmcompressor.modifiers.gptq import GPTQModifier
from llmcompressor.modifiers.pruning import SparseGPTModifier, WandaPruningModifier
from transformers import AutoModelForCausalLM


def gptq(bits: int) -> GPTQModifier:
    weights = QuantizationArgs(num_bits=bits, symmetric=True, strategy="group", group_size=64, observer="mse")
    scheme = QuantizationScheme(targets=["Linear"], weights=weights)
    return GPTQModifier(config_groups={"group_0": scheme}, ignore=["lm_head"], actorder="static")


# Pruning looks for linears inside of its targets. A target that is a linear itself it knows by a name with a dot at the
# end, which no `ignore` matches: with "Linear" it would prune the head, and with it the embeddings.
BLOCKS = r"re:model\.layers\.\d+$"
RECIPES: dict[str, Any] = {
    "gptq-4": lambda: gptq(4),
    "gptq-3": lambda: gptq(3),
    "wanda-50%": lambda: WandaPruningModifier(sparsity=0.5, mask_structure="0:0", targets=[BLOCKS]),
    "sparsegpt-50%": lambda: SparseGPTModifier(sparsity=0.5, mask_structure="0:0", targets=[BLOCKS]),
}


def main() -> None:
    directory, calibration, evaluation, method, dtype, path = sys.argv[1:]
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=getattr(torch, dtype)).eval()
    tokens = numpy.load(calibration).tolist()
    dataset = Dataset.from_dict({"input_ids": tokens, "attention_mask": [[1] * len(row) for row in tokens]})
    started = time.perf_counter()
    oneshot(
        model=model,
        dataset=dataset,
        recipe=RECIPES[method](),
        max_seq_length=len(tokens[0]),
        num_calibration_samples=len(tokens),
        shuffle_calibration_samples=False,
    )
    seconds, peak = time.perf_counter() - started, peak_bytes()
    sequences = torch.from_numpy(numpy.load(evaluation))
    with torch.inference_mode():
        losses = [model(sequence[None], labels=sequence[None]).loss.double() for sequence in sequences]
    answer = {
        "seconds": seconds,
        "peak": peak,
        "perplexity": torch.stack(losses).mean().exp().item(),
        "version": importlib.metadata.version("llmcompressor"),
    }
    # Libraries print to standard output.
    Path(path).write_text(json.dumps(answer))


def peak_bytes() -> int:
    [line] = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM:")]
    return int(line.split()[1]) * 1024


if __name__ == "__main__":
    main()
