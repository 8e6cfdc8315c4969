"""Values survive a kill; a line cut short does not harm those that follow."""

from pathlib import Path

import pytest

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


def test_a_damaged_line_is_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "a.jsonl"
    for line in ("nonsense", "1", "[]", "{}", '{"key": "b", "score": 1, "digest": "0"}'):
        path.unlink(missing_ok=True)
        for name in "ac":
            Cache(path).add(name, {"score": 1})
        path.write_text(path.read_text() + line + "\n")
        caplog.clear()
        cache = Cache(path)
        assert cache.get("c") == {"score": 1} and cache.get("b") is None
        assert "a.jsonl: 1 damaged line, what was there is computed again: 3" in caplog.text
