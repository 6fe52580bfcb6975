# SPDX-License-Identifier: Apache-2.0
"""Keeps what libraries say on the way out of a command's answer."""

import logging


def be_quiet() -> None:
    """Let LlamaFactory, transformers and datasets say errors alone and draw no bars; the command says what it does."""
    import datasets
    import transformers

    logging.getLogger("llamafactory").setLevel(logging.ERROR)
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    datasets.disable_progress_bars()
