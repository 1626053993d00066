"""calvin_env in the user's checkout: its folder, its import, and its settings.

The checkout is not changed. Its missing requirements (the package gym, a git repository, a screen)
are replaced in memory during the import.
"""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from inspect import isbuiltin
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, cast

from latentplan import config
from latentplan.errors import ConfigError, MissingDependency, unknown

SCENES = ("A", "B", "C", "D")
ROOT = "CALVIN_ENV_ROOT"
HOW = (
    "env 'calvin' needs a checkout of calvin_env: git clone --recursive "
    f"https://github.com/mees/calvin_env, then {ROOT}=..."
)
MARK = Path("calvin_env", "envs", "play_table_env.py")


@dataclass(frozen=True)
class Settings:
    """The settings of a calvin_env world: plain values, all interpolations resolved."""

    robot: dict[str, Any]
    scene: dict[str, Any]
    cameras: dict[str, dict[str, Any]]  # by name: static, gripper


def find(root: str = "") -> Path:
    """Return the checkout: `root`, else CALVIN_ENV_ROOT, else that of an installed calvin_env.

    A checkout of mees/calvin, which holds calvin_env, is allowed. Raises MissingDependency if there
    is none.
    """
    given = root or os.environ.get(ROOT, "")
    if given:
        for folder in (Path(given).expanduser(), Path(given).expanduser() / "calvin_env"):
            if (folder / MARK).is_file():
                return folder.resolve()
        raise MissingDependency(f"{given}: holds no {MARK}; {HOW}")
    spec = find_spec("calvin_env")
    if spec is not None and spec.origin is not None:
        folder = Path(spec.origin).parents[1]
        if (folder / "conf").is_dir():  # a plain pip install leaves out conf/ and data/
            return folder.resolve()
    raise MissingDependency(HOW)


def settings(root: Path, *, scene: str = "D", split: str = "") -> Settings:
    """Return the settings of CALVIN's scene A, B, C or D, or those of a data set's split.

    `split` is a folder that holds `.hydra/merged_config.yaml`. Raises ConfigError if a file is
    missing or invalid.
    """
    if scene not in SCENES:
        raise ConfigError(str(unknown("Calvin.scene", scene, SCENES)))
    if split:
        file = Path(split).expanduser() / ".hydra" / "merged_config.yaml"
        merged = config.read_yaml(file)
        try:
            robot, world, cameras = merged["robot"], merged["scene"], merged["cameras"]
        except KeyError as e:
            raise ConfigError(f"{file}: has no {e.args[0]!r}") from None
    else:
        conf = root / "conf"
        robot = config.read_yaml(conf / "robot" / "panda.yaml")
        robot |= config.read_yaml(conf / "robot" / "panda_longer_finger.yaml")
        world = config.read_yaml(conf / "scene" / f"calvin_scene_{scene}.yaml")
        folder = conf / "cameras" / "cameras"
        cameras = {c: config.read_yaml(folder / f"{c}.yaml") for c in ("static", "gripper")}
    robot.pop("defaults", None)
    # In the files, these values refer to each other.
    for key in ("base_position", "base_orientation", "initial_joint_positions"):
        robot[key] = world[f"robot_{key}"]
    world |= {"euler_obs": robot["euler_obs"], "data_path": str(root / "data")}
    cameras = {c: dict(v) for c, v in cameras.items() if c in ("static", "gripper")}
    whole = Settings(robot, world, cameras)
    left = _unfilled({"robot": robot, "scene": world, "cameras": cameras})
    if left:
        raise ConfigError(f"{split or root}: {left[0]} refers to another key, which is not read")
    return whole


def simulator(root: Path) -> Any:
    """Return the module `calvin_env.envs.play_table_env` of the checkout, patched.

    Raises MissingDependency if a package that it imports is missing, ConfigError if another
    checkout was imported before.
    """
    loaded = sys.modules.get("calvin_env.envs.play_table_env")
    if loaded is None:
        with _importable(root):
            try:
                loaded = import_module("calvin_env.envs.play_table_env")
                robot = import_module("calvin_env.robot.robot")
            except ImportError as e:
                lacks = f"env 'calvin' needs {e.name or e}"
                raise MissingDependency(f'{lacks}: pip install "latentplan[calvin]"') from None
        _adapt(loaded, robot)
    found = Path(str(loaded.__file__)).parents[2].resolve()
    if found != root.resolve():
        raise ConfigError(f"Calvin.root: found {root}, but {found} is imported already")
    return loaded


class Client:
    """The module pybullet, bound to one physics client, for calls that name none."""

    def __init__(self, bullet: Any, client: int) -> None:
        """Take the module and the client's number."""
        self._bullet, self._client = bullet, client

    def __getattr__(self, name: str) -> Any:
        """Return the module's attribute; a function is bound to the client."""
        value = getattr(self._bullet, name)
        return partial(value, physicsClientId=self._client) if isbuiltin(value) else value


def _adapt(module: ModuleType, robot: Any) -> None:
    """Patch in memory the parts that fail on other machines than the authors'."""
    bullet, load = robot.p, robot.Robot.load

    def load_in_own_client(self: Any) -> None:
        # It counts joints and adds the visual of a pedestal in client 0 of any owner.
        robot.p = Client(bullet, self.cid)
        try:
            load(self)
        finally:
            robot.p = bullet

    def connect(connection_mode: int) -> Client:
        # When freed, pybullet_utils' client prints, and disconnects the client that now has its id.
        return Client(bullet, bullet.connect(connection_mode))

    def close(self: Any) -> None:
        # The original prints, and disconnects again when the env is freed.
        client, self.cid = getattr(self, "cid", -1), -1
        if client >= 0:
            bullet.disconnect(physicsClientId=client)

    robot.Robot.load = load_in_own_client
    env = cast(Any, module)
    env.bc = SimpleNamespace(BulletClient=connect)
    env.PlayTableSimEnv.close = close
    # The original needs a git repository around the sources, and searches it every time.
    env.get_git_commit_hash = lambda path: "unknown"


@contextmanager
def _importable(root: Path) -> Iterator[None]:
    """Make the checkout importable, with gymnasium in place of gym if that is not installed."""
    replaced: dict[str, ModuleType] = {}
    if "gym" not in sys.modules and find_spec("gym") is None:
        names = ("", ".utils", ".utils.seeding")
        replaced = {f"gym{n}": import_module(f"gymnasium{n}") for n in names}
    sys.modules.update(replaced)
    sys.path.insert(0, str(root))
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="(?s).*version_base")  # by hydra.main
            yield
    finally:
        sys.path.remove(str(root))
        for name in replaced:
            del sys.modules[name]


def _unfilled(values: Any, where: str = "") -> list[str]:
    """Return the names of the values that refer to others, `${...}`."""
    if isinstance(values, Mapping):
        pairs = [(f"{where}.{k}" if where else str(k), v) for k, v in values.items()]
    elif isinstance(values, list):
        pairs = [(f"{where}[{i}]", v) for i, v in enumerate(values)]
    else:
        return [where] if isinstance(values, str) and "${" in values else []
    return [name for key, value in pairs for name in _unfilled(value, key)]
