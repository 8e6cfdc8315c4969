"""Serve the Prefect deployment `build-patches`.

    prefect server start     # in a terminal of its own
    lasr serve               # in another one, with PREFECT_API_URL set; keep it running
    prefect deployment run build-patches -p 'images=["/home/me/photos"]' --watch

Runs use only the folders that LASR_ROOTS names, as in LASR_ROOTS=/home/me/photos:$PWD, or else the
one in which this is started.
docs/prefect.md describes work pools, PostgreSQL and killed runs.
"""

import sys

from lasr.cli import Command
from lasr.flags import NoFlags
from pipeline.flows import server


def serve(_: NoFlags) -> None:
    """Serve the deployment until stopped. Raises UserError."""
    server.chosen()
    server.load_flow().serve()


main = Command(NoFlags, serve, name="lasr serve", about=__doc__)

# A served run imports this module again: without the guard it would serve as well, and never run.
if __name__ == "__main__":
    sys.exit(main())
