"""A regular install, from a wheel, among files whose names others use, too."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Final

import pytest

from .conftest import REPOSITORY

DEADLINE: Final = 600.0
"""Seconds for building a wheel on a busy machine."""
FOLDERS: Final = ("benchmarks", "broker", "shm", "src")
FILES: Final = ("LICENSE", "README.md", "pyproject.toml")
OTHERS: Final = "raise ImportError(f'{__file__} is not what anybody wanted to import')\n"

WORKER: Final = """\
import sys

from ringcast import Config, ConnectionState, Manager, attach

# Nobody listens there: the manager is at work all the same.
with Manager(Config(name=sys.argv[1], url="ws://127.0.0.1:1/")), attach(sys.argv[1]) as feed:
    assert isinstance(feed.state, ConnectionState)
    print(sys.modules["ringcast"].__file__)
"""


def run(*command: str, cwd: Path, **environment: str) -> str:
    """Run a command that has to succeed; what it printed."""
    done = subprocess.run(
        command,
        cwd=cwd,
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=DEADLINE,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


def folder_with(path: Path, *names: str) -> Path:
    """A folder with modules of these names, none of which can be imported."""
    path.mkdir()
    for name in names:
        (path / f"{name}.py").write_text(OTHERS, encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel built from a copy of the tree that was never built."""
    root = tmp_path_factory.mktemp("tree")
    built = shutil.ignore_patterns("*.so", "_*.c", "__pycache__", "*.egg-info")
    for folder in FOLDERS:
        shutil.copytree(REPOSITORY / folder, root / folder, symlinks=True, ignore=built)
    for file in FILES:
        shutil.copy(REPOSITORY / file, root)
    pip = (sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation")
    run(*pip, "--wheel-dir", str(root / "wheels"), ".", cwd=root)
    (found,) = (root / "wheels").glob("*.whl")
    return found


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder into which the wheel was installed."""
    target = tmp_path_factory.mktemp("installed")
    pip = (sys.executable, "-m", "pip", "install", "--quiet", "--no-deps")
    run(*pip, "--target", str(target), str(wheel), cwd=target)
    return target


@pytest.mark.stress  # it compiles everything
def test_one_name_is_installed(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as content:
        names = content.namelist()
        (top,) = (name for name in names if name.endswith("top_level.txt"))
        assert content.read(top).split() == [b"ringcast"]
    folders = {name.partition("/")[0] for name in names}
    assert {folder for folder in folders if not folder.endswith(".dist-info")} == {"ringcast"}
    for file in ("py.typed", "shm/_core.pxd", "shm/native/attach.h", "shm/_reader.pyi"):
        assert f"ringcast/{file}" in names
    for file in ("ringcast.h", "ringcast.c"):
        assert f"ringcast/shm/native/include/{file}" in names


@pytest.mark.stress
def test_files_of_the_same_names_do_no_harm(installed: Path, tmp_path: Path, name: str) -> None:
    ours = {"PYTHONPATH": str(installed)}
    script = folder_with(tmp_path / "script", "broker", "shm", "benchmarks") / "worker.py"
    script.write_text(WORKER, encoding="utf-8")
    here = folder_with(tmp_path / "here", "broker", "shm", "select", "queue", "benchmarks")
    # The script's own folder comes first on its path; its child manager's is the working directory.
    for cwd in (script.parent, here):
        printed = run(sys.executable, str(script), name, cwd=cwd, **ours)
        assert printed.splitlines()[-1] == str(installed / "ringcast" / "__init__.py")
    command = (sys.executable, str(installed / "bin" / "ringcast"))
    demo = run(*command, "demo", "--seconds", "0.5", "--name", name, "--json", cwd=here, **ours)
    assert json.loads(demo.splitlines()[-1])["ok"] is True
    run(sys.executable, "-P", "-m", "ringcast.shm", cwd=here, **ours)  # the self-check
    includes = run(sys.executable, "-P", "-m", "ringcast", "--includes", cwd=here, **ours).strip()
    assert (Path(includes) / "ringcast.h").is_file()


def test_a_tree_that_was_not_built_says_what_to_do(tmp_path: Path) -> None:
    built = shutil.ignore_patterns("*.so", "_*.c", "__pycache__")
    for folder in FOLDERS:
        shutil.copytree(REPOSITORY / folder, tmp_path / folder, symlinks=True, ignore=built)
    done = subprocess.run(
        [sys.executable, "-c", "import ringcast; ringcast.attach"],
        env={**os.environ, "PYTHONPATH": str(tmp_path / "src")},
        capture_output=True,
        text=True,
        timeout=DEADLINE,
        check=False,
    )
    assert done.returncode == 1
    assert "build it first: pip install -e ." in done.stderr.splitlines()[-1]
