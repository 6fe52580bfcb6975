# SPDX-License-Identifier: Apache-2.0
"""What the installed vLLM says to command lines and bodies; run by an interpreter that has vLLM, without this package.

It reads `{"lines": [...], "bodies": [...]}` from standard input and writes what became of each, and the version.
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


def use_some_platform() -> None:
    """Let the parser be made on a machine that vLLM cannot run on."""
    platforms = importlib.import_module("vllm.platforms")
    if not platforms.current_platform.device_type:
        platforms._current_platform = importlib.import_module("vllm.platforms.cpu").CpuPlatform()


def main() -> None:
    """Answer what is asked on standard input."""
    asked = json.load(sys.stdin)
    use_some_platform()
    parser = first(PARSERS, "make_arg_parser")(first(ARGPARSE, "FlexibleArgumentParser")())
    lines = []
    for line in asked["lines"]:
        given, unknown = parser.parse_known_args(line[1:])
        lines.append({"unknown": unknown} | {name: repr(value) for name, value in vars(given).items()})
    model = first(BODIES, "CompletionRequest")
    bodies = []
    for body in asked["bodies"]:
        parsed = model.model_validate(body)
        bodies.append({name: getattr(parsed, name) for name in body} | {"extra": sorted(parsed.model_extra or {})})
    version = importlib.import_module("vllm").__version__
    sys.__stdout__.write("\n" + json.dumps({"lines": lines, "bodies": bodies, "version": version}) + "\n")


if __name__ == "__main__":
    main()
