"""Failures that a user can act on. Anything else is a bug, and is logged with its traceback.

A `PareError` has a stable `code`, an HTTP `status`, a sentence that says what to do and, where one is to blame, the
field. The same code stands in problem+json and in a failed job's row. docs/errors.md lists every code; a test checks.
"""

from typing import ClassVar

from paredown.contracts.job import JobError


class PareError(Exception):
    """Base of every failure with a name."""

    code: ClassVar[str]
    status: ClassVar[int] = 400
    # Worth another try by itself: a network that was down, a disk that was full.
    retryable: ClassVar[bool] = False

    def __init__(self, detail: str, *, field: str | None = None) -> None:
        super().__init__(detail)
        self.detail = detail
        self.field = field

    def as_job_error(self) -> JobError:
        return JobError(code=self.code, detail=self.detail, field=self.field, retryable=self.retryable)


class NotFound(PareError):
    code = "not_found"
    status = 404


class Unauthenticated(PareError):
    code = "unauthenticated"
    status = 401


class Forbidden(PareError):
    """The key is good, but lacks the scope."""

    code = "forbidden"
    status = 403


class RequestInvalid(PareError):
    code = "request_invalid"
    status = 422


class IdempotencyMismatch(PareError):
    """The same Idempotency-Key came with another body."""

    code = "idempotency_key_reused"
    status = 422


class IdempotencyBusy(PareError):
    """The first request with this Idempotency-Key is still under way."""

    code = "idempotency_key_busy"
    status = 409
    retryable = True


class StateConflict(PareError):
    """The state of the job, or the verdict of the artifact, does not allow this."""

    code = "state_conflict"
    status = 409


class AliasProtected(PareError):
    """A protected alias takes no artifact that missed its budget, or has none."""

    code = "alias_protected"
    status = 409


class ArtifactAliased(PareError):
    """An alias points at the artifact that was to be deleted."""

    code = "artifact_aliased"
    status = 409


class PreconditionFailed(PareError):
    code = "precondition_failed"
    status = 412


class PayloadTooLarge(PareError):
    code = "payload_too_large"
    status = 413


class RequestMalformed(PareError):
    """Not JSON, not UTF-8, or with characters that no text may hold."""

    code = "request_malformed"
    status = 400


class MethodNotAllowed(PareError):
    code = "method_not_allowed"
    status = 405


class MediaTypeUnsupported(PareError):
    code = "media_type_unsupported"
    status = 415


class RangeUnsatisfiable(PareError):
    code = "range_unsatisfiable"
    status = 416


class DatabaseBusy(PareError):
    """A lock or a statement took longer than its timeout; nothing was changed."""

    code = "database_busy"
    status = 503
    retryable = True


class ServiceBusy(PareError):
    """More requests of a slow kind than the service does at once."""

    code = "service_busy"
    status = 503
    retryable = True


class InternalError(PareError):
    """A bug of ours. The log holds the traceback under the request's id."""

    code = "internal_error"
    status = 500


class RecipeRefused(PareError):
    """The recipe cannot run on this model: a method, a format or a group size does not fit it."""

    code = "recipe_refused"
    status = 422


class GroupSizeUnfit(RecipeRefused):
    code = "group_size_unfit"


class RuntimeUnavailable(PareError):
    """A job asks for a runtime that the pool's workers do not have."""

    code = "runtime_unavailable"
    status = 422


class CalibrationUnfit(PareError):
    """Calibration or evaluation sequences do not fit the model or its text."""

    code = "calibration_unfit"
    status = 422


class TokenizerDiffers(PareError):
    """A calibration of the catalogue was drawn with another tokenizer than the model's."""

    code = "tokenizer_differs"
    status = 422


class BaselineUnknown(PareError):
    """A budget needs the perplexity of an artifact's base, which was never measured under that evaluation."""

    code = "baseline_unknown"
    status = 422


class BudgetUnmeasurable(PareError):
    """A term of the budget limits a figure that this job will not measure."""

    code = "budget_unmeasurable"
    status = 422


class PoolUnknown(PareError):
    code = "pool_unknown"
    status = 422


class PlanExceeded(PareError):
    """The job needs more memory or disk than any worker of the pool has."""

    code = "plan_exceeded"
    status = 422


class CanaryRefused(PareError):
    """A job's rehearsal on its worker showed that memory, disk or time will not suffice."""

    code = "canary_refused"
    status = 422


class SourceError(PareError):
    """A model, a text or a data set cannot be had from where the URI says."""

    code = "source_error"
    status = 422


class SchemeUnknown(SourceError):
    code = "scheme_unknown"


class SourceNotAllowed(SourceError):
    """An operator's list does not allow it: a package, a file root, a private address."""

    code = "source_not_allowed"


class SourceNotFound(SourceError):
    code = "source_not_found"


class SourceUnreachable(SourceError):
    code = "source_unreachable"
    retryable = True


class ModelRejected(PareError):
    """The files were had, but they are not a model that Pare may load."""

    code = "model_rejected"
    status = 422


class NotAModel(ModelRejected):
    code = "not_a_model"


class ArchitectureUnsupported(ModelRejected):
    code = "architecture_unsupported"


class PickleRefused(ModelRejected):
    code = "pickle_refused"


class SafetensorsInvalid(ModelRejected):
    code = "safetensors_invalid"


class GgufInvalid(ModelRejected):
    code = "gguf_invalid"


class ShardNameUnsafe(ModelRejected):
    code = "shard_name_unsafe"

    def __init__(self, name: str) -> None:
        super().__init__(f"The index names the shard {name!r}; a shard must be a plain file name beside the index.")


class TextUnusable(SourceError):
    """Calibration or evaluation text that is not UTF-8 text or JSON lines with a text field."""

    code = "text_unusable"


class TaskRowsUnusable(SourceError):
    """Rows of a task that are not what its definition reads; the row and its field are named."""

    code = "task_rows_unusable"


class DiskFull(PareError):
    code = "disk_full"
    status = 507
    retryable = True


class StorageUnavailable(PareError):
    code = "storage_unavailable"
    status = 503
    retryable = True


class SettingsInvalid(PareError):
    """An operator's setting cannot be used."""

    code = "settings_invalid"
    status = 500


class DatabaseUnavailable(PareError):
    code = "database_unavailable"
    status = 503
    retryable = True


class EngineCrashed(PareError):
    """The engine's process ended without a word: killed, out of memory, or a bug."""

    code = "engine_crashed"
    status = 500
    retryable = True


class EngineFailed(PareError):
    """The engine named what went wrong; the code on the job is the engine's own."""

    code = "engine_failed"
    status = 500

    def __init__(self, error: JobError) -> None:
        super().__init__(error.detail, field=error.field)
        self.error = error

    def as_job_error(self) -> JobError:
        return self.error


class IsolationUnavailable(PareError):
    code = "isolation_unavailable"
    status = 500


class LeaseLost(PareError):
    """Another worker, or nobody, holds this job now; this one must stop at once."""

    code = "lease_lost"
    status = 409


class CancelPending(LeaseLost):
    """A person asked for a cancel before the job was finished; the worker is to stop and acknowledge."""

    code = "cancel_pending"


class WorkerInternal(PareError):
    """A bug of ours in the worker; its log has the traceback."""

    code = "worker_internal"
    status = 500
    retryable = True


class WorkerLost(PareError):
    """The worker stopped answering three times."""

    code = "worker_lost"
    status = 500


class DeadlineExceeded(PareError):
    code = "deadline_exceeded"
    status = 504
