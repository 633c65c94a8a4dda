"""Proof that an artifact loads: in plain transformers, or through the native format's loader where no stock runtime
reads it, in a clean child process with an empty environment and no network.

A runtime is claimed only when it loaded the artifact here and, where quality was evaluated, measured the report's
perplexity over the same tokens.
"""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, ClassVar, Literal, Self

import numpy
import torch

from paredown.contracts.job import Format, RuntimeName
from paredown.contracts.recipes import Stage
from paredown.contracts.report import RuntimeProof
from paredown.contracts.runtimes import OWN_LOADER, vllm_refusal
from paredown.contracts.shapes import ModelShape
from paredown.engine.errors import RuntimeDisagrees, RuntimeLoadFailed
from paredown.engine.isolation import HARMLESS_VARIABLES
from paredown.engine.memory import available_memory_bytes

# How far a runtime's perplexity may lie from the report's. Weights, tokens and number type are the same: only the
# order of additions differs.
TOLERANCE = 0.005
# Where layers round their inputs, a difference in the last bit moves an input by a whole step: in bfloat16, batches of
# other sizes alone were seen to move the perplexity of float8 inputs over 2040 tokens by 0.7 % (without rounding 0.05).
ROUNDED_TOLERANCE = 0.02
# In bfloat16 other kernels, or batches of other sizes, move the loss of a token by so many nats (its standard
# deviation, seen on a model without three of its blocks); of the mean over few tokens that leaves more than the first.
_BFLOAT16_NATS = 0.075
_DEVIATIONS = 5
# What loading takes beside the weights: the interpreter with torch, activations, buffers.
OVERHEAD_BYTES = 700 * 2**20
_NATIVE_ALONE = "Reads no native artifact; format safetensors stores the same weights dense, for every runtime."


class RuntimeFailed(Exception):
    """The child answered with an error, or ended."""


class RuntimeProcess:
    """A clean child process with one model in a runtime. Killed on leaving the context.

    `scratch` is its home and working directory.
    """

    name: ClassVar[RuntimeName]
    module: ClassVar[str]

    def __init__(self, scratch: Path, device: str, threads: int) -> None:
        self.device = device
        self.threads = threads
        self.scratch = scratch
        self.loaded = False
        self.version = ""
        self.load_seconds = 0.0

    def command(self) -> list[str]:
        """What to start; the number of this process is added."""
        return [sys.executable, "-P", "-m", self.module]

    def environment(self) -> dict[str, str]:
        """All that the child is told of the world."""
        # Their memory is measured, which is to be what others see: with the system's own allocator.
        names = HARMLESS_VARIABLES - {"LD_PRELOAD"}
        inherited = {name: os.environ[name] for name in names if name in os.environ}
        return inherited | {
            # llama.cpp would call a debugger when it aborts.
            "GGML_NO_BACKTRACE": "1",
            "HF_HOME": str(self.scratch),
            "HF_HUB_OFFLINE": "1",
            "HOME": str(self.scratch),
            "OMP_NUM_THREADS": str(self.threads),
            "TMPDIR": str(self.scratch),
            "TRANSFORMERS_OFFLINE": "1",
        }

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(  # noqa: S603  # our own module, or vLLM's interpreter with our script
            [*self.command(), str(os.getpid())],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=self.environment(),
            cwd=self.scratch,
            text=True,
        )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.kill()
        self._process.communicate()

    @property
    def pid(self) -> int:
        return self._process.pid

    def wait_until_ready(self) -> None:
        """Until the libraries are imported."""
        self._call("ready")

    def time(self, prompt: Sequence[int], new_tokens: int) -> tuple[float, float]:
        """Seconds of prefill and of decoding."""
        timed = self._call("time", prompt=list(prompt), new_tokens=new_tokens)
        return timed["prefill_seconds"], timed["decode_seconds"]

    def continuations(self, prompts: Sequence[Sequence[int]], new_tokens: int) -> list[list[int]]:
        """What the model writes after each prompt, greedily, `new_tokens` long; the prompts are of one length."""
        raise NotImplementedError

    def time_batch(self, prompts: Sequence[Sequence[int]], new_tokens: int) -> float:
        """Seconds to decode `new_tokens` after each of the prompts, all at once; reading them is not counted."""
        return float(self._call("time_batch", prompts=[list(prompt) for prompt in prompts], new_tokens=new_tokens))

    def peak_memory_bytes(self) -> int:
        return int(self._call("peak_memory_bytes"))

    def _call(self, name: str, **arguments: Any) -> Any:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps({"call": name, **arguments}) + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            raise RuntimeFailed(f"the process ended with status {self._process.wait()} during {name}")
        answer = json.loads(line)
        if "error" in answer:
            raise RuntimeFailed(answer["error"])
        return answer["ok"]


class TransformersProcess(RuntimeProcess):
    """One model in transformers; see runtime_child."""

    name: ClassVar[Literal["transformers", "native"]] = "transformers"
    module = "paredown.engine.runtime_child"

    def load(self, directory: Path, *, gguf_file: str | None = None, dtype: torch.dtype | None = None) -> None:
        """Load as a user would; `dtype` None leaves the choice to the model's configuration."""
        loaded = self._call(
            "load",
            directory=str(directory),
            gguf_file=gguf_file,
            dtype=str(dtype).removeprefix("torch.") if dtype else "",
            device=self.device,
            threads=self.threads,
            native=self.name == "native",
        )
        self.loaded = True
        self.version = loaded["version"]
        self.load_seconds = loaded["seconds"]

    def generate(self, prompt: Sequence[int], new_tokens: int) -> str:
        """What the model writes after the prompt, greedily; token numbers where there is no tokenizer."""
        generated = self._call("generate", prompt=list(prompt), new_tokens=new_tokens)
        return generated["text"] if generated["text"] is not None else " ".join(map(str, generated["ids"]))

    def continuations(self, prompts: Sequence[Sequence[int]], new_tokens: int) -> list[list[int]]:
        written: list[list[int]] = self._call("continuations", prompts=list(map(list, prompts)), new_tokens=new_tokens)
        return written

    def complete(self, prompt: Sequence[int], new_tokens: int, stops: Sequence[str], dtype: str) -> str:
        """What the model writes after the prompt, greedily, up to the first of `stops`; in `dtype`."""
        return str(self._call("complete", prompt=list(prompt), new_tokens=new_tokens, stops=list(stops), dtype=dtype))

    def perplexity(self, tokens: Path, dtype: str) -> float:
        """Over the sequences in a .npy file, with the forward pass in `dtype`."""
        return float(self._call("perplexity", tokens=str(tokens), dtype=dtype)["perplexity"])


class NativeProcess(TransformersProcess):
    """One artifact, read by the native format's loader."""

    name = "native"


def load_artifact(process: TransformersProcess, directory: Path) -> None:
    """Raises RuntimeLoadFailed."""
    try:
        process.load(directory)
    except RuntimeFailed as error:
        raise RuntimeLoadFailed(f"{process.name} does not load the artifact: {error}") from error


def prove(
    process: TransformersProcess,
    *,
    prompt: Sequence[int],
    new_tokens: int,
    tokens: Path | None,
    dtype: str,
    reported: float | None,
    tolerance: float = TOLERANCE,
) -> RuntimeProof:
    """Generate from the loaded artifact and measure it. Raises RuntimeLoadFailed, RuntimeDisagrees."""
    try:
        sample = process.generate(prompt, new_tokens)
        perplexity = process.perplexity(tokens, dtype) if tokens is not None else None
    except RuntimeFailed as error:
        raise RuntimeLoadFailed(f"{process.name} loads the artifact, but does not run it: {error}") from error
    if tokens is not None and dtype == "bfloat16":
        samples, length = numpy.load(tokens, mmap_mode="r").shape
        tolerance = max(tolerance, _DEVIATIONS * _BFLOAT16_NATS / (samples * (length - 1)) ** 0.5)
    if perplexity is not None and reported is not None and not abs(perplexity / reported - 1) <= tolerance:
        raise RuntimeDisagrees(
            f"{process.name} measures a perplexity of {perplexity:.4f} on the artifact's files, but {reported:.4f} "
            f"was measured before they were written, and the two may differ by {tolerance:.1%}. This is a fault of "
            "Pare; please report it with the job's recipe."
        )
    return RuntimeProof(runtime=process.name, version=process.version, loads=True, perplexity=perplexity, sample=sample)


def memory_shortage(parameters: int, bytes_each: int, device: str) -> str | None:
    """A sentence when so many models' parameters do not fit in free memory; None when they do."""
    needed = parameters * bytes_each + OVERHEAD_BYTES
    available = available_memory_bytes(device)
    if needed <= available:
        return None
    return f"needs {needed / 2**30:.1f} GiB of memory, of which {available / 2**30:.1f} GiB are free here"


def unclaimed(
    file_format: Format, recipe: Sequence[Stage], shape: ModelShape, asked: Sequence[RuntimeName] | None = None
) -> tuple[RuntimeProof, ...]:
    """The runtimes that a worker without vLLM does not try, each with what it would take; so is vLLM where the job asks
    for others. The shape is the artifact's."""
    details: dict[RuntimeName, str] = {}
    if file_format is Format.GGUF:
        details["transformers"] = "Not tried here. transformers reads the file dequantized, as gguf_file."
    elif file_format is Format.NATIVE:
        details["transformers"] = _NATIVE_ALONE
    elif file_format in OWN_LOADER:
        details["transformers"] = "Not tried here. transformers reads it where gptqmodel is installed."
    if refusal := vllm_refusal(file_format, recipe, shape=shape):
        details["vllm"] = f"Not tried here. {refusal}"
    elif asked is not None and "vllm" not in asked:
        details["vllm"] = "Not tried: the job asks for other runtimes."
    else:
        details["vllm"] = "Not tried here. vLLM reads it; this worker names no environment with it (PARE_VLLM_PYTHON)."
    if file_format is Format.NATIVE:
        details["llama.cpp"] = _NATIVE_ALONE
    elif file_format is not Format.GGUF:
        details["llama.cpp"] = "llama.cpp reads GGUF; set the job's format to gguf."
    return tuple(
        RuntimeProof(runtime=runtime, version="", loads=False, detail=detail) for runtime, detail in details.items()
    )
