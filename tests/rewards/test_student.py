"""The student: what it computes, how it is kept, and that clips share what is read of their frames."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from nil_jax.rewards import load_encoder
from nil_jax.rewards.student import Student, StudentConfig, params_of, save_student, student_shapes

SMALL = StudentConfig(16, 8, 8, 1, 2, 8, 3, 4, 5, teacher_weight=0.5, scale=0.2)
ROUNDING = 1e-5  # float32 sums in another order


@pytest.fixture
def saved(tmp_path):
    params = Student(SMALL).init(jax.random.key(0), jnp.zeros((1, 3, 16, 16, 3), jnp.uint8))["params"]
    save_student(tmp_path / "student", SMALL, params, {"seed": 0})
    return tmp_path / "student"


def clips(count, config=SMALL):
    shape = (count, config.num_frames, config.image_size, config.image_size, 3)
    return jnp.asarray(np.random.default_rng(0).integers(0, 256, shape, np.uint8))


def test_a_saved_student_is_the_same_encoder(saved, monkeypatch):
    encoder = load_encoder(saved)
    assert (encoder.num_frames, encoder.image_size, encoder.embedding_size) == (3, 16, 3 * 4 + 5)
    assert (encoder.similarity, encoder.scale) == ("l2", 0.2)
    params = params_of(
        {name: value.astype(np.float32) for name, value in load_file(saved / "model.safetensors").items()}
    )
    pose, teacher = Student(SMALL).apply({"params": params}, jnp.asarray(clips(2)))
    z = np.asarray(encoder.embed(encoder.params, clips(2)))
    np.testing.assert_allclose(z[:, :12], np.asarray(pose).reshape(2, -1) / np.sqrt(3), atol=ROUNDING)
    np.testing.assert_allclose(z[:, 12:], 0.5 * np.asarray(teacher), atol=ROUNDING)
    np.testing.assert_allclose(np.linalg.norm(z[:, 12:], axis=1), 0.5, rtol=1e-5)
    assert load_encoder(saved).digest == encoder.digest
    monkeypatch.setenv("HOME", str(saved.parent))
    assert load_encoder(f"~/{saved.name}").digest == encoder.digest


def test_distances_of_embeddings_are_means_over_frames(saved):
    encoder = load_encoder(saved)
    pose, teacher = (np.asarray(x, np.float64) for x in Student(SMALL).apply({"params": encoder.params}, clips(2)))
    expected = np.mean([np.square(pose[0, t] - pose[1, t]).sum() for t in range(3)])
    expected += 0.25 * np.square(teacher[0] - teacher[1]).sum()
    z = np.asarray(encoder.embed(encoder.params, clips(2)), np.float64)
    assert np.square(z[0] - z[1]).sum() == pytest.approx(expected, rel=1e-4)


def test_clips_that_overlap_share_what_is_read_of_their_frames(saved):
    encoder, video = load_encoder(saved), clips(1)[0]
    video = jnp.concatenate([video, video[::-1]])
    kept = encoder.kept(video)
    assert kept.shape == (6, 8)
    for end in range(2, 6):
        z = encoder.embed_kept(kept[None, end - 2 : end + 1])
        np.testing.assert_allclose(z, encoder.embed(encoder.params, video[None, end - 2 : end + 1]), atol=ROUNDING)


def test_the_order_of_frames_and_the_place_of_the_robot_are_seen(saved):
    encoder, clip = load_encoder(saved), clips(1)
    z = encoder.embed(encoder.params, clip)
    for other in (clip[:, ::-1], jnp.roll(clip, 8, axis=2), jnp.roll(clip, 8, axis=3)):
        assert np.abs(encoder.embed(encoder.params, other) - z).max() > 1e-3


def test_damaged_students_are_refused(saved):
    def refused(message):
        with pytest.raises(ValueError, match=message) as caught:
            load_encoder(saved)
        assert "\n" not in str(caught.value)

    tensors = load_file(saved / "model.safetensors")
    assert {name: t.shape for name, t in tensors.items()} == student_shapes(SMALL)
    name = next(iter(tensors))
    save_file({k: v for k, v in tensors.items() if k != name}, saved / "model.safetensors")
    refused(f"missing: {name}")
    (saved / "model.safetensors").write_bytes(b"no tensors")
    refused("expected a safetensors file")
    save_file(tensors, saved / "model.safetensors")
    settings = json.loads((saved / "config.json").read_text())
    for broken, message in (
        ({k: v for k, v in settings.items() if k != "scale"}, "expected all settings of a student"),
        (settings | {"pose_size": 0}, "pose_size: expected a whole number from 1 to 65536, got 0"),
        (settings | {"patch_size": 7}, "image_size: expected a multiple"),
    ):
        (saved / "config.json").write_text(json.dumps(broken))
        refused(message)
    (saved / "config.json").write_text(json.dumps(settings))
    for wrong in ({"pooling": "mean"}, {"dtype": "bfloat16"}, {"num_frames": 4}):
        with pytest.raises(ValueError, match=f"{next(iter(wrong))}: expected"):
            load_encoder(saved, **wrong)


def test_the_default_student_costs_less_than_20_mflop_a_clip():
    """Counted from its products of matrices; a frame is read once however many clips it is in."""
    config = StudentConfig()
    shapes = student_shapes(config)
    tokens = {"frames/space/blocks": 65, "frames/space/patch": 64, "frames/patches": 64, "frames/frame": 1}
    tokens |= {"clips/block": 8, "clips/pose": 8, "clips/teacher": 1}
    flops = 0
    for name, shape in shapes.items():
        if name.endswith("kernel"):
            count = next(n for prefix, n in tokens.items() if name.startswith(prefix))
            flops += 2 * count * int(np.prod(shape))
    attention = 4 * (2 * 65**2 * config.hidden_size + 8**2 * config.frame_size)
    assert 10e6 < flops + attention < 20e6
