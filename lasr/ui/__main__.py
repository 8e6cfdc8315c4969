"""Serve a page to use LA-SR in the browser: upscale, ask a manifest, look at far and near patches.

    lasr ui
    lasr ui --manifest data/patches.parquet --port 8080
    lasr ui --host 0.0.0.0          # other machines; the page then asks for a token

Drop a picture and compare it with its enlargement by a slider; ask the manifest a ready question
or SQL and see the patches; see distance map and patches of a photograph move with k, separation
and texture. Everything runs on this machine, and the page loads nothing from the network.
docs/ui.md says who can read what.
"""

import atexit
import os
import secrets
import signal
import socket
import sys
import tempfile
import threading
from pathlib import Path

from lasr.cli import Command
from lasr.errors import UserError, require
from lasr.terminal.output import say
from lasr.ui.config import TOKEN, UiConfig, is_loopback
from schemas.manifest import open_manifest

SHORTEST = 16  # characters of a token


def chosen_token(config: UiConfig) -> str | None:
    """The token that the page asks for; None if it asks for none. Raises UserError: too short."""
    if not config.token and is_loopback(config.host):
        return None
    token = os.environ.get(TOKEN, "")
    if token and (len(token) < SHORTEST or not token.isascii() or not token.isalnum()):
        raise UserError(
            f"${TOKEN}: not a token of letters and digits, {SHORTEST} or more",
            "choose a longer one, or leave it unset for a random one",
        )
    return token or secrets.token_hex(16)


def listen(config: UiConfig) -> socket.socket:
    """A socket that is bound, so that a port that is taken is said at once. Raises UserError."""
    try:
        family, _, _, _, address = socket.getaddrinfo(
            config.host, config.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        return socket.create_server(address[:2], family=family)
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or "not an address"
        raise UserError(
            f"--host {config.host} --port {config.port}: {reason}",
            "choose another --port (0 takes a free one) or --host",
        ) from error


def run(config: UiConfig) -> None:
    """Serve the page until Ctrl-C. Raises UserError."""
    if config.manifest:
        open_manifest(config.manifest, columns=())
    token = chosen_token(config)
    for name in ("starlette", "uvicorn"):
        require(name, "ui")
    from lasr.ui.server import Page, server

    listening = listen(config)
    host, port = listening.getsockname()[:2]
    shown = config.host if is_loopback(config.host) else socket.gethostname()
    shown = f"[{shown}]" if ":" in shown else shown
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, _end)
    with listening, tempfile.TemporaryDirectory(prefix="lasr-ui-") as folder:
        page = Page(config, Path(folder))
        serving = server(page, host, port, token)
        say(f"http://{shown}:{port}/{f'?token={token}' if token else ''}")
        say("Ctrl-C ends it; files that were dropped are deleted then")
        try:
            serving.run(sockets=[listening])
        finally:
            if not page.close():
                atexit.register(_leave)  # runs first: the last one registered


def _leave() -> None:
    """End although a thread still computes: Python would end it within the network's C++."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(128 + signal.SIGINT)


def _end(*_: object) -> None:
    """End as Ctrl-C does, so that the temporary folder is deleted."""
    raise SystemExit(128 + signal.SIGTERM)


main = Command(UiConfig, run, name="lasr ui", about=__doc__, weights=True)

if __name__ == "__main__":
    sys.exit(main())
