"""The Prefect flows `build-patches` and `train-and-evaluate`. No other package imports Prefect."""

import os
from typing import Any

# Prefect reads these when it is imported, which happens in the modules of this package only.
os.environ.setdefault("DO_NOT_TRACK", "1")  # no usage statistics
os.environ.setdefault("PREFECT_SERVER_ANALYTICS_ENABLED", "false")
# No page of another origin may call the embedded server. prefect.toml has the same for others.
os.environ.setdefault(
    "PREFECT_SERVER_CORS_ALLOWED_ORIGINS", "http://127.0.0.1:4200,http://localhost:4200"
)
if os.environ.get("NO_COLOR"):  # https://no-color.org
    for _name in ("PREFECT_LOGGING_COLORS", "PREFECT_CLI_COLORS"):
        os.environ.setdefault(_name, "0")


def __getattr__(name: str) -> Any:
    """Import a flow when it is used. Deployments name it, as `pipeline.flows.build_patches`."""
    if name == "build_patches":
        from pipeline.flows.flow import build_patches

        return build_patches
    if name == "train_and_evaluate":
        from pipeline.flows.training import train_and_evaluate

        return train_and_evaluate
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    """Let Prefect find the plugin hook here.

    Installations made before the hook had a module of its own name this package as the plugin.
    """
    from pipeline.flows.plugin import setup_environment

    globals()["setup_environment"] = setup_environment
    return sorted(globals())
