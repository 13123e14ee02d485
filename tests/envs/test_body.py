"""Poses as coordinates, their mirror images, and how far motions are apart."""

import os

import brax
import numpy as np
import pytest

from nil_jax import envs
from nil_jax.envs import Body
from nil_jax.envs.body import CLEARANCE, JOINTS, mirror_joints
from nil_jax.envs.registry import EMBEDDED

ROUNDING = 1e-12  # float64 sums of a few dozen values
POSE_ROUNDING = 1e-5  # robot sizes, or rad; kinematics in float32
BRAX = os.path.join(os.path.dirname(brax.__file__), "envs", "assets", "{}.xml")


@pytest.fixture(scope="module")
def h1():
    return Body(envs.make("unitree_h1"))


def poses(body, count, seed):
    rng = np.random.default_rng(seed)
    coords = body.coords(np.tile(body.env.default_qpos, (count, 1)))
    coords[:, :JOINTS] += rng.normal(scale=0.1, size=(count, JOINTS))
    coords[:, JOINTS:] += rng.uniform(-0.2, 0.2, coords[:, JOINTS:].shape)
    return body.coords(body.qpos(coords))  # within the joints' limits


@pytest.mark.parametrize("robot", [*EMBEDDED, BRAX.format("humanoid")])
def test_a_pose_and_its_mirror_image_are_no_distance_apart(robot):
    body = Body(envs.make(robot))
    coords = poses(body, 3, 0)
    points, image = (body.keypoints(body.qpos(c)) for c in (coords, body.mirrored(coords)))
    np.testing.assert_allclose(points[:, body.keypoint_twins] * [1, -1, 1], image, atol=POSE_ROUNDING)
    np.testing.assert_allclose(body.distance(points[:, None], image[:, None]), 0.0, atol=POSE_ROUNDING)
    assert np.sqrt(np.square(points - image).sum(-1).mean()) > 0.01


def test_names_agree_with_the_sides_that_geometry_finds(h1):
    partner, sign = mirror_joints(h1.env.mj_model)
    names = h1.env.joint_names
    for joint, twin in enumerate(partner):
        swapped = names[joint].replace("left", "RIGHT").replace("right", "left").replace("RIGHT", "right")
        assert names[twin] == swapped
        assert sign[joint] == (-1 if any(word in names[joint] for word in ("roll", "yaw", "torso")) else 1)


def test_the_true_distance_is_the_mean_square_over_ticks_and_keypoints(h1):
    points = np.random.default_rng(3).normal(size=(2, 4, len(h1.keypoint_twins), 3))
    other = points + np.array([0.003, 0.0, 0.004])
    np.testing.assert_allclose(h1.distance(other, points), 0.005, atol=ROUNDING)


def test_coordinates_lead_to_a_pose_and_back_with_the_feet_at_their_clearance(h1):
    coords = h1.coords(np.tile(h1.env.start_qpos, (2, 1)))
    coords[1, CLEARANCE] = 0.05
    qpos = h1.qpos(coords)
    np.testing.assert_allclose(h1.coords(qpos), coords, atol=POSE_ROUNDING)
    assert qpos[1, 2] - qpos[0, 2] == pytest.approx(0.05, abs=POSE_ROUNDING)
