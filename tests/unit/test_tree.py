"""The tree is whole: links resolve, and the wheel installs one name only."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from importlib.resources import files
from pathlib import Path

import pytest

PACKAGE = Path(str(files("latentplan")))
ROOT = PACKAGE.parent


@pytest.mark.parametrize("name", ["sim", "robots", "real_robot", "configs"])
def test_a_linked_folder_is_there(name: str) -> None:
    link = PACKAGE / name
    assert link.is_dir(), f"{link} is not a folder: clone with core.symlinks=true"
    assert link.resolve() == ROOT / name


def test_links_are_relative() -> None:
    for link in PACKAGE.iterdir():
        if link.is_symlink():
            assert link.readlink() == Path("..") / link.name


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Return the names in a wheel that is built from a copy of what git tracks."""
    copy, out = tmp_path_factory.mktemp("copy"), tmp_path_factory.mktemp("wheel")
    tracked = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    for name in filter(None, tracked.split("\0")):
        source, target = ROOT / name, copy / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.is_symlink():
            target.symlink_to(source.readlink())
        elif source.is_file():
            target.write_bytes(source.read_bytes())
    build = "from setuptools import build_meta; import sys; build_meta.build_wheel(sys.argv[1])"
    done = subprocess.run(
        [sys.executable, "-c", build, str(out)], cwd=copy, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]
    (path,) = out.glob("*.whl")
    return zipfile.ZipFile(path).namelist()


def test_the_wheel_installs_one_name(wheel: list[str]) -> None:
    tops = {name.partition("/")[0] for name in wheel}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"latentplan"}


def test_the_wheel_holds_what_the_tree_holds(wheel: list[str]) -> None:
    needed = {"latentplan/sim/deformable/rope.py", "latentplan/py.typed"}
    for data in ("configs/*/*.yaml", "pretrained/*/*", "sim/scenes/*", "evaluation/*.[hj]*"):
        needed |= {str(p.relative_to(ROOT)) for p in PACKAGE.glob(data) if p.is_file()}
    for folder in filter(Path.is_dir, PACKAGE.iterdir()):  # rglob does not follow links
        modules = (p.relative_to(folder.resolve()) for p in folder.resolve().rglob("*.py"))
        needed |= {f"latentplan/{folder.name}/{module}" for module in modules}
    assert needed <= set(wheel), sorted(needed - set(wheel))
    assert any(name.startswith("latentplan/configs/model/") for name in wheel)
