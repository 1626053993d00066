"""What works on this machine, and what to install for what does not."""

from __future__ import annotations

import getpass
import os
import platform
import shutil
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from latentplan.errors import LatentplanError

if TYPE_CHECKING:
    from packaging.requirements import Requirement


State: TypeAlias = Literal["ok", "missing", "optional"]  # missing: the core does not work so


@dataclass(frozen=True)
class Finding:
    """What was found of one thing."""

    name: str
    state: State
    found: str
    remedy: str = ""  # the line to type


@dataclass(frozen=True)
class Diagnosis:
    """All findings."""

    findings: tuple[Finding, ...]

    @property
    def works(self) -> bool:
        """Whether the core works."""
        return all(f.state != "missing" for f in self.findings)

    def to_json(self) -> dict[str, Any]:
        """Return JSON values."""
        return {"works": self.works, "findings": [asdict(f) for f in self.findings]}


def summary(found: Diagnosis) -> Iterator[str]:
    """Yield what was found in lines."""
    width = max(len(each.name) for each in found.findings)
    for each in found.findings:
        yield f"{each.state:8}  {each.name:{width}}  {each.found}"
        if each.remedy:
            yield f"{'':8}  {'':{width}}  -> {each.remedy}"
    works = "the core works" if found.works else "the core does not work: mend what is missing"
    yield works


def diagnose() -> Diagnosis:
    """Return what was found here: versions, rendering, GPU, extras."""
    try:
        packages, extras = _packages(), _extras()
    except PackageNotFoundError:  # on the path, but not installed: what it needs is not recorded
        packages, extras = [Finding("latentplan", "missing", "not installed", "pip install .")], []
    return Diagnosis(
        (
            _guarded("python", _python),
            *packages,
            _guarded("torch", _torch),
            _guarded("gpu", _gpu, otherwise="optional"),
            _guarded("rendering", _rendering),
            _guarded("video", _video),
            _guarded("tree", _tree),
            *extras,
            _guarded("real time", _real_time, otherwise="optional"),
            _guarded("calvin_env", _calvin_env, otherwise="optional"),
        )
    )


def _guarded(name: str, look: Callable[[], Finding], *, otherwise: State = "missing") -> Finding:
    """Return the finding of a check, or the error that the check raised."""
    try:
        return look()
    except LatentplanError as e:
        return Finding(name, otherwise, str(e))
    except Exception as e:
        return Finding(name, otherwise, f"{type(e).__name__}: {' '.join(str(e).split())}")


def _python() -> Finding:
    found = f"{platform.python_version()} on {platform.platform()}, {os.cpu_count()} cores"
    return Finding("python", "ok", found)


def _requirements() -> dict[str, list[Requirement]]:
    """Return what the package needs by extra; the core's is under an empty name."""
    from packaging.requirements import Requirement

    needs: dict[str, list[Requirement]] = {"": []}
    for text in requires("latentplan") or []:
        requirement = Requirement(text)
        _, marked, marker = str(requirement.marker or "").partition("extra ==")
        extra = marker.split('"')[1] if marked else ""
        needs.setdefault(extra, []).append(requirement)
    return needs


def _packages() -> list[Finding]:
    """Return one finding a requirement of the core."""
    return [_package(r.name, str(r.specifier)) for r in _requirements()[""]]


def _package(name: str, allowed: str) -> Finding:
    from packaging.specifiers import SpecifierSet

    remedy = f'pip install "{name}{allowed}"'
    try:
        found = version(name)
    except PackageNotFoundError:
        return Finding(name, "missing", "not installed", remedy)
    if not SpecifierSet(allowed).contains(found, prereleases=True):
        return Finding(name, "missing", f"{found}, needs {allowed}", remedy)
    return Finding(name, "ok", found)


def _torch() -> Finding:
    import torch

    found = f"{torch.get_num_threads()} threads, {torch.backends.cpu.get_cpu_capability()}"
    torch.linalg.lstsq(torch.eye(3), torch.ones(3, 1))  # LAPACK is there
    return Finding("torch on cpu", "ok", found)


def _gpu() -> Finding:
    import torch

    if torch.cuda.is_available():
        devices = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
        for index in range(len(devices)):
            torch.ones(8, 8, device=f"cuda:{index}").sum().item()  # the kernels fit the device
        found = ", ".join(f"{d.name} {d.total_memory / 2**30:.0f} GiB" for d in devices)
        return Finding("gpu", "ok", f"{found}, CUDA {torch.version.cuda}")
    driver = _driver()
    if driver and torch.version.cuda is None:
        remedy = f"pip install torch=={torch.__version__.partition('+')[0]} (a CUDA build)"
        return Finding("gpu", "optional", f"{driver}, but torch is a CPU build", remedy)
    if driver:
        found = f"{driver}, but torch cannot use it (CUDA {torch.version.cuda})"
        return Finding("gpu", "optional", found, "update the NVIDIA driver")
    return Finding("gpu", "optional", "none seen; everything runs on the CPU")


def _driver() -> str:
    """Return the GPUs that the driver sees, or an empty string."""
    if shutil.which("nvidia-smi") is None:
        return ""
    asked = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, check=False)
    return "; ".join(asked.stdout.splitlines()) if asked.returncode == 0 else ""


def _rendering() -> Finding:
    # Chooses EGL or OSMesa, or says what to install.
    from latentplan.sim.rendering import mujoco_renderer

    return Finding("rendering", "ok", f"{mujoco_renderer.self_test()}, self-test drawn right")


def _video() -> Finding:
    import imageio_ffmpeg

    return Finding("video", "ok", f"ffmpeg {imageio_ffmpeg.get_ffmpeg_version()}")


def _tree() -> Finding:
    package = Path(__file__).parents[1]
    lost = [n for n in ("sim", "configs") if not (package / n).is_dir()]
    if lost:
        found = f"{', '.join(lost)} not in {package}"
        return Finding("tree", "missing", found, "git clone -c core.symlinks=true, or reinstall")
    return Finding("tree", "ok", str(package))


def _real_time() -> Finding:
    from latentplan.real_robot.loop.realtime import PRIORITY, real_time

    with real_time() as allowed:
        if allowed:
            return Finding("real time", "ok", "a node's ticks go before other work")
    remedy = f"as root: echo '{getpass.getuser()} - rtprio {PRIORITY}' >> /etc/security/limits.conf"
    found = "not allowed; a node's ticks may be late beside other work"
    return Finding("real time", "optional", found, remedy)


def _calvin_env() -> Finding:
    from latentplan.sim.calvin import checkout

    return Finding("calvin_env", "ok", str(checkout.find()))


def _extras() -> list[Finding]:
    """Return one finding an extra of the package: all there, or the line that installs it."""
    findings = []
    for extra, needs in sorted(_requirements().items()):
        if not extra:
            continue
        states = {r.name: _package(r.name, str(r.specifier)).state for r in needs}
        lost = [name for name, state in states.items() if state != "ok"]
        what = f"needs {', '.join(lost)}" if lost else ", ".join(states)
        remedy = f'pip install "latentplan[{extra}]"' if lost else ""
        findings.append(Finding(f"extra {extra}", "optional" if lost else "ok", what, remedy))
    return findings
