"""Which runtimes a job's artifact is proved in here, beside the engine's own."""

from pathlib import Path

from paredown.contracts.job import EvaluationSettings
from paredown.core.errors import RuntimeUnavailable
from paredown.core.settings import Settings


def vllm_python(evaluation: EvaluationSettings, settings: Settings) -> Path | None:
    """The interpreter of vLLM's environment where vLLM is to be tried. Raises RuntimeUnavailable."""
    asked = evaluation.runtimes
    if asked is None or "vllm" in asked:
        if asked is not None and settings.vllm_python is None:
            raise RuntimeUnavailable(
                "The job asks for vllm, which this worker does not have. Set PARE_VLLM_PYTHON to the interpreter of an "
                "environment with vLLM, or leave vllm out.",
                field="evaluation.runtimes",
            )
        return settings.vllm_python and settings.vllm_python.absolute()
    return None
