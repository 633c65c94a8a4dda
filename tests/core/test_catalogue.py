"""The catalogue: who sees what, what may be changed, and which artifacts nobody beats."""

from typing import Any
from uuid import UUID, uuid4

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy.orm import Session
from tests.core.builders import FINGERPRINT, MODEL, claim_job, finish_job, make_evaluation, submit_job

from paredown.contracts.artifact import ArtifactView, BaseModelRecord, CostAxis, FrontPoint
from paredown.contracts.job import Calibration, Format, JobState
from paredown.contracts.recipes import Gptq, Rtn, Wanda
from paredown.contracts.report import Check, Verdict
from paredown.core import access, catalogue, jobs
from paredown.core.db import Database
from paredown.core.errors import Forbidden, NotFound, PreconditionFailed, RequestInvalid, StateConflict
from paredown.core.front import mark_front
from paredown.core.settings import Settings
from paredown.core.tables import ArtifactRow


@pytest.fixture
def other(database: Database) -> UUID:
    with database.transaction() as session:
        return access.create_project(session, "other")


# Artifacts


def test_artifact_shows_its_figures(database: Database, project: UUID, settings: Settings) -> None:
    artifact_id = finish_job(database, project, settings, verdict=Verdict.PASSED, tags=("a", "b/c"), name="small")
    with database.transaction() as session:
        view = catalogue.get_artifact(session, project, artifact_id)
        manifest = catalogue.manifest(session, project, artifact_id)
        assert catalogue.storage_prefix(session, project, artifact_id) == f"artifacts/{view.job_id}/1"
    assert (view.project, view.name, view.tags, view.visibility) == ("default", "small", ("a", "b/c"), "project")
    assert (view.size_bytes, view.base_bytes, view.size_ratio) == (100, 400, 0.25)
    assert (view.perplexity, view.base_perplexity) == (24, 20)
    assert (view.decode_tokens_per_second, view.base_decode_tokens_per_second) == (40, 30)
    assert (view.cost_per_million_tokens, view.currency) == (27 / 40, "USD")
    assert (view.recipe, view.recipe_name, view.verdict) == (manifest.recipe, "rtn-4", Verdict.PASSED)
    assert manifest.artifact_id == artifact_id


def test_artifact_that_was_not_evaluated_has_no_figures(database: Database, project: UUID, settings: Settings) -> None:
    artifact_id = finish_job(database, project, settings, perplexity=None, decode=None)
    with database.transaction() as session:
        view = catalogue.get_artifact(session, project, artifact_id)
    assert (view.perplexity, view.base_perplexity, view.protocol_hash) == (None, None, None)
    assert (view.decode_tokens_per_second, view.cost_per_million_tokens, view.verdict) == (None, None, None)


def test_foreign_artifact_is_there_once_it_is_shown_to_everyone(
    database: Database, project: UUID, other: UUID, settings: Settings
) -> None:
    artifact_id = finish_job(database, project, settings)

    def reads(reader: UUID) -> None:
        with database.transaction() as session:
            catalogue.get_artifact(session, reader, artifact_id)
            catalogue.manifest(session, reader, artifact_id)
            catalogue.storage_prefix(session, reader, artifact_id)
            found, _ = catalogue.list_artifacts(session, reader, after=None, limit=10)
            assert [artifact.id for artifact in found] == [artifact_id]

    reads(project)
    with database.transaction() as session:
        for call in (catalogue.get_artifact, catalogue.manifest, catalogue.storage_prefix, catalogue.delete_artifact):
            with pytest.raises(NotFound):
                call(session, other, artifact_id)
        with pytest.raises(NotFound):
            catalogue.update_artifact(session, other, artifact_id, name="mine")
        assert catalogue.list_artifacts(session, other, after=None, limit=10) == ([], None)
    with database.transaction() as session:
        catalogue.update_artifact(session, project, artifact_id, visibility="everyone")
    reads(other)
    with database.transaction() as session:
        with pytest.raises(Forbidden):
            catalogue.update_artifact(session, other, artifact_id, name="mine")
        with pytest.raises(Forbidden):
            catalogue.delete_artifact(session, other, artifact_id)
        assert catalogue.get_artifact(session, other, artifact_id).project == "default"


def test_change_needs_the_etag_of_what_was_read(database: Database, project: UUID, settings: Settings) -> None:
    artifact_id = finish_job(database, project, settings)
    with database.transaction() as session:
        view = catalogue.get_artifact(session, project, artifact_id)
    tag = catalogue.etag(view)
    with database.transaction() as session:
        changed = catalogue.update_artifact(
            session, project, artifact_id, name="new", tags=["x", "y", "x"], if_match=f'"other", {tag}'
        )
    assert (changed.name, changed.tags, changed.visibility) == ("new", ("x", "y"), "project")
    assert catalogue.etag(changed) != tag
    with pytest.raises(PreconditionFailed), database.transaction() as session:
        catalogue.update_artifact(session, project, artifact_id, name="newer", if_match=tag)
    with database.transaction() as session:
        assert catalogue.update_artifact(session, project, artifact_id, tags=[], if_match="*").tags == ()
        assert catalogue.update_artifact(session, project, artifact_id).name == "new"


@pytest.mark.parametrize("change", [{"name": "\0"}, {"tags": ["\0"]}])
def test_nul_in_a_change_is_the_users_problem(
    database: Database, project: UUID, settings: Settings, change: dict[str, Any]
) -> None:
    artifact_id = finish_job(database, project, settings)
    with pytest.raises(RequestInvalid), database.transaction() as session:
        catalogue.update_artifact(session, project, artifact_id, **change)


def test_search_and_filters(database: Database, project: UUID, settings: Settings) -> None:
    small = finish_job(database, project, settings, name="Small 100%", tags=("prod",), verdict=Verdict.PASSED)
    large = finish_job(database, project, settings, name="large", model="hf://a/b@1", fingerprint="1" * 64)

    def found(**filters: Any) -> set[UUID]:
        with database.transaction() as session:
            items, _ = catalogue.list_artifacts(session, project, after=None, limit=10, **filters)
        return {item.id for item in items}

    assert found() == {small, large}
    assert found(search="sMALL") == {small}
    # A user's % and _ are letters, not wildcards.
    assert found(search="0%") == {small}
    assert found(search="_") == {small}
    assert found(search="%a%") == set()
    assert found(search="hf://") == {large}
    assert found(search="rtn-4") == {small, large}
    assert found(tag="prod") == {small}
    assert found(model=MODEL) == {small}
    assert found(model="1" * 64) == {large}
    assert found(method="rtn") == {small, large}
    assert found(method="gptq") == set()
    assert found(verdict=Verdict.PASSED) == {small}
    for name in ("search", "tag", "model", "method"):
        with pytest.raises(RequestInvalid):
            found(**{name: "\0"})


def test_artifact_pages(database: Database, project: UUID, settings: Settings) -> None:
    ids = [finish_job(database, project, settings) for _ in range(5)]
    seen: list[UUID] = []
    after = None
    with database.transaction() as session:
        for _ in range(3):
            items, after = catalogue.list_artifacts(session, project, after=after, limit=2)
            seen += [item.id for item in items]
        with pytest.raises(RequestInvalid):
            catalogue.list_artifacts(session, project, after="nonsense", limit=2)
    assert after is None
    assert seen == ids[::-1]


def test_deleted_artifact_is_gone_and_swept_once(database: Database, project: UUID, settings: Settings) -> None:
    artifact_id = finish_job(database, project, settings)
    with database.transaction() as session:
        prefix = catalogue.storage_prefix(session, project, artifact_id)
        job_id = catalogue.get_artifact(session, project, artifact_id).job_id
        assert catalogue.deleted_artifacts(session) == []
        catalogue.mark_swept(session, artifact_id)
        assert catalogue.known_prefix(session, prefix)
    with database.transaction() as session:
        catalogue.delete_artifact(session, project, artifact_id)
    with database.transaction() as session:
        with pytest.raises(NotFound):
            catalogue.get_artifact(session, project, artifact_id)
        with pytest.raises(NotFound):
            catalogue.delete_artifact(session, project, artifact_id)
        # The job stays, without a link that leads nowhere.
        assert jobs.get(session, project, job_id).artifact_id is None
        assert catalogue.deleted_artifacts(session) == [(artifact_id, prefix)]
        assert catalogue.known_prefix(session, prefix)
    with database.transaction() as session:
        catalogue.mark_swept(session, artifact_id)
        assert catalogue.deleted_artifacts(session) == []
        assert not catalogue.known_prefix(session, prefix)


def test_a_verdict_is_overridden_once_and_with_a_reason(
    database: Database, project: UUID, other: UUID, settings: Settings
) -> None:
    missed = finish_job(database, project, settings, verdict=Verdict.MISSED)
    passed = finish_job(database, project, settings, verdict=Verdict.PASSED)
    free = finish_job(database, project, settings)

    def override(artifact_id: UUID, project_id: UUID = project) -> ArtifactView:
        with database.transaction() as session:
            return catalogue.override_verdict(session, project_id, artifact_id, reason="good enough", key_name="ada")

    with database.transaction() as session:
        before = catalogue.get_artifact(session, project, missed)
    view = override(missed)
    assert view.verdict is Verdict.OVERRIDDEN
    assert view.override is not None
    assert (view.override.reason, view.override.key_name) == ("good enough", "ada")
    assert view.override.at >= view.created_at
    assert catalogue.etag(view) != catalogue.etag(before)
    with database.transaction() as session:
        assert jobs.get(session, project, view.job_id).state is JobState.REJECTED
        manifest = catalogue.manifest(session, project, missed)
        assert manifest.report.gate is not None
        assert manifest.report.gate.verdict is Verdict.MISSED, "the evidence stays as it was"
        assert [found.id for found in list_all(session, project, Verdict.OVERRIDDEN)] == [missed]
    for artifact_id, says in ((missed, "overridden"), (passed, "passed"), (free, "no budget")):
        with pytest.raises(StateConflict, match=says):
            override(artifact_id)
    with pytest.raises(NotFound):
        override(missed, other)
    with database.transaction() as session:
        catalogue.update_artifact(session, project, missed, visibility="everyone")
    with pytest.raises(Forbidden):
        override(missed, other)


def list_all(session: Session, project: UUID, verdict: Verdict) -> list[ArtifactView]:
    return catalogue.list_artifacts(session, project, verdict=verdict, after=None, limit=50)[0]


def test_only_prefixes_that_nobody_needs_are_unknown(database: Database, project: UUID, settings: Settings) -> None:
    job_id = submit_job(database, project)
    claim_job(database, settings)
    dataset_id = uuid4()
    with database.transaction() as session:
        key = f"datasets/{dataset_id}"
        assert not catalogue.known_prefix(session, key)
        catalogue.new_dataset(session, project, dataset_id, name="text", sha256="c" * 64, size_bytes=3, storage_key=key)
    with database.transaction() as session:
        assert catalogue.known_prefix(session, key)
        # While its worker uploads, and only that worker's claim.
        assert catalogue.known_prefix(session, f"artifacts/{job_id}/1/")
        assert not catalogue.known_prefix(session, f"artifacts/{job_id}/0")
        assert not catalogue.known_prefix(session, f"artifacts/{job_id}/2")
        assert catalogue.known_prefix(session, f"checkpoints/{job_id}")
        assert not catalogue.known_prefix(session, f"checkpoints/{uuid4()}")
        for strange in ("", "backup/2026", "artifacts", f"artifacts/{job_id}", "artifacts/x/1", "checkpoints/x"):
            assert catalogue.known_prefix(session, strange)
    with database.transaction() as session:
        jobs.release(session, job_id, 1)
        assert not catalogue.known_prefix(session, f"artifacts/{job_id}/1")
        assert catalogue.known_prefix(session, f"checkpoints/{job_id}")
        jobs.request_cancel(session, project, job_id)
        assert not catalogue.known_prefix(session, f"checkpoints/{job_id}")


# The front


def test_front_of_a_model(database: Database, project: UUID, other: UUID, settings: Settings) -> None:
    best = finish_job(database, project, settings, name="best", perplexity=21, size_bytes=120, decode=30)
    beaten = finish_job(database, project, settings, name="beaten", perplexity=22, size_bytes=130, decode=50)
    small = finish_job(database, project, settings, name="small", perplexity=30, size_bytes=80, decode=None)
    # None of these is a point: broken, of another model, measured otherwise, deleted, foreign.
    finish_job(database, project, settings, perplexity=float("inf"), size_bytes=1)
    finish_job(database, project, settings, perplexity=1, model="hf://a/b@1", fingerprint="1" * 64)
    finish_job(database, project, settings, perplexity=1, samples=2)
    finish_job(database, project, settings, perplexity=None)
    gone = finish_job(database, project, settings, perplexity=1)
    foreign = finish_job(database, other, settings, name="foreign", perplexity=25, size_bytes=90)
    with database.transaction() as session:
        catalogue.delete_artifact(session, project, gone)

    def ids(axis: CostAxis, *, on_front: bool = True, model: str = MODEL) -> list[UUID | None]:
        with database.transaction() as session:
            front = catalogue.front(session, project, model, None, axis)
        assert (front.model_fingerprint, front.cost_axis) == (FINGERPRINT, axis)
        return [point.artifact_id for point in front.points if point.on_front is on_front]

    assert ids("size_bytes") == [small, best, None]
    assert ids("size_bytes", on_front=False) == [beaten]
    assert ids("size_bytes", model=FINGERPRINT) == [small, best, None]
    # Faster is better. The base is as fast and as cheap as `best`, and better; what was not measured is on no front.
    assert ids("decode_tokens_per_second") == [beaten, None]
    assert ids("decode_tokens_per_second", on_front=False) == [best, small]
    assert ids("cost_per_million_tokens") == [beaten, None]

    # A prompt of 64 tokens at 100 tokens/s; the tests' runtimes hold 1 GB, the base's too.
    with database.transaction() as session:
        front = catalogue.front(session, project, MODEL, None, "time_to_first_token_seconds")
    assert {point.name: point.time_to_first_token_seconds for point in front.points} == {
        "best": 0.64,
        "beaten": 0.64,
        "small": None,
        "base": 0.64,
    }
    assert ids("peak_memory_bytes") == [None]

    with database.transaction() as session:
        catalogue.update_artifact(session, other, foreign, visibility="everyone")
    assert ids("size_bytes") == [small, foreign, best, None]
    with database.transaction() as session:
        hash_of_two = make_evaluation(1, samples=2).protocol_hash
        front = catalogue.front(session, project, MODEL, hash_of_two, "size_bytes")
        assert [(point.perplexity, point.name) for point in front.points] == [(1, "an artifact"), (20, "base")]
        for model, protocol in (("hf://none/such", None), (MODEL, "0" * 64)):
            with pytest.raises(NotFound):
                catalogue.front(session, project, model, protocol, "size_bytes")
        with pytest.raises(RequestInvalid):
            catalogue.front(session, project, "\0", None, "size_bytes")


GGUF: dict[str, Any] = {"output_format": Format.GGUF}
ASYMMETRY: dict[str, Any] = {"calibration": Calibration(asymmetry=0.5)}
SEED: dict[str, Any] = {"calibration": Calibration(seed=1)}


def quantized(**settings: Any) -> dict[str, Any]:
    return {"recipe": (Gptq(**settings),)}


@pytest.mark.parametrize(
    ("twins", "told_apart"),
    [
        (
            [{"recipe": (Rtn(group_size=size),)} for size in (32, 64)],
            ["twin (group_size 32)", "twin (group_size 64)"],
        ),
        ([{}, ASYMMETRY], ["twin (asymmetry 0.0)", "twin (asymmetry 0.5)"]),
        ([{}, GGUF], ["twin (format compressed-tensors)", "twin (format gguf)"]),
        ([{}, {}, GGUF, ASYMMETRY], ["twin [id]", "twin [id]", "twin (format gguf)", "twin (asymmetry 0.5)"]),
        (
            [
                quantized(),
                quantized(group_size=32),
                quantized(symmetric=False),
                quantized(activation_order=False),
                quantized(damping=0.02),
                quantized() | SEED,
                quantized() | ASYMMETRY,
                quantized() | GGUF,
            ],
            [
                "twin",
                "twin (group_size 32)",
                "twin (symmetric false)",
                "twin (activation_order false)",
                "twin (damping 0.02)",
                "twin (seed 1)",
                "twin (asymmetry 0.5)",
                "twin (format gguf)",
            ],
        ),
        (
            [{"recipe": (Wanda(sparsity=0.3),)}, {"recipe": (Wanda(sparsity=0.4),)}, {}, {"recipe": (Wanda(), Rtn())}],
            ["twin (wanda, sparsity 0.3)", "twin (wanda, sparsity 0.4)", "twin (rtn)", "twin (wanda + rtn)"],
        ),
        (
            [quantized(skip=("*.q_proj", "*.k_proj", "*.v_proj", "*.o_proj")), quantized()],
            ['twin (skip …j", "*.k_proj", "*.v_proj", "*.o_proj"])', "twin (skip [])"],
        ),
    ],
)
def test_points_of_one_name_say_what_tells_them_apart(
    database: Database, project: UUID, settings: Settings, twins: list[dict[str, Any]], told_apart: list[str]
) -> None:
    made = [finish_job(database, project, settings, name="twin", **changes) for changes in twins]
    other = finish_job(database, project, settings, name="another")
    with database.transaction() as session:
        points = catalogue.front(session, project, MODEL, None, "size_bytes").points
    names = {point.artifact_id: point.name for point in points}
    assert names[other] == "another"
    assert [names[each] for each in made] == [
        told.replace("id", str(each)[:8]) if told.endswith("]") else told
        for each, told in zip(made, told_apart, strict=True)
    ]
    assert len(set(names.values())) == len(names)


def test_a_recipe_that_this_release_does_not_know_is_a_point_all_the_same(
    database: Database, project: UUID, settings: Settings
) -> None:
    made = [finish_job(database, project, settings, name="twin") for _ in range(2)]
    with database.transaction() as session:
        row = session.get_one(ArtifactRow, made[0])
        row.manifest = {**row.manifest, "recipe": [{"method": "of-tomorrow", "bits": 1}], "calibration": None}
    with database.transaction() as session:
        points = catalogue.front(session, project, MODEL, None, "size_bytes").points
    assert {point.name for point in points} == {"twin (of-tomorrow)", "twin (rtn)", "base"}


def point(perplexity: float, cost: float | None) -> FrontPoint:
    return FrontPoint(
        artifact_id=None,
        name="x",
        methods=(),
        perplexity=perplexity,
        size_bytes=0,
        decode_tokens_per_second=cost,
        cost_per_million_tokens=cost,
        verdict=None,
        on_front=False,
    )


AXES: list[CostAxis] = ["cost_per_million_tokens", "decode_tokens_per_second"]


@given(st.lists(st.builds(point, st.integers(1, 6), st.none() | st.integers(1, 6)), max_size=12), st.sampled_from(AXES))
def test_front_is_what_no_other_beats(points: list[FrontPoint], axis: CostAxis) -> None:
    """Against the definition, pair by pair; few values, so that ties are common."""

    def cost(candidate: FrontPoint) -> float | None:
        value = getattr(candidate, axis)
        return None if value is None else -value if axis == "decode_tokens_per_second" else value

    def beats(one: FrontPoint, two: FrontPoint) -> bool:
        a, b = cost(one), cost(two)
        if a is None or b is None:
            return False
        no_worse = a <= b and one.perplexity <= two.perplexity
        return no_worse and (a < b or one.perplexity < two.perplexity)

    marked = mark_front(points, axis)
    assert len(marked) == len(points)
    for candidate in marked:
        unbeaten = cost(candidate) is not None and not any(beats(rival, candidate) for rival in points)
        assert candidate.on_front is unbeaten


def test_fronts_are_of_each_model_and_protocol(
    database: Database, project: UUID, other: UUID, settings: Settings
) -> None:
    def found() -> list[tuple[str, int, int]]:
        with database.transaction() as session:
            entries = catalogue.fronts(session, project)
        return [(entry.model, entry.protocol.samples, entry.artifacts) for entry in entries]

    assert found() == []
    for _ in range(2):
        finish_job(database, project, settings)
    finish_job(database, project, settings, perplexity=None)
    finish_job(database, other, settings, model="hf://foreign/model@1", fingerprint="2" * 64)
    finish_job(database, project, settings, samples=2)
    finish_job(database, project, settings, model="hf://a/b@1", fingerprint="1" * 64)
    assert found() == [("hf://a/b@1", 20, 1), (MODEL, 2, 1), (MODEL, 20, 2)]


def test_front_tells_the_newest_budget(database: Database, project: UUID, settings: Settings) -> None:
    def limits() -> dict[str, float]:
        with database.transaction() as session:
            return catalogue.front(session, project, MODEL, None, "size_bytes").limits

    finish_job(database, project, settings)
    assert limits() == {}
    finish_job(database, project, settings, checks=(Check(figure="size_ratio", limit=0.5, value=0.2, passed=True),))
    finish_job(database, project, settings)
    assert limits() == {"size_ratio": 0.5}


# What jobs are made from


def test_baseline_is_kept_per_condition(database: Database) -> None:
    evaluation = make_evaluation(20)
    hash_ = evaluation.protocol_hash
    with database.transaction() as session:
        assert catalogue.baseline(session, FINGERPRINT, hash_, "float32", "cpu") is None
        catalogue.save_baseline(session, FINGERPRINT, evaluation, "cpu")
        catalogue.save_baseline(session, FINGERPRINT, make_evaluation(99), "cpu")
    with database.transaction() as session:
        kept = catalogue.baseline(session, FINGERPRINT, hash_, "float32", "cpu")
        assert kept == evaluation.model_copy(update={"cached": True})
        assert catalogue.baseline(session, FINGERPRINT, hash_, "float32", "cuda") is None
        assert catalogue.baseline(session, "0" * 64, hash_, "float32", "cpu") is None


def test_models_of_a_project(database: Database, project: UUID, other: UUID) -> None:
    def record(uri: str) -> None:
        with database.transaction() as session:
            model = BaseModelRecord(
                uri=uri,
                revision="1",
                fingerprint=FINGERPRINT,
                model_type="llama",
                parameters=200,
                base_bytes=400,
            )
            catalogue.record_model(session, project, model, {"model_type": "llama", "note": "\0", "eps": float("inf")})

    for uri in ("hf://a/b", "hf://c/d", "hf://a/b"):
        record(uri)
    with database.transaction() as session:
        models, after = catalogue.list_models(session, project, limit=1)
        assert [(model.uri, model.base_bytes, model.origin) for model in models] == [("hf://c/d", 400, "recorded")]
        models, after = catalogue.list_models(session, project, after=after, limit=1)
        assert [model.uri for model in models] == ["hf://a/b"]
        assert after is None
        assert catalogue.list_models(session, other, limit=10) == ([], None)


def test_data_sets_of_a_project(database: Database, project: UUID, other: UUID) -> None:
    ids = [uuid4() for _ in range(3)]
    for dataset_id in ids:
        with database.transaction() as session:
            made = catalogue.new_dataset(
                session,
                project,
                dataset_id,
                name="text",
                sha256="c" * 64,
                size_bytes=3,
                storage_key=f"datasets/{dataset_id}",
            )
            assert (made.id, made.uri) == (dataset_id, f"dataset://{dataset_id}")
    with database.transaction() as session:
        found, after = catalogue.list_datasets(session, project, limit=2)
        assert [dataset.id for dataset in found] == ids[:0:-1]
        assert catalogue.list_datasets(session, project, after=after, limit=2)[0][0].id == ids[0]
        assert catalogue.get_dataset(session, None, ids[0]).project == "default"
        for call in (catalogue.get_dataset, catalogue.delete_dataset):
            with pytest.raises(NotFound):
                call(session, other, ids[0])
        assert catalogue.delete_dataset(session, project, ids[0]) == f"datasets/{ids[0]}"
    with database.transaction() as session, pytest.raises(NotFound):
        catalogue.get_dataset(session, project, ids[0])
    with pytest.raises(RequestInvalid), database.transaction() as session:
        catalogue.new_dataset(session, project, uuid4(), name="\0", sha256="", size_bytes=0, storage_key="")
