# SPDX-License-Identifier: Apache-2.0
"""The command `llamafactory-tpaw`: finds the sub-command, hands it its arguments and prints what it answers."""

import argparse
import functools
import importlib
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from ..errors import ConfigError, DataError, EnvironmentProblem, TpawError
from ..hook import bootstrap
from ..lf import signals
from ..lf.failures import explained
from .parsers import COMMANDS, build_parsers


def main(argv: Sequence[str] | None = None) -> int:
    """Run `llamafactory-tpaw` with the given arguments, or the process's own, and return the exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    name, rest = (arguments[0], arguments[1:]) if arguments and arguments[0] in COMMANDS else (None, [])
    parser, parsers = build_parsers()
    if name is None:
        # Only --help and --version end well here; argparse explains what is wrong with anything else.
        parser.parse_args(arguments or ["--help"])
        return 2
    # `train -h` is LlamaFactory's own: every key there is.
    if rest == ["--help"] or (name != "train" and {"-h", "--help"} & set(rest)):
        parsers[name].print_help()
        return 0
    if name in AS_LLAMAFACTORY and not rest:
        parsers[name].error("a run file is needed, and none was given")
    try:
        with signals.raise_on_signals(), explained({}):
            given = rest if name in AS_LLAMAFACTORY else parsers[name].parse_intermixed_args(rest)
            code = (AS_LLAMAFACTORY.get(name) or PARSED[name])(given)
        sys.stdout.flush()
        return code or 0
    except (TpawError, KeyboardInterrupt) as error:
        return signals.report(error)
    except BrokenPipeError:
        # What reads the output, such as `head`, has closed it. Python would fail again when it flushes at the end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


def _step(name: str, words: list[str]) -> int | None:
    bootstrap.activate()
    return getattr(importlib.import_module("llamafactory_tpaw.runs.launcher"), name)(words)


def _init(arguments: argparse.Namespace) -> None:
    from ..runs import init, run_files, settings
    from .output import quiet_libraries, tell_init

    flags = {key: value for key, value in vars(arguments).items() if key not in ("overrides", "like", "force")}
    with quiet_libraries() as show:
        found = settings.read_settings(flags, arguments.overrides, arguments.like)
        planned = init.plan_project(found, show)
        place = found.folder, found.dataset_dir
        written = run_files.write_project(*place, planned.files, planned.entries, planned.name, arguments.force)
    tell_init(found, planned, written)


def _check(arguments: argparse.Namespace) -> int:
    from .output import quiet_libraries, tell_check

    bootstrap.activate()
    with quiet_libraries() as show:
        found = importlib.import_module("llamafactory_tpaw.runs.check").check(
            [arguments.run_file, *arguments.overrides], with_model=arguments.model, say=show
        )
    print(json.dumps(found, indent=2)) if arguments.json else tell_check(found)
    return found["exit_code"]


def _run(arguments: argparse.Namespace) -> int:
    bootstrap.activate()
    loop = importlib.import_module("llamafactory_tpaw.runs.loop")
    files, overrides = loop.split_words(arguments.words)
    if not files:
        raise ConfigError(f"No run file is given, only {' '.join(overrides)}. Name the YAML files to play, in order.")
    return loop.play(loop.checked_items(files, overrides), functools.partial(print, flush=True))


def _study(arguments: argparse.Namespace) -> int:
    bootstrap.activate()
    study = importlib.import_module("llamafactory_tpaw.runs.study")
    if not arguments.list:
        return study.run_study(arguments.study, arguments.only, functools.partial(print, flush=True))
    for number, part in enumerate(study.read_study(arguments.study).parts()):
        print(f"{number:>4}  {part.name}: {part.state()}")
    return 0


def _lineage(arguments: argparse.Namespace) -> None:
    from ..report.lineage import trace
    from ..report.lineage_text import as_mermaid
    from ..report.verify import verify
    from .output import tell_tree, tell_verification

    graph = trace([Path(place) for place in arguments.places])
    checks = verify(graph) if arguments.verify else iter(())
    if arguments.json:
        checks = list(checks)
        verification = {"verification": [check._asdict() for check in checks]} if arguments.verify else {}
        print(json.dumps(graph.as_json() | verification, indent=2))
    elif arguments.mermaid:
        print(as_mermaid(graph))
    else:
        tell_tree(graph)
        checks = tell_verification(checks) if arguments.verify else []
    if changed := [check.message for check in checks if check.state == "changed"]:
        sys.stdout.flush()
        raise DataError(changed)


def _eval(arguments: argparse.Namespace) -> None:
    from ..report.evaluate import evaluate, find_checkpoints

    options = vars(arguments)
    folders, tasks = find_checkpoints(options.pop("places")), options.pop("tasks").split(",")
    evaluate(folders, tasks, functools.partial(print, flush=True), **options)


def _best(arguments: argparse.Namespace) -> None:
    from ..report.best import name_best
    from ..report.evaluate import find_checkpoints

    print(*name_best(find_checkpoints(arguments.places, lineage=True), arguments.task, arguments.metric), sep="\n")


def _report(arguments: argparse.Namespace) -> None:
    from ..report.collect import collect
    from ..report.page import blocks_of
    from ..report.render import write_page

    places = []
    for place in map(Path, arguments.places):
        if place.suffix in (".yaml", ".yml"):
            bootstrap.activate()
            place = Path(importlib.import_module("llamafactory_tpaw.runs.study").read_study(str(place)).results)
        places.append(place)
    methods = collect(places)
    title = methods[0].parts[0].study or places[0].resolve().name
    print(f"Written: {write_page(title, blocks_of(methods), Path(arguments.out))}")


def _doctor(arguments: argparse.Namespace) -> int:
    from .. import doctor

    found = doctor.examine(arguments.vllm)
    print(json.dumps(found, indent=2) if arguments.json else "\n".join(doctor.text_of(found)))
    return 0 if found["ok"] else EnvironmentProblem.exit_code


def _completion(arguments: argparse.Namespace) -> None:
    import shtab

    parser, parsers = build_parsers()
    for name, command in COMMANDS.items():
        parsers[name].description = command.summary  # zsh shows it beside the name
    print(shtab.complete(parser, shell=arguments.shell))


# These read their arguments themselves, as LlamaFactory's own do.
AS_LLAMAFACTORY = {name: functools.partial(_step, name) for name in ("generate", "score")} | {"train": bootstrap.train}
OTHERS = (_init, _check, _run, _study, _lineage, _eval, _best, _report, _doctor, _completion)
PARSED = {function.__name__[1:]: function for function in OTHERS}
