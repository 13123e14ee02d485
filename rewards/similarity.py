"""How close agent and reference are, mapped to [0, 1] so that staying up never costs reward.  Axes: D embedding."""

import jax.numpy as jnp
from jaxtyping import Array, Float


def safe_norm(x: Float[Array, "*batch d"]) -> Float[Array, "*batch"]:
    """Euclidean norm over the last axis whose gradient at the zero vector is zero, not NaN."""
    squared = jnp.sum(jnp.square(x), axis=-1)
    is_zero = squared == 0
    return jnp.where(is_zero, 0.0, jnp.sqrt(jnp.where(is_zero, 1.0, squared)))


def cosine_similarity(z: Float[Array, "*batch d"], ref_z: Float[Array, "*batch d"]) -> Float[Array, "*batch"]:
    """Cosine of two embeddings as a similarity in [0, 1]; a zero vector has similarity 0.5 with everything.

        S = (1 + cos(z, z_ref)) / 2

    Published (arXiv 2503.10626, version 2): the raw cosine in [-1, 1]. The affine map keeps its order and its maximum.

    Args:
        z: embedding of the agent's clip.
        ref_z: embedding of the reference's clip at the same time.
    """
    norms = safe_norm(z) * safe_norm(ref_z)
    cosine = jnp.sum(z * ref_z, axis=-1) / jnp.where(norms == 0, 1.0, norms)
    return jnp.clip((1.0 + cosine) / 2.0, 0.0, 1.0)


def l2_similarity(
    z: Float[Array, "*batch d"], ref_z: Float[Array, "*batch d"], scale: float = 10.0
) -> Float[Array, "*batch"]:
    """Euclidean distance of two embeddings as a similarity in [0, 1], 1 when they are equal.

        S = exp(-||z_ref - z|| / scale)

    Published (arXiv 2503.10626, version 1): the raw -||z_ref - z||, whose scale is not known; the exponential keeps its
    order and bounds it. The default scale is ours: a TimeSformer-B embedding leaves a LayerNorm with 768 channels, so
    its norm is near 28 and distances of 10 are large.

    Args:
        z: embedding of the agent's clip.
        ref_z: embedding of the reference's clip at the same time.
        scale: distance at which the similarity is 1/e, in units of the embedding.
    """
    return jnp.exp(-safe_norm(ref_z - z) / scale)


def gaussian_similarity(distance: Float[Array, "*batch"], scale: float) -> Float[Array, "*batch"]:
    """A distance as a similarity in [0, 1], 1 where it is 0.

        S = exp(-(distance / scale)^2)

    The form of the imitation terms of DeepMimic (arXiv 1804.02717, section 5.2); not published in arXiv 2503.10626.

    Args:
        distance: of any sign and unit.
        scale: distance at which the similarity is 1/e, in the same unit.
    """
    return jnp.exp(-jnp.square(distance / scale))
