# SPDX-License-Identifier: Apache-2.0
"""What training logs: means over all triplets since the last log, the same keys on every process."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch


if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from ..objectives import SequenceLogps, TpawLoss, TspinLoss

FLIPPED = "weights/step0_flipped_fraction"
# The name under which LlamaFactory's own callback looks for the accuracy.
ACCURACY_ALIAS = "rewards/accuracies"


def tpaw_metrics(out: TpawLoss, names: Sequence[str]) -> dict[str, torch.Tensor]:
    r"""Describe a batch under objective `tpaw`.

    Args:
        out: What `tpaw_loss` returned for B triplets and J players.
        names: Names of the players, oldest first.

    Returns:
        One value a triplet, (B,): means over the players, and each player's own.
    """
    margins = out.target_rewards - out.generated_rewards
    weighted = (out.target_rewards <= 0).float()
    metrics = {
        "rewards/target": out.target_rewards.mean(1),
        "rewards/generated": out.generated_rewards.mean(1),
        "rewards/margin": margins.mean(1),
        "rewards/accuracy": (margins > 0).float().mean(1),
        "weights/target_eta_fraction": weighted.mean(1),
    }
    for column, name in enumerate(names):
        metrics[f"rewards/target/{name}"] = out.target_rewards[:, column]
        metrics[f"rewards/generated/{name}"] = out.generated_rewards[:, column]
        metrics[f"rewards/margin/{name}"] = margins[:, column]
        metrics[f"rewards/accuracy/{name}"] = (margins[:, column] > 0).float()
        metrics[f"weights/player/{name}"] = out.player_weights[:, column]
    return metrics


def tspin_metrics(out: TspinLoss) -> dict[str, torch.Tensor]:
    """Describe a batch under objective `tspin`, whose rewards are those of the policy alone: (B,) each."""
    margins = out.target_rewards - out.generated_rewards
    metrics = {
        "rewards/target": out.target_rewards,
        "rewards/generated": out.generated_rewards,
        "rewards/margin": margins,
        "rewards/accuracy": (margins > 0).float(),
    }
    if out.proto_rewards is not None:
        metrics["rewards/proto"] = out.proto_rewards
    return metrics


def sequence_metrics(
    target: SequenceLogps, generated: SequenceLogps, batch: Mapping[str, torch.Tensor]
) -> dict[str, torch.Tensor]:
    """Describe the responses of a batch: log-probs in nats, lengths in tokens, truncated and equal ones, (B,) each."""
    return {
        "logps/target": target.sums.detach(),
        "logps/generated": generated.sums.detach(),
        "length/target": target.token_counts.float(),
        "length/generated": generated.token_counts.float(),
        "generated/truncated_fraction": batch["truncated"].float(),
        "generated/equal_fraction": batch["equal"].float(),
    }


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
        r"""Return the means and start anew.

        Args:
            reduce: Sums a tensor over all processes. Every process adds the same keys, so one call carries them all.
        """
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
