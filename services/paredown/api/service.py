"""What every route works with, made once for each application."""

from dataclasses import dataclass
from typing import Annotated, cast

from fastapi import Depends, Request

from paredown.api.events import EventHub
from paredown.api.metrics import Metrics
from paredown.core.db import Database
from paredown.core.settings import Settings
from paredown.core.storage import ObjectStore


@dataclass(frozen=True)
class Service:
    settings: Settings
    database: Database
    store: ObjectStore
    hub: EventHub
    metrics: Metrics


def service_of(request: Request) -> Service:
    return cast("Service", request.app.state.service)


UsesService = Annotated[Service, Depends(service_of)]
