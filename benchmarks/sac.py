"""Our actor-critic beside Brax's SAC: same tasks, steps, network widths, batches and numbers of updates.

    python benchmarks/sac.py [--quick | --full] [--tasks hopper ...] [--json FILE]

The tasks are Brax's on its MJX backend, with their own rewards. Both learners get LayerNorm networks of two hidden
layers, the same target entropy, first temperature and learning rates, of which ours fall to 0 over the last three
tenths of a run and Brax's do not; what is left are the algorithms and their programs. Returns are those of
deterministic policies in the same 32 episodes. Updates a second are those of whole training steps, without compilation.
In the task "numbers" there are no physics and nothing to learn, so that a training step is little but its updates.
"""

import json
import tempfile
from functools import partial
from pathlib import Path

import brax.envs
import common
import jax
import jax.numpy as jnp
import numpy as np
from brax.training.agents.sac import networks as brax_networks
from brax.training.agents.sac import train as brax_sac
from rich.console import Console

import nil_jax
from nil_jax.adapters import mend_brax
from nil_jax.config import Config
from nil_jax.envs import BraxEnv

SIZES = {
    "quick": {"tasks": ["numbers", "hopper"], "seeds": 1, "num_timesteps": 20_000},
    "full": {"tasks": ["numbers", "hopper", "halfcheetah", "ant"], "seeds": 3, "num_timesteps": 100_000},
}
EPISODES, LENGTH, NUM_ENVS, UPDATES, BATCH = 32, 1000, 32, 8, 256
HIDDEN, RATE, GAMMA, TAU, PREFILL = (256, 256), 3e-4, 0.99, 0.005, 2_000


class Numbers(brax.envs.Env):
    """Observations that are numbers of a hash, of ant's sizes."""

    observation_size, action_size, backend, dt = 27, 8, "mjx", 0.05

    def reset(self, rng: jax.Array) -> brax.envs.State:
        """The first number."""
        number, zero = rng[0].astype(jnp.uint32), jnp.zeros(())
        return brax.envs.State(number, self._seen(number), zero, zero)

    def step(self, state: brax.envs.State, action: jax.Array) -> brax.envs.State:
        """The next one."""
        number = state.pipeline_state * jnp.uint32(1664525) + jnp.uint32(1013904223)
        return state.replace(pipeline_state=number, obs=self._seen(number))

    def _seen(self, number: jax.Array) -> jax.Array:
        return jnp.sin(number.astype(jnp.float32) * jnp.arange(1.0, 1.0 + self.observation_size))


def ours(env: BraxEnv, steps: int, delay: int, seed: int):
    """(policy, gradient updates a second) of this library."""
    config = Config().with_fields(
        num_timesteps=steps,
        num_envs=NUM_ENVS,
        num_evals=1,
        num_eval_envs=1,
        seed=seed,
        actor_hidden=HIDDEN,
        critic_hidden=HIDDEN,
        actor_lr=RATE,
        critic_lr=RATE,
        gamma=GAMMA,
        tau=TAU,
        batch_size=BATCH,
        grad_updates_per_step=UPDATES,
        target_entropy_scale=0.5,
        init_temperature=1.0,
        actor_average=1.0,
        policy_delay=delay,
        learning_starts=PREFILL,
    )
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "run"
        result = nil_jax.train(env, config=config, output=output, progress=False)
        rows = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    speeds = [row["sps"] for row in rows if "learner/critic_loss" in row]
    return result.policy, float(np.median(speeds)) * UPDATES / NUM_ENVS


def braxs(env: BraxEnv, steps: int, seed: int):
    """(policy, gradient updates a second) of Brax's SAC."""
    speeds = []
    # The first epoch compiles; the second one's speed is reported.
    make_policy, params, _ = brax_sac.train(
        env.env,
        num_timesteps=steps,
        episode_length=LENGTH,
        num_envs=NUM_ENVS,
        num_eval_envs=1,
        num_evals=3,
        learning_rate=RATE,
        discounting=GAMMA,
        seed=seed,
        batch_size=BATCH,
        normalize_observations=True,
        tau=TAU,
        min_replay_size=PREFILL,
        grad_updates_per_step=UPDATES,
        deterministic_eval=True,
        network_factory=partial(
            brax_networks.make_sac_networks,
            hidden_layer_sizes=HIDDEN,
            policy_network_layer_norm=True,
            q_network_layer_norm=True,
        ),
        progress_fn=lambda step, metrics: speeds.append(metrics.get("training/sps")),
    )
    return make_policy(params, deterministic=True), speeds[-1] * UPDATES / NUM_ENVS


def rows_of(task: str, seeds: int, steps: int, delay: int, say) -> list[dict]:
    """Returns and speeds on one task."""
    try:
        env = BraxEnv(Numbers() if task == "numbers" else brax.envs.get_environment(task, backend="mjx"), LENGTH)
    except KeyError:
        raise SystemExit(
            f"sac.py: expected 'numbers' or an environment of Brax, such as hopper, got {task!r}"
        ) from None
    found = {"ours": [], "Brax SAC": []}
    for seed in range(seeds):
        for name, learn in (("ours", partial(ours, delay=delay)), ("Brax SAC", braxs)):
            policy, speed = learn(env, steps, seed=seed)
            reached = nil_jax.evaluate(env, policy, num_envs=EPISODES)["policy"]["return"]
            found[name].append((reached, speed))
            say(f"{task}, seed {seed}, {name}: return {reached:.0f}, {speed:.0f} updates/s")
    returns, speeds = ({name: np.array(rows)[:, i] for name, rows in found.items()} for i in (0, 1))
    label = f"{task}, {steps} steps, {seeds} seeds, policy delay {delay}"
    mean = {name: float(values.mean()) for name, values in returns.items()}
    fast = {name: float(np.median(values)) for name, values in speeds.items()}
    rows = [common.row(f"{label}: gradient updates", fast["ours"], "1/s", "Brax SAC", fast["Brax SAC"])]
    if task == "numbers":
        return rows
    rows.append(common.row(f"{label}: return", mean["ours"], "", "Brax SAC", mean["Brax SAC"]))
    for what, pick in (("worst", np.min), ("best", np.max)):
        theirs = float(pick(returns["Brax SAC"]))
        rows.append(common.row(f"{label}: {what} return", float(pick(returns["ours"])), "", "Brax SAC", theirs))
    return rows


def main() -> None:
    """Prints the table."""
    command = common.parser(__doc__.splitlines()[0])
    command.add_argument("--tasks", nargs="+", metavar="NAME", help="numbers, or of Brax's environments")
    command.add_argument("--seeds", type=int)
    command.add_argument("--num-timesteps", type=int, metavar="STEPS")
    command.add_argument("--policy-delay", type=int, default=Config().learner.policy_delay, help="of ours")
    options = command.parse_args()
    size = SIZES["full" if options.full else "quick"]
    size |= {name: getattr(options, name) for name in size if getattr(options, name) is not None}
    mend_brax()
    say, rows = Console(stderr=True).print, []
    for task in size["tasks"]:
        rows += rows_of(task, size["seeds"], size["num_timesteps"], options.policy_delay, say)
    common.write(rows, options.json)


if __name__ == "__main__":
    common.run(main)
