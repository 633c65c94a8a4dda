"""Proof that a GGUF artifact loads in llama.cpp: it generates, cuts text as the model's tokenizer does, and measures.

llama.cpp rounds activations to 8 bits in blocks of 32 where weights are coded, and keeps keys and values in float16, so
its perplexity lies a little off the report's, which is of the same weights in the job's number type.
"""

import importlib.util
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy
import torch

from paredown.contracts.report import Evaluation, Generation, RuntimeProof, Speed
from paredown.contracts.work import WorkOrder
from paredown.engine.errors import RuntimeDisagrees, RuntimeLoadFailed
from paredown.engine.evaluation import generation, speed
from paredown.engine.formats.gguf import FILE_NAME, Uncompressed, write
from paredown.engine.formats.gguf_metadata import context_length
from paredown.engine.inputs import Inputs
from paredown.engine.progress import Journey
from paredown.engine.proof import prompt_of
from paredown.engine.runtimes import RuntimeFailed, RuntimeProcess, memory_shortage

# How far llama.cpp's perplexity may lie from the report's.
TOLERANCE = 0.02
# What llama.cpp must cut as the model's tokenizer does: scripts, digits, spaces, contractions, quotes.
_TEXT = (
    "Größe 😀 3 33 333 3333 3.14 I've told you, WE'RE here…\n\n\n \t  x =  f(a_b)  //--== 我想在 нещо   'tis `q`\r\n"
)


class LlamaCppProcess(RuntimeProcess):
    """One GGUF file in llama.cpp; see llama_cpp_child."""

    name = "llama.cpp"
    module = "paredown.engine.llama_cpp_child"

    def load(self, path: Path, context: int) -> None:
        loaded = self._call("load", path=str(path), context=context, threads=self.threads)
        self.loaded = True
        self.version = f"xllamacpp {loaded['version']}"
        self.load_seconds = loaded["seconds"]

    def generate(self, prompt: Sequence[int], new_tokens: int) -> str:
        return str(self._call("generate", prompt=list(prompt), new_tokens=new_tokens))

    def tokenize(self, text: str, *, special: bool = False) -> list[int]:
        """Token numbers of plain text; `special`: with those that a text begins and ends with."""
        return list(self._call("tokenize", text=text, special=special))

    def continuations(self, prompts: Sequence[Sequence[int]], new_tokens: int) -> list[list[int]]:
        # The server answers in text.
        return [self.tokenize(self.generate(prompt, new_tokens)) for prompt in prompts]

    def perplexity(self, tokens: Path) -> float:
        """Over the sequences in a .npy file."""
        return float(self._call("perplexity", tokens=str(tokens)))


def prove_in_llama_cpp(
    order: WorkOrder, inputs: Inputs, artifact: Evaluation | None, journey: Journey
) -> tuple[RuntimeProof, dict[speed.Role, Speed], tuple[str, ...]]:
    """Load the artifact in llama.cpp, beside the base where speed is asked for.

    Where llama.cpp is not at hand the proof says what it takes. Raises RuntimeLoadFailed, RuntimeDisagrees.
    """
    path = order.output_dir / FILE_NAME
    if importlib.util.find_spec("xllamacpp") is None:
        return _unproven("Not tried here: this worker lacks the package xllamacpp, which brings llama.cpp.")
    # The file, and for perplexity its head in float32.
    head_bytes = 4 * inputs.shape.vocab_size * inputs.shape.hidden_size
    shortage = memory_shortage(path.stat().st_size + head_bytes, 1, "cpu")
    if shortage:
        return _unproven(shortage)
    settings = speed.SpeedSettings().within(context_length(inputs.files.config))
    prompt = prompt_of(inputs, settings.prompt_tokens)
    speeds: dict[speed.Role, Speed] = {}
    generations: dict[speed.Role, Generation] = {}
    warnings: tuple[str, ...] = ()
    with (
        tempfile.TemporaryDirectory(prefix="runtime-") as scratch,
        LlamaCppProcess(Path(scratch), "cpu", torch.get_num_threads()) as process,
    ):
        try:
            process.load(path, settings.prompt_tokens + settings.new_tokens)
            if order.evaluation and order.evaluation.speed:
                with journey.part("speed"):
                    speeds, generations, warnings = _measure_speed(order, inputs, process, prompt, settings)
            with journey.part("prove"):
                if order.evaluation:
                    generations |= generation.of_roles({"artifact": process}, inputs)
                proof = _prove(order, process, inputs, artifact, prompt)
        except RuntimeFailed as error:
            failed = "run" if process.loaded else "load"
            raise RuntimeLoadFailed(f"llama.cpp does not {failed} the artifact: {error}") from error
    return proof.model_copy(update={"generations": generations}), speeds, warnings


def _measure_speed(
    order: WorkOrder, inputs: Inputs, artifact: LlamaCppProcess, prompt: list[int], settings: speed.SpeedSettings
) -> tuple[dict[speed.Role, Speed], dict[speed.Role, Generation], tuple[str, ...]]:
    """Beside the base in 16 bits, which is written for it, and what the base writes; alone where it is not here."""
    if order.origin is not None:
        return speed.measure({"artifact": artifact}, prompt, settings), {}, ()
    shortage = memory_shortage(inputs.shape.parameters, 2, "cpu")
    if shortage:
        return {}, {}, (f"Speed was not measured: the base beside the artifact {shortage}.",)
    # A socket of its own: the name is relative to the working directory.
    with (
        tempfile.TemporaryDirectory(prefix="base-", dir=artifact.scratch) as scratch,
        LlamaCppProcess(Path(scratch), "cpu", artifact.threads) as base,
    ):
        write(Uncompressed(inputs.files), Path(scratch))
        base.load(Path(scratch) / FILE_NAME, settings.prompt_tokens + settings.new_tokens)
        measured = speed.measure({"base": base, "artifact": artifact}, prompt, settings)
        return measured, generation.of_roles({"base": base}, inputs), ()


def _prove(
    order: WorkOrder, process: LlamaCppProcess, inputs: Inputs, artifact: Evaluation | None, prompt: list[int]
) -> RuntimeProof:
    context = context_length(inputs.files.config)
    sample = process.generate(prompt[:16], max(1, min(24, context // 4)))
    if inputs.tokenizer is not None:
        # A GGUF source's tokenizer is copied, and transformers need not begin texts as it says.
        _check_tokens(process, inputs.tokenizer, special=order.gguf_file is None)
    perplexity = detail = None
    if inputs.evaluation is not None and artifact is not None:
        tokens_NT = inputs.evaluation.tokens_NT
        if tokens_NT.shape[1] <= context:
            tokens = process.scratch / "evaluation-tokens.npy"
            numpy.save(tokens, tokens_NT.numpy())
            perplexity = process.perplexity(tokens)
            _check_perplexity(perplexity, artifact.perplexity)
            detail = "Perplexity is of llama.cpp's last states and the file's own head."
        else:
            detail = f"Perplexity was not measured: llama.cpp agrees with transformers over {context} tokens only."
    return RuntimeProof(
        runtime="llama.cpp",
        version=process.version,
        loads=True,
        perplexity=perplexity,
        sample=sample,
        detail=detail,
    )


def _check_perplexity(found: float, reported: float) -> None:
    if not abs(found / reported - 1) <= TOLERANCE:
        raise RuntimeDisagrees(
            f"llama.cpp measures a perplexity of {found:.4f} on the artifact's file, but {reported:.4f} was measured "
            "before it was written. This is a fault of Pare; please report it with the job's recipe."
        )


def _check_tokens(process: LlamaCppProcess, tokenizer: Any, *, special: bool) -> None:
    expected = tokenizer(_TEXT, add_special_tokens=special)["input_ids"]
    found = process.tokenize(_TEXT, special=special)
    if found != expected:
        raise RuntimeDisagrees(
            f"llama.cpp cuts a text into {len(found)} tokens, of which the model's tokenizer makes {len(expected)} or "
            "others, so answers would be worse there. This is a fault of Pare; please report it with the job's model."
        )


def _unproven(detail: str) -> tuple[RuntimeProof, dict[speed.Role, Speed], tuple[str, ...]]:
    return RuntimeProof(runtime="llama.cpp", version="", loads=False, detail=detail), {}, ()
