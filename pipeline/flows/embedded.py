"""Prefect's server for the time of one command. `pipeline.flows.server` starts this file.

    python -P embedded.py SOCKET PARENT PORT    # a listening descriptor, the command's process id

SOCKET is -1 where a process cannot pass one on (Windows): it then listens on PORT by itself.

It ends when its parent has ended, in whatever way: a command that is killed cannot stop it.
"""

import os
import signal
import socket
import sys
import threading
import time

PAUSE = 0.5  # seconds between two looks at the parent
GRACE = 4  # seconds to finish what it does


def end_with(parent: int) -> None:
    """Wait until `parent` is no longer the parent of this process, then end it.

    Not PR_SET_PDEATHSIG: it fires when the *thread* ends that started this process.
    """
    if os.name == "nt":  # where the number of a parent never changes
        sys.stdin.buffer.read()  # the parent holds the other end
    else:
        while os.getppid() == parent:
            time.sleep(PAUSE)
    signal.raise_signal(signal.SIGTERM)
    time.sleep(GRACE)
    os._exit(1)


def main() -> None:
    """Serve until stopped."""
    descriptor, parent, port = map(int, sys.argv[1:])
    threading.Thread(target=end_with, args=(parent,), daemon=True).start()
    import uvicorn

    app = "prefect.server.api.server:create_app"
    config = uvicorn.Config(app, factory=True, log_level="error", lifespan="on")
    server = uvicorn.Server(config)
    listening = socket.socket(fileno=descriptor) if descriptor >= 0 else socket.socket()
    if descriptor < 0:
        listening.bind(("127.0.0.1", port))
    server.run(sockets=[listening])
    sys.exit(0 if server.started else 1)


if __name__ == "__main__":
    main()
