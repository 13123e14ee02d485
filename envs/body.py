"""A robot as a body in motion: poses that can be added and mirrored, keypoints, and how far two motions are apart.

A pose is one row of coordinates, so that poses can be added, scaled and blended: (y, clearance, three components of the
base's rotation vector, joints). The clearance is the height of the lowest point of the feet above the floor, m; the
base's height follows from it. x is left out: the camera follows it.

Axes: M motions, T ticks, N poses, D coordinates, J joints, K keypoints, E ends of limbs.
"""

import mujoco
import numpy as np
from jaxtyping import Array, Float, Int
from scipy.spatial.transform import Rotation

from nil_jax.envs.robot import RobotEnv

Y, CLEARANCE, ROTATION, JOINTS = 0, 1, slice(2, 5), 5  # of the coordinates; joints from JOINTS on
SAME_PLACE = 0.01  # m


class Body:
    """Which side of a robot mirrors which, and where its keypoints are.

    Keypoints are the frames of the bodies that joints move, and both ends of the last body of each limb.

    Args:
        env: The robot.

    Attributes:
        size: Of the robot in its default pose, m: the longer of its height and its length.
        keypoint_twins: For each keypoint the one on the other side (itself, in the middle), [K].
    """

    def __init__(self, env: RobotEnv):
        self.env, model = env, env.mj_model
        partner, sign = mirror_joints(model)
        self._mirror_order = np.concatenate([np.arange(JOINTS), JOINTS + partner])
        # Rotation vectors are axial: a mirror in y keeps the turn about y and reverses the others.
        self._mirror_sign = np.concatenate([[-1.0, 1.0, -1.0, 1.0, -1.0], sign])
        moved = model.jnt_bodyid[1:]
        self._bodies = np.unique(np.append(moved, env.base_body_id))
        of_body = {int(body): int(moved[partner[joint]]) for joint, body in enumerate(moved)}
        labels = self._bodies.tolist()
        twins = [labels.index(of_body.get(body, body)) for body in labels]
        data = _default_pose(env)
        limb_ends, owner = _limb_ends(env, data, self._bodies)
        self._point_bodies = np.concatenate([self._bodies, np.repeat(self._bodies[owner], 2)])
        self._offsets = np.concatenate([np.zeros((len(labels), 3), np.float32), limb_ends.reshape(-1, 3)])
        ends = [len(labels) + 2 * owner.index(twins[index]) + end for index in owner for end in (0, 1)]
        self.keypoint_twins: Int[np.ndarray, " K"] = np.array(twins + ends)
        corners = _corners(model, data, env.robot_geom_ids)
        self.size = float(max(corners[:, 2].max(), np.ptp(corners[:, 0])))

    def mirrored(self, coords: Float[np.ndarray, "*n D"]) -> Float[np.ndarray, "*n D"]:
        """Coordinates of the left/right mirror image."""
        return coords[..., self._mirror_order] * self._mirror_sign

    def qpos(self, coords: Float[np.ndarray, "*n D"]) -> Float[np.ndarray, "*n nq"]:
        """MuJoCo's coordinates: the base at x = 0, the feet at their clearance, joints within their limits."""
        flat = coords.reshape(-1, coords.shape[-1])
        low, high = self.env.joint_range.T
        quat = np.roll(Rotation.from_rotvec(flat[:, ROTATION]).as_quat(), 1, axis=-1)
        base = np.stack([0 * flat[:, Y], flat[:, Y], np.full(len(flat), self.env.standing_height)], axis=-1)
        qpos = np.concatenate([base, quat, np.clip(flat[:, JOINTS:], low, high)], axis=-1).astype(np.float32)
        qpos[:, 2] += np.maximum(flat[:, CLEARANCE], 0) - self.kinematics(qpos)[2]
        return qpos.reshape(*coords.shape[:-1], -1)

    def coords(self, qpos: Float[np.ndarray, "*n nq"]) -> Float[np.ndarray, "*n D"]:
        """The inverse of `qpos`, but for x."""
        flat = np.asarray(qpos, np.float64).reshape(-1, qpos.shape[-1])
        turn = Rotation.from_quat(np.roll(flat[:, 3:7], -1, axis=-1)).as_rotvec()
        clearance = self.kinematics(flat)[2]
        coords = np.concatenate([flat[:, 1:2], clearance[:, None], turn, flat[:, 7:]], axis=-1)
        return coords.reshape(*qpos.shape[:-1], -1)

    def kinematics(self, qpos: Float[np.ndarray, "N nq"]) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Positions [N, G, 3] and rotations [N, G, 3, 3] of the geoms, height of the feet [N], keypoints [N, K, 3]; m.

        All in the world frame, by the C engine, which needs no compilation.
        """
        model, data = self.env.mj_model, mujoco.MjData(self.env.mj_model)
        geom_xpos, xpos = (np.empty((len(qpos), n, 3), np.float32) for n in (model.ngeom, model.nbody))
        geom_xmat, xmat = (np.empty((len(qpos), n, 3, 3), np.float32) for n in (model.ngeom, model.nbody))
        for i, pose in enumerate(qpos):
            data.qpos[:] = pose
            mujoco.mj_kinematics(model, data)
            geom_xpos[i], geom_xmat[i] = data.geom_xpos, data.geom_xmat.reshape(-1, 3, 3)
            xpos[i], xmat[i] = data.xpos, data.xmat.reshape(-1, 3, 3)
        return geom_xpos, geom_xmat, self.env.lowest_point(geom_xpos, geom_xmat), self.points_of(xpos, xmat)

    def points_of(
        self, xpos: Float[Array | np.ndarray, "*n b 3"], xmat: Float[Array | np.ndarray, "*n b 3 3"]
    ) -> Float[Array | np.ndarray, "*n K 3"]:
        """Keypoints in the world frame, m, from positions and rotations of the bodies; may be jitted."""
        turned = (xmat[..., self._point_bodies, :, :] * self._offsets[:, None]).sum(-1)
        return xpos[..., self._point_bodies, :] + turned

    def keypoints(self, qpos: Float[np.ndarray, "*n nq"]) -> Float[np.ndarray, "*n K 3"]:
        """Keypoints as the camera sees them, which follows the base's x, in robot sizes."""
        flat = qpos.reshape(-1, qpos.shape[-1])
        points = (self.kinematics(flat)[3] - flat[:, None, :3] * [1, 0, 0]) / self.size
        return points.reshape(*qpos.shape[:-1], *points.shape[1:])

    def distance(
        self, points: Float[np.ndarray, "*#n T K 3"], ref_points: Float[np.ndarray, "*#n T K 3"]
    ) -> Float[np.ndarray, "..."]:
        """How far motions are apart, in robot sizes.

            d = min over {motion, its left/right mirror} of sqrt(mean over T and K of |p - p_ref|^2)

        The mirror exchanges left and right and reverses y; it is chosen once a motion. A silhouette cannot tell them.

        Args:
            points: Keypoints of motions.
            ref_points: Of those that they are compared with.
        """
        images = points, points[..., self.keypoint_twins, :] * [1, -1, 1]
        return np.min([np.sqrt(np.square(p - ref_points).sum(-1).mean((-2, -1))) for p in images], axis=0)


def mirror_joints(mj_model: mujoco.MjModel) -> tuple[Int[np.ndarray, " J"], Float[np.ndarray, " J"]]:
    """For each joint (in the order of `qpos[7:]`) the one on the other side, and the sign of its mirrored angle.

    Sides are read off the model's zero pose: a partner's anchor is mirrored at the plane y = 0 of the base, to a
    centimetre, and its axis is parallel to the mirrored one. Where there is none, a joint is its own partner.
    """
    data = mujoco.MjData(mj_model)
    mujoco.mj_kinematics(mj_model, data)
    anchors, axes = data.xanchor[1:] - data.qpos[:3], data.xaxis[1:]
    alike = (axes * [-1, 1, -1]) @ axes.T  # an axis is a pseudovector: so it is mirrored
    gap = np.linalg.norm(anchors[:, None] * [1, -1, 1] - anchors[None], axis=-1)
    gap += np.where(np.abs(alike) > 0.9, 0.0, 1.0)
    own = np.arange(len(gap))
    partner = np.where(gap.min(1) < SAME_PLACE, gap.argmin(1), own) if len(gap) else own
    return partner, np.where(alike[own, partner] < 0, -1.0, 1.0)


def _limb_ends(env: RobotEnv, data: mujoco.MjData, bodies: np.ndarray) -> tuple[Float[np.ndarray, "E 2 3"], list[int]]:
    """For each limb's last body the middles of the far faces of its box, in its frame, and its index in `bodies`."""
    model, ends, owners = env.mj_model, [], []
    moving = {int(body) for body in bodies}
    owner_of = np.arange(model.nbody)
    for body in range(1, model.nbody):  # parents come first
        if body not in moving:
            owner_of[body] = owner_of[model.body_parentid[body]]
    parents = {int(owner_of[model.body_parentid[body]]) for body in bodies}
    geom_owner = owner_of[model.geom_bodyid[env.robot_geom_ids]]
    for index, body in enumerate(bodies):
        geoms = env.robot_geom_ids[geom_owner == body]
        if int(body) in parents or not len(geoms):
            continue
        corners = (_corners(model, data, geoms) - data.xpos[body]) @ data.xmat[body].reshape(3, 3)
        low, high = corners.min(0), corners.max(0)
        longest = np.argmax(high - low)
        pair = np.tile((low + high) / 2, (2, 1))
        pair[:, longest] = low[longest], high[longest]
        ends.append(pair)
        owners.append(index)
    return np.array(ends, np.float32).reshape(-1, 2, 3), owners


def _default_pose(env: RobotEnv) -> mujoco.MjData:
    data = mujoco.MjData(env.mj_model)
    data.qpos[:] = env.default_qpos
    mujoco.mj_kinematics(env.mj_model, data)
    return data


def _corners(model: mujoco.MjModel, data: mujoco.MjData, geoms: np.ndarray) -> Float[np.ndarray, "c 3"]:
    """Corners of the boxes of geoms, world frame, m."""
    signs = np.array(np.meshgrid(*[(-1, 1)] * 3)).reshape(3, 8).T
    centre, half = np.split(model.geom_aabb[geoms], 2, axis=1)
    local = centre[:, None] + signs * half[:, None]
    rotation = data.geom_xmat[geoms].reshape(-1, 3, 3)
    return (data.geom_xpos[geoms][:, None] + np.einsum("gij,gkj->gki", rotation, local)).reshape(-1, 3)
