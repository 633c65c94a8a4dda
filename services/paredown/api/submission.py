"""From a spec to a queued job: what can be checked before any byte of weights is fetched is checked here.

Looking at the model may go over the network, so it happens before the transaction that writes the job.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeVar
from uuid import UUID

from sqlalchemy.orm import Session

from paredown.api.service import Service
from paredown.contracts.artifact import Manifest
from paredown.contracts.job import JobSpec, JobView, Plan
from paredown.contracts.search import SearchDetails, SearchSpec
from paredown.contracts.sweep import SweepDetails, SweepPlan, SweepSpec
from paredown.core import (
    aliases,
    calibrations,
    catalogue,
    history,
    inputs,
    jobs,
    planning,
    prices,
    recipe_checks,
    searches,
    sources,
    sweeps,
)
from paredown.core.errors import NotFound, PareError, ServiceBusy, SourceError, SourceNotFound
from paredown.core.sources import ModelDescription

# Of the 40 threads that requests run in; those that wait are some of the rest, so they wait briefly.
_LOOKERS = threading.BoundedSemaphore(12)
_LOOK_WAIT_SECONDS = 2.0

Spec = TypeVar("Spec", JobSpec, SweepSpec, SearchSpec)


def submit(service: Service, project_id: UUID, spec: JobSpec, idempotency_key: str | None) -> tuple[JobView, bool]:
    """The job, and whether this call made it. Raises whatever is wrong with the spec."""
    spec = _resolved(service, project_id, spec)
    if idempotency_key is not None:
        # The first answer holds, even where the model has moved or the deadline has passed since.
        with service.database.transaction() as session:
            if first := jobs.replay(session, project_id, spec, idempotency_key):
                return first, False
    meant = _without_alias(service, project_id, spec)
    pool = plan(service, project_id, meant).pool
    with service.database.transaction() as session:
        return jobs.submit(session, project_id, meant, pool=pool, idempotency_key=idempotency_key, asked=spec)


def submit_sweep(
    service: Service, project_id: UUID, spec: SweepSpec, idempotency_key: str | None
) -> tuple[SweepDetails, bool]:
    """The sweep, and whether this call made it. The model is looked at once for all recipes; one that does not fit
    refuses the whole, and is named."""
    spec = _resolved_sweep(service, project_id, spec)
    if idempotency_key is not None:
        with service.database.transaction() as session:
            if first := sweeps.replay(session, project_id, spec, idempotency_key):
                return first, False
    meant = _without_alias(service, project_id, spec)
    description, plans = _plans_of_sweep(service, project_id, meant)
    planned = [sweeps.Planned(job, made.pool, made.seconds) for job, made in plans]
    with service.database.transaction() as session:
        return sweeps.submit(
            session,
            project_id,
            meant,
            planned,
            revision=description.revision,
            settings=service.settings,
            idempotency_key=idempotency_key,
            asked=spec,
        )


def plan_sweep(service: Service, project_id: UUID, spec: SweepSpec) -> SweepPlan:
    """What the sweep would need, and what of it is there already. Raises what submitting it would."""
    meant = _without_alias(service, project_id, _resolved_sweep(service, project_id, spec))
    description, plans = _plans_of_sweep(service, project_id, meant)
    with service.database.transaction() as session:
        book = prices.price_book(session, project_id)
        found = [
            meant.reuse and sweeps.reusable(session, project_id, job, description.revision) is not None
            for job, _ in plans
        ]
    priced = [prices.priced(made, book, service.settings) for _, made in plans]
    return sweeps.total(meant, priced, found)


def _plans_of_sweep(
    service: Service, project_id: UUID, spec: SweepSpec
) -> tuple[ModelDescription, list[tuple[JobSpec, Plan]]]:
    specs = [sweeps.job_of(spec, index) for index in range(len(spec.variants()))]
    description = _look(service, project_id, specs[0])
    plans = []
    for index, job in enumerate(specs):
        try:
            if index and spec.calibrations:
                _check_calibration(service, project_id, job, description)
            plans.append((job, _plan(service, job, description)))
        except PareError as error:
            raise sweeps.blamed(error, spec, index) from error
    return description, plans


def submit_search(
    service: Service, project_id: UUID, spec: SearchSpec, idempotency_key: str | None
) -> tuple[SearchDetails, bool]:
    """The search, and whether this call made it. Every recipe of its space is planned here, at no cost; those that
    do not fit the model or whose planned bytes exceed the limit are never run."""
    spec = _resolved(service, project_id, spec)
    if idempotency_key is not None:
        with service.database.transaction() as session:
            if first := searches.replay(session, project_id, spec, idempotency_key):
                return first, False
    meant = _without_alias(service, project_id, spec)
    description = _look(service, project_id, searches.any_job(meant))
    candidates, ruled_out = searches.candidates_of(meant, lambda job: _plan_from_sizes(service, job, description))
    with service.database.transaction() as session:
        return searches.submit(
            session,
            project_id,
            meant,
            candidates,
            ruled_out,
            revision=description.revision,
            idempotency_key=idempotency_key,
            asked=spec,
        )


def plan(service: Service, project_id: UUID, spec: JobSpec) -> Plan:
    """What the job would need. Raises what is wrong with its model, its texts, its recipe or its pool."""
    spec = _resolved(service, project_id, spec)
    meant = _without_alias(service, project_id, spec)
    return _plan(service, meant, _look(service, project_id, meant))


def _without_alias(service: Service, project_id: UUID, spec: Spec) -> Spec:
    """What is kept names the artifact that the alias points at now, so that a later move changes no job."""
    with service.database.transaction() as session:
        return spec.model_copy(update={"model": aliases.resolved(session, project_id, spec.model)})


def _resolved(service: Service, project_id: UUID, spec: Spec) -> Spec:
    """With what a calibration:// was drawn with: the job says, and its plan reckons with, what it will take."""
    if spec.calibration.stored_id is None:
        return spec
    with service.database.transaction() as session:
        calibration = calibrations.resolved(session, project_id, spec.calibration)
    return spec.model_copy(update={"calibration": calibration})


def _resolved_sweep(service: Service, project_id: UUID, spec: SweepSpec) -> SweepSpec:
    spec = _resolved(service, project_id, spec)
    if not spec.calibrations:
        return spec
    with service.database.transaction() as session:
        given = [calibrations.resolved(session, project_id, calibration) for calibration in spec.calibrations]
    return spec.model_copy(update={"calibrations": tuple(given)})


def _look(service: Service, project_id: UUID, spec: JobSpec) -> ModelDescription:
    """The model, once its address and those of the texts have been checked."""

    def find(artifact_id: UUID) -> tuple[Manifest, str]:
        with service.database.transaction() as session:
            return catalogue.stored(session, project_id, artifact_id)

    resolve = _datasets_of(service, project_id)
    texts = {"evaluation.source": spec.evaluation.source}
    for index, domain in enumerate(spec.evaluation.domains):
        texts[f"evaluation.domains.{index}.source"] = domain.source
    with _looking():
        for field, uri in texts.items():
            with _blaming(field):
                sources.check_text_uri(uri, service.settings, resolve)
        for field, uri in spec.evaluation.rows().items():
            with _blaming(field):
                sources.check_rows_uri(uri, service.settings, resolve)
        _check_calibration(service, project_id, spec)
        description = sources.describe(spec.model, service.settings, sources.Shelf(find, service.store))
    if spec.calibration.stored_id is not None:
        _check_calibration(service, project_id, spec, description)
    return description


def _datasets_of(service: Service, project_id: UUID) -> sources.ResolveDataset:
    def resolve(dataset_id: UUID) -> str:
        with service.database.transaction() as session:
            return str(catalogue.get_dataset(session, project_id, dataset_id).id)

    return resolve


def _check_calibration(
    service: Service, project_id: UUID, spec: JobSpec, description: ModelDescription | None = None
) -> None:
    """The text's address; or that there is such a calibration, and that the model can take it, as far as is known."""
    calibration = spec.calibration
    with _blaming("calibration.source"):
        if calibration.stored_id is None:
            sources.check_text_uri(calibration.source, service.settings, _datasets_of(service, project_id))
            return
        with service.database.transaction() as session:
            fingerprint = _fingerprint(session, project_id, spec.model, description) if description else None
            calibrations.check(session, project_id, calibration.stored_id, fingerprint)


def _fingerprint(session: Session, project_id: UUID, uri: str, description: ModelDescription) -> str | None:
    """Of the model whose tokenizer this one has; None where the project has not used it yet."""
    if description.base is not None:
        return description.base.fingerprint
    return inputs.known_fingerprint(session, project_id, uri, description.revision)


def _plan(service: Service, spec: JobSpec, description: ModelDescription) -> Plan:
    made = _plan_from_sizes(service, spec, description)
    with service.database.transaction() as session:
        made = history.corrected(made, history.ratios(session, made, spec.recipe))
    base = description.base
    if base is None or _is_measured(service, base.fingerprint, spec, made.pool):
        return made
    return planning.without_baseline(made, spec, base)


def _plan_from_sizes(service: Service, spec: JobSpec, description: ModelDescription) -> Plan:
    """Without what finished jobs taught: the bytes of an artifact need none of it, and a search plans hundreds."""
    recipe_checks.check_recipe(description.shape, spec, description.earlier)
    return planning.make_plan(spec, description, service.settings)


def _is_measured(service: Service, fingerprint: str, spec: JobSpec, pool: str) -> bool:
    device = service.settings.pools[pool].device
    with service.database.transaction() as session:
        found = catalogue.likely_baseline(session, fingerprint, spec.evaluation, spec.dtype, device)
    return found is not None


@contextmanager
def _looking() -> Iterator[None]:
    """Slow hosts must not take every thread that other requests need."""
    if not _LOOKERS.acquire(timeout=_LOOK_WAIT_SECONDS):
        raise ServiceBusy("Many models are being looked at just now; send the request again in a moment.")
    try:
        yield
    finally:
        _LOOKERS.release()


@contextmanager
def _blaming(field: str) -> Iterator[None]:
    """A text's problem names the field of the job that asked for it."""
    try:
        yield
    except NotFound as error:
        # 404 would say that the address of this request is wrong.
        raise SourceNotFound(error.detail, field=field) from error
    except SourceError as error:
        error.field = error.field or field
        raise
