"""A reader of an arm's description from a URDF; a YAML file beside it adds the rest.

A URDF gives joints, their places, axes and limits of position, velocity and effort, masses, and
shapes. It has no limits of acceleration and jerk, and no `Gripper`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import takewhile
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np

from latentplan import config, foreign
from latentplan.errors import ConfigError, unknown
from latentplan.types import Array

LIMITS = {"lower": "low", "upper": "high", "velocity": "velocity", "effort": "torque"}
LARGEST = 1e12  # of a number
ELEMENTS, DEPTH = 20_000, 50  # of a file, at most; a humanoid has some 3000 elements
TURNING = ("revolute", "continuous")


def read(path: Path, *, required: Sequence[str]) -> dict[str, Any]:
    """Return the values of a URDF's arm: the serial chain of joints from its root to a tip.

    `required` names the values that each joint needs.

    `path` with the suffix .yaml, if it exists, adds `joints` (a mapping of joint names to
    values such as acceleration and jerk, which replace those of the URDF), `tip` (a link), and
    any other field of an arm's description. `tip` defaults to the last link that all of the
    longest chains share, which is the hand before its fingers. Joints that slide, or mimic others,
    are left out. Raises ConfigError if the URDF has no such chain.
    """
    beside = path.with_suffix(".yaml")
    values = config.read_yaml(beside) if beside.exists() else {}
    values.pop("base", None)
    added = values.pop("joints", {})
    if not isinstance(added, Mapping) or not all(isinstance(r, Mapping) for r in added.values()):
        raise ConfigError(f"{beside}: joints: need a mapping of joint names to their values")
    try:
        return _values(
            _Tree(_parsed(path)),
            added=dict(added),
            values=values,
            beside=beside,
            required=required,
        )
    except ConfigError as e:
        raise ConfigError(f"{path}: {e}") from None


def _values(
    tree: _Tree,
    *,
    added: dict[str, Any],
    values: dict[str, Any],
    beside: Path,
    required: Sequence[str],
) -> dict[str, Any]:
    tip = values.pop("tip", None) or tree.tip()
    chain = tree.chain(str(tip))
    # Frames of a description turn about z: `turned` is that frame in the URDF link's.
    before, turned, rows = np.eye(4), np.eye(4), []
    for joint in chain:
        before = before @ _origin(joint)
        if joint.get("type") == "fixed":
            continue
        axis = _along(joint)
        rows.append(_row(joint, np.linalg.inv(turned) @ before @ axis, tree.link(joint), axis))
        before, turned = np.eye(4), axis
    names = [row["name"] for row in rows]
    for name in added:
        if name not in names:
            raise ConfigError(f"{beside.name}: joints: {unknown('joint', name, names)}")
    rows = [row | dict(added.get(row["name"], {})) for row in rows]
    _refuse_missing(rows, beside, required=required)
    for row in rows:
        for name in ("low", "high"):
            if not isinstance(row.get(name), int | float):
                raise ConfigError(f"{beside.name}: joints.{row['name']}.{name}: need a number")
        low, high = row["low"], row["high"]
        row.setdefault("home", 0.0 if low <= 0 <= high else (low + high) / 2)
    tip_pose = np.linalg.inv(turned) @ before
    found = {
        "name": tree.name,
        "source": f"URDF {tree.name}",
        "tip_position": tip_pose[:3, 3].tolist(),
        "tip_rotation": _quaternion(tip_pose),
        "reach": round(float(min(10.0, max(0.05, _length(rows) + _norm(tip_pose)))), 3),
    }
    return found | values | {"joints": rows}


def _refuse_missing(rows: list[dict[str, Any]], beside: Path, *, required: Sequence[str]) -> None:
    """Raise ConfigError, with all joints in one line, if a limit is in neither file."""
    lacking = {row["name"]: [n for n in required if n not in row] for row in rows}
    lacking = {name: missing for name, missing in lacking.items() if missing}
    if not lacking:
        return
    if len({tuple(missing) for missing in lacking.values()}) == 1:
        names, missing = ", ".join(lacking), next(iter(lacking.values()))
        text = f"{names}: {', '.join(missing)} missing"
    else:
        text = "; ".join(f"{name}: {', '.join(m)}" for name, m in lacking.items()) + " missing"
    example = f"joints: {{{next(iter(lacking))}: {{acceleration: ..., jerk: ...}}}}"
    raise ConfigError(f"{text}; write them from the data sheet into {beside.name}, as {example}")


class _Counted(ElementTree.TreeBuilder):
    """A builder that refuses too many elements, and elements that are nested too deeply."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self._path, self._count, self._depth = path, 0, 0

    def start(self, tag: Any, attrs: Any, /) -> Any:
        """Open an element."""
        self._count, self._depth = self._count + 1, self._depth + 1
        if self._count > ELEMENTS or self._depth > DEPTH:
            raise ConfigError(
                f"{self._path}: more than {ELEMENTS} elements, or nested more than {DEPTH} deep"
            )
        return super().start(tag, attrs)

    def end(self, tag: str, /) -> Any:
        """Close an element."""
        self._depth -= 1
        return super().end(tag)


class _Tree:
    """The links and joints of a URDF."""

    def __init__(self, root: ElementTree.Element) -> None:
        self.name = root.get("name", "") or "arm"
        self._links = {link.get("name", ""): link for link in root.findall("link")}
        self._joints: dict[str, ElementTree.Element] = {}  # by the link that they move
        for joint in root.findall("joint"):
            child, parent = _end(joint, "child"), _end(joint, "parent")
            for link in (child, parent):
                if link not in self._links:
                    raise ConfigError(f"joint {joint.get('name')}: no link {link!r}")
            if child in self._joints:
                raise ConfigError(f"link {child}: two joints move it")
            self._joints[child] = joint

    def link(self, joint: ElementTree.Element) -> ElementTree.Element:
        """Return the link that a joint moves."""
        return self._links[_end(joint, "child")]

    def path(self, link: str) -> list[ElementTree.Element]:
        """Return the joints from the root to a link."""
        found: list[ElementTree.Element] = []
        while link in self._joints:
            found.append(self._joints[link])
            if len(found) > len(self._joints):
                raise ConfigError(f"link {link}: is its own ancestor")
            link = _end(found[-1], "parent")
        return found[::-1]

    def tip(self) -> str:
        """Return the last link that all of the longest chains share."""
        if not self._joints:
            raise ConfigError("it has no joints")
        parents = {_end(joint, "parent") for joint in self._joints.values()}
        ends = [link for link in self._links if link not in parents]
        if not ends:
            raise ConfigError("its joints form a ring")
        turning = self._turning()
        most = max(turning[link] for link in ends)
        longest = [link for link in ends if turning[link] == most]
        shared = self.path(longest[0])
        for link in longest[1:]:
            pairs = zip(shared, self.path(link), strict=False)
            shared = [joint for joint, _ in takewhile(lambda pair: pair[0] is pair[1], pairs)]
        while shared and not _turns(shared[-1]) and shared[-1].get("type") != "fixed":
            shared.pop()  # a single finger
        if sum(map(_turns, shared)) < most:
            names = ", ".join(longest[:10])
            raise ConfigError(f"tip: several chains are as long, to {names}; set tip to a link")
        if not shared:
            raise ConfigError("it has no joint that turns")
        return _end(shared[-1], "child")

    def _turning(self) -> dict[str, int]:
        """Return how many joints turn between the root and each link."""
        children: dict[str, list[str]] = {}
        for child, joint in self._joints.items():
            children.setdefault(_end(joint, "parent"), []).append(child)
        found = {link: 0 for link in self._links if link not in self._joints}
        waiting = list(found)
        while waiting:
            link = waiting.pop()
            for child in children.get(link, ()):
                found[child] = found[link] + _turns(self._joints[child])
                waiting.append(child)
        lost = next((link for link in self._links if link not in found), None)
        if lost is not None:
            raise ConfigError(f"link {lost}: is its own ancestor")
        return found

    def chain(self, tip: str) -> list[ElementTree.Element]:
        """Return the joints from the root to `tip`; ConfigError unless each turns or is fixed."""
        if tip not in self._links:
            raise ConfigError(f"tip: {unknown('link', tip, self._links)}")
        path = self.path(tip)
        for joint in path:
            kind = "mimic" if joint.find("mimic") is not None else joint.get("type")
            if kind not in (*TURNING, "fixed"):
                raise ConfigError(
                    f"joint {joint.get('name')}: is {kind}; on the way to {tip} joints must turn "
                    "or be fixed; set tip to a link before it"
                )
        return path


def _parsed(path: Path) -> ElementTree.Element:
    text = foreign.text(path, error=ConfigError)
    if "<!DOCTYPE" in text or "<!ENTITY" in text:
        raise ConfigError(f"{path}: a document type is not read; remove it")
    parser = ElementTree.XMLParser(target=_Counted(path))
    try:
        parser.feed(text)
        root = parser.close()
    except (ElementTree.ParseError, LookupError, ValueError) as e:
        raise ConfigError(f"{path}: not XML ({e})") from None
    if root.tag != "robot":
        raise ConfigError(f"{path}: found <{root.tag}>, need <robot>")
    if any("xacro" in element.tag for element in root.iter()):
        raise ConfigError(f"{path}: holds xacro; run xacro first, and give its output")
    return root


def _row(
    joint: ElementTree.Element, origin: Array, link: ElementTree.Element, axis: Array
) -> dict[str, Any]:
    """Return the values of a joint and its link; `origin` is its pose in the frame before."""
    name = joint.get("name", "")
    row: dict[str, Any] = {
        "name": name,
        "position": origin[:3, 3].tolist(),
        "rotation": _quaternion(origin),
    }
    limit = joint.find("limit")
    for theirs, ours in LIMITS.items():
        text = None if limit is None else limit.get(theirs)
        endless = joint.get("type") == "continuous" and ours in ("low", "high")
        if text is None or endless:
            continue
        value = _numbers(f"joint {name}: limit {theirs}", text, 1)[0]
        if value != 0 or ours in ("low", "high"):  # exporters write 0 for an unknown value
            row[ours] = value
    mass = link.find("inertial/mass")
    if mass is not None:
        value = _numbers(f"link {link.get('name')}: mass", mass.get("value", ""), 1)[0]
        if value > 0:
            row["mass"] = value
    capsules = [_capsule(shape, axis) for shape in link.findall("collision")]
    row["capsules"] = [capsule for capsule in capsules if capsule]
    return row


def _capsule(collision: ElementTree.Element, axis: Array) -> list[float]:
    """Return the capsule of a round shape, in the joint's frame; empty for a box or a mesh."""
    place = np.linalg.inv(axis) @ _origin(collision)
    for kind in ("sphere", "cylinder", "capsule"):
        shape = collision.find(f"geometry/{kind}")
        if shape is not None:
            (radius,) = _numbers(f"collision {kind}: radius", shape.get("radius", ""), 1)
            (length,) = _numbers(f"collision {kind}: length", shape.get("length", "0"), 1)
            half = max(length / 2 - (radius if kind == "cylinder" else 0), 1e-4)
            ends = [(place @ [0, 0, z, 1])[:3].tolist() for z in (-half, half)]
            return [*ends[0], *ends[1], radius]
    return []


def _origin(element: ElementTree.Element) -> Array:
    """Return (4, 4) of <origin xyz rpy>: roll about x, then pitch about y, yaw about z, fixed."""
    from scipy.spatial.transform import Rotation

    place, origin = np.eye(4), element.find("origin")
    if origin is not None:
        where = f"{element.tag} {element.get('name', '')}: origin"
        place[:3, 3] = _numbers(f"{where} xyz", origin.get("xyz", "0 0 0"), 3)
        turns = _numbers(f"{where} rpy", origin.get("rpy", "0 0 0"), 3)
        place[:3, :3] = Rotation.from_euler("xyz", turns).as_matrix()
    return place


def _along(joint: ElementTree.Element) -> Array:
    """Return the rotation (4, 4) that brings z onto the joint's axis."""
    from scipy.spatial.transform import Rotation

    element, turned = joint.find("axis"), np.eye(4)
    text = "1 0 0" if element is None else element.get("xyz", "1 0 0")  # URDF's default
    axis = np.array(_numbers(f"joint {joint.get('name')}: axis", text, 3))
    length = float(np.linalg.norm(axis))
    if length < 1e-9:
        raise ConfigError(f"joint {joint.get('name')}: axis: found {text!r}, it has no length")
    axis = axis / length
    if axis[2] < -1 + 1e-12:
        turned[:3, :3] = np.diag([1.0, -1.0, -1.0])
    elif axis[2] < 1 - 1e-12:
        across = np.cross([0, 0, 1], axis)
        angle = np.arctan2(np.linalg.norm(across), axis[2])
        turned[:3, :3] = Rotation.from_rotvec(angle * across / np.linalg.norm(across)).as_matrix()
    return turned


def _quaternion(place: Array) -> list[float]:
    from scipy.spatial.transform import Rotation

    turn = Rotation.from_matrix(place[:3, :3])
    return [float(v) for v in turn.as_quat(canonical=True, scalar_first=True)]


def _numbers(where: str, text: str, count: int) -> list[float]:
    try:
        values = [float(part) for part in text.split()]
    except ValueError:
        values = []
    if len(values) != count or not (np.abs(values) < LARGEST).all():  # NaN fails too
        raise ConfigError(f"{where}: found {text[:60]!r}, need {count} finite numbers")
    return values


def _end(joint: ElementTree.Element, which: str) -> str:
    element = joint.find(which)
    return "" if element is None else element.get("link", "")


def _turns(joint: ElementTree.Element) -> bool:
    return joint.get("type") in TURNING and joint.find("mimic") is None


def _length(rows: list[dict[str, Any]]) -> float:
    return sum(float(np.linalg.norm(row["position"])) for row in rows[1:])


def _norm(place: Array) -> float:
    return float(np.linalg.norm(place[:3, 3]))
