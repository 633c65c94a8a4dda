"""What the API, the form and the documentation say of a method; all of it is read from its stage."""

from typing import Any

from paredown.contracts.job import Contract
from paredown.contracts.recipes import STAGES, Family


class MethodView(Contract):
    """A method with the JSON Schema of its settings, enough to build a form from."""

    method: str
    title: str
    summary: str
    paper: str
    family: Family
    version: int
    needs_calibration: bool
    needs_gpu: bool
    refuses: dict[str, str]
    settings: dict[str, Any]


def method_views() -> list[MethodView]:
    """Every method, in the order of STAGES."""
    return [
        MethodView(
            method=name,
            title=stage.title,
            summary=" ".join((stage.__doc__ or "").split()),
            paper=stage.paper,
            family=stage.family,
            version=stage.model_fields["version"].default,
            needs_calibration=stage.needs_calibration,
            needs_gpu=stage.needs_gpu,
            refuses=stage.refuses,
            settings=stage.model_json_schema(),
        )
        for name, stage in STAGES.items()
    ]
