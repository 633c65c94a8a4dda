"""A clean process that loads one model as a user would, and answers questions about it.

That is with plain transformers, and nothing of the engine is imported: what loads here loads anywhere. Only an artifact
of the native format goes through its public loader. `{"call": NAME, …}` comes in on standard input,
a line each; `{"ok": …}` or `{"error": …}` goes out on standard output. End of input ends the process at once, even in
the middle of a computation, and so does the end of the process whose number is on the command line: it never outlives
the engine. Gradients are off by no_grad, not by inference_mode, under which weights that are decompressed in the first
forward could not be cast to another number type later.
Shapes: N sequences, T tokens in each, V vocabulary.
"""

import ctypes
import importlib.metadata
import json
import os
import queue
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

_PR_SET_PDEATHSIG = 1


def serve(make: Callable[[], Any]) -> None:
    """Answer calls by the methods of what `make` gives, until the input ends."""
    answers = os.fdopen(os.dup(1), "w")
    # Whatever libraries print belongs to the log.
    os.dup2(2, 1)
    _die_with(int(sys.argv[1]))
    calls: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
    threading.Thread(target=_listen, args=(calls,), daemon=True).start()
    runtime = make()
    while True:
        call = calls.get()
        try:
            answer = {"ok": getattr(runtime, call.pop("call"))(**call)}
        except Exception as error:  # noqa: BLE001  # a model can fail in any way; the engine gives it a name
            answer = {"error": f"{type(error).__name__}: {error}"[:2000]}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


def _listen(calls: "queue.SimpleQueue[dict[str, Any]]") -> None:
    for line in sys.stdin:
        calls.put(json.loads(line))
    os._exit(0)


def _die_with(parent: int) -> None:
    """The kernel kills this process when the engine's main thread ends, also while Python cannot run."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != parent:
            # It ended before it could be watched.
            os._exit(0)


def peak_memory_bytes() -> int:
    """Of this process."""
    status = Path("/proc/self/status")
    if status.is_file():
        # Not ru_maxrss: that counts the process from which this one was forked.
        [line] = [line for line in status.read_text().splitlines() if line.startswith("VmHWM:")]
        return int(line.split()[1]) * 1024
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


class Runtime:
    """One model in transformers."""

    def __init__(self) -> None:
        import torch
        import transformers

        self.torch = torch
        self.transformers = transformers
        self.model: Any = None
        self.directory = Path()
        self.gguf_file: str | None = None
        self.tokenizer: Any = None

    def ready(self) -> bool:
        return True

    def load(
        self, directory: str, gguf_file: str | None, dtype: str, device: str, threads: int, native: bool
    ) -> dict[str, Any]:
        """`AutoModelForCausalLM.from_pretrained(directory)`, or the native loader; a GGUF file is dequantized."""
        self.torch.set_num_threads(threads)
        self.directory, self.gguf_file = Path(directory), gguf_file
        started = time.perf_counter()
        if native:
            self.model, version = self._native(directory, device), importlib.metadata.version("paredown")
        else:
            self.model, version = self._plain(directory, gguf_file, dtype, device), self.transformers.__version__
        return {
            "seconds": time.perf_counter() - started,
            "version": version,
            "dtype": str(self.model.dtype).removeprefix("torch."),
        }

    def _native(self, directory: str, device: str) -> Any:
        from paredown.engine.formats import native

        return native.load(directory, device=device)

    def _plain(self, directory: str, gguf_file: str | None, dtype: str, device: str) -> Any:
        arguments: dict[str, Any] = {"local_files_only": True}
        if gguf_file:
            # The base is the dense model; transformers would otherwise keep the file's own blocks.
            arguments |= {
                "gguf_file": gguf_file,
                "dtype": getattr(self.torch, dtype),
                "quantization_config": self.transformers.GgufConfig(dequantize=True),
            }
        elif dtype:
            arguments["dtype"] = getattr(self.torch, dtype)
        model, found = self.transformers.AutoModelForCausalLM.from_pretrained(
            directory, **arguments, output_loading_info=True
        )
        # transformers only warns of weights that it lacks, and draws random ones in their place.
        wrong = sorted(map(str, (*found["missing_keys"], *found["mismatched_keys"])))
        if wrong:
            raise ValueError(f"the weight files and the configuration differ at {', '.join(wrong[:5])}")
        model = model.to(device).eval()
        if hasattr(model, "hf_quantizer"):
            # Files of several widths are dequantized at the first forward; its tensors must outlive inference mode.
            with self.torch.no_grad():
                model(self.torch.zeros(1, 1, dtype=self.torch.long, device=device), use_cache=False)
        return model

    def generate(self, prompt: list[int], new_tokens: int) -> dict[str, Any]:
        """Continue the prompt greedily; `text` is None for a model without a tokenizer."""
        prompt_NT = self.torch.tensor([prompt], device=self.model.device)
        with self.torch.no_grad():
            ids_NT = self.model.generate(
                prompt_NT,
                attention_mask=self.torch.ones_like(prompt_NT),
                max_new_tokens=new_tokens,
                do_sample=False,
                num_beams=1,
                pad_token_id=0,
            )
        ids = ids_NT[0].tolist()
        text = None
        if (self.directory / "tokenizer_config.json").is_file() or (self.directory / "tokenizer.json").is_file():
            text = self.transformers.AutoTokenizer.from_pretrained(self.directory, local_files_only=True).decode(ids)
        return {"ids": ids, "text": text}

    def continuations(self, prompts: list[list[int]], new_tokens: int) -> list[list[int]]:
        """Continue each prompt greedily; none ends before it has `new_tokens`."""
        prompt_NT = self.torch.tensor(prompts, device=self.model.device)
        with self.torch.no_grad():
            ids_NT = self.model.generate(
                prompt_NT,
                attention_mask=self.torch.ones_like(prompt_NT),
                max_new_tokens=new_tokens,
                min_new_tokens=new_tokens,
                do_sample=False,
                num_beams=1,
                pad_token_id=0,
            )
        written: list[list[int]] = ids_NT[:, prompt_NT.shape[1] :].tolist()
        return written

    def complete(self, prompt: list[int], new_tokens: int, stops: list[str], dtype: str) -> str:
        """What the model writes after the prompt, greedily, up to the first of `stops`, which is left out."""
        self._cast(dtype)
        if self.tokenizer is None:
            more = {"gguf_file": self.gguf_file} if self.gguf_file else {}
            self.tokenizer = self.transformers.AutoTokenizer.from_pretrained(
                self.directory, local_files_only=True, **more
            )
        tokenizer = self.tokenizer

        def written(ids_NT: Any) -> str:
            return str(tokenizer.decode(ids_NT[0, len(prompt) :], skip_special_tokens=True))

        def stopped(ids_NT: Any, _scores: Any, **_more: Any) -> Any:
            text = written(ids_NT)
            return self.torch.tensor([any(stop in text for stop in stops)], device=ids_NT.device)

        prompt_NT = self.torch.tensor([prompt], device=self.model.device)
        with self.torch.no_grad():
            ids_NT = self.model.generate(
                prompt_NT,
                attention_mask=self.torch.ones_like(prompt_NT),
                max_new_tokens=new_tokens,
                do_sample=False,
                num_beams=1,
                pad_token_id=0,
                stopping_criteria=self.transformers.StoppingCriteriaList([stopped]),
            )
        text = written(ids_NT)
        return text[: min((text.index(stop) for stop in stops if stop in text), default=len(text))]

    def _cast(self, dtype: str) -> None:
        """Weights alone: the frequencies of rotary positions and the like stay as they are for users."""
        # By hand, because transformers refuses to cast what was stored quantized, though it is dense once it has run.
        for parameter in self.model.parameters():
            if parameter.is_floating_point():
                parameter.data = parameter.data.to(getattr(self.torch, dtype))

    def perplexity(self, tokens: str, dtype: str) -> dict[str, Any]:
        """exp of the mean negative log-likelihood of every predicted token of the sequences in a .npy file."""
        import numpy

        self._cast(dtype)
        tokens_NT = self.torch.from_numpy(numpy.load(tokens, allow_pickle=False))
        total = 0.0
        with self.torch.no_grad():
            for tokens_T in tokens_NT.to(self.model.device):
                logits_TV = self.model(tokens_T[None], use_cache=False).logits[0, :-1].float()
                total += self.torch.nn.functional.cross_entropy(logits_TV, tokens_T[1:], reduction="sum").item()
        count = tokens_NT.shape[0] * (tokens_NT.shape[1] - 1)
        mean = self.torch.tensor(total / count, dtype=self.torch.float64)
        return {"perplexity": mean.exp().item(), "predicted_tokens": count}

    def time(self, prompt: list[int], new_tokens: int) -> dict[str, Any]:
        """Seconds to read the prompt at once, and to write `new_tokens` one by one after it."""
        return self._timed([prompt], new_tokens)

    def time_batch(self, prompts: list[list[int]], new_tokens: int) -> float:
        """Seconds to write `new_tokens` after each of the prompts, which are equally long, all at once."""
        return float(self._timed(prompts, new_tokens)["decode_seconds"])

    def _timed(self, prompts: list[list[int]], new_tokens: int) -> dict[str, float]:
        prompt_NT = self.torch.tensor(prompts, device=self.model.device)
        with self.torch.no_grad():
            started = self._now()
            output = self.model(prompt_NT, use_cache=True, logits_to_keep=1)
            next_NT = output.logits[:, -1:].argmax(-1)
            read = self._now()
            for _ in range(new_tokens):
                output = self.model(next_NT, past_key_values=output.past_key_values, use_cache=True)
                next_NT = output.logits[:, -1:].argmax(-1)
            written = self._now()
        return {"prefill_seconds": read - started, "decode_seconds": written - read}

    def peak_memory_bytes(self) -> int:
        if self.model.device.type == "cuda":
            return int(self.torch.cuda.max_memory_allocated())
        return peak_memory_bytes()

    def _now(self) -> float:
        if self.model.device.type == "cuda":
            self.torch.cuda.synchronize()
        return time.perf_counter()


if __name__ == "__main__":
    serve(Runtime)
