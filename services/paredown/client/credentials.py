"""Where the service is and which key opens it: PARE_API_URL and PARE_API_KEY, else the embedded stack's own file."""

import os
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict, ValidationError

from paredown.client.errors import PareApiError

if TYPE_CHECKING:
    from paredown.client.client import PareClient

CREDENTIALS_NAME = "credentials.json"


class Credentials(BaseModel):
    """Written by `pare up`, readable by its owner only."""

    model_config = ConfigDict(frozen=True)

    api_url: str
    api_key: str


def pare_home() -> Path:
    """The embedded stack's directory. Root's lies outside /root, where PostgreSQL's unprivileged user can reach it."""
    if home := os.environ.get("PARE_HOME"):
        return Path(home).expanduser().absolute()
    if hasattr(os, "geteuid") and os.geteuid() == 0:
        return Path("/var/lib/pare-home")
    return Path.home() / ".pare"


def find_credentials() -> Credentials:
    """Raises PareApiError `no_credentials` with a sentence that says what to do."""
    url, key = os.environ.get("PARE_API_URL"), os.environ.get("PARE_API_KEY")
    if url and key:
        return Credentials(api_url=url, api_key=key)
    path = pare_home() / CREDENTIALS_NAME
    try:
        local = Credentials.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        local = None
    except (ValidationError, OSError) as error:
        raise PareApiError("no_credentials", f"{path} cannot be read ({error}); `pare up` writes it anew.") from error
    if url:
        # A key is only ever sent to the service that it was made for.
        if local and local.api_url.rstrip("/") == url.rstrip("/"):
            return local
        raise PareApiError("no_credentials", f"Set PARE_API_KEY to a key of the service at {url}.")
    if local is None:
        raise PareApiError(
            "no_credentials",
            "No service is known: start one here with `pare up`, or set PARE_API_URL and PARE_API_KEY.",
        )
    return Credentials(api_url=local.api_url, api_key=key or local.api_key)


def connect(timeout: float = 60.0) -> "PareClient":
    """A client for the service that the environment names, else for the embedded stack on this machine."""
    from paredown.client.client import PareClient

    credentials = find_credentials()
    return PareClient(credentials.api_url, credentials.api_key, timeout)
