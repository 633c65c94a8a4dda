"""Settings of the methods that train a pruned model on text, within a budget of tokens."""

from typing import ClassVar, Literal, Self

from pydantic import Field, model_validator

from paredown.contracts.recipes.stage import Family, Stage


class Training(Stage):
    """Low-rank adapters beside the linear layers learn from the calibration's text, and are merged at the end."""

    family: ClassVar[Family] = Family.TRAINING
    needs_calibration: ClassVar[bool] = True

    tokens: int = Field(
        65_536, ge=16, le=10**9, description="Tokens trained on, at most: whole batches from the calibration's text."
    )
    repeats: int = Field(
        1, ge=1, le=100, description="How many times the text may be read; more tokens than it then gives are refused."
    )
    batch_size: int = Field(4, ge=1, le=1024, description="Sequences of one optimizer step.")
    sequence_length: int = Field(512, ge=16, le=131072, description="Tokens in each sequence.")
    rank: int = Field(16, ge=1, le=1024, description="Rank of each adapter.")
    alpha: float = Field(32.0, gt=0, le=4096, description="What an adapter adds is multiplied by alpha over rank.")
    learning_rate: float = Field(
        0.001, gt=0, le=1, description="Of AdamW after the warm-up; falls to zero along a cosine."
    )
    warmup: float = Field(0.1, ge=0, lt=1, description="Share of the steps in which the learning rate rises to it.")
    seed: int = Field(0, ge=0, lt=2**32, description="The order of sequences and the adapters' first values.")
    skip: tuple[str, ...] = Field(
        (),
        max_length=64,
        description="Glob patterns of linear layers that get no adapter, such as *.down_proj or model.layers.0.*",
    )

    @model_validator(mode="after")
    def _one_step(self) -> Self:
        if self.steps < 1:
            raise ValueError(
                f"{self.tokens} tokens are less than one batch of {self.batch_size} × {self.sequence_length}; raise "
                "tokens, or lower batch_size or sequence_length"
            )
        return self

    @property
    def steps(self) -> int:
        """Optimizer steps that the budget pays for."""
        return self.tokens // (self.batch_size * self.sequence_length)

    @property
    def trained_tokens(self) -> int:
        """Of the budget, what whole batches use."""
        return self.steps * self.batch_size * self.sequence_length


class Lora(Training):
    """Heal a model by low-rank adapters trained to predict the text, merged at the end. arXiv:2106.09685"""

    title: ClassVar[str] = "LoRA healing"
    paper: ClassVar[str] = "arXiv:2106.09685"

    method: Literal["lora"] = "lora"


class Distil(Training):
    """Low-rank adapters learn the base's distribution over the next token, or its hidden states block by block.
    arXiv:1503.02531"""

    title: ClassVar[str] = "Distillation"
    paper: ClassVar[str] = "arXiv:1503.02531"

    method: Literal["distil"] = "distil"
    temperature: float = Field(
        1.0, gt=0, le=100, description="Logits of both models are divided by it; ignored with block_wise."
    )
    distillation_weight: float = Field(
        1.0,
        gt=0,
        le=1000,
        description="Weight of the divergence from the base, times the square of temperature; ignored with block_wise.",
    )
    language_weight: float = Field(
        0.0, ge=0, le=1000, description="Weight of the loss of predicting the text itself; ignored with block_wise."
    )
    block_wise: bool = Field(
        False,
        description="Train one block after the other to give the base's hidden states, in the memory of one block; "
        "each block sees all tokens.",
    )
