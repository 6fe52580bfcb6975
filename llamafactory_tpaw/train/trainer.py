# SPDX-License-Identifier: Apache-2.0
"""The Trainer of stage `tpaw`: a forward pass over all responses, the objective, the metrics."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from accelerate.data_loader import SeedableRandomSampler
from torch import Tensor
from transformers import Trainer, TrainerCallback

from ..data.collator import IS_PADDING, RESPONSE_INDICES, GroupSampler, ShardedSampler, count_triplets
from ..errors import TpawError
from ..lf import facade
from ..objectives import SequenceLogps, TpawLoss, TspinLoss, iris_loss, tpaw_loss, tspin_loss
from ..objectives.iris import IrisLoss, iris_value
from ..team.cache import SHORT
from ..team.forward import disable_dropout, response_logps, rounding
from ..team.sharding import autocast_dtype
from .metrics import FLIPPED, MetricBuffer, batch_metrics


if TYPE_CHECKING:
    from collections.abc import Sequence

    from transformers.trainer_utils import EvalLoopOutput

    from ..data.collator import TripletDataset
    from ..team.online import OnlineTeam
    from ..team.shortcuts import Shortcuts


class _Progress(TrainerCallback):
    """Tells the trainer which epoch's order comes next, and when an update has moved the policy away from θ_t."""

    def __init__(self, trainer: TpawTrainer) -> None:
        self.trainer = trainer
        self.rate = 0.0

    def on_train_begin(self, args: Any, state: Any, control: Any, lr_scheduler: Any = None, **kwargs: Any) -> None:
        """A training that is resumed has moved, unless the learning rate of all its steps was 0."""
        self.trainer.policy_moved = moves(lr_scheduler, state.global_step)

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Choose the epoch's order, also where it is resumed midway and accelerate does not find the sampler."""
        if self.trainer.shared_order is not None:
            self.trainer.shared_order.set_epoch(int(state.epoch or 0))

    def on_step_begin(self, args: Any, state: Any, control: Any, optimizer: Any = None, **kwargs: Any) -> None:
        """Look at the learning rates now: DeepSpeed's engine sets the next ones together with the update."""
        self.rate = 1.0 if optimizer is None else max(group["lr"] for group in optimizer.param_groups)

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Note an update, unless warm-up makes it nothing or fp16 skipped it."""
        if self.rate > 0 and not self.trainer.accelerator.optimizer_step_was_skipped:
            self.trainer.policy_moved = True


def moves(schedule: Any, steps: int) -> bool:
    """Whether one of the first steps has a learning rate above 0, as those of a schedule of another kind have."""
    rates = list(zip(getattr(schedule, "lr_lambdas", ()), getattr(schedule, "base_lrs", ()), strict=False))
    return any(base * rate(step) > 0 for step in range(steps) for rate, base in rates or [(lambda step: 1.0, 1.0)])


class TpawTrainer(Trainer):
    """Trains a policy on triplets, whose batches carry cached log-probs unless an online team scores them."""

    def __init__(
        self,
        *,
        finetuning_args: Any,
        shortcuts: Shortcuts,
        player_names: Sequence[str],  # oldest first; none for T-SPIN
        online_team: OnlineTeam | None = None,
        **kwargs: Any,
    ) -> None:
        disable_dropout(kwargs["model"])
        super().__init__(**kwargs)
        # The loss is divided by the number of triplets in the global batch here, not by the Trainer.
        self.model_accepts_loss_kwargs = True
        self.finetuning_args = finetuning_args
        self.shortcuts = shortcuts
        self.player_names = list(player_names)
        self.online_team = online_team
        self.policy_moved = False
        self.shared_order: ShardedSampler | None = None
        self.log_sums: Tensor | None = None  # IRIS's, of the whole batch of a step; None where that is one batch
        self._evaluated: list[Tensor] = []  # the same of batches of an evaluation
        self.add_callback(_Progress(self))
        self._buffers = {"train": MetricBuffer(), "eval": MetricBuffer()}

    def create_optimizer(self, *args: Any, **kwargs: Any) -> torch.optim.Optimizer:
        """Create the optimizer that LlamaFactory's options ask for."""
        if self.optimizer is None:
            self.optimizer = facade.create_custom_optimizer(self.model, self.args, self.finetuning_args)
        return super().create_optimizer(*args, **kwargs)

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        """Create the schedule that LlamaFactory's options ask for."""
        facade.create_custom_scheduler(self.args, num_training_steps, optimizer)
        return super().create_scheduler(num_training_steps, optimizer)

    def _get_train_sampler(self, *args: Any, **kwargs: Any) -> torch.utils.data.Sampler | None:
        """Choose the order in which one process would train, and share it out where there are several."""
        strategy = "sequential" if self.finetuning_args.disable_shuffling else self.args.train_sampling_strategy
        grouped = self.finetuning_args.tpaw_grouping == "prompt"
        if grouped or strategy != "random":
            order = GroupSampler(
                self.train_dataset,
                self._train_batch_size * self.args.world_size,
                seed=self.args.seed if self.args.data_seed is None else self.args.data_seed,
                grouped=grouped,
                shuffle=strategy != "sequential",
                by_length=strategy == "group_by_length",
            )
        elif self.args.world_size == 1:
            order = super()._get_train_sampler(*args, **kwargs)
        else:
            # What accelerate would make of the Trainer's own order, which it looks for only at the top.
            order = SeedableRandomSampler(self.train_dataset, data_seed=self.args.data_seed)
        if self.args.world_size == 1:
            return order
        drop_last = self.args.dataloader_drop_last
        self.shared_order = ShardedSampler(order, self._train_batch_size, self.args.world_size, drop_last=drop_last)
        return self.shared_order

    def _get_eval_sampler(self, eval_dataset: TripletDataset) -> torch.utils.data.Sampler | None:
        """Keep the triplets of a prompt together."""
        order = GroupSampler(eval_dataset, shuffle=False)
        alone = self.args.world_size == 1
        return order if alone else ShardedSampler(order, self.args.eval_batch_size, self.args.world_size)

    def get_batch_samples(self, epoch_iterator: Any, num_batches: int, device: torch.device) -> tuple[Any, Tensor]:
        r"""Collect the micro-batches of one step and count their triplets over all processes.

        IRIS weighs each triplet by all of them, so a pass without gradients comes first where they are in several
        batches.
        """
        batches, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
        count = torch.tensor(sum(count_triplets(batch) for batch in batches), device=device)
        self.log_sums = None
        if self.finetuning_args.tpaw_objective == "iris" and (len(batches) > 1 or self.args.world_size > 1):
            self.model_wrapped.eval()  # so that nothing is kept for a backward; dropout is off anyway
            self.optimizer.train()  # an evaluation may have put other weights in place
            with torch.no_grad(), self.compute_loss_context_manager():
                prepared = (self._prepare_inputs(batch) for batch in batches)
                parts = [self._judge(self.model_wrapped, inputs, not self.policy_moved)[0] for inputs in prepared]
            self.log_sums = self._join([out.log_sums for out in parts])
        return batches, self.accelerator.reduce(count, reduction="sum")

    def _prepare_input(self, data: Any) -> Any:
        """Bring data to the device, without DeepSpeed's cast to the model's dtype, which would round log-probs."""
        return data.to(self.args.device) if isinstance(data, Tensor) else super()._prepare_input(data)

    def _join(self, log_sums: Sequence[Tensor]) -> Tensor:
        """Join the `log_sums` of batches of all processes."""
        return self.accelerator.gather(torch.stack([*log_sums]).logsumexp(0)[None]).logsumexp(0)

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: Mapping[str, Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | None = None,
    ) -> Tensor | tuple[Tensor, TpawLoss | TspinLoss | IrisLoss]:
        r"""Compute the loss of B triplets, a batch of `TripletCollator`.

        With `num_items_in_batch`, the triplets of the whole step, the losses of all micro-batches and processes add up
        to the mean over these; without it the loss is the mean over the batch.
        """
        is_newest = model.training and not self.policy_moved
        out, target, generated = self._judge(model, inputs, is_newest, self.log_sums if model.training else None)
        metrics = batch_metrics(out, self.player_names, target, generated, inputs)
        losses = inputs["weights"] * out.losses
        if IS_PADDING in inputs:  # it takes part in the pass that all processes do together, and counts for nothing
            metrics, losses = {name: values[:0] for name, values in metrics.items()}, 0.0 * losses
        mode = "train" if model.training else "eval"
        if mode == "eval":
            metrics["loss"] = losses.detach()[: count_triplets(inputs)]
            self._evaluated += [out.log_sums] if isinstance(out, IrisLoss) else []
        elif isinstance(out, TpawLoss) and self.state.global_step == 0:
            metrics[FLIPPED] = (metrics[f"rewards/target/{self.player_names[-1]}"] > 0).float()
        self._buffers[mode].add(metrics)
        loss = losses.mean()
        if num_items_in_batch is not None:
            # Gradients and logged losses are averaged over processes, so each one's share is scaled up.
            loss = losses.sum() / num_items_in_batch * self.args.world_size
        return (loss, out) if return_outputs else loss

    def _judge(
        self, model: torch.nn.Module, inputs: Mapping[str, Tensor], is_newest: bool, log_sums: Tensor | None = None
    ) -> tuple[TpawLoss | TspinLoss | IrisLoss, SequenceLogps, SequenceLogps]:
        """Compute the objective of a batch, or part of one with `log_sums`, and the log-probs of its responses."""
        logps = response_logps(model, inputs, head=self.shortcuts.head)
        # Of each triplet the target, the generated response and, where there is one, y_0, each (B,).
        indices = [inputs[name] for name in RESPONSE_INDICES if name in inputs]
        target, generated, *proto = (SequenceLogps(logps.sums[index], logps.token_counts[index]) for index in indices)
        arguments = self.finetuning_args
        try:
            if arguments.tpaw_objective == "tspin":
                logps = target.sums, generated.sums, proto[0].sums if proto else None
                out = tspin_loss(*logps, arguments.tpaw_scale, arguments.tpaw_history_weight)
            else:
                player_target, player_generated = self._player_logps(inputs)
                anchored = self._anchored(target, player_target) if is_newest else player_target
                logps, scale = (target.sums, generated.sums, anchored, player_generated), arguments.tpaw_reward_scale
                if arguments.tpaw_objective == "iris":
                    counts = IS_PADDING not in inputs
                    out = iris_loss(*logps, scale, arguments.tpaw_renyi_alpha, log_sums if counts else None)
                    out = out if counts else out._replace(log_sums=out.log_sums - torch.inf)
                else:
                    out = tpaw_loss(*logps, scale, arguments.tpaw_eta, arguments.tpaw_gamma)
                out = out._replace(target_rewards=scale * (target.sums.detach()[:, None] - player_target))
        except ValueError as error:
            raise TpawError(
                f"At step {self.state.global_step} {error} Lower `learning_rate` or set `max_grad_norm`, and start "
                "again from the last checkpoint; with fp16 use `bf16` where the device can."
            ) from error
        return out, target, generated

    def _player_logps(self, inputs: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """The players' log-probs of the targets and of the generated responses, (B, J) each."""
        if self.online_team is None:
            return inputs["player_target_logps"], inputs["player_generated_logps"]
        scores = self.online_team.score(inputs)
        return scores[inputs["target_index"]], scores[inputs["generated_index"]]

    def _anchored(self, target: SequenceLogps, player_target: Tensor) -> Tensor:
        r"""Give the newest player the policy's own log-probs of the targets, until the first update that moves it.

        Policy and newest player are the same weights then, so the reward is 0 and the target weight eta. What was
        measured differs by rounding when the player was scored in a batch of another shape, and its sign would decide
        between eta and 1.
        """
        policy, newest = target.sums.detach(), player_target[:, -1]
        share = rounding(autocast_dtype(self.args), *{weight.dtype for weight in self.model.parameters()})
        allowed = share * (torch.maximum(policy.abs(), target.token_counts) + SHORT)
        apart = (policy - newest).abs()
        worst = float(self.accelerator.gather((apart * (apart > allowed)).max()).max())
        if worst > 0:
            raise TpawError(
                f"Before the first update {self.player_names[-1]} and the policy are one model, but their log-probs "
                f"of a target differ by {worst:.3g} nats: the policy is not loaded as the players are. "
                "Look at `model_name_or_path`, or delete `tpaw_cache_dir` to have all players scored again."
            )
        return torch.cat([player_target[:, :-1], policy[:, None]], dim=1)

    def evaluation_loop(self, *args: Any, **kwargs: Any) -> EvalLoopOutput:
        """Evaluate, with the means over all triplets of all processes as metrics; IRIS's loss is of all at once."""
        self._evaluated = []
        output = super().evaluation_loop(*args, **kwargs)
        metrics = self._drain("eval")
        if self._evaluated:
            metrics["loss"] = float(iris_value(self._join(self._evaluated), self.finetuning_args.tpaw_renyi_alpha))
        prefix = kwargs.get("metric_key_prefix", "eval")
        output.metrics.update({f"{prefix}_{name}": value for name, value in metrics.items()})
        return output

    def prediction_step(self, model: torch.nn.Module, inputs: Any, *args: Any, **kwargs: Any) -> tuple[None, ...]:
        """Only collect the metrics, the loss among them; batches of processes differ in size."""
        inputs = self._prepare_inputs(inputs)
        with torch.no_grad(), self.compute_loss_context_manager():
            self.compute_loss(model, inputs)
        return None, None, None

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Log with the metrics since the last time."""
        if "loss" in logs:
            logs |= self._drain("train")
        super().log(logs, *args, **kwargs)

    def _drain(self, mode: str) -> dict[str, float]:
        return self._buffers[mode].drain(lambda tensor: self.accelerator.reduce(tensor, reduction="sum"))
