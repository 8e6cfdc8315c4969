"""Rules for pipeline/stages/dictionary.txt, the words that patch captions are made of."""

from __future__ import annotations

import re
from pathlib import Path

import open_clip
import pytest

DICTIONARY = Path(__file__).parents[3] / "pipeline" / "stages" / "dictionary.txt"
WORD_COUNT = 1000
CAPTION_WORDS = 24
CONTEXT_LENGTH = 77
MAX_TOKENS = 2

QUALITY_TEXT = """
good bad best worst great poor nice fine perfect awful beautiful pretty ugly lovely stunning
sharp blurry blurred blur crisp clear fuzzy soft hazy focus focused defocused unfocused noise
noisy grain grainy pixel pixelated blocky jpeg artifact artifacts compressed compression banding
aliasing aliased detailed detail quality resolution high low hd hdr uhd 4k 8k bokeh exposure
overexposed underexposed saturated contrast vivid dull professional amateur photo photograph
photography image picture degraded distorted corrupted clean dirty smooth oversmoothed realistic
"""
QUALITY_WORDS = frozenset(QUALITY_TEXT.split())
# Ordinary things whose names contain one of the words above.
NOT_ABOUT_QUALITY = frozenset({"picture frame", "wood grain"})


def read_groups() -> dict[str, list[str]]:
    """Split the file at its blank lines: a comment header, then one block a group."""
    _, *blocks = DICTIONARY.read_text(encoding="ascii").strip().split("\n\n")
    groups: dict[str, list[str]] = {}
    for block in blocks:
        title, *words = block.split("\n")
        assert title.startswith("# "), f"block without a '# group name' line: {title!r}"
        name = title.removeprefix("# ")
        assert name not in groups, f"group named twice: {name}"
        groups[name] = words
    return groups


GROUPS = read_groups()
WORDS = [word for words in GROUPS.values() for word in words]


@pytest.fixture(scope="module")
def tokenizer() -> open_clip.SimpleTokenizer:
    """The tokenizer of the CLIP model that ranks the words."""
    found = open_clip.get_tokenizer("ViT-L-14")
    assert isinstance(found, open_clip.SimpleTokenizer)
    return found


def test_header_is_only_comments() -> None:
    """The first block explains the file; a word in it would be read but never reviewed."""
    header = DICTIONARY.read_text(encoding="ascii").split("\n\n")[0]
    assert all(line.startswith("#") for line in header.split("\n"))


def test_plain_reader_sees_the_same_words() -> None:
    """A reader that only skips blank lines and comments must find the same words in order."""
    lines = DICTIONARY.read_text(encoding="ascii").splitlines()
    assert [line for line in lines if line and not line.startswith("#")] == WORDS


def test_count() -> None:
    """The method ranks a fixed number of words."""
    assert len(WORDS) == WORD_COUNT


def test_unique() -> None:
    """A word listed twice would take two of a caption's places."""
    assert sorted({word for word in WORDS if WORDS.count(word) > 1}) == []


def test_characters() -> None:
    """Lower-case ASCII with single separators, so that a comma always ends a word."""
    allowed = re.compile(r"[a-z]+(?:[ '-][a-z]+)*")
    assert [word for word in WORDS if not allowed.fullmatch(word)] == []


def test_group_sizes() -> None:
    """Groups small enough to review, large enough to be worth a heading."""
    assert {name: len(words) for name, words in GROUPS.items() if not 12 <= len(words) <= 60} == {}


def test_alphabetical_inside_groups() -> None:
    """In order, so that a person finds a word and an edit makes a one-line diff."""
    assert [name for name, words in GROUPS.items() if words != sorted(words)] == []


def test_no_plural_doubles() -> None:
    """A plural beside its singular fills a second place and says nothing new."""
    known = set(WORDS)
    doubles: list[tuple[str, str]] = []
    for word in WORDS:
        plurals = {word + "s", word + "es"}
        plurals |= {word[:-1] + "ies"} if word.endswith("y") else set()
        plurals |= {word.removesuffix("e")[:-1] + "ves"} if re.search("fe?$", word) else set()
        doubles += [(word, plural) for plural in sorted(plurals & known)]
    assert doubles == []


def test_no_quality_words() -> None:
    """Captions say what is there; training contrasts quality through texts of its own."""
    suspects = [word for word in WORDS if QUALITY_WORDS & set(re.split("[ -]", word))]
    assert sorted(set(suspects) - NOT_ABOUT_QUALITY) == []


def test_token_limit(tokenizer: open_clip.SimpleTokenizer) -> None:
    """Two tokens a word bound every caption: 24 * 2 words + 23 commas + start + end = 73."""
    lengths = {word: len(tokenizer.encode(word)) for word in WORDS}
    assert {word: length for word, length in lengths.items() if length > MAX_TOKENS} == {}
    assert CAPTION_WORDS * MAX_TOKENS + (CAPTION_WORDS - 1) + 2 < CONTEXT_LENGTH


def test_longest_caption_fits(tokenizer: open_clip.SimpleTokenizer) -> None:
    """CLIP cuts long texts silently, so the worst caption must come back whole."""

    def size(word: str) -> tuple[int, int]:
        return len(tokenizer.encode(word)), len(word)

    longest = sorted(WORDS, key=size, reverse=True)[:CAPTION_WORDS]
    tokens: list[int] = tokenizer([", ".join(longest)])[0].tolist()
    assert len(tokens) == CONTEXT_LENGTH
    assert tokens[-1] == 0, "the caption reaches the last position and may have been cut"
    end = tokens.index(tokenizer.eot_token_id)
    assert tokenizer.decode(tokens[1:end]).strip().split(" , ") == longest


def test_every_word_survives_a_caption(tokenizer: open_clip.SimpleTokenizer) -> None:
    """Joined in list order, 24 at a time, each word comes back as it was written."""
    for start in range(0, len(WORDS), CAPTION_WORDS):
        words = WORDS[start : start + CAPTION_WORDS]
        tokens: list[int] = tokenizer([", ".join(words)])[0].tolist()
        end = tokens.index(tokenizer.eot_token_id)
        assert tokenizer.decode(tokens[1:end]).strip().split(" , ") == words
