"""Serve the Prefect deployment `build-patches`.

    prefect server start                     # in a terminal of its own
    python -m pipeline.flows                 # in another, with PREFECT_API_URL set; keep it running
    prefect deployment run build-patches -p 'images=["/home/me/photos"]' --watch

docs/prefect.md tells more: work pools, PostgreSQL, killed runs.
"""

import sys

from lasr.cli import Command
from lasr.flags import NoFlags


def serve(_: NoFlags) -> None:
    """Serve the deployment until stopped. Raises UserError: no server is named."""
    from pipeline.flows import flow  # Prefect takes seconds

    flow.serve()


main = Command(NoFlags, serve, name="lasr serve", about=__doc__)

# A served run imports this module again: without the guard it would serve, too, and never run.
if __name__ == "__main__":
    sys.exit(main())
