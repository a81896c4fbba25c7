"""Off-screen MuJoCo images, at full quality or cheap enough for a CPU.

One renderer draws any number of simulations of the same task: meshes and textures are uploaded to
the graphics context once, everything that moves is in MuJoCo's data.
"""

# MuJoCo's bindings come without type stubs.
# pyright: reportAttributeAccessIssue=false, reportInvalidTypeForm=false

import atexit
from collections.abc import Callable, Hashable
from contextlib import AbstractContextManager, nullcontext
from weakref import WeakSet, WeakValueDictionary

import mujoco
import numpy as np
from jaxtyping import UInt8

from pi0.ript.envs.rendering import require_egl_device


class OffscreenRenderer:
    """A graphics context for one task's models at one image size.

    "stock" renders with what the model asks for (multisampling, shadows, reflections). "fast"
    turns these off: on a CPU, where every sample and every pass costs, images are several times
    cheaper. Edges are jagged, and scenes whose lights cast shadows are a little darker.
    """

    def __init__(
        self,
        model: mujoco.MjModel,
        size: int,
        quality: str,
        during_upload: AbstractContextManager[None] | None = None,
    ) -> None:
        """Upload the model's meshes and textures.

        Args:
            model: Any of the task's models.
            size: Height and width of the images in pixels.
            quality: See the class.
            during_upload: Entered while meshes are uploaded, for instance to simplify them.
        """
        self._context: mujoco.MjrContext | None = None
        require_egl_device()
        self._gl = mujoco.GLContext(size, size)
        self._gl.make_current()
        self._rect = mujoco.MjrRect(0, 0, size, size)
        self._scene = mujoco.MjvScene(model, maxgeom=2000)
        model.vis.global_.offwidth = model.vis.global_.offheight = size
        if quality == "fast":
            model.vis.quality.offsamples = model.vis.quality.shadowsize = 0
            self._scene.flags[mujoco.mjtRndFlag.mjRND_SHADOW] = 0
            self._scene.flags[mujoco.mjtRndFlag.mjRND_REFLECTION] = 0
        with during_upload or nullcontext():
            self._context = _graphics_context(model)
        mujoco.mjr_setBuffer(mujoco.mjtFramebuffer.mjFB_OFFSCREEN, self._context)
        self._perturbation = mujoco.MjvPerturb()
        _open.add(self)
        atexit.unregister(_close_all)  # it must run before what the graphics driver registers on
        atexit.register(_close_all)  # its first use, so it must be registered after that

    def image(
        self,
        model: mujoco.MjModel,
        data: mujoco.MjData,
        camera: mujoco.MjvCamera,
        option: mujoco.MjvOption,
        decorate: Callable[[mujoco.MjvScene], None] | None = None,
    ) -> UInt8[np.ndarray, "h w 3"]:
        """Return a new image as the camera sees it, top row first.

        Args:
            model: The simulation's own model, of the renderer's task.
            data: Its data, with derived quantities up to date.
            camera: Where to look from.
            option: Which groups of geometry to draw.
            decorate: May add geometry to the scene.
        """
        self._gl.make_current()
        mujoco.mjv_updateScene(
            model,
            data,
            option,
            self._perturbation,
            camera,
            mujoco.mjtCatBit.mjCAT_ALL,
            self._scene,
        )
        if decorate is not None:
            decorate(self._scene)
        mujoco.mjr_render(self._rect, self._scene, self._context)
        pixels = np.empty((self._rect.height, self._rect.width, 3), np.uint8)
        mujoco.mjr_readPixels(pixels, None, self._rect, self._context)
        return np.ascontiguousarray(pixels[::-1])

    def close(self) -> None:
        """Free the graphics memory."""
        if self._context is not None:
            self._gl.make_current()
            self._context.free()
            self._context = None
            self._gl.free()

    def __del__(self) -> None:
        """Close."""
        self.close()


def _graphics_context(model: mujoco.MjModel) -> mujoco.MjrContext:
    """Return a context for the model in the current OpenGL context, or say why there is none."""
    try:
        return mujoco.MjrContext(model, mujoco.mjtFontScale.mjFONTSCALE_50)
    except mujoco.FatalError as error:
        raise RuntimeError(
            f"MuJoCo cannot render ({error}) with {mujoco.GLContext.__module__}. Without a display "
            "set MUJOCO_GL=egl before mujoco is first imported, or import pi0.ript.envs before it; "
            "EGL needs the system packages libegl1 and libgl1"
        ) from error


_open: WeakSet[OffscreenRenderer] = WeakSet()


def _close_all() -> None:
    """Close every renderer while the graphics driver is still there."""
    for renderer in list(_open):
        renderer.close()


_shared: WeakValueDictionary[Hashable, OffscreenRenderer] = WeakValueDictionary()


def shared_renderer(key: Hashable, make: Callable[[], OffscreenRenderer]) -> OffscreenRenderer:
    """Return this process's renderer of that key, made if nobody holds it; keep a reference."""
    renderer = _shared.get(key)
    if renderer is None:
        renderer = _shared[key] = make()
    return renderer


def fixed_camera(model: mujoco.MjModel, name: str) -> mujoco.MjvCamera:
    """Return the model's camera of that name."""
    camera = mujoco.MjvCamera()
    camera.type = mujoco.mjtCamera.mjCAMERA_FIXED
    camera.fixedcamid = model.camera(name).id
    return camera
