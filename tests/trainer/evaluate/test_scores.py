"""Values survive a kill; a line cut short does not harm those that follow."""

from pathlib import Path

import pytest

from lasr.errors import UserError
from trainer.evaluate.scores import Cache


def test_values_are_read_again_and_the_last_one_counts(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "a.jsonl"
    cache = Cache(path)
    cache.add("café", {"score": 0.1})
    cache.add("b", {"score": None})
    cache.add("café", {"score": 0.2})
    again = Cache(path)
    assert again.get("café") == {"score": 0.2} and again.get("b") == {"score": None}
    assert again.get("c") is None and len(path.read_text().splitlines()) == 3


def test_a_line_cut_short_by_a_kill_is_dropped(
    tmp_path: Path,
) -> None:
    path = tmp_path / "a.jsonl"
    Cache(path).add("a", {"score": 1})
    whole = path.read_bytes()
    for cut in range(1, len(whole)):
        path.write_bytes(whole + whole[:cut])
        cache = Cache(path)
        cache.add("b", {"score": 2})
        again = Cache(path)
        assert again.get("a") == {"score": 1} and again.get("b") == {"score": 2}


def test_a_damaged_line_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    for line in ("nonsense", "1", "[]", "{}"):
        path.write_text(f'{{"key": "a"}}\n{{"key": "a"}}\n{line}\n')
        with pytest.raises(UserError, match=r"a\.jsonl: line 3 is damaged; remove the file"):
            Cache(path)
