"""Simpler visual meshes for LIBERO scenes, for rendering on a CPU."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import mujoco
import numpy as np
from jaxtyping import Float, Int

_VISUAL_GROUP = 1
_KEEP_BELOW_FACES = 200
_CELLS = {"gripper": 0.004, "robot": 0.015, "mount": 0.03}
_OBJECT_CELL = 0.006
_FURNITURE_EXTENT = 0.6
_FURNITURE_CELLS = 80


@contextmanager
def simplified_meshes(model: Any) -> Iterator[None]:
    """Within the block the model's visual meshes have about a tenth of their faces.

    For the time of an upload to the graphics context; afterwards the model is as before, bit for
    bit. Vertices are merged within cells of a few millimetres (gripper 4, objects 6, robot 15, its
    pedestal 30 mm, furniture 1/80 of its extent). Collision shapes and physics are not touched.
    """
    arrays = ("mesh_facenum", "mesh_face", "mesh_facenormal", "mesh_facetexcoord")
    before = {name: getattr(model, name).copy() for name in arrays}
    geoms = (model.geom_type == int(mujoco.mjtGeom.mjGEOM_MESH)) & (  # pyright: ignore[reportAttributeAccessIssue]
        model.geom_group == _VISUAL_GROUP
    )
    for mesh in set(model.geom_dataid[geoms].tolist()):
        _simplify(model, mesh)
    try:
        yield
    finally:
        for name, values in before.items():
            getattr(model, name)[:] = values


def _simplify(model: Any, mesh: int) -> None:
    """Rewrite one mesh's faces in place, fewer."""
    first, count = model.mesh_faceadr[mesh], model.mesh_facenum[mesh]
    if count < _KEEP_BELOW_FACES:
        return
    vertices = slice(model.mesh_vertadr[mesh], model.mesh_vertadr[mesh] + model.mesh_vertnum[mesh])
    positions = model.mesh_vert[vertices].astype(np.float64)
    prefix = model.mesh(mesh).name.split("0")[0].split("_")[0]
    cell = _CELLS.get(prefix, _OBJECT_CELL)
    extent = float(np.ptp(positions, axis=0).max())
    if extent > _FURNITURE_EXTENT:
        cell = max(cell, extent / _FURNITURE_CELLS)
    kept, faces = cluster_vertices(positions, model.mesh_face[first : first + count], cell)
    if not 0 < len(kept) < count:
        return
    new = slice(first, first + len(kept))
    model.mesh_face[new] = faces
    model.mesh_facenormal[new] = model.mesh_facenormal[first + kept]
    model.mesh_facetexcoord[new] = model.mesh_facetexcoord[first + kept]
    model.mesh_facenum[mesh] = len(kept)


def cluster_vertices(
    vertices: Float[np.ndarray, "v 3"], faces: Int[np.ndarray, "f 3"], cell: float
) -> tuple[Int[np.ndarray, " k"], Int[np.ndarray, "k 3"]]:
    """Return which faces survive merging all vertices of a grid cell, and their new vertices.

    A cell's vertices become the one nearest to their mean; faces that collapse or coincide with
    another of the same orientation go.
    """
    grid = np.floor((vertices - vertices.min(axis=0)) / cell).astype(np.int64)
    _, cluster = np.unique(grid, axis=0, return_inverse=True)
    cluster = cluster.ravel()
    sizes = np.bincount(cluster)
    means = np.stack([np.bincount(cluster, v) / sizes for v in vertices.T], axis=1)
    distance = ((vertices - means[cluster]) ** 2).sum(axis=1)
    order = np.lexsort((distance, cluster))
    nearest = order[np.r_[0, np.cumsum(sizes)[:-1]]]

    corners = cluster[faces]
    distinct = (corners != np.roll(corners, 1, axis=1)).all(axis=1)
    kept = np.flatnonzero(distinct)
    rotation = corners[kept].argmin(axis=1)[:, None] + np.arange(3)
    canonical = np.take_along_axis(corners[kept], rotation % 3, axis=1)
    _, unique = np.unique(canonical, axis=0, return_index=True)
    kept = kept[np.sort(unique)]
    return kept, nearest[corners[kept]]
