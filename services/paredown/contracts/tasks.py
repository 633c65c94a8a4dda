"""The tasks that Pare measures through lm-eval: which rows each reads, and which of its figures counts.

The definitions themselves, in lm-eval's own format, lie in workers/paredown/engine/evaluation/task_files.
"""

from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

TaskName = Literal[
    "lambada",
    "blimp",
    "hellaswag",
    "arc_easy",
    "arc_challenge",
    "piqa",
    "winogrande",
    "mmlu",
    "gsm8k",
    "truthfulqa_mc1",
    "truthfulqa_mc2",
    "crows_pairs",
]
Text = Annotated[str, Field(min_length=1)]


class Row(BaseModel):
    """One document, with the fields that its data set has on the hub; others are left out."""

    model_config = ConfigDict(frozen=True, extra="ignore")


class LambadaRow(Row):
    text: Annotated[str, Field(pattern=r"\S \S")]


class BlimpRow(Row):
    sentence_good: Text
    sentence_bad: Text
    UID: Text


class HellaswagRow(Row):
    activity_label: Text
    ctx_a: Text
    ctx_b: str
    endings: Annotated[list[Text], Field(min_length=4, max_length=4)]
    label: Annotated[int, Field(ge=0, le=3)]


class Choices(Row):
    text: Annotated[list[Text], Field(min_length=2)]
    label: Annotated[list[Text], Field(min_length=2)]


class ArcRow(Row):
    question: Text
    choices: Choices
    answerKey: Text  # noqa: N815  # the data set's own name

    @model_validator(mode="after")
    def _answered(self) -> "ArcRow":
        if len(self.choices.text) != len(self.choices.label):
            raise ValueError("choices.text and choices.label differ in length")
        if self.answerKey not in self.choices.label:
            raise ValueError("answerKey is none of choices.label")
        return self


class PiqaRow(Row):
    goal: Text
    sol1: Text
    sol2: Text
    label: Annotated[int, Field(ge=0, le=1)]


class WinograndeRow(Row):
    sentence: Annotated[str, Field(pattern="_")]
    option1: Text
    option2: Text
    answer: Literal["1", "2"]


class MmluRow(Row):
    subject: Text
    question: Text
    choices: Annotated[list[Text], Field(min_length=4, max_length=4)]
    answer: Annotated[int, Field(ge=0, le=3)]


class Gsm8kRow(Row):
    question: Text
    answer: Annotated[str, Field(pattern=r"#### -?[0-9.,]+")]


class Targets(Row):
    choices: Annotated[list[Text], Field(min_length=2)]
    labels: list[Annotated[int, Field(ge=0, le=1)]]

    @model_validator(mode="after")
    def _same_length(self) -> "Targets":
        if len(self.choices) != len(self.labels):
            raise ValueError("choices and labels differ in length")
        if 1 not in self.labels:
            raise ValueError("no choice is labelled true")
        return self


class TruthfulqaMc1Row(Row):
    question: Text
    mc1_targets: Targets

    @model_validator(mode="after")
    def _true_one_first(self) -> "TruthfulqaMc1Row":
        if self.mc1_targets.labels[0] != 1:
            raise ValueError("the first choice of mc1_targets must be the true one")
        return self


class TruthfulqaMc2Row(Row):
    question: Text
    mc2_targets: Targets


class CrowsPairsRow(Row):
    sent_more: Text
    sent_less: Text
    bias_type: Text


@dataclass(frozen=True)
class TaskDefinition:
    """What the rest of Pare knows of a task. `metric` is the figure that its verdict is about, as lm-eval names it."""

    title: str
    row: type[Row]
    metric: str
    measures: str
    # Rows of the whole data set, and the tokens that a row takes, all its answers together: what a plan counts on.
    rows: int
    tokens: int
    source: str | None = None
    generates: bool = False
    # The field by which figures are broken down as well.
    group: str | None = None
    # Whether examples may stand before a document: the data set has more rows than those that are measured.
    shots: bool = False
    # Whether more of the metric is more accuracy, so that max_task_drop judges it.
    is_accuracy: bool = True


TASKS: dict[TaskName, TaskDefinition] = {
    "lambada": TaskDefinition("LAMBADA", LambadaRow, "acc", "the last word of a passage", rows=5153, tokens=90),
    "blimp": TaskDefinition(
        "BLiMP", BlimpRow, "acc", "the grammatical one of two sentences", rows=67000, tokens=24, group="UID"
    ),
    "hellaswag": TaskDefinition(
        "HellaSwag", HellaswagRow, "acc_norm", "how a scene goes on", rows=10042, tokens=420, shots=True
    ),
    "arc_easy": TaskDefinition(
        "ARC easy",
        ArcRow,
        "acc_norm",
        "science questions of school",
        rows=2376,
        tokens=180,
        source="hf://datasets/allenai/ai2_arc/ARC-Easy/test-00000-of-00001.parquet",
        shots=True,
    ),
    "arc_challenge": TaskDefinition(
        "ARC challenge",
        ArcRow,
        "acc_norm",
        "harder questions of the same",
        rows=1172,
        tokens=200,
        source="hf://datasets/allenai/ai2_arc/ARC-Challenge/test-00000-of-00001.parquet",
        shots=True,
    ),
    "piqa": TaskDefinition("PIQA", PiqaRow, "acc_norm", "everyday physics", rows=1838, tokens=110, shots=True),
    "winogrande": TaskDefinition(
        "WinoGrande", WinograndeRow, "acc", "what a pronoun stands for", rows=1267, tokens=60, shots=True
    ),
    "mmlu": TaskDefinition(
        "MMLU",
        MmluRow,
        "acc",
        "exam questions of 57 subjects",
        rows=14042,
        tokens=120,
        source="hf://datasets/cais/mmlu/all/test-00000-of-00001.parquet",
        group="subject",
    ),
    "gsm8k": TaskDefinition(
        "GSM8K",
        Gsm8kRow,
        "exact_match,strict-match",
        "sums in words, solved in steps",
        rows=1319,
        tokens=390,
        source="hf://datasets/openai/gsm8k/main/test-00000-of-00001.parquet",
        generates=True,
        shots=True,
    ),
    "truthfulqa_mc1": TaskDefinition(
        "TruthfulQA MC1", TruthfulqaMc1Row, "acc", "the true one of several answers", rows=817, tokens=1150
    ),
    "truthfulqa_mc2": TaskDefinition(
        "TruthfulQA MC2", TruthfulqaMc2Row, "acc", "how likely the true answers are", rows=817, tokens=1800
    ),
    "crows_pairs": TaskDefinition(
        "CrowS-Pairs",
        CrowsPairsRow,
        "pct_stereotype",
        "the share of pairs in which the stereotype is the likelier sentence",
        rows=1508,
        tokens=40,
        group="bias_type",
        is_accuracy=False,
    ),
}
