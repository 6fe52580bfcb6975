# SPDX-License-Identifier: Apache-2.0
"""Two checkpoints in memory that are asked the same, with LlamaFactory's own chat model."""

from __future__ import annotations

import gc
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from ..errors import ConfigError, EnvironmentProblem
from ..lf import facade


Messages = list[dict[str, str]]

# Keys of a run that say how its checkpoints are loaded and how a prompt is written.
TAKEN = (
    "template",
    "default_system",
    "tool_format",
    "enable_thinking",
    "rope_scaling",
    "flash_attn",
    "quantization_bit",
    "quantization_method",
    "quantization_type",
    "double_quantization",
    "cache_dir",
    "model_revision",
    "top_k",
)
ADAPTER = "adapter_config.json"
# How long an answer that was told to end may take: it ends with the token that it is at.
END_S = 120.0
# How often the page gets what was added to the answers.
REFRESH_S = 0.1


class Checkpoint(NamedTuple):
    """What is asked: its name in the page (`θ_2`) and `model`, `model+adapter` or `model+adapter+adapter`."""

    name: str
    path: str


class Sampling(NamedTuple):
    """How an answer is sampled; temperature 0 takes the likeliest token."""

    temperature: float
    top_p: float
    max_new_tokens: int


def chat_arguments(
    settings: Mapping[str, Any], checkpoint: Checkpoint, template: str, trust_remote_code: bool
) -> dict[str, Any]:
    r"""Return what LlamaFactory's chat model is opened with: a run's settings, with another checkpoint.

    Args:
        settings: Of the run; `model_name_or_path` is the base of a checkpoint that is an adapter alone.
        checkpoint: What is opened.
        template: Name of the template.
        trust_remote_code: Whether the user said so.
    """
    model, *adapters = checkpoint.path.split("+")
    if Path(model, ADAPTER).is_file():
        model, adapters = str(settings["model_name_or_path"]).split("+")[0], [model, *adapters]
    taken = {key: settings[key] for key in TAKEN if settings.get(key) is not None}
    return {
        **taken,
        "model_name_or_path": model,
        **({"adapter_name_or_path": ",".join(adapters)} if adapters else {}),
        "finetuning_type": "lora" if adapters else "full",
        "template": template,
        "infer_backend": "huggingface",
        "trust_remote_code": trust_remote_code is True,
    }


@dataclass
class _Answer:
    """One answer as it comes in."""

    text: str = ""
    error: BaseException | None = None
    ended: bool = False


@dataclass
class Pair:
    """Two loaded checkpoints, or none. One for the whole page: who loads and who asks comes one after the other."""

    names: tuple[str, ...] = ()
    _paths: tuple[str, ...] = ()
    _models: dict[str, Any] = field(default_factory=dict)
    _threads: list[threading.Thread] = field(default_factory=list)
    _stop: threading.Event = field(default_factory=threading.Event)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def loaded(self) -> bool:
        """Whether both can be asked."""
        return bool(self.names)

    @property
    def busy(self) -> bool:
        """Whether something is loaded, unloaded or answered just now."""
        return self._lock.locked() or any(thread.is_alive() for thread in self._threads)

    def load(self, checkpoints: Sequence[Checkpoint], arguments: Sequence[Mapping[str, Any]]) -> Iterator[str]:
        r"""Load two checkpoints; the same one twice takes its memory once.

        Args:
            checkpoints: What is asked, left and right.
            arguments: Of LlamaFactory's chat model, see `chat_arguments`.

        Yields:
            The name of each before it is loaded.

        Raises:
            ConfigError: If two are loaded already, or one is being loaded.
            EnvironmentProblem: If one cannot be loaded; then none is.
        """
        if not self._lock.acquire(blocking=False):
            raise ConfigError("The models are being loaded or unloaded. Wait until that is done.")
        try:
            if self.loaded:
                raise ConfigError(f"{' and '.join(self.names)} are loaded. Unload them first.")
            for checkpoint, given in zip(checkpoints, arguments, strict=True):
                if checkpoint.path not in self._models:
                    yield checkpoint.name
                    self._models[checkpoint.path] = self._open(checkpoint, given)
            self._paths = tuple(checkpoint.path for checkpoint in checkpoints)
            self.names = tuple(checkpoint.name for checkpoint in checkpoints)
        finally:
            if not self.loaded:
                self._free()
            self._lock.release()

    def _open(self, checkpoint: Checkpoint, arguments: Mapping[str, Any]) -> Any:
        try:
            model = facade.ChatModel(dict(arguments))
        except (Exception, SystemExit) as error:
            raise EnvironmentProblem(f"{checkpoint.name} ({checkpoint.path}) cannot be loaded: {error}") from error
        _guard(model.engine.model, self._stop)
        return model

    def unload(self) -> None:
        """End what is being answered, and free the memory of both."""
        self._stop.set()
        with self._lock:
            for thread in self._threads:
                thread.join(END_S)
            self.names = ()
            self._free()

    def _free(self) -> None:
        for model in self._models.values():
            model._loop.call_soon_threadsafe(model._loop.stop)
        self._models.clear()
        gc.collect()
        facade.torch_gc()

    def ask(self, conversations: Sequence[Messages], system: str, sampling: Sampling) -> Iterator[list[str]]:
        r"""Ask both and yield what they have answered so far, side by side.

        Args:
            conversations: Messages for each, the question last.
            system: System prompt; empty for the template's own.
            sampling: How the answers are sampled.

        Yields:
            Both answers, a few times a second, and at the end. Leaving the loop early ends the answers, too.

        Raises:
            ConfigError: If nothing is loaded, or an answer is not finished.
            EnvironmentProblem: If one of them failed, such as out of memory.
        """
        with self._lock:
            if not self.loaded:
                raise ConfigError("No checkpoints are loaded. Load two first.")
            if any(thread.is_alive() for thread in self._threads):
                raise ConfigError("The last question is still being answered. Wait until that is done.")
            self._stop.clear()
            answers, news = [_Answer() for _ in conversations], threading.Event()
            models = [self._models[path] for path in self._paths]
            self._threads = [
                threading.Thread(target=_fill, args=(*each, system, sampling, news), name="tpaw-chat", daemon=True)
                for each in zip(answers, models, conversations, strict=True)
            ]
            for thread in self._threads:
                thread.start()
        yield from self._watch(answers, news)
        for name, answer in zip(self.names, answers, strict=False):
            if answer.error is not None:
                raise EnvironmentProblem(f"{name} cannot answer: {answer.error}") from answer.error

    def _watch(self, answers: list[_Answer], news: threading.Event) -> Iterator[list[str]]:
        try:
            while not all(answer.ended for answer in answers):
                news.wait()
                news.clear()
                yield [answer.text for answer in answers]
                self._stop.wait(REFRESH_S)
            yield [answer.text for answer in answers]
        finally:
            self._stop.set()


def _fill(
    answer: _Answer, model: Any, messages: Messages, system: str, sampling: Sampling, news: threading.Event
) -> None:
    """Let a checkpoint answer, in a thread of its own."""
    failures = model.engine.model.__dict__["tpaw_failures"]
    failures.clear()
    try:
        for piece in model.stream_chat([dict(message) for message in messages], system or None, **sampling._asdict()):
            answer.text += piece
            news.set()
        answer.error = failures[0] if failures else None
    except Exception as error:
        answer.error = error
    finally:
        answer.ended = True
        news.set()


def _guard(model: Any, stop: threading.Event) -> None:
    r"""Let generation end when it is told to, and when it fails.

    LlamaFactory generates in a thread, and waits for a stream that a failure there, such as out of memory, never ends.
    """
    import torch
    from transformers import StoppingCriteriaList

    original, failures = model.generate, []

    def told_to_end(input_ids: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
        return torch.full((input_ids.shape[0],), stop.is_set(), dtype=torch.bool, device=input_ids.device)

    def generate(*args: Any, streamer: Any, **kwargs: Any) -> None:
        try:
            original(*args, streamer=streamer, stopping_criteria=StoppingCriteriaList([told_to_end]), **kwargs)
        except Exception as error:
            failures.append(error)
            streamer.end()

    model.__dict__["tpaw_failures"] = failures
    model.__dict__["generate"] = generate
