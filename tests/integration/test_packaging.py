# SPDX-License-Identifier: Apache-2.0
"""Installing in each way, into a bare environment, makes the hook active; uninstalling leaves nothing."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
import venv
from pathlib import Path

import pytest


pytestmark = pytest.mark.integration

ROOT = Path(__file__).resolve().parents[2]
PACKAGE, SWITCH = "llamafactory_tpaw", "LLAMAFACTORY_TPAW"
STARTUP_FILES = ("llamafactory_tpaw.pth", "llamafactory_tpaw.start")
SOURCES = ("setup.py", "pyproject.toml", "LICENSE", "README.md", *STARTUP_FILES)
LIGHT = ["llamafactory_tpaw", "llamafactory_tpaw._hook", "llamafactory_tpaw.hook", "llamafactory_tpaw.hook.start"]
BUILD_TOOLS = ("setuptools", "_distutils_hack", "pkg_resources", "wheel")
HOOK_IS_ACTIVE = (
    "import sys; print(any(getattr(finder, 'llamafactory_tpaw', False) for finder in sys.meta_path), "
    "*sorted(name for name in sys.modules if name.startswith('llamafactory')))"
)


class Environment:
    """A virtual environment without any package, driven by the pip of the running interpreter."""

    def __init__(self, folder: Path, tools: Path) -> None:
        venv.create(folder, with_pip=False)
        self.scripts, self.tools = folder / "bin", tools
        (self.site,) = folder.rglob("site-packages")

    def run(self, *arguments: str, program: str = "python", **variables: str) -> str:
        """Run a program of the environment and return what it printed."""
        kept = {key: value for key, value in os.environ.items() if key not in (SWITCH, "PYTHONPATH", "VIRTUAL_ENV")}
        command = [str(self.scripts / program), *arguments]
        done = subprocess.run(command, capture_output=True, text=True, env=kept | variables)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout.strip()

    def pip(self, *arguments: str) -> None:
        """Run pip on the environment, offline and with this interpreter's build tools."""
        options = ["-m", "pip", "--python", str(self.scripts / "python"), "--no-input"]
        self.run(*options, *arguments, program=sys.executable, PYTHONPATH=str(self.tools))

    def install(self, *what: str) -> None:
        """Install without dependencies and without fetching build tools."""
        self.pip("install", "--no-deps", "--no-build-isolation", "--no-index", *what)

    def traces(self) -> list[Path]:
        """Return every file of the environment with the package's name."""
        return [path for path in self.site.parents[2].rglob("*") if "tpaw" in path.name]


@pytest.fixture(scope="module")
def tools(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the build tools alone, so that the environments see nothing else of this one."""
    folder = tmp_path_factory.mktemp("tools")
    if importlib.util.find_spec("setuptools") is None or importlib.util.find_spec("pip") is None:
        pytest.skip("pip and setuptools are needed to test the packaging")
    for name in BUILD_TOOLS:
        spec = importlib.util.find_spec(name)
        if spec is not None and spec.submodule_search_locations:
            (folder / name).symlink_to(spec.submodule_search_locations[0], target_is_directory=True)
            for info in Path(spec.submodule_search_locations[0]).parent.glob(f"{name}-*.dist-info"):
                (folder / info.name).symlink_to(info, target_is_directory=True)
    return folder


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A copy of what is packaged, so that builds leave nothing in the checkout."""
    folder = tmp_path / "source"
    folder.mkdir()
    for name in SOURCES:
        if (ROOT / name).is_file():
            shutil.copy(ROOT / name, folder)
    shutil.copytree(ROOT / PACKAGE, folder / PACKAGE, ignore=shutil.ignore_patterns("__pycache__"))
    return folder


@pytest.fixture
def environment(tmp_path: Path, tools: Path) -> Environment:
    return Environment(tmp_path / "environment", tools)


def package_files(folder: Path) -> set[str]:
    return {
        path.relative_to(folder).as_posix()
        for path in (folder / PACKAGE).rglob("*")
        if path.suffix in (".py", ".typed")
    }


def check_uninstalls(environment: Environment) -> None:
    environment.pip("uninstall", "-y", "llamafactory-tpaw")
    assert environment.traces() == []
    assert environment.run("-c", HOOK_IS_ACTIVE) == "False"


@pytest.mark.parametrize("mode", ["lenient", "strict"])
def test_editable_install(environment: Environment, source: Path, mode: str) -> None:
    environment.install("-e", str(source), "--config-settings", f"editable_mode={mode}")
    assert environment.run("-c", HOOK_IS_ACTIVE).split()[0] == "True"
    if mode == "lenient":
        shutil.rmtree(source)
        assert environment.run("-c", HOOK_IS_ACTIVE) == "False", "a deleted checkout must not break the interpreter"
    check_uninstalls(environment)


def test_install(environment: Environment, source: Path, tmp_path: Path) -> None:
    """From an sdist all files are installed, with the hook active and light."""
    expected = package_files(source)
    build = "import sys, setuptools.build_meta as backend; print(backend.build_sdist(sys.argv[1]))"
    command = [sys.executable, "-c", build, str(tmp_path)]
    done = subprocess.run(command, cwd=source, capture_output=True, text=True, check=True)
    environment.install(str(tmp_path / done.stdout.split()[-1]))
    assert environment.run("-c", HOOK_IS_ACTIVE).split() == ["True", *LIGHT]
    assert environment.run("-c", HOOK_IS_ACTIVE, LLAMAFACTORY_TPAW="0").split()[0] == "False"
    assert environment.run("--version", program="llamafactory-tpaw").startswith("llamafactory-tpaw ")
    assert package_files(environment.site) == expected
    check_uninstalls(environment)


def test_target_install_needs_and_has_the_command(environment: Environment, source: Path, tmp_path: Path) -> None:
    """Where no `.pth` is processed, `python -m llamafactory_tpaw train` hooks this process and its children."""
    target = tmp_path / "target"
    environment.install("--target", str(target), str(source))
    fake = tmp_path / "fake" / "llamafactory"
    fake.mkdir(parents=True)
    (fake / "__init__.py").touch()
    (fake / "cli.py").write_text(
        "def main():\n"
        "    import subprocess, sys\n"
        f"    code = {HOOK_IS_ACTIVE!r}\n"
        "    print(sys.argv[1:], subprocess.check_output([sys.executable, '-c', code], text=True).split()[0])\n",
        encoding="utf-8",
    )
    path = os.pathsep.join([str(target), str(fake.parent)])
    assert environment.run("-c", HOOK_IS_ACTIVE, PYTHONPATH=path) == "False"
    printed = environment.run("-m", PACKAGE, "train", "a.yaml", "b=c", PYTHONPATH=path)
    assert printed == "['train', 'a.yaml', 'b=c'] True"
