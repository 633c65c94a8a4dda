"""What every stage of a recipe shares."""

from enum import StrEnum
from fnmatch import fnmatchcase
from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict, Field

from paredown.contracts.shapes import ModelShape


class Family(StrEnum):
    """The kind of compression a method does. A recipe holds its stages in this order."""

    DEPTH = "depth"
    WIDTH = "width"
    TRAINING = "training"
    FACTORIZATION = "factorization"
    PRUNING = "pruning"
    QUANTIZATION = "quantization"


class Stage(BaseModel):
    """One method with its settings. Frozen, so that a recipe can be hashed and shared.

    A default never changes once released: a new default is a new `version` of the stage.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    title: ClassVar[str]
    paper: ClassVar[str]
    family: ClassVar[Family]
    needs_calibration: ClassVar[bool]
    needs_gpu: ClassVar[bool] = False
    # Leaves weights in a form that only the native format holds.
    native: ClassVar[bool] = False
    # Model families (contracts.families) that the method cannot take, each with the reason a user reads.
    refuses: ClassVar[dict[str, str]] = {}

    method: str
    version: int = Field(1, ge=1, le=1, description="Version of this stage's defaults.")
    skip: tuple[str, ...] = Field(
        (),
        max_length=64,
        description="Glob patterns of linear layers left as they are, such as *.down_proj or model.layers.0.*",
    )

    def refusal(self, shape: ModelShape) -> str | None:
        """Why the method cannot take this model's family, for the user; None where it can."""
        reason = self.refuses.get(shape.family) or self.refuses.get(shape.model_type)
        return reason and f"{self.title} cannot take a {shape.model_type} model: {reason}"

    def skips(self, name: str) -> bool:
        """Whether the stage leaves the linear layer of this full name as it is."""
        return any(fnmatchcase(name, pattern) for pattern in self.skip)

    def shape_after(self, shape: ModelShape) -> ModelShape:
        """What the stage leaves of a shape that it is given."""
        return shape

    def identity(self) -> dict[str, Any]:
        """The settings that differ from their default, with the method's name: what a recipe's hash covers."""
        return {"method": self.method, **self.model_dump(mode="json", exclude_defaults=True, exclude={"method"})}
