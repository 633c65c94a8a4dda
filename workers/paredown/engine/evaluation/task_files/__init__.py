"""Tasks in lm-eval's own format, as close to its definitions as local files allow, and a directory of them to run.

A definition here names no data. `write` adds the paths of the rows, so that what the engine runs and what a user runs
with `lm_eval --include_path` is the same file.
"""

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml

from paredown.contracts.tasks import TaskName
from paredown.contracts.work import TaskFiles

_HERE = Path(__file__).parent


@dataclass(frozen=True)
class Metric:
    """How the values of a task's rows become one figure."""

    aggregation: Literal["mean", "perplexity"]
    higher_is_better: bool


def definition(task: TaskName) -> str:
    """A task's YAML, without its data."""
    return (_HERE / f"{task}.yaml").read_text(encoding="utf-8")


def definition_sha256(task: TaskName) -> str:
    return hashlib.sha256(definition(task).encode()).hexdigest()


def metrics(task: TaskName) -> dict[str, Metric]:
    """By the names that the definition gives them."""
    listed = yaml.load(definition(task), _Definition)["metric_list"]  # noqa: S506  # a safe loader that knows !function
    return {entry["metric"]: Metric(entry["aggregation"], entry["higher_is_better"]) for entry in listed}


def write(directory: Path, tasks: Iterable[TaskFiles], cache_dir: Path | None = None) -> list[str]:
    """One file for each task, with the paths of its rows. The names to give to lm-eval.

    `cache_dir` is where lm-eval's data library keeps what it reads; None leaves its own.
    """
    names = []
    for task in tasks:
        files = {"test": str(task.rows)}
        more = [f"num_fewshot: {task.settings.num_fewshot}"]
        if task.fewshot is not None:
            files["train"] = str(task.fewshot)
            more.append("fewshot_split: train")
        arguments: dict[str, Any] = {"data_files": files}
        if cache_dir is not None:
            arguments["cache_dir"] = str(cache_dir)
        # JSON is YAML: paths need no quoting of their own.
        more.append(f"dataset_kwargs: {json.dumps(arguments)}")
        text = "\n".join([definition(task.settings.name).rstrip("\n"), *more, ""])
        name = lm_eval_name(task.settings.name)
        (directory / f"{name}.yaml").write_text(text, encoding="utf-8")
        names.append(name)
    return names


def lm_eval_name(task: TaskName) -> str:
    """Under a name of its own, beside the task of lm-eval that it follows."""
    return f"pare_{task}"


class _Definition(yaml.SafeLoader):
    """Reads `!function NAME` as the name: nothing is imported."""


def _function_name(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> str:
    return str(loader.construct_scalar(node))


_Definition.add_constructor("!function", _function_name)
