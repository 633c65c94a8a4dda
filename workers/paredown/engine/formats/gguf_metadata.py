"""What a GGUF file says of a model beside its tensors: sizes, rotary parameters, and the tokenizer.

Keys are those that llama.cpp's converter writes. The tokenizer of a GGUF source is copied as it lies there.
"""

import math
from pathlib import Path
from typing import Any

import torch
from gguf import GGUFType, GGUFValueType, GGUFWriter, RopeScalingType

from paredown.engine.formats.gguf_vocabulary import write_vocabulary
from paredown.engine.gguf_reader import HeaderReader
from paredown.engine.weights import ModelFiles

# Of a GGUF source: what says whose model it is.
_KEPT = ("general.name", "general.organization", "general.basename", "general.finetune", "general.license")


def write_metadata(writer: GGUFWriter, config: Any, source: ModelFiles, architecture: str) -> None:
    """All but the type of the tensors. Raises FormatRefused for a tokenizer that llama.cpp does not know."""
    writer.add_type(GGUFType.MODEL)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(context_length(config))
    writer.add_embedding_length(config.hidden_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_vocab_size(config.vocab_size)
    if architecture == "gpt2":
        writer.add_feed_forward_length(config.n_inner or 4 * config.hidden_size)
        writer.add_layer_norm_eps(config.layer_norm_epsilon)
    else:
        width = head_dim(config)
        writer.add_feed_forward_length(config.intermediate_size)
        writer.add_head_count_kv(config.num_key_value_heads)
        writer.add_layer_norm_rms_eps(config.rms_norm_eps)
        writer.add_key_length(width)
        writer.add_value_length(width)
        writer.add_rope_dimension_count(width)
        _write_rope(writer, config.rope_parameters)
    if source.gguf_file is not None:
        _copy(writer, source.directory / source.gguf_file)
    else:
        write_vocabulary(writer, source.directory, config.vocab_size)


def context_length(config: Any) -> int:
    """Tokens over which llama.cpp computes what transformers computes: it knows no sliding window here."""
    longest = int(config.max_position_embeddings)
    window = getattr(config, "sliding_window", None)
    return min(longest, int(window)) if window else longest


def head_dim(config: Any) -> int:
    """Width of one attention head."""
    return int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)


def _write_rope(writer: GGUFWriter, parameters: dict[str, Any]) -> None:
    writer.add_rope_freq_base(parameters["rope_theta"])
    kind = parameters.get("rope_type", "default")
    if kind == "linear":
        writer.add_rope_scaling_type(RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(parameters["factor"])
    elif kind == "yarn":
        writer.add_rope_scaling_type(RopeScalingType.YARN)
        writer.add_rope_scaling_factor(parameters["factor"])
        writer.add_rope_scaling_orig_ctx_len(parameters["original_max_position_embeddings"])


def rope_factors(config: Any) -> torch.Tensor | None:
    """By how much llama 3.1 and later slow each rotary frequency down; None where the model scales otherwise."""
    parameters = getattr(config, "rope_parameters", None) or {}
    if parameters.get("rope_type") != "llama3":
        return None
    dimension = head_dim(config)
    wavelengths = 2 * math.pi * parameters["rope_theta"] ** (torch.arange(0, dimension, 2).double() / dimension)
    original, factor = parameters["original_max_position_embeddings"], parameters["factor"]
    low, high = parameters["low_freq_factor"], parameters["high_freq_factor"]
    smooth = ((original / wavelengths - low) / (high - low)).clamp(0, 1)
    factors: torch.Tensor = 1 / ((1 - smooth) / factor + smooth)
    return factors.float()


def _copy(writer: GGUFWriter, path: Path) -> None:
    """The source's tokenizer, byte for byte, and whose model it is."""
    for key, field in HeaderReader(path).fields.items():
        if not (key.startswith("tokenizer.") or key in _KEPT):
            continue
        kind = field.types[0]
        if kind is GGUFValueType.ARRAY:
            kept = field.types[-1]
            parts = [field.parts[index] for index in field.data]
            values = [bytes(part) if kept is GGUFValueType.STRING else part.tolist()[0] for part in parts]
            writer.add_key_value(key, values, kind, kept)
        elif kind is GGUFValueType.STRING:
            writer.add_key_value(key, bytes(field.parts[-1]), kind)
        else:
            writer.add_key_value(key, field.contents(), kind)
