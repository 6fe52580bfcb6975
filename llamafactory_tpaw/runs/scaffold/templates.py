# SPDX-License-Identifier: Apache-2.0
"""Which of LlamaFactory's templates a model was made for, and why; two that would both do are not guessed between."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from ...errors import ConfigError
from ...lf import facade
from .settings import Settings


# Where nothing else is known. A type that many chat formats share is not listed, or with one that its tokens show.
MODEL_TYPES = {
    "gemma": ("gemma",),
    "gemma2": ("gemma2",),
    "gemma3_text": ("gemma3",),
    "glm4": ("glm4",),
    "granite": ("granite3",),
    "internlm2": ("intern2",),
    "llama": ("llama3",),
    "phi3": ("phi",),
    "qwen2": ("qwen",),
    "qwen2_moe": ("qwen",),
    "qwen3": ("qwen3", "qwen3_nothink"),
    "qwen3_moe": ("qwen3", "qwen3_nothink"),
}
SPECIAL_TOKEN = re.compile(r"<\|[^|<>\s]+\|>")
SYSTEM, TURNS = "Syst0", ("User1", "Answ1", "User2", "Answ2")
FITS_ALL = "`default`, plain words, fits every tokenizer"


@dataclass(frozen=True)
class Choice:
    """A template and the reason, as the second half of a sentence."""

    name: str
    reason: str


class _Likeness(NamedTuple):
    """How like a template writes to the tokenizer's own chat template; compared from left to right."""

    turns: int
    """2 where what stands between and after the texts is the same, 1 but for white space, 0 otherwise."""
    with_system: bool
    without_system: bool


def choose_template(settings: Settings, tokenizer: Any, model_type: str, known_as: str | None, thinks: bool) -> Choice:
    r"""Find the template of a model.

    Args:
        settings: `keys` may name it.
        tokenizer: As the hub or the folder has it.
        model_type: Of its config.
        known_as: LlamaFactory's name of the model, if it has one.
        thinks: Whether the SFT set's responses hold thoughts.

    Raises:
        ConfigError: If the one given does not exist or does not fit, or none or more than one would do.
    """
    given = settings.keys.get("template")
    if given is not None:
        if given not in facade.TEMPLATES:
            nearest = difflib.get_close_matches(str(given), list(facade.TEMPLATES), n=1)
            raise ConfigError(
                f"`template: {given}` is not a template of LlamaFactory. "
                f"{f'Did you mean `{nearest[0]}`?' if nearest else 'Leave it out, and init looks for it.'}"
            )
        return _checked(Choice(given, "as given"), tokenizer)
    listed = _listed_templates(known_as)
    if len(listed) == 1:
        return _checked(Choice(listed[0], f"LlamaFactory lists it for {known_as}"), tokenizer)
    alike = _alike_templates(tokenizer)
    of_type = [name for name in MODEL_TYPES.get(model_type, ()) if name in facade.TEMPLATES]
    of_type = [name for name in of_type if not _missing_tokens(name, tokenizer)]
    of_type = [name for name in of_type if len(of_type) == 1 or name.endswith("_nothink") != thinks]
    if alike:
        return _checked(_settle(alike, [listed, of_type, [settings.like_template]], tokenizer), tokenizer)
    if len(of_type) == 1:
        lacks = "has no chat template" if not tokenizer.chat_template else "has a chat template that none writes like"
        return Choice(of_type[0], f"by model type {model_type} and the special tokens; the tokenizer {lacks}")
    candidates = [*listed, *of_type] or _fitting_templates(tokenizer)
    own = "no template writes like the chat template of" if tokenizer.chat_template else "there is no chat template in"
    raise ConfigError(
        f"The template of a model of type {model_type} cannot be told: LlamaFactory does not list it, and {own} its "
        f"tokenizer. Choose one with `--template`: {_named(candidates)}{FITS_ALL}."
    )


def _settle(alike: list[str], hints: Iterable[Sequence[str | None]], tokenizer: Any) -> Choice:
    """Choose among templates that write alike: by what else is known, or because they are one under several names."""
    reason = "it writes a conversation as the tokenizer's chat template does"
    for hint in hints:
        agreed = [name for name in alike if name in hint]
        if len(agreed) == 1:
            return Choice(agreed[0], reason)
    behaviours = {_behaviour(facade.TEMPLATES[name]) for name in alike}
    if len(behaviours) == 1:
        others = f", and so do {', '.join(alike[1:])}" if alike[1:] else ""
        return Choice(alike[0], reason + others)
    raise ConfigError(
        f"{_named(alike)[:-2]} all write a conversation as the tokenizer's chat template does, but end it otherwise. "
        f"Choose one with `--template`, such as `--template {alike[0]}`."
    )


def _behaviour(template: Any) -> tuple[Any, ...]:
    """What of a template matters for text beside what it writes."""
    return (
        type(template).__name__,
        template.default_system,
        tuple(template.stop_words),
        template.replace_eos,
        template.efficient_eos,
    )


def _checked(choice: Choice, tokenizer: Any) -> Choice:
    missing = _missing_tokens(choice.name, tokenizer)
    if missing:
        raise ConfigError(
            f"`template: {choice.name}` ({choice.reason}) needs the tokens {', '.join(missing)}, which the model's "
            "vocabulary lacks; added ones would be random in every player. Choose another with `--template`: "
            f"{_named(_fitting_templates(tokenizer))}{FITS_ALL}."
        )
    return choice


def _listed_templates(known_as: str | None) -> list[str]:
    """What LlamaFactory's constants say of a model, or of the chat models made of it."""
    if known_as is None:
        return []
    own = facade.DEFAULT_TEMPLATE.get(known_as)
    if own:
        return [own]
    base = known_as.removesuffix("-Base") + "-"
    return sorted({template for name, template in facade.DEFAULT_TEMPLATE.items() if name.startswith(base)})


def _missing_tokens(name: str, tokenizer: Any) -> list[str]:
    template = facade.TEMPLATES[name]
    written = "".join(filter(None, _write(template, tokenizer, SYSTEM) or []))
    vocabulary = tokenizer.get_vocab()
    wanted = dict.fromkeys([*template.stop_words, *SPECIAL_TOKEN.findall(written)])
    own = (tokenizer.bos_token, tokenizer.eos_token)
    return [token for token in wanted if token not in vocabulary and token not in own]


def _fitting_templates(tokenizer: Any) -> list[str]:
    """Templates whose special tokens are all in the vocabulary; those that have none fit any."""
    fitting = []
    for name, template in _text_templates().items():
        special = {*template.stop_words, *SPECIAL_TOKEN.findall("".join(_write(template, tokenizer, SYSTEM) or []))}
        if special - {tokenizer.bos_token, tokenizer.eos_token} and not _missing_tokens(name, tokenizer):
            fitting.append(name)
    return fitting


def _text_templates() -> dict[str, Any]:
    """Leave out those for models that see or hear: many write text like one of the others."""
    return {
        name: template
        for name, template in facade.TEMPLATES.items()
        if type(template.mm_plugin).__name__ == "BasePlugin"
    }


def _alike_templates(tokenizer: Any) -> list[str]:
    """Templates that write most like the tokenizer's chat template; none if none writes the turns alike."""
    if not tokenizer.chat_template:
        return []
    own = [_cut(_render(tokenizer, system), system) for system in (SYSTEM, None)]
    if own[1] is None:
        return []
    likeness = {}
    for name, template in _text_templates().items():
        theirs = [_cut(_write(template, tokenizer, system), system) for system in (SYSTEM, None)]
        if theirs[1] is not None:
            likeness[name] = _compare(own, theirs, _eos(template, tokenizer))
    best = max(likeness.values(), default=None)
    if best is None or not best.turns:
        return []
    return [name for name, found in likeness.items() if found == best and not _missing_tokens(name, tokenizer)]


def _compare(own: list[list[str] | None], theirs: list[list[str] | None], eos: str) -> _Likeness:
    """Compare the pieces around the texts, with a system text and without one."""
    turns = [_between(pieces, eos) for pieces in (own[1], theirs[1])]
    blank = ["".join("".join(pieces).split()) for pieces in turns]
    same = 2 if turns[0] == turns[1] else int(blank[0] == blank[1])
    with_system = own[0] is not None and theirs[0] is not None and own[0][:2] == theirs[0][:2]
    return _Likeness(same, with_system, own[1][0] == theirs[1][0])


def _between(pieces: list[str] | None, eos: str) -> list[str]:
    """Pieces between and after the texts; an EOS at the very end is the trainer's concern."""
    *inner, end = (pieces or [""])[1:] or [""]
    return [*inner, end.strip().removesuffix(eos).strip()]


def _cut(text: list[str] | str | None, system: str | None) -> list[str] | None:
    """Cut a conversation at its texts; None where one of them is missing."""
    rest = text if isinstance(text, str) or text is None else "".join(text)
    pieces = []
    for word in [*([system] if system else []), *TURNS]:
        before, found, rest = (rest or "").partition(word)
        if not found:
            return None
        pieces.append(before)
    return [*pieces, rest]


def _render(tokenizer: Any, system: str | None) -> str | None:
    """Write the conversation with the tokenizer's own chat template; None where that refuses it."""
    from jinja2 import TemplateError

    messages = [{"role": "system", "content": system}] if system else []
    messages += [{"role": role, "content": text} for role, text in zip(("user", "assistant") * 2, TURNS, strict=True)]
    try:
        return tokenizer.apply_chat_template(messages, tokenize=False)
    except (TemplateError, TypeError, ValueError, LookupError):
        return None


def _write(template: Any, tokenizer: Any, system: str | None) -> list[str] | None:
    """Write the conversation with a template of LlamaFactory, as text; None where that is impossible."""
    words = _Words(tokenizer, _eos(template, tokenizer))
    messages = [{"role": role, "content": text} for role, text in zip(("user", "assistant") * 2, TURNS, strict=True)]
    try:
        prompt, response = template.encode_oneturn(words, messages, system, None)
    except (AttributeError, LookupError, NotImplementedError, TypeError, ValueError):
        return None
    return [*prompt, *response, *([words.eos_token] if template.efficient_eos else [])]


def _eos(template: Any, tokenizer: Any) -> str:
    """The EOS once LlamaFactory has fitted the tokenizer to the template."""
    replaced = template.stop_words[0] if template.replace_eos and template.stop_words else None
    return replaced or tokenizer.eos_token or "<|endoftext|>"


class _Words:
    """A tokenizer whose ids are texts, so that a template's pieces can be read."""

    def __init__(self, tokenizer: Any, eos: str) -> None:
        self.bos_token = self.bos_token_id = tokenizer.bos_token
        self.eos_token = self.eos_token_id = eos

    def encode(self, text: str, add_special_tokens: bool = False) -> list[str]:
        return [text] if text else []

    def convert_tokens_to_ids(self, token: str) -> str:
        return token


def _named(names: Iterable[str]) -> str:
    return "".join(f"`{name}`, " for name in names)
