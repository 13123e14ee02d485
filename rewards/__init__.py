"""Reward terms: pure functions of arrays that compare an agent with the reference, and regularise it."""

# The folder is mapped to nil_jax.rewards; a plain `import rewards` from the repository root would make a second copy.
if __name__ != "nil_jax.rewards":
    raise ImportError(f"this package imports as nil_jax.rewards, not as {__name__!r}; type: import nil_jax.rewards")

from nil_jax.rewards.composite import (
    IMAGE_TERMS,
    MOTION_TERMS,
    OWN_TERMS,
    REGULARIZER_TERMS,
    RewardConfig,
    combine,
    mask_terms,
    motion_terms,
    regularizer_terms,
    video_term,
)
from nil_jax.rewards.embedding import Encoder, Pooling, clip_indices, embed_clips, load_encoder
from nil_jax.rewards.masks import mask_iou, outline_similarity, soft_mask_iou
from nil_jax.rewards.regularizers import action_rate, foot_slip, tilt, torque, velocity
from nil_jax.rewards.similarity import cosine_similarity, gaussian_similarity, l2_similarity

__all__ = [
    "IMAGE_TERMS",
    "MOTION_TERMS",
    "OWN_TERMS",
    "REGULARIZER_TERMS",
    "Encoder",
    "Pooling",
    "RewardConfig",
    "action_rate",
    "clip_indices",
    "combine",
    "cosine_similarity",
    "embed_clips",
    "foot_slip",
    "gaussian_similarity",
    "l2_similarity",
    "load_encoder",
    "mask_iou",
    "mask_terms",
    "motion_terms",
    "outline_similarity",
    "regularizer_terms",
    "soft_mask_iou",
    "tilt",
    "torque",
    "velocity",
    "video_term",
]
