"""Texts that users upload to calibrate on."""

from datetime import datetime
from uuid import UUID

from paredown.contracts.job import Contract
from paredown.contracts.report import Sha256


class DatasetView(Contract):
    """An uploaded text. A recipe names it as its calibration source: `dataset://` and the id."""

    id: UUID
    project: str
    name: str
    sha256: Sha256
    size_bytes: int
    created_at: datetime

    @property
    def uri(self) -> str:
        return f"dataset://{self.id}"
