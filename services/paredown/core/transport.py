"""Celery, configured to carry hints and nothing else. A hint says "pool X has work"; it may be lost or doubled."""

from celery import Celery
from kombu.exceptions import OperationalError
from redis.exceptions import RedisError

from paredown.core.settings import Settings

HINT_TASK = "pare.work"
MAX_HINTS = 2

# What sending a hint raises when Redis is out of reach. Nothing is lost by it: the next hint says the same.
TRANSPORT_ERRORS = (OperationalError, RedisError, OSError)


def queue_name(pool: str) -> str:
    return f"pare.{pool}"


def create_celery(settings: Settings) -> Celery:
    """The application that both the dispatcher (sends hints) and the workers (take them) use."""
    app = Celery("pare", broker=settings.redis_url, set_as_current=False)
    app.conf.update(
        task_ignore_result=True,
        task_serializer="json",
        accept_content=["json"],
        # A hint is done with when it is taken: the job's lease, not Celery, says whether the work was.
        task_acks_late=False,
        worker_prefetch_multiplier=1,
        worker_concurrency=1,
        worker_pool="prefork",
        # The parent's shutdown reaches the child through memory that only a fork shares.
        worker_pool_start_method="fork",
        worker_hijack_root_logger=False,
        worker_redirect_stdouts=False,
        worker_send_task_events=False,
        worker_enable_remote_control=False,
        # Redis may come and go while a job runs; the job neither knows nor cares.
        worker_cancel_long_running_tasks_on_connection_loss=False,
        worker_enable_prefetch_count_reduction=False,
        # A loaded machine may take long to fork; the default of four seconds kills the child.
        worker_proc_alive_timeout=60,
        broker_connection_retry_on_startup=True,
        broker_connection_max_retries=None,
        broker_transport_options={"socket_timeout": 10, "socket_connect_timeout": 5, "socket_keepalive": True},
        task_create_missing_queues=True,
    )
    return app


def send_hint(app: Celery, pool: str) -> bool:
    """Tell the pool's workers that there is work; False when enough hints already wait. Raises TRANSPORT_ERRORS.

    Each hint has a connection of its own, which declares the queue anew: after a FLUSHALL the next hint arrives.
    """
    queue = queue_name(pool)
    with app.connection_for_write(transport_options={"max_retries": 1}) as connection:
        waiting = connection.default_channel.client.llen(queue)
        if waiting >= MAX_HINTS:
            return False
        app.send_task(HINT_TASK, args=[pool], queue=queue, connection=connection, retry=False)
    return True
