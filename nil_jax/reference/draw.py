"""A reference drawn from a known motion, by the renderer that also draws the agent."""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from nil_jax.envs import Body
from nil_jax.reference.align import nominal_camera
from nil_jax.reference.prepare import Reference
from nil_jax.rendering import Camera, JaxRenderer, make_scene

FRAME, MASK = 224, 64  # px


def draw_reference(
    env: Any,
    motion: Float[np.ndarray, "T nq"],
    fps: float,
    *,
    loop: bool,
    camera: Camera | None = None,
    provenance: Mapping[str, Any] | None = None,
) -> Reference:
    """What a follow camera sees of a motion.

    Args:
        env: The robot.
        motion: Its poses.
        fps: Poses per second, Hz.
        loop: The first pose follows the last.
        camera: By default the one that a clip of this robot would be expected to have.
        provenance: Where the motion comes from.
    """
    camera = camera or nominal_camera(env.mj_model, env.start_qpos, env.robot_geom_ids)
    renderer = JaxRenderer(make_scene(env.mj_model, env.robot_geom_ids), camera)
    motion = np.asarray(motion, np.float32)
    geom_xpos, geom_xmat = (jnp.asarray(leaf) for leaf in Body(env).kinematics(motion)[:2])
    target = jnp.asarray(motion[:, :3] * [1, 0, 0], jnp.float32)
    return Reference(
        frames=np.asarray(renderer.pictures(geom_xpos, geom_xmat, target, height=FRAME, width=FRAME)),
        masks=np.asarray(renderer.masks(geom_xpos, geom_xmat, target, height=MASK, width=MASK)),
        fps=fps,
        camera=camera,
        start_qpos=motion[0],
        loop=loop,
        provenance={"robot": env.spec.name, "fingerprint": env.fingerprint, **(provenance or {})},
        motion=motion,
    )
