"""The reward: named unweighted terms, weighted in one place.  Axes: N envs; H W image; D embedding."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from nil_jax.rewards import masks, regularizers, similarity

MOTION_TERMS = ("pose", "travel")  # similarities in [0, 1] with the motion fitted to the clip, every step
IMAGE_TERMS = ("video", "mask", "soft_mask", "outline")  # similarities in [0, 1], seen at reward ticks
OWN_TERMS = ("own",)  # what the robot's own reward says, every step; `RobotEnv.with_reward` sets it
REGULARIZER_TERMS = ("torque", "action_rate", "velocity", "foot_slip", "tilt")  # penalties in [-1, 0], every step
SCALES = ("video_l2", "outline", "pose", "travel", "velocity", "foot_slip")  # what a deviation is measured by
TERMS = IMAGE_TERMS + MOTION_TERMS + OWN_TERMS + REGULARIZER_TERMS


@dataclass(frozen=True)
class RewardConfig:
    """Weights and constants of the reward.

    The defaults are ours: the outline, because it ranks motions by their true distance better than IoU, plain or soft,
    and has a wider basin (benchmarks/reward_fidelity.py); the pose that was fitted to the clip, and its speed; and a
    heavy foot slip, because the following camera does not show travel. `RewardConfig.paper()` has the published terms.

    Raises:
        ValueError: a weight that is negative or not finite, a constant out of range, or only zero weights.
    """

    video_weight: float = 1.0
    mask_weight: float = 0.0
    soft_mask_weight: float = 0.0
    outline_weight: float = 5.0
    pose_weight: float = 2.0  # off without a motion of the reference, as travel is
    travel_weight: float = 5.0
    own_weight: float = 0.0  # of the robot's own reward
    torque_weight: float = 0.1
    action_rate_weight: float = 0.1
    velocity_weight: float = 0.1
    foot_slip_weight: float = 2.0
    tilt_weight: float = 0.2
    video_similarity: Literal["auto", "cosine", "l2"] = "auto"  # auto: what the encoder is made for
    video_l2_scale: float = 10.0  # units of the embedding; auto brings the encoder's own
    soft_mask_scales: tuple[int, ...] = (1, 2, 4, 8)  # px of the mask
    outline_cell: int = 8  # px of the mask
    outline_scale: float = 0.15  # loss of outline similarity at which the term is 1/e
    pose_scale: float = 0.056  # robot sizes
    travel_scale: float = 0.275  # of the clip's speed
    travel_sideways: float = 0.0  # how much speed to the side, which a side view does not show, counts in it
    velocity_scale: float = 10.0  # rad/s
    foot_slip_scale: float = 0.25  # m/s
    tilt_worst_angle: float = math.pi / 2  # rad

    def __post_init__(self):
        for name in [f"{term}_weight" for term in TERMS]:
            value = getattr(self, name)
            if not (math.isfinite(value) and value >= 0):
                raise ValueError(f"{name}: expected a finite number >= 0, got {value}")
        if all(self.weight(term) == 0 for term in TERMS):
            raise ValueError("reward weights: expected at least one above 0, got only zeros; type: mask_weight=1.0")
        for name in [f"{what}_scale" for what in SCALES]:
            value = getattr(self, name)
            if not (math.isfinite(value) and value > 0):
                raise ValueError(f"{name}: expected a finite number > 0, got {value}")
        if not (math.isfinite(self.travel_sideways) and self.travel_sideways >= 0):
            raise ValueError(f"travel_sideways: expected a finite number >= 0, got {self.travel_sideways}")
        if not 0 < self.tilt_worst_angle <= math.pi:
            raise ValueError(f"tilt_worst_angle: expected an angle in (0, pi] rad, got {self.tilt_worst_angle}")
        if self.video_similarity not in ("auto", "cosine", "l2"):
            raise ValueError(f"video_similarity: expected 'auto', 'cosine' or 'l2', got {self.video_similarity!r}")
        masks.check_scales(self.soft_mask_scales, "soft_mask_scales")
        if self.outline_cell < 2 or self.outline_cell % 2:
            raise ValueError(f"outline_cell: expected an even number of px, got {self.outline_cell}")

    @classmethod
    def paper(cls) -> "RewardConfig":
        """The terms of arXiv 2503.10626: raw cosine, plain IoU and the sum of the regularisers, weighted 1:1:1.

        The video term is (1 + cosine) / 2, so that it is never negative: hence its weight of 2. The weights within that
        sum are not published: here they are equal and sum to 1.
        """
        inner = {f"{term}_weight": 1 / len(REGULARIZER_TERMS) for term in REGULARIZER_TERMS}
        image = {"video_weight": 2.0, "mask_weight": 1.0, "soft_mask_weight": 0.0, "outline_weight": 0.0}
        image |= {"pose_weight": 0.0, "travel_weight": 0.0}
        return cls(**image, **inner, video_similarity="cosine")

    def weight(self, term: str) -> float:
        """Weight of a term of `TERMS`."""
        return getattr(self, f"{term}_weight")

    @property
    def offset(self) -> float:
        """What is added to every step so that one that has not fallen is worth at least 0."""
        return sum(self.weight(term) for term in REGULARIZER_TERMS)

    @property
    def uses_video(self) -> bool:
        """Whether clips must be rendered and embedded."""
        return self.video_weight > 0


def mask_terms(
    config: RewardConfig, mask: Bool[Array, "*batch h w"], ref_mask: Bool[Array, "*batch h w"]
) -> dict[str, Float[Array, "*batch"]]:
    """The term `mask` (always: it is also the measure that runs report), and those of the others that have a weight."""
    terms = {"mask": masks.mask_iou(mask, ref_mask)}
    if config.soft_mask_weight > 0:
        terms["soft_mask"] = masks.soft_mask_iou(mask, ref_mask, config.soft_mask_scales)
    if config.outline_weight > 0:
        # Standing still has most outlines right: what is paid for begins above that.
        alike = masks.outline_similarity(mask, ref_mask, config.outline_cell)
        terms["outline"] = jnp.exp((alike - 1.0) / config.outline_scale)
    return terms


def video_term(
    config: RewardConfig, z: Float[Array, "*batch d"], ref_z: Float[Array, "*batch d"]
) -> dict[str, Float[Array, "*batch"]]:
    """The term `video`: similarity of the agent's and the reference's clip embeddings, as the config names it.

    "auto" is the cosine here; `ImitationEnv` replaces it by what the encoder is made for.
    """
    if config.video_similarity == "l2":
        return {"video": similarity.l2_similarity(z, ref_z, config.video_l2_scale)}
    return {"video": similarity.cosine_similarity(z, ref_z)}


def motion_terms(
    config: RewardConfig, pose_error: Float[Array, "*batch"], speed_error: Float[Array, "*batch 2"]
) -> dict[str, Float[Array, "*batch"]]:
    """The terms `pose` (of an error in robot sizes) and `travel` (of one forward and sideways, of the clip's speed)."""
    off = jnp.hypot(speed_error[..., 0], config.travel_sideways * speed_error[..., 1])
    return {
        "pose": similarity.gaussian_similarity(pose_error, config.pose_scale),
        "travel": similarity.gaussian_similarity(off, config.travel_scale),
    }


def regularizer_terms(
    config: RewardConfig,
    *,
    joint_torque: Float[Array, "*batch nu"],
    torque_limit: Float[Array, "*#batch nu"],
    action: Float[Array, "*batch nu"],
    previous_action: Float[Array, "*batch nu"],
    joint_velocity: Float[Array, "*batch nj"],
    foot_velocity: Float[Array, "*batch feet axes"],
    foot_contact: Bool[Array, "*batch feet"] | Float[Array, "*batch feet"],
    gravity: Float[Array, "*batch 3"],
) -> dict[str, Float[Array, "*batch"]]:
    """All regularisers, unweighted; units and frames as in `nil_jax.rewards.regularizers`."""
    return {
        "torque": regularizers.torque(joint_torque, torque_limit),
        "action_rate": regularizers.action_rate(action, previous_action),
        "velocity": regularizers.velocity(joint_velocity, config.velocity_scale),
        "foot_slip": regularizers.foot_slip(foot_velocity, foot_contact, config.foot_slip_scale),
        "tilt": regularizers.tilt(gravity, config.tilt_worst_angle),
    }


def combine(
    terms: Mapping[str, Float[Array, "*batch"]],
    config: RewardConfig,
    image_scale: int | float | Float[Array, "*#batch"] = 1.0,
) -> tuple[Float[Array, "*batch"], dict[str, Array]]:
    """Weigh the terms of one control step.

        R = image_scale * sum_image w_i s_i  +  sum_motion w_i s_i  +  w r  +  sum_regularizers w_j (1 + p_j)

    with s in [0, 1] and p in [-1, 0], so R >= 0 for every step if the robot's own reward r is. A step that falls
    is worth what the caller says, at most 0: then falling never pays. The published total (arXiv
    2503.10626) is R without the offset sum_j w_j.

    Args:
        terms: unweighted values by name; a term with zero weight may be absent, and is logged if present.
        config: the weights.
        image_scale: control steps per reward tick at a tick and 0 between, so that a mean over control steps is the
            same for every tick rate. With the Python number 0 the image terms may be absent.

    Returns:
        The total, and what to log: `reward/<term>` unweighted (image terms times `image_scale`, so that a mean over
        control steps reads as the term's mean) and `reward/offset`, the part of the total that does not depend on the
        motion.

    Raises:
        ValueError: an unknown term, or a missing one that has a weight.
    """
    unknown = sorted(set(terms) - set(TERMS))
    if unknown:
        raise ValueError(f"terms: expected names out of {', '.join(TERMS)}; got {', '.join(unknown)}")
    between_ticks = isinstance(image_scale, int | float) and image_scale == 0
    expected = [term for term in TERMS if not (between_ticks and term in IMAGE_TERMS)]
    needed = [term for term in expected if config.weight(term) > 0]
    missing = [term for term in needed if term not in terms]
    if missing:
        remedy = ", ".join(f"{term}_weight=0" for term in missing)
        raise ValueError(f"terms: expected a value for each term with a weight; {', '.join(missing)} missing: {remedy}")

    shape = jnp.broadcast_shapes(*(value.shape for value in terms.values()))
    total = jnp.zeros(shape, jnp.float32)
    scale = jnp.asarray(image_scale, jnp.float32)
    logged = {"reward/offset": jnp.full(shape, config.offset, jnp.float32)}
    for term, value in terms.items():
        if term in IMAGE_TERMS:
            logged[f"reward/{term}"] = value * scale
            total = total + config.weight(term) * logged[f"reward/{term}"]
        elif term in MOTION_TERMS + OWN_TERMS:
            logged[f"reward/{term}"] = value
            total = total + config.weight(term) * value
        else:
            logged[f"reward/{term}"] = value
            # Each summand is >= 0 by itself: adding the offset at the end could round to a total just below 0.
            total = total + config.weight(term) * (1.0 + value)
    return total, logged
