"""What MuJoCo's own ray caster sees: the oracle of all pictures.

`mj_ray` pixel by pixel, because `mj_multiRay` skips a drawn geom when the ray misses the box around the body's
collision geoms, and has one origin.
"""

import mujoco
import numpy as np

from nil_jax.rendering import pixel_rays

GROUPS = np.array([1, 1, 1, 0, 0, 0], np.uint8)  # those that are drawn by default


def cast(model, data, camera, target, size):
    """Geom ids (-1: none) and depth along the optical axis (inf), [size, size] each, through the pixel centres."""
    origins, directions = (np.asarray(part, np.float64).reshape(-1, 3) for part in pixel_rays(camera, size, size))
    ids, depth, hit = np.full(size**2, -1), np.full(size**2, np.inf), np.zeros(1, np.int32)
    for i, (origin, ray) in enumerate(zip(origins + target, directions, strict=True)):
        length = np.linalg.norm(ray)
        distance = mujoco.mj_ray(model, data, origin, ray / length, GROUPS, 1, -1, hit)
        if distance >= 0:
            ids[i], depth[i] = hit[0], distance / length
    return ids.reshape(size, size), depth.reshape(size, size)
