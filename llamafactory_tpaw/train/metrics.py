# SPDX-License-Identifier: Apache-2.0
"""What training logs: means over all triplets since the last log, the same keys on every process."""

from __future__ import annotations

import re
from collections import deque
from typing import TYPE_CHECKING, Any

import torch

from ..lf import facade
from ..objectives import TpawLoss


if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from transformers import TrainerCallback

    from ..objectives import SequenceLogps, TspinLoss
    from ..objectives.iris import IrisLoss

FLIPPED = "weights/step0_flipped_fraction"
ACCURACY_ALIAS = "rewards/accuracies"  # under which LlamaFactory's own callback looks for the accuracy
METRIC = re.compile(r"(eval_)?(rewards|weights|logps|length|generated)/")


def batch_metrics(
    out: TpawLoss | TspinLoss | IrisLoss,
    names: Sequence[str],
    target: SequenceLogps,
    generated: SequenceLogps,
    batch: Mapping[str, torch.Tensor],
) -> dict[str, torch.Tensor]:
    r"""Describe a batch of B triplets: log-probs in nats, lengths in tokens, rewards of all players and of each, (B,).

    T-SPIN has no names of players: its rewards are those of the policy alone. The squares of IRIS's weights, whose
    mean is 1, tell how few triplets decide.
    """
    margins = out.target_rewards - out.generated_rewards
    rewards = {
        "rewards/target": out.target_rewards,
        "rewards/generated": out.generated_rewards,
        "rewards/margin": margins,
        "rewards/accuracy": (margins > 0).float(),
    }
    metrics = {
        "logps/target": target.sums,
        "logps/generated": generated.sums,
        "length/target": target.token_counts.float(),
        "length/generated": generated.token_counts.float(),
        "generated/truncated_fraction": batch["truncated"].float(),
        "generated/equal_fraction": batch["equal"].float(),
    }
    if not names:
        proto = {} if out.proto_rewards is None else {"rewards/proto": out.proto_rewards}
        return metrics | rewards | proto
    metrics |= {key: values.mean(1) for key, values in rewards.items()}
    for column, name in enumerate(names):
        metrics |= {f"{key}/{name}": values[:, column] for key, values in rewards.items()}
    if isinstance(out, TpawLoss):
        metrics["weights/target_eta_fraction"] = (out.target_rewards <= 0).float().mean(1)
        metrics |= {f"weights/player/{name}": out.player_weights[:, column] for column, name in enumerate(names)}
    else:
        weights = {"target": out.target_weights, "generated": out.generated_weights}
        metrics |= {f"weights/{name}_squared": values.square().mean(1) for name, values in weights.items()}
    return metrics


class MetricBuffer:
    """Sums and counts of metrics, kept on the device until they are logged."""

    def __init__(self) -> None:
        self._sums: dict[str, torch.Tensor] = {}
        self._counts: dict[str, int] = {}

    def add(self, metrics: Mapping[str, torch.Tensor]) -> None:
        """Add one value a triplet for each key."""
        for name, values in metrics.items():
            self._sums[name] = self._sums.get(name, 0.0) + values.detach().double().sum()
            self._counts[name] = self._counts.get(name, 0) + values.numel()

    def drain(self, reduce: Callable[[torch.Tensor], torch.Tensor]) -> dict[str, float]:
        """Return the means and start again; `reduce` sums over all processes, which have added the same keys."""
        names = sorted(self._sums)
        if not names:
            return {}
        sums = torch.stack([self._sums[name] for name in names])
        counts = torch.tensor([self._counts[name] for name in names], dtype=sums.dtype, device=sums.device)
        total = reduce(torch.stack([sums, counts]))
        self._sums, self._counts = {}, {}
        means = dict(zip(names, (total[0] / total[1]).tolist(), strict=True))
        if "rewards/accuracy" in means:
            means[ACCURACY_ALIAS] = means["rewards/accuracy"]
        return means


def with_tpaw_metrics(callbacks: list[TrainerCallback]) -> list[TrainerCallback]:
    """Let LlamaFactory's log callback, which knows a fixed list of keys, write ours into `trainer_log.jsonl`, too."""

    class TpawLogCallback(facade.LogCallback):
        """Adds the metrics of each entry; a thread writes the lines, one after the other."""

        def on_log(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if args.should_save and self.thread_pool is not None:
                entry = state.log_history[-1]
                self.tpaw_metrics.append({key: entry[key] for key in entry if METRIC.match(key)})
            super().on_log(args, state, control, **kwargs)

        def _write_log(self, output_dir: str, logs: dict[str, Any]) -> None:
            # An evaluation without training writes its progress without having logged.
            super()._write_log(output_dir, logs | (self.tpaw_metrics.popleft() if self.tpaw_metrics else {}))

    for callback in callbacks:
        if type(callback) is facade.LogCallback:
            # The object stays the same one: LlamaBoard's abort signal is bound to it.
            callback.__class__ = TpawLogCallback
            callback.tpaw_metrics = deque()
    return callbacks
