"""Rewards by a clip encoder, as published and calibrated.  Axes: M clips, T ticks, C frames of a clip, D embedding."""

import time
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from pictures import Ours, Theirs

from nil_jax.rewards import Encoder, cosine_similarity, l2_similarity

BATCH = 4  # clips in one call


@dataclass(frozen=True)
class Embedder:
    """An encoder that sees every `stride`-th tick, for several strides."""

    name: str
    encoder: Encoder
    strides: tuple[int, ...]

    @property
    def length(self) -> int:
        """Ticks of the longest clip."""
        return 1 + (self.encoder.num_frames - 1) * max(self.strides)

    def __call__(self, renderer: Ours | Theirs, qpos: np.ndarray) -> tuple[np.ndarray, float]:
        """Embeddings [strides, M, D] of windows [M, T, nq] of at least `length` ticks, and us a clip."""
        embed, found, seconds = jax.jit(self.encoder.embed), [], []
        for start in range(0, len(qpos), BATCH):
            rows = np.minimum(np.arange(start, start + BATCH), len(qpos) - 1)
            frames, parts = renderer(qpos[rows, -self.length :]).rgb, []
            for stride in self.strides:
                clip = jnp.asarray(frames[:, ::-1][:, : (self.encoder.num_frames - 1) * stride + 1 : stride][:, ::-1])
                started = time.perf_counter()
                parts.append(np.asarray(embed(self.encoder.params, clip)))
                seconds.append(time.perf_counter() - started)
            found.append(np.stack(parts))
        return np.concatenate(found, axis=1)[:, : len(qpos)], 1e6 * min(seconds) / BATCH


def embedding_rewards(
    name: str,
    strides: tuple[int, ...],
    agent: np.ndarray,
    reference: np.ndarray,
    bank: np.ndarray,
    *,
    l2_scale: float | None = None,
) -> dict[str, np.ndarray]:
    """Similarities [M] of embeddings [strides, M, D], published and calibrated.

    Centred: the mean over a bank of clips [strides, N, D] is taken off first. Whitened: each channel is divided by its
    deviation over the bank, too. An encoder that is made for L2 is judged by that alone, at its own scale.
    """
    found = {}
    for stride, z, ref, others in zip(strides, agent, reference, bank, strict=True):
        mean, deviation = others.mean(0), others.std(0)
        deviation = np.maximum(deviation, 1e-3 * deviation.max())
        scale = float(np.linalg.norm(others - mean, axis=-1).mean()) if l2_scale is None else l2_scale
        l2 = l2_similarity(jnp.asarray(z), jnp.asarray(ref), scale)
        if l2_scale is not None:
            found[f"{name}, every {stride}: L2"] = np.asarray(l2, float)
            continue
        pairs = {
            "cosine (published)": cosine_similarity(jnp.asarray(z), jnp.asarray(ref)),
            "L2 (published)": l2,
            "cosine, centred": cosine_similarity(jnp.asarray(z - mean), jnp.asarray(ref - mean)),
            "cosine, whitened": cosine_similarity(
                jnp.asarray((z - mean) / deviation), jnp.asarray((ref - mean) / deviation)
            ),
        }
        found |= {f"{name}, every {stride}: {how}": np.asarray(value, float) for how, value in pairs.items()}
    return found
