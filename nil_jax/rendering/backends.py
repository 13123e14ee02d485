"""Two ray casters behind one interface: ours in JAX, and MJX-Warp's.

Both take poses as they come from kinematics and place the camera themselves, so that either goes with any physics.

Axes: N environments, G geoms of the model, H image rows, W image columns.
"""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import mujoco
import numpy as np
from jaxtyping import Array, Bool, Float, UInt8
from mujoco import mjx

from nil_jax.optional import require_warp
from nil_jax.parallel import own_device
from nil_jax.rendering.camera import Camera
from nil_jax.rendering.render import render, render_masks
from nil_jax.rendering.scene import Scene
from nil_jax.rendering.shading import AMBIENT, BRIGHTEST, GLOSS, HEAD, LAMP, LAMP_DIRECTION, SHININESS

SHOWN, HIDDEN = 0, 1  # geom groups in Warp's model
EXPONENT = 128.0  # of a highlight where a material's shininess is 1


@dataclass(frozen=True)
class JaxRenderer:
    """`render` and `render_masks`."""

    scene: Scene
    camera: Camera

    def masks(
        self,
        geom_xpos: Float[Array, "N G 3"],
        geom_xmat: Float[Array, "N G 3 3"],
        target: Float[Array, "N 3"],
        *,
        height: int,
        width: int,
    ) -> Bool[Array, "N H W"]:
        """Which pixels show the robot; arguments as in `render`."""
        return render_masks(self.scene, geom_xpos, geom_xmat, self.camera, target, height=height, width=width)

    def pictures(
        self,
        geom_xpos: Float[Array, "N G 3"],
        geom_xmat: Float[Array, "N G 3 3"],
        target: Float[Array, "N 3"],
        *,
        height: int,
        width: int,
    ) -> UInt8[Array, "N H W 3"]:
        """The robots on white; arguments as in `render`."""
        return render(self.scene, geom_xpos, geom_xmat, self.camera, target, height=height, width=width).rgb


class WarpRenderer:
    """MJX-Warp's ray caster.

    It wants a model and data of its own kind, but reads of the data only where geoms, camera and lamps are: those are
    filled in here. One context is made, and kept, for each number of environments and size of image.

    Args:
      spec: the robot's model, not compiled; left as it is.
      geom_ids: draw only these.
      camera: one for all environments.

    Raises:
      ValueError: Warp is not installed.
    """

    def __init__(self, spec: mujoco.MjSpec, geom_ids: np.ndarray, camera: Camera):
        require_warp("renderer")
        self.camera = camera
        self._mj_model = _with_camera_and_lamps(spec, geom_ids)
        self._mjx_model = mjx.put_model(self._mj_model, device=own_device(), impl="warp")
        self._data = mjx.make_data(self._mj_model, device=own_device(), impl="warp", naconmax=1, njmax=1)
        self._contexts = {}

    def masks(
        self,
        geom_xpos: Float[Array, "N G 3"],
        geom_xmat: Float[Array, "N G 3 3"],
        target: Float[Array, "N 3"],
        *,
        height: int,
        width: int,
    ) -> Bool[Array, "N H W"]:
        """Which pixels show the robot; arguments as in `render`."""
        _, depth = self._cast(geom_xpos, geom_xmat, target, height, width, rgb=False)
        return depth.reshape(-1, height, width) > 0  # 0 where nothing is hit

    def pictures(
        self,
        geom_xpos: Float[Array, "N G 3"],
        geom_xmat: Float[Array, "N G 3 3"],
        target: Float[Array, "N 3"],
        *,
        height: int,
        width: int,
    ) -> UInt8[Array, "N H W 3"]:
        """The robots on white; arguments as in `render`."""
        packed, depth = self._cast(geom_xpos, geom_xmat, target, height, width, rgb=True)
        channels = jnp.stack([(packed >> shift).astype(jnp.uint8) for shift in (16, 8, 0)], axis=-1)
        robot = jnp.minimum(channels, jnp.uint8(round(255 * BRIGHTEST)))
        return jnp.where(depth[..., None] > 0, robot, channels).reshape(-1, height, width, 3)

    def _cast(
        self, geom_xpos: Array, geom_xmat: Array, target: Array, height: int, width: int, *, rgb: bool
    ) -> tuple[Array, Array]:
        """Packed colours [N, H W], empty without `rgb`, and depths [N, H W]."""
        num_envs = len(target)
        context = self._context(num_envs, height, width, rgb)
        lamps = -jnp.asarray(LAMP_DIRECTION)[None, None]
        data = self._data.tree_replace(
            {
                "geom_xpos": geom_xpos,
                "geom_xmat": geom_xmat,
                "cam_xpos": (target + self.camera.position)[:, None],
                "cam_xmat": jnp.broadcast_to(self.camera.rotation, (num_envs, 1, 3, 3)),
                "_impl.light_xpos": jnp.zeros((num_envs, 1, 3)),
                "_impl.light_xdir": jnp.broadcast_to(lamps, (num_envs, 1, 3)),
            }
        )
        data = mjx.refit_bvh(self._mjx_model, data, context)
        packed, depth, _ = mjx.render(self._mjx_model, data, context)
        return packed, depth

    def _context(self, num_envs: int, height: int, width: int, rgb: bool):
        key = num_envs, height, width, rgb
        if key not in self._contexts:
            self._look_through(height, width)
            self._contexts[key] = mjx.create_render_context(
                self._mj_model,
                num_envs,
                devices=sorted({_of_warp(device) for device in jax.local_devices()}),  # Warp's default is one GPU
                cam_res=(width, height),
                render_rgb=rgb,
                render_depth=True,
                render_seg=False,
                use_textures=False,
                enabled_geom_groups=[SHOWN],
                background_color=(1.0, 1.0, 1.0, 1.0),
            )
        return self._contexts[key].pytree()

    def _look_through(self, height: int, width: int) -> None:
        """Sets the model's lens, in units of the image's height; a context computes its rays from it once."""
        focal, (x, y) = float(self.camera.focal), np.asarray(self.camera.center)
        aspect = width / height
        self._mj_model.cam_sensorsize[0] = aspect, 1.0
        self._mj_model.cam_intrinsic[0] = focal, focal, (0.5 - x) * aspect, 0.5 - y


def _of_warp(device: Any) -> str:
    """Warp's name of a device; all of a CPU are one to it."""
    return "cpu" if device.platform == "cpu" else f"cuda:{device.local_hardware_id}"


def _with_camera_and_lamps(spec: mujoco.MjSpec, geom_ids: np.ndarray) -> mujoco.MjModel:
    """The robot with a camera, the lamps of `shading`, and only the wanted geoms shown."""
    spec = spec.copy()
    for element in [*spec.cameras, *spec.lights]:
        spec.delete(element)
    spec.worldbody.add_camera(name="reference")
    lamp = {"ambient": [0.0] * 3, "diffuse": [LAMP] * 3, "specular": [0.0] * 3}
    spec.worldbody.add_light(type=mujoco.mjtLightType.mjLIGHT_DIRECTIONAL, **lamp)
    head = spec.visual.headlight
    head.ambient, head.diffuse, head.specular = [AMBIENT] * 3, [HEAD] * 3, [GLOSS] * 3
    plain = spec.add_material(name="nil_jax_plain", rgba=[0.5, 0.5, 0.5, 1.0])  # the colour of a geom that has none
    for geom in spec.geoms:
        geom.material = geom.material or plain.name
    for material in spec.materials:
        material.specular, material.shininess, material.emission = 1.0, SHININESS / EXPONENT, 0.0
    spec.visual.map.zfar = 0.0  # no limit
    mj_model = spec.compile()
    mj_model.geom_group[:] = HIDDEN
    mj_model.geom_group[geom_ids] = SHOWN
    return mj_model


Renderer = JaxRenderer | WarpRenderer
