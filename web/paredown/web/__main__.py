"""`python -m paredown.web --port N [--address A]`: replaces itself with Streamlit's server.

Look, privacy and error settings lie in `.streamlit/config.toml` beside app.py, where Streamlit finds them by itself.
"""

import argparse
import ipaddress
import os
import sys
from pathlib import Path

APP = Path(__file__).with_name("app.py")


def command(port: int, address: str, *, autologin: bool) -> list[str]:
    """Streamlit's command line for one address and port."""
    flags = [("server.port", str(port)), ("server.address", address)]
    if _is_loopback(address):
        flags.append(("browser.serverAddress", address))
    if autologin:
        # A page elsewhere that points its own name at this machine (DNS rebinding) must not find everybody signed in.
        flags += [("server.allowedHosts", host) for host in dict.fromkeys(("localhost", "127.0.0.1", "[::1]", address))]
    return [
        sys.executable,
        # Whatever lies in the working directory is no module of ours.
        "-P",
        "-m",
        "streamlit",
        "run",
        str(APP),
        *(part for name, value in flags for part in (f"--{name}", value)),
    ]


def _is_loopback(address: str) -> bool:
    try:
        return ipaddress.ip_address(address).is_loopback
    except ValueError:
        return address == "localhost"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m paredown.web", description="Serve Pare's web pages.")
    parser.add_argument("--port", type=int, default=8501)
    parser.add_argument("--address", default="127.0.0.1", help="Address to listen on (default: this machine only).")
    arguments = parser.parse_args()
    autologin = os.environ.get("PARE_WEB_AUTOLOGIN") == "1"
    if autologin and not _is_loopback(arguments.address):
        parser.error(
            "PARE_WEB_AUTOLOGIN=1 lets everybody in without a key, so the address must be of this machine only"
        )
    line = command(arguments.port, arguments.address, autologin=autologin)
    # The same process goes on as the server, so that signals from whoever started it arrive.
    os.execv(line[0], line)  # noqa: S606 - our own interpreter with our own arguments, no shell


if __name__ == "__main__":
    main()
