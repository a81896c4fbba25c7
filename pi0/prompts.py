"""Prompt texts and their tokens.

A prompt is the task, for pi05 also the discretised state, and where wanted the advantage indicator as text.
"""

import errno
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors
from torch import Tensor

from pi0.errors import UnusableError
from pi0.observation import Indicator

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase  # takes seconds: not for a command's --help

PALIGEMMA_TOKENIZER = "google/paligemma-3b-pt-224"
INDICATOR_TEXT = {
    Indicator.NONE: "",
    Indicator.POSITIVE: "Advantage: positive\n",
    Indicator.NEGATIVE: "Advantage: negative\n",
}


def build_prompt(
    task: str,
    *,
    indicator: Indicator = Indicator.NONE,
    state: Float[np.ndarray, " s"] | None = None,
    style: Literal["lerobot", "openpi"] = "lerobot",
) -> str:
    r"""Return the prompt text.

    pi0: `"{task}\n"`, then `"Advantage: positive\n"` where there is an indicator (OpenTau's text). pi05
    (with the normalised state): `"Task: {task}, State: {bins};\nAction: "` with the indicator before the
    last word. pi05 always cleans the task, pi0 only in openpi's style.
    """
    if style == "openpi" or state is not None:
        task = task.strip().replace("_", " ").replace("\n", " ")
    advantage = INDICATOR_TEXT[indicator]
    if state is None:
        return (task if task.endswith("\n") else f"{task}\n") + advantage
    # 256 bins over [-1, 1]; -1 below the range (openpi tokenizer.py: PaligemmaTokenizer.tokenize).
    bins = np.digitize(state, np.linspace(-1, 1, 257)[:-1]) - 1
    return f"Task: {task}, State: {' '.join(map(str, bins))};\n{advantage}Action: "


def build_prompts(
    tasks: Sequence[str],
    indicators: Sequence[Indicator],
    states: Sequence[Float[np.ndarray, " _"] | None],
    style: Literal["lerobot", "openpi"],
) -> list[str]:
    """Return the prompt of each sample."""
    samples = zip(tasks, indicators, states, strict=True)
    return [build_prompt(task, indicator=i, state=state, style=style) for task, i, state in samples]


class PromptTokenizer:
    """Turns prompts into right-padded token ids; wraps a transformers tokenizer."""

    def __init__(self, tokenizer: "PreTrainedTokenizerBase", name: str) -> None:
        self.tokenizer = tokenizer
        self.name = name  # of the hub repository or directory it came from

    @classmethod
    def from_pretrained(cls, name_or_path: str | Path = PALIGEMMA_TOKENIZER) -> "PromptTokenizer":
        """Return a tokenizer from a directory or the hub; the default is that of every pi0 checkpoint."""
        from transformers import AutoTokenizer  # it imports much that toy runs and workers have no use for

        try:
            tokenizer = AutoTokenizer.from_pretrained(str(name_or_path))
        except (OSError, ValueError) as error:
            raise UnusableError(
                f"tokenizer {str(name_or_path)!r} could not be loaded ({error}). PaliGemma's is gated: "
                "accept its licence on the hub and run `hf auth login`, or pass tokenizer=<directory with "
                "tokenizer.json>."
            ) from error
        return cls(tokenizer, str(name_or_path))

    @classmethod
    def from_texts(cls, texts: Iterable[str]) -> "PromptTokenizer":
        """Return a word-level tokenizer whose vocabulary is the words of the texts and of every prompt form.

        For small policies trained from scratch. Case is ignored, and an unknown word is an error in `encode`.
        """
        forms = [
            *INDICATOR_TEXT.values(),
            build_prompt("", state=np.zeros(1)),
            "-",
            *map(str, range(256)),
        ]
        from transformers import PreTrainedTokenizerFast

        splitter = pre_tokenizers.Split(Regex(r"\n|[a-z]+|\d+|[^\sa-z\d]"), "removed", invert=True)
        words = {w for text in [*texts, *forms] for w, _ in splitter.pre_tokenize_str(text.lower())}
        vocabulary = {word: i for i, word in enumerate(["<pad>", "<bos>", "<unk>", *sorted(words)])}
        tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
        tokenizer.normalizer = normalizers.Lowercase()  # pyright: ignore
        tokenizer.pre_tokenizer = splitter  # pyright: ignore
        template = processors.TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", 1)])
        tokenizer.post_processor = template  # pyright: ignore
        special = {"pad_token": "<pad>", "bos_token": "<bos>", "unk_token": "<unk>"}
        return cls(PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special), "tokenizer")

    @property
    def vocab_size(self) -> int:
        """Number of token ids."""
        return len(self.tokenizer)

    def encode(
        self, prompts: Sequence[str], max_length: int, vocab_size: int
    ) -> tuple[Int[Tensor, "b l"], Bool[Tensor, "b l"]]:
        """Return token ids and their mask, padded to the longest prompt.

        A prompt of more than `max_length` tokens or with an id beyond `vocab_size` is an error (lerobot and
        openpi cut it silently), as is a word that the vocabulary lacks.
        """
        if not prompts:  # the library's tokenizer fails; a process of distributed training can have no sample
            return torch.zeros(0, 0, dtype=torch.long), torch.zeros(0, 0, dtype=torch.bool)
        encoded = self.tokenizer(list(prompts), add_special_tokens=True)
        ids: list[list[int]] = encoded["input_ids"]  # pyright: ignore[reportAssignmentType]
        for prompt, row in zip(prompts, ids, strict=True):
            if len(row) > max_length:
                raise UnusableError(
                    f"prompt: expected at most tokenizer_max_length={max_length} tokens, found {len(row)} in "
                    f"{prompt!r}; shorten it or raise tokenizer_max_length"
                )
            if max(row) >= vocab_size:
                raise UnusableError(
                    f"vocab_size: expected more than {max(row)}, the largest token id of {prompt!r}, found "
                    f"{vocab_size}; policy and tokenizer do not belong together"
                )
            if self.tokenizer.unk_token_id is not None and self.tokenizer.unk_token_id in row:
                raise UnusableError(
                    f"prompt: {prompt!r} has a word that the tokenizer does not know; a word-level tokenizer "
                    "knows only the texts it was made from"
                )
        longest = max(map(len, ids))
        tokens = torch.zeros(len(ids), longest, dtype=torch.long)  # pad id 0, as PaliGemma
        mask = torch.zeros(len(ids), longest, dtype=torch.bool)
        for i, row in enumerate(ids):
            tokens[i, : len(row)] = torch.tensor(row)
            mask[i, : len(row)] = True
        return tokens, mask

    def save(self, directory: Path) -> None:
        """Write tokenizer.json and its companions."""
        try:
            self.tokenizer.save_pretrained(str(directory))
        except Exception as error:
            if "os error 28" in str(error):  # a full disk: tokenizers raises nothing more exact
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(directory)) from error
            raise
