# SPDX-License-Identifier: Apache-2.0
"""Hover help: `title` attributes on the elements, in the language that the page shows; and grey for unused fields."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import gradio as gr

from .locales import FALLBACK, HELP


if TYPE_CHECKING:
    from gradio.components import Component

# Gradio draws a field that cannot be changed as one that can, and breaks the words of a table.
STYLE = """
#tpaw_tab .block:has(:is(input, textarea):disabled) { opacity: 0.45; }
#tpaw_summary :is(th, td) { word-break: normal; overflow-wrap: normal; }
"""
# Elements that are drawn later, such as those of a tab that was not opened yet, get theirs when they are pointed at.
SCRIPT = """
(lang) => {
  const help = %s;
  const say = (element) => {
    const texts = help[element.id];
    if (!texts) return;
    const text = texts[window.tpawLanguage] ?? texts[%s];
    if (element.title !== text) element.title = text;
    for (const input of element.querySelectorAll("input, textarea")) input.setAttribute("aria-description", text);
  };
  const find = (event) => {
    const element = event.target instanceof Element && event.target.closest("[id^='tpaw_']");
    if (element) say(element);
  };
  if (window.tpawLanguage === undefined) {
    document.addEventListener("mouseover", find);
    document.addEventListener("focusin", find);
    document.head.append(Object.assign(document.createElement("style"), { textContent: %s }));
  }
  window.tpawLanguage = lang ?? %s;
  for (const id of Object.keys(help)) {
    const element = document.getElementById(id);
    if (element) say(element);
  }
  return [];
}
"""


def add_hover_help(lang: Component) -> None:
    r"""Give the elements of the page their help, when it opens and when its language changes; in the browser alone.

    Call it once, inside the page's `gr.Blocks`. An element is found by its `elem_id`, which is its name in `HELP`.

    Args:
        lang: The element that holds the language.
    """
    fallback = json.dumps(FALLBACK)
    gr.on(None, fn=None, inputs=[lang], js=SCRIPT % (json.dumps(HELP), fallback, json.dumps(STYLE), fallback))
