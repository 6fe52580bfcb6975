# SPDX-License-Identifier: Apache-2.0
"""The seams of LlamaBoard: its words, its Train tab, its runner and its row of tabs.

Where one is missing, LlamaBoard opens without the tab for self-play and says so; nothing else is concerned.
"""

import functools
import importlib
import inspect
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from types import ModuleType
from typing import Any

from ..lf.status import RECORD, SUPPORTED, check, check_function, installed_version


NEEDED = ("stages", "board_words", "board_runner", "board_train", "board_tabs")
# What the page shows; imported when the page is built, because it needs gradio.
TAB, SESSION = "llamafactory_tpaw.board.tab", "llamafactory_tpaw.board.session"
LOCALES = "llamafactory_tpaw.board.locales"


def extend_words(module: ModuleType) -> None:
    """Add the texts of our elements to LlamaBoard's table, in all its languages.

    Raises:
        SeamMissing: If the table is not as expected.
    """
    table = getattr(module, "LOCALES", None)
    known = isinstance(table, dict) and isinstance(table.get("learning_rate"), dict)
    check(known and "en" in table["learning_rate"], "`LOCALES` is not a dict of texts by language")
    ours = importlib.import_module(LOCALES).LOCALES
    taken = sorted(set(ours) & set(table))
    check(not taken, f"it has texts for {', '.join(taken)} already")
    table.update(ours)


def extend_runner(module: ModuleType) -> None:
    """Let the runner play this stage by our own means; what it does for the others stays.

    Raises:
        SeamMissing: If a method is not built as expected; nothing is changed then.
    """
    kind = getattr(module, "Runner", None)
    check(inspect.isclass(kind), "there is no class `Runner`")
    for name, (parameters, _) in RUNNER_METHODS.items():
        found = getattr(kind, name, None)
        check(inspect.isfunction(found), f"`Runner` has no method `{name}`")
        taken = tuple(inspect.signature(found).parameters)
        check(taken == parameters, f"`Runner.{name}` takes ({', '.join(taken)}) instead of ({', '.join(parameters)})")
    uses = kind.__init__.__code__.co_names
    lacking = [name for name in ("manager", "running", "running_data", "aborted", "do_train") if name not in uses]
    check(not lacking, f"`Runner` has no {' and '.join(f'`{name}`' for name in lacking)}")
    for name, (_, wrap) in RUNNER_METHODS.items():
        original = getattr(kind, name)
        setattr(kind, name, functools.wraps(original)(wrap(original)))


def extend_train_tab(module: ModuleType) -> None:
    """Put the accordion of this stage into the Train tab, behind the one of RLHF.

    Raises:
        SeamMissing: If the tab is not built as expected.
    """
    original = check_function(module, "create_train_tab", parameters=("engine",), uses=("get_base_elems", "runner"))
    change_stage = check_function(module, "change_stage", parameters=("training_stage",))
    built = original.__code__.co_varnames
    absent = [name for name in ("rlhf_tab", "input_elems", "output_box") if name not in built]
    check(not absent, f"`create_train_tab` makes no {' and '.join(f'`{name}`' for name in absent)}")
    check("change_stage" in original.__code__.co_names, "`create_train_tab` does not use `change_stage`")

    @functools.wraps(original)
    def create_train_tab(engine: Any) -> Any:
        if missing_board():
            return _without_tab(lambda: original(engine))
        return importlib.import_module(TAB).create_train_tab(engine, original)

    @functools.wraps(change_stage)
    def changed(*stages: str) -> Any:
        # LlamaBoard empties the datasets; here they belong to the iteration, which may just have been loaded.
        result = change_stage(*stages)
        ours = not missing_board() and importlib.import_module(SESSION).is_our_stage(*stages)
        return importlib.import_module(TAB).keep_datasets(result) if ours else result

    module.create_train_tab, module.change_stage = create_train_tab, changed


def extend_tabs(module: ModuleType) -> None:
    """Add the triplet browser and the chat to LlamaBoard's row of tabs, which ends where its footer begins.

    Raises:
        SeamMissing: If the footer is not built as expected.
    """
    original = check_function(module, "create_footer")
    check(not inspect.signature(original).parameters, "`create_footer` takes arguments")

    @functools.wraps(original)
    def create_footer() -> Any:
        if not missing_board():
            importlib.import_module(TAB).create_tabs()
        return original()

    module.create_footer = create_footer


def extend_top(module: ModuleType) -> None:
    """Let a loaded configuration of this stage keep its model and checkpoints when the model's name changes by it.

    Raises:
        SeamMissing: If a function is not built as expected.
    """
    original = check_function(module, "get_model_info", parameters=("model_name",))
    list_all = check_function(module, "list_checkpoints", parameters=("model_name", "finetuning_type"))

    @functools.wraps(original)
    def get_model_info(model_name: Any) -> Any:
        found = None if missing_board() else importlib.import_module(SESSION).RECALL.take(model_name)
        return found or original(model_name)

    @functools.wraps(list_all)
    def list_checkpoints(model_name: Any, finetuning_type: Any) -> Any:
        offered = list_all(model_name, finetuning_type)
        chosen = (
            None
            if missing_board()
            else importlib.import_module(SESSION).RECALL.checkpoints(model_name, finetuning_type)
        )
        return importlib.import_module(TAB).choose(offered, chosen) if chosen else offered

    module.get_model_info, module.list_checkpoints = get_model_info, list_checkpoints


def extend_data(module: ModuleType) -> None:
    """Let a dataset be chosen that is yet to be generated: LlamaBoard looks its entry up to offer a look at it.

    Raises:
        SeamMissing: If the function is not built as expected.
    """
    original = check_function(module, "can_preview", parameters=("dataset_dir", "dataset"))

    @functools.wraps(original)
    def can_preview(dataset_dir: Any, dataset: Any) -> Any:
        try:
            return original(dataset_dir, dataset)
        except KeyError:
            import gradio

            return gradio.Button(interactive=False)

    module.can_preview = can_preview


def extend_settings(module: ModuleType) -> None:
    """Let no event of the page read LlamaBoard's own settings while another one writes them: the file is empty then.

    Raises:
        SeamMissing: If a function is not built as expected.
    """
    check_function(module, "load_config")
    check_function(module, "save_config", parameters=("lang",), uses=("load_config",))
    lock = threading.RLock()

    def one_at_a_time(original: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(original)
        def locked(*args: Any, **kwargs: Any) -> Any:
            with lock:
                return original(*args, **kwargs)

        return locked

    module.load_config, module.save_config = one_at_a_time(module.load_config), one_at_a_time(module.save_config)


def missing_board() -> str | None:
    """Return what of LlamaBoard is not as the tab needs it, or None."""
    seams = [seam for seam in RECORD.values() if seam.state == "missing" and (seam.required or seam.name in NEEDED)]
    return "; ".join(f"seam `{seam.name}`, `{seam.target}`: {seam.reason}" for seam in seams) or None


def _without_tab(build: Callable[[], Any]) -> Any:
    """Build the page's Train tab as it is, and say on stderr and in the page why there is no other."""
    missing = missing_board()
    sys.stderr.write(
        f"llamafactory-tpaw: warning: LlamaBoard opens without the tab for stage `tpaw`: {installed_version()} is "
        f"installed and lacks what the tab needs: {missing}. {SUPPORTED} has it. `llamafactory-cli train` and "
        "LlamaBoard's other stages are not affected.\n"
    )
    import gradio

    say = importlib.import_module(LOCALES).say
    gradio.Markdown(say("seam_missing", "en", version=installed_version(), missing=missing), elem_id="tpaw_missing")
    return build()


def _ours(runner: Any, data: Mapping[Any, Any], do_train: bool = True) -> Any:
    """The session that plays this stage, where the page shows it and there is a tab for it; else None."""
    if not do_train or missing_board():
        return None
    session = importlib.import_module(SESSION).session_of(runner)
    return session if session.is_ours(data) else None


def _initialize(original: Callable[..., str]) -> Callable[..., str]:
    def initialize(self: Any, data: Mapping[Any, Any], do_train: bool, from_preview: bool) -> str:
        session = _ours(self, data, do_train)
        return original(self, data, do_train, from_preview) or (session.field_problems(data) if session else "")

    return initialize


def _parse_train_args(original: Callable[..., dict[str, Any]]) -> Callable[..., dict[str, Any]]:
    def parse_train_args(self: Any, data: Mapping[Any, Any]) -> dict[str, Any]:
        session = _ours(self, data)
        return session.settings_of(data) if session else original(self, data)

    return parse_train_args


def _preview(original: Callable[..., Any]) -> Callable[..., Any]:
    def preview(self: Any, data: Mapping[Any, Any], do_train: bool) -> Iterator[Any]:
        session = _ours(self, data, do_train)
        error = self._initialize(data, do_train, from_preview=True) if session else ""
        if session and not error:
            yield from session.preview(data)
        else:
            yield from original(self, data, do_train)

    return preview


def _launch(original: Callable[..., Any]) -> Callable[..., Any]:
    def launch(self: Any, data: Mapping[Any, Any], do_train: bool) -> Iterator[Any]:
        session = _ours(self, data, do_train)
        error = self._initialize(data, do_train, from_preview=False) if session else ""
        if session and not error:
            yield from session.launch(data)
        elif session:
            yield session.tell(error)
        else:
            yield from original(self, data, do_train)

    return launch


def _build_config_dict(original: Callable[..., dict[str, Any]]) -> Callable[..., dict[str, Any]]:
    def build_config_dict(self: Any, data: Mapping[Any, Any]) -> dict[str, Any]:
        session = _ours(self, data)
        return original(self, data) | (session.kept(data) if session else {})

    return build_config_dict


def _load_args(original: Callable[..., Any]) -> Callable[..., Any]:
    def load_args(self: Any, lang: str, config_path: str) -> Any:
        shown = original(self, lang, config_path)
        if missing_board():
            return shown
        session = importlib.import_module(SESSION).session_of(self)
        session.note_loaded(shown)
        return importlib.import_module(TAB).name_players(session, shown)

    return load_args


def _monitor(original: Callable[..., Any]) -> Callable[..., Any]:
    def monitor(self: Any) -> Iterator[Any]:
        session = getattr(self, "tpaw_session", None)
        # A run that ends while the page loads leaves nothing that LlamaBoard could show.
        if session is not None and (session.active or (self.running_data is None and session.attempt is not None)):
            yield from session.follow()
        else:
            yield from original(self)

    return monitor


def _set_abort(original: Callable[..., None]) -> Callable[..., None]:
    def set_abort(self: Any) -> None:
        session = getattr(self, "tpaw_session", None)
        if session is not None and session.active:
            session.abort()
        else:
            original(self)

    return set_abort


# The methods of LlamaBoard's `Runner` that are wrapped: their parameters, and by what.
RUNNER_METHODS: dict[str, tuple[tuple[str, ...], Callable[[Callable[..., Any]], Callable[..., Any]]]] = {
    "_initialize": (("self", "data", "do_train", "from_preview"), _initialize),
    "_parse_train_args": (("self", "data"), _parse_train_args),
    "_preview": (("self", "data", "do_train"), _preview),
    "_launch": (("self", "data", "do_train"), _launch),
    "_build_config_dict": (("self", "data"), _build_config_dict),
    "load_args": (("self", "lang", "config_path"), _load_args),
    "monitor": (("self",), _monitor),
    "set_abort": (("self",), _set_abort),
}
