"""The exact texts of prompts."""

import numpy as np
import pytest

from pi0 import Indicator, PromptTokenizer
from pi0.prompts import build_prompt

STATE = np.array([-2.0, -1.0, 0.0, 1.0])


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, "lift_the cup \n"),
        ({"style": "openpi"}, "lift the cup\n"),
        ({"indicator": Indicator.POSITIVE}, "lift_the cup \nAdvantage: positive\n"),
        ({"indicator": Indicator.NEGATIVE}, "lift_the cup \nAdvantage: negative\n"),
        ({"indicator": Indicator.NONE}, "lift_the cup \n"),
        ({"state": STATE}, "Task: lift the cup, State: -1 0 128 255;\nAction: "),
        (
            {"state": STATE, "indicator": Indicator.POSITIVE},
            "Task: lift the cup, State: -1 0 128 255;\nAdvantage: positive\nAction: ",
        ),
    ],
)
def test_texts(options, expected):
    assert build_prompt("lift_the cup ", **options) == expected


def test_a_newline_is_not_added_twice():
    assert build_prompt("lift\n") == "lift\n"


def test_word_tokens_survive_saving_and_are_padded_right(tmp_path):
    tokenizer = PromptTokenizer.from_texts(["lift the cup", "open it"])
    prompts = ["Lift the cup\n", "open it\n"]
    tokens, mask = tokenizer.encode(prompts, 10, tokenizer.vocab_size)
    assert tokenizer.tokenizer.decode(tokens[0]).split() == ["<bos>", "lift", "the", "cup"]
    assert mask.tolist() == [[True] * 5, [True] * 4 + [False]]
    assert tokens[1, 4] == 0
    tokenizer.save(tmp_path)
    again = PromptTokenizer.from_pretrained(tmp_path)
    assert again.encode(prompts, 10, again.vocab_size)[0].equal(tokens)


def test_a_tokenizer_that_cannot_be_loaded_says_how_to_get_one(tmp_path):
    with pytest.raises(ValueError, match=r"could not be loaded.*tokenizer=<directory"):
        PromptTokenizer.from_pretrained(tmp_path / "nothing")
