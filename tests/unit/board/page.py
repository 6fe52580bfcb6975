# SPDX-License-Identifier: Apache-2.0
"""A page of LlamaBoard without a browser: what its fields show, and what happens when one is changed or pressed."""

from __future__ import annotations

import contextlib
import copy
import inspect
from collections.abc import Iterator
from typing import Any
from unittest import mock

import gradio as gr


class DrivenPage:
    """Values by the elements' full ids, and the functions that the page's events are connected to."""

    def __init__(self, blocks: gr.Blocks, engine: Any) -> None:
        self.blocks, self.engine, self.manager = blocks, engine, engine.manager
        self.initial = {element: getattr(element, "value", None) for element in self.manager.get_elem_list()}
        self.values = dict(self.initial)
        self.properties: dict[tuple[str, str], Any] = {}
        self.warnings: list[str] = []

    def reset(self) -> None:
        """Show what a page shows when it opens, with nothing running."""
        self.values, self.properties, self.warnings = copy.copy(self.initial), {}, []
        runner = self.engine.runner
        runner.running, runner.aborted, runner.running_data, runner.demo_mode = False, False, None, False
        if hasattr(runner, "tpaw_session"):
            runner.tpaw_session.__init__(runner)

    def element(self, name: str) -> Any:
        return self.manager.get_elem_by_id(name if "." in name else f"train.{name}")

    def show(self, **values: Any) -> None:
        """Let fields show values; `top__lang` is `top.lang`, a name alone is of the Train tab."""
        for name, value in values.items():
            self.values[self.element(name.replace("__", "."))] = value

    def __getitem__(self, name: str) -> Any:
        return self.values[self.element(name)]

    def fire(self, name: str, event: str) -> dict[str, Any]:
        """Let everything happen that is connected to an element's event; what is shown after it, by full id."""
        changed: dict[str, Any] = {}
        for function in self._connected(self.element(name), event):
            changed |= self.apply(function)
        return changed

    def apply(self, function: Any) -> dict[str, Any]:
        """Let one function of the page run; what is shown after it, by full id."""
        changed: dict[str, Any] = {}
        for update in self._call(function):
            changed |= self._take(update)
        return changed

    def steps(self, name: str, event: str = "click") -> Iterator[dict[str, Any]]:
        """Every state that the page shows while the functions of an event run."""
        for function in self._connected(self.element(name), event):
            for update in self._call(function):
                yield self._take(update)

    def monitored(self) -> Iterator[dict[str, Any]]:
        """What the page shows of a run that plays when it is loaded."""
        return (shown for shown in self.steps("resume_btn", "change") if "train.output_box" in shown)

    def _connected(self, element: Any, event: str) -> list[Any]:
        return [each for each in self.blocks.fns.values() if (element._id, event) in each.targets and each.fn]

    def _call(self, function: Any) -> Iterator[dict[Any, Any]]:
        if function.inputs_as_dict:
            arguments = [{element: self._value(element) for element in function.inputs}]
        else:
            arguments = [self._value(element) for element in function.inputs]
        with self._hear():
            result = function.fn(*arguments)
        answers, end = result if inspect.isgenerator(result) else iter([result]), object()
        while True:
            with self._hear():  # not between the answers, where others may listen
                each = next(answers, end)
            if each is end:
                return
            yield each if isinstance(each, dict) and not _is_update(each) else self._by_element(function, each)

    @contextlib.contextmanager
    def _hear(self) -> Iterator[None]:
        with mock.patch.object(gr, "Warning", self.warnings.append), mock.patch.object(gr, "Info"):
            yield

    def _value(self, element: Any) -> Any:
        """What an element shows; one that LlamaBoard does not know of, such as a `gr.State`, what it showed first."""
        return self.values[element] if element in self.values else getattr(element, "value", None)

    def _by_element(self, function: Any, result: Any) -> dict[Any, Any]:
        results = result if len(function.outputs) > 1 else [result]
        return dict(zip(function.outputs, results, strict=True)) if function.outputs else {}

    def _take(self, update: dict[Any, Any]) -> dict[str, Any]:
        """Show what a function answers; properties other than the value are kept apart."""
        shown = {}
        for element, answer in update.items():
            if element not in self.values:
                continue
            name = self.manager.get_id_by_elem(element)
            given = _properties(answer)
            for key, value in given.items():
                self.properties[name, key] = value
            if "value" in given:
                self.values[element] = shown[name] = given["value"]
        return shown


def _is_update(answer: Any) -> bool:
    return isinstance(answer, dict) and "__type__" in answer


def _properties(answer: Any) -> dict[str, Any]:
    if _is_update(answer):
        return {key: value for key, value in answer.items() if key != "__type__"}
    if isinstance(answer, gr.blocks.Block):
        return {key: value for key, value in answer.constructor_args.items() if key != "__type__"}
    return {"value": answer}


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
