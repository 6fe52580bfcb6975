# SPDX-License-Identifier: Apache-2.0
"""Take out of a report what must not stand in an issue: names of people, tokens, passwords."""

import getpass
import os
import re
from pathlib import Path
from typing import Any


SECRET = re.compile(r"TOKEN|SECRET|PASSW|CREDENTIAL|KEY", re.IGNORECASE)
MIN_SECRET_CHARACTERS = 6


def cleaned(value: Any) -> Any:
    """Return dicts, lists, texts with the home folder as `~`, the user's name as `$USER`, secrets by their names."""
    if isinstance(value, dict):
        return {key: cleaned(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [cleaned(item) for item in value]
    return _clean_text(value) if isinstance(value, str) else value


def _clean_text(text: str) -> str:
    for name, secret in os.environ.items():
        if SECRET.search(name) and len(secret) >= MIN_SECRET_CHARACTERS:
            text = text.replace(secret, f"${name}")
    text = re.sub(r"(?<=//)[^/\s@]+@", "", text)  # user:password@ of an address
    for home in {str(Path.home()), os.path.realpath(Path.home())}:
        if home != os.sep:
            text = re.sub(rf"(?<![\w.-]){re.escape(home)}(?![\w.-])", "~", text)
    user = _user()
    # As a part of a path; `$USER` keeps a command that can be pasted.
    return re.sub(rf"(?<=[/\\]){re.escape(user)}(?![\w.-])", "$USER", text) if user else text


def _user() -> str | None:
    try:
        user = getpass.getuser()
    except (KeyError, OSError, ImportError):
        return None  # a container's user without a name
    return None if user == "root" else user
