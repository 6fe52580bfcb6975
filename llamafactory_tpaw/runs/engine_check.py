# SPDX-License-Identifier: Apache-2.0
"""Whether the engine of a run is there, in seconds: what is installed, and what servers say of themselves."""

from __future__ import annotations

import importlib.util
import shlex
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

from ..arguments.checks import read_tpaw_args
from ..arguments.start import Start, is_adapter
from ..errors import EnvironmentProblem, TpawError
from ..generation.served import Served, api_key, examine, names_of


if TYPE_CHECKING:
    from ..arguments.fields import TpawArguments
    from .findings import Report
    from .preflight import Plan

# Bound of each wait for a server; all are asked at once.
ANSWER_S = 3.0
MOST_AT_ONCE = 16


def check_engine(plan: Plan, report: Report) -> None:
    r"""Say whether the engine can answer, and what is known of it.

    Args:
        plan: The iteration; nothing is asked where it has nothing to generate.
        report: Takes what is found.
    """
    args, _ = read_tpaw_args(plan.given)
    if plan.to_generate:
        with report.collect():
            ENGINES[args.tpaw_engine](args, Start.of(plan.given), report)


def _check_hf(args: TpawArguments, start: Start, report: Report) -> None:
    _need("transformers", "`tpaw_engine: hf` needs transformers", "Install LlamaFactory's requirements.")


def _check_vllm(args: TpawArguments, start: Start, report: Report) -> None:
    from ..generation.vllm import find_program, served_adapter, split_arguments

    _need_client()
    # One that is not there yet can still be served.
    if not args.tpaw_opponent_model and (len(start.adapters) > 1 or all(map(is_adapter, start.adapters))):
        served_adapter([Path(adapter) for adapter in start.adapters])
    program = find_program(args.tpaw_vllm_command)
    split_arguments(args.tpaw_vllm_args)
    report.note(f"`tpaw_engine: vllm` starts {shlex.join(program)}; `llamafactory-tpaw doctor` says which version.")


def _check_openai(args: TpawArguments, start: Start, report: Report) -> None:
    _need_client()
    key = api_key()
    names = names_of(args.tpaw_engine_model, args.tpaw_opponent_model or start.path)

    def look(url: str) -> Served | TpawError:
        try:
            return examine(url, names, key, ANSWER_S)
        except TpawError as error:
            return error

    with ThreadPoolExecutor(MOST_AT_ONCE) as pool:
        for found in pool.map(look, args.tpaw_engine_url or []):
            if isinstance(found, TpawError):
                report.error(type(found), str(found))
            else:
                alone = "" if found.verified else ", a name that says nothing about its weights"
                report.note(f"{found.url} answers: {found.title}, serving {found.model}{alone}.")


def _need_client() -> None:
    _need("openai", "Servers are asked through the package openai", 'Run: pip install "llamafactory-tpaw[openai]"')


def _need(package: str, needing: str, advice: str) -> None:
    if importlib.util.find_spec(package) is None:
        raise EnvironmentProblem(f"{needing}, which is not installed. {advice}")


ENGINES: dict[str, Callable[[TpawArguments, Start, Report], None]] = {
    "hf": _check_hf,
    "vllm": _check_vllm,
    "openai": _check_openai,
}
