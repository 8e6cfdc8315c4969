"""What Prefect will find here, without importing it: its server, its profile, its database.

A build asks the same questions before it starts, so that `lasr doctor` and `lasr build` agree.
"""

import contextlib
import json
import os
import socket
import ssl
import tempfile
import time
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from lasr.doctor import database
from lasr.doctor.checks import Result, version
from lasr.errors import UserError, one_line
from lasr.terminal.summary import counted

URL, HOME, PROFILE = "PREFECT_API_URL", "PREFECT_HOME", "PREFECT_PROFILE"
PROFILES_PATH = "PREFECT_PROFILES_PATH"
DATABASE = ("PREFECT_SERVER_DATABASE_CONNECTION_URL", "PREFECT_API_DATABASE_CONNECTION_URL")
AUTH, KEY = "PREFECT_API_AUTH_STRING", "PREFECT_API_KEY"
WITHOUT = f"run `{URL}= lasr build …` to build without it"
PATIENCE = 4  # seconds that a server has for each step of its answer
CLOCKS_DIFFER = 60  # seconds that nobody would notice
SET_CLOCK = "set the clock, for example with `timedatectl set-ntp true`"


@dataclass(frozen=True)
class Server:
    """A Prefect server that the user chose, and where it was chosen: a variable or a file."""

    url: str
    source: str


def home() -> Path:
    """Prefect's folder."""
    folder = os.environ.get(HOME) or _dotenv().get(HOME) or "~/.prefect"
    try:
        return Path(folder).expanduser()
    except RuntimeError:  # no home folder
        return Path(folder)


def setting(name: str) -> tuple[str, str]:
    """A setting and its source, in Prefect's order: variable, .env, TOML files, active profile.

    ("", "") if it is not set. A file that cannot be read counts as empty: see `profile_fault`.
    """
    for source, values in (("the environment", dict(os.environ)), (".env", _dotenv())):
        if name in values:  # an empty variable hides the files
            return values[name].strip(), name if source == "the environment" else source
    for file, outer in (("prefect.toml", ()), ("pyproject.toml", ("tool", "prefect"))):
        with contextlib.suppress(OSError, ValueError, AttributeError):
            table: Any = _toml(Path(file))
            for key in outer:
                table = table.get(key, {})
            if value := _within(table, name.removeprefix("PREFECT_").lower()):
                return value, file
    with contextlib.suppress(OSError, ValueError, UserError):
        active, profile = _active_profile()
        if name in profile:
            return str(profile[name]).strip(), f"profile '{active}' of {_profiles_path()}"
    return "", ""


def server() -> Server | None:
    """The server that Prefect would talk to; None: an embedded one."""
    url, source = setting(URL)
    return Server(url.rstrip("/"), source) if url else None


def profile_fault() -> str:
    """Why Prefect could not load its profiles; "" if it can."""
    path = _profiles_path()
    try:
        _active_profile()
    except (OSError, ValueError, UserError) as error:
        reason = error.strerror if isinstance(error, OSError) else one_line(error)
        return f"{path}: no profiles can be read from it ({reason})"
    return ""


def home_fault() -> str:
    """Why an embedded server could not keep its database; "" if it can. Changes nothing."""
    folder, (url, source) = home(), _database()
    try:
        nearest = next(
            path for path in (folder, *folder.absolute().parents) if os.path.lexists(path)
        )
        with tempfile.TemporaryFile(dir=nearest):
            pass
    except OSError as error:
        return f"{folder}: Prefect's folder cannot be written ({error.strerror})"
    if not url:
        return database.fault_of(folder / "prefect.db")
    if url.startswith("sqlite") and "///" in url and ":memory:" not in url:
        return database.fault_of(Path(url.partition("///")[2].partition("?")[0]))
    parts = urlsplit(url)
    if parts.hostname and not _answers(parts.hostname, parts.port or 5432):
        return f"{parts.hostname}: Prefect's database does not answer ({source})"
    return ""


def check_server(server: Server) -> float:
    """Ask a server whether it is healthy. Raises UserError within seconds.

    Returns by how many seconds its clock is ahead of this machine's.
    """
    at = f"Prefect's server {server.url} ({server.source})"
    cloud = "prefect.cloud" in server.url
    try:
        status, text, ahead = _health(server.url)
    except Exception as error:  # of httpx, ssl, json: a wrong setting can raise anything
        slow = "Timeout" in type(error).__name__
        reason = "in time" if slow else f"({one_line(error, 100)})"
        fix = f"start it with `prefect server start`, correct the address, or {WITHOUT}"
        raise UserError(f"{at} does not answer {reason}", fix) from error
    if status in (401, 403):
        fix = f"set {KEY}" if cloud else f"set {AUTH} to its user:password"
        raise UserError(f"{at} refuses access ({status})", f"{fix}, or {WITHOUT}")
    if text == "false":
        raise UserError(f"{at} is not healthy", f"read its log, or {WITHOUT}")
    if status >= 300 or not (text == "true" or cloud):
        fix = f"correct the address, which ends in /api, or {WITHOUT}"
        raise UserError(f"{at} answers {status}, not as Prefect does", fix)
    return ahead


def clock_fault(ahead: float) -> str:
    """What is wrong if the server's clock is that much ahead; "" if it is near enough.

    Prefect's workers, and `lasr serve`, ask for the runs that are due by their own clock.
    """
    if abs(ahead) <= CLOCKS_DIFFER:
        return ""
    which, then = ("behind", "later") if ahead > 0 else ("ahead of", "earlier")
    minutes = counted(round(abs(ahead) / 60), "minute")
    return (
        f"this machine's clock is {minutes} {which} that of Prefect's server, and runs would start"
        f" here so much {then}"
    )


def _health(url: str) -> tuple[int, str, float]:
    """What a server says about its health, asked as Prefect would.

    Status, first bytes, and by how many seconds its clock is ahead, 0 where it does not say.
    """
    import httpx

    names = (AUTH, KEY, "PREFECT_CLIENT_CUSTOM_HEADERS", "PREFECT_API_TLS_INSECURE_SKIP_VERIFY")
    auth, key, custom, unverified = (setting(name)[0] for name in names)
    verify: Any = unverified.lower() not in ("1", "true", "yes", "on")
    if verify and (bundle := setting("PREFECT_API_SSL_CERT_FILE")[0]):
        verify = ssl.create_default_context(cafile=bundle)
    headers = {str(name): str(value) for name, value in json.loads(custom or "{}").items()}
    if key:
        headers["Authorization"] = f"Bearer {key}"
    user, _, password = auth.partition(":")
    with (
        httpx.Client(timeout=PATIENCE, verify=verify, follow_redirects=True) as client,
        client.stream(
            "GET", f"{url}/health", headers=headers, auth=(user, password) if user else None
        ) as answer,
    ):
        first = next(answer.iter_bytes(100), b"")
        ahead = 0.0
        with contextlib.suppress(ValueError, TypeError):
            date = parsedate_to_datetime(answer.headers.get("date", ""))
            ahead = date.timestamp() - time.time()
    return answer.status_code, first.decode(errors="replace").strip(), ahead


def check() -> Iterator[Result]:
    """What a build will use, for the doctor."""
    name = "Prefect"
    if fault := profile_fault():
        fix = "correct or remove that file; `lasr build` works without it"
        yield Result("warning", name, fault, fix)
    chosen = server()
    if chosen:
        if fault := clock_fault(check_server(chosen)):
            yield Result("warning", name, fault, SET_CLOCK)
        yield Result("ok", name, f"{version('prefect')}, its server at {chosen.url}, healthy")
    elif fault := home_fault():
        fix = (
            f"set {HOME} to another folder; until then builds are recorded in a temporary database"
        )
        yield Result("warning", name, fault, fix)
    else:
        yield Result("ok", name, f"{version('prefect')}, with its embedded server")


def _dotenv() -> dict[str, str]:
    if not Path(".env").is_file():
        return {}
    try:
        from dotenv import dotenv_values

        return {name: value or "" for name, value in dotenv_values(".env").items()}
    except (ImportError, OSError, ValueError):
        return {}


def _within(table: dict[str, Any], name: str) -> str:
    """The value of `api_url` in `[api] url = "…"`, at any depth; "" if there is none."""
    for key, value in table.items():
        if isinstance(value, dict) and name.startswith(f"{key}_"):
            if found := _within(value, name.removeprefix(f"{key}_")):
                return found
        elif key == name:
            return str(value).strip()
    return ""


def _toml(path: Path) -> dict[str, Any]:
    return tomllib.loads(path.read_text(encoding="utf-8"))


def _profiles_path() -> Path:
    return Path(os.environ.get(PROFILES_PATH) or home() / "profiles.toml").expanduser()


def _active_profile() -> tuple[str, dict[str, Any]]:
    """Name and settings. Raises OSError, ValueError, UserError."""
    try:
        content = _toml(_profiles_path())
    except (FileNotFoundError, NotADirectoryError):
        return "", {}
    profiles = content.get("profiles", {})
    if not isinstance(profiles, dict) or not all(isinstance(p, dict) for p in profiles.values()):
        raise UserError("'profiles' is not a table of tables")
    active = os.environ.get(PROFILE) or content.get("active", "")
    if not isinstance(active, str):
        raise UserError("'active' is not a name")
    return active, profiles.get(active, {})


def _database() -> tuple[str, str]:
    for name in DATABASE:
        url, source = setting(name)
        if url:
            return url, source
    return "", ""


def _answers(host: str, port: int) -> bool:
    try:
        socket.create_connection((host, port), timeout=PATIENCE).close()
    except OSError:
        return False
    return True
