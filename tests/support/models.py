"""Small random models that are real in every other way: config, safetensors, tokenizer, all in the usual files."""

import json
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM

VOCABULARY = 272


def random_llama(
    directory: Path,
    *,
    blocks: int = 2,
    hidden: int = 64,
    context: int = 256,
    seed: int = 0,
    vocabulary: int = VOCABULARY,
) -> Path:
    """A Llama with random weights and a tokenizer of single bytes. Groups of 64 divide every layer."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        hidden_size=hidden,
        intermediate_size=2 * hidden,
        num_hidden_layers=blocks,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=vocabulary,
        max_position_embeddings=context,
        tie_word_embeddings=False,
    )
    directory.mkdir(parents=True, exist_ok=True)
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(directory)
    byte_tokenizer(directory)
    return directory


def byte_tokenizer(directory: Path) -> None:
    """One token for each byte: any text has as many tokens as bytes."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {"<s>": 0, "</s>": 1, **{letter: index + 2 for index, letter in enumerate(alphabet)}}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.save(str(directory / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "</s>"}
    (directory / "tokenizer_config.json").write_text(json.dumps(settings))
