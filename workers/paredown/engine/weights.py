"""Models on disk, read one tensor at a time: safetensors (one file or shards) and GGUF.

Nothing here keeps a file mapped longer than its tensor lives, so a process's memory does not grow with the model.
"""

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from transformers import AutoConfig

from paredown.engine.architectures import Skeleton
from paredown.engine.errors import NotAModel
from paredown.engine.gguf_reader import GgufWeights

_SAFETENSORS_DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "F64": torch.float64}


class ModelReader(Protocol):
    """What a model on disk and a compressed model have in common."""

    @property
    def config(self) -> Any:
        """transformers' configuration."""

    @property
    def names(self) -> tuple[str, ...]:
        """Every parameter under transformers' name; tied ones once."""

    @property
    def storage_dtype(self) -> torch.dtype:
        """The 16-bit dtype of an artifact's unquantized tensors and scales."""

    def tensor(self, name: str) -> Tensor:
        """One parameter, dense, on the CPU, in transformers' orientation."""


class _Container(Protocol):
    def dtype(self, name: str) -> torch.dtype: ...
    def tensor(self, name: str) -> Tensor: ...


class _SafetensorsWeights:
    """The tensors of a safetensors checkpoint under transformers' names."""

    def __init__(self, directory: Path, skeleton: Skeleton) -> None:
        self._places: dict[str, tuple[Path, str, torch.dtype]] = {}
        stored = dict(_stored_tensors(directory))
        prefix = f"{skeleton.architecture.base}."
        for name, shape in skeleton.parameter_shapes().items():
            # Checkpoints of the bare model, as GPT-2's and OPT's are, leave the base model's name out.
            stored_name = name if name in stored else name.removeprefix(prefix)
            if stored_name not in stored:
                raise NotAModel(f"The weight files have no tensor {name}, which config.json asks for.", field="model")
            path = stored[stored_name]
            with safe_open(path, "pt") as file:
                part = file.get_slice(stored_name)
                found, kind = tuple(part.get_shape()), part.get_dtype()
            if found != tuple(shape):
                raise NotAModel(f"{name} is {found} in {path.name}, but config.json asks for {tuple(shape)}.")
            if kind not in _SAFETENSORS_DTYPES:
                raise NotAModel(f"{name} is stored as {kind}; only float16, bfloat16 and float32 weights are taken.")
            self._places[name] = (path, stored_name, _SAFETENSORS_DTYPES[kind])

    def dtype(self, name: str) -> torch.dtype:
        return self._places[name][2]

    def tensor(self, name: str) -> Tensor:
        path, stored_name, _ = self._places[name]
        with safe_open(path, "pt") as file:
            tensor: Tensor = file.get_tensor(stored_name)
        return tensor


def _stored_tensors(directory: Path) -> Sequence[tuple[str, Path]]:
    """(name in the file, file) of every tensor. Raises NotAModel."""
    index = directory / "model.safetensors.index.json"
    if index.is_file():
        weight_map: dict[str, str] = json.loads(index.read_text())["weight_map"]
        unsafe = sorted({name for name in weight_map.values() if Path(name).name != name})
        if unsafe:
            raise NotAModel(f"The index names the shard {unsafe[0]!r}; a shard must be a plain file name.")
        return [(name, directory / shard) for name, shard in weight_map.items()]
    files = sorted(directory.glob("*.safetensors"))
    if not files:
        raise NotAModel("The model has no safetensors files.", field="model")
    pairs: list[tuple[str, Path]] = []
    for path in files:
        try:
            with safe_open(path, "pt") as file:
                pairs += [(name, path) for name in file.keys()]  # noqa: SIM118  # not a dict: iterating it is an error
        except SafetensorError as error:
            raise NotAModel(f"{path.name} is not a safetensors file: {error}", field="model") from error
    return pairs


class ModelFiles:
    """A model on disk. Made by `open_model`."""

    def __init__(
        self, directory: Path, gguf_file: str | None, config: Any, container: _Container, names: Sequence[str]
    ):
        self.directory = directory
        self.gguf_file = gguf_file
        self.config = config
        self.names = tuple(names)
        self._container = container
        # Most tensors decide: a few float32 norms do not make a float16 model another one.
        [(usual, _)] = Counter(container.dtype(name) for name in names).most_common(1)
        self.storage_dtype = usual if usual in (torch.float16, torch.bfloat16) else torch.bfloat16

    def tensor(self, name: str) -> Tensor:
        return self._container.tensor(name)


def open_model(model_dir: Path, gguf_file: str | None = None) -> ModelFiles:
    """Read the headers of a model. Raises NotAModel, ArchitectureUnsupported."""
    try:
        if gguf_file is None:
            config = AutoConfig.from_pretrained(model_dir, local_files_only=True, trust_remote_code=False)
        else:
            config = AutoConfig.from_pretrained(model_dir, gguf_file=gguf_file, local_files_only=True)
    except (OSError, ValueError, KeyError) as error:
        raise NotAModel(f"The model's configuration cannot be read: {error}", field="model") from error
    skeleton = Skeleton(config, torch.float32)
    names = list(skeleton.parameter_shapes())
    container: _Container
    if gguf_file is None:
        container = _SafetensorsWeights(model_dir, skeleton)
    else:
        container = GgufWeights(model_dir / gguf_file, config, names)
    return ModelFiles(model_dir, gguf_file, config, container, names)
