# SPDX-License-Identifier: Apache-2.0
"""What others say: LlamaFactory's own tests with and without the package, and TRL's DPO beside SPIN."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import sysconfig
from collections import Counter
from pathlib import Path
from xml.etree import ElementTree

from datasets import Dataset
from llamafactory.train.tuner import run_exp
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM
from trl import DPOConfig, DPOTrainer

from llamafactory_tpaw.data.opponents import Limits, load_foreign
from llamafactory_tpaw.data.source import find_entry
from tests import encoders, tiny
from tests.integration.pairs import pair_settings
from tests.integration.test_spin_is_dpo import SPIN, make_project

from .ledger import ROOT, Outcome


CHECKOUT = "LLAMAFACTORY_CHECKOUT"
STEPS, CUTOFF, SCALE, TOLERANCE = 20, 512, 0.1, 1e-5
HOOKED = "import sys; print('llamafactory_tpaw._hook' in sys.modules)"


class GivenIds(DPOTrainer):
    """Takes the pairs as the token ids that our stage trains on."""

    def _prepare_dataset(self, dataset: Dataset, *_: object, **__: object) -> Dataset:
        return dataset


def run(count: int, seed: int, folder: Path) -> Outcome:
    """Compare with TRL at so many seeds, and with LlamaFactory's own tests where a checkout has them."""
    outcome = Outcome()
    for each in range(seed, seed + count):
        beside_trl(each, folder / f"seed{each}", outcome)
    if checkout := os.environ.get(CHECKOUT):
        llamafactorys_own_tests(Path(checkout), folder, outcome)
    else:
        print(f"LlamaFactory's own tests are left out: set {CHECKOUT} to a checkout of the installed version.")
    return outcome


def beside_trl(seed: int, root: Path, outcome: Outcome) -> None:
    """Train SPIN and TRL's `DPOTrainer` on the same pairs in the same order: each loss, and all weights at the end."""
    project = make_project(root)
    shared = {"learning_rate": 0.02, "per_device_train_batch_size": 2, "max_steps": STEPS, "seed": seed}
    shared |= {"optim": "sgd", "logging_steps": 1, "use_cpu": True, "save_strategy": "no"}
    ours = {"cutoff_len": CUTOFF, "tpaw_grouping": "none", "tpaw_reward_scale": SCALE, "output_dir": "saves/spin"}
    parsed = encoders.parse(project, cutoff_len=CUTOFF)
    encoder = encoders.build_encoder(parsed)
    with contextlib.chdir(root):
        run_exp(pair_settings(project, "pairs", **shared, **ours, **SPIN))
        pairs = find_entry("pairs", "data"), encoder, Limits(CUTOFF, 1, 0), parsed.model, parsed.data, parsed.training
        triplets = load_foreign(*pairs)
    names = {"prompt": "prompt_ids", "chosen": "target_ids", "rejected": "generated_ids"}
    rows = [{f"{to}_input_ids": getattr(each, of).tolist() for to, of in names.items()} for each in triplets]
    theirs = {"beta": SCALE, "max_length": None, "max_prompt_length": None, "report_to": []}
    theirs |= {"bf16": False, "gradient_checkpointing": False}
    policy, reference = (AutoModelForCausalLM.from_pretrained(project.model) for _ in range(2))
    policy.warnings_issued = {}  # which TRL expects, and transformers 5 no longer has
    data = {"train_dataset": Dataset.from_list(rows), "processing_class": encoder.tokenizer}
    trainer = GivenIds(policy, reference, DPOConfig(str(root / "trl"), **theirs, **shared), **data)
    trainer.train()
    logs = project.history("spin"), [row for row in trainer.state.log_history if "loss" in row]
    apart = max(abs(one["loss"] - other["loss"]) for one, other in zip(*logs, strict=True))
    end = load_file(root / "saves" / "spin" / "model.safetensors")
    most = max(float((end[name] - value).abs().max()) for name, value in policy.named_parameters())
    said = f"Seed {seed}: losses of SPIN and of TRL's DPO differ by {apart:.2g}, weights by {most:.2g}."
    print(said, flush=True)
    outcome.tried["steps of SPIN beside TRL's DPO"] += len(logs[0])
    if len(logs[0]) != STEPS or max(apart, most) > TOLERANCE:
        outcome.failures.append(said)


def llamafactorys_own_tests(checkout: Path, folder: Path, outcome: Outcome) -> None:
    """Run them where the package's `.pth` file takes effect, and where no such file does; each must end alike."""
    base = Path(sys.base_prefix, "bin", f"python{sys.version_info.major}.{sys.version_info.minor}")
    variables = os.environ | {"HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}
    variables["TINY_LLAMA3"] = str(tiny.save_model(folder / "tiny"))  # in place of a model on the hub
    found: dict[str, dict[str, str]] = {}
    for how, python, path in (("with", sys.executable, ROOT), ("without", base, sysconfig.get_path("purelib"))):
        variables["PYTHONPATH"], report = str(path), folder / f"{how}.xml"
        hooked = subprocess.run([python, "-c", HOOKED], env=variables, capture_output=True, text=True, check=True)
        if hooked.stdout.strip() != str(how == "with"):
            outcome.failures.append(f"{python} is to be {how} the package's hook, and is not.")
        command = [python, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--junitxml={report}", "tests"]
        subprocess.run(command, cwd=checkout, env=variables, stdout=subprocess.DEVNULL, check=False)
        found[how] = {}
        for case in ElementTree.parse(report).iter("testcase"):
            ends = [part.tag for part in case if part.tag in ("failure", "error", "skipped")]
            found[how][f"{case.get('classname')}::{case.get('name')}"] = ends[0] if ends else "passed"
    for end, times in Counter(found["with"].values()).items():
        outcome.tried[f"LlamaFactory's own tests that end alike with and without the package: {end}"] += times
    for name in sorted(found["with"].keys() | found["without"].keys()):
        ends = [found[how].get(name, "absent") for how in ("with", "without")]
        if ends[0] != ends[1]:
            outcome.failures.append(f"LlamaFactory's {name}: {ends[0]} with the package, {ends[1]} without.")
