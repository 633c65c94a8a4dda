"""Loaded by schemathesis: what must exist somewhere for a job to be taken, and no schema can promise, is put in."""

import os
from typing import Any

import schemathesis

schemathesis.serializer.alias("application/jsonl", "application/json")


@schemathesis.hook
def before_call(context: schemathesis.HookContext, case: schemathesis.Case, kwargs: dict[str, Any]) -> None:
    if case.operation.path not in ("/v1/jobs", "/v1/plans") or not isinstance(case.body, dict):
        return
    if isinstance(case.body.get("model"), str) and "://" in case.body["model"]:
        case.body["model"] = os.environ["PARE_TEST_MODEL"]
    for part in ("calibration", "evaluation"):
        text = case.body.get(part)
        if isinstance(text, dict) and "://" in str(text.get("source")):
            text["source"] = "builtin://python-docs"
