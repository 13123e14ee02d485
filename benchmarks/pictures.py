"""Pictures of poses: by our renderer, and by MuJoCo's own as if another hand had drawn them.

Axes: N poses, T ticks, H W image.
"""

from dataclasses import dataclass, field

import jax
import jax.numpy as jnp
import mujoco
import numpy as np
from scipy import ndimage

from nil_jax.envs import Body, mjcf
from nil_jax.rendering import Camera, make_scene, render

SCALE, OFFSET, ELEVATION = 0.03, 0.015, 2.0  # error of the other camera: ratio, image heights, degrees
OVERSAMPLING = 4  # of MuJoCo's pictures, a side
CHUNK = 512  # poses drawn in one call, so that it is compiled once
STRANGE_COLOURS = (0.1, 0.7)  # of the robot in the other domain, RGB uniform
PARTS = ("torso", "hip", "knee", "ankle", "arm")
PART_NAMES = {
    "ankle": ("ankle", "leg_left_5", "leg_right_5", "leg_left_6", "leg_right_6"),
    "knee": ("knee", "calf", "leg_left_4", "leg_right_4"),
    "hip": ("hip", "thigh", "leg_"),
    "arm": ("shoulder", "elbow", "arm_", "gripper"),
}


@dataclass(frozen=True)
class Pictures:
    """Windows of pictures."""

    masks: np.ndarray  # [.., T, H, W] bool
    rgb: np.ndarray  # [.., T, H, W, 3] uint8, on white
    depth: np.ndarray  # [.., T, H, W] float16: distance to the mask's outline, px, positive inside
    parts: np.ndarray  # [.., T, H, W] int8: index into PARTS with its side, -1 outside: an oracle's knowledge

    def __getitem__(self, index) -> "Pictures":
        return jax.tree.map(lambda leaf: leaf[index], self)


jax.tree_util.register_dataclass(Pictures, ["masks", "rgb", "depth", "parts"], [])


def part_of_geom(body: Body) -> np.ndarray:
    """For each geom of the model and, last, for the background: the part of the robot that it belongs to."""
    model, found = body.env.mj_model, []
    for geom in range(model.ngeom):
        name = model.body(model.geom_bodyid[geom]).name
        part = next((part for part, keys in PART_NAMES.items() if any(key in name for key in keys)), "torso")
        right = "right" in name or name.startswith(("FR", "RR"))
        found.append(PARTS.index(part) + (len(PARTS) if right and part != "torso" else 0))
    return np.array([*found, -1], np.int8)


@dataclass
class Ours:
    """Our batched renderer, which also draws the agents of a training."""

    body: Body
    camera: Camera
    size: int = 64
    scene: object = field(init=False)

    def __post_init__(self):
        self.scene = make_scene(self.body.env.mj_model, self.body.env.robot_geom_ids)

    def __call__(self, qpos: np.ndarray) -> Pictures:
        """Of poses [.., T, nq], the camera following each base's x."""
        flat = qpos.reshape(-1, qpos.shape[-1])
        geom_xpos, geom_xmat, _, _ = self.body.kinematics(flat)
        target, drawn = (flat[:, :3] * [1, 0, 0]).astype(np.float32), []
        for start in range(0, len(flat), CHUNK):
            rows = np.minimum(np.arange(start, start + CHUNK), len(flat) - 1)
            poses = [jnp.asarray(leaf[rows]) for leaf in (geom_xpos, geom_xmat)]
            size = {"height": self.size, "width": self.size}
            frames = render(self.scene, *poses, self.camera, jnp.asarray(target[rows]), **size)
            drawn.append((np.asarray(frames.rgb), np.asarray(frames.segmentation)))
        rgb, geoms = (np.concatenate(leaves)[: len(flat)] for leaves in zip(*drawn, strict=True))
        return _pictures(rgb, geoms, part_of_geom(self.body), qpos.shape[:-1])


@dataclass
class Theirs:
    """MuJoCo's OpenGL renderer with other colours, another lamp and a slightly wrong camera."""

    body: Body
    camera: Camera
    size: int = 64
    seed: int = 0

    def __call__(self, qpos: np.ndarray) -> Pictures:
        """Of poses [.., T, nq].

        Raises:
            Exception: Whatever the machine's OpenGL libraries say.
        """
        flat, rng = qpos.reshape(-1, qpos.shape[-1]), np.random.default_rng(self.seed)
        model, eye, options = self._strange(rng)
        data, side = mujoco.MjData(model), self.size * OVERSAMPLING
        drawn, geoms = [], []
        with mujoco.Renderer(model, side, side) as renderer:
            for pose in flat:
                data.qpos[:] = pose
                mujoco.mj_forward(model, data)
                look = mujoco.MjvCamera()
                look.lookat, look.distance, look.azimuth = [pose[0] + eye["x"], 0, eye["z"]], eye["distance"], 90
                look.elevation = eye["elevation"]
                renderer.disable_segmentation_rendering()
                renderer.update_scene(data, look, options)
                drawn.append(renderer.render().copy())
                renderer.enable_segmentation_rendering()
                renderer.update_scene(data, look, options)
                geoms.append(renderer.render().copy())
        ids = np.array(geoms)
        ids = np.where(ids[..., 1] == mujoco.mjtObj.mjOBJ_GEOM, ids[..., 0], -1)
        rgb = np.where(ids[..., None] >= 0, np.array(drawn), 255)
        shape = (len(flat), self.size, OVERSAMPLING, self.size, OVERSAMPLING)
        rgb = rgb.reshape(*shape, 3).mean((2, 4)).astype(np.uint8)
        ids = ids.reshape(shape)[:, :, OVERSAMPLING // 2, :, OVERSAMPLING // 2]
        return _pictures(rgb, ids, part_of_geom(self.body), qpos.shape[:-1])

    def _strange(self, rng: np.random.Generator) -> tuple[mujoco.MjModel, dict, mujoco.MjvOption]:
        model = self.body.env.mj_spec.copy().compile()
        ids, signs = self.body.env.robot_geom_ids, rng.choice([-1.0, 1.0], 4)
        model.geom_matid[ids] = -1
        model.geom_rgba[ids, :3] = rng.uniform(*STRANGE_COLOURS, (len(np.unique(model.geom_bodyid)), 3))[
            np.searchsorted(np.unique(model.geom_bodyid), model.geom_bodyid[ids])
        ]
        model.geom_rgba[ids, 3] = 1.0
        model.vis.headlight.ambient[:], model.vis.headlight.diffuse[:] = 0.5, 0.2
        model.vis.global_.offwidth = model.vis.global_.offheight = self.size * OVERSAMPLING
        position, focal = np.asarray(self.camera.position), float(self.camera.focal)
        model.vis.global_.fovy = np.degrees(2 * np.arctan(0.5 / (focal * (1 + signs[0] * SCALE))))
        model.geom_group[model.geom_bodyid == 0] = mjcf.HIDDEN_GROUP  # the floor
        options = mujoco.MjvOption()
        options.geomgroup[:], options.sitegroup[:] = 0, 0
        options.geomgroup[mjcf.DRAWN_GROUP] = 1
        reach = -position[1] / focal  # m that the image spans at the robot
        shift = signs[1:3] * np.sqrt(0.5) * OFFSET * reach
        eye = {
            "x": shift[0],
            "z": position[2] + shift[1],
            "distance": -position[1],
            "elevation": signs[3] * ELEVATION,
        }
        return model, eye, options


def _pictures(rgb: np.ndarray, geoms: np.ndarray, parts: np.ndarray, batch: tuple[int, ...]) -> Pictures:
    """Bring pictures [N, H, W] and the geoms they show into windows."""
    shape = (*batch, *geoms.shape[1:])
    masks = geoms >= 0
    return Pictures(*(x.reshape(shape + x.shape[3:]) for x in (masks, rgb, depth_of(masks), parts[geoms])))


def depth_of(masks: np.ndarray) -> np.ndarray:
    """Distance [N, H, W] to the outlines of masks, px, positive inside; an empty mask, or a full one, is far away."""
    far, edt = sum(masks.shape[1:]), ndimage.distance_transform_edt
    depth = [edt(mask) - edt(~mask) if mask.any() and not mask.all() else far * (2 * mask - 1.0) for mask in masks]
    return np.array(depth, np.float16)
