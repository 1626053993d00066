"""Settings: defaults < preset < `key=value`, checked against the dataclass beside each class.

The only module that uses OmegaConf; it returns plain values and frozen dataclasses.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass, make_dataclass, replace
from difflib import get_close_matches
from enum import Enum
from functools import cache
from pathlib import Path
from types import UnionType
from typing import Any, TypeVar, Union, cast, get_args, get_origin, get_type_hints

from latentplan import foreign, registry
from latentplan.errors import ConfigError, first_line, unknown
from latentplan.files import replacing
from latentplan.types import Part

T = TypeVar("T")
LARGEST = 1 << 20  # bytes of a file of settings
VALUES, DEPTH = 20_000, 50  # in it
FOLDER = Path(__file__).parent / "configs"  # a link in the tree, a folder in a wheel


@dataclass(frozen=True)
class Preset:
    """A named choice: which registered class, and what is set differently from its defaults."""

    base: str  # registry name
    values: dict[str, Any]  # as in the file, without `base`
    about: str = ""  # the comment in the file's first line


def presets() -> dict[str, list[str]]:
    """Return the names of the shipped presets, by kind (`model`, `planner`, ...)."""
    if not FOLDER.is_dir():
        raise ConfigError(f"{FOLDER}: not a folder; git clone -c core.symlinks=true, or reinstall")
    found: dict[str, list[str]] = {}
    for file in sorted(FOLDER.glob("*/*.yaml")):
        found.setdefault(file.parent.name, []).append(file.stem)
    return found


def resolve(kind: str, name: str) -> Preset:
    """Return what `name` stands for: a preset `configs/<kind>/<name>.yaml`, else a registry name.

    A preset that bears a registry name is what that name means to a user. Raises UnknownName
    if `name` is neither, ConfigError if the file is not a preset.
    """
    registered = registry.names(kind)
    shipped = presets().get(kind, [])
    if name not in shipped:
        if name not in registered:
            raise unknown(kind, name, {*registered, *shipped})
        return Preset(name, {})
    where = f"preset {kind}/{name}"
    text = (FOLDER / kind / f"{name}.yaml").read_text(encoding="utf-8")
    values = _parse(where, text)
    base = values.pop("base", None)
    if base not in registered:
        known = ", ".join(sorted(registered))
        raise ConfigError(f"{where}.base: {base!r} is not a registered {kind}; known: {known}")
    first = text.partition("\n")[0]
    about = first.removeprefix("#").strip() if first.startswith("#") else ""
    return Preset(cast(str, base), values, about)


def load(
    sections: Mapping[str, type],
    *,
    preset: Mapping[str, Any] | None = None,
    overrides: Sequence[str] = (),
) -> dict[str, Any]:
    """Return one filled dataclass a section: defaults, then the preset, then the overrides.

    A key is `section.field`, or `field` alone where exactly one section has it; an override is
    `key=value` with the value in YAML. Raises ConfigError that names the key, the nearest one and
    the known ones.
    """
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException
    from yaml import YAMLError

    layers = [dict(preset or {})]
    for override in overrides:
        key, equals, _ = override.partition("=")
        if not equals or not key:
            raise ConfigError(f"{override!r}: an override is key=value")
        try:
            layer = OmegaConf.to_container(OmegaConf.from_dotlist([override]))
        except (OmegaConfBaseException, YAMLError, ValueError, IndexError, RecursionError) as e:
            raise ConfigError(
                f"{_short(override)}: not key=value in YAML ({first_line(e)})"
            ) from None
        layers.append(cast(dict[str, Any], layer))

    merged: dict[str, dict[str, Any]] = {section: {} for section in sections}
    for layer in layers:
        for key, value in layer.items():
            section = _section(key, sections)
            inner = value if key in sections else {key: value}
            if not isinstance(inner, Mapping):
                raise ConfigError(f"{key}: found {inner!r}; it is a section: set {key}.FIELD")
            _update(merged[section], inner, sections[section])
    return {name: from_values(schema, merged[name]) for name, schema in sections.items()}


_OTHER = object()


def from_values(schema: type[T], values: Mapping[str, Any]) -> T:
    """Return the dataclass `schema` filled with plain values; `to_values` is the inverse.

    Raises ConfigError for an unknown key, a wrong type, and whatever `__post_init__` refuses.
    """
    where = schema.__qualname__.rpartition("<locals>.")[2].removesuffix(".Config")
    return _replace(where, schema(), values)


def to_values(config: Any) -> dict[str, Any]:
    """Return a config dataclass as plain dicts, lists, numbers and strings."""
    return cast(dict[str, Any], json.loads(json.dumps(_plain(config))))  # tuples become lists


def _plain(value: Any, hint: Any = None) -> Any:
    if isinstance(value, Part):
        fields_of = {} if value.config is None else _plain(value.config)
        run = {"run": value.run} if value.run else {}
        return {"name": value.name, **run, **fields_of} if value.name else run
    if is_dataclass(value) and not isinstance(value, type):
        hints = _hints(type(value))
        return {f.name: _plain(getattr(value, f.name), hints[f.name]) for f in fields(value)}
    if isinstance(value, Mapping):
        return {str(key): _plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    if isinstance(value, Enum):
        return value.name
    return float(value) if hint is float else value


def save_yaml(path: Path | str, mapping: Mapping[str, Any]) -> None:
    """Write `mapping` (plain values) as YAML: whole or not at all."""
    import yaml

    def text(dumper: Any, value: str) -> Any:
        # Such as 0E0: no number to YAML 1.1, which is written, but to what reads it.
        style = "'" if _is_number(value) else None
        return dumper.represent_scalar("tag:yaml.org,2002:str", value, style=style)

    quoting: Any = type("Quoting", (yaml.SafeDumper,), {})
    quoting.add_representer(str, text)
    with replacing(Path(path)) as partial:
        written = yaml.dump(dict(mapping), Dumper=quoting, sort_keys=False)
        partial.write_text(written, encoding="utf-8")


def read_yaml(path: Path | str) -> dict[str, Any]:
    """Return what `save_yaml` wrote; ConfigError if it is missing, too large or not a mapping."""
    return _parse(str(path), foreign.text(path, error=ConfigError, limit=LARGEST))


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _parse(where: str, text: str) -> dict[str, Any]:
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException
    from yaml import YAMLError

    try:
        check_nesting(where, text)
        parsed = OmegaConf.create(text)  # reads 1e-3 as a number, refuses a key given twice
        values: Any = OmegaConf.to_container(parsed)
    except ConfigError:
        raise
    except (OmegaConfBaseException, YAMLError, OSError, TypeError, ValueError, RecursionError) as e:
        raise ConfigError(f"{where}: not valid YAML ({first_line(e)})") from None
    if not isinstance(values, dict) or not all(isinstance(key, str) for key in values):
        raise ConfigError(f"{where}: not a mapping of keys to values")
    return values


def check_nesting(where: str, text: str) -> None:
    """Raise ConfigError for YAML with too many values or levels; YAMLError if it is not YAML.

    Its events are read one by one; the parser that makes values of them recurses without a limit.
    """
    import yaml

    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    depth = 0
    for count, event in enumerate(yaml.parse(text, Loader=loader)):
        depth += isinstance(event, yaml.CollectionStartEvent)
        depth -= isinstance(event, yaml.CollectionEndEvent)
        if depth > DEPTH or count > VALUES:
            raise ConfigError(
                f"{where}: not read: more than {VALUES} values, or nested more than {DEPTH} deep"
            )


def _section(key: str, sections: Mapping[str, type]) -> str:
    if key in sections:
        return key
    owners = [name for name, schema in sections.items() if key in _names(schema)]
    if len(owners) == 1:
        return owners[0]
    if owners:
        choice = " or ".join(f"{name}.{key}" for name in owners)
        raise ConfigError(f"{key}: several sections have it; write {choice}")
    keys = {name: [f"{name}.{field}" for field in _names(s)] for name, s in sections.items()}
    short = [*sections, *(field for schema in sections.values() for field in _names(schema))]
    known = ", ".join(sorted(k for names in keys.values() for k in names))
    raise ConfigError(f"no key {key!r};{_near(key, short)} known: {known}")


def _replace(where: str, config: T, values: Mapping[str, Any]) -> T:
    """Return `config` with `values` instead of its own, each of its field's type."""
    hints = _hints(cast(Any, type(config)))
    known = _names(type(config))
    changed: dict[str, Any] = {}
    for key, value in values.items():
        _check_plain(f"{where}.{key}", value)
        if key not in known:
            near = _near(str(key), known)
            raise ConfigError(f"{where} has no key {key!r};{near} known: {', '.join(known)}")
        inner = next((o for o in _options(hints[key]) if is_dataclass(o)), None)
        if inner is Part:
            changed[key] = _part(f"{where}.{key}", getattr(config, key), value)
        elif isinstance(value, Mapping) and isinstance(inner, type):
            before = getattr(config, key)
            nested = before if isinstance(before, inner) else inner()
            changed[key] = _replace(f"{where}.{key}", nested, value)
        else:
            changed[key] = _typed(f"{where}.{key}", key, value, hints[key])
    return cast(T, replace(cast(Any, config), **changed))


def _check_plain(where: str, value: Any) -> None:
    """Raise ConfigError if a value, or anything in it, would be looked up elsewhere.

    OmegaConf would read the environment or other keys: presets and overrides hold values only.
    """
    if isinstance(value, Mapping):
        for key, each in value.items():
            _check_plain(where, key)
            _check_plain(f"{where}.{key}", each)
    elif isinstance(value, list | tuple):
        for each in value:
            _check_plain(where, each)
    elif isinstance(value, str) and ("${" in value or value == "???"):
        raise ConfigError(f"{where}: found {value!r}; interpolation is not allowed; write a value")


def _part(where: str, before: Part, value: Any) -> Part:
    """Return a part of the kind of `before` filled with plain values: a name and fields, or a run.

    A name alone, or none, keeps the fields that the part had by default. An optional part without a
    name stays as it is where nothing is set.
    """
    if not before.name and value == {}:
        return before
    if not isinstance(value, Mapping):
        value = {"name": value}
    values = dict(value)
    name, run = values.pop("name", ""), values.pop("run", "")
    for key, text in (("name", name), ("run", run)):
        if not isinstance(text, str):
            raise ConfigError(f"{where}.{key}: found {text!r}, need a text")
    if run and not name:
        if values:
            raise ConfigError(
                f"{where}: found run and {', '.join(values)}; a part of a run stays as it is: "
                "leave them out, or the run"
            )
        return Part(before.kind, run=run)
    preset = resolve(before.kind, name or before.name)
    schema = registry.get(before.kind, preset.base).Config
    same = preset.base == before.name and before.config is not None and not name
    values_of = preset.values.get(before.kind, {})
    filled = before.config if same else _replace(where, schema(), values_of)
    return Part(before.kind, preset.base, _replace(where, filled, values), run)


def _typed(where: str, key: str, value: Any, hint: Any) -> Any:
    """Return `value` converted to the type `hint` of a field: 2 to 2.0, a list to a tuple."""
    if (simple := _simple(value, hint)) is not _OTHER:  # OmegaConf takes a millisecond for each
        return simple
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    needed = hint.__name__ if isinstance(hint, type) and not get_args(hint) else str(hint)
    wrong = ConfigError(f"{where}: found {value!r}, needs {needed.replace('typing.', '')}")
    try:
        merged: Any = OmegaConf.merge(OmegaConf.structured(_field(key, hint)), {key: value})
    except (OmegaConfBaseException, TypeError):  # TypeError: a mapping for a tuple
        raise wrong from None
    typed = cast(dict[str, Any], OmegaConf.to_container(merged))[key]
    if isinstance(typed, list | tuple) and any(get_origin(o) is tuple for o in _options(hint)):
        items = [item for option in _options(hint) for item in get_args(option)]
        scalars = all(item in (bool, int, float, str, ...) for item in items)
        if scalars and any(isinstance(each, dict | list) for each in typed):
            raise wrong  # OmegaConf lets a mapping in a tuple of numbers pass
        return tuple(typed)
    return typed


def _simple(value: Any, hint: Any) -> Any:
    """Return a number, a text or a list of them as its type, _OTHER where OmegaConf decides."""
    if type(value) is hint and hint in (bool, int, float, str):
        return value
    if type(value) is int and hint is float and abs(value) < 1 << 53:
        return float(value)
    items = get_args(hint)
    if get_origin(hint) is not tuple or type(value) is not list or not items:
        return _OTHER
    items = items[:1] * len(value) if items[1:] == (...,) else items
    found = tuple(map(_simple, value, items)) if len(items) == len(value) else (_OTHER,)
    return _OTHER if any(each is _OTHER for each in found) else found


@cache
def _field(key: str, hint: Any) -> type:
    """Return a dataclass of one field; OmegaConf would convert all fields of a larger one."""
    return make_dataclass("Field", [(key, hint)])


def _options(hint: Any) -> tuple[Any, ...]:
    """Return what a hint allows: the members of a union, else the hint itself."""
    return get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)


# The types of a dataclass's fields; to evaluate them takes longer than to use them.
_hints: Callable[[Any], dict[str, Any]] = cache(get_type_hints)


def _names(schema: type) -> list[str]:
    return [f.name for f in fields(schema) if f.init]


def _near(key: str, known: Sequence[str]) -> str:
    near = get_close_matches(key, known, 1)
    return f" did you mean {near[0]!r}?" if near else ""


def _update(target: dict[str, Any], layer: Mapping[str, Any], schema: Any = None) -> None:
    """Merge a layer into plain values; a part with another name or run loses its former fields."""
    hints = _hints(cast(Any, schema)) if is_dataclass(schema) else {}
    for key, value in layer.items():
        inner = next((o for o in _options(hints.get(key)) if is_dataclass(o)), None)
        if inner is Part and not isinstance(value, Mapping):
            value = {"name": value}
        if inner is Part and ({"name", "run"} & value.keys()):
            target.pop(key, None)
        if isinstance(value, Mapping) and isinstance(target.get(key), dict):
            _update(target[key], value, inner)
        else:
            target[key] = dict(value) if isinstance(value, Mapping) else value


def _short(text: str) -> str:
    return repr(text) if len(text) <= 80 else f"{text[:60]!r}... ({len(text)} characters)"
