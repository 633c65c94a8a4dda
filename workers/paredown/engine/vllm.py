"""Proof that an artifact loads in vLLM, which lives in an environment of its own that the operator names.

vLLM computes in bfloat16 with kernels of its own, so its perplexity lies a little off the report's. Speed is of base
and artifact in vLLM both, in turns, as everywhere.
"""

import json
import os
import platform
import re
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy
import torch

from paredown.contracts.job import Format
from paredown.contracts.recipes import rounds_activations, shape_left
from paredown.contracts.report import Evaluation, RuntimeProof, Speed
from paredown.contracts.runtimes import vllm_refusal
from paredown.contracts.work import WorkOrder
from paredown.engine.errors import RuntimeDisagrees, RuntimeLoadFailed, RuntimeUnavailable
from paredown.engine.evaluation import speed
from paredown.engine.formats import dense
from paredown.engine.inputs import Inputs
from paredown.engine.progress import Journey
from paredown.engine.proof import prompt_of
from paredown.engine.runtimes import RuntimeFailed, RuntimeProcess, memory_shortage

# How far vLLM's perplexity may lie from the report's.
TOLERANCE = 0.02
_CHILD = Path(__file__).with_name("vllm_child.py")
# vLLM gives each sequence whole blocks of its cache: of 16 tokens on GPUs, of 128 on CPUs.
_CACHE_BLOCK = 128
# What a process of vLLM takes beside weights and cache, seen on a CPU: 730 MB.
_OVERHEAD_BYTES = 2**30
# How vLLM says that it does not read a file here, and torch that vLLM's library has no such kernel: the one for CPUs
# without AVX-512 has none for packed weights.
_NO_KERNEL = re.compile(r"Failed to find a kernel|'_OpNamespace' '_C' object has no attribute")
_HAS_VLLM = "import importlib.util, sys; sys.exit(importlib.util.find_spec('vllm') is None)"


class VllmProcess(RuntimeProcess):
    """One model in vLLM; see vllm_child."""

    name = "vllm"

    def __init__(self, python: Path, scratch: Path, threads: int) -> None:
        super().__init__(scratch, "cpu", threads)
        self._python = python

    def command(self) -> list[str]:
        # Isolated: neither our packages nor the files beside the script are that environment's.
        return [str(self._python), "-I", "-W", "ignore", str(_CHILD)]

    def environment(self) -> dict[str, str]:
        scratch = str(self.scratch)
        inherited = {name: value for name, value in super().environment().items() if name != "PYTHONPATH"}
        return inherited | {
            # Kernels that are compiled on the way may need the environment's tools.
            "PATH": f"{self._python.parent}:{os.environ.get('PATH', os.defpath)}",
            "TORCHINDUCTOR_CACHE_DIR": scratch,
            "TRITON_CACHE_DIR": scratch,
            "VLLM_CACHE_ROOT": scratch,
            "VLLM_CONFIG_ROOT": scratch,
            # On CPUs with AMX it would round activations before 4-bit layers to 8 bits, as no artifact asks it to.
            "VLLM_CPU_INT4_W4A8": "0",
            # It would bind its threads to the cores that the other process computes on.
            "VLLM_CPU_OMP_THREADS_BIND": "nobind",
            "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
            "VLLM_HOST_IP": "127.0.0.1",
            "VLLM_LOGGING_LEVEL": "WARNING",
            "VLLM_NO_USAGE_STATS": "1",
            "XDG_CACHE_HOME": scratch,
        }

    def wait_until_ready(self) -> None:
        ready = self._call("ready")
        self.version, self.device = ready["version"], ready["device"]

    def knows(self, architectures: Sequence[str]) -> bool:
        """Whether this vLLM has a model of one of the architectures."""
        return bool(self._call("knows", architectures=list(architectures)))

    def load(self, directory: Path, *, context: int, sequences: int, cache_bytes: int) -> None:
        self.load_seconds = self._call(
            "load", directory=str(directory), context=context, sequences=sequences, cache_bytes=cache_bytes
        )
        self.loaded = True

    def generate(self, prompt: Sequence[int], new_tokens: int) -> str:
        generated = self._call("generate", prompt=list(prompt), new_tokens=new_tokens)
        return generated["text"] if generated["text"] is not None else " ".join(map(str, generated["ids"]))

    def perplexity(self, tokens: Path) -> float:
        """Over the sequences in a .npy file."""
        return float(self._call("perplexity", tokens=str(tokens)))


class _Unclaimed(Exception):
    """vLLM does not read the artifact here; the message says what it would take."""


def tries_vllm(order: WorkOrder, output_format: Format) -> bool:
    """Whether there is to be a vLLM, and it reads what the recipe leaves in this format."""
    return order.vllm_python is not None and vllm_refusal(output_format, order.recipe) is None


def check_vllm(order: WorkOrder, output_format: Format) -> None:
    """Before hours of work: is there a vLLM where the order says? Raises RuntimeUnavailable."""
    python = order.vllm_python
    if not tries_vllm(order, output_format):
        return
    try:
        found = subprocess.run(  # noqa: S603  # the operator's choice
            [str(python), "-I", "-c", _HAS_VLLM], env={}, stdin=subprocess.DEVNULL, capture_output=True, check=False
        )
        problem = None if found.returncode == 0 else "has no package vllm"
    except OSError as error:
        problem = f"cannot be started: {error.strerror}"
    if problem:
        raise RuntimeUnavailable(
            f"PARE_VLLM_PYTHON names {python}, which {problem}. Name the interpreter of an environment where vLLM is "
            "installed, readable by every user, or unset it.",
            field="evaluation.runtimes",
        )


def prove_in_vllm(
    order: WorkOrder, inputs: Inputs, output_format: Format, artifact: Evaluation | None, journey: Journey
) -> tuple[RuntimeProof, tuple[str, ...]]:
    """Load the artifact in vLLM, beside the base where speed is asked for.

    Where vLLM does not read it here, the proof says what it would take; where it tries and fails, a warning says so.
    Where the job asks for vllm, either is a failure.
    Raises RuntimeUnavailable, RuntimeLoadFailed, RuntimeDisagrees.
    """
    assert order.vllm_python is not None
    with (
        journey.part("vllm"),
        tempfile.TemporaryDirectory(prefix="vllm-") as scratch,
        VllmProcess(order.vllm_python, Path(scratch), torch.get_num_threads()) as process,
    ):
        asked = order.evaluation is not None and "vllm" in (order.evaluation.runtimes or ())
        try:
            process.wait_until_ready()
            _check_readable(order, inputs, output_format, process)
            return _prove(order, inputs, process, artifact)
        except _Unclaimed as reason:
            if asked:
                raise RuntimeUnavailable(
                    f"The job asks for vllm, which does not take this artifact here: {reason}",
                    field="evaluation.runtimes",
                ) from reason
            return RuntimeProof(runtime="vllm", version="", loads=False, detail=str(reason)), ()
        except RuntimeFailed as error:
            failed = "run" if process.loaded else "load"
            sentence = f"vLLM {process.version} does not {failed} the artifact: {error}."
            if asked:
                raise RuntimeLoadFailed(sentence) from error
            return RuntimeProof(runtime="vllm", version="", loads=False, detail=sentence), (sentence,)


def _check_readable(order: WorkOrder, inputs: Inputs, output_format: Format, process: VllmProcess) -> None:
    left = shape_left(inputs.shape, order.recipe)
    if refusal := vllm_refusal(output_format, order.recipe, process.device, left):
        raise _Unclaimed(refusal)
    if process.device == "cpu" and rounds_activations(order.recipe) and _saturates():
        raise _Unclaimed(
            "On a CPU without VNNI the library that multiplies 8-bit integers for vLLM cuts sums off at 16 bits, so "
            "that it would compute something else."
        )
    architectures = json.loads((order.output_dir / "config.json").read_bytes())["architectures"]
    if not process.knows(architectures):
        raise _Unclaimed(f"vLLM {process.version} has no model {' or '.join(architectures)}.")
    if shortage := _shortage(inputs, process, models=1):
        raise _Unclaimed(f"It {shortage}.")


def _saturates() -> bool:
    """Whether oneDNN adds pairs of 8-bit products in 16 bits: 14 % off were seen for weights that use all 8 bits."""
    processor = Path("/proc/cpuinfo")
    return platform.machine() == "x86_64" and processor.is_file() and "_vnni" not in processor.read_text()


def _shortage(inputs: Inputs, process: VllmProcess, *, models: int) -> str | None:
    device = process.device if torch.cuda.is_available() else "cpu"
    return memory_shortage(models * (2 * inputs.shape.parameters + _OVERHEAD_BYTES), 1, device)


def _prove(
    order: WorkOrder, inputs: Inputs, process: VllmProcess, artifact: Evaluation | None
) -> tuple[RuntimeProof, tuple[str, ...]]:
    settings = speed.SpeedSettings().within(inputs.shape.context_length - 1)
    prompt = prompt_of(inputs, settings.prompt_tokens)
    try:
        _load(process, order.output_dir, inputs, settings)
    except RuntimeFailed as error:
        if _NO_KERNEL.search(str(error)):
            raise _Unclaimed(
                f"vLLM {process.version} has no kernel for it on this {process.device}: {error}"
            ) from error
        raise
    speeds: dict[speed.Role, Speed] = {}
    warnings: tuple[str, ...] = ()
    if order.evaluation and order.evaluation.speed:
        speeds, warnings = _measure_speed(order, inputs, process, prompt, settings)
    sample = process.generate(prompt[: max(1, min(16, len(prompt)))], settings.new_tokens)
    perplexity, detail = _perplexity(inputs, process, artifact)
    proof = RuntimeProof(
        runtime="vllm",
        version=process.version,
        loads=True,
        perplexity=perplexity,
        sample=sample,
        detail=detail,
        speeds=speeds,
    )
    return proof, warnings


def _load(process: VllmProcess, directory: Path, inputs: Inputs, settings: speed.SpeedSettings) -> None:
    """With as much cache as what follows needs."""
    longest = settings.prompt_tokens + settings.new_tokens + 1
    if inputs.evaluation is not None:
        # vLLM always writes one token after those that it reads.
        longest = max(longest, inputs.evaluation.tokens_NT.shape[1] + 1)
    context = min(longest, inputs.shape.context_length)
    # Two blocks over: one of them vLLM keeps empty.
    tokens = _CACHE_BLOCK * (-(-context // _CACHE_BLOCK) + settings.sequences + 2)
    config = inputs.files.config
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    # Keys and values of all blocks, in bfloat16.
    cache_bytes = tokens * 2 * inputs.shape.num_blocks * heads * width * 2
    process.load(directory, context=context, sequences=settings.sequences, cache_bytes=cache_bytes)


def _measure_speed(
    order: WorkOrder, inputs: Inputs, artifact: VllmProcess, prompt: list[int], settings: speed.SpeedSettings
) -> tuple[dict[speed.Role, Speed], tuple[str, ...]]:
    """Beside the base; alone where it is not here."""
    if order.origin is not None:
        return speed.measure({"artifact": artifact}, prompt, settings), ()
    if shortage := _shortage(inputs, artifact, models=1):
        return {}, (f"Speed in vLLM was not measured: the base beside the artifact {shortage}.",)
    assert order.vllm_python is not None
    with (
        tempfile.TemporaryDirectory(prefix="base-", dir=artifact.scratch) as scratch,
        VllmProcess(order.vllm_python, Path(scratch), artifact.threads) as base,
    ):
        directory = order.model_dir
        if order.gguf_file is not None:
            directory = Path(scratch) / "model"
            directory.mkdir()
            dense.write_base(inputs.files, directory)
        try:
            base.wait_until_ready()
            _load(base, directory, inputs, settings)
        except RuntimeFailed as error:
            return {}, (f"Speed in vLLM was not measured, because it does not load the base: {error}.",)
        return speed.measure({"base": base, "artifact": artifact}, prompt, settings), ()


def _perplexity(inputs: Inputs, process: VllmProcess, artifact: Evaluation | None) -> tuple[float | None, str | None]:
    """Over the report's tokens, and a remark. Raises RuntimeDisagrees."""
    if inputs.evaluation is None or artifact is None:
        return None, None
    tokens_NT = inputs.evaluation.tokens_NT
    if tokens_NT.shape[1] >= inputs.shape.context_length:
        return None, "Perplexity was not measured: the sequences fill the context, and vLLM writes one token more."
    tokens = process.scratch / "evaluation-tokens.npy"
    numpy.save(tokens, tokens_NT.numpy())
    found = process.perplexity(tokens)
    if not abs(found / artifact.perplexity - 1) <= TOLERANCE:
        raise RuntimeDisagrees(
            f"vLLM {process.version} measures a perplexity of {found:.4f} on the artifact's files, but "
            f"{artifact.perplexity:.4f} was measured before they were written, and the two may differ by "
            f"{TOLERANCE:.0%}. This is a fault of Pare's files or of that vLLM; please report it with the job's recipe."
        )
    return found, "Perplexity is vLLM's own, in bfloat16."


__all__ = ["TOLERANCE", "VllmProcess", "check_vllm", "prove_in_vllm"]
