"""Robot masks from SAM 2, for clips whose background is not plain.

The first frame is prompted with a box and a few points inside the robot's silhouette; SAM 2 finds the robot there and
follows it through the clip. A mask as the prompt would be taken for the truth as it is, legs and all, and where the
robot stands is known only roughly before camera and pose are fitted.

Axes: T frames, H rows, W columns, K points. Points are (x, y) in pixels of the frame.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, UInt8
from PIL import Image
from scipy import ndimage

from nil_jax.files import checkpoint_folder, one_line
from nil_jax.reference.segment import bounding_box, clean, segment_uniform
from nil_jax.reference.start_frame import start_frame
from nil_jax.reference.video_models import best_device, folder_identity, quiet

KIND = "sam2_video"  # model_type of a checkpoint that follows things through a video
EXTRA = 'type: pip install "nil-jax[segment]"'
SILHOUETTE = 256  # px a side; the prompt needs no more
POINTS = 4
DEEP = 0.75  # of the greatest depth inside the silhouette: limbs may be elsewhere in the clip, and get no point
SPACING = 0.1  # of the silhouette's longer side, between points
MARGIN = 0.05  # of each side of the box, added on either end, for limbs that reach further than in the start frame
TRUSTED = 0.35  # IoU of silhouette and foreground from which on the foreground is taken for the robot
STRETCH = 1.5  # at most, of one side against the other, or everything would have the silhouette's shape
BOX_LABELS, INSIDE = (2, 3), 1  # what SAM 2 calls the corners of a box, and a point on the thing


@dataclass(frozen=True)
class Sam2:
    """SAM 2's video network in memory."""

    network: Any  # transformers' Sam2VideoModel
    identity: Mapping[str, str]  # commit, or hash of the files


def start_prompt(env: Any, frame: UInt8[np.ndarray, "H W 3"]) -> Bool[np.ndarray, "H W"]:
    """The robot's start silhouette where the robot seems to be in the first frame.

    Where the plain-background segmentation finds something of about the silhouette's shape, the silhouette is stretched
    to its bounding box; elsewhere it stands as `nil-jax generate` puts the start frame: a square in the middle.

    Args:
        env: The robot, from `nil_jax.envs.make`.
        frame: The first one of the clip.
    """
    silhouette = (start_frame(env, SILHOUETTE) < 255).any(-1)
    height, width = frame.shape[:2]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    centred = _stretched(silhouette, (top, left, top + side, left + side), (height, width))
    try:
        found = segment_uniform(frame[None])[0]
    except ValueError:  # no plain background: the usual case here
        return centred
    fitted = _stretched(_tight(silhouette), bounding_box(found), (height, width))
    stretch = np.divide(_tight(found).shape, _tight(silhouette).shape)
    alike = stretch.max() <= STRETCH * stretch.min() and (fitted & found).sum() >= TRUSTED * (fitted | found).sum()
    return fitted if alike else centred


def _tight(mask: Bool[np.ndarray, "H W"]) -> Bool[np.ndarray, "h w"]:
    top, left, bottom, right = bounding_box(mask)
    return mask[top:bottom, left:right]


def _stretched(mask, box, shape) -> Bool[np.ndarray, "H W"]:
    """A mask that fills the box (top, left, bottom, right) of an otherwise empty frame."""
    top, left, bottom, right = (int(edge) for edge in box)
    size = (right - left, bottom - top)
    result = np.zeros(shape, bool)
    result[top:bottom, left:right] = np.asarray(Image.fromarray(mask).resize(size, Image.Resampling.NEAREST))
    return result


def inner_points(mask: Bool[np.ndarray, "H W"]) -> Float[np.ndarray, "K 2"]:
    """Up to four points deep inside a mask and apart from each other, the deepest first."""
    depth = ndimage.distance_transform_edt(np.pad(mask, 1))[1:-1, 1:-1]  # pyright: ignore
    top, left, bottom, right = bounding_box(mask)
    apart, least = SPACING * max(bottom - top, right - left), DEEP * depth.max()
    rows, columns = np.ogrid[: mask.shape[0], : mask.shape[1]]
    points = []
    while len(points) < POINTS and depth.max() >= least:
        y, x = np.unravel_index(depth.argmax(), depth.shape)
        points.append((x + 0.5, y + 0.5))
        depth[np.hypot(rows - y, columns - x) <= apart] = 0
    return np.array(points)


def load_sam2(folder_or_id: str | Path) -> Sam2:
    """SAM 2 on the best device there is.

    Args:
        folder_or_id: A folder with config.json and safetensors, or a Hugging Face id such as
            facebook/sam2.1-hiera-tiny, with @revision behind it if wanted.

    Raises:
        ValueError: Packages are missing; no such folder or id; another kind of model; damaged or without safetensors.
    """
    transformers = _transformers()
    folder = checkpoint_folder(str(folder_or_id), "segmenter_model")
    wanted = f"segmenter_model: expected a complete {KIND} model with safetensors in {folder}"
    try:
        config = transformers.AutoConfig.from_pretrained(folder)
        if config.model_type != KIND:
            raise ValueError(f"one of the type {config.model_type!r}; use facebook/sam2.1-hiera-tiny or a larger one")
        with quiet("transformers"):
            network, loaded = transformers.Sam2VideoModel.from_pretrained(
                folder, config=config, use_safetensors=True, output_loading_info=True
            )
        if loaded["missing_keys"]:
            raise ValueError(f"one without {sorted(loaded['missing_keys'])[0]}")
    except Exception as error:  # whatever a damaged folder leads to, in transformers, torch or safetensors
        raise ValueError(f"{wanted}, got {one_line(error)}") from error
    return Sam2(network.to(best_device()).eval(), folder_identity(folder))


def _transformers() -> ModuleType:
    try:
        import torch  # noqa: F401
        import transformers
    except ImportError as error:
        raise ValueError(f"segmenter: expected the packages for SAM 2, got {error}; {EXTRA}") from None
    if not hasattr(transformers, "Sam2VideoModel"):
        raise ValueError(
            f"segmenter: expected a transformers with Sam2VideoModel, got {transformers.__version__}; {EXTRA} --upgrade"
        )
    return transformers


def segment_sam2(
    frames: UInt8[np.ndarray, "T H W 3"],
    prompt: Bool[np.ndarray, "H W"],
    model: Sam2,
    *,
    progress: Callable[[float], None] | None = None,
) -> tuple[Bool[np.ndarray, "T H W"], Float[np.ndarray, " T"]]:
    """Masks of the thing that the prompt marks in the first frame, and how sure SAM 2 is that it is there.

    Memory does not grow with the clip: frames go through one by one, and only what SAM 2 looks back on is kept.

    Args:
        frames: The clip.
        prompt: About where the robot is in the first frame; its bounding box and points inside it are used.
        model: From `load_sam2`.
        progress: Called with the finished part, in [0, 1].

    Returns:
        Masks without islands, and the probability in [0, 1] that the thing is in each frame.

    Raises:
        ValueError: The prompt is empty, or the device's memory is too small.
    """
    import torch

    if not prompt.any():
        raise ValueError("prompt: expected the robot in the first frame, got an empty mask; check the clip")
    network = model.network
    session = _session(network, prompt)
    outputs = session.output_dict_per_obj[0]["non_cond_frame_outputs"]
    memory = max(network.config.num_maskmem, network.config.max_object_pointers_in_encoder)
    masks, presence = np.empty(frames.shape[:3], bool), np.empty(len(frames))
    for t, frame in enumerate(frames):
        try:
            seen = network(session, frame=_pixels(frame, network), frame_idx=t)
        except torch.OutOfMemoryError as error:
            raise ValueError(
                f"memory: expected room for SAM 2, got {one_line(error)}; use a smaller segmenter_model"
            ) from None
        masks[t] = clean(_at_size(seen.pred_masks, frame.shape[:2]))
        presence[t] = seen.object_score_logits.sigmoid().item()
        session.processed_frames.clear()
        outputs.pop(t - memory, None)
        if progress:
            progress((t + 1) / len(frames))
    return masks, presence


def _session(network: Any, prompt: Bool[np.ndarray, "H W"]) -> Any:
    """A session that waits for its first frame, with the prompt for it; what transformers' own processor would make.

    That one needs torchvision, for nothing but the resizing of pictures.
    """
    import torch
    import transformers

    session = transformers.Sam2VideoInferenceSession(
        inference_device=network.device,
        inference_state_device=network.device,
        video_storage_device=network.device,
        dtype=network.dtype,
    )
    top, left, bottom, right = bounding_box(prompt)
    size, margin = np.array(prompt.shape[::-1]), MARGIN * np.array([right - left, bottom - top])
    corners = np.clip(np.array([(left, top), (right, bottom)]) + np.outer((-1, 1), margin), 0, size)
    points = np.concatenate([corners, inner_points(prompt)]) * network.config.image_size / size
    labels = [*BOX_LABELS, *[INSIDE] * (len(points) - len(BOX_LABELS))]
    robot = session.obj_id_to_idx(1)
    inputs = {
        "point_coords": torch.tensor(points[None, None], dtype=network.dtype),
        "point_labels": torch.tensor([[labels]], dtype=torch.int32),
    }
    session.add_point_inputs(robot, 0, inputs)
    session.obj_with_new_inputs = [1]
    return session


def _pixels(frame: UInt8[np.ndarray, "H W 3"], network: Any) -> Any:
    """A frame as SAM 2 takes it: a square tensor [1, 3, S, S] with ImageNet's mean and deviation."""
    import torch
    from transformers.utils.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

    side = network.config.image_size
    picture = torch.tensor(frame, device=network.device).permute(2, 0, 1)[None].float() / 255
    picture = torch.nn.functional.interpolate(picture, (side, side), mode="bilinear", antialias=True)
    mean, deviation = (picture.new_tensor(c)[:, None, None] for c in (IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD))
    return (picture - mean) / deviation


def _at_size(logits: Any, size: tuple[int, int]) -> Bool[np.ndarray, "H W"]:
    import torch

    logits = torch.nn.functional.interpolate(logits.float(), size, mode="bilinear", align_corners=False)
    return (logits[0, 0] > 0).cpu().numpy()
