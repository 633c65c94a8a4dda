"""Settings of the methods that set weights to zero."""

import re
from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, Field, model_validator

from paredown.contracts.recipes.stage import Family, Stage


def parse_pattern(pattern: str) -> tuple[int, int]:
    """`"2:4"` → (2, 4): N weights kept of every M neighbours along the input. Raises ValueError."""
    match = re.fullmatch(r"([1-9]\d?):([1-9]\d?)", pattern)
    if match is None or int(match[1]) >= int(match[2]):
        raise ValueError("write N:M with N smaller than M, such as 2:4 (keep 2 of every 4 weights)")
    return int(match[1]), int(match[2])


def _checked_pattern(pattern: str) -> str:
    parse_pattern(pattern)
    return pattern


Pattern = Annotated[str, Field(examples=["2:4"], pattern=r"^[1-9]\d?:[1-9]\d?$"), AfterValidator(_checked_pattern)]


class Pruner(Stage):
    """Sets weights to zero."""

    family: ClassVar[Family] = Family.PRUNING

    pattern: Pattern | None = Field(
        None, description="N:M pattern such as 2:4 (two of every four neighbours kept), instead of sparsity."
    )

    @property
    def share(self) -> float:
        """Of the weights, what is set to zero."""
        assert self.pattern is not None
        kept, of = parse_pattern(self.pattern)
        return 1 - kept / of


class Mask(Pruner):
    """How much is pruned, and in which shape."""

    sparsity: float = Field(0.5, gt=0, lt=1, description="Share of the weights set to zero; ignored with a pattern.")

    @property
    def share(self) -> float:
        return super().share if self.pattern else self.sparsity


class Magnitude(Mask):
    """Prune each layer's smallest weights. The baseline of arXiv:1506.02626."""

    title: ClassVar[str] = "Magnitude pruning"
    paper: ClassVar[str] = "arXiv:1506.02626"
    needs_calibration: ClassVar[bool] = False

    method: Literal["magnitude"] = "magnitude"


class Wanda(Mask):
    """Prune by |weight| times input norm within each output row, no retraining. arXiv:2306.11695"""

    title: ClassVar[str] = "Wanda"
    paper: ClassVar[str] = "arXiv:2306.11695"
    needs_calibration: ClassVar[bool] = True

    method: Literal["wanda"] = "wanda"


class Sparsegpt(Mask):
    """Prune column by column and let later columns make up for what was lost; followed by gptq, both are solved in one
    sweep. arXiv:2301.00774"""

    title: ClassVar[str] = "SparseGPT"
    paper: ClassVar[str] = "arXiv:2301.00774"
    needs_calibration: ClassVar[bool] = True

    method: Literal["sparsegpt"] = "sparsegpt"
    damping: float = Field(
        0.01,
        gt=0,
        le=1,
        description="Share of the mean diagonal added to the Hessian before it is factorized; the same as that of a "
        "gptq stage that follows.",
    )


class Esparse(Pruner):
    """N:M pruning by |weight| times norm and entropy of the input channel, with channels shuffled where the model still
    computes the same. arXiv:2310.15929"""

    title: ClassVar[str] = "E-Sparse"
    paper: ClassVar[str] = "arXiv:2310.15929"
    needs_calibration: ClassVar[bool] = True

    method: Literal["e-sparse"] = "e-sparse"
    version: int = Field(
        1, ge=1, le=2, description="Version of this stage's defaults: in 2, entropy_weight is 0.1 where none is given."
    )
    pattern: Pattern = Field("2:4", description="N:M pattern such as 2:4: two of every four neighbours kept.")
    entropy_weight: float = Field(
        1.0,
        ge=0,
        le=100,
        description="How much a channel's entropy counts beside its norm, both relative to their mean; 0.1 did best "
        "on the packaged model.",
    )
    shuffle: bool = Field(
        True,
        description="Reorder the input channels of the MLP's and of attention's last linear so that channels that "
        "matter do not share a group; the rows of the linears before them follow.",
    )

    @model_validator(mode="before")
    @classmethod
    def _defaults_of_version(cls, given: Any) -> Any:
        # As pydantic reads it: a quoted number, or one with a point, is one too.
        if isinstance(given, dict) and str(given.get("version")).removesuffix(".0") == "2":
            return {"entropy_weight": 0.1, **given}
        return given

    def identity(self) -> dict[str, Any]:
        own = super().identity()
        # The field's own default is that of version 1.
        return {**own, "entropy_weight": self.entropy_weight} if self.version > 1 else own
