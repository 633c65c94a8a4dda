"""`python -m paredown.dispatcher`. SIGTERM and SIGINT stop it at once; there is nothing to save."""

import signal
import threading
from types import FrameType

import structlog

from paredown.core.db import Database
from paredown.core.logs import configure_logging
from paredown.core.settings import get_settings
from paredown.core.storage import open_store
from paredown.core.transport import create_celery
from paredown.dispatcher.loop import Dispatcher
from paredown.dispatcher.monitor import serve


def main() -> None:
    settings = get_settings()
    configure_logging(settings, "dispatcher")
    log = structlog.get_logger(__name__)
    stop = threading.Event()

    def on_signal(_number: int, _frame: FrameType | None) -> None:
        stop.set()

    signal.signal(signal.SIGTERM, on_signal)
    signal.signal(signal.SIGINT, on_signal)
    dispatcher = Dispatcher(settings, Database(settings, pool_size=2), open_store(settings), create_celery(settings))
    if settings.dispatcher_port is not None:
        serve(dispatcher, settings.dispatcher_port)
    log.info("dispatcher_started", pools=sorted(settings.pools))
    dispatcher.run(stop)
    log.info("dispatcher_stopped")


if __name__ == "__main__":
    main()
