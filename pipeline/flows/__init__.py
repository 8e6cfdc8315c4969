"""The Prefect flow and deployment `build-patches`; nothing else imports Prefect."""

from typing import Any


def __getattr__(name: str) -> Any:
    """The flow itself, `pipeline.flows.build_patches`, by which deployments name it."""
    if name == "build_patches":
        from pipeline.flows.flow import build_patches

        return build_patches
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
