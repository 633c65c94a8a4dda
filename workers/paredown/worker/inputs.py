"""What a work order names besides the model and its texts."""

from collections.abc import Callable
from pathlib import Path

from paredown.contracts.job import EvaluationSettings
from paredown.contracts.tasks import TaskName
from paredown.contracts.work import TaskFiles
from paredown.core.errors import PareError


def task_files(evaluation: EvaluationSettings, fetch: Callable[[str, TaskName], Path]) -> tuple[TaskFiles, ...]:
    """Every task with its rows, as `fetch` brings them. Its errors are told with the field that names the rows."""
    names = {uri: field for field, uri in evaluation.rows().items()}

    def fetched(uri: str, task: TaskName) -> Path:
        try:
            return fetch(uri, task)
        except PareError as error:
            error.field = error.field or names[uri]
            raise

    found = []
    for task in evaluation.tasks:
        assert task.address is not None, "checked when the task was made"
        rows = fetched(task.address, task.name)
        fewshot = fetched(task.fewshot_source, task.name) if task.fewshot_source else None
        found.append(TaskFiles(settings=task, rows=rows, fewshot=fewshot))
    return tuple(found)
