# SPDX-License-Identifier: Apache-2.0
"""What the installed vLLM says to command lines and bodies; run by an interpreter that has vLLM, without this package.

It reads `{"lines": [...], "bodies": [...]}` from standard input and writes what became of each.
"""

import importlib
import json
import sys


# Where releases keep them.
PARSERS = ("vllm.entrypoints.launchers.cli_args", "vllm.entrypoints.openai.cli_args")
ARGPARSE = ("vllm.utils.argparse_utils", "vllm.utils")
BODIES = ("vllm.entrypoints.openai.completion.protocol", "vllm.entrypoints.openai.protocol")


def first(names: tuple[str, ...], attribute: str) -> object:
    """The attribute of the first module that is there."""
    for name in names:
        try:
            return getattr(importlib.import_module(name), attribute)
        except (ImportError, AttributeError) as error:
            reason = error
    raise SystemExit(f"none of {', '.join(names)} has {attribute}: {reason}")


asked = json.load(sys.stdin)
platforms = importlib.import_module("vllm.platforms")
if not platforms.current_platform.device_type:  # let the parser be made on a machine that vLLM cannot run on
    platforms._current_platform = importlib.import_module("vllm.platforms.cpu").CpuPlatform()
parser = first(PARSERS, "make_arg_parser")(first(ARGPARSE, "FlexibleArgumentParser")())
parsed = [parser.parse_known_args(line[1:]) for line in asked["lines"]]
lines = [{"unknown": rest} | {name: repr(value) for name, value in vars(given).items()} for given, rest in parsed]
bodies = []
for body in asked["bodies"]:
    read = first(BODIES, "CompletionRequest").model_validate(body)
    bodies.append({name: getattr(read, name) for name in body} | {"extra": sorted(read.model_extra or {})})
sys.__stdout__.write("\n" + json.dumps({"lines": lines, "bodies": bodies}) + "\n")
