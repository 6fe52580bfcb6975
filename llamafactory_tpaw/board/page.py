# SPDX-License-Identifier: Apache-2.0
"""What the tabs of self-play need of the page that they stand in."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

from .locales import FALLBACK, LOCALES
from .places import Places


if TYPE_CHECKING:
    import gradio as gr
    from gradio.components import Component


class Page(NamedTuple):
    r"""LlamaBoard's own elements, and where its files are.

    Attributes:
        lang: `top.lang`.
        model_name: `top.model_name`.
        finetuning_type: `top.finetuning_type`.
        dataset_dir: `train.dataset_dir`.
        tab: The top-level tab; what it offers is read anew whenever it is chosen.
        places: The folders that may be reached, for what `dataset_dir` shows.
        playing: Whether self-play is running on this machine.
    """

    lang: Component
    model_name: Component
    finetuning_type: Component
    dataset_dir: Component
    tab: gr.Tab
    places: Callable[[str], Places]
    playing: Callable[[], bool] = lambda: False


class Elements(dict[str, Any]):
    """The elements of a tab that is being built, by name; each has its name as its `elem_id`."""

    def add(self, kind: Any, name: str, **options: Any) -> None:
        """Make an element; what it says is LlamaBoard's to change with the language."""
        self[name] = kind(elem_id=name, **LOCALES.get(name, {FALLBACK: {}})[FALLBACK], **options)
