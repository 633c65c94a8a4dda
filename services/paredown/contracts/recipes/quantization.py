"""Settings of the methods that store weights in fewer bits."""

import math
from abc import abstractmethod
from collections.abc import Sequence
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from paredown.contracts.recipes.stage import Family, Stage

Bits = Literal[2, 3, 4, 5, 6, 8]
GroupSize = Literal[32, 64, 128, 256]


# Of every scale, whatever the format; K-quants have codes for them instead.
_SCALE_BITS = 16
# Weights of a K-quant whose groups' scales are codes on scales that all of them share.
SUPER_BLOCK = 256
# Of K-quants, by bits: weights that share a scale, whether the grid is symmetric, and bytes of a super-block.
K_QUANTS: dict[int, tuple[int, bool, int]] = {
    2: (16, False, 84),
    3: (16, True, 110),
    4: (32, False, 144),
    5: (32, False, 176),
    6: (16, True, 210),
}
# What takes their place, on plain symmetric grids of 32 weights to a scale, where rows fill no super-blocks.
_WITHOUT_SUPER_BLOCKS: dict[int, Bits] = {2: 4, 3: 4, 4: 4, 5: 5, 6: 8, 8: 8}


class Quantizer(Stage):
    """A method that stores the weights of linears in fewer bits, once in a recipe."""

    family: ClassVar[Family] = Family.QUANTIZATION

    embeddings: Literal[4, 5, 6, 8, 16] = Field(
        16,
        description="Bits of the embeddings and the head: 16 leaves them as they are; 8 stores them as float8, "
        "which runtimes turn into 16 bits as they load. GGUF stores them as Q8_0 in both cases, and as Q5_0 or Q4_1 "
        "with 5 or 4, with K-quants as Q6_K, Q5_K or Q4_K; no other format can hold these.",
    )


class UniformGrid(Quantizer):
    """Rounds weights, and nothing else, to uniform grids."""

    group_size: GroupSize | None = Field(
        64,
        description="Input channels that share one scale; empty means one scale for each output row. "
        "64 divides every common layer width; 128 saves an eighth of a bit.",
    )
    symmetric: bool = Field(True, description="A grid centred on zero; otherwise each group also stores a zero point.")
    scale_search: Literal["least_squares", "min_max"] = Field(
        "least_squares",
        description="How a group's scale is found: least_squares shrinks the range while squared error falls.",
    )
    k_quant: bool = Field(
        False,
        description="llama.cpp's K-quants, in the format gguf only: the scales of 256 weights are 4 to 8 bits each on "
        "a scale they share. They have groups and zero points of their own: leave group_size and symmetric as they "
        "are. Layers whose rows are no multiple of 256 get plain blocks of 32: 4 bits in the place of 2 and 3, 8 of 6.",
    )

    @model_validator(mode="after")
    def _own_groups(self) -> Self:
        if self.k_quant and (self.group_size, self.symmetric) != (64, True):
            raise ValueError(
                "K-quants have groups and zero points of their own: leave group_size at 64 and symmetric true, or set "
                "k_quant to false"
            )
        return self

    def keeps_zeros(self, in_features: int) -> bool:
        """Whether zero is a point of the grids of a layer of so many input channels, in GGUF too."""
        if not self.k_quant or in_features % SUPER_BLOCK:
            return self.symmetric
        return all(K_QUANTS[bits][1] for bits in self.widths if bits in K_QUANTS)

    @property
    @abstractmethod
    def widths(self) -> tuple[Bits, ...]:
        """Bits of a code that a layer may end with."""


# A form asks for fields in their order: a class's own come after those of its first base, and its last base's before.
class _Bits(Stage):
    bits: Bits = Field(4, description="Bits stored for each weight.")


class WeightGrid(UniformGrid, _Bits):
    """One grid for every layer, but for K-quants."""

    @property
    def widths(self) -> tuple[Bits, ...]:
        return (self.bits,)

    def for_width(self, in_features: int) -> Self:
        """The stage as a linear of so many input channels goes through it: with its own bits, groups and zero points.

        `k_quant` is left true only where the layer has super-blocks.
        """
        if not self.k_quant:
            return self
        changed: dict[str, Any] = {"k_quant": False, "group_size": 32, "symmetric": True}
        if in_features % SUPER_BLOCK:
            changed["bits"] = _WITHOUT_SUPER_BLOCKS[self.bits]
        elif self.bits in K_QUANTS:
            group_size, symmetric, _ = K_QUANTS[self.bits]
            changed = {"group_size": group_size, "symmetric": symmetric}
        # Not validated: a recipe cannot say what is said of one layer.
        return self.model_copy(update=changed)

    def stored_bits(self, out_features: int, in_features: int, *, wide: bool = False) -> int:
        """Bits of a layer, scales and zero points included.

        `wide`: the format stores a 16-bit minimum where others store a zero point as wide as a code, as GGUF does.
        """
        grid = self.for_width(in_features)
        if grid.k_quant:
            return out_features * in_features // SUPER_BLOCK * K_QUANTS[grid.bits][2] * 8
        zero_bits = 0 if grid.symmetric else _SCALE_BITS if wide else grid.bits
        groups = in_features // grid.group_size if grid.group_size else 1
        return out_features * (in_features * grid.bits + groups * (_SCALE_BITS + zero_bits))


class Rtn(WeightGrid):
    """Each weight goes to the closest grid point; no calibration. The baseline of arXiv:2206.01861."""

    title: ClassVar[str] = "Round to nearest"
    paper: ClassVar[str] = "arXiv:2206.01861"
    needs_calibration: ClassVar[bool] = False

    method: Literal["rtn"] = "rtn"


class Gptq(WeightGrid):
    """Quantize column by column and let later columns absorb the error of earlier ones. arXiv:2210.17323"""

    title: ClassVar[str] = "GPTQ"
    paper: ClassVar[str] = "arXiv:2210.17323"
    needs_calibration: ClassVar[bool] = True

    method: Literal["gptq"] = "gptq"
    activation_order: bool = Field(
        True,
        description="Visit the columns with the largest activations first. Groups stay where they are, so the file "
        "needs no index of groups.",
    )
    damping: float = Field(
        0.01, gt=0, le=1, description="Share of the mean diagonal added to the Hessian before it is factorized."
    )
    damping_search: bool = Field(
        False,
        description="Also try a tenth, a third, three and ten times the damping, and keep for each output row the one "
        "with the least output error over the calibration tokens; one that does not factorize is left out. The solve "
        "takes about four times as long.",
    )


class Awq(WeightGrid):
    """Scale up the input channels with the largest activations before rounding, and what produces them down.
    arXiv:2306.00978"""

    title: ClassVar[str] = "AWQ"
    paper: ClassVar[str] = "arXiv:2306.00978"
    needs_calibration: ClassVar[bool] = True

    method: Literal["awq"] = "awq"
    scale_steps: int = Field(
        20,
        ge=1,
        le=100,
        description="Exponents tried between 0 and 1 for each input: a channel's scale is its mean absolute value to "
        "that power. With 1 nothing is scaled.",
    )


class EightBit(Quantizer):
    """Weights with a scale for each output row, and activations, in eight bits."""

    refuses: ClassVar[dict[str, str]] = {
        "gpt2": "only compressed-tensors can say that activations are rounded, and it does not know Conv1D layers.",
        **dict.fromkeys(
            ("mixtral", "qwen2_moe", "qwen3_moe"),
            "transformers joins the experts into one tensor and rounds none of what they read.",
        ),
    }
    widths: ClassVar[tuple[Bits, ...]] = (8,)
    number: ClassVar[Literal["int", "float"]]

    @property
    def is_dynamic(self) -> bool:
        """Whether each token's scale is found as it comes."""
        return True


class CalibratedEightBit(EightBit):
    """Eight bits by the calibration text, which can say beforehand how large activations become."""

    needs_calibration: ClassVar[bool] = True

    activations: Literal["dynamic", "static"] = Field(
        "dynamic",
        description="dynamic finds each token's scale as it comes; static has one scale for each input, from the "
        "calibration text: faster, less accurate.",
    )

    damping: float = Field(
        0.01, gt=0, le=1, description="Share of the mean diagonal added to the Hessian before it is factorized."
    )

    @property
    def is_dynamic(self) -> bool:
        return self.activations == "dynamic"


class SmoothQuant(CalibratedEightBit):
    """Weights and activations as 8-bit integers, with the activations' outliers moved into the weights.
    arXiv:2211.10438"""

    title: ClassVar[str] = "SmoothQuant"
    paper: ClassVar[str] = "arXiv:2211.10438"
    number: ClassVar[Literal["int", "float"]] = "int"

    method: Literal["smoothquant"] = "smoothquant"
    alpha: float | None = Field(
        None,
        ge=0,
        le=1,
        description="How much of the difficulty moves from the activations into the weights: a channel's scale is "
        "max|x|^α / max|w|^(1-α). Empty: for each input, whichever of 0.3, 0.4 … 0.9 changes its layers' output least "
        "over a sample of the calibration tokens.",
    )
    weights: Literal["gptq", "nearest"] = Field(
        "gptq",
        description="How weights are rounded: gptq column by column, later columns absorbing the error of earlier "
        "ones; nearest each by itself, as the paper does.",
    )

    @property
    def alphas(self) -> tuple[float, ...]:
        """Those to choose from."""
        return (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9) if self.alpha is None else (self.alpha,)


class Fp8(EightBit):
    """Weights and activations as float8_e4m3, each token's scale found as it comes; no calibration. arXiv:2209.05433"""

    title: ClassVar[str] = "FP8"
    paper: ClassVar[str] = "arXiv:2209.05433"
    needs_calibration: ClassVar[bool] = False
    number: ClassVar[Literal["int", "float"]] = "float"

    method: Literal["fp8"] = "fp8"


class Fp8Static(EightBit):
    """Weights and activations as float8_e4m3, one scale for each input from the calibration text. arXiv:2209.05433"""

    title: ClassVar[str] = "FP8, static activations"
    paper: ClassVar[str] = "arXiv:2209.05433"
    needs_calibration: ClassVar[bool] = True
    number: ClassVar[Literal["int", "float"]] = "float"

    method: Literal["fp8-static"] = "fp8-static"

    @property
    def is_dynamic(self) -> bool:
        return False


class Fp8Gptq(CalibratedEightBit):
    """Weights as float8_e4m3 column by column, later columns absorbing the error of earlier ones, and activations as
    float8_e4m3. arXiv:2210.17323"""

    title: ClassVar[str] = "FP8 with GPTQ"
    paper: ClassVar[str] = "arXiv:2210.17323"
    number: ClassVar[Literal["int", "float"]] = "float"

    method: Literal["fp8-gptq"] = "fp8-gptq"


class Owq(WeightGrid):
    """The columns that rounding would hurt most stay in 16 bit and absorb errors to the end; GPTQ quantizes the others.
    arXiv:2306.02272"""

    title: ClassVar[str] = "OWQ"
    paper: ClassVar[str] = "arXiv:2306.02272"
    needs_calibration: ClassVar[bool] = True
    native: ClassVar[bool] = True

    method: Literal["owq"] = "owq"
    extra_bits: float = Field(
        0.01,
        ge=0,
        le=4,
        description="Bits for each weight spent on weak columns beyond bits, such as 0.01 for 3.01 bits; rounded up to "
        "whole columns, of which one costs more in a narrow layer.",
    )
    damping: float = Field(
        0.01, gt=0, le=1, description="Share of the mean diagonal added to the Hessian before it is factorized."
    )

    def weak(self, in_features: int) -> int:
        """How many columns of so many stay in 16 bit; all have codes as well, which count for nothing."""
        return min(in_features, math.ceil(self.extra_bits * in_features / 16 - 1e-9))


class Squeezellm(Quantizer):
    """Each row gets the values that its weights round to, by weighted k-means, and its outliers stay in 16 bit.
    arXiv:2306.07629"""

    title: ClassVar[str] = "SqueezeLLM"
    paper: ClassVar[str] = "arXiv:2306.07629"
    needs_calibration: ClassVar[bool] = True
    native: ClassVar[bool] = True

    method: Literal["squeezellm"] = "squeezellm"
    bits: Literal[2, 3, 4] = Field(4, description="Bits stored for each weight; a row's codebook has 2^bits values.")
    outliers: float = Field(
        0.004,
        ge=0,
        le=0.1,
        description="Share of each row's weights, the largest, that stay in 16 bit beside the codes.",
    )
    sensitive: float = Field(
        0.0005,
        ge=0,
        le=0.1,
        description="Share of each row's weights, those with the loudest inputs, that stay in 16 bit beside the codes.",
    )
    compensate: bool = Field(
        True, description="Let columns still to come absorb the error of each, as gptq does; the paper does not."
    )
    damping: float = Field(
        0.01,
        gt=0,
        le=1,
        description="Share of the mean diagonal added to the Hessian before it is factorized; only with compensate.",
    )

    def kept(self, in_features: int) -> tuple[int, int]:
        """How many weights of a row stay as outliers, and how many as sensitive ones."""
        return int(self.outliers * in_features + 0.5), int(self.sensitive * in_features + 0.5)


def _rising(choices: tuple[Bits, ...]) -> tuple[Bits, ...]:
    if list(choices) != sorted(set(choices)):
        raise ValueError("name each number of bits once, from the smallest to the largest, such as 2, 3, 4")
    return choices


class _Budget(Stage):
    average_bits: float = Field(
        3.5,
        gt=2,
        lt=16,
        description="Bits stored for each weight of the layers that are quantized, scales and zero points included, on "
        "average and at most.",
    )
    choices: Annotated[tuple[Bits, ...], AfterValidator(_rising)] = Field(
        (2, 3, 4, 6),
        min_length=2,
        max_length=6,
        description="Bits of a code that a layer may get, rising. Layers that share an input get the same.",
    )


class Mixed(UniformGrid, _Budget):
    """GPTQ with the bits of each layer chosen, under a budget of stored bits, for the least loss that is foretold from
    gradients and second moments. After arXiv:2406.17415, with the choice of arXiv:2011.10680"""

    title: ClassVar[str] = "Mixed precision"
    paper: ClassVar[str] = "arXiv:2406.17415"
    needs_calibration: ClassVar[bool] = True

    method: Literal["mixed"] = "mixed"
    activation_order: bool = Field(
        True,
        description="Visit the columns with the largest activations first, as gptq does.",
    )
    damping: float = Field(
        0.01, gt=0, le=1, description="Share of the mean diagonal added to the Hessian before it is factorized."
    )

    @property
    def widths(self) -> tuple[Bits, ...]:
        return self.choices

    def at(self, bits: Bits) -> Gptq:
        """What a layer that gets so many bits goes through."""
        return Gptq(
            bits=bits,
            group_size=self.group_size,
            symmetric=self.symmetric,
            scale_search=self.scale_search,
            activation_order=self.activation_order,
            damping=self.damping,
            skip=self.skip,
            embeddings=self.embeddings,
            k_quant=self.k_quant,
        )

    def reach(self, layers: Sequence[tuple[int, int]], *, wide: bool = False) -> tuple[float, float]:
        """Least and most average bits that choices give layers of so many output and input features."""
        weights = sum(rows * columns for rows, columns in layers)
        least, most = (
            sum(grid.stored_bits(rows, columns, wide=wide) for rows, columns in layers) / weights
            for grid in (self.at(self.choices[0]), self.at(self.choices[-1]))
        )
        return least, most

    def budget_refusal(self, layers: Sequence[tuple[int, int]], *, wide: bool = False) -> str | None:
        """Why such layers cannot have `average_bits`, and what to change; None where they can."""
        least, most = self.reach(layers, wide=wide)
        named = ", ".join(map(str, self.choices))
        if self.average_bits < least:
            reason = (
                f"average_bits {self.average_bits:g} is less than the {least:.4g} that {self.choices[0]} bits take "
                "with their scales"
            )
            if self.k_quant and any(columns % SUPER_BLOCK for _, columns in layers):
                reason += f", and layers whose rows are no multiple of {SUPER_BLOCK} take 4.5 at least"
            ways = ["raise it"]
            if self.choices[0] > 2:
                ways.append(f"allow fewer bits than {named}")
            if not self.k_quant:
                ways.append("widen group_size")
            return f"{reason}; {' or '.join(ways)}."
        if self.average_bits > most:
            return (
                f"average_bits {self.average_bits:g} is more than the {most:.4g} that {self.choices[-1]} bits take "
                f"with their scales; lower it, or allow more bits than {named}."
            )
        return None

    def packing_refusal(self, model_type: str, *, experts: bool) -> tuple[str | None, str] | None:
        """(the field of this stage to change, if one is; why) where a file of several widths would not load.

        transformers dequantizes such a file at the first forward, not while it loads.
        """
        other = "set format to native, or to safetensors, which stores the quantized weights dense, or use gptq."
        if not self.symmetric:
            return "symmetric", (
                "transformers reads no zero points from compressed-tensors where layers differ in bits; set symmetric "
                f"to true, or {other}"
            )
        if experts:
            return None, f"transformers loads experts from compressed-tensors only if all have the same bits; {other}"
        if model_type == "falcon":
            return None, f"transformers cannot load a falcon model whose layers differ in bits; {other}"
        return None
