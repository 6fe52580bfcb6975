# SPDX-License-Identifier: Apache-2.0
"""Extreme log-probs through the losses; models of each dtype, sound or not, trained on odd triplets."""

from __future__ import annotations

import contextlib
import json
import math
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from llamafactory_tpaw.arguments.parsed import parse_single_process
from llamafactory_tpaw.errors import TpawError
from llamafactory_tpaw.objectives import iris_loss, tpaw_loss, tspin_loss
from llamafactory_tpaw.team.fingerprint import fingerprint_checkpoint
from llamafactory_tpaw.team.members import load_encoder, load_members
from llamafactory_tpaw.team.scorer import TeamScorer
from llamafactory_tpaw.train.setup import load_setup
from tests.gate import values
from tests.integration.pairs import logps_of, pair_settings
from tests.runs import Project
from tests.unit.data.writing import make_prompt, make_row, write_round

from .bad_input import attack
from .ledger import Outcome


# How a checkpoint is stored, and trained.
KINDS: list[tuple[torch.dtype, dict[str, Any]]] = [
    (torch.float32, {}),
    (torch.float16, {}),
    (torch.bfloat16, {}),
    (torch.bfloat16, {"bf16": True}),
]
BAD = (torch.nan, torch.inf, -torch.inf)
EPS = 2.0**-20  # a few roundings in float32
ROUNDED = {torch.float32: EPS, torch.bfloat16: 2**-7, torch.float16: 2**-10}
# From certain to impossible, some apart by one step of float32 or bf16; as far as the dtype, or the promise, goes.
logps = st.sampled_from([0.0, -1e-6, -0.5, -100.0, -100.00001, -100.5, -1e4, -9999.0]) | st.floats(-6e4, 0.0, width=16)
settings = st.tuples(*map(st.sampled_from, ((0.1, 1.0, 10.0), (1.0, 6.0, 100.0), (0.0, 0.5, 100.0))))


@st.composite
def batches(draw: Callable[..., Any]) -> tuple[list[Tensor], tuple[float, float, float]]:
    """Log-probs of the policy, (B,) twice, and of the players, (B, J) twice, of one dtype; lambda, eta and gamma."""
    dtype, batch, players = draw(st.sampled_from([*ROUNDED])), draw(st.integers(1, 4)), draw(st.integers(1, 3))
    times = 1 if dtype == torch.float16 else draw(st.sampled_from([1, 16]))
    given = []
    for shape in [(batch,), (batch,), (batch, players), (batch, players)]:
        size = math.prod(shape)
        made = torch.tensor(draw(st.lists(logps, min_size=size, max_size=size)), dtype=dtype) * times
        given.append(made.reshape(shape))
    return given, draw(settings)


def check_losses(example: tuple[list[Tensor], tuple[float, float, float]]) -> None:
    """Hold TPAW's losses and gradients to the equation in float64; those of the other objectives must be finite."""
    given, (scale, eta, gamma) = example
    given = [*(each.clone().requires_grad_() for each in given[:2]), *given[2:]]
    target, generated, of_target, of_generated = (each.detach().double().numpy() for each in given)
    out = tpaw_loss(*given, scale, eta, gamma)
    found = torch.autograd.grad(out.loss, given[:2])
    first, second = scale * (target[:, None] - of_target), scale * (generated[:, None] - of_generated)
    alpha, minus = np.where(first <= 0, eta, 1.0), -gamma * (first - second)
    beta = np.exp(minus - minus.max(1, keepdims=True))
    beta /= beta.sum(1, keepdims=True)
    z = alpha * first - second
    size = 1 + (eta * np.abs(first) + np.abs(second)).max(1)
    losses = out.losses.detach().numpy()
    assert (abs(losses - (beta * np.logaddexp(0, -z)).sum(1)) <= EPS * size * (1 + gamma * size)).all(), example
    slope = beta * scale / (1 + np.exp(np.clip(z, -700, 700))) / len(z)
    for grad, wanted in zip(found, ((-alpha * slope).sum(1), slope.sum(1)), strict=True):
        # Halves hold no gradient below 6e-8.
        near = ROUNDED[grad.dtype] * abs(wanted) + 1e-7 + eta * scale * EPS * size * (1 + gamma)
        assert (abs(grad.double().numpy() - wanted) <= near).all(), example
    for others in (
        iris_loss(*given[:2], given[2][:, :1], given[3][:, :1], scale, gamma + 0.25),
        tspin_loss(*given[:2], given[2][:, 0], scale, gamma),
    ):
        assert all(each.isfinite().all() for each in (others.losses, *torch.autograd.grad(others.loss, given[:2])))


def check_model(number: int, seed: int) -> str:
    """Train a model on one to four triplets in the working folder, which holds a run; every other one has bad numbers.

    Responses are equal to the target, empty, of one token, or long.
    """
    chosen, (dtype, how) = np.random.default_rng([seed, number]), KINDS[number % len(KINDS)]
    source, folder, broken = Path("saves/theta_0"), Path(f"saves/model_{number}"), number // len(KINDS) % 2 == 1
    shutil.copytree(source, folder)
    tensors = {name: tensor.to(dtype) for name, tensor in load_file(source / "model.safetensors").items()}
    if broken:
        tensor = tensors[chosen.choice(sorted(tensors))].view(-1)
        tensor[int(chosen.integers(min(len(tensor), 4000)))] = BAD[number % 3]
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    project, out = Project(Path(), folder), f"saves/of_{number}"
    learnt = {"per_device_train_batch_size": 2, "num_train_epochs": 2.0, "learning_rate": 1e-4, "output_dir": out}
    given = pair_settings(project, "d0", **learnt, **how, overwrite_output_dir=True)
    run = parse_single_process(given)
    tokenizer, _, encoder = load_encoder(run)
    prompts = [make_prompt(encoder, f"{row} + 1?", f"It is {row + 1}.") for row in range(chosen.integers(1, 5))]
    texts = [(prompt.target["content"], "", "1", "no " * 60)[chosen.integers(4)] for prompt in prompts]
    rows = [make_row(encoder, *each, chosen.choice(["stop", "length"])) for each in zip(prompts, texts, strict=True)]
    write_round(project, encoder, rows, generator=fingerprint_checkpoint(folder, Path("saves/prints")))
    triplets, model = load_setup(run).train, AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64).eval()
    wanted = np.array([[float(sums) for sums in logps_of(model, triplet)] for triplet in triplets])
    said = ""
    try:
        values.train_here(Path(project.write("run.yaml", given)))
    except TpawError as error:
        said = str(error)
    if not np.isfinite(wanted).all():
        assert re.search(rf"^theta_0 \({folder}\) gives NaN or inf for .* \+ 1\?", said), (number, said)
        return "models that give NaN or inf"
    assert not said or (broken and said.startswith("At step ")), (number, said)
    if broken:
        return "models with bad numbers that these responses do not meet"
    pairs = [(triplet.prompt_ids, ids) for triplet in triplets for ids in triplet.responses]
    found = TeamScorer(run, tokenizer).lookup(load_members(run)[0], pairs).reshape(-1, 2)
    tokens = np.array([[len(ids) for ids in triplet.responses] for triplet in triplets])
    near = 2e-2 if how else 1e-4
    assert (abs(found - wanted) <= near * (abs(wanted) + tokens + 1)).all(), (number, found, wanted)
    logged = json.loads(Path(out, "trainer_state.json").read_text())["log_history"]
    assert abs(logged[0]["loss"] - math.log(2)) < 1e-3, (number, logged)
    assert all(math.isfinite(value) for entry in logged for value in entry.values()), (number, logged)
    assert all(tensor.isfinite().all() for tensor in load_file(Path(out, "model.safetensors")).values()), number
    return f"models in {str(dtype).removeprefix('torch.')}" + "".join(f", {key}" for key in how)


def run(count: int, seed: int, folder: Path) -> Outcome:
    """Try a hundred times `count` batches, and `count` models."""
    outcome = Outcome()
    values.unpack(folder)
    with contextlib.chdir(folder):
        try:
            outcome.tried["batches of log-probs"] = attack(batches(), check_losses, 100 * count, seed)
            for number in range(count):
                outcome.tried[check_model(number, seed)] += 1
        except AssertionError as error:
            outcome.failures.append(f"--seed {seed}: {error}")
    return outcome
