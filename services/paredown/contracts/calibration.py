"""Calibrations: the token blocks that jobs calibrated on, kept so that others can take the very same."""

from collections.abc import Iterable
from datetime import datetime
from uuid import UUID

from pydantic import Field

from paredown.contracts.job import CALIBRATION_SCHEME, Contract
from paredown.contracts.report import LayerReport, Sha256

# Calibration tokens that reached each expert of a block, by the name of the block's experts.
Coverage = dict[str, tuple[int, ...]]


class CalibrationView(Contract):
    """Token blocks in the catalogue. The same blocks are one calibration of a project, however many jobs drew them;
    what is said of their origin is the first job's."""

    id: UUID
    project: str
    tokens_sha256: Sha256 = Field(description="As manifests have it: of the tokens, int64, row by row.")
    samples: int
    sequence_length: int
    seed: int
    source: str = Field(description="Address of the text that they were drawn from.")
    source_sha256: Sha256 = Field(description="Of that text as UTF-8.")
    tokenizer_sha256: Sha256 = Field(description="Of the vocabulary: every token with its number.")
    chat_template_sha256: Sha256 | None = Field(description="None: Pare applies no chat template to calibration text.")
    held_out_windows: int | None = Field(
        description="How many of the text's windows were left out because they overlap with held-out text; none where "
        "that was not asked for."
    )
    coverage: Coverage = Field(description="Tokens that reached each expert of the first job's model; empty without.")
    model: str = Field(description="Of the first job.")
    model_type: str
    vocab_size: int
    size_bytes: int = Field(description="Of the file: NumPy's .npy, int32, samples × sequence_length.")
    file_sha256: Sha256
    job_id: UUID = Field(description="The first job that drew them.")
    created_at: datetime

    @property
    def uri(self) -> str:
        return f"{CALIBRATION_SCHEME}{self.id}"


def coverage(layers: Iterable[LayerReport]) -> Coverage:
    """Of a report's layers. An expert's linears are called `…experts.7.down_proj`; the least of them counts."""
    reached: dict[str, dict[int, int]] = {}
    for layer in layers:
        experts, _, number = layer.name.rpartition(".")[0].rpartition(".")
        if layer.tokens is not None and number.isdecimal():
            block = reached.setdefault(experts, {})
            block[int(number)] = min(layer.tokens, block.get(int(number), layer.tokens))
    return {experts: tuple(block[number] for number in sorted(block)) for experts, block in reached.items()}
