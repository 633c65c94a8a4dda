"""Models on disk, read one tensor at a time: safetensors (one file or shards) and GGUF.

Nothing here keeps a file mapped longer than its tensor lives, so a process's memory does not grow with the model.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from pydantic import BaseModel, ValidationError
from safetensors import SafetensorError, safe_open
from torch import Tensor
from transformers import AutoConfig

from paredown.engine.architectures import Skeleton
from paredown.engine.errors import EngineError, NotAModel
from paredown.engine.gguf_reader import GgufWeights, quick_headers

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

    @property
    def source(self) -> "ModelFiles":
        """The model on disk that it is made of, which knows the format that it is on its way into."""

    def tensor(self, name: str) -> Tensor:
        """One parameter, dense, on the CPU, in transformers' orientation."""


def stored(model: ModelReader, name: str) -> Tensor:
    """One parameter outside the blocks as the artifact gives it back."""
    storage = model.source.storage
    if name in storage.coded and storage.code is not None:
        return storage.code(name, model.tensor(name))
    return model.tensor(name).to(model.storage_dtype)


class _Container(Protocol):
    def dtype(self, name: str) -> torch.dtype: ...
    def tensor(self, name: str) -> Tensor: ...


@dataclass(frozen=True)
class _Stored:
    """Where one tensor lies."""

    path: Path
    name: str
    shape: tuple[int, ...]
    kind: str


class SafetensorsFiles:
    """The tensors of a directory's safetensors files, as they are called there. Raises NotAModel."""

    def __init__(self, directory: Path) -> None:
        self.stored = {tensor.name: tensor for path in _weight_files(directory) for tensor in _headers(path)}

    def tensor(self, name: str) -> Tensor:
        stored = self.stored[name]
        with safe_open(stored.path, "pt") as file:
            tensor: Tensor = file.get_tensor(stored.name)
        return tensor


class _SafetensorsWeights:
    """The tensors of a safetensors checkpoint under transformers' names."""

    def __init__(self, directory: Path, skeleton: Skeleton) -> None:
        self._tensors: dict[str, _Stored] = {}
        self._files = SafetensorsFiles(directory)
        stored = self._files.stored
        prefix = f"{skeleton.architecture.base}."
        for name, shape in skeleton.parameter_shapes().items():
            # Checkpoints of the bare model, as GPT-2's and OPT's are, leave the base model's name out.
            full = (skeleton.stored_name(name), name)
            names = (*full, *(other.removeprefix(prefix) for other in full))
            tensor = next((stored[other] for other in names if other in stored), None)
            if tensor is None:
                raise NotAModel(f"The weight files have no tensor {name}, which config.json asks for.", field="model")
            if tensor.shape != tuple(shape):
                raise NotAModel(
                    f"{name} is {tensor.shape} in {tensor.path.name}, but config.json asks for {tuple(shape)}.",
                    field="model",
                )
            if tensor.kind not in _SAFETENSORS_DTYPES:
                raise NotAModel(
                    f"{name} is stored as {tensor.kind}; only float16, bfloat16, float32 and float64 are taken.",
                    field="model",
                )
            self._tensors[name] = tensor

    def dtype(self, name: str) -> torch.dtype:
        return _SAFETENSORS_DTYPES[self._tensors[name].kind]

    def tensor(self, name: str) -> Tensor:
        return self._files.tensor(self._tensors[name].name)


class _Index(BaseModel):
    """`model.safetensors.index.json`, as far as it is read."""

    weight_map: dict[str, str]


def _weight_files(directory: Path) -> list[Path]:
    """The shards that the index names, or the single file. Raises NotAModel."""
    index = directory / "model.safetensors.index.json"
    single = directory / "model.safetensors"
    if not index.is_file():
        files = [single] if single.is_file() else sorted(directory.glob("*.safetensors"))
        if not files:
            raise NotAModel("The model has no safetensors files.", field="model")
        return files
    try:
        shards = sorted(set(_Index.model_validate_json(index.read_bytes()).weight_map.values()))
    except ValidationError as error:
        raise NotAModel(f"{index.name} is not an index of weights.", field="model") from error
    for shard in shards:
        if Path(shard).name != shard:
            raise NotAModel(f"The index names the shard {shard!r}; a shard must be a plain file name.", field="model")
    return [directory / shard for shard in shards]


def _headers(path: Path) -> Iterator[_Stored]:
    try:
        with safe_open(path, "pt") as file:
            for name in file.keys():  # noqa: SIM118  # not a dict: it cannot be iterated
                part = file.get_slice(name)
                yield _Stored(path, name, tuple(part.get_shape()), part.get_dtype())
    except (SafetensorError, OSError) as error:
        raise NotAModel(f"{path.name} is not a safetensors file: {error}", field="model") from error


@dataclass(frozen=True)
class Storage:
    """How an artifact's format keeps numbers, as far as that decides what is measured.

    `scale_dtype` None is the model's 16-bit dtype; `wide` says that the format's readers multiply codes and scales in
    float32; `coded` names parameters outside the blocks that the format itself codes, and `code` gives such a tensor as
    it is read back.
    """

    scale_dtype: torch.dtype | None = None
    wide: bool = False
    coded: frozenset[str] = frozenset()
    code: Callable[[str, Tensor], Tensor] | None = None


class ModelFiles:
    """A model on disk. Made by `open_model`."""

    def __init__(
        self,
        directory: Path,
        gguf_file: str | None,
        config: Any,
        container: _Container,
        shapes: Mapping[str, Sequence[int]],
        storage: Storage | None = None,
    ):
        self.directory = directory
        self.gguf_file = gguf_file
        self.config = config
        self.names = tuple(shapes)
        self._shapes = shapes
        self._container = container
        # Most matrices decide: norms and biases in float32, however many, do not make a float16 model another one.
        matrices = [name for name, shape in shapes.items() if len(shape) > 1]
        [(usual, _)] = Counter(map(container.dtype, matrices)).most_common(1)
        self.storage_dtype = usual if usual in (torch.float16, torch.bfloat16) else torch.bfloat16
        self.storage = storage or Storage()

    def tensor(self, name: str) -> Tensor:
        return self._container.tensor(name)

    @property
    def source(self) -> "ModelFiles":
        return self

    def stored_by(self, storage: Storage) -> "ModelFiles":
        """The same model on its way into another format."""
        return ModelFiles(self.directory, self.gguf_file, self.config, self._container, self._shapes, storage)


def open_model(model_dir: Path, gguf_file: str | None = None) -> ModelFiles:
    """Read the headers of a model. Raises NotAModel, ArchitectureUnsupported."""
    skeleton = _skeleton(model_dir, gguf_file)
    shapes = skeleton.parameter_shapes()
    container: _Container
    if gguf_file is None:
        container = _SafetensorsWeights(model_dir, skeleton)
    else:
        container = GgufWeights(model_dir / gguf_file, skeleton.config, shapes)
    return ModelFiles(model_dir, gguf_file, skeleton.config, container, shapes)


def _skeleton(model_dir: Path, gguf_file: str | None) -> Skeleton:
    options = {} if gguf_file is None else {"gguf_file": gguf_file}
    try:
        with quick_headers():
            config = AutoConfig.from_pretrained(model_dir, local_files_only=True, trust_remote_code=False, **options)
        if gguf_file is not None and config.model_type == "gpt2":
            _name_sizes_of_gpt2(config)
        return Skeleton(config, torch.float32)
    except (EngineError, MemoryError):
        raise
    # transformers has no error class of its own for this: a garbled file raises whatever it trips over.
    except Exception as error:
        raise NotAModel(f"The model's configuration cannot be read: {error}", field="model") from error


def _name_sizes_of_gpt2(config: Any) -> None:
    """transformers 5.23 reads two sizes of a GGUF file under names that its GPT-2 does not know."""
    for unknown, known in (("n_ctx", "n_positions"), ("feed_forward_length", "n_inner")):
        if hasattr(config, unknown):
            setattr(config, known, getattr(config, unknown))
            delattr(config, unknown)
