"""Serve the Prefect deployments `build-patches` and `train-and-evaluate`.

    prefect server start     # in a terminal of its own
    lasr serve               # in another one, with PREFECT_API_URL set; keep it running
    prefect deployment run build-patches -p 'images=["/home/me/photos"]' --watch
    lasr serve --images ~/photos --cron "0 3 * * *" --timezone Europe/Berlin    # every night

Runs use only the folders that LASR_ROOTS names, as in LASR_ROOTS=/home/me/photos:$PWD, or else the
one in which this is started.
docs/prefect.md describes work pools, PostgreSQL, notifications and killed runs.
"""

import sys

from lasr.cli import Command
from pipeline.flows import server
from pipeline.flows.schedule import ServeConfig


def serve(config: ServeConfig) -> None:
    """Serve the deployments until stopped. Raises UserError."""
    server.chosen()
    server.load_flow()
    from pipeline.flows.deployments import serve_all

    serve_all(config)


main = Command(ServeConfig, serve, name="lasr serve", about=__doc__)

# A served run imports this module again: without the guard it would serve as well, and never run.
if __name__ == "__main__":
    sys.exit(main())
