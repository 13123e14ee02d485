"""A training run on all devices that there are, of an environment that compiles in seconds: a point that seeks zero.

    python parallel_run.py FOLDER.npz '{"output": FOLDER, ...}' [COORDINATOR NUM_PROCESSES PROCESS_ID]

The first process writes the learner and the return of the trained policy.
"""

import json
import os
import sys

import jax
import jax.numpy as jnp
import numpy as np

import nil_jax
from nil_jax import parallel
from nil_jax.envs import Env, State

SETTINGS = {
    "num_timesteps": 4096,
    "num_envs": 16,
    "num_evals": 4,
    "num_eval_envs": 8,
    "learning_starts": 64,
    "batch_size": 64,
    "grad_updates_per_step": 4,
    "actor_hidden": (16, 16),
    "critic_hidden": (16, 16),
    "gamma": 0.9,
    "actor_lr": 1e-3,
    "critic_lr": 1e-3,
    "progress": True,
}


class Seek(Env):
    """A point on a line that an action moves; the nearer to zero, the better."""

    observation_size, action_size, dt, episode_length = 1, 1, 0.1, 20

    def reset(self, key):
        """Somewhere within 1 of zero."""
        return self._state(jax.random.uniform(key, (), minval=-1.0), jnp.int32(0))

    def step(self, state, action):
        """By at most 0.2."""
        return self._state(state.data + 0.2 * action[0], state.info["step"] + 1)

    def _state(self, place, step):
        never = jnp.zeros((), bool)
        metrics = {"fall": jnp.zeros(())}
        return State(place, place[None], 1.0 - place**2, never, step >= self.episode_length, metrics, {"step": step})


def main(*arguments: str) -> None:
    """Trains, and writes what came out."""
    out, settings, *processes = arguments
    if processes:
        address, count, index = processes
        parallel.join(coordinator_address=address, num_processes=int(count), process_id=int(index))
    try:
        result = nil_jax.train(Seek(), **(SETTINGS | json.loads(settings)))
    except (ValueError, OSError) as error:
        print(error, file=sys.stderr)
        parallel.leave(2)
    if parallel.is_first():
        leaves = {f"leaf_{i}": np.asarray(leaf) for i, leaf in enumerate(jax.tree.leaves(result.learner))}
        np.savez(out, value=result.evaluation["policy"]["return"], **leaves)


def main_into(said: str, *arguments: str) -> None:
    """The same, with what it says in a file."""
    with open(said, "w") as file:
        os.dup2(file.fileno(), 2)
    main(*arguments)


if __name__ == "__main__":
    main(*sys.argv[1:])
