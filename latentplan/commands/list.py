"""`latentplan list`: the names that commands and presets know, plug-ins included."""

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
}


def run(*, kind: str | None = None) -> None:
    """Print every name of `kind` (`envs`, ..., `presets`, `checkpoints`), or of all kinds.

    Raises UnknownName for a kind that does not exist.
    """
    sections = [*KINDS, "presets", "checkpoints"]
    if kind is not None and kind not in sections:
        raise unknown("kind", kind, sections)
    for section in sections if kind is None else [kind]:
        found = entries(section)
        width = max((len(name) for name in found), default=0)
        print(section)
        for name, meaning in sorted(found.items()):
            print(f"  {name:{width}}  {meaning}".rstrip())
        if not found:
            print("  none")


def entries(section: str) -> dict[str, str]:
    """Return name -> one line that says what it is, of one section of the list."""
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
