"""Tiny random models of every family, and short ways to run the engine over them."""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import pytest
import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from paredown.contracts.recipes import Stage
from paredown.engine import forward
from paredown.engine.stream import CompressedModel, compress_model
from paredown.engine.weights import ModelFiles, open_model

CPU = torch.device("cpu")
VOCABULARY = 96
LLAMA = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}
OPT = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "ffn_dim": 128,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "word_embed_proj_dim": 64,
}
GEMMA = LLAMA | {"head_dim": 16, "sliding_window": 8}
GEMMA_LAYERS = ["sliding_attention", "full_attention", "sliding_attention"]
PHI3 = LLAMA | {"pad_token_id": 0, "eos_token_id": 1}
NEOX = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
}
BLOOM = {"vocab_size": VOCABULARY, "hidden_size": 64, "n_layer": 3, "n_head": 4, "seq_length": 64}
FALCON = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "ffn_hidden_size": 128,
}
MIXTURE = LLAMA | {
    "intermediate_size": 32,
    "moe_intermediate_size": 32,
    "num_experts": 4,
    "num_experts_per_tok": 2,
}
GPT2 = {"vocab_size": VOCABULARY, "n_embd": 64, "n_layer": 3, "n_head": 4, "n_positions": 64}

# family → (model_type, configuration, dtype of the checkpoint)
FAMILIES: dict[str, tuple[str, dict[str, Any], torch.dtype]] = {
    "llama": ("llama", LLAMA | {"tie_word_embeddings": False}, torch.bfloat16),
    "llama-tied": ("llama", LLAMA | {"tie_word_embeddings": True, "attention_bias": True}, torch.float32),
    "mistral": ("mistral", LLAMA | {"sliding_window": 8, "head_dim": 32}, torch.bfloat16),
    "qwen2": ("qwen2", LLAMA, torch.bfloat16),
    "qwen3": ("qwen3", LLAMA | {"head_dim": 32}, torch.bfloat16),
    "opt": ("opt", OPT, torch.float16),
    "opt-projected": ("opt", OPT | {"word_embed_proj_dim": 32, "do_layer_norm_before": False}, torch.float32),
    "gpt2": ("gpt2", GPT2, torch.float32),
    # Caps small enough to bend scores and logits.
    "gemma2": ("gemma2", GEMMA | {"attn_logit_softcapping": 2.0, "final_logit_softcapping": 3.0}, torch.bfloat16),
    # Every second block looks eight tokens back, the others at all of them, each with rotary tables of its own.
    "gemma3": ("gemma3_text", GEMMA | {"layer_types": GEMMA_LAYERS}, torch.bfloat16),
    "phi3": ("phi3", PHI3 | {"sliding_window": 8}, torch.bfloat16),
    "gpt_neox": ("gpt_neox", NEOX, torch.bfloat16),
    "bloom": ("bloom", BLOOM, torch.bfloat16),
    "falcon": ("falcon", FALCON, torch.bfloat16),
    "falcon-new": ("falcon", FALCON | {"new_decoder_architecture": True, "num_kv_heads": 2}, torch.bfloat16),
    "falcon-alibi": (
        "falcon",
        FALCON | {"alibi": True, "multi_query": False, "parallel_attn": False, "bias": True},
        torch.float32,
    ),
    "mixtral": ("mixtral", MIXTURE, torch.bfloat16),
    "qwen2_moe": ("qwen2_moe", MIXTURE | {"shared_expert_intermediate_size": 64}, torch.bfloat16),
    # So many experts that a small micro-batch skips some.
    "qwen3_moe": ("qwen3_moe", MIXTURE | {"head_dim": 32, "num_experts": 6, "num_experts_per_tok": 1}, torch.bfloat16),
    "olmoe": ("olmoe", MIXTURE | {"norm_topk_prob": True, "pad_token_id": 0}, torch.float32),
}
MIXTURES = ("mixtral", "qwen2_moe", "qwen3_moe", "olmoe")


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> Iterator[None]:
    """Matrices this small gain nothing from threads, which only wait for each other where tests share a machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def random_model(family: str) -> PreTrainedModel:
    """Every parameter random, biases and norms too, so that a wrong one shows."""
    model_type, fields, dtype = FAMILIES[family]
    torch.manual_seed(len(family))
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(model_type, **fields))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            is_norm = parameter.ndim == 1 and not name.endswith("bias")
            parameter.normal_(1.0 if is_norm else 0.0, 0.1)
    return model.to(dtype).eval()


_EXPERT = re.compile(r"(.*\.experts)\.(\d+)\.(gate_proj|up_proj|down_proj|w1|w3|w2)\.weight")
_FUSED = {"gate_proj": "gate_up_proj", "up_proj": "gate_up_proj", "w1": "gate_up_proj", "w3": "gate_up_proj"}


def folded(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Parameters as transformers' modules keep them: all experts of a block in two 3-D tensors."""
    result: dict[str, Tensor] = {}
    rows: dict[str, dict[int, list[Tensor]]] = {}
    for name, tensor in tensors.items():
        if match := _EXPERT.fullmatch(name):
            fused = f"{match[1]}.{_FUSED.get(match[3], 'down_proj')}"
            rows.setdefault(fused, {}).setdefault(int(match[2]), []).append(tensor)
        else:
            result[name] = tensor
    fused_tensors = {
        name: torch.stack([torch.cat(experts[index]) for index in sorted(experts)]) for name, experts in rows.items()
    }
    return result | fused_tensors


def unfolded(model: PreTrainedModel) -> dict[str, Tensor]:
    """A model's parameters under the engine's names, which give each expert's projections their own."""
    result: dict[str, Tensor] = {}
    gate, up, down = (
        ("w1", "w3", "w2") if model.config.model_type == "mixtral" else ("gate_proj", "up_proj", "down_proj")
    )
    for name, parameter in model.named_parameters():
        experts, _, leaf = name.rpartition(".")
        if not experts.endswith(".experts"):
            result[name] = parameter
            continue
        for index, weight in enumerate(parameter):
            if leaf == "down_proj":
                result[f"{experts}.{index}.{down}.weight"] = weight
            else:
                first, second = weight.chunk(2)
                result |= {f"{experts}.{index}.{gate}.weight": first, f"{experts}.{index}.{up}.weight": second}
    return result


@pytest.fixture(scope="session")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Saves the tiny model of a family once for the session."""
    made: dict[str, Path] = {}

    def directory(family: str) -> Path:
        if family not in made:
            made[family] = tmp_path_factory.mktemp(family)
            random_model(family).save_pretrained(made[family])
        return made[family]

    return directory


@pytest.fixture
def tiny(model_dir: Callable[[str], Path]) -> Callable[[str], ModelFiles]:
    return lambda family: open_model(model_dir(family))


@pytest.fixture
def tokens_NT() -> Tensor:
    """Seven sequences; with `small_batches` the last micro-batch is a shorter one."""
    return torch.randint(VOCABULARY, (7, 32), generator=torch.Generator().manual_seed(1))


@pytest.fixture
def small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    """Four micro-batches of two, two, two and one sequence."""
    monkeypatch.setattr(forward, "MICRO_BATCH_TOKENS", 64)


class Compressor(Protocol):
    def __call__(
        self, files: ModelFiles, recipe: Sequence[Stage], tokens_NT: Tensor | None, **options: Any
    ) -> CompressedModel: ...


@pytest.fixture
def compress(tmp_path: Path) -> Compressor:
    """compress_model with defaults; `name` is the work directory."""

    def run(
        files: ModelFiles, recipe: Sequence[Stage], tokens_NT: Tensor | None, name: str = "work", **options: Any
    ) -> CompressedModel:
        defaults: dict[str, Any] = {
            "device": CPU,
            "dtype": torch.float32,
            "work_dir": tmp_path / name,
            "identity": "test",
            "on_progress": lambda _done, _all: None,
            "should_drain": lambda: False,
        }
        return compress_model(files, recipe, tokens_NT, **(defaults | options))

    return run


def shard_bytes(work_dir: Path) -> dict[str, bytes]:
    """The finished blocks' files."""
    return {path.name: path.read_bytes() for path in sorted(work_dir.glob("block-*"))}
