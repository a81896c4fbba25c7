"""Can be rendered what is asked for? Importing this loads no simulator."""

import os

from pi0.errors import UnusableError

RENDER_QUALITIES = ("stock", "fast")


def require_render_quality(value: str) -> None:
    """Raise ValueError unless the value is one of `RENDER_QUALITIES`."""
    if value not in RENDER_QUALITIES:
        raise UnusableError(f"render_quality must be 'stock' or 'fast', found {value!r}")


def require_egl_device() -> None:
    """Raise ValueError if MUJOCO_EGL_DEVICE_ID names a device that this machine does not have."""
    named = os.environ.get("MUJOCO_EGL_DEVICE_ID")
    if named is None or os.environ.get("MUJOCO_GL") != "egl":
        return
    from mujoco.egl import egl_ext

    count = len(egl_ext.eglQueryDevicesEXT())
    if not named.isdecimal() or int(named) >= count:
        known = f"a number from 0 to {count - 1}" if count else "no number, as there is none"
        raise UnusableError(
            f"MUJOCO_EGL_DEVICE_ID: expected {known}, of the machine's {count} EGL devices, found {named!r}; "
            "correct the environment variable, or unset it to take the first that works"
        )
