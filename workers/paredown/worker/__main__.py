"""`python -m paredown.worker --pool cpu`: a worker of one or more pools. SIGTERM drains it."""

import argparse
import os
import warnings

from paredown.core.settings import get_settings
from paredown.core.transport import queue_name
from paredown.worker.app import app


def main(arguments: list[str] | None = None) -> None:
    settings = get_settings()
    parser = argparse.ArgumentParser(prog="python -m paredown.worker", description=__doc__)
    parser.add_argument(
        "--pool",
        action="append",
        choices=sorted(settings.pools),
        help=f"a pool to work for; may be repeated (default: {settings.default_pool})",
    )
    pools = parser.parse_args(arguments).pool or [settings.default_pool]
    # Celery warns of root because of pickled tasks; ours are JSON, and the engine gives up what root may do.
    warnings.filterwarnings("ignore", message="You're running the worker with superuser privileges")
    app.worker_main(
        [
            "--quiet",
            "worker",
            "--queues",
            ",".join(queue_name(pool) for pool in dict.fromkeys(pools)),
            "--concurrency",
            "1",
            # Several workers may share a machine.
            "--hostname",
            f"pare-{os.getpid()}@%h",
            "--without-gossip",
            "--without-mingle",
            "--without-heartbeat",
        ]
    )


if __name__ == "__main__":
    main()
