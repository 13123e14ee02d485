"""Silhouette overlap against NumPy loops."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nil_jax.rewards import mask_iou, outline_similarity, soft_mask_iou

pytestmark = pytest.mark.usefixtures("strict_promotion")

HISTOGRAM_ROUNDING = 1e-5  # fourth roots of float32 sums of 16 pixels, summed over a few hundred of them
ROUNDING = 1e-6  # sums of a few hundred pixels are exact in float32; only the quotient and the mean over scales round


def random_masks(shape, seed=0):
    rng = np.random.default_rng(seed)
    return rng.random(shape) < 0.4, rng.random(shape) < 0.4


def loop_iou(a, b):
    both = either = 0
    for row in range(a.shape[0]):
        for col in range(a.shape[1]):
            both += a[row, col] and b[row, col]
            either += a[row, col] or b[row, col]
    return both / either if either else 1.0


def loop_soft_iou(a, b, scales):
    ratios = []
    for scale in scales:
        low = high = 0.0
        step = max(scale // 2, 1)
        for row in range(step - scale, a.shape[0], step):
            for col in range(step - scale, a.shape[1], step):
                cell = np.s_[max(row, 0) : row + scale, max(col, 0) : col + scale]
                cell_a, cell_b = a[cell].sum() / scale**2, b[cell].sum() / scale**2
                low, high = low + min(cell_a, cell_b), high + max(cell_a, cell_b)
        ratios.append(low / high if high else 1.0)
    return np.mean(ratios)


def test_iou_equals_a_numpy_loop():
    a, b = random_masks((5, 13, 17))
    expected = [loop_iou(x, y) for x, y in zip(a, b, strict=True)]
    np.testing.assert_allclose(mask_iou(jnp.asarray(a), jnp.asarray(b)), expected, atol=ROUNDING)


@pytest.mark.parametrize("shape", [(16, 16), (13, 17)], ids=["divisible", "padded"])
@pytest.mark.parametrize("scales", [(1, 2, 4, 8), (6,)])
def test_soft_iou_equals_a_numpy_loop(shape, scales):
    a, b = random_masks((3, *shape))
    expected = [loop_soft_iou(x, y, scales) for x, y in zip(a, b, strict=True)]
    np.testing.assert_allclose(
        jax.jit(soft_mask_iou, static_argnums=2)(jnp.asarray(a), jnp.asarray(b), scales), expected, atol=ROUNDING
    )


def test_soft_iou_at_one_pixel_is_plain_iou():
    a, b = map(jnp.asarray, random_masks((4, 12, 12)))
    np.testing.assert_allclose(soft_mask_iou(a, b, (1,)), mask_iou(a, b), atol=ROUNDING)


def loop_outlines(mask, cell, directions):
    """The histogram of `outline_similarity`, pixel by pixel."""
    height, width = mask.shape
    padded = np.pad(mask.astype(float), 3)
    kernel = np.outer([1, 2, 1], [1, 2, 1]) / 16

    def blurred(row, col):
        return (kernel * padded[row + 2 : row + 5, col + 2 : col + 5]).sum()

    votes = np.zeros((height, width, directions))
    for row in range(height):
        for col in range(width):
            dx = (blurred(row, col + 1) - blurred(row, col - 1)) / 2
            dy = (blurred(row + 1, col) - blurred(row - 1, col)) / 2
            for k in range(directions):
                along = np.cos(2 * (np.arctan2(dy, dx) - np.pi * k / directions))
                votes[row, col, k] = np.hypot(dx, dy) ** 0.5 * max(0.0, along) ** 2
    half = cell // 2
    starts = [range(half - cell, size, half) for size in mask.shape]
    return np.array(
        [votes[max(r, 0) : r + cell, max(c, 0) : c + cell].sum((0, 1)) for r in starts[0] for c in starts[1]]
    ).ravel()


@pytest.mark.parametrize(("shape", "cell", "directions"), [((16, 16), 8, 6), ((13, 18), 4, 5)])
def test_outline_similarity_equals_a_numpy_loop(shape, cell, directions):
    a, b = random_masks((3, *shape))
    expected = []
    for x, y in zip(a, b, strict=True):
        h, ref_h = loop_outlines(x, cell, directions), loop_outlines(y, cell, directions)
        expected.append(h @ ref_h / np.sqrt((h @ h) * (ref_h @ ref_h)))
    found = jax.jit(outline_similarity, static_argnums=(2, 3))(jnp.asarray(a), jnp.asarray(b), cell, directions)
    np.testing.assert_allclose(found, expected, atol=HISTOGRAM_ROUNDING)


def test_outline_similarity_sees_slopes_that_the_overlap_does_not():
    rows, cols = np.mgrid[:32, :32]
    upright, beside, leaning = (abs(cols - at) < 1.5 for at in (14.0, 17.0, 14.0 + 0.5 * (rows - 16)))
    near, turned = (outline_similarity(jnp.asarray(upright), jnp.asarray(other)) for other in (beside, leaning))
    assert near > turned
    assert mask_iou(jnp.asarray(upright), jnp.asarray(beside)) < mask_iou(jnp.asarray(upright), jnp.asarray(leaning))


@pytest.mark.parametrize(("wrong", "named"), [({"cell": 3}, "cell"), ({"cell": 0}, "cell"), ({"directions": 1}, "dir")])
def test_outline_similarity_refuses_what_makes_no_histogram(wrong, named):
    with pytest.raises(ValueError, match=named):
        outline_similarity(jnp.ones((8, 8), bool), jnp.ones((8, 8), bool), **wrong)


@pytest.mark.parametrize("iou", [mask_iou, soft_mask_iou, outline_similarity])
def test_equal_masks_score_one_and_an_empty_one_scores_zero(iou):
    full, empty = jnp.ones((8, 8), bool), jnp.zeros((8, 8), bool)
    np.testing.assert_allclose(iou(full, full), 1.0, atol=ROUNDING)
    assert iou(full, empty) == 0.0
    assert iou(empty, empty) == 1.0


def bar(start):
    columns = np.arange(32)
    return np.tile((columns >= start) & (columns < start + 3), (32, 1))


def test_soft_iou_ranks_masks_that_do_not_touch_wherever_the_grid_lies():
    starts, shifts = np.arange(4, 20), np.array([0, 1, 2, 4, 10])
    here = jnp.stack([bar(start) for start in starts for _ in shifts])
    there = jnp.stack([bar(start + shift) for start in starts for shift in shifts])
    hard, soft = (np.asarray(jax.jit(iou)(here, there)).reshape(len(starts), -1) for iou in (mask_iou, soft_mask_iou))
    assert (hard[:, 3:] == 0).all() and (soft[:, 3] > 0).all()
    assert (np.diff(soft, axis=1) < 0).all()


def test_masks_need_no_batch_axis_and_take_several():
    a, b = map(jnp.asarray, random_masks((2, 3, 8, 8)))
    for iou in (mask_iou, soft_mask_iou):
        assert jax.jit(iou)(a, b).shape == (2, 3)
        np.testing.assert_allclose(jax.jit(jax.vmap(jax.vmap(iou)))(a, b), jax.jit(iou)(a, b), atol=ROUNDING)


def test_soft_iou_has_finite_gradients_for_coverage_masks_even_when_empty():
    gradient = jax.jit(jax.grad(lambda a, b: soft_mask_iou(a, b)))(jnp.zeros((8, 8)), jnp.zeros((8, 8)))
    assert np.isfinite(gradient).all()


@pytest.mark.parametrize("scales", [(), (0, 2), (1, 3)])
def test_soft_iou_refuses_bad_scales(scales):
    with pytest.raises(ValueError, match="scales: expected"):
        soft_mask_iou(jnp.ones((8, 8), bool), jnp.ones((8, 8), bool), scales)
