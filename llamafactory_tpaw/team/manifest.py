# SPDX-License-Identifier: Apache-2.0
"""`tpaw.json`: what a checkpoint of self-play came from, in its own folder; when, on what and with which versions."""

from __future__ import annotations

import os
import platform
import sys
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from importlib.metadata import distributions
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NotRequired

from typing_extensions import TypedDict

from .. import __version__
from ..data.files import key_problems, read_json, write_json_atomic
from ..errors import DataError
from ..lf.status import installed_commit, installed_version


if TYPE_CHECKING:
    import torch

MANIFEST = "tpaw.json"
SCHEMA: Literal[1] = 1
# Those that change numbers, beside LlamaFactory.
PACKAGES = ("transformers", "torch", "accelerate", "datasets", "tokenizers", "safetensors", "deepspeed")

# Of a θ `files` are the SHA-256 of the files in its folder; of an adapter `below` is the model, and it with each
# adapter before; `score` is by what a player was chosen.
Below = TypedDict("Below", dict.fromkeys(("path", "fingerprint"), str))
FILES = {"files": NotRequired[dict[str, str]], "below": NotRequired[list[Below]]}
Theta = TypedDict("Theta", FILES | Below.__annotations__ | {"name": str, "score": NotRequired[float]})
Saved = TypedDict("Saved", FILES | dict.fromkeys(("name", "fingerprint", "dtype"), NotRequired[str]))
OF_SOURCE = dict.fromkeys(("generator", "opponent", "path"), NotRequired[str])
Source = TypedDict("Source", OF_SOURCE | {"entry": str, "iteration": int | None, "rows": int, "digest": str})


@dataclass
class Manifest:
    """Content of `tpaw.json`. Paths are relative to the folder that holds it; identity is by content."""

    iteration: int  # t; the folder holds θ_{t+1} once finished
    # From the first step on; when everything is saved; or in a checkpoint's folder that training saved on its way.
    status: Literal["training", "finished", "checkpoint"]
    objective: str
    policy: Theta
    players: list[Theta]  # oldest first
    # The opponent data: entry, iteration, rows, digest, generator's fingerprint; `samples` a prompt, how many
    # `failed`, the `opponent` that generated instead of θ; `foreign` for others; `path`; `meta`, its file's digest.
    triplets: list[Source]
    tokenizer: str  # digest
    template: dict[str, str]  # name and digest
    settings: dict[str, Any]  # as given, without keys that cannot change the result and without secrets
    result: Saved = field(default_factory=dict)  # θ_{t+1}
    versions: dict[str, str] = field(default_factory=dict)
    hardware: dict[str, Any] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)  # of all parts and attempts that the result contains
    counts: dict[str, int] = field(default_factory=dict)  # rows, repeated ones, scored blocks, tokens
    seeds: dict[str, int | None] = field(default_factory=dict)  # of training, its order, and the choice of prompts
    started: str = ""  # when training began, UTC
    finished: str = ""  # when θ_{t+1} was saved
    cache: str = ""  # folder of the log-probs
    step: int | None = None  # of a checkpoint, optimizer steps so far
    files: dict[str, str] = field(default_factory=dict)  # of a checkpoint, SHA-256 of what one process has saved
    schema: Literal[1] = SCHEMA

    @property
    def produces(self) -> int:
        """Number of the θ that the folder holds once finished."""
        return self.iteration + 1


def read_manifest(folder: str | Path) -> Manifest | None:
    """Read a folder's `tpaw.json`, None where it has none; a damaged one is a `DataError`."""
    path = Path(folder) / MANIFEST
    if not path.is_file():
        return None
    content = read_json(path)
    problems = key_problems(Manifest, content)
    if not problems and content["status"] == "finished" and "fingerprint" not in content.get("result", ()):
        problems = ["`result.fingerprint` is missing"]
    if problems:
        raise DataError(
            f"{path} is damaged, or of another version ({', '.join(problems)}), so it does not say what was trained. "
            "Restore the file, or repeat the iteration with `overwrite_output_dir: true`."
        )
    return Manifest(**content)


def write_manifest(folder: str | Path, manifest: Manifest) -> None:
    """Write `tpaw.json`, whole or not at all."""
    Path(folder).mkdir(parents=True, exist_ok=True)
    write_json_atomic(Path(folder) / MANIFEST, asdict(manifest), seal=True)


def relative_path(path: str | Path, folder: str | Path) -> str:
    """How a manifest in `folder` names a local path, so that both can be moved together.

    What lies outside the working folder that holds `folder` is not moved with it: its path is absolute. Names of a
    hub stay as they are.
    """
    place, here = Path(path), Path.cwd()
    if not place.exists():
        return str(path)
    inside = Path(os.path.abspath(folder)).is_relative_to(here)
    if inside and not Path(os.path.abspath(place)).is_relative_to(here):
        return os.path.abspath(place)
    return os.path.relpath(place, folder)


def path_from(recorded: str, folder: str | Path) -> str:
    """Where a path leads that a manifest in `folder` names, as seen from the working folder."""
    if os.path.isabs(recorded) or not (recorded.startswith(os.pardir) or (Path(folder) / recorded).exists()):
        return recorded  # names of a hub or a server stay as they are
    return os.path.normpath(Path(folder) / recorded)


def moved_manifest(manifest: Manifest, old: Path, new: Path, **changes: Any) -> Manifest:
    """Return what a manifest of the folder `old` is in the folder `new`: its paths lead to the same places."""

    def moved(value: Any, key: str = "") -> Any:
        if isinstance(value, dict):
            return {name: moved(item, name) for name, item in value.items()}
        if isinstance(value, list):
            return [moved(item) for item in value]
        is_path = key in ("path", "opponent", "cache") and value and not os.path.isabs(value)
        return os.path.relpath(old / value, new) if is_path and (old / value).exists() else value

    return Manifest(**moved(asdict(manifest)) | changes)


def now() -> str:
    """Return the time in UTC to the second: `2026-05-01T12:00:00Z`."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def versions() -> dict[str, str]:
    """Return the versions of Python, of this package and of those that change numbers, where they are installed."""
    found = {"llamafactory_tpaw": __version__, "python": platform.python_version()}
    found |= {"llamafactory": installed_version(), "llamafactory_commit": installed_commit()}
    for name in PACKAGES:
        named = next((each.version for each in distributions(name=name)), None)  # there are forks of another name
        found[name] = named or getattr(sys.modules.get(name), "__version__", None)
    return {name: str(known) for name, known in found.items() if known}


def hardware(device: torch.device, processes: int = 1) -> dict[str, Any]:
    """Describe a device and how many processes use one like it."""
    import torch

    described = {"device": device.type, "name": platform.processor() or platform.machine(), "processes": processes}
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        described |= {"name": properties.name, "memory_bytes": properties.total_memory}
    return described | {"cpus": os.cpu_count()}
