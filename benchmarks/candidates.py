"""Similarities of two windows of pictures: each candidate is a function `(agent, reference, bank) -> [M]`.

The agent's window has T ticks, the reference's T + 2 * MARGIN: a few more on either side, for tolerance in time.

Axes: M clips, T ticks, H W image, F features.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from pictures import PARTS, Pictures

from nil_jax.rewards import RewardConfig, mask_iou, outline_similarity, soft_mask_iou

MARGIN = 2  # ticks of the reference before and after the window
SHRINKAGE = 0.1  # of the covariance towards a multiple of the identity
WHITE = 255.0
SSIM_CONSTANTS = (0.01**2, 0.03**2)  # as published (Wang et al., 2004), for pictures in [0, 1]


class Bank(NamedTuple):
    """What is known of masks before any reference: features of a bank of the robot's own pictures."""

    mean: jax.Array  # [F] of blurred masks
    whiten: jax.Array  # [F, F]


class Candidate(NamedTuple):
    """One similarity."""

    function: Callable[[Pictures, Pictures, Bank], jax.Array]
    oracle: bool = False  # it knows what a real reference cannot tell
    transforms: bool = False  # it reads `Pictures.depth`, which is not counted in its cost


def centre(pictures: Pictures) -> Pictures:
    """The reference's ticks that belong to the agent's."""
    return jax.tree.map(lambda leaf: leaf[:, MARGIN:-MARGIN], pictures)


def framewise(similarity: Callable) -> Candidate:
    """Mean over the window of a similarity of masks [.., H, W] at the same tick."""
    return Candidate(lambda a, r, bank: similarity(a.masks, centre(r).masks).mean(-1))


def shifted(a: Pictures, r: Pictures, similarity: Callable) -> jax.Array:
    """Similarity of masks at each delay of the reference, [delays, M, T]."""
    ticks = a.masks.shape[1]
    return jnp.stack([similarity(a.masks, r.masks[:, start : start + ticks]) for start in range(2 * MARGIN + 1)])


def tolerant(similarity: Callable, reach: int, sharpness: float | None = None, *, lock: bool = False) -> Candidate:
    """The best (or soft-best) delay within `reach` ticks, of each tick, or with `lock` of the whole window."""

    def run(a: Pictures, r: Pictures, bank: Bank) -> jax.Array:
        values = shifted(a, r, similarity)[MARGIN - reach : MARGIN + reach + 1]
        values = values.mean(-1, keepdims=True) if lock else values
        if sharpness is None:
            return values.max(0).mean(-1)
        return (jax.nn.logsumexp(sharpness * values, axis=0) - jnp.log(len(values))).mean(-1) / sharpness

    return Candidate(run)


def depthwise(similarity: Callable) -> Candidate:
    """Mean over the window of a similarity of signed distances to the outline at the same tick."""
    return Candidate(
        lambda a, r, bank: similarity(a.depth.astype(jnp.float32), centre(r).depth.astype(jnp.float32)).mean(-1),
        transforms=True,
    )


def overlap(a: jax.Array, b: jax.Array) -> jax.Array:
    """IoU of images [.., H, W] of values >= 0."""
    return jnp.minimum(a, b).sum((-2, -1)) / jnp.maximum(jnp.maximum(a, b).sum((-2, -1)), 1e-6)


def chamfer(a: jax.Array, b: jax.Array, scale: float, limit: float) -> jax.Array:
    """exp(-d / scale) of the mean distance d of each mask's pixels to the other mask, cut at `limit`."""

    def one_way(depth: jax.Array, other: jax.Array) -> jax.Array:
        mask, away = depth > 0, jnp.clip(-other, 0.0, limit)
        return jnp.sum(away * mask, axis=(-2, -1)) / jnp.maximum(mask.sum((-2, -1)), 1)

    return jnp.exp(-(one_way(a, b) + one_way(b, a)) / (2 * scale))


def soft_edge_iou(a: jax.Array, b: jax.Array, width: float) -> jax.Array:
    """IoU of masks whose outline is spread over `width` px by the signed distance."""
    return overlap(jax.nn.sigmoid(a / width), jax.nn.sigmoid(b / width))


def halo_iou(a: jax.Array, b: jax.Array, scale: float) -> jax.Array:
    """IoU of halos exp(-distance to the mask / scale)."""
    return overlap(*(jnp.exp(jnp.minimum(depth, 0.0) / scale) for depth in (a, b)))


def outline_weighted(a: jax.Array, b: jax.Array, scale: float, limit: float = 8.0) -> jax.Array:
    """exp(-mean difference of the cut signed distances), weighted by nearness to either outline."""
    weight = jnp.exp(-jnp.minimum(abs(a), abs(b)) / scale)
    a, b = jnp.clip(a, -limit, limit), jnp.clip(b, -limit, limit)
    return jnp.exp(-(weight * abs(a - b)).sum((-2, -1)) / weight.sum((-2, -1)) / scale)


def blurred(image: jax.Array, deviation: float) -> jax.Array:
    """Gaussian blur of [.., H, W] by one matrix along each axis; outside is 0."""
    rows, cols = (_blur_matrix(size, deviation) for size in image.shape[-2:])
    return jnp.einsum("...hw,hi,wj->...ij", image.astype(jnp.float32), rows, cols)


def _blur_matrix(size: int, deviation: float) -> np.ndarray:
    away = np.arange(size)[:, None] - np.arange(size)
    kernel = np.exp(-0.5 * np.square(away / deviation))
    return (kernel / (np.sqrt(2 * np.pi) * deviation)).astype(np.float32)


def gaussian_iou(a: jax.Array, b: jax.Array, deviation: float) -> jax.Array:
    """IoU of Gaussian-blurred masks."""
    return overlap(blurred(a, deviation), blurred(b, deviation))


def cosine(a: jax.Array, b: jax.Array) -> jax.Array:
    """Of [.., F]."""
    return jnp.sum(a * b, -1) / jnp.maximum(jnp.linalg.norm(a, axis=-1) * jnp.linalg.norm(b, axis=-1), 1e-9)


def mask_features(masks: jax.Array, deviation: float = 2.0, cell: int = 4) -> jax.Array:
    """Blurred masks [.., H, W] on a coarse grid, [.., F]."""
    fine = blurred(masks, deviation)
    coarse = fine.reshape(*fine.shape[:-2], fine.shape[-2] // cell, cell, fine.shape[-1] // cell, cell).mean((-3, -1))
    return coarse.reshape(*coarse.shape[:-2], -1)


def make_bank(masks: np.ndarray) -> Bank:
    """From masks [N, H, W] of the robot in many poses."""
    features = np.concatenate([np.asarray(mask_features(jnp.asarray(part))) for part in np.array_split(masks, 16)])
    mean = features.mean(0)
    covariance = np.cov(features - mean, rowvar=False)
    covariance = (1 - SHRINKAGE) * covariance + SHRINKAGE * np.trace(covariance) / len(covariance) * np.eye(len(mean))
    values, vectors = np.linalg.eigh(covariance)
    return Bank(jnp.asarray(mean), jnp.asarray((vectors / np.sqrt(values)) @ vectors.T, jnp.float32))


def mask_cosine(*, centred: bool, white: bool = False) -> Candidate:
    """Cosine of blurred masks, all ticks as one vector."""

    def run(a: Pictures, r: Pictures, bank: Bank) -> jax.Array:
        pair = []
        for masks in (a.masks, centre(r).masks):
            features = mask_features(masks) - (bank.mean if centred else 0.0)
            features = features @ bank.whiten if white else features
            pair.append(features.reshape(len(features), -1))
        return cosine(*pair)

    return Candidate(run)


def motion_energy(a: Pictures, r: Pictures, bank: Bank, *, deviation: float = 2.0, signed: bool = True) -> jax.Array:
    """Cosine of the blurred change of the mask from tick to tick."""
    pair = []
    for masks in (a.masks, centre(r).masks):
        change = jnp.diff(masks.astype(jnp.float32), axis=1)
        change = blurred(change if signed else abs(change), deviation)
        pair.append(change.reshape(len(masks), -1))
    return cosine(*pair)


def luminance(pictures: Pictures) -> jax.Array:
    """[M, T, H, W] in [0, 1], of the robot on white."""
    return pictures.rgb.astype(jnp.float32).mean(-1) / WHITE


def colour_l1(a: Pictures, r: Pictures, bank: Bank) -> jax.Array:
    """Minus the mean difference of colours."""
    return -jnp.abs(a.rgb.astype(jnp.float32) - centre(r).rgb).mean((1, 2, 3, 4)) / WHITE


def luminance_l1(a: Pictures, r: Pictures, bank: Bank) -> jax.Array:
    """Minus the mean difference of luminance."""
    return -jnp.abs(luminance(a) - luminance(centre(r))).mean((1, 2, 3))


def ssim_pyramid(a: Pictures, r: Pictures, bank: Bank, *, deviations: tuple[float, ...] = (1.5, 3.0, 6.0)) -> jax.Array:
    """Structural similarity (Wang et al., 2004) of luminance with windows of several sizes."""
    a, b = luminance(a), luminance(centre(r))
    total = 0.0
    for deviation in deviations:
        smooth = partial(blurred, deviation=deviation)
        mean_a, mean_b = smooth(a), smooth(b)
        var_a, var_b = smooth(a * a) - mean_a**2, smooth(b * b) - mean_b**2
        covariance = smooth(a * b) - mean_a * mean_b
        low, high = SSIM_CONSTANTS
        alike = (2 * mean_a * mean_b + low) * (2 * covariance + high)
        total += (alike / ((mean_a**2 + mean_b**2 + low) * (var_a + var_b + high))).mean((1, 2, 3))
    return total / len(deviations)


def gradient_histograms(image: jax.Array, bins: int = 6, cell: int = 8) -> jax.Array:
    """Histograms of unsigned gradient directions in cells of [.., H, W], [.., F]."""
    dy, dx = jnp.gradient(image, axis=(-2, -1))
    strength, angle = jnp.hypot(dx, dy), jnp.arctan2(dy, dx)
    weights = jnp.stack([jnp.maximum(jnp.cos(2 * (angle - np.pi * b / bins)), 0) ** 2 for b in range(bins)], axis=-1)
    votes = strength[..., None] * weights
    height, width = image.shape[-2:]
    cells = votes.reshape(*image.shape[:-2], height // cell, cell, width // cell, cell, bins).sum((-4, -2))
    return cells.reshape(*image.shape[:-2], -1)


def hog(a: Pictures, r: Pictures, bank: Bank, *, of_masks: bool = False) -> jax.Array:
    """Cosine of gradient histograms."""
    pair = []
    for pictures in (a, centre(r)):
        image = blurred(pictures.masks, 1.0) if of_masks else luminance(pictures)
        pair.append(gradient_histograms(image).reshape(len(image), -1))
    return cosine(*pair)


def per_part(a: Pictures, r: Pictures, bank: Bank) -> jax.Array:
    """Mean over the robot's parts of the soft IoU, the better of both ways to name left and right: an oracle."""
    r, count = centre(r), 2 * len(PARTS)
    twins = [(part + len(PARTS)) % count if part % len(PARTS) else part for part in range(count)]
    shown = [part for part in range(count) if part != len(PARTS)]  # the torso has one side

    def parts(names: list[int]) -> jax.Array:
        return jnp.stack(
            [soft_mask_iou(a.parts == part, r.parts == names[part], (2, 4, 8)).mean(-1) for part in shown]
        ).mean(0)

    return jnp.maximum(parts(list(range(count))), parts(twins))


def soft(*scales: int) -> Callable:
    """`soft_mask_iou` at these scales."""
    return lambda a, b: soft_mask_iou(a, b, scales)


def mix(*parts: tuple[float, Candidate]) -> Candidate:
    """A weighted sum."""
    return Candidate(lambda a, r, bank: sum(weight * part.function(a, r, bank) for weight, part in parts))


DEFAULT, PAPER = RewardConfig(), RewardConfig.paper()
HARD = "hard IoU (published)"
CANDIDATES: dict[str, Candidate] = {
    HARD: framewise(mask_iou),
    **{f"soft IoU {scales}": framewise(soft(*scales)) for scales in ((1, 2, 4, 8), (2, 4, 8, 16), (4, 8, 16))},
    **{f"soft IoU ({scale})": framewise(soft(scale)) for scale in (2, 4, 8, 16, 32)},
    **{f"Gaussian IoU, {s:g} px": framewise(partial(gaussian_iou, deviation=s)) for s in (1.0, 2.0, 4.0)},
    **{
        f"chamfer exp(-d/{s:g}), cut at {limit:g} px": depthwise(partial(chamfer, scale=s, limit=limit))
        for s, limit in ((2.0, 8.0), (2.0, 64.0), (4.0, 16.0))
    },
    **{f"soft edge IoU, {w:g} px": depthwise(partial(soft_edge_iou, width=w)) for w in (0.5, 1.0, 2.0, 4.0)},
    **{f"halo IoU, {s:g} px": depthwise(partial(halo_iou, scale=s)) for s in (1.0, 2.0, 4.0, 8.0)},
    **{f"outlines, {s:g} px": depthwise(partial(outline_weighted, scale=s)) for s in (1.0, 2.0, 4.0)},
    "hard IoU, best of +-1 tick": tolerant(mask_iou, 1),
    "hard IoU, best of +-2 ticks": tolerant(mask_iou, 2),
    "hard IoU, best delay of the window": tolerant(mask_iou, 2, lock=True),
    "soft IoU, best of +-1 tick": tolerant(soft(1, 2, 4, 8), 1),
    "soft IoU, soft-best of +-2 ticks": tolerant(soft(1, 2, 4, 8), 2, 10.0),
    "mask change, signed cosine": Candidate(motion_energy),
    "mask change, energy cosine": Candidate(partial(motion_energy, signed=False)),
    "colour L1": Candidate(colour_l1),
    "luminance L1": Candidate(luminance_l1),
    "SSIM pyramid": Candidate(ssim_pyramid),
    **{f"outline similarity, {cell} px": framewise(partial(outline_similarity, cell=cell)) for cell in (4, 8, 16)},
    "outline similarity, 8 px, best of +-1 tick": tolerant(outline_similarity, 1),
    "gradient histograms, picture": Candidate(hog),
    "gradient histograms, mask": Candidate(partial(hog, of_masks=True)),
    "blurred-mask cosine": mask_cosine(centred=False),
    "blurred-mask cosine, centred": mask_cosine(centred=True),
    "blurred-mask cosine, whitened": mask_cosine(centred=True, white=True),
    "soft IoU per part (oracle)": Candidate(per_part, oracle=True),
}
TERM = "outline term of the default reward"
CANDIDATES[TERM] = framewise(lambda a, b: jnp.exp((outline_similarity(a, b) - 1) / DEFAULT.outline_scale))
OUTLINE, SOFT = CANDIDATES["outline similarity, 8 px"], CANDIDATES["soft IoU (1, 2, 4, 8)"]
CHANGE, CHAMFER = CANDIDATES["mask change, signed cosine"], CANDIDATES["chamfer exp(-d/4), cut at 16 px"]
CANDIDATES |= {
    "soft IoU + 0.3 mask change": mix((1.0, SOFT), (0.3, CHANGE)),
    "soft IoU + 0.5 centred cosine": mix((1.0, SOFT), (0.5, CANDIDATES["blurred-mask cosine, centred"])),
    "outline similarity + hard IoU": mix((1.0, OUTLINE), (1.0, CANDIDATES[HARD])),
    "outline similarity + 0.3 soft IoU": mix((1.0, OUTLINE), (0.3, SOFT)),
    "outline similarity + 0.5 chamfer": mix((1.0, OUTLINE), (0.5, CHAMFER)),
    "outline similarity + 0.1 mask change": mix((1.0, OUTLINE), (0.1, CHANGE)),
}
