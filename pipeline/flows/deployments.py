"""Both flows as deployments of this process: `lasr serve`."""

from prefect import serve

from lasr.terminal.output import is_quiet, say
from lasr.terminal.summary import say_next
from pipeline.flows import flow, training
from pipeline.flows.schedule import ServeConfig
from pipeline.roots import VARIABLE, roots

TAGS = ["la-sr"]  # of every run, to find them in the web pages


def serve_all(config: ServeConfig) -> None:
    """Serve the deployments from this folder until stopped. Raises UserError."""
    say(f"runs may read and write below {', '.join(roots())} ({VARIABLE})")
    images = 'images=["PHOTOGRAPHS"]'
    say_next(["prefect", "deployment", "run", flow.NAME, "-p", images, "--watch"])
    tags = [*TAGS, *config.tags]
    with flow.reachable_server():
        builds = flow.build_patches.to_deployment(
            flow.NAME, schedules=config.schedules(), tags=tags
        )
        runs = training.train_and_evaluate.to_deployment(training.NAME, tags=tags)
        for deployment in builds, runs:
            # Prefect names the function `_NAME`, which is the flow without its settings.
            file, _, name = str(deployment.entrypoint).rpartition(":")
            deployment.entrypoint = f"{file}:{name.lstrip('_')}"
        serve(builds, runs, limit=config.limit, print_starting_message=not is_quiet())
