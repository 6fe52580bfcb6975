# SPDX-License-Identifier: Apache-2.0
"""`init`: the run files and dataset entries of a new run."""

from __future__ import annotations

import argparse
import os
import shlex
from typing import TYPE_CHECKING

from .command import FILE, FOLDER, RUN_FILE, Command
from .libraries import be_quiet
from .step_line import clear_step, show_step


if TYPE_CHECKING:
    from ..runs.run_files import Family
    from ..runs.scaffold.project import Project
    from ..runs.scaffold.settings import Settings
    from ..runs.scaffold.writing import Written

LABEL_WIDTH = 10
NOT_SETTINGS = ("overrides", "like", "force")


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--model", metavar="MODEL", help="folder or hub name: the SFT model, or with --sft its base").complete = FOLDER
    add(
        "--data", metavar="DATA", help="the SFT set: an entry of dataset_info.json, or a .json, .jsonl, .csv, .parquet"
    ).complete = FILE
    add("--name", metavar="NAME", help="prefix of run files and datasets (default: made of model and data)")
    add("--folder", metavar="FOLDER", help="where yaml/ and data/ are (default: the working folder)").complete = FOLDER
    add("--sft", action="store_true", default=None, help="write the SFT file too: MODEL is the base of theta_0")
    add("--iterations", metavar="N", type=int, help="number of iterations (default: 4)")
    add(
        "--objective",
        dest="objectives",
        metavar="LIST",
        help="tpaw, spin, tspin, or several by commas (default: tpaw)",
    )
    add(
        "--ablate",
        dest="ablations",
        metavar="LIST",
        help="trw, mpw, team: families of their own without target weights, player weights, team",
    )
    add("--template", metavar="NAME", help="LlamaFactory's template (default: found out)")
    add("--columns", metavar="LIST", help="the columns of a file, such as prompt=ask,response=say")
    add("--learning-rate", dest="learning_rate", metavar="RATE", type=float, help="of the iterations (default: 5e-7)")
    add("--epochs", dest="num_train_epochs", metavar="N", type=float, help="of an iteration (default: 2)")
    add("--batch-size", dest="per_device_train_batch_size", metavar="N", type=int, help="of a device, in triplets")
    add("--max-prompts", dest="tpaw_max_prompts", metavar="N", type=int, help="how many rows of DATA are used")
    add("--turn", dest="tpaw_turn", metavar="WHICH", help="which response is the target: last (default) or first")
    add("--cutoff-len", dest="cutoff_len", metavar="N", type=int, help="most tokens of a row (default: found out)")
    add("--max-new-tokens", dest="max_new_tokens", metavar="N", type=int, help="of a response (default: found out)")
    add("--engine", dest="tpaw_engine", metavar="NAME", help="what samples: hf (default), vllm or openai")
    add("--engine-url", dest="tpaw_engine_url", metavar="LIST", help="addresses of the servers of engine openai")
    add("--saves", metavar="FOLDER", help="where models are saved (default: saves/MODEL/full)").complete = FOLDER
    add(
        "--like", metavar="RUN_FILE", help="take settings, and what is not given here, of this file"
    ).complete = RUN_FILE
    add("--force", action="store_true", help="overwrite files and entries of the same name")
    add("overrides", metavar="KEY=VALUE", nargs="*", help="keys of the run files; `sft.KEY=VALUE` of the SFT file")


def _run(arguments: argparse.Namespace) -> None:
    os.environ.setdefault("LLAMAFACTORY_VERBOSITY", "ERROR")
    show_step("LlamaFactory")
    from ..runs.scaffold.project import plan_project
    from ..runs.scaffold.settings import read_settings
    from ..runs.scaffold.writing import write_project

    flags = {name: value for name, value in vars(arguments).items() if name not in NOT_SETTINGS}
    try:
        settings = read_settings(flags, arguments.overrides, arguments.like)
        be_quiet()
        project = plan_project(settings, show_step)
        written = write_project(settings.folder, settings.dataset_dir, project.files, project.entries, arguments.force)
    finally:
        clear_step()
    print("\n".join([*_found(project), "", *_wrote(settings, written), "", *_next(settings, project.families)]))


def _found(project: Project) -> list[str]:
    return ["Found out:", *(f"  {subject:<{LABEL_WIDTH}}{words}" for subject, words in project.findings)]


def _wrote(settings: Settings, written: Written) -> list[str]:
    lines = [f"Wrote in {settings.folder.resolve()}:"]
    lines += [f"  {name}" for name in written.new]
    lines += [f"  {name} (overwritten)" for name in written.replaced]
    if written.entries:
        lines.append(f"  {settings.dataset_dir}/dataset_info.json: {', '.join(written.entries)}")
    if len(lines) == 1:
        lines[0] = f"Wrote nothing in {settings.folder.resolve()}: everything is there already."
    elif written.same:
        lines.append(f"  ({len(written.same)} more there already, with the same content)")
    return lines


def _next(settings: Settings, families: list[Family]) -> list[str]:
    """The commands that come next, in the order of the files."""
    main = families[0]
    prefix = f"{main.launcher} " if main.launcher else ""
    lines = []
    if settings.folder.resolve() != settings.folder.cwd():
        lines.append(f"cd {shlex.quote(str(settings.folder))}")
    if settings.sft:
        lines.append(f"{prefix}llamafactory-cli train {main.path('sft')}")
    method = next(iter(main.self_play))
    lines.append(f"llamafactory-tpaw check {main.path(f'{method}_iter0')}")
    for family in families:
        for each, count in family.iterations.items():
            if family.asks_servers_of_theta:
                lines += [
                    f"{prefix}llamafactory-tpaw run {family.path(f'{each}_iter{t}')}  # while the servers have "
                    f"{family.theta(each, t)}"
                    for t in range(count)
                ]
                continue
            rounds = "0" if count == 1 else f"{{0..{count - 1}}}"
            lines.append(f"{prefix}llamafactory-tpaw run {family.path(f'{each}_iter{rounds}')}")
    lines.append(f"llamafactory-tpaw lineage {main.theta(method, main.iterations[method])}")
    return ["Look through the files, then:", *(f"  {line}" for line in lines)]


INIT = Command(
    summary="the run files of a new run, from a model and an SFT set",
    description="Write the YAML files of a run and its entries of dataset_info.json, ready for `llamafactory-cli "
    "train`. What can be found out is not asked for: the file's format and columns, the template, lengths, device and "
    "batch sizes; each is said, and its reason stands in the files. Nothing is overwritten without --force, and "
    "either all is written or nothing. The same command again writes what is missing.\n"
    "An override counts more than a flag, and a flag more than the file of --like.",
    example="llamafactory-tpaw init --model Qwen/Qwen2.5-1.5B --sft --data my_set.jsonl --name mine\n"
    "llamafactory-tpaw init --model saves/mine/full/sft --data gsm8k --name mine --ablate trw,mpw,team\n"
    "llamafactory-tpaw init --like yaml/qwen_tpaw_iter2.yaml --name qwen_eta4 tpaw_eta=4 seed=1",
    add_arguments=_add_arguments,
    run=_run,
)
