"""Trains on a clip and on a reward of one's own: here a trunk that turns little, for what it may carry.

    python examples/custom_reward.py unitree_a1 examples/a1_prowl.mp4 -o runs/quiet --own-weight 2

`RobotEnv.with_reward` takes any pure function of one robot's state; `own_weight` says how much it counts beside the
terms of the clip. Without a clip it is all that counts.
"""

import argparse
from pathlib import Path

import jax.numpy as jnp

import nil_jax

CALM = 1.0  # rad/s, turning of the trunk at which the reward is 1/e


def quiet_trunk(state: nil_jax.envs.State) -> jnp.ndarray:
    """1 for a trunk that does not turn, towards 0 for one that does; the state is that of one robot."""
    turning = state.data.qvel[3:6]  # rad/s, in the trunk's own frame
    return jnp.exp(-jnp.square(turning / CALM).sum())


def main(arguments: list[str] | None = None) -> None:
    """Trains, and prints how the policy and its controls did."""
    command = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    command.add_argument("robot", help="unitree_a1, or the path of an MJCF file")
    command.add_argument(
        "clip", nargs="?", help="video, or a folder of nil-jax prepare; without it only our reward pays"
    )
    command.add_argument("-o", "--output", type=Path, required=True, metavar="FOLDER")
    command.add_argument("--own-weight", type=float, default=2.0, help="of the reward below (default: %(default)s)")
    command.add_argument("--num-timesteps", type=int, default=100_000, metavar="N")
    options = command.parse_args(arguments)
    env = nil_jax.envs.make(options.robot).with_reward(quiet_trunk)
    settings = {"own_weight": options.own_weight, "num_timesteps": options.num_timesteps, "output": options.output}
    result = nil_jax.train(env, options.clip, **settings)
    for name, row in result.evaluation.items():
        print(f"{name}: return {row['return']:.1f}, distance {row['distance']:.2f} m, falls {row['fall']:.0%}")


if __name__ == "__main__":
    main()
