"""Serve the Prefect deployment `build-patches`.

    prefect server start                     # in a terminal of its own
    python -m pipeline.flows                 # in another, with PREFECT_API_URL set; keep it running
    prefect deployment run build-patches -p 'images=["/home/me/photos"]' --watch

docs/prefect.md tells more: work pools, PostgreSQL, killed runs.
"""

import argparse
import sys

from lasr.cli import run_command


def serve() -> None:
    """Serve the deployment until stopped. Raises UserError: no server is named."""
    from pipeline.flows import flow  # Prefect takes seconds

    flow.serve()


def main(argv: list[str] | None = None) -> int:
    """The command `python -m pipeline.flows`."""
    parser = argparse.ArgumentParser(prog="python -m pipeline.flows", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.parse_args(argv)
    return run_command(serve)


# A served run imports this module again: without the guard it would serve, too, and never run.
if __name__ == "__main__":
    sys.exit(main())
