# SPDX-License-Identifier: Apache-2.0
"""What is read from pip's records, from the machine and from the environment, and what is not shown of it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from llamafactory_tpaw.doctor import machine, packages, privacy


def record(folder: Path, name: str, version: str, *requires: str, **files: str) -> None:
    """Write pip's record of a distribution."""
    path = folder / f"{name.replace('-', '_')}-{version}.dist-info"
    path.mkdir(parents=True)
    lines = ["Metadata-Version: 2.1", f"Name: {name}", f"Version: {version}"]
    lines += [f"Requires-Dist: {line}" for line in requires]
    (path / "METADATA").write_text("\n".join(lines), encoding="utf-8")
    for file, text in files.items():
        (path / file.replace("__", ".")).write_text(text, encoding="utf-8")


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A site-packages that is looked at before the real one."""
    folder = tmp_path / "site"
    monkeypatch.syspath_prepend(str(folder))
    return folder


def found(name: str) -> packages.Package:
    return next(package for package in packages.installed_packages() if package.name == name)


def test_bounds_are_ours_and_llamafactorys(site: Path) -> None:
    record(site, "llamafactory", "0.9.6", "torch>=2.4", "trl!=0.20,<=0.24,>=0.18", "gradio>4; extra == 'board'")
    record(site, "torch", "2.15.1+cu130")
    record(site, "trl", "0.20")
    llamafactory, torch, trl = found("llamafactory"), found("torch"), found("trl")
    assert (llamafactory.version, llamafactory.allowed, llamafactory.within) == ("0.9.6", ">=0.9.5,<0.9.6", False)
    assert (torch.version, torch.allowed, torch.within) == ("2.15.1+cu130", ">=2.4,<2.15", False)
    assert (trl.allowed, trl.within) == (">=0.18,<=0.24,!=0.20", False)
    assert found("gradio").allowed == ""


def test_extras_and_what_conflicts(site: Path) -> None:
    extras = ("vllm<=0.11.0; extra == 'vllm'", "lm_eval>=0.4; extra == 'eval'")
    record(site, "llamafactory-tpaw", "9", "rich>=99", *extras)
    record(site, "torch", "2.9")
    record(site, "vllm", "0.12.0", "torch==2.8.0", "no-such-thing>1", "absent; python_version < '3'")
    vllm = found("vllm")
    assert (vllm.extra, vllm.allowed, vllm.within) == ("vllm", "<=0.11.0", False)
    assert vllm.conflicts == ["torch==2.8.0, but 2.9 is installed", "no-such-thing>1, which is not installed"]
    assert (found("rich").allowed, found("rich").within, found("rich").use) == (">=99", False, "commands")
    assert (found("lm-eval").extra, found("lm-eval").version) == ("eval", None)


def test_without_packaging_nothing_is_judged(site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    record(site, "torch", "99")
    monkeypatch.setattr(packages, "Requirement", None)
    assert (found("torch").version, found("torch").within) == ("99", True)


@pytest.mark.parametrize(
    ("url", "source"),
    [
        ({"url": "file:///home/me/a%20b", "dir_info": {"editable": True}}, "--editable '/home/me/a b'"),
        ({"url": "file:///home/me/tpaw", "dir_info": {}}, "/home/me/tpaw"),
        ({"url": "https://example.org/tpaw.git", "vcs_info": {}}, "llamafactory-tpaw"),
        (None, "llamafactory-tpaw"),
    ],
)
def test_where_it_is_installed_from_again(
    site: Path, url: dict | None, source: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(packages, "CHECKOUT", tmp_path)
    record(site, "llamafactory-tpaw", "9", **({"direct_url__json": json.dumps(url or {})}))
    assert packages.reinstall_command() == f"pip install --force-reinstall --no-deps {source}"


def test_a_checkout_is_installed_from_itself(site: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    record(site, "llamafactory-tpaw", "9", direct_url__json="{}")
    (tmp_path / "setup.py").touch()
    monkeypatch.setattr(packages, "CHECKOUT", tmp_path)
    assert packages.reinstall_command() == f"pip install --force-reinstall --no-deps --editable {tmp_path}"


def test_machine_sees_the_driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "nvidia-smi"
    program.write_text("#!/bin/sh\necho '570.133.20, NVIDIA H200'\necho '570.133.20, NVIDIA H200'\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    monkeypatch.setenv("USE_RAY", "1")
    seen = machine.machine(tmp_path)
    assert seen["nvidia"] == {"driver": "570.133.20", "devices": ["NVIDIA H200"] * 2}
    assert seen["variables"]["USE_RAY"] == "1"
    assert "HF_TOKEN" not in seen["variables"]
    assert seen["folder_writable"] is True
    assert 0 < seen["disk"]["free"] <= seen["disk"]["total"]
    assert 0 < seen["usable_cpus"] <= seen["cpus"]


def test_machine_without_driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert machine.machine(tmp_path)["nvidia"] is None
    (tmp_path / "nvidia-smi").write_text("#!/bin/sh\necho 'NVIDIA-SMI has failed, no driver'\nexit 9\n")
    (tmp_path / "nvidia-smi").chmod(0o755)
    assert machine.machine(tmp_path)["nvidia"] is None


def test_a_containers_limit_is_the_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    limit = tmp_path / "memory.max"
    monkeypatch.setattr(machine, "CGROUP_LIMIT", limit)
    limit.write_text("1048576\n")
    assert machine.machine(tmp_path)["memory"] == {"total": 1048576, "available": 1048576}
    limit.write_text("max\n")
    assert machine.machine(tmp_path)["memory"]["total"] > 1048576


def test_nothing_private_is_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/alice")
    monkeypatch.setenv("WANDB_API_KEY", "0123456789abcdef")
    monkeypatch.setenv("HF_TOKEN", "x")  # too short to be one, and everywhere
    monkeypatch.setattr("getpass.getuser", lambda: "alice")
    given = {
        "folder": "/home/alice/run",
        "lines": ["no file /home/alice", "/scratch/alice/x", "/home/alice2/x", "/data/alice.bak", ["alice in words"]],
        "address": "pip --index-url https://bob:pw@pypi.example.org/simple, key 0123456789abcdef",
        "number": 1,
    }
    assert privacy.cleaned(given) == {
        "folder": "~/run",
        "lines": ["no file ~", "/scratch/$USER/x", "/home/alice2/x", "/data/alice.bak", ["alice in words"]],
        "address": "pip --index-url https://pypi.example.org/simple, key $WANDB_API_KEY",
        "number": 1,
    }


@pytest.mark.parametrize("user", [KeyError("uid not found"), "root"])
def test_a_user_without_a_name_of_his_own(user: str | KeyError, monkeypatch: pytest.MonkeyPatch) -> None:
    def getuser() -> str:
        if isinstance(user, KeyError):
            raise user
        return user

    monkeypatch.setattr("getpass.getuser", getuser)
    monkeypatch.setenv("HOME", "/")
    assert privacy.cleaned("/data/root/x") == "/data/root/x"
