"""Files of an artifact, each written under a temporary name, synchronized and renamed: none is ever half there."""

import json
import os
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor
from transformers import GenerationConfig, PreTrainedConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

from paredown.contracts.pieces import SHARD_BYTES

# What a tokenizer of the supported families may consist of. Code that lies beside it is left behind.
TOKENIZER_FILES = (
    "added_tokens.json",
    "chat_template.jinja",
    "merges.txt",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "vocab.json",
)

# What a model computes hangs on these, although they look like notes of transformers' own.
_SWITCHES = ("_remove_final_layer_norm",)


def write_weights(tensors: Iterable[tuple[str, Tensor]], directory: Path, max_shard_bytes: int = SHARD_BYTES) -> int:
    """Write (name, tensor) pairs as safetensors, in shards with an index where one file is not enough.

    Only one shard's tensors are held at a time. Returns the bytes of the weight files.
    """
    shards: list[list[str]] = []
    pending: dict[str, Tensor] = {}
    pending_bytes = total_bytes = 0
    for name, tensor in tensors:
        if pending and pending_bytes + tensor.nbytes > max_shard_bytes:
            shards.append(_write_shard(pending, directory / _partial(len(shards))))
            pending, pending_bytes = {}, 0
        pending[name] = tensor.contiguous()
        pending_bytes += tensor.nbytes
        total_bytes += tensor.nbytes
    shards.append(_write_shard(pending, directory / _partial(len(shards))))
    names = (
        ["model.safetensors"]
        if len(shards) == 1
        else [f"model-{index + 1:05d}-of-{len(shards):05d}.safetensors" for index in range(len(shards))]
    )
    for index, name in enumerate(names):
        (directory / _partial(index)).rename(directory / name)
    if len(shards) > 1:
        weight_map = {tensor: file for file, held in zip(names, shards, strict=True) for tensor in held}
        index_json = {"metadata": {"total_size": total_bytes}, "weight_map": dict(sorted(weight_map.items()))}
        write_json(directory / "model.safetensors.index.json", index_json)
    synchronize(directory)
    return sum((directory / name).stat().st_size for name in names)


def write_json(path: Path, value: Any) -> None:
    partial = path.with_name(f"{path.name}.partial")
    partial.write_text(json.dumps(value, indent=2, sort_keys=True) + "\n")
    synchronize(partial)
    partial.rename(path)


def write_config(config: PreTrainedConfig, storage_dtype: str, directory: Path, **more: Any) -> None:
    """`config.json`, and `generation_config.json` where the model brought none."""
    values = json.loads(config.to_json_string(use_diff=True))
    values = {name: value for name, value in values.items() if not name.startswith("_") or name in _SWITCHES}
    values["architectures"] = [MODEL_FOR_CAUSAL_LM_MAPPING[type(config)].__name__]
    values["dtype"] = storage_dtype
    write_json(directory / "config.json", {**_for_earlier_readers(values), **values, **more})


def _for_earlier_readers(values: dict[str, Any]) -> dict[str, Any]:
    """What transformers before 5 calls the settings of rotary positions and the number type, as do many readers still:
    they would take defaults in their place, and compute something else."""
    found: dict[str, Any] = {"torch_dtype": values["dtype"]}
    rope = values.get("rope_parameters") or {}
    if "sliding_attention" in rope:
        found["rope_local_base_freq"] = rope["sliding_attention"]["rope_theta"]
    rope = rope.get("full_attention", rope)
    share = rope.get("partial_rotary_factor")
    if "rope_theta" in rope and values["model_type"] == "gpt_neox":
        found |= {"rotary_emb_base": rope["rope_theta"], "rotary_pct": share}
    elif "rope_theta" in rope:
        found |= {"rope_theta": rope["rope_theta"]} | ({} if share is None else {"partial_rotary_factor": share})
    match rope.get("rope_type", "default"):
        case "default":
            pass
        case "longrope":
            # Phi 3 allows these three alone.
            found["rope_scaling"] = {name: rope[name] for name in ("short_factor", "long_factor")} | {
                "type": "longrope"
            }
        case _:
            others = ("rope_theta", "partial_rotary_factor")
            found["rope_scaling"] = {name: value for name, value in rope.items() if name not in others}
    return found


def write_companions(
    model_dir: Path, gguf_file: str | None, config: PreTrainedConfig, tokenizer: Any, directory: Path
) -> None:
    """Tokenizer and generation settings: the model's own files where it has any, else as transformers reads them.

    `tokenizer` is None where the model has none that can be loaded; the artifact has none then.
    """
    if gguf_file is None:
        for name in (*(TOKENIZER_FILES if tokenizer is not None else ()), "generation_config.json"):
            if (model_dir / name).is_file():
                shutil.copyfile(model_dir / name, directory / name)
    elif tokenizer is not None:
        tokenizer.save_pretrained(directory)
    if not (directory / "generation_config.json").exists():
        GenerationConfig.from_model_config(config).save_pretrained(directory)
    for path in directory.iterdir():
        # safetensors makes its files readable by their owner alone; the engine's user need not be who comes for them.
        path.chmod(0o644)
        synchronize(path)
    synchronize(directory)


def synchronize(path: Path) -> None:
    """Let no power cut take back what was written."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _partial(index: int) -> str:
    return f"shard-{index:05d}.partial"


def _write_shard(tensors: dict[str, Tensor], path: Path) -> list[str]:
    save_file(tensors, path, {"format": "pt"})
    synchronize(path)
    return list(tensors)
