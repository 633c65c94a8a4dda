"""Logging: one structured line for each event, from our own code and from every library alike.

`configure_logging` is called once by each process. Ids are bound with `structlog.contextvars.bound_contextvars`
(`request_id`, `job_id`, `epoch`) and stand on every line written below, whichever library writes it.
"""

import logging
import sys

import structlog
from structlog.typing import EventDict, Processor

from paredown.core.settings import Settings

# Libraries that tell at INFO what only their own authors want to know.
_QUIET = ("boto3", "botocore", "s3transfer", "urllib3", "httpx", "httpcore", "alembic.runtime.plugins", "sse_starlette")


def configure_logging(settings: Settings, service: str) -> None:
    """Route structlog and the standard library's loggers to standard error, as JSON or for a person's eyes."""

    def add_service(_logger: object, _method: str, event: EventDict) -> EventDict:
        event.setdefault("service", service)
        return event

    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.stdlib.ExtraAdder(),
        structlog.stdlib.PositionalArgumentsFormatter(),
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.StackInfoRenderer(),
        add_service,
    ]
    structlog.configure(
        processors=[structlog.stdlib.filter_by_level, *shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=False,
    )
    render: list[Processor] = (
        [structlog.processors.format_exc_info, structlog.processors.JSONRenderer(default=str)]
        if settings.log_format == "json"
        # Plain tracebacks: the rich ones print local variables, and with them keys and passwords.
        else [
            structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty(), exception_formatter=structlog.dev.plain_traceback)
        ]
    )
    handler = _Handler()
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *render],
        )
    )
    root = logging.getLogger()
    # A second call replaces our own handler only: a test's capture stays.
    for old in [known for known in root.handlers if isinstance(known, _Handler)]:
        root.removeHandler(old)
    root.addHandler(handler)
    root.setLevel(settings.log_level.upper())
    for name in _QUIET:
        logging.getLogger(name).setLevel(logging.WARNING)
    # uvicorn has given its loggers handlers of their own; the API writes its own access log.
    for name in ("uvicorn", "uvicorn.error"):
        logging.getLogger(name).handlers.clear()
        logging.getLogger(name).propagate = True
    # Not by `propagate`: whoever configures logging later, as libraries do, turns that on again.
    logging.getLogger("uvicorn.access").disabled = True
    logging.captureWarnings(True)


class _Handler(logging.Handler):
    """Ours; writes to whatever sys.stderr is at the time, so that a redirection is honoured."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            sys.stderr.write(self.format(record) + "\n")
            sys.stderr.flush()
        except Exception:  # noqa: BLE001 - as logging's own handlers do: a broken log stops no work
            self.handleError(record)
