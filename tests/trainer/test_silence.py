"""Heartbeats: who is silent, who is late, and who has left; rounds count, not a clock."""

import pytest
import torch.distributed as dist

from trainer.distributed import World, silence
from trainer.distributed.silence import Heartbeats, lost


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> dist.Store:  # type: ignore[name-defined]
    monkeypatch.setattr(silence, "BEAT", 1.0)
    monkeypatch.setattr(silence, "SILENCE", 3.0)
    monkeypatch.setattr(silence, "START", 6.0)
    return dist.HashStore()  # type: ignore[attr-defined]


def test_a_rank_that_stops_is_silent_after_the_limit(store: dist.Store) -> None:  # type: ignore[name-defined]
    first, second = Heartbeats(World(0, 2), store), Heartbeats(World(1, 2), store)
    for _ in range(20):
        assert first.round() == second.round() == {}
    found = [first.round() for _ in range(5)]  # the first of them sees the last heartbeat
    assert [bool(silent) for silent in found] == [False] * 4 + [True] and 1 in found[4]
    assert second.round() == {}  # it has slept, and the other was not silent
    assert first.round() == {}  # nor is the one that is back


def test_a_rank_that_has_not_started_has_longer(store: dist.Store) -> None:  # type: ignore[name-defined]
    first = Heartbeats(World(0, 2), store)
    found = [first.round() for _ in range(7)]
    assert found[:6] == [{}] * 6 and found[6] == {1: ""}
    assert str(lost(found[6])).startswith("rank 1 did not start within 6 s; look at its machine")


def test_a_rank_that_has_left_is_not_silent(store: dist.Store) -> None:  # type: ignore[name-defined]
    first, second = Heartbeats(World(0, 2), store), Heartbeats(World(1, 2), store)
    second.round()
    store.set("left/1", "")
    assert all(first.round() == {} for _ in range(9))


def test_the_machines_of_silent_ranks_are_named(store: dist.Store) -> None:  # type: ignore[name-defined]
    said = str(lost({3: "b", 2: "b", 5: "c"}))
    assert said.startswith("nothing was heard from ranks 2, 3, 5 on b, c for 3 s: the machine or")


def test_ranks_of_one_machine_are_named_together(store: dist.Store) -> None:  # type: ignore[name-defined]
    """They do not fall silent in the same round."""
    ranks = [Heartbeats(World(rank, 4), store) for rank in range(4)]
    for rank in ranks:
        rank.round()
    ranks[0].round()
    ranks[2].round()  # once more than rank 3
    while not (silent := ranks[0].round()):
        ranks[1].round()
    assert sorted(silent) == [2, 3]
