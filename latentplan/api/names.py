"""Every name that a call or a command takes, plug-ins included, with what it stands for."""

from __future__ import annotations

import ast
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path

from latentplan import config, registry
from latentplan.errors import unknown

KINDS = {
    "envs": "env",
    "models": "model",
    "tokenizers": "tokenizer",
    "planners": "planner",
    "objectives": "objective",
    "policies": "policy",
    "sources": "source",
    "evaluations": "evaluation",
    "backends": "backend",
    "robots": "robot",
}


def sections() -> list[str]:
    """Return the sections of the list: `envs`, ..., `presets`, `checkpoints`."""
    return [*KINDS, "presets", "checkpoints"]


def entries(section: str) -> dict[str, str]:
    """Return name -> one line about it, of one section; UnknownName for another section."""
    if section not in sections():
        raise unknown("kind", section, sections())
    if section == "presets":
        return {
            f"{kind}/{name}": config.resolve(kind, name).about
            for kind, names in config.presets().items()
            for name in names
        }
    if section == "checkpoints":
        shipped = Path(str(files("latentplan"))) / "pretrained"
        paths = sorted(shipped.glob("*/best.safetensors"))
        return {p.parent.name: f"{p.stat().st_size / 1e6:.1f} MB" for p in paths}
    return {n: _docstring(target) for n, target in registry.names(KINDS[section]).items()}


def _docstring(target: str) -> str:
    """Return the first line of a class's docstring, read without importing torch or a simulator."""
    module, _, attribute = target.partition(":")
    try:
        spec = find_spec(module)
    except ModuleNotFoundError as e:
        return f"not installed: {e}"
    if spec is None or spec.origin is None or not spec.origin.endswith(".py"):
        return target
    tree = ast.parse(Path(spec.origin).read_text(encoding="utf-8"))
    for node in tree.body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef) and node.name == attribute:
            return (ast.get_docstring(node) or target).splitlines()[0]
    return target
