"""The native format: safetensors with linears as factors, codes or mixed columns, which no stock runtime reads.

`load` gives a transformers model back, also of the layouts in checkpoints.py. Factors stay two thin products there,
which is what makes the model faster; all other forms become dense weights while they are read, one tensor at a time.
Shapes: O out_features, I in_features, R rank.
"""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch
from pydantic import TypeAdapter, ValidationError
from torch import Tensor, nn
from torch.nn import functional
from transformers import AutoConfig, GenerationConfig, PreTrainedModel

from paredown.engine.architectures import Skeleton
from paredown.engine.compact import FactoredLinear
from paredown.engine.errors import ArtifactDamaged, ArtifactNewer, EngineError
from paredown.engine.formats import checkpoints
from paredown.engine.formats.files import write_config, write_weights
from paredown.engine.formats.layout import FORMAT, LAYOUT, VERSION, Layout, LinearLayout, Part, layout_of
from paredown.engine.stored import StoredLinear
from paredown.engine.stream import CompressedModel
from paredown.engine.weights import SafetensorsFiles


def write(model: CompressedModel, directory: Path) -> int:
    """Weight files and config.json; returns the bytes of the weight files."""
    linears: dict[str, LinearLayout] = {}
    size_bytes = write_weights(_tensors(model, linears), directory)
    write_config(
        model.config,
        str(model.storage_dtype).removeprefix("torch."),
        directory,
        quantization_config=Layout(linears=linears).model_dump(mode="json"),
    )
    return size_bytes


def _tensors(model: CompressedModel, linears: dict[str, LinearLayout]) -> Iterator[tuple[str, Tensor]]:
    """Every tensor under its name in the files; `linears` is filled on the way."""
    for name in model.names:
        linear = model.quantized(name.removesuffix(".weight")) if name.endswith(".weight") else None
        stored_name = model.stored_name(name)
        if linear is None:
            yield stored_name, model.stored(name)
            continue
        prefix = stored_name.removesuffix(".weight")
        linears[prefix], parts = layout_of(linear)
        for leaf, tensor in parts.items():
            yield f"{prefix}.{leaf}", tensor


def load(
    directory: str | Path, *, dtype: torch.dtype | None = None, device: str | torch.device = "cpu"
) -> PreTrainedModel:
    """A transformers model that generates, as `from_pretrained` would give it; `dtype` None is config.json's.

    Raises ArtifactNewer, ArtifactDamaged, ArchitectureUnsupported.
    """
    directory = Path(directory)
    block = _read_block(directory)
    skeleton = _skeleton(directory, dtype)
    reader = _Reader(skeleton, *_layouts(directory, block))
    device = torch.device(device)
    skeleton.load_outer(reader.tensor, device)
    for index in range(skeleton.num_blocks):
        factored = [name for name in skeleton.linear_names(index) if reader.is_factored(name)]
        dense = [name for name in skeleton.block_names(index) if name.removesuffix(".weight") not in factored]
        skeleton.put_from(reader.tensor, dense, device)
        for name in factored:
            factors = reader.linear(name)
            assert isinstance(factors, FactoredLinear)
            product = LowRankLinear(factors, skeleton, name, device)
            skeleton.model.set_submodule(name, product)
    model = skeleton.model
    assert isinstance(model, PreTrainedModel)
    if (directory / "generation_config.json").is_file():
        try:
            model.generation_config = GenerationConfig.from_pretrained(directory, local_files_only=True)
        except (OSError, ValueError) as error:
            raise _damaged(f"its generation_config.json cannot be read: {error}") from error
    return model


class LowRankLinear(nn.Module):
    """A linear whose weight is a product of two factors that is never computed."""

    def __init__(self, factors: FactoredLinear, skeleton: Skeleton, name: str, device: torch.device) -> None:
        """In the place of the skeleton's linear of that name."""
        super().__init__()
        self.left_OR = nn.Parameter(factors.left_OR.to(device, skeleton.dtype), requires_grad=False)
        self.right_RI = nn.Parameter(factors.right_RI.to(device, skeleton.dtype), requires_grad=False)
        replaced: Any = skeleton.model.get_submodule(name)
        self.bias = replaced.bias
        self._architecture = skeleton.architecture

    @property
    def weight(self) -> Tensor:
        """weight_OI, for code that looks at a linear's weight."""
        return self.left_OR @ self.right_RI

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        """As the linear that it stands for: under names of its own, whoever loads what is saved would miss a weight."""
        destination[f"{prefix}weight"] = self._architecture.oriented(self.weight).contiguous()
        if self.bias is not None:
            destination[f"{prefix}bias"] = self.bias if keep_vars else self.bias.detach()

    def forward(self, inputs: Tensor) -> Tensor:
        return functional.linear(functional.linear(inputs, self.right_RI), self.left_OR, self.bias)


_Block = TypeVar("_Block")


class _Readable(Protocol):
    """Which tensors stand for a linear, and what they make of it."""

    @property
    def kind(self) -> str: ...

    def parts(self, rows: int, columns: int, /) -> dict[str, Part]: ...

    def decode(self, tensors: dict[str, Tensor], columns: int, /) -> StoredLinear: ...


def _layouts(
    directory: Path, block: Layout | checkpoints.GptqBlock | checkpoints.AwqBlock
) -> tuple[SafetensorsFiles, Mapping[str, _Readable]]:
    """The files, and how each linear that is not dense lies in them, under its name there. Raises ArtifactDamaged."""
    try:
        files = SafetensorsFiles(directory)
    except EngineError as error:
        raise ArtifactDamaged(f"{error.detail} Download the artifact again.") from error
    return files, block.linears if isinstance(block, Layout) else checkpoints.linears(block, files.stored)


class _Reader:
    """The tensors of an artifact under transformers' names. Raises ArtifactDamaged where they are not what is said."""

    def __init__(self, skeleton: Skeleton, files: SafetensorsFiles, layouts: Mapping[str, _Readable]) -> None:
        self._files = files
        self._skeleton = skeleton
        self._shapes = skeleton.parameter_shapes()
        names = {
            skeleton.stored_name(f"{name}.weight").removesuffix(".weight"): name for name in skeleton.all_linear_names()
        }
        if unknown := sorted(layouts.keys() - names):
            raise _damaged(f"config.json describes {unknown[0]}, which is no linear layer of this model")
        self._layouts = {names[name]: linear for name, linear in layouts.items()}

    def is_factored(self, linear: str) -> bool:
        layout = self._layouts.get(linear)
        return layout is not None and layout.kind == "factors"

    def tensor(self, name: str) -> Tensor:
        """One parameter, dense, in transformers' orientation."""
        linear = name.removesuffix(".weight")
        if linear != name and linear in self._layouts:
            return self._skeleton.architecture.oriented(self.linear(linear).dequantized()).contiguous()
        # Embeddings may be stored in eight bits.
        return self._read(
            self._skeleton.stored_name(name), ("BF16", "F16", "F8_E4M3", "F8_E5M2"), tuple(self._shapes[name])
        )

    def linear(self, name: str) -> StoredLinear:
        """A linear in the form that it is stored in."""
        layout = self._layouts[name]
        rows, columns = self._skeleton.shape_OI(name)
        prefix = self._skeleton.stored_name(f"{name}.weight").removesuffix(".weight")
        try:
            parts = {
                leaf: self._read(f"{prefix}.{leaf}", part.kinds, part.shape)
                for leaf, part in layout.parts(rows, columns).items()
            }
            return layout.decode(parts, columns)
        except ValueError as error:
            raise _damaged(f"of {prefix}, {error}") from error

    def _read(self, name: str, kinds: tuple[str, ...], shape: tuple[int, ...]) -> Tensor:
        found = self._files.stored.get(name)
        if found is None:
            raise _damaged(f"the weight files have no tensor {name}, which config.json asks for")
        if found.shape != shape or found.kind not in kinds:
            raise _damaged(
                f"{name} is {found.kind} {found.shape} in {found.path.name}, but config.json asks for "
                f"{' or '.join(kinds)} {shape}"
            )
        return self._files.tensor(name)


def _damaged(what: str) -> ArtifactDamaged:
    return ArtifactDamaged(f"The artifact is damaged: {what}. Download it again.")


def _read_block(directory: Path) -> Layout | checkpoints.GptqBlock | checkpoints.AwqBlock:
    try:
        config = json.loads((directory / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise _damaged("it has no config.json that can be read") from error
    block = config.get("quantization_config") if isinstance(config, dict) else None
    method = block.get("quant_method") if isinstance(block, dict) else None
    if isinstance(method, str) and method in checkpoints.BLOCKS:
        return _validated(TypeAdapter(checkpoints.BLOCKS[method]), block)
    if not isinstance(block, dict) or block.get("format") != FORMAT:
        raise ArtifactDamaged(
            "config.json describes no artifact of the native format; load it with "
            "transformers.AutoModelForCausalLM.from_pretrained."
        )
    version = block.get("version")
    if isinstance(version, int) and version > VERSION:
        raise ArtifactNewer(
            f"The artifact has version {version} of the native layout, and this release of paredown reads up to "
            f"{VERSION}; upgrade paredown."
        )
    return _validated(LAYOUT, block)


def _validated(known: TypeAdapter[_Block], block: Any) -> _Block:
    try:
        return known.validate_python(block)
    except ValidationError as error:
        [first, *_] = error.errors()
        where = ".".join(map(str, first["loc"]))
        raise _damaged(f"config.json is not valid at quantization_config.{where}: {first['msg']}") from error


def _skeleton(directory: Path, dtype: torch.dtype | None) -> Skeleton:
    try:
        config = AutoConfig.from_pretrained(directory, local_files_only=True, trust_remote_code=False)
        del config.quantization_config
        return Skeleton(config, dtype or config.dtype)
    except (EngineError, MemoryError):
        raise
    # transformers has no error class of its own for this: a garbled file raises whatever it trips over.
    except Exception as error:
        raise _damaged(f"its configuration cannot be read: {error}") from error
