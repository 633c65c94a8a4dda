"""A clean process that runs one model in vLLM, as a user would, and answers questions about it.

It is run by the interpreter of vLLM's own environment, where nothing of ours is installed: only runtime_child, which
needs the standard library alone, is read from beside this file. The protocol on standard input and output is its own.
vLLM's engine runs in this very process, without graphs and compilation, and reads every prompt anew: prefixes are not
kept. The engine's processes may open no socket, and a process group of one needs none, so torch's own stand-in for a
backend takes the place of Gloo and NCCL.
Shapes: N sequences, T tokens in each.
"""

import importlib.util
import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

_CHILD = Path(__file__).with_name("runtime_child.py")


def _runtime_child() -> Any:
    spec = importlib.util.spec_from_file_location("runtime_child", _CHILD)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Vllm:
    """One model in vLLM."""

    def __init__(self) -> None:
        # Imported at the first call, whose answer says what is missing.
        self._library: Any = None
        self._model: Any = None
        self._requests = 0

    def ready(self) -> dict[str, Any]:
        """vLLM's version, and the device that it runs on."""
        import torch
        import vllm
        from vllm.platforms import current_platform

        _talk_to_nobody()
        if hasattr(torch.cpu, "_init_amx"):
            # vLLM 0.32 uses a CPU's tiles without asking the kernel for them, which ends the process.
            torch.cpu._init_amx()
        self._library = vllm
        return {"version": vllm.__version__, "device": current_platform.device_type}

    def knows(self, architectures: list[str]) -> bool:
        """Whether this vLLM has a model of one of the architectures."""
        from vllm import ModelRegistry

        return bool(set(architectures) & set(ModelRegistry.get_supported_archs()))

    def load(self, directory: str, context: int, sequences: int, cache_bytes: int) -> float:
        """Seconds to load a model that takes up to so many sequences at once, none longer than `context` tokens."""
        started = time.perf_counter()
        self._model = self._library.LLM(
            directory,
            dtype="bfloat16",
            enforce_eager=True,
            enable_prefix_caching=False,
            max_model_len=context,
            max_num_seqs=sequences,
            kv_cache_memory_bytes=cache_bytes,
            # With the cache's size given, this share of a GPU only has to be free.
            gpu_memory_utilization=0.1,
            skip_tokenizer_init=not any(
                (Path(directory) / name).is_file() for name in ("tokenizer_config.json", "tokenizer.json")
            ),
            disable_log_stats=True,
        )
        seconds = time.perf_counter() - started
        # A kernel that was not built for this processor is missed by the first forward only.
        self._answers([[0]], max_tokens=1)
        return seconds

    def generate(self, prompt: list[int], new_tokens: int) -> dict[str, Any]:
        """Continue the prompt greedily; `text` is None for a model without a tokenizer."""
        [output] = self._answers([prompt], max_tokens=new_tokens)
        ids = [*prompt, *output.outputs[0].token_ids]
        tokenizer = self._model.get_tokenizer() if self._has_tokenizer() else None
        return {"ids": ids, "text": None if tokenizer is None else tokenizer.decode(ids)}

    def perplexity(self, tokens: str) -> float:
        """exp of the mean negative log-likelihood of every predicted token of the sequences in a .npy file."""
        import numpy

        tokens_NT = numpy.load(tokens, allow_pickle=False).tolist()
        total, count = 0.0, 0
        for tokens_T in tokens_NT:
            [output] = self._answers([tokens_T], max_tokens=1, prompt_logprobs=1)
            # None for the first token, which nothing predicts.
            for token, likely in zip(tokens_T[1:], output.prompt_logprobs[1:]):  # noqa: B905  # of equal length
                total -= likely[token].logprob
                count += 1
        return math.exp(total / count)

    def time(self, prompt: list[int], new_tokens: int) -> dict[str, float]:
        """Seconds to read the prompt at once, and to write `new_tokens` one by one after the first."""
        return self._timed([prompt], new_tokens)

    def time_batch(self, prompts: list[list[int]], new_tokens: int) -> float:
        """Seconds to write `new_tokens` after each of the prompts, all at once."""
        return self._timed(prompts, new_tokens)["decode_seconds"]

    def peak_memory_bytes(self) -> int:
        """Of the GPU, or of this process and those that it started."""
        import torch

        if torch.cuda.is_available():
            return int(torch.cuda.max_memory_allocated())
        return sum(_peak_of(pid) for pid in _family())

    def _timed(self, prompts: list[list[int]], new_tokens: int) -> dict[str, float]:
        engine = self._model.llm_engine
        settings = self._library.SamplingParams(temperature=0, max_tokens=new_tokens + 1, ignore_eos=True)
        written: dict[str, int] = {}
        started = time.perf_counter()
        read = 0.0
        for prompt in prompts:
            self._requests += 1
            engine.add_request(f"timed-{self._requests}", {"prompt_token_ids": prompt}, settings)
        while engine.has_unfinished_requests():
            for output in engine.step():
                written[output.request_id] = len(output.outputs[0].token_ids)
            if not read and len(written) == len(prompts):
                # Each has its first token.
                read = time.perf_counter()
                ahead = sum(written.values()) - len(prompts)
        decoded = len(prompts) * new_tokens - ahead
        seconds = (time.perf_counter() - read) * len(prompts) * new_tokens / decoded
        return {"prefill_seconds": read - started, "decode_seconds": seconds}

    def _answers(self, prompts: Sequence[list[int]], **settings: Any) -> list[Any]:
        asked = self._library.SamplingParams(temperature=0, ignore_eos=True, **settings)
        answers: list[Any] = self._model.generate(
            [{"prompt_token_ids": prompt} for prompt in prompts], asked, use_tqdm=False
        )
        return answers

    def _has_tokenizer(self) -> bool:
        return not self._model.llm_engine.model_config.skip_tokenizer_init


def _talk_to_nobody() -> None:
    """Process groups of one, that send nothing."""
    from torch import distributed
    from torch.testing._internal.distributed import fake_pg  # noqa: F401  # registers the backend

    def without_sockets(make: Any) -> Any:
        def made(*arguments: Any, **more: Any) -> Any:
            more["backend"] = "fake"
            return make(*arguments, **more)

        return made

    distributed.init_process_group = without_sockets(distributed.init_process_group)
    distributed.new_group = without_sockets(distributed.new_group)


def _family() -> list[str]:
    """This process and all that it started and that live."""
    found = ["self"]
    for children in Path("/proc/self/task").glob("*/children"):
        found += children.read_text().split()
    return found


def _peak_of(pid: str) -> int:
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        # It has ended meanwhile.
        return 0
    return sum(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmHWM:"))


if __name__ == "__main__":
    _runtime_child().serve(Vllm)
