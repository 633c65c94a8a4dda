"""Settings of the methods that store weights in fewer bits."""

from typing import ClassVar, Literal

from pydantic import Field

from paredown.contracts.recipes.stage import Family, Stage

Bits = Literal[2, 3, 4, 5, 6, 8]
GroupSize = Literal[32, 64, 128, 256]


class WeightGrid(Stage):
    """The uniform grid that a weight-only quantizer rounds to."""

    family: ClassVar[Family] = Family.QUANTIZATION

    bits: Bits = Field(4, description="Bits stored for each weight.")
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
