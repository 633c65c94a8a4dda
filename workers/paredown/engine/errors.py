"""Failures of the engine that have a name. Anything else is a bug, and ends the process with its traceback on stderr.

The engine may not import core, so these mirror core's errors: a stable `code`, a sentence that says what to do.
"""

import errno
from typing import ClassVar

from paredown.contracts.job import JobError


class EngineError(Exception):
    """Base of every failure with a name; travels to the supervisor as a JobError."""

    code: ClassVar[str] = "engine_failed"
    # Worth another try by itself, on the same or another worker.
    retryable: ClassVar[bool] = False

    def __init__(self, detail: str, *, field: str | None = None) -> None:
        super().__init__(detail)
        self.detail = detail
        self.field = field

    def as_job_error(self) -> JobError:
        return JobError(code=self.code, detail=self.detail, field=self.field, retryable=self.retryable)


# How libraries that keep only the message of the system's error tell of a full disk, and of a used-up quota.
_DISK_FULL = ("os error 28", "os error 122", "No space left on device", "Disk quota exceeded")


def is_disk_full(error: BaseException) -> bool:
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return True
    return any(words in str(error) for words in _DISK_FULL)


class NotAModel(EngineError):
    """The files do not hold the model that config.json describes."""

    code = "not_a_model"


class ArchitectureUnsupported(EngineError):
    code = "architecture_unsupported"


class BaselineUnknown(EngineError):
    """The order's model is an artifact, and its base was not measured under the protocol that a budget needs."""

    code = "baseline_unknown"


class NanFound(EngineError):
    """A weight or an activation is not finite; the layer is named."""

    code = "nan_found"


class TrainingDiverged(EngineError):
    """A loss or its gradient is not finite; the step is named."""

    code = "training_diverged"


class HessianSingular(EngineError):
    """A layer's Hessian does not factorize; the layer and every damping tried are named."""

    code = "hessian_singular"

    def __init__(self, layer: str, *dampings: float) -> None:
        tried = ", ".join(f"{damping:g}" for damping in dampings)
        super().__init__(
            f"The Hessian of {layer} could not be factorized with damping {tried}. Raise `damping`, or calibrate "
            "on more and more varied text.",
            field="damping",
        )


class RecipeUnfit(EngineError):
    """A stage cannot take this model, or one of its layers."""

    code = "recipe_refused"


class GroupSizeUnfit(RecipeUnfit):
    code = "group_size_unfit"


class CalibrationTooShort(EngineError):
    """The text gives fewer tokens than were asked for, or the sequences do not fit the model."""

    code = "calibration_too_short"


class ExpertsUnreached(EngineError):
    """Calibration reached an expert with fewer tokens than asked for, and the job says to end then."""

    code = "experts_unreached"


class TextUnusable(EngineError):
    """Calibration or evaluation text that is not UTF-8 text or JSON lines with a text field."""

    code = "text_unusable"


class CalibrationUnfit(EngineError):
    """The sequences asked for are longer than the model's context."""

    code = "calibration_unfit"


class TokenizerDiffers(EngineError):
    """A calibration of the catalogue was drawn with another tokenizer than the model's."""

    code = "tokenizer_differs"


class FormatRefused(EngineError):
    """The format cannot hold this model."""

    code = "format_refused"


class ArtifactNewer(EngineError):
    """An artifact of the native format that a later release wrote."""

    code = "artifact_newer"


class ArtifactDamaged(EngineError):
    """Files that are not the artifact that config.json describes."""

    code = "artifact_damaged"


class TaskUnfit(EngineError):
    """A task cannot be measured on this model, or on this machine."""

    code = "task_unfit"


class OutOfMemory(EngineError):
    code = "out_of_memory"


class DiskFull(EngineError):
    code = "disk_full"
    retryable = True


class IsolationUnavailable(EngineError):
    code = "isolation_unavailable"


class DeviceUnavailable(EngineError):
    """The order asks for a device that this machine does not have."""

    code = "device_unavailable"


class OrderInvalid(EngineError):
    """The work order does not say what to do, or names files that are not there."""

    code = "order_invalid"


class RuntimeUnavailable(EngineError):
    """The environment that the operator names for a runtime does not hold it, or not for this artifact."""

    code = "runtime_unavailable"


class RuntimeLoadFailed(EngineError):
    """A runtime that the order claims does not load the artifact."""

    code = "runtime_load_failed"


class RuntimeDisagrees(EngineError):
    """A runtime loads the artifact, but measures another perplexity than the report's."""

    code = "runtime_disagrees"


class Drained(Exception):
    """Not a failure: the engine stopped at a block boundary because it was asked to; the checkpoint is durable."""
