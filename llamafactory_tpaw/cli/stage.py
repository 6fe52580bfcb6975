# SPDX-License-Identifier: Apache-2.0
"""`train`, `generate` and `score`: an iteration, or one part of it. They take what `llamafactory-cli train` takes."""

import importlib

from ..hook import bootstrap
from .command import Command, add_run_file


def _generate(arguments: list[str]) -> int | None:
    bootstrap.activate()
    return importlib.import_module("llamafactory_tpaw.runs.launcher").generate(arguments)


def _score(arguments: list[str]) -> int | None:
    bootstrap.activate()
    return importlib.import_module("llamafactory_tpaw.runs.launcher").score(arguments)


TRAIN = Command(
    summary="the same as `llamafactory-cli train`, where a .pth file is not processed",
    description="Train as `llamafactory-cli train` does, any stage. Needed only where the .pth file of the package is "
    "not processed (`pip install --target`, a zip on PYTHONPATH). `llamafactory-tpaw train -h` lists every key.",
    example="llamafactory-tpaw train yaml/qwen_tpaw_iter0.yaml learning_rate=2.0e-7",
    add_arguments=add_run_file,
    run=bootstrap.train,
    raw=True,
)
GENERATE = Command(
    summary="only the triplets of a run file's iteration",
    description="Sample the responses that the run file's iteration still lacks, without training. Continues where a "
    "stopped run left off; does nothing when all are there.",
    example="llamafactory-tpaw generate yaml/qwen_tpaw_iter0.yaml max_new_tokens=512",
    add_arguments=add_run_file,
    run=_generate,
    raw=True,
)
SCORE = Command(
    summary="only the players' log-probs of a run file's iteration",
    description="Put the players' log-probs that the run file's iteration still lacks into `tpaw_cache_dir`, without "
    "training. The triplets must be there.",
    example="llamafactory-tpaw score yaml/qwen_tpaw_iter0.yaml tpaw_score_batch_tokens=8192",
    add_arguments=add_run_file,
    run=_score,
    raw=True,
)
