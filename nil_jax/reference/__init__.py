"""From a prompt to a clip, and from a clip to a `Reference`: read, segment, resample, align, embed, preview."""

from nil_jax.reference.align import Alignment, fit_start
from nil_jax.reference.clip_masks import read_masks
from nil_jax.reference.draw import draw_reference
from nil_jax.reference.generate import GenerateConfig, first_look, generate_clip, generate_reference
from nil_jax.reference.prepare import (
    Reference,
    ReferenceConfig,
    fit_in_words,
    is_reference,
    prepare_reference,
    with_embeddings,
)
from nil_jax.reference.preview import write_preview
from nil_jax.reference.segment import segment_uniform
from nil_jax.reference.start_frame import start_frame
from nil_jax.reference.tempo import hints
from nil_jax.reference.verdict import Verdict, in_words, judge
from nil_jax.reference.video import Video, read_video, write_video

__all__ = [
    "Alignment",
    "GenerateConfig",
    "Reference",
    "ReferenceConfig",
    "Verdict",
    "Video",
    "draw_reference",
    "first_look",
    "fit_in_words",
    "fit_start",
    "generate_clip",
    "generate_reference",
    "hints",
    "in_words",
    "is_reference",
    "judge",
    "prepare_reference",
    "read_masks",
    "read_video",
    "segment_uniform",
    "start_frame",
    "with_embeddings",
    "write_preview",
    "write_video",
]
