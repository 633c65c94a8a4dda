"""The `pare` command. Results go to standard output, progress and complaints to standard error.

Exit codes are in `ExitCode`. No failure shows a traceback: what has a name prints its sentence, anything else prints
one sentence and, with PARE_DEBUG=1, the traceback.
"""

import errno
import os
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from paredown.client.commands import access, aliases, calibrations, catalogue, jobs, prices, searches, sweeps
from paredown.client.commands.options import BudgetPreset, MaxPerplexityIncrease, MaxSizeRatio, RecipePath, load_recipe
from paredown.client.errors import UNREACHABLE, CommandFailed, ExitCode, PareApiError
from paredown.client.output import JsonOption, emit_json, say
from paredown.client.recipe_files import BadRecipeFile


class PareGroup(TyperGroup):
    """Ends every failure of every command in one place."""

    def invoke(self, ctx: typer.Context) -> Any:  # type: ignore[override] # typer's vendored Context has no public name
        try:
            return super().invoke(ctx)
        except (typer.Exit, typer.Abort, typer.TyperException):
            raise
        except KeyboardInterrupt:
            say("Interrupted.")
            raise typer.Exit(ExitCode.INTERRUPTED) from None
        except PareApiError as error:
            unreachable = error.code in (UNREACHABLE, "no_credentials")
            details = {"status": error.status or None, "field": error.field, "request_id": error.request_id}
            code = ExitCode.UNREACHABLE if unreachable else ExitCode.PROBLEM
            _complain(ctx, error.code, error.detail, code, **details)
        except CommandFailed as error:
            _complain(ctx, error.code, error.detail, error.exit_code, field=error.field)
        except BadRecipeFile as error:
            _complain(ctx, "recipe_file_invalid", str(error), ExitCode.USAGE)
        except OSError as error:
            if error.errno == errno.EPIPE:
                raise  # `pare jobs | head`: typer ends quietly
            _complain(ctx, "os_error", f"{error}.", ExitCode.PROBLEM)
        except Exception as error:
            if os.environ.get("PARE_DEBUG"):
                raise
            what = f"Something unforeseen went wrong ({type(error).__name__}: {error})."
            hint = "Run it again with PARE_DEBUG=1 to see where, and please report that."
            _complain(ctx, "internal_error", f"{what} {hint}", ExitCode.PROBLEM)


def _complain(context: typer.Context, code: str, detail: str, exit_code: int, **details: Any) -> None:
    if context.find_root().meta.get("pare.json"):
        known = {name: value for name, value in details.items() if value is not None}
        emit_json({"error": {"code": code, "detail": detail, **known}})
    field = f" (field {details['field']})" if details.get("field") else ""
    say(f"{detail}{field} [{code}]")
    raise typer.Exit(exit_code)


app = typer.Typer(
    cls=PareGroup,
    help="Pare: self-hosted compression-as-a-service for language models.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Exit codes: 0 succeeded, 1 failed or refused, 2 wrong usage, 3 missed its budget, 4 cancelled, "
    "5 no service, 130 interrupted.",
)
jobs.register(app)
sweeps.register(app)
searches.register(app)
catalogue.register(app)
aliases.register(app)
calibrations.register(app)
prices.register(app)
access.register(app)


def _need_local(*packages: str) -> None:
    """What runs on this machine needs more than the slim client brings."""
    missing = [name for name in ("sqlalchemy", "psycopg", "psutil", "torch", *packages) if find_spec(name) is None]
    if missing:
        raise CommandFailed(
            f"This command needs the whole of Pare on this machine ({', '.join(missing)} missing); "
            "install it with: pip install 'paredown[embedded]'",
            code="extra_missing",
            exit_code=ExitCode.USAGE,
        )


@app.command()
def up(json_output: JsonOption = False) -> None:
    """Start the embedded stack on this machine, or what of it is not running."""
    _need_local("uvicorn", "streamlit")
    from paredown.local.stack import Stack

    addresses = Stack.open().up(say)
    if json_output:
        emit_json(addresses.as_json())
    else:
        sys.stdout.write(addresses.as_text())


@app.command()
def down(json_output: JsonOption = False) -> None:
    """Stop what `pare up` started; running jobs are put back at their last block."""
    _need_local("uvicorn", "streamlit")
    from paredown.local.stack import Stack

    stopped = Stack.open().down(say)
    if json_output:
        emit_json({"stopped": stopped})
    elif not stopped:
        say("Nothing was running.")


@app.command()
def status(json_output: JsonOption = False) -> None:
    """Show the embedded stack's parts; exit code 5 when not all of them run."""
    _need_local("uvicorn", "streamlit")
    from paredown.local.stack import Stack

    view = Stack.open().status()
    if json_output:
        emit_json(view.as_json())
    else:
        sys.stdout.write(view.as_text())
    if not view.healthy:
        raise typer.Exit(ExitCode.UNREACHABLE)


@app.command()
def demo(
    keep_up: Annotated[bool, typer.Option("--keep-up/--no-keep-up", help="Leave the stack running afterwards.")] = True,
    json_output: JsonOption = False,
) -> None:
    """Start the stack, compress the packaged model four ways and show what each cost and saved."""
    _need_local("uvicorn", "streamlit")
    from paredown.local.demo import run_demo

    run_demo(keep_up=keep_up, as_json=json_output)


@app.command()
def run(
    model: Annotated[str, typer.Argument(help="A URI, or a path on this machine.")],
    recipe: RecipePath,
    out_dir: Annotated[Path, typer.Argument(help="New or empty directory; rerun with the same one to resume.")],
    budget: BudgetPreset = None,
    max_size_ratio: MaxSizeRatio = None,
    max_perplexity_increase: MaxPerplexityIncrease = None,
    evaluate: Annotated[
        bool, typer.Option("--evaluation/--no-evaluation", help="Measure base and artifact afterwards.")
    ] = True,
    threads: Annotated[int | None, typer.Option(min=1, help="torch threads.")] = None,
    statistics: Annotated[
        Path | None,
        typer.Option(help="Directory where runs that calibrate with `statistics: dense` share what they gather."),
    ] = None,
    json_output: JsonOption = False,
) -> None:
    """Compress here and now, with no services: the same engine, report and artifact."""
    _need_local()
    from paredown.local.run import run_here

    file = load_recipe(recipe, budget, max_size_ratio, max_perplexity_increase)
    code = run_here(
        model, file, out_dir, evaluate=evaluate, threads=threads, statistics_dir=statistics, as_json=json_output
    )
    raise typer.Exit(code)


tasks = typer.Typer(help="Benchmarks in lm-eval's own format.", no_args_is_help=True, rich_markup_mode=None)
app.add_typer(tasks, name="tasks")


@tasks.command()
def export(
    directory: Annotated[Path, typer.Argument(help="New or empty directory, which keeps the rows as well.")],
    rows: Annotated[
        list[str], typer.Argument(metavar="TASK=ROWS...", help="Such as blimp=rows.jsonl: a path here, or a URI.")
    ],
    json_output: JsonOption = False,
) -> None:
    """Write tasks as files that `lm_eval --include_path DIRECTORY` runs, on the same rows as a job."""
    _need_local()
    from paredown.local.tasks import export_tasks

    names = export_tasks(directory, rows)
    if json_output:
        emit_json({"directory": str(directory), "tasks": names})
    else:
        sys.stdout.write(f"lm_eval --include_path {directory} --tasks {','.join(names)}\n")


def main() -> None:
    """Entry point of the `pare` script."""
    app(prog_name="pare")


if __name__ == "__main__":
    main()
