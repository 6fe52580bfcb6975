# SPDX-License-Identifier: Apache-2.0
"""The commands, their arguments and their help. Nothing heavy is imported here: help and completion load all."""

import argparse
import textwrap
from collections.abc import Callable
from typing import NamedTuple

from .. import __version__
from ..errors import EXIT_CODES


# What an argument names, for shtab: `parser.add_argument(...).complete = FOLDER`.
FILE = {"bash": "_shtab_compgen_files", "zsh": "_files", "tcsh": "f"}
FOLDER = {"bash": "_shtab_compgen_dirs", "zsh": "_files -/", "tcsh": "d"}
HELP_COLUMNS = 79


class Command(NamedTuple):
    """A sub-command: a line for the list of commands, what it does, command lines as examples, its arguments."""

    summary: str
    description: str
    example: str
    add_arguments: Callable[[argparse.ArgumentParser], None]


def build_parsers() -> tuple[argparse.ArgumentParser, dict[str, argparse.ArgumentParser]]:
    """Return the parser of the whole command, and those of its sub-commands by name."""
    codes = "Exit codes:\n" + "\n".join(f"  {code:<4} {meaning}" for code, meaning in EXIT_CODES.items())
    layout = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(
        prog="llamafactory-tpaw",
        description="Self-play fine-tuning (stage `tpaw`) for LlamaFactory.",
        epilog=f"{codes}\n\n`llamafactory-tpaw COMMAND --help` shows a command's arguments.",
        formatter_class=layout,
    )
    parser.add_argument("--version", action="version", version=f"llamafactory-tpaw {__version__}")
    table = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    parsers = {}
    for name, command in COMMANDS.items():
        examples = textwrap.indent(command.example, "  ")
        parsers[name] = table.add_parser(
            name,
            help=command.summary,
            description=textwrap.fill(command.description, HELP_COLUMNS, break_on_hyphens=False),
            epilog=f"Example:\n{examples}\n\n{codes}",
            formatter_class=layout,
        )
        command.add_arguments(parsers[name])
    return parser, parsers


def _run_file(parser: argparse.ArgumentParser) -> None:
    text = "a YAML file as `llamafactory-cli train` takes it"
    parser.add_argument("run_file", metavar="RUN_FILE", help=text).complete = FILE
    # Without a default argparse would name it among what is missing.
    text = "keys that replace those of the file"
    parser.add_argument("overrides", metavar="KEY=VALUE", nargs="*", default=[], help=text)


def _init(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--model", metavar="MODEL", help="folder or hub name: the SFT model, or with --sft its base").complete = FOLDER
    text = "the SFT set: an entry of dataset_info.json, or a .json, .jsonl, .csv, .parquet"
    add("--data", metavar="DATA", help=text).complete = FILE
    add("--name", metavar="NAME", help="prefix of run files and datasets (default: made of model and data)")
    add("--folder", metavar="FOLDER", help="where yaml/ and data/ are (default: the working folder)").complete = FOLDER
    add("--sft", action="store_true", default=None, help="write the SFT file too: MODEL is the base of theta_0")
    add("--iterations", metavar="N", type=int, help="number of iterations (default: 4)")
    text = "tpaw, spin, tspin, iris (a reconstruction), or several by commas (default: tpaw)"
    add("--objective", dest="objectives", metavar="LIST", help=text)
    text = "trw, mpw, team: more runs, without target weights, player weights, team"
    add("--ablate", dest="ablations", metavar="LIST", help=text)
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
    text = "take settings, and what is not given here, of this file"
    add("--like", metavar="RUN_FILE", help=text).complete = FILE
    add("--force", action="store_true", help="replace what is there of this name, and remove its other run files")
    add("overrides", metavar="KEY=VALUE", nargs="*", help="keys of the run files; `sft.KEY=VALUE` of the SFT file")


def _check(parser: argparse.ArgumentParser) -> None:
    _run_file(parser)
    text = "load theta_t, too: recompute the players' fingerprints, do one batch of each step to measure its memory "
    text += "and time, and show that the newest player's reward is 0 at step 0"
    parser.add_argument("--model", action="store_true", help=text)
    parser.add_argument("--json", action="store_true", help="print findings and estimates as JSON")


def _run(parser: argparse.ArgumentParser) -> None:
    text = "YAML files as `llamafactory-cli train` takes them, in the order in which they are played, and keys that "
    text += "replace those of every file"
    parser.add_argument("words", metavar="RUN_FILE|KEY=VALUE", nargs="+", help=text).complete = FILE


def _study(parser: argparse.ArgumentParser) -> None:
    text = "the study: methods, seeds, settings, see docs/study.md"
    parser.add_argument("study", metavar="STUDY_YAML", help=text).complete = FILE
    parser.add_argument("--only", metavar="N", type=int, help="play this part alone, as a job of an array does")
    parser.add_argument("--list", action="store_true", help="print the parts with their numbers and how far they are")


def _lineage(parser: argparse.ArgumentParser) -> None:
    text = "an output folder, a folder that holds some (`saves`), or a triplet file"
    parser.add_argument("places", metavar="DIR", nargs="+", help=text).complete = FILE
    parser.add_argument("--verify", action="store_true", help="recompute all digests; exit code 3 if one changed")
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="print the graph as JSON")
    form.add_argument("--mermaid", action="store_true", help="print the graph as the text of a Mermaid diagram")


def _eval(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    text = "a checkpoint, or a folder that holds output folders: all theta in it, and theta_0"
    add("places", metavar="DIR", nargs="+", help=text).complete = FOLDER
    add("--tasks", metavar="LIST", required=True, help="lm-eval's tasks or groups, or YAML files, by commas")
    add("--include-path", metavar="FOLDER", help="a folder with tasks of your own").complete = FOLDER
    add("--backend", choices=("hf", "vllm"), default="hf", help="what runs the model (default: hf)")
    add("--num-fewshot", metavar="N", type=int, help="examples before a question (default: the task's)")
    add("--limit", metavar="N", type=int, help="the first N items of a task (default: all)")
    add("--batch-size", metavar="N", help="as lm-eval takes it (default: 8, with vllm auto)")
    text = "apply the chat template (default: where there is one)"
    add("--apply-chat-template", dest="chat_template", action=argparse.BooleanOptionalAction, help=text)
    add("--model-args", metavar="LIST", default="", help="more of lm-eval's model: parallelize=true")


def _best(parser: argparse.ArgumentParser) -> None:
    text = "an output folder, whose theta and all before it are compared, or a folder that holds some"
    parser.add_argument("places", metavar="DIR", nargs="+", help=text).complete = FOLDER
    parser.add_argument("--task", metavar="NAME", help="as in eval.json (default: the only one there)")
    parser.add_argument("--metric", metavar="NAME", help="a metric of the task (default: its first one)")


def _report(parser: argparse.ArgumentParser) -> None:
    text = "a study's YAML file or its folder of results, an output folder, or a folder that holds some"
    parser.add_argument("places", metavar="DIR|STUDY.yaml", nargs="+", help=text).complete = FILE
    text = "where index.html, report.md and the pictures are written (default: report)"
    parser.add_argument("--out", metavar="FOLDER", default="report", help=text).complete = FOLDER


def _doctor(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print the report as JSON")
    text = "the `tpaw_vllm_command` to look for; without it, the `vllm` of this environment"
    parser.add_argument("--vllm", metavar="COMMAND", help=text)


def _completion(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("shell", metavar="SHELL", choices=("bash", "zsh", "tcsh"), help="bash, zsh or tcsh")


# The order of the help: setting up, playing, looking. `$` begins an example.
HELP = """
## init: the run files of a new run, from a model and an SFT set
Write the YAML files of a run and its entries of dataset_info.json. What can be found out is not asked for, but
said. Nothing is overwritten without --force. An override counts more than a flag, and a flag more than the file of
--like.
$ llamafactory-tpaw init --model Qwen/Qwen2.5-1.5B --sft --data my_set.jsonl --name mine
$ llamafactory-tpaw init --model saves/mine/full/sft --data gsm8k --name mine --ablate trw,mpw,team
$ llamafactory-tpaw init --like yaml/qwen_tpaw_iter2.yaml --name qwen_eta4 tpaw_eta=4 seed=1
## check: what is wrong with an iteration and what it will need, before it runs
Check a run file's iteration without training, every problem at once, and say what memory, disk and time it will need.
Takes seconds and reads no weights, except with --model. Ends with the smallest exit code of the errors found; warnings
do not change it.
$ llamafactory-tpaw check yaml/qwen_tpaw_iter0.yaml
$ llamafactory-tpaw check yaml/qwen_tpaw_iter0.yaml per_device_train_batch_size=2 --model --json
## run: the iterations given, in order, from wherever they were left
Play run files one after the other, each in its own process: what is finished is skipped, what was interrupted
continues, and a failure stops the rest. All files are checked before the first one starts, one against another, too;
players and triplets that an earlier one makes need not be there yet. Files of stage `sft` may be among them.
$ llamafactory-tpaw run yaml/qwen_sft.yaml yaml/qwen_tpaw_iter0.yaml yaml/qwen_tpaw_iter1.yaml
$ llamafactory-tpaw run yaml/qwen_tpaw_iter?.yaml per_device_train_batch_size=2
## study: methods compared over seeds, from one theta_0 a seed
Play every method with every seed, measure every theta, and keep the figures of each finished part in a small file.
What is finished is skipped, what was interrupted continues, and several such commands share the parts of one study.
$ llamafactory-tpaw study words.yaml
$ llamafactory-tpaw study words.yaml --only 7
## train: the same as `llamafactory-cli train`, where a .pth file is not processed
Needed only where the .pth file of the package is not processed (`pip install --target`, a zip on PYTHONPATH).
`llamafactory-tpaw train -h` lists every key.
$ llamafactory-tpaw train yaml/qwen_tpaw_iter0.yaml learning_rate=2.0e-7
## generate: only the triplets of a run file's iteration
Sample the responses that the iteration still lacks, without training. Continues where a stopped run left off.
$ llamafactory-tpaw generate yaml/qwen_tpaw_iter0.yaml max_new_tokens=512
## score: only the players' log-probs of a run file's iteration
Put the players' log-probs that the iteration still lacks into `tpaw_cache_dir`, without training. The triplets must be
there.
$ llamafactory-tpaw score yaml/qwen_tpaw_iter0.yaml tpaw_score_batch_tokens=8192
## lineage: what a checkpoint came from, and whether its files are still the same
Print the checkpoints, triplets and settings that a checkpoint came from, up to the model that everything started from.
Several runs from one model are one graph. What is not there any more is shown as missing. With --verify the digests of
weights, tokenizers, triplets and meta files are computed again, whatever size and time of the files say.
$ llamafactory-tpaw lineage saves/Qwen2.5-1.5B/full/tpaw_iter2
$ llamafactory-tpaw lineage saves --verify
$ llamafactory-tpaw lineage saves --mermaid > lineage.mmd
## eval: what tasks of lm-evaluation-harness say of checkpoints
Evaluate checkpoints with lm-eval (extra `eval`) and keep the results, item by item, in eval.json beside each. What is
there already is left. `tpaw_leaderboard_v1` and `_v2` are the tasks of the two Open LLM Leaderboards.
$ llamafactory-tpaw eval saves/qwen2.5-1.5b/full/mine_iter2 --tasks gsm8k
$ llamafactory-tpaw eval saves/Tiny/runs --tasks demo/tasks/word_problems.yaml
## best: the best checkpoint of a run on a validation task, and whether that is noise
Compare checkpoints by what `eval` kept: the best one, and its difference to the next one on the same items. The task
should have validation problems: on the problems that chose it the best of several looks better than it is.
$ llamafactory-tpaw best saves/qwen2.5-1.5b/full/mine_iter2 --task my_validation
## report: what was gained and how sure that is, as a page that needs no server, and as Markdown
Read a study's results, or output folders of finished runs with the `eval.json` in them, and write one HTML file and
the same as Markdown: accuracy by iteration, differences paired by seed with their tests, rewards over the steps,
weights, responses, cost, versions, triplets to read.
$ llamafactory-tpaw report saves/Qwen2.5-1.5B/full --out report
$ llamafactory-tpaw report study.yaml --out report
## doctor: hook, seams, versions: what is wrong and the command that mends it
Look at the hook, the places in LlamaFactory that it extends, versions, vLLM's path and `llamafactory-cli env`. Exit
code 5 if something needed is missing.
$ llamafactory-tpaw doctor
$ llamafactory-tpaw doctor --vllm vllm-env/bin/vllm
## completion: the script that makes bash, zsh or tcsh complete this command
Print the script with which a shell completes commands, options and files. Put it where the shell looks for it (bash:
~/.local/share/bash-completion/completions/llamafactory-tpaw, zsh: _llamafactory-tpaw in a folder of $fpath, tcsh: a
file that ~/.tcshrc sources), and again after an update.
$ eval "$(llamafactory-tpaw completion bash)"
"""


def _read_help() -> dict[str, Command]:
    commands = {}
    for section in HELP.split("\n## ")[1:]:
        title, *lines = section.splitlines()
        name, _, summary = title.partition(": ")
        text = " ".join(line for line in lines if not line.startswith("$ "))
        example = "\n".join(line.removeprefix("$ ") for line in lines if line.startswith("$ "))
        commands[name] = Command(summary, text, example, ARGUMENTS[name])
    return commands


ARGUMENTS = {"init": _init, "check": _check, "run": _run, "train": _run_file, "generate": _run_file}
ARGUMENTS |= {"study": _study, "score": _run_file, "lineage": _lineage, "eval": _eval, "best": _best}
ARGUMENTS |= {"report": _report, "doctor": _doctor, "completion": _completion}
COMMANDS = _read_help()
