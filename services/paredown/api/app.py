"""The application: `uvicorn paredown.api.app:create_app --factory`."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from importlib.metadata import PackageNotFoundError, version

from fastapi import FastAPI

from paredown.api import errors, openapi
from paredown.api.events import EventHub
from paredown.api.http import RequestContext
from paredown.api.metrics import Metrics
from paredown.api.routes import (
    aliases,
    artifacts,
    calibrations,
    datasets,
    files,
    jobs,
    keys,
    methods,
    models,
    prices,
    searches,
    sweeps,
    system,
)
from paredown.api.service import Service
from paredown.core.db import Database
from paredown.core.logs import configure_logging
from paredown.core.settings import Settings, get_settings
from paredown.core.storage import open_store

# Requests run in a pool of 40 threads; each holds at most one connection at a time.
DATABASE_CONNECTIONS = 20


def create_app(settings: Settings | None = None) -> FastAPI:
    """Opens no connection: a database that is away is told by /readyz, and by each request."""
    settings = settings or get_settings()
    configure_logging(settings, "api")
    database = Database(settings, pool_size=DATABASE_CONNECTIONS)
    metrics = Metrics(database, settings)
    hub = EventHub(database, settings.event_poll_seconds, metrics)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        poller = asyncio.create_task(hub.run(), name="event poller")
        yield
        hub.close()
        poller.cancel()
        with suppress(asyncio.CancelledError):
            await poller
        database.close()

    app = FastAPI(
        title="Pare",
        version=_version(),
        summary="Compression-as-a-service for language models.",
        lifespan=lifespan,
        redirect_slashes=False,
        # routes/system.py has a page of our own: FastAPI's loads its script from elsewhere.
        docs_url=None,
        redoc_url=None,
        openapi_url="/openapi.json",
        generate_unique_id_function=lambda route: route.name,
    )
    app.state.service = Service(settings, database, open_store(settings), hub, metrics)
    app.add_middleware(RequestContext, metrics=metrics)
    errors.install(app)
    for resource in (
        jobs,
        sweeps,
        searches,
        methods,
        models,
        datasets,
        calibrations,
        artifacts,
        files,
        aliases,
        keys,
        prices,
        system,
    ):
        app.include_router(resource.router)
    app.include_router(files.signed_router)
    openapi.install(app)
    return app


def _version() -> str:
    try:
        return version("paredown")
    except PackageNotFoundError:
        return "0"
