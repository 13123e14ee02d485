"""Training on a tiny robot: files of a run, exact resume, refusals, and the host loop's arithmetic."""

import dataclasses
import itertools
import json
import os
import re
import shutil
import signal

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from parallel_run import Seek
from short_run import SETTINGS

import nil_jax
from nil_jax import training
from nil_jax.checkpoint import Checkpoints
from nil_jax.config import save_config
from nil_jax.learning.replay import make_replay
from nil_jax.program import make_program
from nil_jax.report import AGENT_COLOR, REFERENCE_COLOR, comparison_frames
from nil_jax.rewards import Encoder
from nil_jax.run import Run, SavedRun, Stop


def train(env, reference, folder, **settings):
    return nil_jax.train(env, reference, output=folder, progress=False, **(SETTINGS | settings))


@pytest.fixture(scope="module")
def seeking(tmp_path_factory):
    """A run that compiles in a moment, for what has to do with neither robot nor clip."""
    return train(Seek(), None, tmp_path_factory.mktemp("seeking") / "run")


@pytest.fixture(scope="module")
def whole(tiny_env, moving_reference, tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole") / "run"
    return train(tiny_env, moving_reference, folder)


def test_a_run_folder_holds_what_it_should(whole):
    names = {path.name for path in whole.folder.iterdir()}
    expected = {"config.json", "run.json", "reference", "metrics.jsonl", "tensorboard", "checkpoints"}
    assert names == expected | {"evaluation.json", "curves.png", "comparison.mp4", "report.html"}
    rows = [json.loads(line) for line in (whole.folder / "metrics.jsonl").read_text().splitlines()]
    assert rows[-1]["step"] == SETTINGS["num_timesteps"]
    assert {"sps", "reward/mask", "episode_return", "learner/critic_loss", "falls"} <= set().union(*rows)


def test_the_evaluation_holds_the_policy_and_its_controls(whole):
    assert list(whole.evaluation) == ["policy", "untrained policy", "zero action", "random policy"]
    assert json.loads((whole.folder / "evaluation.json").read_text()) == whole.evaluation
    assert all(np.isfinite(list(row.values())).all() for row in whole.evaluation.values())


def test_the_policy_of_a_run_acts_as_the_returned_one(whole, tiny_env, moving_reference):
    env = nil_jax.ImitationEnv(tiny_env, moving_reference)
    saved = SavedRun.load(whole.folder)
    actor_critic = make_program(env, saved.config).actor_critic
    learner = saved.learner(actor_critic.init(jax.random.key(0)))
    policy = nil_jax.make_policy(actor_critic, learner, deterministic=True)
    observation = jnp.linspace(-1, 1, env.observation_size, dtype=jnp.float32)
    expected, _ = whole.policy(observation, jax.random.key(1))
    np.testing.assert_array_equal(policy(observation, jax.random.key(1))[0], expected)
    assert np.abs(expected).max() <= 1


@pytest.mark.slow
def test_a_run_that_was_killed_resumes_bit_equal(whole, tiny_env, moving_reference, tmp_path, monkeypatch):
    folder = tmp_path / "run"
    save = Run.checkpoint

    def save_and_die(run, *args):
        save(run, *args)
        raise KeyboardInterrupt

    monkeypatch.setattr(Run, "checkpoint", save_and_die)
    with pytest.raises(KeyboardInterrupt):
        train(tiny_env, moving_reference, folder)
    monkeypatch.setattr(Run, "checkpoint", save)
    resumed = train(tiny_env, None, folder, resume=True)
    for ours, theirs in zip(jax.tree.leaves(resumed.learner), jax.tree.leaves(whole.learner), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert resumed.evaluation == whole.evaluation


@pytest.mark.parametrize("sign", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_saves_a_checkpoint_and_the_run_goes_on_bit_equal(sign, seeking, tmp_path, monkeypatch):
    folder, log, logged = tmp_path / "run", Run.log, []

    def log_and_interrupt(run, step, *args):
        log(run, step, *args)
        logged.append(step)
        if len(logged) == 3:
            os.kill(os.getpid(), sign)

    before = signal.getsignal(sign)
    monkeypatch.setattr(Run, "log", log_and_interrupt)
    with pytest.raises(KeyboardInterrupt):
        train(Seek(), None, folder)
    assert signal.getsignal(sign) == before
    monkeypatch.setattr(Run, "log", log)
    assert len(logged) == 3 and SavedRun.load(folder).step == logged[-1] < SETTINGS["num_timesteps"]
    resumed = train(Seek(), None, folder, resume=True)
    jax.tree.map(np.testing.assert_array_equal, resumed.learner, seeking.learner)


@pytest.mark.parametrize("kept", [True, False])
def test_a_callback_stops_a_run_which_goes_on_with_its_replay_or_a_new_one(kept, seeking, tmp_path):
    def stop(*_):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(Seek(), None, tmp_path / "run", callback=stop, checkpoint_replay=kept)
    half = SavedRun.load(tmp_path / "run")
    assert half.step == SETTINGS["num_timesteps"] // 2
    updates = int(half.learner(seeking.learner).steps)
    assert any(path.name == "replay" for path in (tmp_path / "run" / "checkpoints").glob("*/*")) == kept
    resumed = nil_jax.train(Seek(), output=tmp_path / "run", resume=True, progress=False)
    if kept:
        jax.tree.map(np.testing.assert_array_equal, resumed.learner, seeking.learner)
    else:  # it learns again once the new replay is filled
        assert updates < int(resumed.learner.steps) < int(seeking.learner.steps)


@pytest.mark.slow
def test_without_a_clip_the_robots_own_reward_is_learned(tiny_env):
    result = nil_jax.train(tiny_env, progress=False, **SETTINGS)
    assert "mask_iou" not in result.evaluation["policy"] and result.folder is None
    assert result.evaluation["policy"]["return"] > 0


def test_a_callback_sees_each_evaluation():
    seen = []
    result = nil_jax.train(Seek(), progress=False, callback=lambda *row: seen.append(row), **SETTINGS)
    assert [step for step, *_ in seen] == [SETTINGS["num_timesteps"] // 2, SETTINGS["num_timesteps"]]
    assert seen[-1][1] == result.evaluation["policy"] and result.folder is None
    observation = jnp.ones(Seek.observation_size)
    actions = [policy(observation, jax.random.key(0))[0] for *_, policy in seen]
    np.testing.assert_array_equal(actions[-1], result.policy(observation, jax.random.key(0))[0])
    assert np.abs(actions[0] - actions[-1]).max() > 0


def test_a_film_shows_the_robot_until_its_episode_ends(tiny_env, tiny_reference):
    env = nil_jax.ImitationEnv(tiny_env, tiny_reference)
    for seconds, ticks in ((0.4, 10), (2.0, 20)):  # the clip ends after 20
        film = nil_jax.make_film(env, seconds=seconds, size=32)
        frames = film(lambda observation, key: (jnp.zeros((*observation.shape[:-1], env.action_size)), {}))
        assert frames.shape == (ticks, 32, 32, 3) and frames.dtype == np.uint8 and frames.min() < 200
    with pytest.raises(ValueError, match="expected one with a reference"):
        nil_jax.make_film(nil_jax.ImitationEnv(tiny_env, None))


def test_a_full_disk_is_told_and_loses_nothing(seeking, tmp_path, monkeypatch):
    save, saved = Checkpoints.save, []

    def save_once(checkpoints, step, parts):
        if saved:
            raise OSError(28, "No space left on device")
        saved.append(step)
        save(checkpoints, step, parts)

    monkeypatch.setattr(Checkpoints, "save", save_once)
    with pytest.raises(
        OSError, match=r"No space left on device; the newest checkpoint is that of step 256; go on from there"
    ):
        train(Seek(), None, tmp_path / "run")
    monkeypatch.setattr(Checkpoints, "save", save)
    resumed = train(Seek(), None, tmp_path / "run", resume=True)
    jax.tree.map(np.testing.assert_array_equal, resumed.learner, seeking.learner)


def test_two_runs_do_not_share_a_folder(tiny_env, tmp_path):
    first, second = (
        Run.open(tmp_path / "run", nil_jax.Config(), tiny_env, resume=False, progress=False) for _ in range(2)
    )
    first.start(nil_jax.ImitationEnv(tiny_env, None))
    before = (tmp_path / "run" / "run.json").read_text()
    with pytest.raises(ValueError, match="expected a folder that no run writes to"):
        second.start(nil_jax.ImitationEnv(tiny_env, None))
    first.close()
    assert json.loads(before) and (tmp_path / "run" / "run.json").read_text() == before
    again = Run.open(tmp_path / "run", nil_jax.Config(), tiny_env, resume=True, progress=False)
    again.start(nil_jax.ImitationEnv(tiny_env, None))
    again.close()


def test_lost_contacts_and_broken_physics_are_told_once(tiny_env, capsys):
    run = Run.open(None, nil_jax.Config(), tiny_env, resume=False, progress=True)
    run.begin(0, 10)
    for share in (0.0, 0.25, 0.5):
        run.log(1, {"falls": 0.0, "physics_diverged": share, "buffer_overflow": share}, 1.0)
    run.close()
    said = capsys.readouterr().err
    assert said.count("the physics was not finite in 25.00% of the steps") == said.count("--sim-dt 0.002") == 1
    assert said.count("were lost") == said.count("--buffer-margin 4") == 1


def test_a_second_ctrl_c_stops_at_once():
    with pytest.raises(KeyboardInterrupt), Stop(lambda line: None) as stop:
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.asked
        os.kill(os.getpid(), signal.SIGINT)


def test_training_step_is_compiled_once_and_leaves_its_input_alone(tiny_env, tiny_reference):
    config = nil_jax.Config().with_fields(**SETTINGS, replay_size=512)
    program = make_program(nil_jax.ImitationEnv(tiny_env, tiny_reference), config)
    state = jax.jit(program.init)(jax.random.key(0))
    before = jax.tree.map(np.asarray, state.learner.params)
    traces = []

    @jax.jit
    def step(state):
        traces.append(1)
        return program.training_step(state, None)

    following, _ = step(state)
    for _ in range(6):
        following, metrics = step(following)
    assert len(traces) == 1
    assert np.isfinite(metrics["learner/critic_loss"])
    jax.tree.map(np.testing.assert_array_equal, before, jax.tree.map(np.asarray, state.learner.params))
    assert int(following.learner.steps) > 0 == int(state.learner.steps)


def test_an_encoder_is_measured_on_a_robot_that_it_was_not_taught_on(tiny_env, monkeypatch, capsys):
    monkeypatch.setattr(training, "fidelity", lambda encoder, env: 0.432)
    run = Run.open(None, nil_jax.Config(), tiny_env, resume=False, progress=True)
    encoder = Encoder(jnp.float32(1.0), lambda params, frames: frames, 2, 16, 3, "none")
    for taught_on, warned in ((None, False), (frozenset([tiny_env.fingerprint]), False), (frozenset(), True)):
        training._warn_of_stranger(encoder._replace(taught_on=taught_on), tiny_env, run)
        said = " ".join(capsys.readouterr().err.split())
        assert ("not taught on" in said and "correlation of 0.43" in said and "type: nil-jax distill" in said) == warned


def test_a_folder_that_holds_something_is_refused(whole, tiny_env, moving_reference):
    with pytest.raises(ValueError, match="--resume"):
        train(tiny_env, moving_reference, whole.folder)


def test_resuming_with_other_settings_is_refused(whole, tiny_env):
    with pytest.raises(ValueError, match=r"gamma 0.98 \(got 0.5\)"):
        train(tiny_env, None, whole.folder, resume=True, gamma=0.5)


def test_resuming_a_finished_run_changes_nothing(seeking):
    before = {path: path.stat().st_mtime_ns for path in (seeking.folder / "checkpoints").rglob("*")}
    rows = (seeking.folder / "metrics.jsonl").read_text()
    again = train(Seek(), None, seeking.folder, resume=True)
    assert again.evaluation == seeking.evaluation
    assert {path: path.stat().st_mtime_ns for path in (seeking.folder / "checkpoints").rglob("*")} == before
    assert (seeking.folder / "metrics.jsonl").read_text() == rows


def test_a_finished_run_goes_on_with_more_steps_and_its_own_settings(seeking, tmp_path):
    folder, more = shutil.copytree(seeking.folder, tmp_path / "run"), SETTINGS["num_timesteps"] * 2
    again = nil_jax.train(Seek(), output=folder, resume=True, progress=False, num_timesteps=more)
    assert int(again.learner.steps) > 2 * int(seeking.learner.steps)  # the replay is not filled once more
    saved = SavedRun.load(folder)
    assert saved.step == more
    assert saved.config == SavedRun.load(seeking.folder).config.with_fields(num_timesteps=more)


def test_a_run_goes_on_with_other_learning_rates(seeking, tmp_path):
    """As the message of a learner that diverged advises."""
    folder = shutil.copytree(seeking.folder, tmp_path / "run")
    more = {"num_timesteps": SETTINGS["num_timesteps"] * 2, "actor_lr": 1e-5, "critic_lr": 1e-5}
    again = nil_jax.train(Seek(), output=folder, resume=True, progress=False, **more)
    for name, rate in (("actor", 1e-5), ("critic", 1e-5)):
        pairs = zip(*(jax.tree.leaves(run.learner.params[name]) for run in (again, seeking)), strict=True)
        updates = int(again.learner.steps) - int(seeking.learner.steps)
        assert 0 < max(np.abs(now - before).max() for now, before in pairs) < 3 * rate * updates
    assert SavedRun.load(folder).config == SavedRun.load(seeking.folder).config.with_fields(**more)


def test_resuming_with_another_clip_is_refused(whole, tiny_env, moving_reference):
    other = dataclasses.replace(moving_reference, masks=~moving_reference.masks)
    with pytest.raises(ValueError, match="expected the clip that the run began with"):
        train(tiny_env, other, whole.folder, resume=True)


def test_settings_of_what_is_made_already_are_refused(tiny_env, tiny_reference):
    with pytest.raises(ValueError, match=r"episode_length: expected 500, got 100; make the env with it"):
        train(tiny_env, None, None, episode_length=100)
    made = dataclasses.replace(tiny_reference, provenance=tiny_reference.provenance | {"speed": 2.0, "cycle": True})
    with pytest.raises(ValueError, match=r"speed: expected 2.0, got 3.0; the reference is prepared"):
        train(tiny_env, made, None, speed=3.0)
    for asked in ({}, {"speed": 2.0}):  # what a run tells of its reference is true
        config = training._as_given(nil_jax.Config().with_fields(**asked), tiny_env, made)
        assert config == nil_jax.Config().with_fields(**dataclasses.asdict(tiny_env.config), speed=2.0, cycle=True)


def test_a_run_knows_its_encoder(tiny_env, tiny_reference, tmp_path, monkeypatch):
    """One given as an object cannot be loaded again: nothing may take another in its place unsaid."""

    def interrupted(keys):
        raise KeyboardInterrupt

    def embed(params, frames):
        return params * jnp.mean(frames.astype(jnp.float32), axis=(-4, -3, -2, -1))[..., None]

    encoder = Encoder(jnp.float32(0.01), embed, 2, 8, 1, "my own")
    monkeypatch.setattr(training, "compiled_programs", lambda *_: (interrupted, None, None))
    with pytest.raises(KeyboardInterrupt):
        train(tiny_env, tiny_reference, tmp_path / "run", video_weight=1.0, encoder=encoder)
    config = SavedRun.load(tmp_path / "run").config
    with pytest.raises(ValueError, match=r"resume: expected the settings of the run .*encoder .*got 'i3d'"):
        nil_jax.train(tiny_env, output=tmp_path / "run", resume=True, encoder="i3d", progress=False)
    for named in ("student", None):  # what the settings name in its place
        save_config(config.with_fields(encoder=named), tmp_path / "run" / "config.json")
        with pytest.raises(ValueError, match=r"encoder: expected the one that the run began with, got another"):
            nil_jax.train(tiny_env, output=tmp_path / "run", resume=True, progress=False)
    with pytest.warns(UserWarning, match="the encoder that the run was trained with is not at hand"):
        env, _ = SavedRun.load(tmp_path / "run").program()
    assert env.encoder is None and env.reward.video_weight == 0
    # Neither is one that cannot be found an obstacle, or read where there is no video term.
    save_config(config.with_fields(encoder="gone"), tmp_path / "run" / "config.json")
    with pytest.warns(UserWarning, match="is not at hand"):
        assert SavedRun.load(tmp_path / "run").load_encoder() is None
    save_config(config.with_fields(encoder="gone", video_weight=0.0), tmp_path / "run" / "config.json")
    assert SavedRun.load(tmp_path / "run").load_encoder() is None


def test_a_folder_of_an_encoder_is_found_from_anywhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("mine", "student"):
        (tmp_path / name).mkdir()
    named = {name: training._settings(None, {"encoder": name}, None).train.encoder for name in ("mine", "student")}
    assert named == {"mine": str(tmp_path / "mine"), "student": "student"}


def test_a_clip_needs_a_robot(clip, tiny_env, tiny_reference):
    for env in (Seek(), nil_jax.ImitationEnv(tiny_env, tiny_reference)):
        with pytest.raises(ValueError, match=f"env: expected a robot, .* beside a clip, got {type(env).__name__}"):
            nil_jax.train(env, clip)


def test_a_replay_holds_all_steps_that_come_before_learning():
    settings = {"num_timesteps": 5_100, "num_envs": 128, "learning_starts": 5_000}
    config = training._settings(None, settings, None)
    assert config.learner.replay_size == 5_120  # whole steps of all environments
    make_replay(config.learner, config.train.num_envs)


def test_a_run_too_short_to_learn_is_refused_before_anything_is_written(tiny_env, tiny_reference, tmp_path):
    with pytest.raises(ValueError, match=r"learning_starts.*num_timesteps \(64\)"):
        train(tiny_env, tiny_reference, tmp_path / "run", num_timesteps=64)
    assert not (tmp_path / "run").exists()


def test_resuming_with_another_robot_is_refused(whole):
    with pytest.raises(ValueError, match="expected the robot of the run"):
        train(nil_jax.envs.make("unitree_a1"), None, whole.folder, resume=True)


def test_resuming_nothing_is_refused(tiny_env, tmp_path):
    with pytest.raises(ValueError, match=r"no readable run.json"):
        train(tiny_env, None, tmp_path / "none", resume=True)


def test_a_diverging_learner_stops_with_the_last_checkpoint_named(tmp_path, monkeypatch):
    summary = training._summary
    calls = []

    def poisoned(metrics):
        calls.append(1)
        return summary(metrics) | ({"learner/critic_loss": float("nan")} if len(calls) > 40 else {})

    monkeypatch.setattr(training, "_summary", poisoned)
    with pytest.raises(FloatingPointError, match="the newest checkpoint is that of step 256"):
        train(Seek(), None, tmp_path / "run")


def test_a_loss_that_is_nan_from_the_start_of_a_call_is_seen():
    metrics = {name: np.zeros(3) for name in ("episodes", "falls", "finished_return")}
    metrics |= {"learning": np.array([False, True, True]), "learner/critic_loss": np.array([np.nan, 1.0, 3.0])}
    assert training._summary(metrics)["learner/critic_loss"] == 2.0  # the replay was still being filled at first
    metrics["learner/critic_loss"][1] = np.nan
    assert np.isnan(training._summary(metrics)["learner/critic_loss"])


def test_a_comparison_shows_the_frames_that_belong_together(tiny_reference):
    pictures, side = tiny_reference.frames, tiny_reference.frames.shape[1]
    for first, agent in ((0, pictures), (5, np.roll(pictures, -5, axis=0)), (5, pictures)):
        clip, found, overlay = np.split(comparison_frames(tiny_reference, agent, first)[:, -side:], 3, axis=2)
        inside = np.s_[:, :, 1:]  # behind the line that parts the panels
        np.testing.assert_array_equal(clip[inside], np.roll(pictures, -first, axis=0)[inside])
        np.testing.assert_array_equal(found[inside], agent[inside])
        wanted, seen = np.roll(tiny_reference.masks, -first, axis=0), (agent < 255).any(axis=-1)
        colors = ((wanted & seen, 150), (wanted & ~seen, REFERENCE_COLOR), (seen & ~wanted, AGENT_COLOR))
        for where, color in colors:
            np.testing.assert_array_equal((overlay == color).all(axis=-1)[inside], where[inside])
        assert (wanted & ~seen).any() == (agent is pictures and first == 5)


def test_the_report_stands_alone(whole):
    page = (whole.folder / "report.html").read_text()
    assert "data:video/mp4" in page and page.count("data:image/png") == 2
    around = re.sub("data:[^\"']*", "data:", page)  # pictures in base64 may spell anything
    assert not re.search("(src|href)=.(?!data:)|http", around)
    assert all(text in page for text in ("zero action", "num_timesteps = ", "jaxlib = ", "tiny"))


def test_a_clock_that_goes_back_changes_nothing(seeking, tmp_path, monkeypatch):
    back = itertools.count(2_000_000_000, -3600)  # an hour each time that somebody looks
    monkeypatch.setattr("time.time", lambda: float(next(back)))
    again = train(Seek(), None, tmp_path / "run")
    jax.tree.map(np.testing.assert_array_equal, again.learner, seeking.learner)


def test_a_run_that_was_killed_before_it_began_can_begin(tiny_env, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "run.json").touch()
    (tmp_path / "run" / "config.json").write_text("{")
    run = Run.open(tmp_path / "run", nil_jax.Config(), tiny_env, resume=False, progress=False)
    run.start(nil_jax.ImitationEnv(tiny_env, None))
    run.close()
    assert SavedRun.load(tmp_path / "run").config == nil_jax.Config()


def test_a_folder_in_which_another_run_began_meanwhile_is_left_alone(tiny_env, tmp_path):
    first, second = (
        Run.open(tmp_path / "run", nil_jax.Config().with_fields(seed=seed), tiny_env, resume=False, progress=False)
        for seed in (1, 2)
    )
    env = nil_jax.ImitationEnv(tiny_env, None)
    first.start(env)
    first.close()
    with pytest.raises(ValueError, match="output: expected a new or empty folder"):
        second.start(env)
    second.close()
    assert SavedRun.load(tmp_path / "run").config.train.seed == 1
    resumed = Run.open(tmp_path / "run", nil_jax.Config().with_fields(seed=1), tiny_env, resume=True, progress=False)
    assert resumed.interrupted() == "stopped; the run is as it was before"  # as long as it compiles


def test_a_folder_that_cannot_be_written_is_told_before_the_first_step(tmp_path):
    (tmp_path / "file").touch()
    for folder in (tmp_path / "file" / "run", "/proc/run"):
        with pytest.raises(OSError, match=r"output: expected to write to .*no checkpoint was saved yet"):
            train(Seek(), None, folder)
