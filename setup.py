# SPDX-License-Identifier: Apache-2.0
"""Packaging: the extras, the console script and the two start-up files that register the import hook."""

import ast
import os
from pathlib import Path
from typing import ClassVar

from setuptools import Command, find_packages, setup
from setuptools.command.build import build


ROOT = Path(__file__).resolve().parent
# The client of engines `vllm` and `openai`.
OPENAI = "openai>=1.60"
# 0.18.4 was seen to load corrupted weights under ZeRO-3 over gloo.
DEEPSPEED = "deepspeed>=0.19.8"
# `rng` of scipy's tests is from 1.15.
STATISTICS = ("scipy>=1.15", "statsmodels>=0.14.4")
EVAL = ("lm-eval>=0.4.13", *STATISTICS)
STARTUP_FILES = ("llamafactory_tpaw.pth", "llamafactory_tpaw.start")


def read_constant(path: str, name: str) -> str:
    """Read a module's string constant without importing the module."""
    tree = ast.parse((ROOT / path).read_text(encoding="utf-8"))
    for node in tree.body:
        if isinstance(node, ast.Assign) and any(getattr(target, "id", None) == name for target in node.targets):
            return ast.literal_eval(node.value)
    raise RuntimeError(f"{path} does not set {name}.")


class build_startup(Command):
    """Put the start-up files at the top of the wheel, and so into site-packages, where the interpreter reads them."""

    description = "copy the .pth and .start files of the import hook"
    user_options: ClassVar[list] = []
    editable_mode = False  # set by setuptools

    def initialize_options(self) -> None:
        """Start without a target."""
        self.build_lib = None

    def finalize_options(self) -> None:
        """Take the target of the build."""
        self.set_undefined_options("build", ("build_lib", "build_lib"))

    def run(self) -> None:
        """Copy the files."""
        # An editable build throws build_lib away; there install_lib is the unpacked wheel.
        target = self.get_finalized_command("install").install_lib if self.editable_mode else self.build_lib
        self.mkpath(target)
        for name in STARTUP_FILES:
            self.copy_file(name, os.path.join(target, name), preserve_mode=False)

    def get_source_files(self) -> list[str]:
        """Files that the sdist must hold."""
        return list(STARTUP_FILES)

    def get_outputs(self) -> list[str]:
        """Files that `run` makes."""
        return [] if self.editable_mode else [os.path.join(self.build_lib, name) for name in STARTUP_FILES]

    def get_output_mapping(self) -> dict[str, str]:
        """Nothing is linked to the source tree."""
        return {}


build.sub_commands.append(("build_startup", None))

readme = ROOT / "README.md"
setup(
    name="llamafactory-tpaw",
    version=read_constant("llamafactory_tpaw/__init__.py", "__version__"),
    description="Team-based self-play fine-tuning (TPAW, T-SPIN, SPIN) as a training stage of LlamaFactory",
    long_description=readme.read_text(encoding="utf-8") if readme.is_file() else "",
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE"],
    python_requires=">=3.11",
    packages=find_packages(include=["llamafactory_tpaw", "llamafactory_tpaw.*"]),
    package_data={"llamafactory_tpaw": ["py.typed", "board/locales.json", "report/tasks/*.yaml"]},
    install_requires=[
        "llamafactory" + read_constant("llamafactory_tpaw/lf/status.py", "SUPPORTED"),
        "torch" + read_constant("llamafactory_tpaw/lf/status.py", "TORCH"),
        "transformers>=5.2",  # the first whose TrainingArguments have `train_sampling_strategy`
        "packaging",
        "filelock>=3.20.1",
        "psutil>=5.9",
        "rich>=13.0",
        "shtab>=1.6",
    ],
    extras_require={
        # What resolves beside LlamaFactory, of which 0.9.5 takes transformers up to 5.6 and its main branch up to 5.8:
        # vLLM 0.29 needs 5.10, and 0.11.0 would be given 5.6, which it does not know. Newer ones run in an environment
        # of their own.
        "vllm": ["vllm>=0.11.2,<0.29", OPENAI],
        "openai": [OPENAI],
        "deepspeed": [DEEPSPEED],
        "flash-attn": ["flash-attn>=2.6"],
        "eval": [*EVAL],
        "ray": ["ray[default]>=2.40"],
        "dev": [
            "build>=1.0",
            "hypothesis>=6.100",
            "playwright>=1.49",
            "pytest>=8",
            "pytest-xdist>=3.6",
            "ruff>=0.9",
            OPENAI,
            DEEPSPEED,
            *EVAL,
        ],
    },
    entry_points={"console_scripts": ["llamafactory-tpaw = llamafactory_tpaw.cli:main"]},
    cmdclass={"build_startup": build_startup},
    zip_safe=False,
    classifiers=[
        "Intended Audience :: Science/Research",
        "Operating System :: OS Independent",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Typing :: Typed",
    ],
)
