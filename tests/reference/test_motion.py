"""Motions from masks: known ones are found again, with the drift of the camera; feet that hold; velocities."""

import dataclasses

import jax.numpy as jnp
import mujoco
import numpy as np
import pytest

from nil_jax.envs import Body
from nil_jax.reference.cycle import find_cycle
from nil_jax.reference.motion import evened, fit_motion, steadied, travelled, velocities
from nil_jax.rendering import make_scene, render_masks

TICKS, RATE = 14, 25.0


def swinging(env, ticks, rate):
    """Legs that swing against each other from a wide stance on, the base as the lowest foot has it."""
    phase = 1.2 + 6 * np.arange(ticks) / rate
    coords = np.tile(Body(env).coords(env.default_qpos[None]), (ticks, 1))
    coords[:, -2], coords[:, -1] = 0.4 * np.sin(phase), -0.4 * np.sin(phase)
    return Body(env).qpos(coords)


@pytest.fixture(scope="module")
def swing(tiny_env):
    return swinging(tiny_env, TICKS, RATE)


def drawn(env, qpos, camera, size):
    """Masks by the renderer, each tick by a camera of its own."""
    geom_xpos, geom_xmat, _, _ = Body(env).kinematics(qpos)
    scene, target = make_scene(env.mj_model, env.robot_geom_ids), jnp.zeros((len(qpos), 3))
    parts = jnp.asarray(geom_xpos), jnp.asarray(geom_xmat)
    return np.asarray(render_masks(scene, *parts, camera, target, height=size, width=size))


def repeated(camera, zoom, shift):
    """The camera at every tick, with its drift."""
    count = len(zoom)
    return dataclasses.replace(
        camera,
        position=jnp.tile(camera.position, (count, 1)),
        rotation=jnp.tile(camera.rotation, (count, 1, 1)),
        focal=camera.focal * jnp.exp(jnp.asarray(zoom, jnp.float32)),
        center=camera.center + jnp.asarray(shift, jnp.float32),
    )


def iou(a, b):
    return (a & b).sum((1, 2)) / (a | b).sum((1, 2))


def test_a_known_motion_and_the_drift_of_its_camera_are_found_and_taken_out(tiny_env, tiny_reference, swing):
    zoom, shift = np.linspace(0, 0.15, TICKS), np.linspace(0, 1, TICKS)[:, None] * [0.04, -0.03]
    drifting = repeated(tiny_reference.camera, zoom, shift)
    masks, parts = drawn(tiny_env, swing, drifting, 64), []
    motion = fit_motion(tiny_env, masks, tiny_reference.camera, swing[0], fps=25, progress=parts.append)
    assert np.abs(motion.qpos[:, 7:] - swing[:, 7:]).mean() < 0.06  # rad; left for right would be 0.5
    np.testing.assert_allclose(motion.drift, np.column_stack([zoom, shift]), atol=0.04)
    assert parts == sorted(parts) and parts[-1] == 1.0

    still = drawn(tiny_env, swing, repeated(tiny_reference.camera, 0 * zoom, 0 * shift), 256)
    moved, center = drawn(tiny_env, swing, drifting, 256), np.asarray(tiny_reference.camera.center)
    assert iou(moved, still)[-1] < 0.7
    # With the drift that is known, what is left is the rounding to pixels.
    assert iou(steadied(moved, np.column_stack([zoom, shift]), center), still).min() > 0.96
    assert iou(steadied(moved, motion.drift, center), still).mean() > 0.85
    pictures = np.where(moved[..., None], 0, 255).astype(np.uint8).repeat(3, -1)
    assert (steadied(pictures, -np.column_stack([zoom + 0.2, shift]), center)[:, 0, 0] == 255).all()


def test_poses_do_not_tremble_at_a_higher_rate(tiny_env, tiny_reference):
    ticks, rate, still = 2 * TICKS, 100.0, np.zeros(2 * TICKS)
    swing = swinging(tiny_env, ticks, rate)
    masks = drawn(tiny_env, swing, repeated(tiny_reference.camera, still, np.zeros((ticks, 2))), 64)
    found = fit_motion(tiny_env, masks, tiny_reference.camera, swing[0], fps=rate).qpos
    asked, got = (velocities(tiny_env.mj_model, qpos, 1 / rate)[:, 6:] for qpos in (swing, found))
    assert np.sqrt(np.square(got - asked).mean()) < 0.15 * np.sqrt(np.square(asked).mean())


def test_the_lowest_foot_holds_its_place(tiny_env, swing):
    body = Body(tiny_env)
    qpos = swing.astype(np.float64)
    qpos[1:, 0] = np.cumsum(travelled(body, swing)[:-1])
    model, data, places = tiny_env.mj_model, mujoco.MjData(tiny_env.mj_model), []
    for pose in qpos:
        data.qpos[:] = pose
        mujoco.mj_kinematics(model, data)
        places.append(data.geom_xpos[tiny_env.foot_geom_ids][:, [0, 2]].copy())
    places = np.array(places)
    lowest = (places[1:, :, 1] + places[:-1, :, 1]).argmin(1)
    steps = np.diff(places[..., 0], axis=0)[np.arange(TICKS - 1), lowest]
    np.testing.assert_allclose(steps, 0, atol=1e-5)  # float32
    assert np.ptp(qpos[:, 0]) > 0.05


def test_the_speed_that_poses_ask_for(tiny_reference):
    motion = np.tile(tiny_reference.start_qpos, (len(tiny_reference.frames), 1))
    motion[:, 0] = 3.0 + 0.06 * np.arange(len(motion))
    assert dataclasses.replace(tiny_reference, motion=motion).travel_speed == pytest.approx(0.06 * tiny_reference.fps)
    assert dataclasses.replace(tiny_reference, motion=None).travel_speed is None


def test_velocities_lead_from_tick_to_tick(tiny_env):
    model, dt = tiny_env.mj_model, 0.04
    rate = np.array([0.5, 0.0, 0.1, 0.0, 0.3, 0.0, 1.0, -2.0])
    qpos = [np.array(tiny_env.default_qpos, np.float64)]
    for _ in range(4):
        following = qpos[-1].copy()
        mujoco.mj_integratePos(model, following, rate, dt)
        qpos.append(following)
    np.testing.assert_allclose(velocities(model, np.array(qpos), dt), np.tile(rate, (5, 1)), atol=1e-5)


def test_a_loop_has_no_jump_at_its_seam(tiny_env):
    phase = 2 * np.pi * np.arange(12) / 12
    qpos = np.tile(tiny_env.default_qpos.astype(np.float64), (12, 1))
    qpos[:, 0], qpos[:, 7] = 0.04 * np.arange(12), 0.3 * np.sin(phase)
    found = velocities(tiny_env.mj_model, qpos, 0.04, loop=True)
    np.testing.assert_allclose(found[:, 0], 1.0, atol=1e-5)
    expected = 0.3 * np.sin(2 * np.pi / 12) / 0.04 * np.cos(phase)  # the central difference of a sine
    np.testing.assert_allclose(found[:, 6], expected, atol=1e-5)


@pytest.mark.parametrize("fps", [25, 100])
@pytest.mark.parametrize("loop", [False, True])
@pytest.mark.parametrize("where", [0, 0.5, 1])
def test_a_fifth_of_a_second_that_is_far_off_does_not_count(where, loop, fps):
    ticks, far_off = round(2.4 * fps), fps // 5
    pace = 1 / fps
    steps = pace * (1 + np.sin(np.arange(ticks) * 25 / fps) / 8)
    assert abs(evened(steps, fps, loop=loop) - pace).max() < 0.08 * pace
    first = round(where * (ticks - far_off))
    steps[first : first + far_off] = -1.0
    assert abs(evened(steps, fps, loop=loop) - pace).max() < pace / 8


def walk(env, ticks, stride, drift):
    """Legs that swing with a period of `stride` ticks while the torso leans more and more."""
    phase, coords = 2 * np.pi * np.arange(ticks) / stride, np.tile(Body(env).coords(env.default_qpos[None]), (ticks, 1))
    coords[:, -2], coords[:, -1] = 0.4 * np.sin(phase), -0.4 * np.sin(phase)
    coords[:, 3] = drift * np.arange(ticks) / ticks
    return Body(env).qpos(coords)


def test_a_stride_is_cut_where_the_motion_repeats_and_closed_there(tiny_env):
    body, qpos = Body(tiny_env), walk(tiny_env, 50, 17, drift=0.1)
    qpos[:, 0] = 0.02 * np.arange(50)
    jump = qpos.copy()
    jump[20:23, 7:] += 0.3  # whatever repeats, it is not around here
    cycle = find_cycle(body, jump, RATE, steps_per_second=2 * RATE / 16)  # the rhythm is known but roughly
    assert cycle.ticks == 17 and cycle.seam < 1
    seams = {end + k for end in (cycle.first, cycle.first + 17) for k in range(-2, 3)}
    assert not seams & {20, 21, 22}
    np.testing.assert_allclose(cycle.qpos[:, 0], 0.02 * np.arange(17), atol=1e-6)
    np.testing.assert_allclose(cycle.qpos[0, 1:], qpos[cycle.first, 1:], atol=1e-5)

    def lean(qpos):  # rad, from the last tick of the loop to its first
        first, last = body.coords(qpos)[[0, -1], 3]
        return abs(first - last)

    leaning = walk(tiny_env, 50, 17, drift=1.0)
    closed = find_cycle(body, leaning, RATE, steps_per_second=2 * RATE / 17)
    assert lean(closed.qpos) < 0.001 < 0.2 < lean(leaning[closed.first : closed.first + closed.ticks])


def test_without_a_rhythm_a_cycle_of_any_length_is_found(tiny_env):
    cycle = find_cycle(Body(tiny_env), walk(tiny_env, 50, 17, drift=0.0), RATE, None)
    assert cycle.ticks in (17, 34) and cycle.seam < 0.1


@pytest.mark.parametrize("steps", [None, 2 * RATE / 17])
def test_a_rest_is_no_stride(tiny_env, steps):
    """Two looks at a robot that stands are as alike as can be."""
    moving = walk(tiny_env, 60, 17, drift=0.0)
    moving[:, 7:] += np.random.default_rng(0).normal(0, 0.01, (60, 2))  # as poses that are fitted
    late = np.concatenate([np.tile(moving[:1], (25, 1)), moving])
    assert find_cycle(Body(tiny_env), late, RATE, steps).first >= 25 - 10
    broken = np.tile(tiny_env.default_qpos, (60, 1))  # by a rest that is longer than half of any stride
    broken[:, 7] = 0.02 * np.concatenate([np.arange(16), np.full(28, 16), np.arange(16, 32)])
    with pytest.raises(ValueError, match="cycle: expected a part of the clip that moves and repeats, got none"):
        find_cycle(Body(tiny_env), broken, RATE, 2 * RATE / 40)


def test_a_clip_shorter_than_a_stride_has_no_cycle(tiny_env):
    with pytest.raises(ValueError, match=r"cycle: expected a clip of at least .* leave out --cycle"):
        find_cycle(Body(tiny_env), walk(tiny_env, 20, 17, drift=0.0), RATE, 2 * RATE / 19)
