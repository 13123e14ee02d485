"""From a clip to a Reference, and what a Reference keeps, refuses and recomputes."""

import json
from dataclasses import fields, replace
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
import pytest

from nil_jax import envs
from nil_jax.reference import Reference, Video, prepare_reference, read_video, with_embeddings, write_preview
from nil_jax.reference.prepare import _shown, clip_at_ticks
from nil_jax.reference.preview import BOTH, ONLY_CLIP, ONLY_FIT
from nil_jax.rendering import Camera, make_scene, render_masks, side_camera
from nil_jax.rewards import Encoder

POLE = """
<mujoco>
  <compiler angle="radian"/>
  <worldbody>
    <body name="torso" pos="0 0 0.5">
      <freejoint/>
      <geom type="box" size="0.1 0.1 0.2" mass="5"/>
      <body name="leg" pos="0 0 -0.2">
        <joint name="hip" axis="0 1 0" range="-1 1"/>
        <geom type="capsule" size="0.05" fromto="0 0 0 0 0 -0.3" mass="1"/>
      </body>
    </body>
  </worldbody>
  <actuator><motor joint="hip"/></actuator>
</mujoco>
"""


@pytest.fixture(scope="module")
def robot(tmp_path_factory):
    path = tmp_path_factory.mktemp("pole") / "pole.xml"
    path.write_text(POLE)
    return envs.make(str(path))


def swinging_clip(robot, frames=13, size=96):
    """The robot with a swinging leg, grey on white, through a known camera."""
    qpos = np.tile(robot.start_qpos, (frames, 1))
    qpos[:, 7] = 0.5 * np.cos(np.arange(frames) / 4)
    geom_xpos, geom_xmat, _, _ = envs.Body(robot).kinematics(qpos)
    scene, camera = make_scene(robot.mj_model, robot.robot_geom_ids), side_camera(2.0, 0.4, focal=1.8)
    poses, target = (jnp.asarray(geom_xpos), jnp.asarray(geom_xmat)), jnp.zeros((frames, 3))
    masks = np.asarray(render_masks(scene, *poses, camera, target, height=size, width=size))
    return np.where(masks[..., None], np.uint8(80), np.uint8(255)).repeat(3, -1)


@pytest.fixture(scope="module")
def reference(robot):
    return prepare_reference(robot, swinging_clip(robot), source_fps=30.0, fps=25.0, mask_size=32, frame_size=48)


def test_a_prepared_clip_has_one_frame_and_mask_per_tick(robot, reference):
    assert reference.frames.shape == (11, 48, 48, 3)  # 12 steps of 1/30 s hold 10 steps of 1/25 s
    assert reference.masks.shape == (11, 32, 32)
    assert reference.provenance["first_frame_iou"] > 0.9
    assert (reference.provenance["source_fps"], reference.provenance["source_frames"]) == (30.0, 13)
    assert reference.provenance["verdict"]["verdict"] == "good"
    dark = reference.frames.mean(-1) < 170
    coarse = np.kron(reference.masks, np.ones((1, 3, 3), bool))
    fine = np.kron(dark, np.ones((1, 2, 2), bool))
    # Frames are the nearest of the source and masks are interpolated: they agree but for outlines of one pixel of 32.
    assert (fine & coarse).sum() / (fine | coarse).sum() > 0.85
    assert (reference.frames[:, 0] == 255).all()


def test_a_looping_clip_keeps_its_period(robot):
    looping = prepare_reference(
        robot, swinging_clip(robot), source_fps=30.0, fps=25.0, mask_size=32, frame_size=32, loop=True, speed=0.5
    )
    assert len(looping.masks) == round(13 / 30 / 0.5 * 25)
    assert looping.loop


def test_a_robot_that_faces_left_is_mirrored(robot):
    clip = swinging_clip(robot, frames=11)  # so long that the mirrored one is cut at the mirrored pixel
    videos = [Video(frames, 30.0, "swing", "0") for frames in (clip, clip[:, :, ::-1])]
    sizes: Any = {"mask_size": 32, "frame_size": 48, "track": False}
    made = [prepare_reference(robot, v, facing=f, **sizes) for v, f in zip(videos, ("right", "left"), strict=True)]
    assert [reference.provenance["mirrored"] for reference in made] == [False, True]
    for pictures in ("masks", "frames"):
        right, left = (getattr(reference, pictures) for reference in made)
        np.testing.assert_array_equal(right, left)
        assert (right != right[:, :, ::-1]).mean() > 0.02
    np.testing.assert_array_equal(*(clip_at_ticks(v, m) for v, m in zip(videos, made, strict=True)))


def test_a_clip_is_cut_to_the_cycle_that_it_shows(robot):
    video = Video(swinging_clip(robot, frames=48), 30.0, "swing", "0")
    cut = prepare_reference(robot, video, fps=25.0, mask_size=32, frame_size=32, cycle=True)
    first, count = cut.provenance["cut"]
    period = 8 * np.pi / 30 * 25  # ticks
    assert abs(count - period) <= 1 and cut.loop and cut.provenance["seam"] < 1.5
    assert len(cut.masks) == len(cut.frames) == len(cut.motion) == len(clip_at_ticks(video, cut)) == count
    np.testing.assert_array_equal(cut.motion[0], cut.start_qpos)
    whole = prepare_reference(robot, video, fps=25.0, mask_size=32, frame_size=32)
    np.testing.assert_array_equal(cut.masks, whole.masks[first : first + count])
    np.testing.assert_array_equal(cut.frames, whole.frames[first : first + count])
    for settings in ({"loop": True}, {"track": False}):
        with pytest.raises(ValueError, match="cycle: expected it with --track and without --loop"):
            prepare_reference(robot, video, cycle=True, **settings)


def test_a_saved_reference_comes_back_whole(tmp_path, reference):
    digest = {"abc": np.arange(22, dtype=np.float32).reshape(11, 2)}
    reference = replace(reference, embeddings=digest)
    assert reference.save(tmp_path / "new" / "walk.ref") == tmp_path / "new" / "walk.ref"
    loaded = Reference.load(tmp_path / "new" / "walk.ref")
    for name in ("frames", "masks", "start_qpos"):
        np.testing.assert_array_equal(getattr(loaded, name), getattr(reference, name))
    for f in fields(Camera):
        np.testing.assert_array_equal(getattr(loaded.camera, f.name), getattr(reference.camera, f.name))
    np.testing.assert_array_equal(loaded.embeddings["abc"], digest["abc"])
    assert (loaded.fps, loaded.loop, loaded.provenance) == (reference.fps, reference.loop, reference.provenance)
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["walk.ref"]


def test_a_folder_is_not_overwritten_unless_asked(tmp_path, reference):
    reference.save(tmp_path / "walk.ref")
    with pytest.raises(ValueError, match="expected a new folder"):
        reference.save(tmp_path / "walk.ref")
    replace(reference, fps=30.0).save(tmp_path / "walk.ref", overwrite=True)
    assert Reference.load(tmp_path / "walk.ref").fps == 30.0


def test_another_robot_is_refused_by_name(robot, reference):
    reference.check_robot(robot)

    class Other(NamedTuple):
        spec: Any
        fingerprint: str = "0123"

    with pytest.raises(ValueError, match=r"expected one made for other \(0123\), got one for .*pole"):
        reference.check_robot(Other(type("Spec", (), {"name": "other"})))


def test_a_damaged_reference_is_refused_in_one_line(tmp_path, reference):
    with pytest.raises(ValueError, match="nil-jax prepare"):
        Reference.load(tmp_path / "nowhere")

    def broken(change):
        folder = reference.save(tmp_path / "broken.ref", overwrite=True)
        change(folder)
        with pytest.raises(ValueError, match="damaged") as error:
            Reference.load(folder)
        assert "\n" not in str(error.value)

    def truncate(folder):
        (folder / "reference.npz").write_bytes((folder / "reference.npz").read_bytes()[:500])

    def without(name):
        def change(folder):
            arrays = dict(np.load(folder / "reference.npz"))
            arrays.pop(name)
            np.savez(folder / "reference.npz", **arrays)

        return change

    def set_array(name, value):
        def change(folder):
            np.savez(folder / "reference.npz", **(dict(np.load(folder / "reference.npz")) | {name: value}))

        return change

    def set_format(folder):
        settings = json.loads((folder / "reference.json").read_text())
        (folder / "reference.json").write_text(json.dumps(settings | {"format": 99}))

    changes = [
        truncate,
        without("masks"),
        without("camera_focal"),
        set_array("frames", np.zeros((3, 4, 4, 3), np.uint8)),
    ]
    changes += [set_array("start_qpos", np.full(8, np.nan)), set_array("masks", np.array([{"code": "pickled"}]))]
    changes += [set_format, lambda folder: (folder / "reference.json").write_text("{")]
    for change in changes:
        broken(change)


def pixel_encoder(digest: str, scale: float) -> Encoder:
    """Embeds a clip as the scaled mean brightness of each of its frames."""

    def embed(params, frames):
        return params * jnp.mean(frames.astype(jnp.float32), (2, 3, 4))

    return Encoder(scale, embed, num_frames=4, image_size=16, embedding_size=4, digest=digest)


def test_each_tick_is_embedded_from_the_clip_that_ends_there(reference):
    steps = np.arange(11, dtype=np.uint8) * 20
    plain = replace(reference, frames=np.broadcast_to(steps[:, None, None, None], (11, 48, 48, 3)).copy())
    embedded = with_embeddings(plain, pixel_encoder("pixels", 1.0)).embeddings["pixels"]
    expected = [[steps[max(0, t - 3 + k)] for k in range(4)] for t in range(11)]
    np.testing.assert_allclose(embedded, expected, atol=1e-3)


def test_another_encoder_embeds_again_and_the_same_one_does_not(reference):
    encoder = pixel_encoder("pixels", 1.0)
    first = with_embeddings(reference, encoder)
    assert with_embeddings(first, encoder) is first
    second = with_embeddings(first, pixel_encoder("other", 2.0))
    assert set(second.embeddings) == {"pixels", "other"}
    np.testing.assert_allclose(second.embeddings["other"], 2 * second.embeddings["pixels"], rtol=1e-6)


def test_a_clip_is_resampled_in_an_even_cadence():
    video = Video(np.zeros((9, 16, 16, 3), np.uint8), 25.0)
    assert _shown(np.arange(6) / 2, video).tolist() == [0, 1, 1, 2, 2, 3]
    assert _shown(np.arange(6) * 1.5, video).tolist() == [0, 2, 3, 5, 6, 8]


def test_bad_settings_and_clips_are_refused(robot):
    clip = swinging_clip(robot)
    with pytest.raises(ValueError, match="mask_size: expected a number from 16 to 512, got 4"):
        prepare_reference(robot, clip, source_fps=30.0, mask_size=4)
    with pytest.raises(ValueError, match="at least 2 ticks"):
        prepare_reference(robot, clip, source_fps=30.0, speed=20.0)
    with pytest.raises(ValueError, match="stands out from a uniform background"):
        prepare_reference(robot, np.full((5, 64, 64, 3), 255, np.uint8), source_fps=30.0)
    with pytest.raises(ValueError, match="nothing there"):
        prepare_reference(robot, "no_such_clip.mp4")


def test_the_preview_shows_clip_mask_and_fit(tmp_path, robot, reference):
    video = Video(swinging_clip(robot), 30.0, "swing")
    write_preview(tmp_path / "preview.mp4", reference, robot, video)
    preview = read_video(tmp_path / "preview.mp4")
    assert preview.fps == pytest.approx(25.0, rel=1e-3)
    assert len(preview.frames) == 25 + 11  # a second of hold
    clip, mask, fit = np.split(preview.frames[0][40:].astype(int), 3, axis=1)
    share = reference.masks[0].mean()
    for panel in (clip, mask, fit):
        assert np.mean(panel.mean(-1) < 200) == pytest.approx(share, rel=0.3)

    def part_in(color, panel):
        return np.mean(abs(panel - color).max(axis=-1) < 40) / share

    assert part_in(BOTH, fit) > 0.8 and part_in(ONLY_FIT, fit) < 0.1
    raised = replace(reference, motion=reference.motion + 0.2 * np.eye(1, 8, 2, dtype=np.float32))
    write_preview(tmp_path / "raised.mp4", raised, robot, video)
    fit = np.split(read_video(tmp_path / "raised.mp4").frames[0][40:].astype(int), 3, axis=1)[2]
    assert part_in(BOTH, fit) < 0.8 and part_in(ONLY_FIT, fit) > 0.1 and part_in(ONLY_CLIP, fit) > 0.1
