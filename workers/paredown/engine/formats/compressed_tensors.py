"""The compressed-tensors format: integer codes packed into int32 words (`pack-quantized`), or, where activations are
rounded too, eight bits each as they are (`int-quantized`, `float-quantized`).

The packing is the format's own library's. Codes are packed as the method left them, not quantized again from rounded
weights: at 8 bits, requantizing in bfloat16 would move codes.
Shapes: O out_features, I in_features, G groups along the input.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from compressed_tensors.compressors.pack_quantized import pack_to_int32
from compressed_tensors.config import CompressionFormat
from compressed_tensors.quantization import (
    QuantizationArgs,
    QuantizationConfig,
    QuantizationScheme,
    QuantizationStatus,
    QuantizationStrategy,
    QuantizationType,
)
from torch import Tensor, nn

from paredown.contracts.recipes import Mixed, Stage
from paredown.engine.architectures import Skeleton, architecture_of
from paredown.engine.errors import FormatRefused
from paredown.engine.formats.files import write_config, write_weights
from paredown.engine.quantized import QuantizedLinear
from paredown.engine.stream import CompressedModel

_FORMATS = {
    None: CompressionFormat.pack_quantized,
    "int": CompressionFormat.int_quantized,
    "float": CompressionFormat.float_quantized,
}


def check(config: Any, recipe: Sequence[Stage] = ()) -> None:
    """Raise FormatRefused, before any work, for what the format cannot hold."""
    if config.model_type == "gpt2":
        raise FormatRefused(
            "GPT-2 keeps its weights in Conv1D layers, which compressed-tensors does not know; use format safetensors.",
            field="format",
        )
    experts = architecture_of(config).experts is not None
    for stage in recipe:
        if isinstance(stage, Mixed) and (refusal := stage.packing_refusal(config.model_type, experts=experts)):
            field, reason = refusal
            raise FormatRefused(reason[0].upper() + reason[1:], field=field or "format")


def write(model: CompressedModel, directory: Path) -> int:
    """Weight files and config.json; returns the bytes of the weight files. Raises FormatRefused."""
    check(model.config)
    quantized = [name for name in model.linear_names if _grid(model, name) is not None]
    if not quantized:
        raise FormatRefused(
            "No linear layer was quantized, so compressed-tensors has nothing to hold; use format safetensors.",
            field="format",
        )
    _check_experts(model, frozenset(quantized))
    size_bytes = write_weights(_tensors(model, frozenset(quantized)), directory)
    write_config(
        model.config,
        str(model.storage_dtype).removeprefix("torch."),
        directory,
        quantization_config=_quantization_config(model, quantized),
    )
    return size_bytes


def _grid(model: CompressedModel, name: str) -> QuantizedLinear | None:
    """Codes of a linear; None where it is dense. Raises FormatRefused for any other form."""
    linear = model.quantized(name)
    if linear is not None and not isinstance(linear, QuantizedLinear):
        raise FormatRefused(
            f"{name} is stored as {linear.kind}, which compressed-tensors cannot hold; use format native.",
            field="format",
        )
    return linear


def _check_experts(model: CompressedModel, quantized: frozenset[str]) -> None:
    """transformers joins a block's experts while it loads them, and can do so only if all are packed, symmetrically."""
    experts = [name for name in model.linear_names if ".experts." in name]
    for name in experts:
        linear = _grid(model, name) if name in quantized else None
        if linear is not None and linear.activations is not None:
            raise FormatRefused(
                f"The inputs of {name} are rounded, and transformers joins a mixture's experts into one tensor, whose "
                "inputs it does not round; use a method that quantizes the weights alone.",
                field="recipe",
            )
        if linear is None or not linear.symmetric:
            raise FormatRefused(
                f"{name} is {'dense' if linear is None else 'on a grid that is not symmetric'}, and transformers loads "
                "experts from compressed-tensors only if all are quantized symmetrically; use format safetensors.",
                field="format",
            )


def _tensors(model: CompressedModel, quantized: frozenset[str]) -> Iterator[tuple[str, Tensor]]:
    for name in model.names:
        linear_name = name.removesuffix(".weight")
        if linear_name in quantized and name != linear_name:
            linear = _grid(model, linear_name)
            assert linear is not None
            for leaf, tensor in packed(linear).items():
                yield model.stored_name(f"{linear_name}.{leaf}"), tensor
        else:
            yield model.stored_name(name), model.stored(name)


def packed(linear: QuantizedLinear) -> dict[str, Tensor]:
    """The tensors that stand for one linear, under the format's names.

    The format's codes are always signed: where the grid is not symmetric, codes and zero points move by half a range.
    """
    if linear.activations is not None:
        tensors = {"weight": linear.codes_OI, "weight_scale": linear.scales_OG}
        return tensors if linear.activations.scale is None else {**tensors, "input_scale": linear.activations.scale}
    half = 1 << (linear.bits - 1)

    def signed(unsigned: Tensor) -> Tensor:
        return (unsigned.to(torch.int16) - half).to(torch.int8)

    codes_OI = linear.codes_OI if linear.symmetric else signed(linear.codes_OI)
    tensors = {
        "weight_packed": pack_to_int32(codes_OI, linear.bits),
        "weight_scale": linear.scales_OG,
        "weight_shape": torch.tensor(codes_OI.shape),
    }
    if linear.zeros_OG is not None:
        tensors["weight_zero_point"] = pack_to_int32(signed(linear.zeros_OG), linear.bits, packed_dim=0)
    return tensors


def _quantization_config(model: CompressedModel, quantized: list[str]) -> dict[str, Any]:
    # By the bits, in which alone the grids of a recipe may differ: their arguments, and who has them.
    schemes: dict[int, tuple[QuantizationArgs, list[str]]] = {}
    for name in quantized:
        linear = _grid(model, name)
        assert linear is not None
        schemes.setdefault(linear.bits, (_arguments(linear), []))[1].append(name)
    activations = model.activations(quantized[0])
    modules = Skeleton(model.config, model.storage_dtype).model.named_modules()
    # Routers too: they are no Linear to transformers, but they are to other runtimes.
    dense = [
        name
        for name, module in modules
        if isinstance(module, nn.Linear) or name.endswith("mlp.gate")
        if name not in set(quantized)
    ]
    config = QuantizationConfig(
        config_groups={
            f"group_{number}": QuantizationScheme(
                targets=_known_as(model, names) if len(schemes) > 1 else ["Linear"],
                weights=arguments,
                input_activations=None if activations is None else activations.arguments,
            )
            for number, (_, (arguments, names)) in enumerate(sorted(schemes.items()))
        },
        format=_FORMATS[activations.type if activations else None].value,
        quantization_status=QuantizationStatus.COMPRESSED,
        ignore=_known_as(model, dense),
    )
    dumped: dict[str, Any] = config.model_dump(mode="json")
    if activations is not None:
        # transformers rounds activations only in layers that it leaves compressed until the first forward.
        return dumped
    # transformers has no integer kernels: it dequantizes at the first forward or, told so here, while it loads. Only
    # the second way can read zero points, which are packed along the rows; only the first knows more than one scheme.
    # Other runtimes do not look at this key.
    return {**dumped, "dequantize": len(schemes) == 1}


def _known_as(model: CompressedModel, names: list[str]) -> list[str]:
    """Modules under both names: transformers matches its own, other runtimes those of the files."""
    return list(dict.fromkeys(other for name in names for other in (name, model.stored_name(f"{name}.")[:-1])))


def _arguments(linear: QuantizedLinear) -> QuantizationArgs:
    grouped = linear.group_size is not None
    return QuantizationArgs(
        num_bits=linear.bits,
        type=QuantizationType.INT if linear.activations is None else QuantizationType(linear.activations.type),
        symmetric=linear.symmetric,
        strategy=QuantizationStrategy.GROUP if grouped else QuantizationStrategy.CHANNEL,
        group_size=linear.group_size,
    )
