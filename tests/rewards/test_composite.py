"""The weighted total: bounds, signs, ticks, what is logged and what is refused."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nil_jax.rewards import (
    IMAGE_TERMS,
    MOTION_TERMS,
    OWN_TERMS,
    REGULARIZER_TERMS,
    RewardConfig,
    combine,
    mask_iou,
    mask_terms,
    motion_terms,
    outline_similarity,
    regularizer_terms,
    soft_mask_iou,
    video_term,
)
from nil_jax.rewards.composite import TERMS

pytestmark = pytest.mark.usefixtures("strict_promotion")

ROUNDING = 1e-5  # float32 sums of eight terms up to a few units
N = 6


def random_terms(seed=0, worst=False):
    rng = np.random.default_rng(seed)
    image = {t: np.zeros(N) if worst else rng.random(N) for t in IMAGE_TERMS + MOTION_TERMS + OWN_TERMS}
    penalties = {t: -np.ones(N) if worst else -rng.random(N) for t in REGULARIZER_TERMS}
    return {name: jnp.asarray(value, jnp.float32) for name, value in (image | penalties).items()}


def test_total_equals_a_numpy_loop():
    terms, config = random_terms(), RewardConfig()
    total, logged = combine(terms, config, 2)
    for n in range(N):
        expected = sum(config.weight(t) for t in REGULARIZER_TERMS)
        for term in TERMS:
            expected += config.weight(term) * float(terms[term][n]) * (2 if term in IMAGE_TERMS else 1)
        np.testing.assert_allclose(total[n], expected, atol=ROUNDING)
    np.testing.assert_allclose(logged["reward/offset"], config.offset, atol=ROUNDING)


def test_logged_terms_are_unweighted_and_image_terms_average_to_their_mean_over_steps():
    terms, config = random_terms(), RewardConfig()
    k = 4
    at_tick = combine(terms, config, k)[1]
    every_step = MOTION_TERMS + OWN_TERMS + REGULARIZER_TERMS
    between = combine({t: terms[t] for t in every_step}, config, 0)[1]
    assert set(at_tick) == {f"reward/{t}" for t in TERMS} | {"reward/offset"}
    assert set(between) == {f"reward/{t}" for t in every_step} | {"reward/offset"}
    for term in IMAGE_TERMS:
        np.testing.assert_allclose(at_tick[f"reward/{term}"] / k, terms[term], atol=ROUNDING)
    for term in every_step:
        np.testing.assert_array_equal(at_tick[f"reward/{term}"], terms[term])


def test_the_worst_step_that_has_not_fallen_is_worth_exactly_zero():
    for seed in range(20):
        weights = np.random.default_rng(seed).random(len(TERMS))
        config = RewardConfig(**{f"{t}_weight": float(w) for t, w in zip(TERMS, weights, strict=True)})
        assert (np.asarray(combine(random_terms(worst=True), config, 1)[0]) == 0).all()


def test_a_better_term_gives_a_larger_total():
    config = RewardConfig(mask_weight=1.0, soft_mask_weight=1.0, pose_weight=1.0, travel_weight=1.0, own_weight=1.0)
    terms = random_terms()
    for term in TERMS:
        better = terms | {term: terms[term] + 0.01}
        assert (combine(better, config, 1)[0] > combine(terms, config, 1)[0]).all()


def test_terms_without_weight_may_be_absent_and_are_logged_when_present():
    config = RewardConfig(video_weight=0.0)
    terms = random_terms()
    without = {t: v for t, v in terms.items() if t != "video"}
    np.testing.assert_array_equal(combine(terms, config, 1)[0], combine(without, config, 1)[0])
    assert "reward/video" in combine(terms, config, 1)[1]
    assert "reward/video" not in combine(without, config, 1)[1]


def test_mask_terms_take_their_settings():
    mask, ref_mask = jnp.asarray(np.random.default_rng(0).random((2, N, 16, 16)) < 0.5)
    config = RewardConfig(soft_mask_weight=1.0, soft_mask_scales=(2, 6), outline_cell=4, outline_scale=0.3)
    terms = mask_terms(config, mask, ref_mask)
    alike = np.asarray(outline_similarity(mask, ref_mask, 4))
    np.testing.assert_allclose(terms["outline"], np.exp((alike - 1) / 0.3), rtol=1e-6)
    np.testing.assert_allclose(terms["soft_mask"], soft_mask_iou(mask, ref_mask, (2, 6)), rtol=1e-6)


def test_motion_terms_are_one_without_error_and_1_over_e_at_their_scales():
    config = RewardConfig(pose_scale=0.2, travel_scale=0.4, travel_sideways=2.0)
    found = motion_terms(config, jnp.array([0.0, 0.2, 0.4]), jnp.array([[0.0, 0.0], [-0.4, 0.0], [0.0, 0.4]]))
    for values in found.values():
        np.testing.assert_allclose(values, np.exp([0.0, -1.0, -4.0]), rtol=1e-6)
    assert set(found) == set(MOTION_TERMS)


def test_unknown_and_missing_terms_are_refused_by_name():
    terms = random_terms()
    with pytest.raises(ValueError, match="got speed"):
        combine(terms | {"speed": terms["mask"]}, RewardConfig(), 1)
    del terms["video"]
    with pytest.raises(ValueError, match="video missing: video_weight=0"):
        combine(terms, RewardConfig(), 1)


def test_combine_leaves_its_argument_alone_and_compiles_once():
    config, traces = RewardConfig(), []

    @jax.jit
    def total(terms, scale):
        traces.append(1)
        return combine(terms, config, scale)[0]

    terms = random_terms()
    names = list(terms)
    first = total(terms, jnp.float32(2))
    total(random_terms(1), jnp.float32(0))
    assert len(traces) == 1 and list(terms) == names
    np.testing.assert_allclose(first, combine(terms, config, 2)[0], atol=ROUNDING)
    np.testing.assert_allclose(jax.vmap(lambda t: combine(t, config, 2)[0])(terms), first, atol=ROUNDING)


def test_terms_made_from_arrays_feed_the_total():
    rng = np.random.default_rng(0)

    def normal(*shape):
        return jnp.asarray(rng.normal(size=shape), jnp.float32)

    config = RewardConfig()
    mask, ref_mask = jnp.asarray(rng.random((2, N, 16, 16)) < 0.5)
    terms = mask_terms(config, mask, ref_mask) | video_term(config, normal(N, 4), normal(N, 4))
    terms |= regularizer_terms(
        config,
        joint_torque=normal(N, 3),
        torque_limit=jnp.ones((1, 3)),
        action=normal(N, 3),
        previous_action=normal(N, 3),
        joint_velocity=normal(N, 3),
        foot_velocity=normal(N, 2, 3),
        foot_contact=jnp.ones((N, 2), bool),
        gravity=jnp.tile(jnp.asarray([[0.0, 0.0, -1.0]]), (N, 1)),
    )
    terms |= motion_terms(config, jnp.abs(normal(N)), normal(N, 2))
    total, logged = combine(terms, config, 1)
    assert total.shape == (N,) and (total >= 0).all()
    np.testing.assert_array_equal(logged["reward/mask"], mask_iou(mask, ref_mask))
    assert "soft_mask" not in mask_terms(RewardConfig(soft_mask_weight=0.0), mask, ref_mask)
    l2 = video_term(RewardConfig(video_similarity="l2"), normal(N, 4), normal(N, 4))["video"]
    assert ((l2 > 0) & (l2 < 1)).all()


@pytest.mark.parametrize(
    "field, value",
    [
        ("mask_weight", -1.0),
        ("torque_weight", float("nan")),
        ("velocity_scale", 0.0),
        ("foot_slip_scale", float("inf")),
        ("video_l2_scale", -2.0),
        ("travel_sideways", -1.0),
        ("tilt_worst_angle", 4.0),
        ("video_similarity", "dot"),
        ("soft_mask_scales", ()),
        ("outline_cell", 1),
        ("outline_cell", 7),
    ],
)
def test_a_config_value_out_of_range_is_refused_by_name(field, value):
    # A ValueError of ours, or a TypeError where the signatures are checked too.
    with pytest.raises((ValueError, TypeError), match=f"{field}: expected|parameter '{field}'"):
        RewardConfig(**{field: value})


def test_a_reward_without_any_weight_is_refused():
    with pytest.raises(ValueError, match="at least one above 0"):
        RewardConfig(**{f"{term}_weight": 0.0 for term in TERMS})


def test_config_says_what_must_be_rendered():
    config = RewardConfig()
    assert config.uses_video
    off = dataclasses.replace(config, **{f"{term}_weight": 0.0 for term in IMAGE_TERMS})
    assert not off.uses_video


def test_the_published_reward_is_the_sum_of_video_mask_and_regularisers():
    config = RewardConfig.paper()
    # The video term is (1 + cosine) / 2.
    assert (config.video_weight, config.mask_weight, config.video_similarity) == (2.0, 1.0, "cosine")
    assert config.soft_mask_weight == config.outline_weight == 0.0
    assert sum(config.weight(term) for term in REGULARIZER_TERMS) == pytest.approx(1.0)
