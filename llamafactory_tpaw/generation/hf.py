# SPDX-License-Identifier: Apache-2.0
"""The engine that needs nothing more than transformers, on one device."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
import transformers
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList, PreTrainedModel

from ..errors import EnvironmentProblem
from ..lf.logs import get_logger
from .base import Answers, PromptRequests, Request, Response, SamplingSettings, ignore, plan_batches, units_left
from .decoding import RowDecoder, obstacle, pad_left
from .sampling import choose, refuse_unsound, uniforms_of


logger = get_logger(__name__)


class ChosenOnly(LogitsProcessor):
    r"""Leave `generate` only the token that was chosen for each row, so that greedy search picks it.

    `generate` itself draws from one generator for the whole batch, so that a prompt's response would depend on its
    neighbours, and its repetition penalty counts padding as seen.
    """

    def __init__(self, requests: Sequence[Request], settings: SamplingSettings, attention_mask: torch.Tensor) -> None:
        self.settings, self.prompt_mask = settings, attention_mask  # (B, P)
        self.uniforms: torch.Tensor | None = None  # (B, S)
        if settings.temperature > 0:
            rows = [torch.from_numpy(uniforms_of(request, settings)) for request in requests]
            self.uniforms = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True).to(attention_mask.device)

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        """Leave the chosen token of each row at 0 and all others at -inf."""
        step = input_ids.shape[1] - self.prompt_mask.shape[1]
        seen = None
        if self.settings.repetition_penalty != 1:
            mask = torch.ones_like(input_ids)
            mask[:, : self.prompt_mask.shape[1]] = self.prompt_mask
            seen = torch.zeros_like(scores, dtype=mask.dtype).scatter_add_(1, input_ids, mask) > 0
        uniforms = None if self.uniforms is None else self.uniforms[:, step]
        tokens, sound = choose(scores, uniforms, self.settings, seen)
        refuse_unsound(bool(sound))
        return torch.full_like(scores, -torch.inf).scatter_(1, tokens[:, None], 0.0)


class HfEngine:
    r"""Sample with transformers, by a model in the compute dtype, in eval mode, on its device.

    A batch has at most `batch_tokens`, prompts and new ones, padding included; one row may be larger.
    """

    name = "hf"
    version = transformers.__version__

    def __init__(
        self,
        model: PreTrainedModel,
        settings: SamplingSettings,
        stop_token_ids: Sequence[int],
        pad_token_id: int,
        batch_tokens: int,
    ) -> None:
        # `generate` fills what a config leaves open from the model's own one, which may ask for penalties or top-p.
        model.generation_config = GenerationConfig()
        self.model, self.settings, self.batch_tokens = model, settings, batch_tokens
        self.stop_token_ids, self.pad_token_id = list(stop_token_ids), pad_token_id
        # A quantized model stays in its own dtypes; bitsandbytes keeps 4 bits in those of the others.
        names = sorted({str(weight.dtype).removeprefix("torch.") for weight in model.parameters()})
        method = getattr(model, "quantization_method", None)
        self.facts = {"dtype": ", ".join([*names, *([str(getattr(method, "value", method))] if method else [])])}
        self.decoder: RowDecoder | None = None
        reason = obstacle(model)
        if reason is None:
            self.decoder = RowDecoder(model, settings, stop_token_ids, pad_token_id, batch_tokens)
        else:
            logger.info_rank0(
                f"Rows of {type(model).__name__} cannot be exchanged while others are generated, because {reason}. "
                "Responses are generated in fixed batches by transformers' `generate`, which takes longer."
            )

    def answer(
        self, requests: PromptRequests, left: np.ndarray, finished: Callable[[int], object] = ignore
    ) -> Iterator[Answers]:
        """Answer what is left, unit by unit: the longest prompts first."""
        for unit in units_left(requests, left, self.batch_tokens):
            yield list(zip(unit, self.generate([requests[index] for index in unit], finished), strict=True))

    def generate(self, requests: Sequence[Request], finished: Callable[[int], object] = ignore) -> list[Response]:
        """Answer requests, in their order, each up to its `max_new_tokens`; `finished` is told how many more are."""
        try:
            if self.decoder is not None:
                return self.decoder.decode(requests, finished)
            responses: dict[int, Response] = {}
            lengths = np.asarray([(len(request.prompt_ids), request.max_new_tokens) for request in requests])
            for batch in plan_batches(*lengths.T, self.batch_tokens):
                responses |= zip(batch, self._fixed_batch([requests[index] for index in batch]), strict=True)
                finished(len(batch))
            return [responses[index] for index in range(len(requests))]
        except torch.OutOfMemoryError as error:
            raise EnvironmentProblem(
                f"The device ran out of memory with `tpaw_generate_batch_tokens: {self.batch_tokens}`. Lower it and "
                "start again: finished rows are kept."
            ) from error

    @torch.inference_mode()
    def _fixed_batch(self, requests: Sequence[Request]) -> list[Response]:
        """Answer one batch by `generate`, left-padded to its longest prompt."""
        prompts = [request.prompt_ids for request in requests]
        input_ids, attention_mask = pad_left(prompts, self.pad_token_id, self.model.device)
        config = GenerationConfig(
            do_sample=False,
            max_new_tokens=max(request.max_new_tokens for request in requests),
            eos_token_id=self.stop_token_ids,
            pad_token_id=self.pad_token_id,
            use_cache=True,
        )
        output = self.model.generate(
            input_ids=input_ids,
            attention_mask=attention_mask,
            generation_config=config,
            logits_processor=LogitsProcessorList([ChosenOnly(requests, self.settings, attention_mask)]),
        )
        responses = []
        for request, sampled in zip(requests, output[:, input_ids.shape[1] :].tolist(), strict=True):
            ids = sampled[: request.max_new_tokens]
            end = next((index for index, token in enumerate(ids) if token in self.stop_token_ids), None)
            responses.append(Response(ids, "length") if end is None else Response(ids[: end + 1], "stop"))
        return responses
