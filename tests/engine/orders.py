"""Small models of each family, texts, and work orders on them."""

import json
from pathlib import Path
from typing import Any

import torch
from tests.support.models import VOCABULARY, byte_tokenizer
from transformers import (
    BloomConfig,
    FalconConfig,
    Gemma2Config,
    Gemma3TextConfig,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    MistralConfig,
    MixtralConfig,
    OlmoeConfig,
    OPTConfig,
    Phi3Config,
    PreTrainedConfig,
    Qwen2Config,
    Qwen2MoeConfig,
    Qwen3Config,
    Qwen3MoeConfig,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

from paredown.contracts.job import Calibration, EvaluationSettings, Format
from paredown.contracts.work import WorkOrder

CONTEXT = 256
GEMMA_LAYERS = ["sliding_attention", "full_attention", "sliding_attention"]


def config_of(model_type: str, *, hidden: int = 64, blocks: int = 2, tied: bool = True) -> PreTrainedConfig:
    """A small configuration of each supported type; groups of 64 divide every layer."""
    common = {"vocab_size": VOCABULARY, "tie_word_embeddings": tied, "bos_token_id": 0, "eos_token_id": 1}
    llama = {
        **common,
        "hidden_size": hidden,
        "intermediate_size": 2 * hidden,
        "num_hidden_layers": blocks,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": CONTEXT,
    }
    match model_type:
        case "llama":
            return LlamaConfig(**llama)
        case "mistral":
            return MistralConfig(**llama, sliding_window=None)
        case "qwen2":
            return Qwen2Config(**llama)
        case "qwen3":
            return Qwen3Config(**llama, head_dim=hidden // 4)
        case "opt" | "opt-projected":
            # Embeddings narrower than the model come with two linears more, which no method touches.
            return OPTConfig(
                **common,
                hidden_size=hidden,
                word_embed_proj_dim=hidden if model_type == "opt" else hidden // 2,
                ffn_dim=2 * hidden,
                num_hidden_layers=blocks,
                num_attention_heads=4,
                max_position_embeddings=CONTEXT,
                pad_token_id=1,
            )
        case "gpt2":
            return GPT2Config(**common, n_embd=hidden, n_layer=blocks, n_head=4, n_positions=CONTEXT)
        case "gemma2" | "gemma3_text":
            sizes = {**llama, "head_dim": hidden // 4, "sliding_window": 16, "layer_types": GEMMA_LAYERS[:blocks]}
            return (Gemma2Config if model_type == "gemma2" else Gemma3TextConfig)(**sizes)
        case "phi3":
            return Phi3Config(**llama, pad_token_id=1)
        case "gpt_neox":
            return GPTNeoXConfig(**{name: value for name, value in llama.items() if name != "num_key_value_heads"})
        case "bloom":
            return BloomConfig(**common, hidden_size=hidden, n_layer=blocks, n_head=4, seq_length=CONTEXT)
        case "falcon" | "falcon-new":
            return FalconConfig(
                **common,
                hidden_size=hidden,
                ffn_hidden_size=2 * hidden,
                num_hidden_layers=blocks,
                num_attention_heads=4,
                num_kv_heads=2,
                new_decoder_architecture=model_type == "falcon-new",
                max_position_embeddings=CONTEXT,
            )
        case "mixtral" | "qwen2_moe" | "qwen3_moe" | "olmoe":
            classes = {
                "mixtral": MixtralConfig,
                "qwen2_moe": Qwen2MoeConfig,
                "qwen3_moe": Qwen3MoeConfig,
                "olmoe": OlmoeConfig,
            }
            mixture = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": hidden}
            shared = {"shared_expert_intermediate_size": hidden, "pad_token_id": 0}
            return classes[model_type](**llama, **mixture, **shared)
    raise AssertionError(model_type)


def save_model(
    directory: Path, config: PreTrainedConfig, *, seed: int = 0, dtype: torch.dtype = torch.bfloat16
) -> Path:
    """Random weights, large enough for logits to differ, with a tokenizer of single bytes."""
    torch.manual_seed(seed)
    model = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)](config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 1:
                # Biases and norms that do nothing would hide a mistake in where they go.
                parameter.add_(0.1 * torch.randn_like(parameter))
            elif "embed" not in name and "wte" not in name:
                parameter.mul_(3)
    model.to(dtype).save_pretrained(directory)
    byte_tokenizer(directory)
    return directory


def save_text(path: Path, characters: int = 20_000) -> Path:
    """Text that repeats itself nowhere."""
    words = (f"{number * 7919 % 10007} is followed by {number}" for number in range(characters // 12))
    path.write_text("\n".join(words)[:characters], encoding="utf-8")
    return path


def order(root: Path, recipe: list[dict[str, Any]], **changes: Any) -> WorkOrder:
    """An order on the model in `root/model` and the text in `root/text.txt`, both made where they are missing."""
    model_dir = root / "model"
    if not model_dir.exists():
        save_model(model_dir, config_of("llama"))
    text = root / "text.txt"
    if not text.exists():
        save_text(text)
    values: dict[str, Any] = {
        "model_dir": model_dir,
        "recipe": recipe,
        "calibration": Calibration(samples=4, sequence_length=64),
        "calibration_text": text,
        "evaluation": EvaluationSettings(samples=3, sequence_length=64, speed=False),
        "evaluation_text": text,
        "format": Format.AUTO,
        "work_dir": root / "work",
        "output_dir": root / "out",
        "runtimes": (),
        "threads": 1,
    }
    return WorkOrder.model_validate({**values, **changes})


def file_hashes(directory: Path) -> dict[str, str]:
    """Name → SHA-256 of every file of a directory."""
    from paredown.contracts.artifact import sha256_file

    return {path.name: sha256_file(path) for path in sorted(directory.iterdir()) if path.is_file()}


def write_order(order: WorkOrder, path: Path) -> Path:
    path.write_text(json.dumps(order.model_dump(mode="json")), encoding="utf-8")
    return path
