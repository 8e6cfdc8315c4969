"""What the doctor asks Prefect's server, over HTTP: only the flow module imports Prefect."""

import base64
import os
import tomllib
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

from lasr.doctor.environment import line, version
from lasr.doctor.finding import Finding, good, warning, wrong

SECONDS = 5  # for an answer


def health() -> Iterator[Finding]:
    """Prefect's version, and the health of the server that PREFECT_API_URL names."""
    installed = version("prefect")
    if not installed:
        return  # `packages` says so
    address = address_of_server()
    if not address:
        yield good("Prefect", f"{installed}, with its embedded server (no PREFECT_API_URL)")
        return
    about = "Prefect server"
    try:
        healthy = _ask(f"{address}/health").strip() == "true"
        server = _ask(f"{address}/admin/version").strip().strip('"')
    except urllib.error.HTTPError as error:
        fix = "check the address; it ends in /api"
        if error.code in (401, 403):
            fix = "set PREFECT_API_AUTH_STRING to the server's user:password"
        yield wrong(about, f"{address} answers {error.code} {error.reason}", fix)
    except (OSError, ValueError) as error:
        yield wrong(
            about,
            f"{address} does not answer ({line(error)})",
            "start it with `prefect server start`, or run `unset PREFECT_API_URL`: pipeline.run"
            " needs no server",
        )
    else:
        if not healthy:
            fix = "look at its log, and start it again"
            yield wrong(about, f"{address} is not healthy", fix)
        elif server.split(".")[:2] != installed.split(".")[:2]:
            found = f"{address} is {server}, installed is {installed}"
            yield warning(
                about, found, f"run `pip install prefect=={server}`, or update the server"
            )
        else:
            yield good(about, f"{server} at {address}, healthy; installed is {installed}")


def address_of_server() -> str:
    """PREFECT_API_URL of the environment or of Prefect's active profile, without a last slash."""
    address = os.environ.get("PREFECT_API_URL", "")
    home = Path(os.environ.get("PREFECT_HOME", "~/.prefect")).expanduser()
    try:
        profiles = tomllib.loads((home / "profiles.toml").read_text(encoding="utf-8"))
        active = os.environ.get("PREFECT_PROFILE") or profiles["active"]
        address = address or str(profiles["profiles"][active].get("PREFECT_API_URL", ""))
    except (OSError, ValueError, KeyError, AttributeError):
        pass  # no profiles
    return address.rstrip("/")


def _ask(url: str) -> str:
    request = urllib.request.Request(url)
    if secret := os.environ.get("PREFECT_API_AUTH_STRING"):
        token = base64.b64encode(secret.encode()).decode()
        request.add_header("Authorization", f"Basic {token}")
    if key := os.environ.get("PREFECT_API_KEY"):
        request.add_header("Authorization", f"Bearer {key}")
    with urllib.request.urlopen(request, timeout=SECONDS) as answer:
        return str(answer.read(1000).decode())
