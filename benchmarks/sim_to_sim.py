"""Does a policy that learned in MJX do the same in MuJoCo's C engine? Its exported files run there, on their own.

    python benchmarks/sim_to_sim.py RUN [--quick | --full] [--json FILE]

RUN is the folder of a run, or a policy that ships (unitree_h1/walk). Both engines begin in reset states of its
environment, each in its own: with `--quick` in 4 episodes, with `--full` in 32.
"""

import json
import tempfile
from pathlib import Path

import common
import jax
import mujoco
import numpy as np

from nil_jax import evaluation
from nil_jax.export import export_policy
from nil_jax.pretrained import load_policies

EPISODES = {"quick": 4, "full": 32}


class Exported:
    """An exported policy in MuJoCo's C engine."""

    def __init__(self, folder: Path):
        self.call = jax.jit(jax.export.deserialize(bytearray((folder / "policy.stablehlo").read_bytes())).call)
        self.model = mujoco.MjModel.from_xml_path(str(folder / "model.xml"))
        self.about = json.loads((folder / "policy.json").read_text())

    def run(self, qpos: np.ndarray, qvel: np.ndarray, steps: int) -> np.ndarray:
        """Coordinates [steps + 1, nq] of an episode."""
        data = mujoco.MjData(self.model)
        data.qpos[:], data.qvel[:] = qpos, qvel
        action, path = np.zeros(self.model.nu, np.float32), [data.qpos.copy()]
        for clock in range(steps):
            state = data.qpos.astype(np.float32), data.qvel.astype(np.float32)
            data.ctrl[:], action = self.call(*state, action, np.int32(clock))
            mujoco.mj_step(self.model, data, self.about["substeps"])
            path.append(data.qpos.copy())
        return np.array(path)


def outcome(path: np.ndarray, env, dt: float) -> dict[str, float]:
    """Distance and time until the fall of one episode."""
    up = 1 - 2 * np.square(path[:, 4:6]).sum(-1)
    low = path[:, 2] < env.spec.fall_height * env.standing_height
    fallen = low | (up < np.cos(env.config.fall_tilt))
    end = int(fallen.argmax()) if fallen.any() else len(path) - 1
    return {"distance": path[end, 0] - path[0, 0], "fall": float(fallen.any()), "length": end * dt}


def main() -> None:
    """Prints the rows."""
    command = common.parser(__doc__.splitlines()[0])
    command.add_argument("run", type=Path, metavar="RUN", help="folder of a run, or a policy that ships")
    options = command.parse_args()
    count = EPISODES["full" if options.full else "quick"]
    env, policies = load_policies(options.run)
    policy = {"policy": policies["policy"]}
    key = jax.random.key(1)
    found = evaluation.compiled_episodes(env, policy, count, key)
    there = evaluation.summary(found)["policy"]
    starts = jax.jit(env.from_the_start().reset)(jax.random.split(key, count))
    steps = env.episode_length
    if env.reference is not None and not env.reference.loop:
        steps = min(steps, (env.clip_length - 1) * env.control_steps_per_tick)
    with tempfile.TemporaryDirectory() as folder:
        export_policy(env, policies["policy"], Path(folder) / "policy")
        exported = Exported(Path(folder) / "policy")
        pairs = zip(np.asarray(starts.data.qpos), np.asarray(starts.data.qvel), strict=True)
        rows = [outcome(exported.run(qpos, qvel, steps), env.env, env.dt) for qpos, qvel in pairs]
    here = {name: float(np.mean([row[name] for row in rows])) for name in rows[0]}
    name = env.env.spec.name
    units = {"distance": "m", "fall": "of the episodes", "length": "s"}
    common.write(
        [
            common.row(
                f"{name}: {what} in MuJoCo C",
                here[what],
                unit,
                "MJX",
                there[what],
                higher_is_better=what != "fall",
                device=common.cpu(),
            )
            for what, unit in units.items()
        ],
        options.json,
    )


if __name__ == "__main__":
    common.run(main)
