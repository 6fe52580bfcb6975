# SPDX-License-Identifier: Apache-2.0
"""Reads what runs left, output folders or a study's results, into one form: method, seed, points with measurements."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from ..data.files import read_json
from ..data.triplets import meta_path, read_meta, read_triplets
from ..errors import DataError
from ..team.checkpoint import STATE, read_state
from ..team.manifest import MANIFEST, Manifest, path_from, read_manifest
from .evaluate import EVALUATIONS, read_evaluations
from .lineage import EXPECTED_CHANGES, FINISHED, trace


RESULTS, SCHEMA = "*_seed*.json", 1
ITERATION = re.compile(r"[_-]?iter\d+$")
EXAMPLES = 5
Scores = Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True)
class Point:
    """A checkpoint, as a study's results have it: `steps` optimizer steps after theta_0, `evaluations` by task.

    `theta` is None on the way of a training and where there are no iterations. From `triplets` on it is about the
    run that made the checkpoint, `round` about the responses it was trained on first: shares `equal` and `truncated`,
    `mean_tokens`.
    """

    steps: int
    theta: int | None = None
    folder: str = ""
    fingerprint: str = ""
    evaluations: Scores = field(default_factory=dict)
    triplets: int | None = None
    epochs: float | None = None
    seconds: Mapping[str, float] | None = None
    tokens: Mapping[str, float] | None = None
    peak_memory_bytes: float | None = None
    round: Mapping[str, float | None] | None = None
    logs: Sequence[Mapping[str, float]] = ()

    @property
    def name(self) -> str:
        """`theta_k`, else `step n`."""
        return f"step {self.steps:,}" if self.theta is None else f"theta_{self.theta}"


@dataclass(frozen=True)
class Part:
    """A method at one seed, with what a study's results say of it; seed None where it is not known."""

    method: str
    points: tuple[Point, ...]
    seed: int | None = None
    label: str = ""
    study: str = ""
    overrides: Mapping[str, Any] = field(default_factory=dict)
    environment: Mapping[str, Any] = field(default_factory=dict)
    examples: Sequence[Mapping[str, str]] = ()

    def series(self, key: str) -> list[tuple[float, float]]:
        """Return a logged metric over the steps since theta_0, with NaN between runs; empty if it was not logged.

        `logps/gap` is that of target minus generated; `round/...` is over the k of the theta_k that generated.
        """
        if key == "logps/gap":
            generated = dict(self.series("logps/generated"))
            return [(x, y - generated[x]) for x, y in self.series("logps/target") if x in generated]
        if key.startswith("round/"):
            values = [(point.theta, (point.round or {}).get(key[6:])) for point in self.points]
            return [(theta - 1, value) for theta, value in values if theta and value is not None]
        found, before = [], 0
        for point in self.points:
            found += [(before + row["step"], float(row[key])) for row in point.logs if row.get(key) is not None]
            if point.theta is not None or point.logs:  # others are on the way of the next one's run
                before = point.steps
                found += [(before + 0.5, math.nan)] if found else []
        return found


@dataclass(frozen=True)
class Method:
    """A method at every seed that was run."""

    label: str
    parts: tuple[Part, ...]

    def points(self) -> dict[str, dict[int | None, Point]]:
        """Return the checkpoints by name, in the order of steps, and of each the point of every seed."""
        named: dict[str, dict[int | None, Point]] = {}
        for part in self.parts:
            for point in part.points:
                named.setdefault(point.name, {})[part.seed] = point
        return dict(sorted(named.items(), key=lambda item: max(point.steps for point in item[1].values())))

    def scores(self, task: str) -> dict[str, dict[int | None, Mapping[str, Any]]]:
        """Return what `eval.json` says of the checkpoints at each seed, in the order of steps, if it has the task."""
        found = {
            name: {seed: point.evaluations[task] for seed, point in seeds.items() if task in point.evaluations}
            for name, seeds in self.points().items()
        }
        return {name: entries for name, entries in found.items() if entries}

    def last(self, task: str) -> str | None:
        """Return the name of the last of the checkpoints that were measured at the most seeds."""
        scores = self.scores(task)
        return max(reversed(scores), key=lambda name: len(scores[name]), default=None)


def collect(places: Iterable[Path]) -> list[Method]:
    r"""Read folders of a study's results, `output_dir`s or folders that hold some, and line up methods and seeds.

    Raises:
        DataError: If a place holds neither, a file is damaged, or two runs are the same method at the same seed.
    """
    methods: dict[str, dict[int | None, Part]] = {}
    for place in places:
        results = sorted(place.glob(RESULTS)) or sorted(place.glob(f"results/{RESULTS}"))
        for part in map(read_result, results) if results else read_outputs(place):
            seeds = methods.setdefault(part.method, {})
            if part.seed in seeds:
                raise DataError(
                    f"{place} has {part.method} at seed {part.seed} once more. Leave it out, or rename it."
                )
            seeds[part.seed] = part
    found = []
    # The first one is compared with the others.
    for name in sorted(methods, key=lambda name: name.rpartition("_")[2] != "tpaw"):
        parts = sorted(methods[name].values(), key=lambda part: part.seed or 0)
        found.append(Method(parts[0].label or name, tuple(parts)))
    return found


def read_result(path: Path) -> Part:
    """Read the results of one method at one seed; a damaged file is a `DataError`."""
    content = read_json(path)
    try:
        if content["schema"] != SCHEMA:
            raise ValueError(f"schema {content['schema']!r} is not {SCHEMA}")
        points = tuple(Point(**_known(Point, point)) for point in content["points"])
        given = (content.get("settings") or {}) | (content.get("overrides") or {})
        part = Part(**_known(Part, content) | {"points": points, "overrides": given})
        for point in points:
            int(point.steps), int(point.theta or 0), [float(row["step"]) for row in point.logs]
            [float(number) for part in (point.seconds or {}, *point.logs) for number in part.values()]
            for entry in point.evaluations.values():
                float(entry["value"]), int(entry["n"]), [float(item) for item in entry.get("items") or ""]
        if not points:
            raise ValueError("it has no points")
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise DataError(f"{path} is damaged ({error!r}). Delete it and repeat its part of the study.") from error
    return part


def read_outputs(place: Path) -> list[Part]:
    """Read the lines of iterations that end in or below a folder, and the trainings of other stages there."""
    outputs = [path.parent for path in sorted(place.rglob(STATE))]
    outputs = [path for path in outputs if not path.name.startswith("checkpoint-")]
    if not outputs:
        raise DataError(
            f"{place} holds neither a finished run ({STATE}) nor a study's results. Give a folder that does."
        )
    played = [path for path in outputs if (path / MANIFEST).is_file()]
    nodes = trace(played).checkpoints
    for key, node in nodes.items():
        if node.place and ":" not in key and read_evaluations(node.place) != read_evaluations(node.place, key):
            raise DataError(f"{node.place / EVALUATIONS} is of other weights. Delete it and evaluate them again.")
    parents, starts, parts = {node.parent for node in nodes.values()}, set(), []
    for key, node in nodes.items():
        if key in parents or node.state != FINISHED or node.place not in played:
            continue
        line = [node]
        while line[0].manifest is not None and line[0].parent is not None:
            line.insert(0, nodes[line[0].parent])
        start = line.pop(0).place if line[0].manifest is None else None
        starts.add(start and start.resolve())
        name, seed = ITERATION.sub("", node.place.name), node.manifest.seeds.get("seed")
        parts.append(read_part(name, seed, start, [each.place for each in line]))
    for path in outputs:
        if path not in played and path.resolve() not in starts:
            card = path / "README.md"  # of a training without `tpaw.json`, this model card has the seed
            found = re.search(
                r"^- seed: (\d+)$", card.read_text(encoding="utf-8") if card.is_file() else "", re.MULTILINE
            )
            parts.append(read_part(path.name, int(found[1]) if found else None, None, [path]))
    return parts


def read_scores(folder: Path) -> Scores:
    """Read what was measured of a checkpoint, by task, from its `eval.json`."""
    return {task: asdict(evaluation) for task, evaluation in read_evaluations(folder).items()}


def read_part(
    method: str,
    seed: int | None,
    start: Path | None,
    folders: Sequence[Path],
    scores: Callable[[Path], Scores] = read_scores,
) -> Part:
    r"""Read finished runs that went on from one another, with the checkpoints on their way that `scores` knows.

    `start` is theta_0, None where it is not known; `folders` are the `output_dir`s in the order in which they ran.

    Raises:
        DataError: If a run is missing or unfinished, or a file is damaged.
    """
    points = [] if start is None else [Point(0, 0, str(start), evaluations=scores(start))]
    before, about = 0, {}
    for folder in folders:
        state, manifest = read_state(folder), read_manifest(folder)
        for checkpoint in folder.glob("checkpoint-[0-9]*"):
            step = int(checkpoint.name.removeprefix("checkpoint-"))
            if step < state["global_step"] and (found := scores(checkpoint)):
                points.append(Point(before + step, None, str(checkpoint), evaluations=found))
        before += state["global_step"]
        logs = state["log_history"]
        seconds = next(({"train": row["train_runtime"]} for row in reversed(logs) if "train_runtime" in row), None)
        run = Point(before, None, str(folder), evaluations=scores(folder), epochs=state.get("epoch"), seconds=seconds)
        run = replace(run, logs=tuple(row for row in logs if "step" in row and "loss" in row))
        if manifest:
            settings = {key: value for key, value in manifest.settings.items() if key not in EXPECTED_CHANGES}
            recorded, examples = _recorded(folder, manifest)
            run = replace(run, theta=manifest.produces, seconds=manifest.seconds, **recorded)
            environment = manifest.versions | manifest.hardware
            about = {"overrides": settings, "environment": environment, "examples": examples}
        points.append(run)
    return Part(method, tuple(sorted(points, key=lambda point: point.steps)), seed, **about)


def _recorded(folder: Path, manifest: Manifest) -> tuple[dict[str, Any], list[dict[str, str]]]:
    """Return what `tpaw.json` and the round of responses of its policy say of a run, and some of these triplets."""
    counts, examples, found = manifest.counts, [], {}
    source = next((each for each in manifest.triplets if each["iteration"] == manifest.iteration), {})
    path = Path(path_from(source["path"], folder)) if source.get("path") else None
    if path and path.is_file() and meta_path(path).is_file():
        meta = read_meta(path)
        names = {"equal": "equal", "truncated": "length", "mean_tokens": "generated_tokens"}
        found = {name: meta.counts[key] / meta.rows for name, key in names.items() if meta.rows and key in meta.counts}
        different = (row for row in read_triplets(path, meta) if row.generated != row.target["content"])
        for row in itertools.islice(different, EXAMPLES):
            prompt = row.messages[-1]["content"]
            examples.append({"prompt": prompt, "target": row.target["content"], "generated": row.generated})
    tokens = {name: counts[f"{name}_tokens"] for name in ("generated", "scored") if f"{name}_tokens" in counts}
    recorded = {"fingerprint": manifest.result["fingerprint"], "triplets": counts.get("train_triplets")}
    return recorded | {"tokens": tokens, "round": found}, examples


def _known(kind: type, content: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of a dataclass that a JSON object has; null is as absent."""
    return {each.name: content[each.name] for each in fields(kind) if content.get(each.name) is not None}
