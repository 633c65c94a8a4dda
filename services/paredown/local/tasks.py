"""`pare tasks export`: the bundled tasks with their rows, for lm-eval itself to run."""

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import get_args

from pydantic import TypeAdapter, ValidationError

from paredown.client.errors import CommandFailed, ExitCode
from paredown.contracts.job import TaskSettings
from paredown.contracts.tasks import TaskName
from paredown.contracts.work import TaskFiles
from paredown.core import sources
from paredown.core.errors import PareError
from paredown.core.storage import LocalStore
from paredown.engine.evaluation import task_files
from paredown.local.home import Home
from paredown.local.run import no_datasets, own_settings

_NAME: TypeAdapter[TaskName] = TypeAdapter(TaskName)


def export_tasks(directory: Path, given: Sequence[str]) -> list[str]:
    """Each of `given` is TASK=ROWS, ROWS a path or a URI. The names to give to lm-eval. Raises CommandFailed."""
    wanted = dict(_parsed(text) for text in given)
    if directory.exists() and any(directory.iterdir()):
        raise CommandFailed(
            f"{directory} is not empty; choose another directory.", code="target_differs", exit_code=ExitCode.USAGE
        )
    home = Home.open()
    settings = own_settings(home)
    rows = directory.absolute() / "rows"
    rows.mkdir(parents=True)
    found = []
    for name, uri in wanted.items():
        try:
            fetched = sources.fetch_rows(
                uri, settings, task=name, store=LocalStore(home.store), resolve_dataset=no_datasets
            )
        except PareError as error:
            told = error.as_job_error()
            raise CommandFailed(told.detail, code=told.code, field=told.field) from error
        # Not a link into the cache, which forgets what is not used.
        copied = shutil.copyfile(fetched, rows / f"{name}.jsonl")
        found.append(TaskFiles(settings=TaskSettings(name=name, source=uri), rows=copied))
    return task_files.write(directory, found)


def _parsed(text: str) -> tuple[TaskName, str]:
    name, _, rows = text.partition("=")
    try:
        task = _NAME.validate_python(name)
    except ValidationError:
        raise CommandFailed(
            f"{text!r} does not say TASK=ROWS with one of {', '.join(get_args(TaskName))}.",
            code="task_unknown",
            exit_code=ExitCode.USAGE,
        ) from None
    if not rows:
        raise CommandFailed(f"{text!r} names no rows.", code="task_unknown", exit_code=ExitCode.USAGE)
    return task, rows if "://" in rows else Path(rows).expanduser().absolute().as_uri()
