"""Prefect's plugin: `prefect deployment run build-patches` finds a deployment by its bare name.

Every `prefect` command loads this module in a folder whose prefect.toml enables plugins, so it
imports nothing but Prefect's client.
"""

from functools import wraps
from typing import Any

from prefect.client.orchestration import PrefectClient
from prefect.client.schemas.filters import DeploymentFilter, DeploymentFilterName
from prefect.client.schemas.responses import DeploymentResponse
from prefect.plugins import register_hook


@register_hook  # type: ignore[untyped-decorator]
def setup_environment(*, ctx: Any) -> None:
    """Accept a bare deployment name where Prefect expects `flow/deployment`.

    The name must belong to exactly one deployment; otherwise Prefect reports its own error.
    """
    original = PrefectClient.read_deployment_by_name

    @wraps(original)
    async def by_bare_name(self: PrefectClient, name: str) -> DeploymentResponse:
        if "/" not in name:
            same_name = DeploymentFilter(name=DeploymentFilterName(any_=[name]))
            found = await self.read_deployments(deployment_filter=same_name)
            if len(found) == 1:
                return found[0]
        return await original(self, name)

    PrefectClient.read_deployment_by_name = by_bare_name  # type: ignore[method-assign]
