"""Tokens put together word by word are those of open_clip's tokenizer."""

import random

import open_clip
import pytest
import torch

from pipeline.stages.captions import DICTIONARY, read_dictionary
from trainer.models.encoders import Tokens

TOKENIZE = open_clip.get_tokenizer("ViT-L-14")

ODD = [
    "", "good", "sky, water", "sky,water", "sky , water", "sky, water,", ", sky", "sky, , water",
    "St. Bernard, U.S.A., 35mm film, f/2.8, 4k", "it's, dog's, 's, don't", "a-b, c_d, (e), #f, 9%",
    "Sky, WATER, Éclair, naïve café, 水, ½", "fish &amp; chips, rock & roll, a;b",
    "tab\there, line\nbreak", "<start_of_text>, <end_of_text>", "  two  spaces, inside  words  ",
    "x" * 69 + ", " + "y" * 80, ", ".join(["unbelievably long caption"] * 40),
    "\x1b[31mred, blue", "a" * 75 + ", b",
]  # fmt: skip


@pytest.mark.parametrize("text", ODD)
def test_odd_captions(text: str) -> None:
    assert torch.equal(Tokens(TOKENIZE).of(text), TOKENIZE([text])[0])


def test_captions_of_the_dictionary_and_few_calls() -> None:
    """Any 24 words, also more than 77 tokens of them; each word is tokenised once."""
    words, chance, calls = read_dictionary(DICTIONARY), random.Random(0), list[str]()

    def tokenize(texts: list[str]) -> torch.Tensor:
        calls.extend(texts)
        return TOKENIZE(texts)

    tokens = Tokens(tokenize)
    for number in range(200):
        caption = ", ".join(chance.sample(words, 24 if number % 4 else 60))
        assert torch.equal(tokens.of(caption), TOKENIZE([caption])[0]), caption
    assert len(calls) == len(set(calls)) <= len(words) + 2
