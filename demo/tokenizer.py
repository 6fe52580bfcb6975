# SPDX-License-Identifier: Apache-2.0
"""The demo's own tokenizer: a closed vocabulary of whole words, with every digit one token.

The pieces carry their spaces (` has`, ` `, `3`, `4`), and no sequence of pieces spells the same text as another one.
So text that was decoded from tokens encodes to the same tokens again, whatever the model sampled.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from . import problems


if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


PAD, EOS, UNKNOWN = "<pad>", "<eos>", "<unk>"
TEMPLATE_PIECES = ("Human:", "Assistant:", "\n")
SIGNS = (" ", *"0123456789", "+", "-", "=", ";", ",", ".", "?")
WORDS = (
    *problems.NAMES,
    *problems.ITEMS,
    *problems.GAINS,
    *problems.LOSSES,
    *("has", "How", "many", "now", "From", "then", "are", "left", "There", "Then", "come", "go", "there"),
    *("counts", "and", "more", "less", "What", "is", "the", "total", "answer"),
)


def vocabulary() -> list[str]:
    """All tokens in the order of their ids: special ones, pieces of the template, signs, words with their space."""
    return [PAD, EOS, UNKNOWN, *TEMPLATE_PIECES, *SIGNS, *(f" {word}" for word in WORDS)]


def build_tokenizer() -> PreTrainedTokenizerFast:
    """Make the tokenizer; text outside its vocabulary becomes `<unk>`."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    tokens = vocabulary()
    backend = Tokenizer(models.WordLevel({token: index for index, token in enumerate(tokens)}, unk_token=UNKNOWN))
    longest_first = sorted(tokens[3:], key=len, reverse=True)
    pattern = "|".join(re.escape(token) for token in longest_first)
    backend.pre_tokenizer = pre_tokenizers.Split(Regex(pattern), behavior="isolated")
    backend.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        eos_token=EOS,
        pad_token=PAD,
        unk_token=UNKNOWN,
        clean_up_tokenization_spaces=False,
        model_max_length=256,
    )
