# SPDX-License-Identifier: Apache-2.0
"""Every text that the page shows, in LlamaBoard's languages: labels, hover help and messages."""

from .fields import TRAIN
from .help import TRAIN as TRAIN_HELP
from .help_tabs import TABS as TABS_HELP
from .language import FALLBACK, LANGUAGES, Translations
from .messages import MESSAGES
from .tabs import TABS


__all__ = ["FALLBACK", "HELP", "LANGUAGES", "LOCALES", "MESSAGES", "Translations", "say"]

# Last part of an element's id -> language -> properties of the component, as LlamaBoard's own table has it.
LOCALES: dict[str, Translations] = {**TRAIN, **TABS}
# The same ids -> language -> what hovering over the element shows.
HELP: dict[str, Translations] = {**TRAIN_HELP, **TABS_HELP}


def say(name: str, lang: str | None, /, **values: object) -> str:
    """Return message `name` in a language, English where the page has no such language, with `values` filled in."""
    return MESSAGES[name][lang or FALLBACK].format(**values)
