"""The one place where robot, renderer and reward meet: `ImitationEnv`, and `collect`, which runs a policy in it.

Axes: N environments, K control steps of one reward tick, T frames of the reference, C frames of a clip.
"""

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key, PRNGKeyArray, UInt8

from nil_jax import rewards
from nil_jax.envs import AutoResetWrapper, Body, RobotEnv, State, VmapWrapper
from nil_jax.reference import Reference
from nil_jax.reference.motion import velocities
from nil_jax.reference.prepare import all_resized
from nil_jax.rendering import JaxRenderer, Renderer, WarpRenderer, make_scene
from nil_jax.rewards import Encoder, RewardConfig
from nil_jax.types import Transition

# Where episodes may begin anywhere: the part of the environments in which all begin at rest, and the part of the other
# episodes that begin at frame 0 as evaluations do. Were it a part of the episodes, there would be hardly a step of it:
# from rest a robot falls soon, while the others walk on.
AT_REST, FIRST = 0.2, 0.2
CATCH_UP = 1.0  # s in which a robot that began at rest may be far from the clip's pose
SLOW = 0.5  # m/s; errors of a slower clip's speed are measured by this
MIN_TICKS = 10  # of an episode that begins late in a clip that does not loop
CLOCK_FREQUENCIES = (0.5, 1.0, 2.0, 4.0)  # Hz; the gaits of robots lie in this range
HARMONICS = (1, 2, 3, 4)  # of the period of a clip that loops


@dataclass(frozen=True)
class ImitationConfig:
    """How episodes of imitation begin and end, and what actions mean in them.

    Raises:
        ValueError: a value out of range.
    """

    # Where training begins: at rest (standing; in the start pose, if the reference has no motion); at frame 0, or any
    # frame, in the pose and with the speed of the clip there. auto: anywhere, and targets around the pose of the clip,
    # if the reference has a motion; otherwise rest and stand.
    starts: Literal["auto", "rest", "first", "anywhere"] = "auto"
    targets: Literal["auto", "stand", "clip"] = "auto"  # around which pose the position targets of the servos lie
    lost_iou: float = 0.0  # mask IoU below which a robot counts as fallen
    lost_pose: float = 0.09  # robot sizes, the distance from the clip's pose above which it does; 0: never

    def __post_init__(self):
        if not 0 <= self.lost_iou < 1:
            raise ValueError(f"lost_iou: expected a number in [0, 1), got {self.lost_iou}")
        if not 0 <= self.lost_pose < math.inf:
            raise ValueError(f"lost_pose: expected a number >= 0, got {self.lost_pose}")

    def resolved(self, has_motion: bool, has_servos: bool) -> "ImitationConfig":
        """These settings without "auto".

        Raises:
            ValueError: settings that need the motion of a reference that has none, or servos that follow it.
        """
        if self.targets == "clip" and not has_servos:
            raise ValueError(
                'targets: expected "stand" with torques, as there are no servos that follow a pose, got "clip"; '
                "type: --targets stand"
            )
        if not has_motion and (self.starts in ("first", "anywhere") or self.targets == "clip"):
            raise ValueError(
                "starts, targets: expected a reference with a motion, got one without; prepare the clip again (with "
                "--track), or type: --starts rest --targets stand"
            )
        usual = "anywhere" if has_motion else "rest", "clip" if has_motion and has_servos else "stand"
        starts, targets = (b if a == "auto" else a for a, b in zip((self.starts, self.targets), usual, strict=True))
        return replace(self, starts=starts, targets=targets)


class ImitationEnv(VmapWrapper):
    """N robots that are paid for looking like the reference.

    `reset` takes keys [N]; `step` takes actions [N, A] and `tick`, one flag for all: whether this control step ends
    with a look at the robots. They look at the same time because a `lax.cond` under `vmap` would render anyway; image
    terms count `control_steps_per_tick` times at ticks and are zero between. That number follows from the reference's
    rate and the robot's `dt`.

    `State.reward` is the weighted total, zero in the step of a fall. `State.metrics` holds each unweighted term as
    `reward/<term>`. The observation is the robot's, followed by the reference clock. An episode ends with a fall, with
    the end of a reference that does not loop (no value lies behind it, and the clock tells the critic so), or, as
    truncation, at the robot's episode length. Without a reference the reward is the robot's own. The robot's settings
    name the renderer; "auto" is "jax" here, until `capacity.with_fastest_renderer` has tried both.

    Args:
        env: the robot.
        reference: what to imitate; camera and start pose are taken from it.
        reward: weights of the terms.
        encoder: embeds clips for the video term; without one the term is off, and those of pose and travel are without
            a motion of the reference.
        config: starts, ends and the meaning of actions.

    Raises:
        ValueError: a reference of another robot or another rate, or without embeddings of this encoder; episodes that
            are shorter than the time between two of its frames.
    """

    def __init__(
        self,
        env: RobotEnv,
        reference: Reference | None,
        reward: RewardConfig | None = None,
        encoder: Encoder | None = None,
        config: ImitationConfig | None = None,
    ):
        reward, has_motion = reward or RewardConfig(), reference is not None and reference.motion is not None
        has_servos = not isinstance(env, RobotEnv) or env.config.actuation == "position"
        self.config = (config or ImitationConfig()).resolved(has_motion, has_servos)
        if has_motion and env.config.reset_velocity:
            raise ValueError(
                f"reset_velocity: expected 0 with a reference that has a motion, whose speed episodes begin with, got "
                f"{env.config.reset_velocity}"
            )
        self.encoder = encoder if reward.uses_video else None
        self.reward = _fitting(reward, self.encoder, has_motion)
        self.reference = reference
        if reference is not None:
            reference.check_robot(env)
            env = env.with_start(np.asarray(reference.start_qpos))
        super().__init__(env)
        self.control_steps_per_tick = 1 if reference is None else control_steps_between(env.dt, reference.fps)
        if env.episode_length < self.control_steps_per_tick:
            least = f"at least {self.control_steps_per_tick}, the control steps between two looks"
            raise ValueError(f"episode_length: expected {least}, got {env.episode_length}")
        self.observation_size, self.motion, self._rest_frame = env.observation_size, None, 0
        self._standing: Bool[np.ndarray, " N"] | None = None
        if reference is None:
            return
        self.clip_length = len(reference.masks)
        if has_motion:
            self._set_motion(env)
        period = self.clip_length * self.control_steps_per_tick * env.dt  # s
        # A clock that jumped where a clip begins again would look like another state.
        self._rates = np.array(HARMONICS) / period if reference.loop else np.array(CLOCK_FREQUENCIES)
        self.observation_size += 2 * len(self._rates) + (0 if reference.loop else 1)
        self.observation_size += 0 if self.motion is None else len(env.joint_names)
        self.renderer = self._make_renderer(env.config.renderer)
        self.ref_masks = jnp.asarray(reference.masks)
        if self.encoder is not None:
            if self.encoder.digest not in reference.embeddings:
                raise ValueError(
                    "reference: expected embeddings of the encoder in use, got none; "
                    "type: nil_jax.with_embeddings(reference, encoder)"
                )
            self._ref_embeddings = jnp.asarray(reference.embeddings[self.encoder.digest])
            every = reference.loop or self.config.starts == "anywhere"
            frames = all_resized(reference.frames[: None if every else 1], self.encoder.image_size)
            self._kept_frames = jax.jit(self.encoder.kept)(frames)

    def reset(self, key: Key[Array, " N"]) -> State:
        """The first states, at the frames of the reference that the settings name; `key` is [N]."""
        if self.reference is None:
            state = super().reset(key)
            return state.replace(metrics={"fall": jnp.zeros(state.reward.shape)} | state.metrics)
        (frame, at_rest), start = self._first_frames(key), ()
        if self.motion is not None:
            # The camera follows along x, so every episode may begin at x = 0.
            pose, still = self.motion[frame].at[:, 0].set(0.0), at_rest[:, None]
            pose = jnp.where(still, jnp.asarray(self.env.default_qpos), pose)
            start = pose, jnp.where(still, 0.0, self.motion_velocity[frame])
            targets = self.targets(frame * self.control_steps_per_tick)
            if targets is not None:
                start += (jnp.where(still, self.env.default_qpos[7:], targets),)
        state = jax.vmap(self.env.for_batch(len(key)).reset)(key, *start)
        info = state.info | {"clock": frame * self.control_steps_per_tick}
        info["catch_up"] = jnp.where(at_rest, round(CATCH_UP / self.dt), 0)  # control steps that are left for it
        if self.encoder is not None:
            # As on the reference's side: before the first frame of a clip stands that one again, or the end of a loop.
            index = frame[:, None] + jnp.arange(1 - self.encoder.num_frames, 1)
            index = index % self.clip_length if self.reference.loop else jnp.maximum(index, 0)
            info["clip"] = self._kept_frames[index]
        metrics = state.metrics | {name: jnp.zeros(state.reward.shape) for name in self._logged_names}
        return state.replace(obs=self.observation(state.obs, info["clock"]), metrics=metrics, info=info)

    def step(self, state: State, action: Float[Array, "N A"], *, tick: bool | Bool[Array, ""] = True) -> State:
        """One control step; with `tick`, a look at the robot at its end."""
        action = jnp.clip(action.astype(jnp.float32), -1.0, 1.0)
        if self.reference is None:
            state = super().step(state, action)
            # An environment that says nothing of falls has them where episodes really end.
            return state.replace(metrics={"fall": state.terminated.astype(jnp.float32)} | state.metrics)
        previous_action, clock = state.info["last_action"], state.info["clock"] + 1
        own = {name: state.info[name] for name in state.info if name not in ("clock", "clip", "catch_up")}
        clip, catch_up = state.info.get("clip"), jnp.maximum(state.info["catch_up"] - 1, 0)
        targets = self.targets(clock)
        state = self._step(state.replace(info=own), action, *(() if targets is None else (targets,)))
        terms = self._regularizers(state, action, previous_action)
        if self.reward.own_weight > 0:
            terms["own"] = state.reward
        lost = jnp.zeros(len(clock), bool)
        if self.motion is not None:
            pose_error = jnp.sqrt(self.squared_pose_errors(state.data, clock)[:, 0])
            forward, sideways = (state.metrics[f"{way}_velocity"] for way in ("forward", "sideways"))
            speed_error = jnp.stack([forward - self._speed, sideways], axis=-1) / jnp.maximum(abs(self._speed), SLOW)
            terms |= rewards.motion_terms(self.reward, pose_error, speed_error)
            lost = (pose_error > self.config.lost_pose) & (self.config.lost_pose > 0)
        # One flag for the whole batch, outside of any vmap: the branch that is not taken costs nothing.
        look = jax.jit(self._look)  # traced once, for both branches
        image_terms, clip = jax.lax.cond(tick, look, partial(_no_look, look), state, clock, clip)
        scale = jnp.where(tick, float(self.control_steps_per_tick), 0.0)
        total, logged = rewards.combine(terms | image_terms, self.reward, image_scale=scale)
        lost |= tick & (image_terms["mask"] < self.config.lost_iou)
        fall = (state.metrics["fall"] > 0) | (lost & (catch_up == 0))
        logged = {name: jnp.where(fall, 0.0, value) for name, value in logged.items()}
        ended = (
            clock >= (self.clip_length - 1) * self.control_steps_per_tick
            if not self.reference.loop
            else jnp.zeros_like(fall)
        )
        return state.replace(
            obs=self.observation(state.obs, clock),
            reward=jnp.where(fall, 0.0, total),
            terminated=fall | ended,
            metrics=state.metrics | logged | {"fall": fall.astype(jnp.float32)},
            info=state.info | {"clock": clock, "catch_up": catch_up} | ({} if clip is None else {"clip": clip}),
        )

    def drawn_starts(self, key: PRNGKeyArray, num_envs: int) -> Int[Array, " N"]:
        """Environments that begin at rest draw from each other's first states, and the others from theirs."""
        split = self._num_at_rest(num_envs)
        at_rest = jnp.arange(num_envs) < split
        return jax.random.randint(key, (num_envs,), jnp.where(at_rest, 0, split), jnp.where(at_rest, split, num_envs))

    def on_reset(self, fresh: State, state: State) -> State:
        """A restarted episode keeps the phase of the ticks, which all environments share."""
        if self.reference is None:
            return fresh
        clock = fresh.info["clock"] + state.info["clock"] % self.control_steps_per_tick
        obs = self.observation(fresh.obs[:, : self.env.observation_size], clock)
        return fresh.replace(obs=obs, info=fresh.info | {"clock": clock})

    def frame_index(self, clock: Int[Array, "*n"]) -> Int[Array, "*n"]:
        """The frame of the reference that belongs to a clock in control steps."""
        index = clock // self.control_steps_per_tick
        return index % self.clip_length if self.reference.loop else jnp.minimum(index, self.clip_length - 1)

    def masks(self, state: State) -> Array:
        """Silhouettes of the robots as the reference's camera sees them, [N, h, w] bool."""
        height, width = self.reference.masks.shape[1:]
        data = state.data
        return self.renderer.masks(data.geom_xpos, data.geom_xmat, follow(data), height=height, width=width)

    def pictures(self, data: Any, size: int) -> UInt8[Array, "N size size 3"]:
        """Pictures of the robots on white; `data` needs `qpos`, `geom_xpos` and `geom_xmat`, each [N, ...]."""
        return self.renderer.pictures(data.geom_xpos, data.geom_xmat, follow(data), height=size, width=size)

    def from_the_start(self, *, at_rest: bool = False) -> "ImitationEnv":
        """The same environment with nominal physics, whose episodes begin at frame 0 and end only with a real fall."""
        env = copy.copy(self)
        if isinstance(self.env, RobotEnv):
            env.env = self.env.nominal()
            env._step = jax.vmap(env.env.step)
        starts = "rest" if at_rest or self.config.starts == "rest" else "first"
        env.config = replace(self.config, starts=starts, lost_iou=0.0, lost_pose=0.0)
        return env

    def first_pose(self) -> tuple[Float[np.ndarray, " nq"], Float[np.ndarray, " nv"], int]:
        """Pose and velocity of a robot where evaluations begin, and the frame of the reference that belongs to them."""
        still = np.zeros(self.env.mj_model.nv, np.float32)
        if self.motion is None:
            still[0] = self.env.config.reset_velocity
            return self.env.start_qpos, still, 0
        if self.config.starts == "rest":
            return self.env.default_qpos, still, self._rest_frame
        start = np.array(self.motion[0])
        start[0] = 0.0
        return self.env.on_floor(start), np.asarray(self.motion_velocity[0]), 0

    def targets(self, clock: Int[Array, " N"]) -> Float[Array, "N J"] | None:
        """Around which angles the position targets of the control step that ends at `clock` lie; None: standing."""
        if self.config.targets != "clip":
            return None
        rows = self._targets[self._row(clock)]
        return rows if self._standing is None else jnp.where(self._standing[:, None], self.env.default_qpos[7:], rows)

    def squared_pose_errors(self, data: Any, clock: Int[Array, " N"]) -> Float[Array, "N 2"]:
        """Mean squared distance of keypoints from the clip's, as the following camera sees them, in robot sizes^2.

        The second column is that of the left/right mirror image: a silhouette cannot tell them.
        """
        found = (self.body.points_of(data.xpos, data.xmat) - follow(data)[:, None]) / self.body.size
        mirrored = found[:, self.body.keypoint_twins] * jnp.array([1, -1, 1])
        errors = [image - self._points[self._row(clock)] for image in (found, mirrored)]
        return jnp.stack([jnp.square(error).sum(-1).mean(-1) for error in errors], axis=-1)

    def around_standing(self, which: Bool[np.ndarray, " N"]) -> "ImitationEnv":
        """The same environment; the position targets of these robots of a batch lie around the default pose."""
        env = copy.copy(self)
        env._standing = which
        return env

    def with_renderer(self, kind: str) -> "ImitationEnv":
        """The same environment, drawn by "jax" or "warp"."""
        env = copy.copy(self)
        env.renderer = self._make_renderer(kind)
        return env

    @property
    def renderer_kind(self) -> str | None:
        """What draws: "jax", "warp", or None without a reference."""
        if self.reference is None:
            return None
        return "warp" if isinstance(self.renderer, WarpRenderer) else "jax"

    def _make_renderer(self, kind: str) -> Renderer:
        if kind == "warp":
            return WarpRenderer(self.env.mj_spec, self.env.robot_geom_ids, self.reference.camera)
        return JaxRenderer(make_scene(self.env.mj_model, self.env.robot_geom_ids), self.reference.camera)

    def _set_motion(self, env: RobotEnv) -> None:
        """What the poses along the clip give: first states, joint angles at every control step, speed."""
        reference = self.reference
        self.motion = jnp.asarray(reference.motion, jnp.float32)
        speed = velocities(env.mj_model, reference.motion, 1 / reference.fps, loop=reference.loop)
        self.motion_velocity, self._speed = jnp.asarray(speed), jnp.asarray(speed[:, 0].mean())
        joints = self._at_control_rate(reference.motion[:, 7:])
        self.body = Body(env)
        points = self.body.keypoints(reference.motion)
        if reference.loop:
            # A loop may be entered anywhere: from standing, where it is most like that.
            away = points - self.body.keypoints(env.default_qpos[None])
            self._rest_frame = int(np.square(away).sum(-1).mean(-1).argmin())
        self._joints, self._points = jnp.asarray(joints), jnp.asarray(self._at_control_rate(points))
        # A servo lags behind what moves, by its damping: it is told to be where the joint would be that much later.
        targets = joints + env.servo_lag * self._at_control_rate(speed[:, 6:])
        self._targets = jnp.asarray(targets, jnp.float32)

    def _row(self, clock: Int[Array, " N"]) -> Int[Array, " N"]:
        """Of the arrays at control rate."""
        rows = len(self._joints)
        return clock % rows if self.reference.loop else jnp.minimum(clock, rows - 1)

    def _at_control_rate(self, ticks: Float[np.ndarray, "T ..."]) -> Float[np.ndarray, "C ..."]:
        """Values of ticks at every control step, in between linearly."""
        following = np.concatenate([ticks[1:], ticks[:1] if self.reference.loop else ticks[-1:]])
        steps = self.control_steps_per_tick
        between = [(1 - i / steps) * ticks + i / steps * following for i in range(steps)]
        return np.stack(between, axis=1).reshape(-1, *ticks.shape[1:]).astype(np.float32)

    def _first_frames(self, key: Key[Array, " N"]) -> tuple[Int[Array, " N"], Bool[Array, " N"]]:
        """Frames of the reference where episodes begin, and whether they begin at rest there."""
        if self.config.starts != "anywhere":
            at_rest = self.config.starts == "rest"
            return jnp.full(len(key), self._rest_frame if at_rest else 0), jnp.full(len(key), at_rest)
        latest = self.clip_length if self.reference.loop else max(1, self.clip_length - MIN_TICKS)

        def draw(key: PRNGKeyArray) -> Int[Array, ""]:
            key_where, key_frame = jax.random.split(jax.random.fold_in(key, 3))  # 0 to 2 are the robot's own
            somewhere = jax.random.randint(key_frame, (), 0, latest)
            return jnp.where(jax.random.uniform(key_where) < FIRST, 0, somewhere)

        at_rest = jnp.arange(len(key)) < self._num_at_rest(len(key))
        return jnp.where(at_rest, self._rest_frame, jax.vmap(draw)(key)), at_rest

    def _num_at_rest(self, num_envs: int) -> int:
        """How many environments, the first ones, always begin at rest."""
        anywhere = self.reference is not None and self.config.starts == "anywhere"
        return round(AT_REST * num_envs) if anywhere else 0

    @property
    def _logged_names(self) -> list[str]:
        terms = ["mask", "offset", *rewards.REGULARIZER_TERMS]
        terms += [term for term in rewards.IMAGE_TERMS if term != "mask" and self.reward.weight(term) > 0]
        terms += [] if self.motion is None else rewards.MOTION_TERMS
        terms += [term for term in rewards.OWN_TERMS if self.reward.weight(term) > 0]
        return [f"reward/{term}" for term in terms]

    def _look(self, state: State, clock: Array, clip: Array | None) -> tuple[dict[str, Array], Array | None]:
        index = self.frame_index(clock)
        terms = rewards.mask_terms(self.reward, self.masks(state), self.ref_masks[index])
        if self.encoder is None:
            return terms, clip
        frame = self.pictures(state.data, self.encoder.image_size)
        clip = jnp.concatenate([clip[:, 1:], self.encoder.kept(frame)[:, None]], axis=1)
        z = self.encoder.embed_kept(clip)
        return terms | rewards.video_term(self.reward, z, self._ref_embeddings[index]), clip

    def _regularizers(self, state: State, action: Array, previous_action: Array) -> dict[str, Array]:
        gravity = state.obs[:, 2 * len(self.env.joint_names) :][:, :3]
        return rewards.regularizer_terms(
            self.reward,
            joint_torque=state.info["torque"],
            torque_limit=jnp.asarray(self.env.torque_limit)[None],
            action=action,
            previous_action=previous_action,
            joint_velocity=state.data.qvel[:, 6:],
            foot_velocity=state.info["foot_velocity"],
            foot_contact=state.info["foot_contact"],
            gravity=gravity,
        )

    def observation(self, obs: Float[Array, "N o"], clock: Int[Array, " N"]) -> Float[Array, "N O"]:
        """The robot's observation, the clock, and how far the joints are from where the clip has them next."""
        if self.reference is None:
            return obs
        length, loop = self.clip_length * self.control_steps_per_tick, self.reference.loop
        elapsed = (clock % length if loop else clock).astype(jnp.float32)[:, None]
        angle = 2 * np.pi * self.dt * elapsed * jnp.asarray(self._rates, jnp.float32)
        parts = [obs, jnp.sin(angle), jnp.cos(angle)] + ([] if loop else [elapsed / length])
        if self.motion is not None:
            joints = obs[:, : len(self.env.joint_names)] + jnp.asarray(self.env.default_qpos[7:])
            parts.append(self._joints[self._row(clock + 1)] - joints)
        return jnp.concatenate(parts, axis=1)


def _no_look(look: Callable, state: State, clock: Array, clip: Array | None) -> tuple[dict[str, Array], Array | None]:
    shapes, _ = jax.eval_shape(look, state, clock, clip)
    return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes), clip


def _fitting(reward: RewardConfig, encoder: Encoder | None, has_motion: bool) -> RewardConfig:
    """The reward with the encoder's own similarity where it is left open, and without terms that lack a source."""
    if not has_motion:
        reward = replace(reward, pose_weight=0.0, travel_weight=0.0)
    if encoder is None:
        return replace(reward, video_weight=0.0)
    if reward.video_similarity != "auto":
        return reward
    return replace(reward, video_similarity=encoder.similarity, video_l2_scale=encoder.scale)


def control_steps_between(dt: float, fps: float) -> int:
    """Control steps of `dt` seconds from one frame of a reference to the next.

    Raises:
        ValueError: no whole number of them.
    """
    steps = 1 / (dt * fps)
    if round(steps) < 1 or abs(steps - round(steps)) > 1e-3 * steps:
        rate = 1 / (dt * max(1, round(steps)))
        raise ValueError(
            f"reference: expected a whole number of control steps ({dt:g} s) between its frames, got {steps:g} "
            f"({fps:g} frames per second); prepare the clip with --fps {rate:g}"
        )
    return round(steps)


def follow(data: Any) -> Float[Array, "N 3"]:
    """The point that the camera follows: the base's x, so that height, lateral offset and heading stay visible."""
    return data.qpos[:, :3] * jnp.array([[1.0, 0.0, 0.0]])


def collect(
    env: AutoResetWrapper,  # around an ImitationEnv
    policy: Callable[[Float[Array, "N O"], PRNGKeyArray], tuple[Array, dict]],
    state: State,
    key: PRNGKeyArray,
) -> tuple[State, Transition, dict[str, Array]]:
    """One reward tick: K control steps, the last one with a look at the robots.

    Returns:
        The state behind the tick, transitions [N, K, ...] with their true next observations, and metrics [K, N]
        (`fall`, `reward/...`, `reward`, `done`).
    """

    def control_step(state: State, inputs: tuple[PRNGKeyArray, Array]) -> tuple[State, tuple[Transition, dict]]:
        key, tick = inputs
        action, _ = policy(state.obs, key)
        following = env.step(state, action, tick=tick)
        transition = Transition(
            observation=state.obs,
            action=action,
            reward=following.reward,
            discount=1.0 - following.terminated.astype(jnp.float32),
            next_observation=following.info["final_obs"],
            extras={"truncated": following.truncated.astype(jnp.float32)},
        )
        return following, (transition, following.metrics | {"reward": following.reward, "done": following.done})

    steps = env.env.control_steps_per_tick
    inputs = jax.random.split(key, steps), jnp.arange(steps) == steps - 1
    state, (transitions, metrics) = jax.lax.scan(control_step, state, inputs)
    return state, jax.tree.map(lambda leaf: jnp.swapaxes(leaf, 0, 1), transitions), metrics
