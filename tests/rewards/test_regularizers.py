"""Regularisers against NumPy loops and numbers worked out by hand; similarities of embeddings likewise."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nil_jax.rewards import (
    action_rate,
    cosine_similarity,
    foot_slip,
    l2_similarity,
    tilt,
    torque,
    velocity,
)

pytestmark = pytest.mark.usefixtures("strict_promotion")

ROUNDING = 2e-6  # float32 means of a dozen values, and exp, against float64
N, J, F = 7, 5, 2


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def f32(x):
    return jnp.asarray(x, jnp.float32)


def test_torque_equals_a_numpy_loop(rng):
    tau, limit = rng.normal(size=(N, J)) * 30, rng.uniform(20, 60, size=(1, J))
    expected = [-sum(min(abs(tau[n, j]) / limit[0, j], 1) ** 2 for j in range(J)) / J for n in range(N)]
    np.testing.assert_allclose(torque(f32(tau), f32(limit)), expected, atol=ROUNDING)


def test_action_rate_equals_a_numpy_loop(rng):
    now, before = rng.uniform(-1, 1, size=(2, N, J))
    expected = [-sum((now[n, j] - before[n, j]) ** 2 for j in range(J)) / J / 4 for n in range(N)]
    np.testing.assert_allclose(action_rate(f32(now), f32(before)), expected, atol=ROUNDING)


def test_velocity_equals_a_numpy_loop(rng):
    qd = rng.normal(size=(N, J)) * 8
    expected = [-(1 - math.exp(-sum((qd[n, j] / 6.0) ** 2 for j in range(J)) / J)) for n in range(N)]
    np.testing.assert_allclose(velocity(f32(qd), 6.0), expected, atol=ROUNDING)


def test_foot_slip_equals_a_numpy_loop_and_sees_only_horizontal_motion_in_contact(rng):
    v, contact = rng.normal(size=(N, F, 3)), rng.random((N, F)) < 0.5
    slide = [sum(math.hypot(v[n, f, 0], v[n, f, 1]) for f in range(F) if contact[n, f]) for n in range(N)]
    expected = [-(1 - math.exp(-s / 0.4)) for s in slide]
    np.testing.assert_allclose(foot_slip(f32(v), jnp.asarray(contact), 0.4), expected, atol=ROUNDING)
    np.testing.assert_allclose(foot_slip(f32(v[..., :2]), jnp.asarray(contact), 0.4), expected, atol=ROUNDING)


def test_tilt_by_hand():
    def gravity(angle, heading=0.7):
        down = math.sin(angle)
        return f32([down * math.cos(heading), down * math.sin(heading), -math.cos(angle)])

    assert tilt(gravity(0.0)) == 0.0
    np.testing.assert_allclose(tilt(gravity(math.pi / 3)), -0.5, atol=ROUNDING)
    np.testing.assert_allclose(tilt(gravity(math.pi / 3), math.pi), -0.25, atol=ROUNDING)
    np.testing.assert_allclose(tilt(gravity(1.0, heading=2.0)), tilt(gravity(1.0)), atol=ROUNDING)
    assert tilt(gravity(math.pi)) == -1.0


@pytest.mark.parametrize("size", [0.0, 1.0, 1e3, 1e8], ids=str)
def test_every_regulariser_stays_in_its_range_and_is_zero_at_rest(rng, size):
    x = f32(rng.normal(size=(N, J)) * size)
    v = f32(rng.normal(size=(N, F, 3)) * size)
    gravity = f32(rng.normal(size=(N, 3)))
    gravity = gravity / jnp.linalg.norm(gravity, axis=-1, keepdims=True)
    values = [
        torque(x, f32(np.full((1, J), 40.0))),
        action_rate(x, -x),
        velocity(x),
        foot_slip(v, jnp.ones((N, F), bool)),
        tilt(gravity if size else f32(np.tile([0, 0, -1], (N, 1)))),
    ]
    for value in values:
        assert value.shape == (N,) and value.dtype == jnp.float32
        assert (np.asarray(value) <= 0).all() and (np.asarray(value) >= -1).all()
        if size == 0:
            assert (np.asarray(value) == 0).all()


def test_gradients_at_rest_are_finite():
    zeros, contact = jnp.zeros((F, 3)), jnp.ones((F,), bool)
    assert np.isfinite(jax.grad(lambda v: foot_slip(v, contact))(zeros)).all()
    z = jnp.zeros(4)
    for similarity in (cosine_similarity, l2_similarity):
        assert np.isfinite(jax.grad(lambda z: similarity(z, jnp.ones(4)))(z)).all()  # noqa: B023
        assert np.isfinite(jax.grad(lambda z: similarity(z, jnp.zeros(4)))(z)).all()  # noqa: B023


def test_similarities_equal_a_numpy_loop_and_stay_in_range(rng):
    a, b = rng.normal(size=(2, N, J))
    cosine = [(1 + sum(a[n] * b[n]) / math.sqrt(sum(a[n] ** 2)) / math.sqrt(sum(b[n] ** 2))) / 2 for n in range(N)]
    l2 = [math.exp(-math.sqrt(sum((a[n] - b[n]) ** 2)) / 3.0) for n in range(N)]
    np.testing.assert_allclose(cosine_similarity(f32(a), f32(b)), cosine, atol=ROUNDING)
    np.testing.assert_allclose(l2_similarity(f32(a), f32(b), 3.0), l2, atol=ROUNDING)
    np.testing.assert_allclose(cosine_similarity(f32(a), f32(a)), 1.0, atol=ROUNDING)
    np.testing.assert_allclose(cosine_similarity(f32(a), f32(-a)), 0.0, atol=ROUNDING)
    assert (np.asarray(l2_similarity(f32(a), f32(a))) == 1).all()
    assert (np.asarray(cosine_similarity(f32(a), f32(a))) <= 1).all()
