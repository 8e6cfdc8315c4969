"""Machines that fall silent: switched off, or cut off from the others.

Nobody closes their connections, so that PyTorch would wait for them for half an hour, and a
connection to a store for longer. Each process therefore writes a heartbeat into the store, a number
that grows, and looks whether those of the others grow. Rounds are counted, not seconds of a clock:
a machine that sleeps, or whose clock is set, blames nobody.
"""

import socket

from torch.distributed import Store  # type: ignore[attr-defined]

from lasr.errors import UserError
from trainer.distributed.world import World

BEAT = 5.0  # seconds between two heartbeats
SILENCE = 120.0  # seconds without one after which a process counts as lost; a minute is survived
START = 600.0  # seconds that a process may take to send its first
_AGAIN = "run the same command again on all machines, which resumes from the last checkpoint"


class Heartbeats:
    """The heartbeats of all processes of a run, seen by one of them."""

    def __init__(self, world: World, store: Store):
        self.world, self._store = world, store
        self._rounds = 0
        self._last: dict[int, bytes] = {}
        self._missed = dict.fromkeys(range(world.size), 0)  # rounds since the last heartbeat
        self._send()  # from now on this process has started

    def _send(self) -> None:
        self._store.set(f"beat/{self.world.rank}", f"{self._rounds} {socket.gethostname()}")

    def round(self) -> dict[int, str]:
        """Send one, and look for those of the others; silent ranks, each with its machine."""
        self._rounds += 1
        self._send()
        others = [rank for rank in range(self.world.size) if rank != self.world.rank]
        known = [rank for rank in others if self._store.check([f"beat/{rank}"])]
        beats = self._store.multi_get([f"beat/{rank}" for rank in known]) if known else []
        found = dict(zip(known, beats, strict=True))
        waited = {}  # shares of what each may take
        for rank in others:
            grown = found.get(rank) != self._last.get(rank)
            self._missed[rank] = 0 if grown else self._missed[rank] + 1
            waited[rank] = self._missed[rank] * BEAT / (SILENCE if rank in found else START)
        self._last = found
        over = [rank for rank in others if waited[rank] > 1 and not self._has_left(rank)]
        # Those of one machine fall silent together, though not in the same round.
        late = [rank for rank in others if waited[rank] > 0.5 and not self._has_left(rank)]
        return {rank: found.get(rank, b"").decode().partition(" ")[2] for rank in late if over}

    def _has_left(self, rank: int) -> bool:
        return bool(self._store.check([f"left/{rank}"]))


def lost(silent: dict[int, str]) -> UserError:
    """The error for ranks that are silent."""
    if all(silent.values()):
        machines = ", ".join(sorted(set(silent.values())))
        return UserError(
            f"nothing was heard from {_ranks(silent)} on {machines} for {SILENCE:.0f} s: the"
            " machine or its network is down",
            f"check it, then {_AGAIN}",
        )
    return UserError(
        f"{_ranks(silent)} did not start within {START:.0f} s",
        "look at its machine, then start the run on all machines again",
    )


def unreachable(address: str) -> UserError:
    """The error for the machine that holds the store, and rank 0 under torchrun."""
    return UserError(
        f"{address} (MASTER_ADDR) has not answered for {SILENCE:.0f} s: that machine, or the"
        " network to it, is down",
        f"check it, then {_AGAIN}",
    )


def _ranks(silent: dict[int, str]) -> str:
    numbers = ", ".join(map(str, sorted(silent)))
    return f"rank {numbers}" if len(silent) == 1 else f"ranks {numbers}"
