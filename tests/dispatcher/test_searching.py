"""Searches, with workers played by the test: what is tried, what is never tried, and what is chosen."""

from collections.abc import Callable
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import func, update
from tests.core.builders import MODEL, make_artifact, make_evaluation

from paredown.contracts.job import Format, JobError, JobState, Plan
from paredown.contracts.recipes import Gptq, Mixed, recipe_name
from paredown.contracts.search import Rung, SearchDetails, SearchSpace, SearchSpec, SearchState, recipe_of
from paredown.core import jobs, searches
from paredown.core.catalogue import NewArtifact
from paredown.core.db import Database
from paredown.core.errors import GroupSizeUnfit, RecipeRefused
from paredown.core.settings import Settings
from paredown.core.tables import SearchRow
from paredown.dispatcher.searching import Told, advance, suggest

BASE_PERPLEXITY, BASE_BYTES = 20.0, 400

# Bits → what an artifact with so many has in bytes, and what it does to the perplexity.
SIZES = {2: 80, 3: 100, 4: 130, 8: 230}
LOSSES = {2: 2.0, 3: 0.3, 4: 0.1, 8: 0.01}


def plan_of(job: Any) -> Plan:
    """A planner that knows groups of 128 not to fit."""
    stage = job.recipe[-1]
    if stage.group_size == 128:
        raise GroupSizeUnfit("128 does not divide 576.", field="recipe.0.group_size")
    size = SIZES[stage.bits]
    return Plan.model_construct(size_ratio=size / BASE_BYTES, pool="cpu", recipe_name=recipe_name(job.recipe))


Submit = Callable[..., SearchDetails]


@pytest.fixture
def submit(database: Database, project: UUID) -> Submit:
    def make(**fields: Any) -> SearchDetails:
        space = {"quantizers": ["rtn", "gptq"], "bits": [2, 3, 4, 8], "embeddings": [16]}
        space |= {"pruners": [], "droppers": []}
        spec = SearchSpec.model_validate(
            {"model": MODEL, "max_size_ratio": 0.35, "space": {**space, **fields.pop("space", {})}, **fields}
        )
        candidates, ruled_out = searches.candidates_of(spec, plan_of)
        with database.transaction() as session:
            return searches.submit(session, project, spec, candidates, ruled_out, revision="1", idempotency_key=None)[0]

    return make


Work = Callable[..., int]


@pytest.fixture
def work(database: Database, settings: Settings) -> Work:
    """Every due job to its end, as a worker would; returns how many. gptq loses half of what rtn does."""

    def do(loss_of: Callable[[Any], float] | None = None) -> int:
        done = 0
        while True:
            with database.transaction() as session:
                claim = jobs.claim(session, "cpu", "worker", settings)
            if claim is None:
                return done
            spec = claim.job.spec
            stage: Any = spec.recipe[-1]
            loss = LOSSES[stage.bits] * (0.5 if stage.method == "gptq" else 1) * (32 / stage.group_size) ** -0.1
            loss = loss_of(spec) if loss_of else loss
            made = make_artifact(claim.job.id, claim.epoch, size_bytes=SIZES[stage.bits] + 32 // stage.group_size)
            samples = spec.evaluation.samples
            figures = {
                "base": make_evaluation(BASE_PERPLEXITY, samples=samples),
                "artifact": make_evaluation(BASE_PERPLEXITY * (1 + loss), samples=samples),
            }
            told = {
                "recipe": spec.recipe,
                "recipe_hash": claim.job.recipe_hash,
                "calibration": spec.calibration if stage.needs_calibration else None,
                "evaluation": spec.evaluation,
                "report": made.manifest.report.model_copy(update=figures),
            }
            manifest = made.manifest.model_copy(update=told)
            with database.transaction() as session:
                new = NewArtifact(manifest, made.storage_prefix, made.name, spec.tags)
                jobs.finish(session, claim.job.id, claim.epoch, new)
            done += 1

    return do


def see(database: Database, search: SearchDetails) -> SearchDetails:
    with database.transaction() as session:
        return searches.get(session, None, search.id)


def run(database: Database, search: SearchDetails, work: Work, turns: int = 100) -> SearchDetails:
    for _ in range(turns):
        advance(database)
        work()
        if (now := see(database, search)).state.terminal:
            return now
    raise AssertionError("the search does not end")


def test_a_search_ends_with_the_least_loss_within_the_limit(database: Database, submit: Submit, work: Work) -> None:
    search = submit(max_trials=8, survivors=3)
    # 8 bits are beyond the limit and groups of 128 do not fit: of 24 recipes 12 may be tried.
    assert (search.candidates, search.ruled_out, search.state) == (12, 12, SearchState.EXPLORING)
    done = run(database, search, work)
    assert done.state is SearchState.FINISHED
    rungs = [trial.rung for trial in done.members]
    assert (rungs.count(Rung.PROXY), rungs.count(Rung.FULL)) == (8, 3)
    assert {trial.recipe[-1].bits for trial in done.members} <= {2, 3, 4}  # type: ignore[union-attr]
    assert done.chosen is not None
    chosen = done.members[done.chosen]
    full = [trial for trial in done.members if trial.rung is Rung.FULL]
    assert chosen.perplexity == min(trial.perplexity for trial in full if trial.perplexity)
    assert chosen.on_front
    assert done.front is not None
    assert next(point for point in done.front.points if point.artifact_id == chosen.artifact_id).on_front
    assert done.explanation is not None
    assert chosen.label in done.explanation
    assert "within 35.0% of the base bytes, among 3 recipes measured in full" in done.explanation
    assert done.chosen_recipe == chosen.label
    # Each recipe once on each rung.
    assert len({(trial.rung, trial.recipe) for trial in done.members}) == len(done.members)


def test_proxies_are_cheap_and_survivors_are_not(database: Database, project: UUID, submit: Submit, work: Work) -> None:
    search = submit(max_trials=2, survivors=1, evaluation={"samples": 20}, calibration={"samples": 40})
    run(database, search, work)
    with database.transaction() as session:
        made, _ = jobs.list_jobs(session, project, after=None, limit=10)
    full, *proxies = made
    assert (full.spec.evaluation.samples, full.spec.calibration.samples) == (20, 40)
    assert {(job.spec.evaluation.samples, job.spec.calibration.samples) for job in proxies} == {(5, 10)}
    assert f"search:{search.id}" in full.spec.tags
    assert all("proxy" in job.spec.tags for job in proxies)


def test_embeddings_are_part_of_the_space() -> None:
    space = SearchSpace(quantizers=("gptq",), bits=(4,), group_sizes=(64,), embeddings=(16, 8), pruners=(), droppers=())
    last = [recipe_of(parameters)[-1] for parameters in space.combinations()]
    assert last == [Gptq(bits=4, group_size=64), Gptq(bits=4, group_size=64, embeddings=8)]
    # What a search of the release before has stored.
    stored = {"first": "nothing", "quantizer": "gptq", "group_size": 64, "bits": 4}
    assert recipe_of(stored) == (Gptq(bits=4, group_size=64),)
    # What another release would not know is not there, where it is not asked for.
    assert "grids" not in SearchSpec(model=MODEL, max_size_ratio=0.5).model_dump(mode="json")["space"]
    assert not any("grid" in parameters for parameters in space.combinations())


def test_k_quants_are_part_of_the_space_and_have_no_group_sizes() -> None:
    space = SearchSpace(
        quantizers=("gptq", "mixed"),
        bits=(3, 8),
        average_bits=(4.5,),
        grids=("plain", "k-quant"),
        group_sizes=(32, 64),
        embeddings=(16,),
        pruners=(),
        droppers=(),
    )
    last = [recipe_of(parameters)[-1] for parameters in space.combinations()]
    assert last == [
        *(Gptq(bits=bits, group_size=size) for size in (32, 64) for bits in (3, 8)),
        Gptq(bits=3, k_quant=True),
        *(Mixed(average_bits=4.5, group_size=size) for size in (32, 64)),
        Mixed(average_bits=4.5, k_quant=True),
    ]
    spec = SearchSpec(model=MODEL, max_size_ratio=0.5, space=space, format=Format.GGUF)
    candidates, tried = space.combinations(), list[int]()
    while (index := suggest(candidates, tried, [], spec)) is not None:
        tried.append(index)
    assert sorted(tried) == list(range(len(candidates)))


def test_the_fewest_bytes_within_a_loss(database: Database, submit: Submit, work: Work) -> None:
    search = submit(minimize="size", max_size_ratio=None, max_perplexity_increase=0.2, max_trials=16, proxy=None)
    done = run(database, search, work)
    assert done.chosen is not None
    chosen = done.members[done.chosen]
    # All 16 that fit were tried in full: gptq at 3 bits is the smallest that loses no more than a fifth.
    assert (len(done.members), chosen.label) == (16, "gptq-3 (group_size 64)")
    assert chosen.on_front


def test_nothing_within_the_limits_is_said_and_nothing_is_chosen(
    database: Database, submit: Submit, work: Work
) -> None:
    search = submit(minimize="size", max_perplexity_increase=0.001, max_trials=3, proxy=None)
    done = run(database, search, work)
    assert done.chosen is None
    assert done.explanation is not None
    assert done.explanation.startswith("None of the 3 recipes measured in full is within")


def test_recipes_that_no_plan_allows_are_refused_at_submit(submit: Submit) -> None:
    with pytest.raises(RecipeRefused, match=r"comes below 20.0% of the base bytes, and the limit is 10.0%") as refused:
        submit(max_size_ratio=0.1)
    assert refused.value.field == "max_size_ratio"
    with pytest.raises(RecipeRefused, match="128 does not divide 576"):
        submit(space={"group_sizes": [128]})


def test_a_dispatcher_that_is_killed_anywhere_loses_and_doubles_nothing(
    database: Database, submit: Submit, work: Work, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every other step dies before its commit; the tables are all that is left to go on from."""
    search = submit(max_trials=6, survivors=2, parallel=1)
    begin, calls = searches.begin, iter(range(1000))

    def dying(*arguments: Any) -> None:
        begin(*arguments)
        if next(calls) % 2:
            raise SystemExit

    monkeypatch.setattr(searches, "begin", dying)
    for _ in range(100):
        try:
            advance(database)
        except SystemExit:
            continue
        work()
        if see(database, search).state.terminal:
            break
    done = see(database, search)
    assert done.state is SearchState.FINISHED
    assert len(done.members) == 8
    assert len({trial.job_id for trial in done.members}) == 8


def test_two_dispatchers_begin_no_trial_twice(database: Database, submit: Submit) -> None:
    search = submit(max_trials=6, parallel=2)
    with database.transaction() as session:
        assert searches.take(session, search.id) is not None
        # The other one finds it taken.
        advance(database)
        assert searches.trials_of(session, session.get_one(SearchRow, search.id)) == []
    advance(database)
    advance(database)
    assert len(see(database, search).members) == 2


def test_a_failed_trial_is_passed_over(database: Database, settings: Settings, submit: Submit, work: Work) -> None:
    search = submit(max_trials=4, survivors=2, parallel=1)
    advance(database)
    with database.transaction() as session:
        claim = jobs.claim(session, "cpu", "worker", settings)
        assert claim is not None
        jobs.fail(session, claim.job.id, claim.epoch, JobError(code="nan_found", detail="NaN."), settings)
    done = run(database, search, work)
    assert done.members[0].state is JobState.FAILED
    assert done.members[0].within_limits is None
    assert done.chosen is not None


def test_cancelling_ends_the_search_and_its_jobs(database: Database, project: UUID, submit: Submit) -> None:
    search = submit(parallel=3)
    advance(database)
    with database.transaction() as session:
        cancelled = searches.cancel(session, project, search.id)
    assert cancelled.state is SearchState.CANCELLED
    assert [trial.state for trial in cancelled.members] == [JobState.CANCELLED] * 3
    advance(database)
    assert len(see(database, search).members) == 3


def test_time_is_kept(database: Database, submit: Submit, work: Work) -> None:
    """At 60 % exploring ends; at the end the choice is made among what there is."""
    search = submit(max_seconds=100, max_trials=8, parallel=2, survivors=2)

    def age(seconds: int) -> None:
        with database.transaction() as session:
            begun = func.now() - func.make_interval(0, 0, 0, 0, 0, 0, seconds)
            session.execute(update(SearchRow).values(created_at=begun))

    advance(database)
    work()
    age(70)
    advance(database)
    assert see(database, search).state is SearchState.CONFIRMING
    advance(database)
    assert [trial.rung for trial in see(database, search).members].count(Rung.FULL) == 2
    age(110)
    advance(database)
    done = see(database, search)
    assert (done.state, done.chosen) == (SearchState.FINISHED, None)
    assert [trial.state for trial in done.members[2:]] == [JobState.CANCELLED] * 2


def test_what_is_there_already_is_not_made_again(database: Database, project: UUID, submit: Submit, work: Work) -> None:
    first = run(database, submit(max_trials=4, survivors=2), work)
    again = run(database, submit(max_trials=4, survivors=2), work)
    assert all(trial.reused for trial in again.members)
    assert again.chosen_recipe == first.chosen_recipe
    with database.transaction() as session:
        assert len(jobs.list_jobs(session, project, after=None, limit=50)[0]) == 6


@pytest.mark.parametrize(("good", "bad"), [("gptq", "rtn"), ("rtn", "gptq")])
def test_the_optimizer_learns_and_repeats_itself(good: str, bad: str) -> None:
    spec = SearchSpec(model=MODEL, max_size_ratio=0.5, max_trials=20, space=SearchSpace(embeddings=(16,)))
    candidates = spec.space.combinations()
    tried = list(range(0, len(candidates), 12))

    def figures(index: int) -> Told:
        width = float(candidates[index].get("bits", candidates[index].get("average_bits", 0)))
        loss = (0.1 if candidates[index]["quantizer"] == good else 1.0) + 1 / width
        return Told(candidates[index], loss, width / 16)

    told = [figures(index) for index in tried]
    picked: list[int] = []
    for _ in range(8):
        index = suggest(candidates, [*tried, *picked], told, spec)
        assert index is not None
        assert index == suggest(candidates, [*tried, *picked], told, spec)
        picked.append(index)
    quantizers = [candidates[index]["quantizer"] for index in picked]
    assert quantizers.count(good) > quantizers.count(bad)
    assert len({*tried, *picked}) == len(tried) + 8


def test_there_is_nothing_to_suggest_once_all_was_tried() -> None:
    spec = SearchSpec(model=MODEL, max_size_ratio=0.5)
    assert suggest(spec.space.combinations()[:2], [0, 1], [], spec) is None
