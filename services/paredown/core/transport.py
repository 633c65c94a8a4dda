"""Celery, configured to carry hints and nothing else. A hint says "pool X has work"; it may be lost or doubled."""

from celery import Celery

from paredown.core.settings import Settings

HINT_TASK = "pare.work"
MAX_HINTS = 2


def queue_name(pool: str) -> str:
    return f"pare.{pool}"


def create_celery(settings: Settings) -> Celery:
    """The application that both the dispatcher (sends hints) and the workers (take them) use."""
    app = Celery("pare", broker=settings.redis_url)
    app.conf.update(
        task_ignore_result=True,
        task_serializer="json",
        accept_content=["json"],
        task_acks_late=False,
        worker_prefetch_multiplier=1,
        worker_concurrency=1,
        worker_pool="prefork",
        worker_hijack_root_logger=False,
        worker_send_task_events=False,
        worker_cancel_long_running_tasks_on_connection_loss=False,
        broker_connection_retry_on_startup=True,
        broker_connection_max_retries=None,
        broker_transport_options={"socket_timeout": 10, "socket_connect_timeout": 5, "socket_keepalive": True},
        task_create_missing_queues=True,
    )
    return app


def send_hint(app: Celery, pool: str) -> bool:
    """Tell the pool's workers that there is work; False when enough hints already wait. Redis errors pass through."""
    queue = queue_name(pool)
    with app.connection_for_write() as connection:
        waiting = connection.default_channel.client.llen(queue)
        if waiting >= MAX_HINTS:
            return False
        app.send_task(HINT_TASK, args=[pool], queue=queue, connection=connection, retry=False)
    return True
