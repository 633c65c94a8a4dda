"""The SDK's plain calls: typed answers, typed errors, and retries that never do anything twice."""

from pathlib import Path
from uuid import uuid4

import pytest
from pydantic import TypeAdapter
from tests.client.conftest import MODEL, ApiServer, BreakingProxy, House

from paredown.client.client import PareClient
from paredown.client.errors import PareApiError
from paredown.client.transport import parse, pause_seconds
from paredown.contracts.access import Scope
from paredown.contracts.job import JobSpec, JobState

SPEC = JobSpec.model_validate({"model": MODEL, "recipe": [{"method": "rtn", "bits": 4}]})


def test_a_submitted_job_comes_back_as_it_was_asked_for(client: PareClient) -> None:
    job = client.submit(SPEC)
    assert job.state is JobState.QUEUED
    assert job.spec == SPEC
    assert client.job(job.id) == job


def test_a_plan_needs_no_job(client: PareClient) -> None:
    plan = client.plan(SPEC)
    assert 0 < plan.output_bytes < plan.base_bytes
    assert list(client.jobs()) == []


def test_an_answer_that_was_lost_makes_no_second_job(
    shaky: PareClient, proxy: BreakingProxy, client: PareClient, no_pauses: None
) -> None:
    # The API gets the request and acts on it, but its answer never arrives: twice.
    proxy.cuts = [0, 0]
    job = shaky.submit(SPEC)
    assert proxy.connections >= 3
    assert [found.id for found in client.jobs()] == [job.id]


def test_without_a_key_of_ours_each_submit_is_a_new_job(client: PareClient) -> None:
    assert client.submit(SPEC).id != client.submit(SPEC).id


def test_the_callers_own_idempotency_key_is_used(client: PareClient) -> None:
    assert client.submit(SPEC, "nightly-1").id == client.submit(SPEC, "nightly-1").id


def test_a_call_that_changes_something_is_not_repeated_after_its_answer_was_lost(
    shaky: PareClient, proxy: BreakingProxy, client: PareClient
) -> None:
    job = client.submit(SPEC)
    proxy.cuts = [0]
    with pytest.raises(PareApiError) as caught:
        shaky.cancel(job.id)
    assert caught.value.code == "service_unreachable"
    assert proxy.connections == 1


def test_reads_survive_broken_connections(shaky: PareClient, proxy: BreakingProxy, no_pauses: None) -> None:
    proxy.cuts = [0, 10, 100]
    assert {method.method for method in shaky.methods()} >= {"rtn", "gptq"}


def test_a_problem_keeps_its_code_sentence_field_and_request(client: PareClient) -> None:
    spec = SPEC.model_copy(update={"model": "pkg://os/nothing.gguf"})
    with pytest.raises(PareApiError) as caught:
        client.submit(spec)
    error = caught.value
    assert (error.code, error.status, error.field) == ("source_not_allowed", 422, "model")
    assert error.request_id
    assert str(error) == error.detail


def test_a_bad_key_is_said_to_be_one(server: ApiServer) -> None:
    with PareClient(server.url, "pare_00000000_nothing") as stranger, pytest.raises(PareApiError) as caught:
        stranger.me()
    assert (caught.value.code, caught.value.status) == ("unauthenticated", 401)


def test_a_service_that_is_away_is_said_to_be(server: ApiServer, api_key: str, no_pauses: None) -> None:
    server.stop()
    try:
        with PareClient(server.url, api_key) as client, pytest.raises(PareApiError) as caught:
            client.jobs_page()
        assert caught.value.code == "service_unreachable"
        assert server.url in caught.value.detail
    finally:
        server.start()


def test_lists_go_on_over_pages(client: PareClient, house: House) -> None:
    made = [house.queue(tags=[f"n{number}"]).id for number in range(5)]
    page = client.jobs_page(limit=2)
    assert (len(page.items), page.has_more) == (2, True)
    assert [job.id for job in client.jobs(limit=2)] == made[::-1]
    assert [job.id for job in client.jobs(limit=2, states=[JobState.RUNNING])] == []


def test_artifacts_are_listed_changed_and_deleted(client: PareClient, house: House) -> None:
    artifact_id = house.finish()
    changed = client.update_artifact(artifact_id, name="better", tags=["a", "b"])
    assert (changed.name, changed.tags) == ("better", ("a", "b"))
    assert [artifact.id for artifact in client.artifacts(tag="a", search="better")] == [artifact_id]
    assert client.front(MODEL).points
    client.delete_artifact(artifact_id)
    assert list(client.artifacts()) == []
    with pytest.raises(PareApiError, match="artifact"):
        client.artifact(artifact_id)


def test_keys_are_made_listed_and_revoked(client: PareClient, server: ApiServer) -> None:
    made = client.create_key("reader", [Scope.JOBS_READ])
    with PareClient(server.url, made.secret) as reader:
        assert reader.me().scopes == (Scope.JOBS_READ,)
        with pytest.raises(PareApiError) as caught:
            reader.submit(SPEC)
        assert caught.value.code == "forbidden"
        client.revoke_key(made.key.id)
        with pytest.raises(PareApiError) as caught:
            reader.me()
        assert caught.value.code == "unauthenticated"
    keys = client.keys()
    assert {key.name for key in keys} == {"first key", "reader"}


def test_data_sets_are_uploaded_and_deleted(client: PareClient, tmp_path: Path) -> None:
    path = tmp_path / "texts.jsonl"
    path.write_text('{"text": "one"}\n{"text": "two"}\n')
    made = client.upload_dataset(path)
    assert made.name == "texts.jsonl"
    assert [found.id for found in client.datasets()] == [made.id]
    client.delete_dataset(made.id)
    with pytest.raises(PareApiError):
        client.dataset(made.id)


def test_an_older_client_leaves_out_what_a_newer_service_adds(client: PareClient) -> None:
    plan = client.plan(SPEC)
    newer = plan.model_dump(mode="json") | {"from_the_future": 1}
    assert parse(TypeAdapter(type(plan)), TypeAdapter(dict).dump_json(newer)) == plan


def test_an_answer_that_is_not_pares_is_named(client: PareClient) -> None:
    with pytest.raises(PareApiError) as caught:
        parse(TypeAdapter(JobSpec), b"<html>")
    assert caught.value.code == "answer_unreadable"


def test_a_foreign_id_is_not_found(client: PareClient) -> None:
    with pytest.raises(PareApiError) as caught:
        client.job(uuid4())
    assert caught.value.status == 404


def test_pauses_grow_and_heed_the_server() -> None:
    assert pause_seconds(1) < pause_seconds(4) < pause_seconds(9) <= 10
    assert pause_seconds(1, "7") == 7
    assert pause_seconds(1, "86400") == 60
