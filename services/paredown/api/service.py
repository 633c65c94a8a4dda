"""What every route works with, made once for each application."""

from dataclasses import dataclass
from typing import Annotated, cast

import structlog
from fastapi import Depends, Request

from paredown.api.events import EventHub
from paredown.api.metrics import Metrics
from paredown.core.db import Database
from paredown.core.errors import StorageUnavailable
from paredown.core.settings import Settings
from paredown.core.storage import ObjectStore

_log = structlog.get_logger("pare.api")


@dataclass(frozen=True)
class Service:
    settings: Settings
    database: Database
    store: ObjectStore
    hub: EventHub
    metrics: Metrics

    def remove_bytes(self, key: str) -> None:
        """Once the row that names them is gone: bytes without a row are swept later, a row without its bytes would be a
        broken promise."""
        try:
            self.store.delete(key)
        except StorageUnavailable as error:
            _log.warning("bytes_left_to_the_sweep", key=key, reason=error.detail)


def service_of(request: Request) -> Service:
    return cast("Service", request.app.state.service)


UsesService = Annotated[Service, Depends(service_of)]
