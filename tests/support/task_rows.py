"""Rows of every task, made up, in the form that its data set has on the hub."""

import json
from pathlib import Path
from typing import Any

from paredown.contracts.tasks import TaskName

_WORDS = ("stone", "river", "lamp", "engine", "garden", "letter", "winter", "copper")


def rows_of(task: TaskName, count: int = 6) -> list[dict[str, Any]]:
    return [_row(task, index) for index in range(count)]


def save_rows(path: Path, task: TaskName, count: int = 6) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows_of(task, count)))
    return path


def _row(task: TaskName, index: int) -> dict[str, Any]:
    one, two, three, four = (_WORDS[(index * 3 + place) % len(_WORDS)] for place in range(4))
    question = f"Which of number {index} is not a {one}?"
    match task:
        case "lambada":
            return {"text": f"The {one} stood by the {two}, and number {index} was the {three}"}
        case "blimp":
            good, bad = f"The {one}s stand by the {two}.", f"The {one}s stands by the {two}."
            return {"sentence_good": good, "sentence_bad": bad, "UID": ("agreement", "islands")[index % 3 == 0]}
        case "hellaswag":
            endings = [f"takes the {word} [substeps] away." for word in (one, two, three, four)]
            return {
                "activity_label": "Moving",
                "ctx_a": f"Someone sees a {one}.",
                "ctx_b": "she",
                "endings": endings,
                "label": str(index % 4),
            }
        case "arc_easy" | "arc_challenge":
            choices = {"text": [one, two, three, four], "label": ["A", "B", "C", "D"]}
            return {"id": str(index), "question": question, "choices": choices, "answerKey": "ABCD"[index % 4]}
        case "piqa":
            return {"goal": f"Lift a {one}", "sol1": f"Use a {two}.", "sol2": f"Use a {three}.", "label": index % 2}
        case "winogrande":
            return {
                "sentence": f"The {one} did not fit the {two} because the _ was small.",
                "option1": one,
                "option2": two,
                "answer": str(index % 2 + 1),
            }
        case "mmlu":
            subject = ("high_school_physics", "anatomy")[index % 2]
            return {
                "subject": subject,
                "question": question,
                "choices": [one, two, three, four],
                "answer": index % 4,
            }
        case "gsm8k":
            return {
                "question": f"A {one} costs {index}. What do two?",
                "answer": f"{index} + {index}\n#### {2 * index}",
            }
        case "truthfulqa_mc1":
            return {"question": question, "mc1_targets": {"choices": [one, two, three], "labels": [1, 0, 0]}}
        case "truthfulqa_mc2":
            return {"question": question, "mc2_targets": {"choices": [one, two, three], "labels": [1, 1, 0]}}
        case "crows_pairs":
            return {
                "sent_more": f"The poor lost the {one} again.",
                "sent_less": f"The rich lost the {one} again.",
                "stereo_antistereo": "stereo",
                "bias_type": ("age", "religion")[index % 2],
            }
