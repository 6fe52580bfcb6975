# SPDX-License-Identifier: Apache-2.0
"""Hover help of the elements, in LlamaBoard's languages."""

from .language import Translations


HELP: dict[str, Translations] = {}
