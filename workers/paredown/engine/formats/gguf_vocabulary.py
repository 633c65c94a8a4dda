"""A Hugging Face tokenizer as llama.cpp reads it: tokens, their kinds, merges, and how text is cut before merging.

llama.cpp implements each way of cutting by hand and the file names it (`tokenizer.ggml.pre`). llama.cpp's converter
recognizes a tokenizer by a hash over the token numbers of one sentence, so it knows vocabularies; here the cutting rule
itself is compared, so a vocabulary of one's own passes too. A rule that is not in the table is refused.
"""

import json
import re
from pathlib import Path
from typing import Any

from gguf import GGUFWriter, SpecialVocab, TokenType

from paredown.engine.data import load_tokenizer
from paredown.engine.errors import FormatRefused, NotAModel

_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|{digits}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_NEMO_WORDS = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_BYTES = ("ByteLevel", True)
_ONLY_BYTES = ("ByteLevel", False)
# How a tokenizer normalizes and cuts text → llama.cpp's name for it.
_CUTTING: dict[tuple[str | None, tuple[Any, ...]], str] = {
    (None, (_BYTES,)): "gpt-2",
    (None, (("Digits", True), _BYTES)): "smollm",
    (None, (("Split", _WORDS.format(digits=r"\p{N}{1,3}")), _ONLY_BYTES)): "llama-bpe",
    (None, (("Split", _NEMO_WORDS), _ONLY_BYTES)): "tekken",
    ("NFC", (("Split", _WORDS.format(digits=r"\p{N}")), _ONLY_BYTES)): "qwen2",
}
_NEVER_MERGED = -1e6
KNOWN = tuple(sorted(_CUTTING.values()))


def described_tokenizer(tokenizer: Any) -> dict[str, Any]:
    """Its tokenizer.json, as transformers uses it. Raises FormatRefused where llama.cpp has none that does the same."""
    if getattr(tokenizer, "backend_tokenizer", None) is None:
        raise _unknown()
    # For some model types transformers puts a cutting rule of its own in the place of the file's.
    described: dict[str, Any] = json.loads(tokenizer.backend_tokenizer.to_str())
    model = described["model"]
    if model["type"] != "BPE" or not model["merges"]:
        raise FormatRefused(
            f"llama.cpp needs a tokenizer with merges, and this model's ({model['type']}) has none; choose another "
            "format.",
            field="format",
        )
    if model["byte_fallback"]:
        _begins_with_space(described)
    else:
        _cutting(described)
    return described


def write_vocabulary(writer: GGUFWriter, model_dir: Path, vocab_size: int) -> None:
    """`tokenizer.*` of a model directory; a model without a tokenizer gets none. Raises FormatRefused."""
    try:
        tokenizer = load_tokenizer(model_dir, None)
    except NotAModel:
        # The run has warned of it; llama.cpp then takes and gives token numbers only.
        writer.add_tokenizer_model("none")
        return
    described = described_tokenizer(tokenizer)
    model = described["model"]
    tokens, kinds = _tokens(described, vocab_size)
    if model["byte_fallback"]:
        writer.add_tokenizer_model("llama")
        writer.add_tokenizer_pre("default")
        writer.add_add_space_prefix(_begins_with_space(described))
        writer.add_token_scores(_scores(tokens, model["merges"]))
    else:
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre(_cutting(described))
        writer.add_token_merges([" ".join(pair) for pair in model["merges"]])
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)
    special = SpecialVocab(model_dir, n_vocab=vocab_size)
    # Where a file is silent, llama.cpp goes by the rule's name: it begins every text of Llama 3's with a token.
    special.add_special_token |= _adds(tokenizer)
    special.add_to_gguf(writer, quiet=True)


def _adds(tokenizer: Any) -> dict[str, bool]:
    """Whether a text begins and ends with a token that stands for that."""
    plain, whole = (tokenizer("a", add_special_tokens=special)["input_ids"] for special in (False, True))
    return {"bos": whole[:1] != plain[:1], "eos": whole[-1:] != plain[-1:]}


def _cutting(described: dict[str, Any]) -> str:
    normalizer = (described["normalizer"] or {}).get("type")
    rule = described["pre_tokenizer"] or {}
    steps = tuple(_step(step) for step in rule.get("pretokenizers", [rule]))
    if (normalizer, steps) not in _CUTTING:
        raise _unknown()
    return _CUTTING[normalizer, steps]


def _begins_with_space(described: dict[str, Any]) -> bool:
    """Of a sentencepiece tokenizer, whose only rule is what becomes of spaces."""
    match described["normalizer"], described["pre_tokenizer"]:
        case None, {"type": "Metaspace", "replacement": "▁", "split": False, "prepend_scheme": scheme}:
            return bool(scheme != "never")
        case {"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "▁"}, {"type": "Replace"}]}, None:
            return True
    raise _unknown()


def _unknown() -> FormatRefused:
    return FormatRefused(
        "The model's tokenizer cuts text in a way that this release cannot name to llama.cpp; it knows sentencepiece's "
        f"and those called {', '.join(KNOWN)}. Choose another format.",
        field="format",
    )


def _scores(tokens: list[str], merges: list[list[str]]) -> list[float]:
    """llama.cpp merges the pair whose token scores highest, so a token scores by the place of its merge."""
    first: dict[str, float] = {}
    for place, pair in enumerate(merges):
        first.setdefault("".join(pair), -float(place))
    return [first.get(token, _NEVER_MERGED) for token in tokens]


def _step(step: dict[str, Any]) -> tuple[Any, ...]:
    """A step of cutting, by what decides its result."""
    match step:
        case {"type": "ByteLevel", "add_prefix_space": False, **more}:
            return ("ByteLevel", more.get("use_regex", True))
        case {"type": "Digits", "individual_digits": individual}:
            return ("Digits", individual)
        case {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}:
            return ("Split", pattern)
    return (step.get("type"), None)


def _tokens(described: dict[str, Any], vocab_size: int) -> tuple[list[str], list[int]]:
    """Every token of the embedding in order, and its kind; numbers that the tokenizer never gives are unused."""
    tokens = [f"[PAD{index}]" for index in range(vocab_size)]
    kinds = [int(TokenType.UNUSED)] * vocab_size
    for token, index in described["model"]["vocab"].items():
        if index < vocab_size:
            is_byte = described["model"]["byte_fallback"] and re.fullmatch("<0x[0-9A-F]{2}>", token)
            tokens[index], kinds[index] = token, int(TokenType.BYTE if is_byte else TokenType.NORMAL)
    for added in described.get("added_tokens", ()):
        if (index := added["id"]) < vocab_size:
            tokens[index] = added["content"]
            kinds[index] = int(TokenType.CONTROL if added["special"] else TokenType.USER_DEFINED)
            if added["content"] == described["model"]["unk_token"]:
                kinds[index] = int(TokenType.UNKNOWN)
    return tokens, kinds
