"""The compressed-tensors format: integer codes packed into int32 words (`pack-quantized`), or, where activations are
rounded too, eight bits each as they are (`int-quantized`, `float-quantized`).

The packing is the format's own library's. Codes are packed as the method left them, not quantized again from rounded
weights: at 8 bits, requantizing in bfloat16 would move codes.
Shapes: O out_features, I in_features, G groups along the input.
"""

from collections.abc import Iterator
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

from paredown.engine.architectures import Skeleton
from paredown.engine.errors import FormatRefused
from paredown.engine.formats.files import write_config, write_weights
from paredown.engine.quantized import QuantizedLinear
from paredown.engine.stream import CompressedModel

_FORMATS = {
    None: CompressionFormat.pack_quantized,
    "int": CompressionFormat.int_quantized,
    "float": CompressionFormat.float_quantized,
}


def check(config: Any) -> None:
    """Raise FormatRefused, before any work, for a model that the format cannot hold."""
    if config.model_type == "gpt2":
        raise FormatRefused(
            "GPT-2 keeps its weights in Conv1D layers, which compressed-tensors does not know; use format safetensors.",
            field="format",
        )


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
    first = _grid(model, quantized[0])
    assert first is not None
    grouped = first.group_size is not None
    arguments = QuantizationArgs(
        num_bits=first.bits,
        type=QuantizationType.INT if first.activations is None else QuantizationType(first.activations.type),
        symmetric=first.symmetric,
        strategy=QuantizationStrategy.GROUP if grouped else QuantizationStrategy.CHANNEL,
        group_size=first.group_size,
    )
    modules = Skeleton(model.config, model.storage_dtype).model.named_modules()
    # Routers too: they are no Linear to transformers, but they are to other runtimes.
    dense = [
        name
        for name, module in modules
        if isinstance(module, nn.Linear) or name.endswith("mlp.gate")
        if name not in set(quantized)
    ]
    # Under both names: transformers matches its own, other runtimes those of the files.
    ignored = list(dict.fromkeys(other for name in dense for other in (name, model.stored_name(f"{name}.")[:-1])))
    inputs = None if first.activations is None else first.activations.arguments
    config = QuantizationConfig(
        config_groups={"group_0": QuantizationScheme(targets=["Linear"], weights=arguments, input_activations=inputs)},
        format=_FORMATS[first.activations.type if first.activations else None].value,
        quantization_status=QuantizationStatus.COMPRESSED,
        ignore=ignored,
    )
    dumped: dict[str, Any] = config.model_dump(mode="json")
    if inputs is not None:
        # transformers rounds activations only in layers that it leaves compressed until the first forward.
        return dumped
    # transformers has no integer kernels: it dequantizes at the first forward or, told so here, while it loads. Only
    # the second way can read zero points, which are packed along the rows. Other runtimes do not look at this key.
    return {**dumped, "dequantize": True}
