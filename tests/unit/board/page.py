# SPDX-License-Identifier: Apache-2.0
"""A page of LlamaBoard without a browser: what its fields show, and what happens when one is changed or pressed."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any
from unittest import mock

import gradio as gr


class DrivenPage:
    """Values by element, and the functions that the page's events are connected to."""

    def __init__(self, blocks: gr.Blocks, engine: Any) -> None:
        self.blocks, self.engine, self.manager = blocks, engine, engine.manager
        self.initial = {element: getattr(element, "value", None) for element in self.manager.get_elem_list()}
        self.reset()

    def reset(self) -> None:
        """Show what a page shows when it opens, with nothing running."""
        self.values, self.labels, self.warnings = dict(self.initial), {}, []
        runner = self.engine.runner
        runner.running, runner.aborted, runner.running_data, runner.trainer = False, False, None, None

    def element(self, name: str) -> Any:
        return self.manager.get_elem_by_id(name if "." in name else f"train.{name}")

    def show(self, **values: Any) -> None:
        """Let fields show values; `top__lang` is `top.lang`, a name alone is of the Train tab."""
        for name, value in values.items():
            self.values[self.element(name.replace("__", "."))] = value

    def __getitem__(self, name: str) -> Any:
        return self.values[self.element(name)]

    def fire(self, name: str, event: str = "click") -> str:
        """Let everything happen that is connected to an element's event; what the output box says after it."""
        for _ in self.steps(name, event):
            pass
        return self["output_box"]

    def steps(self, name: str, event: str = "click") -> Iterator[DrivenPage]:
        """Yield the page in every state that it shows while the functions of an event run."""
        target = (self.element(name)._id, event)
        for function in [each for each in self.blocks.fns.values() if target in each.targets and each.fn]:
            shown = [self.values.get(element) for element in function.inputs]
            arguments = [dict(zip(function.inputs, shown, strict=True))] if function.inputs_as_dict else shown
            # The messages that pop up; not between the answers, where others may listen.
            answers = function.fn(*arguments) if inspect.isgeneratorfunction(function.fn) else None
            while True:
                with mock.patch.object(gr, "Warning", self.warnings.append), mock.patch.object(gr, "Info"):
                    answer = next(answers, None) if answers is not None else function.fn(*arguments)
                if answers is not None and answer is None:
                    break
                self._take(function, answer)
                yield self
                if answers is None:
                    break

    def _take(self, function: Any, answer: Any) -> None:
        if not isinstance(answer, dict) or "__type__" in answer:
            answers = answer if len(function.outputs) > 1 else [answer]
            answer = dict(zip(function.outputs, answers, strict=False)) if function.outputs else {}
        for element, given in answer.items():
            if isinstance(given, gr.blocks.Block):
                given = given.constructor_args
                self.labels[element] = given.get("label")
            if not isinstance(given, dict):
                self.values[element] = given
            elif "value" in given:
                self.values[element] = given["value"]


def build_page() -> DrivenPage:
    """Build LlamaBoard's page, as `llamafactory-cli webui` does."""
    from llamafactory.webui import interface

    engines = []

    def engine(**options: Any) -> Any:
        engines.append(original(**options))
        return engines[-1]

    original = interface.Engine
    with mock.patch.object(interface, "Engine", engine):
        blocks = interface.create_ui()
    return DrivenPage(blocks, engines[0])
