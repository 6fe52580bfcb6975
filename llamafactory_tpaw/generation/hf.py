# SPDX-License-Identifier: Apache-2.0
"""The engine that needs nothing more: transformers' `generate` on one device."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import transformers
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from ..errors import GenerationError
from .base import Request, Response, SamplingSettings


if TYPE_CHECKING:
    from collections.abc import Sequence

    from transformers import PreTrainedModel


NAN_ADVICE = (
    "The model's probabilities are NaN. Look at the checkpoint and its dtype; a model trained in bf16 may not be run "
    "in fp16."
)


class SeededSampler(LogitsProcessor):
    r"""Sample by inverting the cumulative distribution with random numbers that belong to the prompt.

    `generate` draws from one generator for the whole batch, so that a prompt's response would depend on its
    neighbours. Here step s of a prompt uses the s-th number of its own stream; the chosen token is all that is left
    for greedy search to pick.

    Args:
        seeds: One seed a row.
        max_new_tokens: Number of steps, S.
    """

    def __init__(self, seeds: Sequence[int], max_new_tokens: int) -> None:
        rows = [
            torch.rand(max_new_tokens, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
            for seed in seeds
        ]
        self.uniforms = torch.stack(rows)  # (B, S)
        self.step = 0

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        """Leave the sampled token of each row at 0 and all others at -inf."""
        cumulative = scores.float().softmax(-1).to(torch.float64).cumsum(-1)
        if not torch.isfinite(cumulative[:, -1]).all():
            raise GenerationError(NAN_ADVICE)
        drawn = self.uniforms[:, self.step, None].to(scores.device) * cumulative[:, -1:]
        # The first token whose cumulative probability exceeds the drawn one; tokens of probability 0 never do.
        token = torch.searchsorted(cumulative, drawn, right=True).clamp(max=scores.shape[-1] - 1)
        self.step += 1
        return torch.full_like(scores, -torch.inf).scatter_(1, token, 0.0)


class NanGuard(LogitsProcessor):
    """Refuse NaN where greedy search would take it for the largest logit."""

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        """Leave the scores as they are."""
        if scores.isnan().any():
            raise GenerationError(NAN_ADVICE)
        return scores


class RepetitionPenalty(LogitsProcessor):
    r"""Transformers' repetition penalty, but for padding.

    Its own counts the padding as seen, so that a shorter prompt's end-of-turn token, which often pads, would be
    penalized by how long its neighbours are.

    Args:
        penalty: Divides positive logits of tokens that were seen and multiplies negative ones.
        attention_mask: Of the prompts, (B, P).
    """

    def __init__(self, penalty: float, attention_mask: torch.Tensor) -> None:
        self.penalty = penalty
        self.prompt_mask = attention_mask

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        """Penalize what the prompt and the response so far hold."""
        mask = torch.ones_like(input_ids)
        mask[:, : self.prompt_mask.shape[1]] = self.prompt_mask
        seen = torch.zeros_like(scores, dtype=mask.dtype).scatter_add_(1, input_ids, mask) > 0
        penalized = torch.where(scores < 0, scores * self.penalty, scores / self.penalty)
        return torch.where(seen, penalized, scores)


class HfEngine:
    r"""Sample with transformers.

    Args:
        model: θ_t in the compute dtype, in eval mode, on its device.
        settings: Sampling settings.
        stop_token_ids: Ids that end a response.
        pad_token_id: Padding id.
    """

    name = "hf"
    version = transformers.__version__

    def __init__(
        self, model: PreTrainedModel, settings: SamplingSettings, stop_token_ids: Sequence[int], pad_token_id: int
    ) -> None:
        # `generate` fills what a config leaves open from the model's own one, which may ask for penalties or top-p.
        model.generation_config = GenerationConfig()
        self.model = model
        self.settings = settings
        self.stop_token_ids = list(stop_token_ids)
        self.pad_token_id = pad_token_id

    @torch.inference_mode()
    def generate(self, requests: Sequence[Request]) -> list[Response]:
        r"""Answer one batch, left-padded to its longest prompt.

        Args:
            requests: The prompts; each is sampled up to its own `max_new_tokens`.

        Returns:
            One response a request, in order.
        """
        input_ids, attention_mask = self._pad(requests)
        longest = max(request.max_new_tokens for request in requests)
        config = GenerationConfig(
            do_sample=False,
            max_new_tokens=longest,
            eos_token_id=self.stop_token_ids,
            pad_token_id=self.pad_token_id,
            use_cache=True,
        )
        output = self.model.generate(
            input_ids=input_ids,
            attention_mask=attention_mask,
            generation_config=config,
            logits_processor=self._processors(requests, longest, attention_mask),
        )
        sampled = output[:, input_ids.shape[1] :].tolist()
        return [self._finish(ids, request) for ids, request in zip(sampled, requests, strict=True)]

    def _pad(self, requests: Sequence[Request]) -> tuple[torch.Tensor, torch.Tensor]:
        width = max(len(request.prompt_ids) for request in requests)
        input_ids = torch.full((len(requests), width), self.pad_token_id, dtype=torch.long)
        attention_mask = torch.zeros_like(input_ids)
        for row, request in enumerate(requests):
            input_ids[row, width - len(request.prompt_ids) :] = torch.from_numpy(request.prompt_ids)
            attention_mask[row, width - len(request.prompt_ids) :] = 1
        return input_ids.to(self.model.device), attention_mask.to(self.model.device)

    def _processors(
        self, requests: Sequence[Request], steps: int, attention_mask: torch.Tensor
    ) -> LogitsProcessorList:
        settings = self.settings
        processors = LogitsProcessorList()
        if settings.repetition_penalty != 1.0:
            processors.append(RepetitionPenalty(settings.repetition_penalty, attention_mask))
        if settings.temperature == 0.0:
            processors.append(NanGuard())
            return processors
        if settings.temperature != 1.0:
            processors.append(TemperatureLogitsWarper(float(settings.temperature)))
        if settings.top_k > 0:
            processors.append(TopKLogitsWarper(settings.top_k))
        if settings.top_p < 1.0:
            processors.append(TopPLogitsWarper(settings.top_p))
        processors.append(SeededSampler([request.seed(settings.seed) for request in requests], steps))
        return processors

    def _finish(self, ids: list[int], request: Request) -> Response:
        """Cut a row at its first stop token or at its own limit."""
        ids = ids[: request.max_new_tokens]
        end = next((index for index, token in enumerate(ids) if token in self.stop_token_ids), None)
        return Response(ids, "length") if end is None else Response(ids[: end + 1], "stop")
