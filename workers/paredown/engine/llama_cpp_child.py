"""A clean process that runs one GGUF file in llama.cpp, as a user would, and answers questions about it.

llama.cpp comes in the wheel `xllamacpp`, whose interface is llama.cpp's own server. It listens on a Unix socket in the
working directory, because the engine's processes have no network. The protocol on standard input and output is
runtime_child's. The server tells no probability of given tokens, but it does tell the states that leave its last norm,
so perplexity is computed from those and the file's own head; that head as llama.cpp computes it is what generates.
Shapes: N sequences, T tokens in each, H hidden size, V vocabulary.
"""

import http.client
import importlib.metadata
import json
import math
import socket
import time
from pathlib import Path
from typing import Any

from paredown.engine.runtime_child import peak_memory_bytes, serve

_SOCKET = "llama.sock"
# Positions whose logits exist at once.
_HEAD_TOKENS = 256


class LlamaCpp:
    """One GGUF file in llama.cpp."""

    def __init__(self) -> None:
        import xllamacpp

        self._library = xllamacpp
        self._server: Any = None
        self._path = ""
        self._threads = 1
        self._sequences = 1
        self._context = 0

    def ready(self) -> bool:
        return True

    def load(self, path: str, context: int, threads: int) -> dict[str, Any]:
        started = time.perf_counter()
        self._path, self._threads, self._context = path, threads, context
        self._server = self._start(context)
        return {"seconds": time.perf_counter() - started, "version": importlib.metadata.version("xllamacpp")}

    def generate(self, prompt: list[int], new_tokens: int) -> str:
        """Continue the prompt greedily."""
        return str(self._complete(prompt, new_tokens)["choices"][0]["text"])

    def time(self, prompt: list[int], new_tokens: int) -> dict[str, float]:
        """Seconds to read the prompt at once, and to write `new_tokens` one by one after it, by llama.cpp's clock."""
        timings = self._complete(prompt, new_tokens)["timings"]
        return {
            "prefill_seconds": timings["prompt_ms"] / 1000,
            "decode_seconds": _decode_seconds(timings, new_tokens),
        }

    def time_batch(self, prompts: list[list[int]], new_tokens: int) -> float:
        """Seconds to write `new_tokens` after each of the prompts, all at once, by llama.cpp's clock."""
        if self._sequences != len(prompts):
            self._server = None
            self._sequences = len(prompts)
            self._server = self._start(self._context)
        # The library's own call melts the answers into one, with the time of only one of them.
        answers = _ask("/completion", _asked(prompts, new_tokens))
        return max(_decode_seconds(answer["timings"], new_tokens) for answer in answers)

    def tokenize(self, text: str, special: bool) -> list[int]:
        asked = {"content": text, "add_special": special, "parse_special": False}
        tokens: list[int] = _ask("/tokenize", asked)["tokens"]
        return tokens

    def perplexity(self, tokens: str) -> float:
        """exp of the mean negative log-likelihood of every predicted token of the sequences in a .npy file."""
        import numpy
        from gguf import GGUFReader, dequantize

        tokens_NT = numpy.load(tokens, allow_pickle=False)
        self._server = None
        self._sequences = 1
        self._server = self._start(tokens_NT.shape[1], states=True)
        stored = {tensor.name: tensor for tensor in GGUFReader(self._path).tensors}
        head = stored.get("output.weight") or stored["token_embd.weight"]
        head_VH = dequantize(head.data, head.tensor_type).astype(numpy.float32)
        total = 0.0
        for tokens_T in tokens_NT:
            states_TH = numpy.array(self._states(tokens_T.tolist()), dtype=numpy.float32)
            for start in range(0, len(tokens_T) - 1, _HEAD_TOKENS):
                end = min(start + _HEAD_TOKENS, len(tokens_T) - 1)
                logits_TV = (states_TH[start:end] @ head_VH.T).astype(numpy.float64)
                logits_TV -= logits_TV.max(-1, keepdims=True)
                chosen_T = logits_TV[numpy.arange(end - start), tokens_T[start + 1 : end + 1]]
                total += float((numpy.log(numpy.exp(logits_TV).sum(-1)) - chosen_T).sum())
        return math.exp(total / (tokens_NT.shape[0] * (tokens_NT.shape[1] - 1)))

    def peak_memory_bytes(self) -> int:
        return peak_memory_bytes()

    def _start(self, context: int, *, states: bool = False) -> Any:
        Path(_SOCKET).unlink(missing_ok=True)
        library = self._library
        settings = library.CommonParams()
        settings.model.path = self._path
        settings.hostnames = [_SOCKET]
        # Each of the sequences has its share of the whole.
        settings.n_ctx = context * self._sequences
        settings.n_batch = settings.n_ubatch = min(settings.n_ctx, 2048)
        settings.n_parallel = self._sequences
        settings.n_gpu_layers = 0
        settings.cpuparams.n_threads = settings.cpuparams_batch.n_threads = self._threads
        settings.ui = False
        settings.verbosity = 1
        if states:
            settings.n_batch = settings.n_ubatch = context
            settings.embedding = True
            settings.pooling_type = library.llama_pooling_type.LLAMA_POOLING_TYPE_NONE
        return library.Server(settings)

    def _complete(self, prompt: list[int], new_tokens: int) -> dict[str, Any]:
        answer: dict[str, Any] = _answer(self._server.handle_completions(_asked(prompt, new_tokens)))
        return answer

    def _states(self, tokens: list[int]) -> list[list[float]]:
        # −1: as they are, not scaled to length 1.
        [answer] = _ask("/embedding", {"content": tokens, "embd_normalize": -1})
        states: list[list[float]] = answer["embedding"]
        return states


def _asked(prompt: list[int] | list[list[int]], new_tokens: int) -> dict[str, Any]:
    """A request to continue one prompt, or each of several, greedily."""
    return {
        "prompt": prompt,
        "n_predict": new_tokens,
        "temperature": 0,
        "cache_prompt": False,
        "ignore_eos": True,
    }


def _decode_seconds(timings: dict[str, Any], new_tokens: int) -> float:
    """Scaled to the tokens that were asked for, where the model ended earlier."""
    return float(timings["predicted_ms"] / 1000 * new_tokens / max(1, timings["predicted_n"]))


def _answer(answer: Any) -> Any:
    if isinstance(answer, dict) and "error" in answer:
        raise ValueError(answer["error"].get("message", answer["error"]))
    return answer


class _Connection(http.client.HTTPConnection):
    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.connect(_SOCKET)


def _ask(path: str, body: dict[str, Any]) -> Any:
    connection = _Connection("llama.cpp")
    try:
        connection.request("POST", path, json.dumps(body), {"Content-Type": "application/json"})
        return _answer(json.loads(connection.getresponse().read()))
    finally:
        connection.close()


if __name__ == "__main__":
    serve(LlamaCpp)
