"""Training on several devices under `torchrun`."""

from trainer.distributed.group import process_group, world_from_environment
from trainer.distributed.world import ReportedElsewhere, World

__all__ = ["ReportedElsewhere", "World", "process_group", "world_from_environment"]
