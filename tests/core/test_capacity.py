"""What is decided before a run: whether its pictures fit into memory, and which renderer draws."""

import jax
import jax.numpy as jnp
import pytest

import nil_jax
from nil_jax import capacity, envs, training
from nil_jax.envs import EnvConfig
from nil_jax.envs.base import POOL
from nil_jax.program import make_program
from nil_jax.rendering import make_scene, render_masks

# The estimate must not fall short of what XLA plans for the masks, and it also counts what the reward does with them.
MOST_TOO_HIGH = 40.0


@pytest.fixture(scope="module")
def warp_env(tiny_path, tiny_reference):
    return nil_jax.ImitationEnv(envs.make(tiny_path, physics="warp"), tiny_reference)


def test_the_estimate_covers_what_the_compiler_plans(tiny_env, tiny_reference):
    num_envs, size = 64, 64
    scene, camera = make_scene(tiny_env.mj_model, tiny_env.robot_geom_ids), tiny_reference.camera
    shapes = [(num_envs, *shape) for shape in ((tiny_env.mj_model.ngeom, 3), (tiny_env.mj_model.ngeom, 3, 3), (3,))]
    inputs = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    draw = jax.jit(lambda x, r, t: render_masks(scene, x, r, camera, t, height=size, width=size))
    planned = draw.lower(*inputs).compile().memory_analysis()
    planned = planned.temp_size_in_bytes + planned.output_size_in_bytes
    assert planned <= capacity.picture_bytes(num_envs, size, size) <= MOST_TOO_HIGH * planned


def test_frames_and_clips_count():
    masks = capacity.picture_bytes(2, 10, 20)
    assert capacity.picture_bytes(4, 10, 20) == 2 * masks
    clip = capacity.picture_bytes(2, 10, 20, frame_size=8, clip_bytes=5 * 8 * 8 * 3) - masks
    assert clip > 2 * 5 * 8 * 8 * 3


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_envs": 4096, "num_timesteps": 10_000}, r"num_envs: expected .* 0.01 GB .*; type: --num-envs 271$"),
        ({"num_eval_envs": 4096}, r"num_eval_envs: expected .* 16384 environments .*; type: --num-eval-envs 67$"),
    ],
)
def test_pictures_that_do_not_fit_are_refused_before_anything_is_written(
    tiny_env, tiny_reference, tmp_path, monkeypatch, settings, message
):
    monkeypatch.setattr(capacity, "device_bytes", lambda: 10_000_000)
    with pytest.raises(ValueError, match=message):
        nil_jax.train(tiny_env, tiny_reference, output=tmp_path / "run", progress=False, video_weight=0.0, **settings)
    assert not (tmp_path / "run").exists()


@pytest.fixture(scope="module")
def shapes(tiny_env, tiny_reference):
    """A training state of 8 robots, as shapes, and its environment."""
    config = nil_jax.Config().with_fields(num_envs=8, replay_size=1_000_000)
    env = nil_jax.ImitationEnv(tiny_env, tiny_reference)
    return env, jax.eval_shape(make_program(env, config).init, jax.random.key(0))


def test_the_plan_counts_every_array_that_a_run_keeps(shapes):
    env, state = shapes
    plan = capacity.memory_plan(state, env, 8, 1)
    transition = 2 * env.observation_size + env.action_size + 3  # reward, discount, truncated
    assert plan["replay"] == pytest.approx(4 * transition * 1_000_000, rel=1e-3)
    pool = state.env_state.info[POOL].data.qpos
    assert pool.shape[:2] == (1, 8) and plan["environments"] > 2 * pool.size * 4
    params = sum(leaf.size for leaf in jax.tree.leaves(state.learner.params))
    assert plan["learner"] == pytest.approx(4 * 4 * params, rel=0.01)  # with a slow copy, and two moments of Adam
    assert plan["pictures"] == capacity.picture_bytes(8, *env.reference.masks.shape[1:])
    assert set(plan) == {"replay", "environments", "learner", "pictures"}  # there is no encoder
    halves = capacity.memory_plan(state, env, 4, 2)
    assert halves["replay"] == plan["replay"] // 2 and halves["learner"] == plan["learner"]


@pytest.mark.parametrize(("part", "setting"), [(0.9, "--replay-size 8[0-9]{5}"), (0.001, "--num-envs 4")])
def test_a_plan_that_does_not_fit_is_refused_with_the_setting_to_change(shapes, monkeypatch, part, setting):
    env, state = shapes
    plan = capacity.memory_plan(state, env, 8, 1)
    monkeypatch.setattr(capacity, "device_bytes", lambda: sum(plan.values()))
    capacity.check_plan(plan, 1_000_000, 5_000, 8)
    monkeypatch.setattr(capacity, "device_bytes", lambda: int(part * sum(plan.values())))
    with pytest.raises(ValueError, match=rf"memory: expected a run that fits, got replay .* GB; type: {setting}$"):
        capacity.check_plan(plan, 1_000_000, 5_000, 8)


def test_a_compiled_step_that_does_not_fit_is_refused(monkeypatch):
    compiled = jax.jit(lambda x: x @ x).lower(jnp.zeros((500, 500))).compile()
    needed = capacity.compiled_bytes(compiled)
    assert needed >= 2 * 500 * 500 * 4
    capacity.check_compiled(needed)
    monkeypatch.setattr(capacity, "device_bytes", lambda: needed - 1)
    with pytest.raises(ValueError, match=r"memory: expected a training step that fits into .* smaller --num-envs"):
        capacity.check_compiled(needed)


def test_devices_of_one_cpu_share_its_memory(monkeypatch):
    alone = capacity.device_bytes()
    monkeypatch.setattr(jax, "local_device_count", lambda: 8)
    assert capacity.device_bytes() == alone // 8


def test_the_memory_of_this_machine_is_known():
    assert 1e8 < capacity.device_bytes() < 1e14


@pytest.mark.parametrize("fastest", capacity.RENDERERS)
def test_auto_takes_the_faster_renderer_and_says_both_times(warp_env, monkeypatch, fastest):
    seconds = {kind: 1.0 if kind == fastest else 2.0 for kind in capacity.RENDERERS}
    monkeypatch.setattr(capacity, "_seconds_per_look", lambda env, num_envs: seconds[env.renderer_kind])
    said = []
    chosen = capacity.with_fastest_renderer(warp_env, 100, said.append)
    assert chosen.renderer_kind == fastest
    rates = {"jax": "jax 100, warp 50", "warp": "jax 50, warp 100"}[fastest]
    assert said == [f"renderer: {rates} looks per second at 100 environments; taking {fastest}"]


def test_auto_really_draws_with_both(warp_env):
    said = []
    chosen = capacity.with_fastest_renderer(warp_env, 8, said.append)
    assert chosen.renderer_kind in capacity.RENDERERS and len(said) == 1
    assert capacity.with_fastest_renderer(warp_env, 8, said.append, known="warp").renderer_kind == "warp"
    assert len(said) == 1  # a run that goes on measures nothing


def test_a_warp_that_does_not_draw_here_is_not_taken(warp_env, monkeypatch):
    def seconds(env, num_envs):
        if env.renderer_kind == "warp":
            raise RuntimeError("no CUDA device\nand much more")
        return 1.0

    monkeypatch.setattr(capacity, "_seconds_per_look", seconds)
    said = []
    assert capacity.with_fastest_renderer(warp_env, 8, said.append).renderer_kind == "jax"
    assert said[0] == "renderer: Warp does not draw here: no CUDA device" and said[1].endswith("taking jax")


@pytest.mark.parametrize("kind", ["physics", "renderer"])
def test_warp_draws_and_moves_no_seeds_side_by_side(tiny_path, tiny_reference, tmp_path, kind):
    env = envs.make(tiny_path, **{kind: "warp"})
    with pytest.raises(ValueError, match=rf"seeds: expected JAX's .*{kind}='warp'.*; train one seed at a time"):
        nil_jax.train_seeds(env, tiny_reference, seeds=(0, 1), output=tmp_path / "runs", video_weight=0.0)
    assert not (tmp_path / "runs").exists()


def test_a_device_that_is_full_all_the_same_is_told_in_one_line(tiny_env, tmp_path, monkeypatch):
    def fail(*_):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory while trying to allocate 123 bytes.")

    monkeypatch.setattr(training, "_train_side_by_side", fail)
    with pytest.raises(ValueError, match=r"memory: expected .*; no checkpoint was saved yet; type a smaller"):
        nil_jax.train(tiny_env, output=tmp_path / "run", progress=False)


def test_many_robots_without_a_gpu_are_told(tiny_env, monkeypatch, capsys):
    monkeypatch.setattr(training, "make_program", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        nil_jax.train(tiny_env, num_envs=1024)
    assert "warning: JAX sees no GPU here, and 1,024 robots" in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize(
    ("config", "expected"),
    [(EnvConfig(), "jax"), (EnvConfig(renderer="warp"), "warp"), (EnvConfig(physics="warp", renderer="jax"), "jax")],
)
def test_a_renderer_that_is_named_is_taken_without_measuring(tiny_path, tiny_reference, monkeypatch, config, expected):
    monkeypatch.setattr(capacity, "_seconds_per_look", None)
    env = nil_jax.ImitationEnv(envs.make(tiny_path, config), tiny_reference)
    assert capacity.with_fastest_renderer(env, 8, print).renderer_kind == expected
