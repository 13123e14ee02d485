"""Physics steps per second of the embedded H1 in MJX over the number of environments, beside MuJoCo's C engine.

    python benchmarks/physics.py [--quick | --full] [--json FILE]

The peer steps one robot on one CPU core under the same settings and targets as wide. Compilation is a row of its own.
"""

import time

import common
import jax
import jax.numpy as jnp
import mujoco
import numpy as np

import nil_jax
from nil_jax.envs import AutoResetWrapper, VmapWrapper

SIZES = {"quick": (16, 64, 256), "full": (16, 64, 256, 1024, 4096, 8192)}
STEPS = {"quick": 20, "full": 100}  # control steps that are timed
REPEATS = 3  # the best one counts: others' work on the machine only slows down


def c_engine(env: nil_jax.envs.RobotEnv, seconds: float = 2.0) -> float:
    """Physics steps per second of MuJoCo on one core, under random targets."""
    data, rng = mujoco.MjData(env.mj_model), np.random.default_rng(0)
    data.qpos[:] = env.default_qpos
    steps, started = 0, time.perf_counter()
    reach = 0.1 * env.action_scale  # of the targets, as `mjx` below has it
    while time.perf_counter() - started < seconds:
        data.ctrl[:] = env.default_qpos[7:] + reach * rng.uniform(-1, 1, env.action_size)
        for _ in range(env.config.n_substeps):
            mujoco.mj_step(env.mj_model, data)
        steps += env.config.n_substeps
        if data.qpos[2] < 0.6:
            mujoco.mj_resetData(env.mj_model, data)
            data.qpos[:] = env.default_qpos
    return steps / (time.perf_counter() - started)


def mjx(env: nil_jax.envs.RobotEnv, num_envs: int, steps: int) -> tuple[float, float]:
    """Physics steps per second over all environments, and seconds of compilation."""
    batch = AutoResetWrapper(VmapWrapper(env))

    @jax.jit
    def run(state, key):
        def step(state, key):
            action = 0.1 * jax.random.uniform(key, (num_envs, env.action_size), minval=-1.0)
            return batch.step(state, action), None

        return jax.lax.scan(step, state, jax.random.split(key, steps))[0]

    state = jax.jit(batch.reset)(jax.random.split(jax.random.key(0), num_envs))
    started = time.perf_counter()
    compiled = run.lower(state, jax.random.key(1)).compile()
    compile_seconds = time.perf_counter() - started
    best = np.inf
    for _ in range(REPEATS):
        started = time.perf_counter()
        state = jax.block_until_ready(compiled(state, jax.random.key(1)))
        best = min(best, time.perf_counter() - started)
    assert bool(jnp.isfinite(state.obs).all()), "the physics diverged"
    return num_envs * steps * env.config.n_substeps / best, compile_seconds


def main() -> None:
    """Prints the rows."""
    options = common.parser(__doc__.splitlines()[0]).parse_args()
    size = "full" if options.full else "quick"
    env = nil_jax.envs.make("unitree_h1")
    peer = c_engine(env)
    rows = []
    for num_envs in SIZES[size]:
        steps, seconds = mjx(env, num_envs, STEPS[size])
        name = f"H1 physics, {num_envs} envs"
        rows.append(common.row(name, steps, "physics steps/s", "MuJoCo C, 1 core", peer))
        rows.append(common.row(f"{name}: compile", seconds, "s"))
    common.write(rows, options.json)


if __name__ == "__main__":
    common.run(main)
