"""The choice of OpenGL without a screen: EGL, else OSMesa. Needs the standard library only.

`python -m latentplan.sim.rendering.gl` prints the choice; if there is none it prints the install
command and exits with 2.
"""

from __future__ import annotations

import os
import sys
from ctypes import CDLL, CFUNCTYPE, byref, c_int, c_uint, c_void_p
from functools import cache

from latentplan.errors import MissingDependency

PACKAGES = {"egl": "libegl1 libopengl0 libgl1-mesa-dri", "osmesa": "libosmesa6"}  # Debian's names
_PLATFORM_DEVICE = 0x313F  # EGL_PLATFORM_DEVICE_EXT
_MAX_DEVICES = 16


@cache
def choose() -> str:
    """Return `egl` or `osmesa`: the value of MUJOCO_GL, else the first of the two that works.

    Raises MissingDependency, with an install command, if none works or if MUJOCO_GL names one that
    does not: images must not depend on a silent fallback.
    """
    works = {"egl": _egl, "osmesa": _osmesa}
    asked = os.environ.get("MUJOCO_GL", "").lower()
    if asked:
        if asked not in works:
            raise MissingDependency(
                f"MUJOCO_GL: found {asked!r}, which needs a screen; set egl or osmesa, or unset it"
            )
        if not works[asked]():
            raise MissingDependency(f"MUJOCO_GL: {asked!r} does not work here; {_advice(asked)}")
        return asked
    for name, probe in works.items():
        if probe():
            return name
    raise MissingDependency(f"OpenGL: neither EGL nor OSMesa works here; {_advice('egl')}")


def _advice(name: str) -> str:
    sudo = "" if os.geteuid() == 0 else "sudo "
    return f"type: {sudo}apt-get install -y {PACKAGES[name]}"


def _egl() -> bool:
    """Return whether EGL starts on some device, with the calls that MuJoCo makes.

    A library that loads is not enough: it is only a dispatcher, and drivers are separate packages.
    """
    egl = _library("libEGL.so.1")
    calls = _library("libOpenGL.so.0", "libGL.so.1", "libGLESv2.so.2")  # those that PyOpenGL loads
    if egl is None or calls is None:
        return False
    egl.eglGetProcAddress.restype = c_void_p
    query_address = egl.eglGetProcAddress(b"eglQueryDevicesEXT")
    display_address = egl.eglGetProcAddress(b"eglGetPlatformDisplayEXT")
    if not query_address or not display_address:
        return False
    query = CFUNCTYPE(c_uint, c_int, c_void_p, c_void_p)(query_address)
    get_display = CFUNCTYPE(c_void_p, c_uint, c_void_p, c_void_p)(display_address)
    egl.eglInitialize.argtypes = [c_void_p, c_void_p, c_void_p]
    devices = (c_void_p * _MAX_DEVICES)()
    count = c_int()
    if not query(_MAX_DEVICES, devices, byref(count)):
        return False
    displays = (get_display(_PLATFORM_DEVICE, d, None) for d in devices[: count.value])
    return any(display and egl.eglInitialize(display, None, None) for display in displays)


def _osmesa() -> bool:
    return _library("libOSMesa.so.8", "libOSMesa.so.6", "libOSMesa.so") is not None


def _library(*names: str) -> CDLL | None:
    """Return the first of the shared libraries that loads, None if none does."""
    for name in names:
        try:
            return CDLL(name)
        except OSError:
            continue
    return None


if __name__ == "__main__":
    try:
        print(choose())
    except MissingDependency as e:
        print(e, file=sys.stderr)
        sys.exit(2)
