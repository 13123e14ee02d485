"""Each fault of a clip moves the part that names it, and real clips come out in the order that people give them."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import mujoco
import numpy as np
import pytest
from PIL import Image

from nil_jax import envs, training
from nil_jax.config import Config
from nil_jax.reference import in_words, judge, read_video, segment_uniform
from nil_jax.reference.verdict import DOUBTFUL, GOOD, TOLERANCES
from nil_jax.rendering import make_scene, render, side_camera
from nil_jax.run import Run

FPS, FRAMES, STRIDE, SIDE = 30.0, 60, 20, 128  # frames per second, frames, frames of a cycle, px
ERASED = [*range(3, 17), *range(40, 44)]
CLEAN, LOST = 0.75, 0.55  # a part without fault is above, one with a gross fault below


@pytest.fixture(scope="module")
def walk(tiny_env):
    """The tiny robot walks on the spot, its lowest foot on the floor: frames on white, and masks."""
    model = tiny_env.mj_model
    data, feet = mujoco.MjData(model), [model.geom(f"{side}_foot").id for side in ("left", "right")]
    qpos = np.tile(tiny_env.default_qpos, (FRAMES, 1))
    swing = 0.4 * np.sin(2 * np.pi * np.arange(FRAMES) / STRIDE + 0.5)
    qpos[:, 7], qpos[:, 8] = swing, -swing
    for row in qpos:
        data.qpos = row
        mujoco.mj_kinematics(model, data)
        radius, half = model.geom_size[feet, 0], model.geom_size[feet, 1]
        row[2] -= (data.geom_xpos[feet, 2] - radius - half * np.abs(data.geom_xmat[feet, 8])).min()
    kinematics = jax.jit(jax.vmap(lambda q: envs.forward_kinematics(tiny_env.mjx_model, q)))
    geom_xpos, geom_xmat = kinematics(jnp.asarray(qpos, jnp.float32))
    target = jnp.zeros((FRAMES, 3))
    scene = make_scene(tiny_env.mj_model, tiny_env.robot_geom_ids)
    drawn = render(scene, geom_xpos, geom_xmat, side_camera(2.0, 0.3, focal=2.5), target, height=SIDE, width=SIDE)
    masks = np.asarray(drawn.segmentation) >= 0
    return np.where(masks[..., None], np.asarray(drawn.rgb), 255).astype(np.uint8), masks


def resized(image, factor):
    """The picture, larger or smaller around its middle, in a frame of the same size."""
    low, high = (SIDE - SIDE / factor) / 2, (SIDE + SIDE / factor) / 2
    box, extent = (low, low, high, high), Image.Transform.EXTENT
    return np.asarray(Image.fromarray(image).transform((SIDE, SIDE), extent, box, Image.Resampling.NEAREST))


def zoomed(frames, masks, end):
    masks = np.stack(
        [resized(m.astype(np.uint8), z) > 0 for m, z in zip(masks, np.linspace(1, end, FRAMES), strict=True)]
    )
    return np.where(masks[..., None], np.uint8(120), np.uint8(255)).repeat(3, -1), masks


def shifted(frames, masks, shifts, axis):
    pairs = [(np.roll(f, s, axis), np.roll(m, s, axis)) for f, m, s in zip(frames, masks, shifts, strict=True)]
    return tuple(np.stack(stack) for stack in zip(*pairs, strict=True))


def without_front_leg(frames, masks):
    masks = masks.copy()
    rows, columns = np.flatnonzero(masks[0].any(1)), np.flatnonzero(masks[0].any(0))
    below, front = (rows[0] + rows[-1]) // 2, (columns[0] + columns[-1]) // 2
    masks[ERASED, below:, front:] = False
    return np.where(masks[..., None], frames, 255).astype(np.uint8), masks


def recoloured(frames, masks, factors):
    """Each frame's robot times a factor for red, green and blue."""
    changed = np.clip(frames * np.asarray(factors)[:, None, None], 0, 255)
    return np.where(masks[..., None], changed, 255).astype(np.uint8), masks


def swollen(frames, masks):
    """From a third of the clip on the robot's outline is sideways fuller by eight pixels."""
    wide = masks | np.roll(masks, 4, 2) | np.roll(masks, -4, 2) | np.roll(masks, 8, 2) | np.roll(masks, -8, 2)
    masks = np.where(np.arange(FRAMES)[:, None, None] < FRAMES // 3, masks, wide)
    return np.where(masks[..., None], np.minimum(frames, 150), 255).astype(np.uint8), masks


def held(frames, masks):
    """Every fifth frame, shown five times."""
    index = np.arange(FRAMES) // 5 * 5
    return frames[index], masks[index]


HOPS = np.random.default_rng(0).integers(-SIDE // 12, SIDE // 12, FRAMES)
BLINK = np.where(np.arange(FRAMES)[:, None] % 2, 0.6, 1.0).repeat(3, 1)
RESTYLED = np.where(np.arange(FRAMES)[:, None] < 20, [1.0, 1.0, 1.0], [1.6, 0.7, 0.4])
FAULTS = {
    "shrinks": ("scale", "the robot shrinks by", lambda f, m: zoomed(f, m, 0.6)),
    "grows": ("scale", "the robot grows by", lambda f, m: zoomed(f, m, 1.5)),
    "swells": ("bulk", "fuller", swollen),
    "restyled": ("identity", "colours drift", lambda f, m: recoloured(f, m, RESTYLED)),
    "blinks": ("flicker", "tremble", lambda f, m: recoloured(f, m, BLINK)),
    "leg erased": ("limbs", f"the legs vanish, appear or jump in {len(ERASED)} of {FRAMES}", without_front_leg),
    "hops": ("floor", "lowest point moves up and down", lambda f, m: shifted(f, m, HOPS, 0)),
    "walks away": ("centre", "wanders sideways", lambda f, m: shifted(f, m, np.arange(FRAMES) // 3, 1)),
    "frames dropped": ("rate", "that of 6 pictures per second", held),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_lowers_its_own_part_and_is_named(walk, name):
    part, words, corrupt = FAULTS[name]
    clean, bad = judge(*walk, FPS), judge(*corrupt(*walk), FPS)
    assert clean.parts[part] > CLEAN and bad.parts[part] < LOST
    assert words in bad.reason
    assert bad.word != "good" and bad.score < clean.score - 0.15


def test_a_robot_that_keeps_its_shape_is_good(walk):
    verdict = judge(*walk, FPS, first_frame_iou=0.9, loop=True)
    assert verdict.word == "good" and min(verdict.parts.values()) > CLEAN
    assert verdict.reason.startswith("at worst, ")
    standing = tuple(array[[0] * 30] for array in walk)
    assert min(judge(*standing, FPS, loop=True).parts.values()) > 0.9


def test_the_score_is_the_root_of_the_worst_part_times_the_geometric_mean(walk):
    verdict = judge(*walk, FPS, first_frame_iou=1 - 2 * TOLERANCES["first_frame"])
    values = list(verdict.parts.values())
    assert verdict.parts["first_frame"] == pytest.approx(0.2) == pytest.approx(min(values))
    assert verdict.score == pytest.approx((0.2 * np.prod(values) ** (1 / len(values))) ** 0.5)
    assert DOUBTFUL < GOOD and verdict.word == ("doubtful" if verdict.score >= DOUBTFUL else "unusable")
    said = verdict.as_json()
    assert in_words(said) == f"{verdict.word} as a reference (score {said['score']:.2f}): {verdict.reason}"
    assert "an IoU of 0.50" in verdict.reason


def test_a_loop_that_does_not_close_counts_only_in_a_loop(walk):
    whole, cut = (tuple(array[:length] for array in walk) for length in (2 * STRIDE, 2 * STRIDE + STRIDE // 4))
    assert judge(*whole, FPS, loop=True).parts["loop"] > 0.9
    open_loop = judge(*cut, FPS, loop=True)
    assert open_loop.parts["loop"] < GOOD and "does not lead back" in open_loop.reason
    assert "loop" not in judge(*cut, FPS).parts


def test_frames_without_a_robot_are_counted(walk):
    frames, masks = walk[0], walk[1].copy()
    masks[10:30] = False
    verdict = judge(frames, masks, FPS)
    assert "vanish, appear or jump in 20 of 60 frames" in verdict.reason and verdict.parts["limbs"] < 0.2


def test_a_leg_that_never_comes_back_is_missing_to_the_end(walk):
    frames, masks = without_front_leg(*walk)
    end = ERASED[0] + 5
    masks = np.concatenate([masks[:end], np.repeat(masks[end - 1 : end], 20, 0)])
    frames = np.concatenate([frames[:end], np.repeat(frames[end - 1 : end], 20, 0)])
    assert (
        f"the legs vanish, appear or jump in {end + 20 - ERASED[0]} of {end + 20} frames"
        in judge(frames, masks, FPS).reason
    )


def test_large_pictures_are_judged_like_small_ones(walk):
    small, large = judge(*walk, FPS), judge(*(array.repeat(3, 1).repeat(3, 2) for array in walk), FPS)
    assert large.parts == pytest.approx(small.parts)


def test_the_worst_clips_still_get_numbers(walk):
    noise = np.random.default_rng(0)
    frames, masks = noise.integers(0, 256, (8, 40, 40, 3), np.uint8), noise.random((8, 40, 40)) < 0.3
    alone = walk[1][:2] & np.array([True, False])[:, None, None]
    for clip in ((frames, masks, 2.0), (walk[0][:2], alone, 25.0), (frames[:2], np.ones((2, 40, 40), bool), 1000.0)):
        verdict = judge(*clip, first_frame_iou=0.0, loop=True)
        assert all(0 < part <= 1 for part in verdict.parts.values()) and 0 < verdict.score <= 1


def test_a_clip_that_begins_without_a_robot_is_refused(walk):
    with pytest.raises(ValueError, match="verdict: expected a robot in the first mask"):
        judge(walk[0], np.zeros_like(walk[1]), FPS)


def test_training_warns_of_a_clip_that_is_not_good(tiny_env, tiny_reference, capsys):
    frames, masks = tiny_reference.frames, tiny_reference.masks

    def said(verdict):
        reference = replace(tiny_reference, provenance=dict(tiny_reference.provenance) | {"verdict": verdict.as_json()})
        run = Run.open(None, Config(), tiny_env, resume=False, progress=True)
        training._reference(tiny_env, reference, Config(), None, run)
        return capsys.readouterr()

    good, bad = judge(frames, masks, 25.0), judge(frames, masks, 2.0)
    assert good.word == "good" and "warning" not in "".join(said(good))
    assert f"warning: the clip is {bad.word} as a reference" in "".join(said(bad))


# As seen: Kling's robots keep their shape, Sora's grows arms in its first second, Stable Video Diffusion's legs melt.
WORDS = {
    "h1_walk_kling": "good",
    "a1_walk_kling": "good",
    "talos_walk_kling": "good",
    "h1_walk_sora": "doubtful",
    "h1_walk_svd": "unusable",
}


@pytest.mark.slow
def test_real_clips_are_ranked_as_people_rank_them(shared):
    verdicts = {}
    for name in WORDS:
        video = read_video(shared / "videos" / f"{name}.mp4")
        verdicts[name] = judge(video.frames, segment_uniform(video.frames), video.fps)
    assert {name: verdict.word for name, verdict in verdicts.items()} == WORDS
    assert "the legs vanish" in verdicts["h1_walk_svd"].reason
    assert "fuller" in verdicts["h1_walk_sora"].reason
    scores = [verdict.score for verdict in verdicts.values()]
    assert min(scores[:3]) > scores[3] + 0.1 > scores[4] + 0.2
