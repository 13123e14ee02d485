"""Policies beside their controls, over one episode each.

Axes: N environments, T control steps or ticks.
"""

from collections.abc import Callable, Collection, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, PRNGKeyArray, Shaped, UInt8

from nil_jax.cache import gc_paused
from nil_jax.envs import AutoResetWrapper, Env, RobotEnv, State
from nil_jax.envs.physics import OVERFLOW
from nil_jax.envs.robot import posed
from nil_jax.reference import Reference
from nil_jax.rewards import Encoder, RewardConfig, mask_iou
from nil_jax.rollout import ImitationConfig, ImitationEnv, collect

LOCOMOTION_SECONDS, LOCOMOTION_STEPS = 4.0, 400  # over which LocoMuJoCo's reward is summed, and how often

Policy = Callable[[Float[Array, "N O"], PRNGKeyArray], tuple[Float[Array, "N A"], dict]]


def zero_action(action_size: int) -> Policy:
    """The control that corrects nothing: position targets are the default pose, or the clip's (`targets`)."""
    return lambda observation, key: (jnp.zeros((*observation.shape[:-1], action_size)), {})


def random_policy(action_size: int) -> Policy:
    """The control that draws each action uniformly."""
    return lambda observation, key: (
        jax.random.uniform(key, (*observation.shape[:-1], action_size), minval=-1.0, maxval=1.0),
        {},
    )


def untrained_key(key: PRNGKeyArray) -> PRNGKeyArray:
    """Of the untrained policy that a run's evaluations compare with, from the key of its seed."""
    return jax.random.fold_in(key, 2**31 - 1)  # far from what `split` gives, which counts from 0


class Episodes(NamedTuple):
    """One episode in each of N environments. Metrics are explained at `run_episodes`."""

    metrics: dict[str, Float[Array, " N"]]
    qpos: Float[Array, "T nq"]  # of the first environment, at ticks; nq is 0 where it is no robot
    alive: Bool[Array, " T"]  # whether its episode still goes on


def run_episodes(
    env: ImitationEnv,
    policies: Mapping[str, Policy],
    num_envs: int,
    key: PRNGKeyArray,
    standing: Collection[str] = (),
) -> dict[str, Episodes]:
    """One episode of each policy in `num_envs` environments, all in one batch; pure, so that a caller may jit it.

    Actions of the policies in `standing` are corrections of the default pose, also where those of the others are
    corrections of the clip's.

    The metrics, by environment: `return` (sum of rewards until the episode ends), `length` (s), `fall` (0 or 1), where
    the environment tells `forward_velocity` and `foot_slip_speed` also `distance` (m along x until the end), `speed`
    (m/s) and `foot_slip` (m/s, mean over steps), and with a reference `mask_iou` (mean over all ticks of the clip, or
    of the longest episode, but the last one; 0 after a fall) and `mask_iou_shuffled`, the same against the reference's
    masks in another order: what of the IoU is not due to moving at the right time. Under Warp's physics
    `buffer_overflow` says in which environments contacts were lost.

    Of robots also: `locomotion` (LocoMuJoCo's environment reward over 4 s, which are its 400 steps at 100 Hz, 0 after a
    fall; 400 is the most, also of a clip that ends before), `jerk` (rad/s^3, root mean square over joints and steps),
    with a reference `torque` (root mean square, of the limits), and with one that has a motion `pose_error` (m, root
    mean square over keypoints and the ticks before a fall, of the motion or its left/right mirror, whichever is
    nearer).
    """

    def mixed(observation: Array, key: PRNGKeyArray) -> tuple[Array, dict]:
        parts = observation.reshape(len(policies), num_envs, -1)
        keys = jax.random.split(key, len(policies))
        actions = [policy(part, k)[0] for policy, part, k in zip(policies.values(), parts, keys, strict=True)]
        return jnp.concatenate(actions), {}

    around = np.repeat([name in standing for name in policies], num_envs)
    env, ticks = env.from_the_start().around_standing(around), env.control_steps_per_tick
    num_ticks = env.episode_length // ticks
    key_order, key_reset, key_run = jax.random.split(key, 3)
    order = jnp.zeros(num_ticks, jnp.int32)
    if env.reference is not None:
        num_ticks = num_ticks if env.reference.loop else min(num_ticks, env.clip_length - 1)
        shuffled = jax.random.permutation(key_order, env.clip_length - 1) + 1
        order = shuffled[jnp.arange(num_ticks) % len(shuffled)]
    auto_env = AutoResetWrapper(env)

    def path(state: State) -> Array:
        """Of the first environment of each policy; other environments than robots may have none."""
        qpos = state.data.qpos if isinstance(env.env, RobotEnv) else jnp.zeros((len(state.reward), 0))
        return qpos[::num_envs]

    def tick(state: State, inputs: tuple[Array, PRNGKeyArray]) -> tuple[State, tuple[dict[str, Array], Array]]:
        other, key = inputs
        # What ends starts again, as in training; `_metrics` counts the first episode only.
        state, transitions, steps = collect(auto_env, mixed, state, key)
        if isinstance(env.env, RobotEnv):
            joints = slice(len(env.env.joint_names), 2 * len(env.env.joint_names))
            steps = steps | {"joint_velocity": jnp.swapaxes(transitions.observation[..., joints], 0, 1)}
        if env.motion is not None:
            errors = env.squared_pose_errors(state.data, state.info["clock"])
            # The last column counts: behind a restart there is no pose of this episode to look at.
            errors = jnp.pad(errors, [(0, 0), (0, 1)], constant_values=1.0) * ~steps["done"][-1][:, None]
            steps = steps | {"squared_error": jnp.zeros((ticks, *errors.shape)).at[-1].set(errors)}
        if env.reference is not None:
            iou = mask_iou(env.masks(state), jnp.repeat(env.ref_masks[other][None], len(state.reward), axis=0))
            steps = steps | {"shuffled": jnp.zeros_like(steps["reward"]).at[-1].set(ticks * iou)}
        return state, (steps, path(state))

    state = auto_env.reset(jax.random.split(key_reset, len(policies) * num_envs))
    _, (steps, qpos) = jax.lax.scan(tick, state, (order, jax.random.split(key_run, num_ticks)))
    done = jnp.cumsum(steps["done"].any(axis=1), axis=0) > 0  # [T, N]
    qpos = jnp.concatenate([path(state)[None], qpos])
    alive = jnp.concatenate([jnp.ones_like(done[:1]), ~done])[:, ::num_envs]
    steps = jax.tree.map(lambda leaf: leaf.reshape(-1, len(policies), num_envs, *leaf.shape[3:]), steps)
    return {
        name: Episodes(_metrics(jax.tree.map(lambda leaf, i=i: leaf[:, i], steps), env), qpos[:, i], alive[:, i])
        for i, name in enumerate(policies)
    }


def compiled_episodes(
    env: ImitationEnv,
    policies: Mapping[str, Policy],
    num_envs: int,
    key: PRNGKeyArray,
    standing: Collection[str] = (),
) -> dict[str, Episodes]:
    """`run_episodes`, compiled, as NumPy arrays.

    Parameters of policies by `make_policy` are arguments of the program: for others of the same size the compilation
    cache has it.
    """
    names = list(policies)  # jit would take a dict, and gives one, in the order of its keys
    trees = [p if isinstance(p, jax.tree_util.Partial) else jax.tree_util.Partial(p) for p in policies.values()]

    @jax.jit
    def run(trees: list[Policy], key: PRNGKeyArray) -> dict[str, Episodes]:
        return run_episodes(env, dict(zip(names, trees, strict=True)), num_envs, key, standing)

    with gc_paused():
        compiled = run.lower(trees, key).compile()
    episodes = jax.device_get(compiled(trees, key))
    return {name: episodes[name] for name in names}


def _metrics(steps: dict[str, Shaped[Array, "T N ..."]], env: ImitationEnv) -> dict[str, Float[Array, " N"]]:
    """Sums over the first episode of each environment."""
    dt = env.dt
    ended = jnp.cumsum(steps["done"], axis=0)
    alive = ((ended - steps["done"]) == 0).astype(jnp.float32)  # up to and with the step that ends the episode
    count = alive.sum(axis=0)
    result = {
        "return": (alive * steps["reward"]).sum(axis=0),
        "length": count * dt,
        "fall": (alive * steps["fall"]).max(axis=0),
    }
    if "forward_velocity" in steps:
        result["distance"] = (alive * steps["forward_velocity"]).sum(axis=0) * dt
        result["speed"] = result["distance"] / (count * dt)
    if "foot_slip_speed" in steps:
        result["foot_slip"] = (alive * steps["foot_slip_speed"]).sum(axis=0) / count
    if "locomotion" in steps:
        first = min(round(LOCOMOTION_SECONDS / dt), len(alive))
        lasted = LOCOMOTION_STEPS / first * (alive * steps["locomotion"])[:first].sum(axis=0)
        result["locomotion"] = lasted
        acceleration_changes = jnp.diff(steps["joint_velocity"], n=2, axis=0) / dt**2
        inside = alive[2:] / jnp.maximum(alive[2:].sum(axis=0), 1.0)
        result["jerk"] = jnp.sqrt((inside * jnp.square(acceleration_changes).mean(axis=-1)).sum(axis=0))
    if "reward/torque" in steps:
        result["torque"] = jnp.sqrt(-(alive * steps["reward/torque"]).sum(axis=0) / count)
    if "squared_error" in steps:
        *squares, looks = (alive[..., None] * steps["squared_error"]).sum(axis=0).T
        result["pose_error"] = env.body.size * jnp.sqrt(jnp.minimum(*squares) / jnp.maximum(looks, 1.0))
    if OVERFLOW in steps:
        result[OVERFLOW] = (alive * steps[OVERFLOW]).max(axis=0)
    if "shuffled" in steps:
        # Without the last tick of an episode: behind it another one has begun, and the masks are of that.
        looks, most = (alive * ~steps["done"]).at[-1].set(0.0), max(len(alive) - env.control_steps_per_tick, 1)
        result["mask_iou"] = (looks * steps["reward/mask"]).sum(axis=0) / most
        result["mask_iou_shuffled"] = (looks * steps["shuffled"]).sum(axis=0) / most
    return result


def controls(action_size: int) -> dict[str, Policy]:
    """What every policy is compared with."""
    return {"zero action": zero_action(action_size), "random policy": random_policy(action_size)}


def summary(episodes: Mapping[str, Episodes]) -> dict[str, dict[str, float]]:
    """For each policy the means over its environments, and the return's standard deviation as `return_std`."""
    rows = {}
    for name, episode in episodes.items():
        rows[name] = {metric: float(np.mean(values)) for metric, values in episode.metrics.items()}
        rows[name]["return_std"] = float(np.std(episode.metrics["return"]))
    return rows


def evaluate(
    env: Env,
    policy: Policy,
    reference: Reference | None = None,
    *,
    reward: RewardConfig | None = None,
    encoder: Encoder | None = None,
    config: ImitationConfig | None = None,
    others: Mapping[str, Policy] | None = None,
    num_envs: int = 16,
    seed: int = 0,
    at_rest: bool = False,
) -> dict[str, dict[str, float]]:
    """Runs a policy beside its controls: zero action, random policy, and whatever `others` holds.

    Where actions are corrections of the clip's poses, zero action follows the clip blindly; then "standing still" is
    there too, which holds the default pose.

    Args:
        env: the robot or another environment, or an `ImitationEnv`, which brings the next four with it.
        policy: `policy(observation [N, O], key) -> (action [N, A], extras)`.
        reference: what was imitated; None evaluates the env's own reward.
        reward: weights of the terms.
        encoder: for the video term.
        config: what actions mean and where episodes begin; as at the training, or the policy is another one.
        others: more policies by name, such as the untrained one.
        num_envs: episodes of each.
        seed: of starts and random actions.
        at_rest: start at rest, standing (without a motion: in the start pose); otherwise in the clip's first pose and
            as fast as it is there, if the training does so.

    Returns:
        By name ("policy", "zero action", "random policy", ...) the means that `run_episodes` describes.

    Raises:
        ValueError: no episode, or an `ImitationEnv` beside what it brings.
    """
    if num_envs < 1:
        raise ValueError(f"num_envs: expected an integer >= 1, got {num_envs}")
    brought = {"reference": reference, "reward": reward, "encoder": encoder, "config": config}
    if not isinstance(env, ImitationEnv):
        env = ImitationEnv(env, **brought)
    elif given := [name for name, value in brought.items() if value is not None]:
        raise ValueError(f"{given[0]}: expected none beside an ImitationEnv, which has its own; make another one of it")
    env = env.from_the_start(at_rest=at_rest)
    standing = {"standing still": zero_action(env.action_size)} if env.config.targets == "clip" else {}
    policies = {"policy": policy, **(others or {}), **controls(env.action_size), **standing}
    return summary(compiled_episodes(env, policies, num_envs, jax.random.key(seed), standing))


def make_film(
    env: ImitationEnv, *, seconds: float = 3.0, size: int = 160, seed: int = 0
) -> Callable[[Policy], UInt8[np.ndarray, "T size size 3"]]:
    """A function that films a policy: one robot at each tick, from where evaluations begin until its episode ends.

    It compiles once, whatever policy it is given, so that it can be called again and again while training goes on.

    Args:
        env: robot and reference.
        seconds: how long the film is at most.
        size: width and height, px.
        seed: of the start.

    Raises:
        ValueError: an environment without a reference, whose camera films.
    """
    if env.reference is None:
        raise ValueError("env: expected one with a reference, got one without; type: ImitationEnv(env, reference)")
    env, steps = env.from_the_start(), round(seconds / env.dt)
    reset = jax.jit(lambda: env.reset(jax.random.split(jax.random.key(seed), 1)))
    step = jax.jit(lambda state, action: env.step(state, action, tick=False))
    draw = jax.jit(lambda state: env.pictures(state.data, size)[0])

    def film(policy: Policy) -> UInt8[np.ndarray, "T size size 3"]:
        state, pictures = reset(), []
        for i in range(steps):
            if i % env.control_steps_per_tick == 0:
                pictures.append(np.asarray(draw(state)))
            action, _ = policy(state.obs, jax.random.key(i))
            state = step(state, action)
            if bool(state.done[0]):
                break
        return np.stack(pictures)

    return film


def episode_pictures(env: ImitationEnv, episode: Episodes, size: int) -> UInt8[np.ndarray, "T size size 3"]:
    """The first robot of an evaluated episode in pictures, one per tick, until it ends."""
    qpos = jnp.asarray(episode.qpos[np.asarray(episode.alive)])

    @jax.jit
    def draw(qpos: Float[Array, " nq"]) -> UInt8[Array, "size size 3"]:
        data = posed(env.env.mjx_model, qpos)
        return env.pictures(jax.tree.map(lambda leaf: jnp.asarray(leaf)[None], data), size)[0]

    return np.stack([np.asarray(draw(q)) for q in qpos])
