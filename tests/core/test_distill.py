"""A reduced distillation: a small student learns poses and a teacher; and what its lessons look like."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nil_jax import cli, envs
from nil_jax.distill import DistillConfig, Painter, distance_loss, distill, family, fidelity, pair_distances, restyled
from nil_jax.rewards import Encoder, load_encoder
from nil_jax.rewards.student import StudentConfig

SMALL = StudentConfig(
    image_size=32, hidden_size=16, num_layers=1, num_heads=2, frame_size=32, num_frames=3, pose_size=8
)
TIMES = np.arange(-2, 1) / 25


@pytest.fixture(scope="module")
def painter():
    return Painter.of(envs.make("unitree_a1"))


def dark_teacher() -> Encoder:
    """Where the dark pixels are, at which frame: something that can be learned from few clips."""

    def embed(params, frames):
        dark = 1 - frames.astype(jnp.float32).mean(-1) / 255
        return jnp.concatenate([dark.mean((-3, -2)), dark.mean((-3, -1))], axis=-1) * params

    return Encoder(jnp.float32(1.0), embed, 3, 32, 64, "dark")


@pytest.mark.slow
def test_a_student_learns_poses_and_its_teacher(painter, tmp_path):
    stages = []
    found = distill(
        [painter.body.env],
        dark_teacher(),
        tmp_path / "b",
        config=DistillConfig(60, 4, 120, 1.0, 3e-3),
        student=SMALL,
        progress=lambda stage, part: stages.append((stage, part)),
    )
    # Measured: from 0.11 after one batch to 0.70, and from 0.16 to 0.52.
    assert found["pose_spearman"] > 0.4 and found["teacher_spearman"] > 0.3
    assert [stage for stage, _ in stages] == sorted([stage for stage, _ in stages], reverse=True)
    assert stages[-1] == ("student", 1.0)
    encoder = load_encoder(tmp_path / "b")
    assert encoder.embedding_size == 3 * 8 + 32 and encoder.image_size == 32
    assert encoder.taught_on == {painter.body.env.fingerprint}
    # The spread over batches: 0.03.
    assert fidelity(encoder, painter.body.env) == pytest.approx(found["pose_spearman"], abs=0.12)


def test_a_teacher_whose_clips_are_longer_is_refused(painter, tmp_path):
    long = dark_teacher()._replace(num_frames=4)
    with pytest.raises(ValueError, match="teacher: expected one whose clips have at most 3 frames, got 4"):
        distill([painter.body.env], long, tmp_path / "s", config=DistillConfig(1, 4, 8), student=SMALL)


def test_every_clip_has_a_style_and_a_camera_of_its_own_and_the_same_motion(painter):
    rng = np.random.default_rng(0)
    coords = np.repeat(family(painter.body, 1, rng, TIMES)[:1], 6, axis=0)
    frames, points = painter(coords, 32, rng)
    np.testing.assert_allclose(pair_distances(painter.body, points), 0, atol=1e-6)
    masks = (frames < 255).any(-1)
    assert all((masks[0] != masks[i]).any() for i in range(1, 6))  # cameras
    styled = np.asarray(restyled(jnp.asarray(frames), jax.random.key(0)))
    colours = np.array([clip[mask].mean(0) for clip, mask in zip(styled, masks, strict=True)])
    assert colours.std(0).min() > 10  # levels
    far = ~np.asarray(
        jax.lax.reduce_window(jnp.asarray(masks), False, jnp.logical_or, (1, 1, 3, 3), (1, 1, 1, 1), "SAME")
    )
    assert (styled[far] == 255).all()  # the blur reaches one pixel beyond the robot, and no style further


def test_the_loss_of_distances_equals_a_loop():
    rng = np.random.default_rng(0)
    pose, wanted = rng.normal(size=(4, 3, 5)), rng.random((4, 4))
    expected = []
    for i in range(4):
        for j in range(4):
            found = np.sqrt(np.mean([np.square(pose[i, t] - pose[j, t]).sum() for t in range(3)]) + 1e-8)
            expected.append((found - wanted[i, j]) ** 2 / (wanted[i, j] + 0.05))
    loss = distance_loss(jnp.asarray(pose, jnp.float32), jnp.asarray(wanted, jnp.float32))
    assert float(loss) == pytest.approx(np.mean(expected), rel=1e-4)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["distill", "unitree_h2", "-o", "{tmp}/s", "--teacher", "none"], "nearest: unitree_h1"),
        (["distill", "unitree_a1", "-o", "{tmp}", "--teacher", "none"], "which exists"),
        (["distill", "unitree_a1", "-o", "student"], "which --encoder takes for one that ships"),
        (["distill", "unitree_a1", "-o", "{tmp}/s", "--teacher", "{tmp}"], "encoder: expected"),
        (["distill", "unitree_a1", "-o", "{tmp}/s", "--num-steps", "0"], "num_steps: expected"),
    ],
)
def test_the_command_line_says_what_is_wrong(argv, message, tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main([word.format(tmp=tmp_path) for word in argv])
    said = " ".join(capsys.readouterr().err.split())
    assert stop.value.code == 2 and message in said and "Traceback" not in said
    assert not (tmp_path / "s").exists()
