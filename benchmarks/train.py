"""Speed of the whole training step on the embedded H1: env steps per second, share of each stage, cold and warm start.

    python benchmarks/train.py [--quick | --full] [--json FILE]

The reference is a standing robot drawn by the renderer: speed does not depend on what the masks show. All terms of the
default reward are on, the video term with the encoder that ships. The peer of the rollout (policy, physics, masks,
reward; no gradient updates) is the same physics alone in the same run.
"""

import argparse
import contextlib
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

STARTED = time.perf_counter()

import common  # noqa: E402
import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402

import nil_jax  # noqa: E402
from nil_jax import parallel  # noqa: E402
from nil_jax.cache import use_compilation_cache  # noqa: E402
from nil_jax.program import Program, TrainingState, make_program  # noqa: E402
from nil_jax.reference.align import nominal_camera  # noqa: E402
from nil_jax.rendering import make_scene, render  # noqa: E402
from nil_jax.rollout import collect  # noqa: E402
from nil_jax.run import Run  # noqa: E402

NUM_ENVS = {"quick": (64,), "full": (64, 256, 1024, 4096)}
TICKS = 10  # per timed call
MASK, CLIP = 64, 100  # px, ticks


def standing_reference(env: nil_jax.envs.RobotEnv) -> nil_jax.Reference:
    """The robot in its start pose, for as long as a clip."""
    geom_xpos, geom_xmat = jax.jit(lambda q: nil_jax.envs.forward_kinematics(env.mjx_model, q))(
        jnp.asarray(env.start_qpos)
    )
    camera = nominal_camera(env.mj_model, env.start_qpos, env.robot_geom_ids)
    scene = make_scene(env.mj_model, env.robot_geom_ids)
    frames = render(scene, geom_xpos[None], geom_xmat[None], camera, jnp.zeros((1, 3)), height=MASK, width=MASK)
    return nil_jax.Reference(
        frames=np.repeat(np.asarray(frames.rgb), CLIP, axis=0),
        masks=np.repeat(np.asarray(frames.segmentation) >= 0, CLIP, axis=0),
        fps=25.0,
        camera=camera,
        start_qpos=env.start_qpos,
        motion=np.repeat(np.asarray(env.start_qpos)[None], CLIP, axis=0),
        loop=False,
        provenance={"robot": env.spec.name, "fingerprint": env.fingerprint},
    )


def program(num_envs: int, num_devices: int = 1) -> tuple[Program, nil_jax.Config]:
    """The training program of the preset "cpu" with another number of environments."""
    config = nil_jax.Config().with_fields(
        num_envs=num_envs, num_devices=num_devices, replay_size=200_000, learning_starts=0
    )
    env, encoder = nil_jax.envs.make("unitree_h1", config.env), config.train.load_encoder()
    reference = nil_jax.with_embeddings(standing_reference(env), encoder)
    return make_program(nil_jax.ImitationEnv(env, reference, config.reward, encoder), config), config


def best_seconds(function: Callable, *arguments: jax.Array) -> float:
    """`common.best_seconds` of a function that is compiled first."""
    return common.best_seconds(jax.jit(function).lower(*arguments).compile(), *arguments)


def best_seconds_in_place(function: Callable, state: TrainingState) -> float:
    """The same of a function that takes the memory of its state for the next one, as training does."""
    compiled, states = jax.jit(function, donate_argnums=0).lower(state).compile(), [state]

    def call() -> TrainingState:
        states.append(compiled(states.pop()))
        return states[0]

    return common.best_seconds(call)


def stages(num_envs: int) -> list[dict]:
    """Env steps per second of physics alone, the rollout, and the training step with its gradient updates."""
    made, config = program(num_envs)
    state = jax.jit(made.init)(jax.random.key(0))
    keys = jax.random.split(jax.random.key(1), TICKS)
    steps_per_tick = made.env.env.control_steps_per_tick
    policy = nil_jax.make_policy(made.actor_critic, state.learner)
    robots = nil_jax.envs.VmapWrapper(made.env.env.env)
    first = jax.jit(robots.reset)(jax.random.split(jax.random.key(2), num_envs))
    still = jnp.zeros((num_envs, robots.action_size))

    def physics(first):
        return jax.lax.scan(lambda s, _: (robots.step(s, still), None), first, None, TICKS * steps_per_tick)[0]

    def rollout(env_state, keys):
        return jax.lax.scan(lambda s, key: (collect(made.env, policy, s, key)[0], None), env_state, keys)[0]

    def train(state):
        return jax.lax.scan(made.training_step, state, None, TICKS)[0]

    env_steps = num_envs * TICKS * steps_per_tick
    seconds = {
        "physics": best_seconds(physics, first),
        "rollout": best_seconds(rollout, parallel.own(state.env_state), keys),
    }
    seconds["training"] = best_seconds_in_place(train, state)
    updates = TICKS * steps_per_tick * config.learner.grad_updates_per_step
    learning = max(seconds["training"] - seconds["rollout"], 1e-9)
    rate = {name: env_steps / value for name, value in seconds.items()}
    share = {
        "physics": seconds["physics"],
        "policy, masks and reward": seconds["rollout"] - seconds["physics"],
        "replay and gradient updates": learning,
    }
    title = f"H1, {num_envs} envs"
    return [
        common.row(f"{title}: physics alone", rate["physics"], "env steps/s"),
        common.row(f"{title}: rollout", rate["rollout"], "env steps/s", "physics alone", rate["physics"]),
        common.row(f"{title}: training step", rate["training"], "env steps/s", "rollout", rate["rollout"]),
        common.row(f"{title}: gradient updates", updates / learning, "updates/s"),
        *(common.row(f"{title}: share of {n}", v / seconds["training"], "of the step") for n, v in share.items()),
    ]


class Enough(Exception):
    """The first gradient update is done."""


def first_step(num_envs: int, reference: str) -> None:
    """In a process of its own: seconds from the first line of this file to the first gradient update of `train`."""
    log = Run.log

    def watched(run: Run, step: int, metrics: dict[str, float], sps: float) -> None:
        log(run, step, metrics, sps)
        if "learner/critic_loss" in metrics:
            print(time.perf_counter() - STARTED, flush=True)
            raise Enough

    Run.log = watched
    use_compilation_cache()
    settings = {"num_envs": num_envs, "num_timesteps": 50_000, "learning_starts": 512}
    env = nil_jax.envs.make("unitree_h1")
    with contextlib.suppress(Enough):
        nil_jax.train(env, reference, progress=False, **settings)


def starts(num_envs: int) -> list[dict]:
    """Cold and warm start: the same process twice, with an empty compilation cache and with the one it left."""
    with tempfile.TemporaryDirectory() as cache, tempfile.TemporaryDirectory() as folder:
        reference = Path(folder) / "standing.ref"
        standing_reference(nil_jax.envs.make("unitree_h1")).save(reference)
        settings = {"JAX_COMPILATION_CACHE_DIR": cache}
        command = [sys.executable, __file__, "--first-step", str(num_envs), str(reference)]
        seconds = [
            float(subprocess.run(command, env=os.environ | settings, capture_output=True, check=True, text=True).stdout)
            for _ in range(2)
        ]
    return [
        common.row("H1: start to first gradient update, cold", seconds[0], "s"),
        common.row("H1: start, warm", seconds[1], "s", "cold", seconds[0], higher_is_better=False),
    ]


def main() -> None:
    """Prints the rows."""
    parser: argparse.ArgumentParser = common.parser(__doc__.splitlines()[0])
    parser.add_argument("--first-step", nargs=2, metavar=("ENVS", "REFERENCE"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.first_step:
        first_step(int(options.first_step[0]), options.first_step[1])
        return
    rows = starts(64)
    for num_envs in NUM_ENVS["full" if options.full else "quick"]:
        rows += stages(num_envs)
    common.write(rows, options.json)


if __name__ == "__main__":
    common.run(main)
