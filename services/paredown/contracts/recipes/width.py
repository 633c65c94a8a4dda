"""Settings of the methods that make every block narrower."""

from typing import ClassVar, Literal, Self

from pydantic import Field, model_validator

from paredown.contracts.recipes.stage import Family, Stage
from paredown.contracts.shapes import ModelShape

# What kernels of stock runtimes want a width to be a multiple of.
_MULTIPLE = 16


class Width(Stage):
    """How many channels and heads go, the same number from every block, as stock runtimes have one width for all."""

    family: ClassVar[Family] = Family.WIDTH
    needs_calibration: ClassVar[bool] = True
    refuses: ClassVar[dict[str, str]] = {
        **dict.fromkeys(("opt", "gpt2", "gpt_neox", "bloom", "falcon"), "it has no gated MLP."),
        "phi3": "its queries, keys and values are one projection, and so are the gated MLP's gate and up.",
        **dict.fromkeys(("mixtral", "qwen2_moe", "qwen3_moe"), "experts stand where its gated MLP would be."),
    }

    mlp_share: float = Field(
        0.25, ge=0, lt=1, description="Share of each block's MLP channels dropped; a multiple of 16 is left."
    )
    head_groups: int = Field(
        0,
        ge=0,
        le=1023,
        description="Key-value heads dropped from each block, each with the query heads that share it.",
    )
    skip: tuple[str, ...] = Field(
        (), max_length=0, description="Always empty: every block of a model has the same width."
    )

    @model_validator(mode="after")
    def _something_goes(self) -> Self:
        if self.mlp_share == 0 and self.head_groups == 0:
            raise ValueError("give mlp_share or head_groups; with both at 0 there is nothing to drop")
        return self

    def channels_left(self, channels: int) -> int:
        """How many of so many MLP channels stay."""
        if self.mlp_share == 0:
            return channels
        return max(1, int(channels * (1 - self.mlp_share) / _MULTIPLE + 0.5)) * _MULTIPLE

    def shape_after(self, shape: ModelShape) -> ModelShape:
        return shape.narrowed(self.channels_left(shape.mlp_channels), shape.kv_heads - self.head_groups)


class LlmPruner(Width):
    """Drop coupled channels and heads of least weight times gradient. arXiv:2305.11627"""

    title: ClassVar[str] = "LLM-Pruner"
    paper: ClassVar[str] = "arXiv:2305.11627"

    method: Literal["llm-pruner"] = "llm-pruner"


class Bonsai(Width):
    """Drop the channels and heads that sampled sub-models miss least, by forward passes alone. arXiv:2402.05406"""

    title: ClassVar[str] = "Bonsai"
    paper: ClassVar[str] = "arXiv:2402.05406"

    method: Literal["bonsai"] = "bonsai"
    submodels: int = Field(
        32,
        ge=0,
        le=256,
        multiple_of=2,
        description="Sub-models that are tried in each round, in pairs that drop complementary channels; the paper "
        "takes 200. With 0 the prior alone decides: activations times weights.",
    )
    samples: int = Field(8, ge=1, le=4096, description="Calibration sequences that a sub-model is judged on.")
    rounds: int = Field(
        1, ge=1, le=64, description="Steps in which the channels and heads go; the paper drops 5% in each."
    )

    def passes(self, samples: int) -> float:
        """Forward passes over so many calibration sequences that it takes."""
        return self.rounds * (1 + self.submodels * min(self.samples, samples) / samples)
