"""When a worker tries vLLM."""

from pathlib import Path

import pytest

from paredown.contracts.job import EvaluationSettings
from paredown.core.errors import RuntimeUnavailable
from paredown.core.settings import Settings
from paredown.worker.runtimes import vllm_python

PYTHON = Path("/opt/vllm/bin/python")


def test_vllm_is_tried_where_the_operator_names_it_and_the_job_does_not_leave_it_out() -> None:
    with_vllm, without = Settings(vllm_python=PYTHON), Settings(vllm_python=None)
    assert vllm_python(EvaluationSettings(), with_vllm) == PYTHON
    assert vllm_python(EvaluationSettings(runtimes=("transformers", "vllm")), with_vllm) == PYTHON
    assert vllm_python(EvaluationSettings(runtimes=("transformers",)), with_vllm) is None
    assert vllm_python(EvaluationSettings(), without) is None
    with pytest.raises(RuntimeUnavailable, match="PARE_VLLM_PYTHON") as refused:
        vllm_python(EvaluationSettings(runtimes=("vllm",)), without)
    assert (refused.value.code, refused.value.field) == ("runtime_unavailable", "evaluation.runtimes")
