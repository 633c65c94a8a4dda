"""Jobs over HTTP: submit, idempotency, lists, cancel and retry."""

import threading
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, as_completed
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import httpx
import pytest

from paredown.api import submission
from paredown.contracts.job import JobError, JobSpec, JobView
from paredown.core import jobs, sources
from paredown.core.db import Database
from paredown.core.errors import SourceUnreachable
from paredown.core.settings import Settings


def test_a_submitted_job_is_queued_with_its_address(api: httpx.Client, body: dict[str, Any]) -> None:
    answer = api.post("/v1/jobs", json=body)
    assert answer.status_code == 201
    job = JobView.model_validate_json(answer.content)
    assert job.state == "queued"
    assert job.pool == "cpu"
    assert answer.headers["location"] == f"/v1/jobs/{job.id}"
    assert "idempotent-replayed" not in answer.headers
    assert api.get(answer.headers["location"]).json() == answer.json()


def test_one_idempotency_key_makes_one_job(api: httpx.Client, body: dict[str, Any]) -> None:
    key = {"Idempotency-Key": "k-1"}
    first, second = (api.post("/v1/jobs", json=body, headers=key) for _ in range(2))
    assert (first.status_code, second.status_code) == (201, 201)
    assert first.json() == second.json()
    assert second.headers["idempotent-replayed"] == "true"
    other = api.post("/v1/jobs", json={**body, "priority": 3}, headers=key)
    assert (other.status_code, other.json()["code"]) == (422, "idempotency_key_reused")


def test_a_replay_holds_even_when_the_model_is_gone(api: httpx.Client, body: dict[str, Any], tmp_path: Any) -> None:
    key = {"Idempotency-Key": "k-1"}
    first = api.post("/v1/jobs", json=body, headers=key).json()
    (tmp_path / "models" / "tiny" / "config.json").unlink()
    assert api.post("/v1/jobs", json=body, headers=key).json() == first
    assert api.post("/v1/jobs", json=body).json()["code"] == "not_a_model"


def test_concurrent_creates_with_one_key_get_the_same_job(api: httpx.Client, body: dict[str, Any]) -> None:
    barrier = threading.Barrier(8)

    def create(_: int) -> httpx.Response:
        barrier.wait()
        return api.post("/v1/jobs", json=body, headers={"Idempotency-Key": "same"})

    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(create, range(8)))
    assert {answer.status_code for answer in answers} == {201}
    assert len({answer.json()["id"] for answer in answers}) == 1
    assert sum("idempotent-replayed" not in answer.headers for answer in answers) == 1
    assert len(api.get("/v1/jobs").json()["items"]) == 1


def test_a_create_that_waits_too_long_is_told_to_come_back(
    serve: Callable[[Settings], Any],
    settings: Settings,
    database: Database,
    project: UUID,
    body: dict[str, Any],
    new_key: Callable[..., str],
) -> None:
    server = serve(settings.model_copy(update={"lock_timeout_seconds": 0.2}))
    with database.transaction() as session:
        jobs.submit(session, project, JobSpec.model_validate(body), pool="cpu", idempotency_key="k")
        answer = httpx.post(
            f"{server.url}/v1/jobs",
            json=body,
            headers={"Idempotency-Key": "k", "Authorization": f"Bearer {new_key()}"},
        )
    assert (answer.status_code, answer.json()["code"]) == (409, "idempotency_key_busy")


def test_an_unfit_idempotency_key_is_refused(
    api: httpx.Client, body: dict[str, Any], subtests: pytest.Subtests
) -> None:
    for key in ["", "x" * 256, "with space", "näh"]:
        with subtests.test(key=key):
            answer = api.post("/v1/jobs", json=body, headers={"Idempotency-Key": key.encode()})
            assert (answer.status_code, answer.json()["field"]) == (422, "Idempotency-Key")


# fmt: off
UNFIT_JOBS: list[tuple[dict[str, Any], str, str | None]] = [
    ({"model": "gopher://x/y"}, "scheme_unknown", "model"),
    ({"model": "file:///etc"}, "source_not_allowed", "model"),
    ({"model": "pkg://os/x.gguf"}, "source_not_allowed", "model"),
    ({"recipe": [{"method": "rtn", "bits": 7}]}, "request_invalid", "recipe.0.bits"),
    ({"recipe": [{"method": "rtm"}]}, "request_invalid", "recipe.0"),
    ({"recipe": [{"bits": 4}]}, "request_invalid", "recipe.0"),
    ({"recipe": [{"method": "wanda", "sparsitty": 0.5}]}, "request_invalid", "recipe.0.sparsitty"),
    ({"recipe": [{"method": "wanda", "pattern": "4:2"}]}, "request_invalid", "recipe.0.pattern"),
    ({"recipe": []}, "request_invalid", "recipe"),
    ({"recipe": [{"method": "rtn"}, {"method": "gptq"}]}, "request_invalid", "recipe"),
    ({"recipe": [{"method": "rtn", "group_size": 256}]}, "group_size_unfit", "recipe.0.group_size"),
    ({"calibration": {"sequence_length": 4096}, "recipe": [{"method": "gptq"}]}, "calibration_unfit",
     "calibration.sequence_length"),
    ({"calibration": {"source": "builtin://novels"}}, "source_not_found", "calibration.source"),
    ({"evaluation": {"source": f"dataset://{uuid4()}"}}, "source_not_found", "evaluation.source"),
    ({"evaluation": {"source": "dataset://x"}}, "source_not_found", "evaluation.source"),
    ({"evaluation": {"tasks": [{"name": "piqa", "source": "builtin://python-docs"}]}}, "scheme_unknown",
     "evaluation.tasks.0.source"),
    ({"evaluation": {"tasks": [{"name": "piqa", "source": f"dataset://{uuid4()}"}]}}, "source_not_found",
     "evaluation.tasks.0.source"),
    ({"evaluation": {"tasks": [{"name": "piqa"}]}}, "request_invalid", "evaluation.tasks.0"),
    ({"evaluation": {"domains": [{"name": "law", "source": "builtin://law"}]}}, "source_not_found",
     "evaluation.domains.0.source"),
    ({"pool": "moon"}, "pool_unknown", "pool"),
    ({"budget": {}}, "request_invalid", "budget"),
    ({"format": "compressed-tensors", "recipe": [{"method": "magnitude"}]}, "request_invalid", "format"),
    ({"recipe": [{"method": "rtn", "embeddings": 4}]}, "request_invalid", "recipe.0.embeddings"),
    ({"recipe": [{"method": "rtn", "k_quant": True}]}, "request_invalid", "recipe.0.k_quant"),
    ({"budget": {"max_task_drop": 0.1}}, "request_invalid", "budget.max_task_drop"),
    ({"deadline_at": "2020-01-01T00:00:00Z"}, "request_invalid", "deadline_at"),
    ({"deadline_at": "2020-01-01T00:00:00"}, "request_invalid", "deadline_at"),
    ({"modle": "x"}, "request_invalid", "modle"),
    ({"tags": ["fine", "not fine"]}, "request_invalid", "tags.1"),
]
# fmt: on


def test_what_cannot_work_is_refused_before_it_is_queued(
    api: httpx.Client, body: dict[str, Any], subtests: pytest.Subtests
) -> None:
    for change, code, field in UNFIT_JOBS:
        with subtests.test(change=change):
            answer = api.post("/v1/jobs", json={**body, **change})
            problem = answer.json()
            assert (answer.status_code, problem["code"], problem["field"]) == (422, code, field), problem
            assert answer.headers["content-type"] == "application/problem+json"
            assert problem["detail"].endswith((".", ")")), problem["detail"]
    assert api.get("/v1/jobs").json()["items"] == []


def test_a_foreign_dataset_is_as_unknown_as_one_that_never_was(
    api: httpx.Client, stranger: httpx.Client, body: dict[str, Any]
) -> None:
    foreign = stranger.post("/v1/datasets", files={"file": b"some text"}).json()["id"]
    answer = api.post("/v1/jobs", json={**body, "calibration": {"source": f"dataset://{foreign}"}})
    assert (answer.status_code, answer.json()["code"]) == (422, "source_not_found")
    own = api.post("/v1/datasets", files={"file": b"some text"}).json()["id"]
    assert api.post("/v1/jobs", json={**body, "calibration": {"source": f"dataset://{own}"}}).status_code == 201


def test_slow_hosts_do_not_take_every_thread(
    api: httpx.Client, body: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """60 submits of a model whose host does not answer, and the service goes on answering."""
    waiting = threading.Event()

    def slow(*_: Any) -> Any:
        waiting.wait(30)
        raise SourceUnreachable("The host does not answer.")

    monkeypatch.setattr(sources, "describe", slow)
    monkeypatch.setattr(submission, "_LOOK_WAIT_SECONDS", 0.1)
    with ThreadPoolExecutor(60) as pool:
        answers = [pool.submit(api.post, "/v1/jobs", json=body) for _ in range(60)]
        busy = next(as_completed(answers)).result()
        assert (busy.status_code, busy.json()["code"]) == (503, "service_busy")
        assert api.get("/v1/me").status_code == 200
        waiting.set()
        codes = Counter(answer.result().json()["code"] for answer in answers)
    # Those that still waited for a thread when the host came back found room.
    assert set(codes) == {"source_unreachable", "service_busy"}
    assert codes["source_unreachable"] >= 12


def test_a_plan_tells_what_a_job_would_need(api: httpx.Client, body: dict[str, Any]) -> None:
    plan = api.post("/v1/plans", json=body).json()
    assert plan["model_type"] == "llama"
    assert 0 < plan["output_bytes"] < plan["base_bytes"]
    assert plan["pool"] == "cpu"
    assert plan["history_jobs"] == 0
    assert plan["seconds_interval"]["low"] < plan["seconds"] < plan["seconds_interval"]["high"]
    assert api.get("/v1/plans/outcomes").json() == {"items": []}
    assert api.get("/v1/jobs").json()["items"] == []


def test_pages_of_a_list_are_complete_and_stable_while_jobs_arrive(
    api: httpx.Client, new_job: Callable[..., UUID]
) -> None:
    made = [str(new_job()) for _ in range(25)]
    seen: list[str] = []
    after = None
    while True:
        page = api.get("/v1/jobs", params={"limit": 4, **({"after": after} if after else {})}).json()
        seen += [job["id"] for job in page["items"]]
        new_job()
        after = page["after"]
        assert page["has_more"] == (after is not None)
        if not page["has_more"]:
            break
    assert seen == made[::-1]


def test_filters_of_jobs(api: httpx.Client, new_job: Callable[..., UUID], model_uri: str) -> None:
    plain = str(new_job())
    pruned = str(new_job(recipe=[{"method": "wanda"}, {"method": "rtn", "group_size": 32}]))
    cancelled = str(new_job())
    api.post(f"/v1/jobs/{cancelled}/cancel")

    def ids(**filters: Any) -> set[str]:
        return {job["id"] for job in api.get("/v1/jobs", params=filters).json()["items"]}

    assert ids(state="cancelled") == {cancelled}
    assert ids(state=["queued", "cancelled"]) == {plain, pruned, cancelled}
    assert ids(method="wanda") == {pruned}
    assert ids(method="gptq") == set()
    assert ids(model=model_uri) == {plain, pruned, cancelled}
    assert ids(pool="gpu") == set()


def test_unfit_list_parameters_are_named(api: httpx.Client, subtests: pytest.Subtests) -> None:
    unfit = [
        "limit=0",
        "limit=201",
        "limit=x",
        "after=%25%25",
        "after=eyJ9",
        f"after={'x' * 300}",
        "state=done",
        "pool=A",
    ]
    for query in unfit:
        with subtests.test(query=query):
            answer = api.get(f"/v1/jobs?{query}")
            assert (answer.status_code, answer.json()["field"]) == (422, query.split("=")[0])


def test_cancel_and_retry_follow_the_state_machine(
    api: httpx.Client, database: Database, settings: Settings, new_job: Callable[..., UUID]
) -> None:
    queued = new_job()
    assert api.post(f"/v1/jobs/{queued}/retry").json()["code"] == "state_conflict"
    assert api.post(f"/v1/jobs/{queued}/cancel").json()["state"] == "cancelled"
    again = api.post(f"/v1/jobs/{queued}/cancel")
    assert (again.status_code, again.json()["code"]) == (409, "state_conflict")
    failing = new_job()
    with database.transaction() as session:
        claim = jobs.claim(session, "cpu", "w", settings)
        assert claim
        jobs.fail(session, failing, claim.epoch, JobError(code="not_a_model", detail="It is not."), settings)
    assert api.get(f"/v1/jobs/{failing}").json()["error"]["code"] == "not_a_model"
    assert api.post(f"/v1/jobs/{failing}/retry").json()["state"] == "queued"


def test_an_unchanged_job_is_not_sent_again(api: httpx.Client, new_job: Callable[..., UUID]) -> None:
    address = f"/v1/jobs/{new_job()}"
    etag = api.get(address).headers["etag"]
    same = api.get(address, headers={"If-None-Match": etag})
    assert (same.status_code, same.content) == (304, b"")
    api.post(f"{address}/cancel")
    assert api.get(address, headers={"If-None-Match": etag}).status_code == 200


def test_a_job_may_wait_until_a_time_with_its_zone(api: httpx.Client, body: dict[str, Any]) -> None:
    later = datetime.now(UTC) + timedelta(hours=1)
    job = api.post("/v1/jobs", json={**body, "run_at": later.isoformat()}).json()
    assert datetime.fromisoformat(job["run_at"]) == later
