# SPDX-License-Identifier: Apache-2.0
"""What makes a checkpoint itself: a digest of its weights, one of its config, and whether it is all there."""

from __future__ import annotations

import itertools
import os
import zipfile
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

from ..arguments.start import ADAPTER_CONFIG, is_adapter
from ..data.files import digest_file, digest_json, read_json, sha256_hex, write_json_atomic
from ..data.progress import BYTES, Progress
from ..errors import DataError
from .adapters import adapter_digest, adapter_problems
from .hashing import Described, combine, hash_bin, hash_safetensors
from .pruned import pruned_problem
from .weight_files import INDEX_SUFFIX, header_digest, is_safetensors, main_file, read_header, weight_paths


SCHEMA = 2
HASHING_THREADS = 8
# What else makes a model: how it is built, what it reads and writes, and code of its own.
OTHER_FILES = (
    "config.json", "generation_config.json", "tokenizer*", "vocab*", "merges.txt", "special_tokens_map.json",
    "added_tokens.json", "chat_template*", "*.model", "*.tiktoken", "*.py",
)  # fmt: skip
# As LlamaBoard calls the run file that it writes into an output folder before anything else is there.
BOARD_FILE = "training_args.yaml"
VOLATILE_CONFIG_KEYS = frozenset(
    {"transformers_version", "_name_or_path", "_commit_hash", "dtype", "torch_dtype", "use_cache"}
)


class Weights(NamedTuple):
    """What a checkpoint's weights are: the SHA-256 of all tensors, and one of each file by name, header included."""

    fingerprint: str
    files: dict[str, str]


def fingerprint_checkpoint(folder: Path, store_dir: Path, *, trust_stat: bool = True) -> str:
    r"""Compute the SHA-256 of a checkpoint's tensors: names, shapes, dtypes and bytes, in the order of the names.

    Of an adapter, what its config says of their use belongs to it; the model below it does not. How they are spread
    over files does not matter. The model is not loaded. `.bin` files are read, with `weights_only`, only where there
    are no safetensors.

    Args:
        folder: Checkpoint.
        store_dir: The result is kept in its folder `fingerprints`, a file for each checkpoint.
        trust_stat: Take the kept result while each weight file has the size, time of change and inode it had then;
            otherwise compute it anew.

    Returns:
        64 hex digits.

    Raises:
        DataError: If weights are absent or damaged, or change while they are read.
    """
    return hash_weights(folder, store_dir, trust_stat=trust_stat).fingerprint


def hash_weights(folder: Path, store_dir: Path | None, *, trust_stat: bool = True) -> Weights:
    r"""Compute what `fingerprint_checkpoint` does and a digest of each weight file, to name the one that changed.

    Args:
        folder: Checkpoint.
        store_dir: As there; None keeps nothing.
        trust_stat: As there.

    Raises:
        DataError: As there.
    """
    folder = Path(folder).resolve()
    problems = _folder_problems(folder) or _weight_problems(folder)
    if problems:
        raise DataError(problems)
    state = _stat_weights(folder)
    record_path = None if store_dir is None else record_of(folder, store_dir)
    if trust_stat and record_path is not None:
        kept = _read_record(record_path, folder, state)
        if kept is not None:
            return kept
    weights = _hash_weights(folder)
    if _stat_weights(folder) != state:
        raise DataError(f"The weights in {folder} changed while they were read. Wait until they are written.")
    if record_path is not None:
        write_json_atomic(record_path, _record(folder, state, weights))
    return weights


def kept_fingerprint(folder: Path, store_dir: Path) -> str | None:
    """Return the fingerprint that is kept of a checkpoint's files as they are, None where they must be read."""
    folder = Path(folder).resolve()
    if _folder_problems(folder) or _weight_problems(folder):
        return None
    kept = _read_record(record_of(folder, store_dir), folder, _stat_weights(folder))
    return kept and kept.fingerprint


def chain_fingerprints(folders: Sequence[Path], store_dir: Path, *, trust_stat: bool = True) -> list[str]:
    r"""Compute what a model is with each of the adapters upon it.

    Args:
        folders: Model and adapters, from the bottom.
        store_dir: See `fingerprint_checkpoint`.
        trust_stat: As there.

    Returns:
        The fingerprint of the model, of the model with the first adapter, and so on.
    """
    own = (fingerprint_checkpoint(folder, store_dir, trust_stat=trust_stat) for folder in folders)
    return list(itertools.accumulate(own, with_adapter))


def with_adapter(below: str, adapter: str) -> str:
    """Return the fingerprint of a model with one more adapter from those of the two."""
    return digest_json({"below": below, "adapter": adapter})


def identity(own: str, described: Mapping[str, Any]) -> str:
    r"""Return the fingerprint of all that a description names, from that of its own folder.

    Args:
        own: Of the folder: all of a whole model, or an adapter without what is below it.
        described: As `tpaw.json` describes a θ, with what is `below` an adapter.
    """
    below = described.get("below")
    return with_adapter(below[-1]["fingerprint"], own) if below else own


def record_of(folder: Path, store_dir: Path) -> Path:
    """Where the fingerprint of a checkpoint is kept."""
    return Path(store_dir) / "fingerprints" / f"{sha256_hex(os.fsencode(Path(folder).resolve()))}.json"


def digest_other_files(folder: Path) -> dict[str, str]:
    """Return the SHA-256 of each file but the weights that makes a model: config, tokenizer, template, code."""
    paths = {path for pattern in OTHER_FILES for path in Path(folder).glob(pattern) if path.is_file()}
    return {path.name: digest_file(path) for path in sorted(paths)}


def weight_dtype(folder: Path) -> str:
    r"""Name the dtype that most of a checkpoint's bytes are in, as safetensors does (`F32`, `BF16`); `bin` for others.

    Raises:
        DataError: If there are no weights or a header cannot be read.
    """
    main = main_file(folder)
    if not is_safetensors(main):
        return "bin"
    sizes: Counter[str] = Counter()
    for shard in weight_paths(main):
        for tensor in read_header(shard):
            sizes[tensor.dtype] += tensor.size
    return sizes.most_common(1)[0][0]


def check_checkpoint_complete(folder: Path) -> list[str]:
    r"""Say what a checkpoint lacks, without reading a tensor: files, shards, and bytes at the end of a file.

    Returns:
        Problems as messages; empty where the checkpoint is whole.
    """
    folder = Path(folder)
    problems = _folder_problems(folder)
    if problems:
        return problems
    if is_adapter(folder):
        return adapter_problems(folder) or _weight_problems(folder)
    try:
        config = read_json(folder / "config.json")
        if not isinstance(config, dict):
            problems.append(f"{folder / 'config.json'} must hold a JSON object. Save the checkpoint again.")
    except DataError as error:
        problems.append(str(error))
    return problems + _weight_problems(folder)


def config_digest(folder: Path) -> str:
    r"""Compute the SHA-256 of a checkpoint's config without what says nothing about the model.

    Left out at every level: versions, paths, the dtype (which the weights say themselves), `use_cache`, and the order
    of `architectures`.

    Raises:
        DataError: If `config.json` is missing or not JSON.
    """
    return digest_json(_stable_config(read_json(Path(folder) / "config.json")))


def _folder_problems(folder: Path) -> list[str]:
    if folder.is_dir():
        pruned = pruned_problem(folder)
        return [pruned] if pruned else _prepared_problems(folder)
    kind = "is not a folder" if folder.exists() else "does not exist"
    return [f"{folder} {kind}. Give the folder of a saved checkpoint."]


def _prepared_problems(folder: Path) -> list[str]:
    """Say of a folder that LlamaBoard made for a later iteration that this one is still to be played."""
    saved = (path for pattern in ("config.json", "*.safetensors", "*.bin") for path in folder.glob(pattern))
    if not (folder / BOARD_FILE).is_file() or is_adapter(folder) or any(saved):
        return []
    return [
        f"{folder} holds no checkpoint yet, only {BOARD_FILE}, with which LlamaBoard plays the iteration that saves "
        "it there. Play that first, or give the folder of a saved checkpoint."
    ]


def _stable_config(value: Any) -> Any:
    if isinstance(value, dict):
        stable = {key: _stable_config(item) for key, item in value.items() if key not in VOLATILE_CONFIG_KEYS}
        if isinstance(stable.get("architectures"), list):
            stable["architectures"] = sorted(stable["architectures"])
        return stable
    return [_stable_config(item) for item in value] if isinstance(value, list) else value


def _stat_weights(folder: Path) -> dict[str, dict[str, int]]:
    """Size, time of change and inode of every weight file, by name."""
    main = main_file(folder)
    config = [folder / ADAPTER_CONFIG] if is_adapter(folder) else []
    stats = {path.name: path.stat() for path in dict.fromkeys([main, *weight_paths(main), *config])}
    return {
        name: {"size": stat.st_size, "mtime_ns": stat.st_mtime_ns, "inode": stat.st_ino}
        for name, stat in stats.items()
    }


def _record(folder: Path, state: dict[str, dict[str, int]], weights: Weights) -> dict[str, Any]:
    return {
        "schema": SCHEMA,
        "path": str(folder),
        "fingerprint": weights.fingerprint,
        "files": state,
        "digests": weights.files,
    }


def _read_record(path: Path, folder: Path, state: dict[str, dict[str, int]]) -> Weights | None:
    """Return what is kept if it is of these files, None where it must be computed."""
    if not path.exists():
        return None
    try:
        record = read_json(path)
        kept = Weights(record["fingerprint"], record["digests"])
    except (DataError, KeyError, TypeError):
        return None  # A damaged record costs the time to hash again, nothing more.
    if not isinstance(kept.fingerprint, str) or len(kept.fingerprint) != 64 or set(kept.files or ()) != set(state):
        return None
    return kept if record == _record(folder, state, kept) else None


def _weight_problems(folder: Path) -> list[str]:
    """Say what is wrong with the weight files, from their sizes and headers."""
    try:
        main = main_file(folder)
        if not main.name.endswith(INDEX_SUFFIX):
            return _file_problems(main)
        shards = weight_paths(main)
    except DataError as error:
        return [str(error)]
    problems = []
    for shard in shards:
        if shard.is_file():
            problems += _file_problems(shard)
        else:
            problems.append(f"{shard} is missing, but {main.name} names it. Save or download the checkpoint again.")
    if not problems and is_safetensors(main):
        there = {tensor.name for shard in shards for tensor in read_header(shard)}
        absent = sorted(read_json(main)["weight_map"].keys() - there)
        if absent:
            problems.append(
                f"{main} names {len(absent)} tensors that no shard holds, the first `{absent[0]}`. "
                "Save or download the checkpoint again."
            )
    return problems


def _file_problems(path: Path) -> list[str]:
    try:
        if path.suffix == ".safetensors":
            read_header(path)
        else:
            _check_bin(path)
    except DataError as error:
        return [str(error)]
    return []


def _check_bin(path: Path) -> None:
    with open(path, "rb") as stream:
        start = stream.read(2)
    # A zip archive ends with its directory, so one that was cut is none.
    if not start or (start == b"PK" and not zipfile.is_zipfile(path)):
        raise DataError(f"{path} is cut off at {path.stat().st_size} bytes. Save or download it again.")


def _hash_weights(folder: Path) -> Weights:
    main = main_file(folder)
    paths = weight_paths(main)
    hash_file = hash_safetensors if is_safetensors(main) else hash_bin
    described: list[Described] = []
    files = {main.name: digest_file(main)} if main.name.endswith(INDEX_SUFFIX) else {}
    size = sum(path.stat().st_size for path in paths)
    with (
        ThreadPoolExecutor(min(HASHING_THREADS, os.cpu_count() or 1)) as pool,
        Progress(f"reading {folder.name}", size, BYTES) as progress,
    ):
        for path in paths:
            tensors = []
            for tensor, read in hash_file(path, pool):
                tensors.append(tensor)
                progress.update(read)
            described += tensors
            header = header_digest(path) if path.suffix == ".safetensors" else ""
            files[path.name] = digest_json([header, tensors])
    fingerprint = combine(folder, described)
    if is_adapter(folder):
        files[ADAPTER_CONFIG] = digest_file(folder / ADAPTER_CONFIG)
        fingerprint = adapter_digest(folder, fingerprint)
    return Weights(fingerprint, files)
