"""`RobotEnv`: any prepared MJCF robot as an environment on MJX.

Frames: world x forward, z up; the base frame is that of the robot's first body; the heading frame is the world frame
turned by the robot's yaw. Units: m, rad, s, N m. Axes: G geoms, J joints, U actuators, C contact geoms, F feet.
"""

import copy
import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

import jax
import jax.numpy as jnp
import mujoco
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray
from mujoco import mjx

from nil_jax.envs import physics
from nil_jax.envs.base import Env, State
from nil_jax.envs.mjcf import Prepared, prepare
from nil_jax.optional import require_warp
from nil_jax.parallel import own_device


@dataclass(frozen=True)
class RobotSpec:
    """What the registry knows about a robot beyond its MJCF."""

    name: str
    source: str  # "embedded", "mujoco-menagerie", or the path of an MJCF file
    body: str = "robot"  # "humanoid" or "quadruped": the word for the video model's prompt
    start_pose: Mapping[str, float] = field(default_factory=dict)  # joint -> rad; overrides the keyframes, by name
    stiffness: Mapping[str, float] = field(default_factory=dict)  # part of a joint's name -> N m / rad of its servo
    fall_height: float = 0.6  # fallen when the base is below this fraction of its standing height
    target_velocity: float = 1.25  # m/s, forward speed of the locomotion reward
    action_scale: float = 0.4  # rad; where the settings name none

    @property
    def handle(self) -> str:
        """What `make` takes to find this robot again."""
        return self.source if self.source.endswith((".xml", ".mjcf")) else self.name


DIVERGED = "physics_diverged"  # name of a metric
LONGEST, MOST_SUBSTEPS = 1_000_000, 1000  # control steps of an episode, physics steps of one of them
SPREADS = ("mass_spread", "friction_spread", "gain_spread")


@dataclass(frozen=True)
class EnvConfig:
    """Physics and control of a robot."""

    ctrl_dt: float = 0.02  # s between two actions
    sim_dt: float = 0.004  # s between two physics steps
    actuation: str = "position"  # "position": servo on target angles; "torque": the paper's
    action_scale: float | None = None  # rad of target angle at |action| = 1 (position); None: the robot's own
    damping_per_stiffness: float = 0.03  # s; servo damping over servo stiffness
    episode_length: int = 500  # control steps until truncation
    reset_noise: float = 0.02  # rad and rad/s, uniform, on the joints
    reset_velocity: float = 0.0  # m/s forward at reset
    # Domain randomisation: shares by which values vary up and down, and a delay. Each of the first episodes, one in an
    # environment, has its own, and each later one those of one of them.
    mass_spread: float = 0.0  # of each body's mass and inertia
    friction_spread: float = 0.0  # of the friction between feet and floor
    gain_spread: float = 0.0  # of each actuator's strength
    latency: float = 0.0  # s, the most by which actions take effect late
    feet: tuple[str, ...] | None = None  # names of the foot bodies; None: the lowest leaf bodies
    fall_tilt: float = 1.0  # rad between the base's z axis and the vertical at which the robot has fallen
    physics: Literal["jax", "warp"] = "jax"  # engine: MJX in JAX, or MJX-Warp
    renderer: Literal["auto", "jax", "warp"] = "auto"  # "auto": the faster one on GPUs and under Warp, else "jax"
    buffer_margin: float = 2.0  # Warp's physics: room for this times the contacts and constraints of a tumbling robot

    def __post_init__(self):
        for name in ("ctrl_dt", "sim_dt", "action_scale", "episode_length", "fall_tilt"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ValueError(f"{name}: expected a positive number, got {value}")
        if self.ctrl_dt > 1 or self.episode_length > LONGEST:
            raise ValueError(
                f"ctrl_dt, episode_length: expected at most 1 s and {LONGEST} steps, got {self.ctrl_dt} s and "
                f"{self.episode_length}"
            )
        for name in SPREADS:
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name}: expected a number in [0, 1), got {getattr(self, name)}")
        if self.latency > self.ctrl_dt:
            raise ValueError(f"latency: expected at most one control step ({self.ctrl_dt} s), got {self.latency} s")
        if self.randomized and self.physics == "warp":
            off = " ".join(f"--{name.replace('_', '-')} 0" for name in (*SPREADS, "latency"))
            raise ValueError(
                f'physics: expected "jax" with domain randomisation, got "warp"; type: --physics jax, or {off}'
            )
        for name in ("reset_noise", "damping_per_stiffness", "latency"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name}: expected a number >= 0, got {getattr(self, name)}")
        choices = {
            "actuation": ("position", "torque"),
            "physics": ("jax", "warp"),
            "renderer": ("auto", "jax", "warp"),
        }
        for name, known in choices.items():
            if getattr(self, name) not in known:
                listed = " or ".join(f'"{choice}"' for choice in known)
                raise ValueError(f"{name}: expected {listed}, got {getattr(self, name)!r}")
        if not self.buffer_margin >= 1:
            raise ValueError(f"buffer_margin: expected a number >= 1, got {self.buffer_margin}")
        if self.ctrl_dt > MOST_SUBSTEPS * self.sim_dt or abs(self.ctrl_dt / self.sim_dt - self.n_substeps) > 1e-6:
            expected = f"1 to {MOST_SUBSTEPS} times sim_dt ({self.sim_dt} s)"
            raise ValueError(f"ctrl_dt: expected a whole multiple, {expected}, got {self.ctrl_dt} s")

    @property
    def randomized(self) -> bool:
        """Whether episodes differ in their physics."""
        return self.latency > 0 or any(getattr(self, name) > 0 for name in SPREADS)

    @property
    def n_substeps(self) -> int:
        """Physics steps in one control step."""
        return max(1, round(self.ctrl_dt / self.sim_dt))


def forward_kinematics(
    mjx_model: mjx.Model, qpos: Float[Array, " nq"]
) -> tuple[Float[Array, "G 3"], Float[Array, "G 3 3"]]:
    """World positions (m) and rotations of all geoms at `qpos`; vmappable over `qpos`."""
    data = posed(mjx_model, qpos)
    return data.geom_xpos, data.geom_xmat


def posed(mjx_model: mjx.Model, qpos: Float[Array, " nq"]) -> mjx.Data:
    """The state at rest at `qpos`, with where all bodies and geoms are then."""
    return physics.kinematics(mjx_model, mjx.make_data(mjx_model, device=own_device()).replace(qpos=qpos))


class RobotEnv(Env):
    """One robot on a flat floor.

    Actions in [-1, 1]: target angles `default + action_scale * action` (position) or torques `limit * action` (torque).
    `metrics` holds `forward_velocity` and `sideways_velocity` (m/s along x and y), `locomotion` (the env's own reward,
    unless `with_reward` has set another), `foot_slip_speed` (m/s, mean over the feet in contact), `fall` (0 or 1),
    `physics_diverged` (0 or 1: the state was not finite; also a fall), and under Warp's physics `buffer_overflow` (0 or
    1: contacts were lost in this episode).
    `info` holds `step`, and for reward terms `last_action`, `torque` [U] (N m), and for each foot `foot_contact` [F]
    (0 or 1: part of it was on the floor at both ends of the last control step) and `foot_velocity` [F, 3] (m/s over
    that step, of that part).
    """

    def __init__(self, spec: RobotSpec, model: mujoco.MjSpec, config: EnvConfig):
        prepared = prepare(
            model,
            sim_dt=config.sim_dt,
            actuation=config.actuation,
            damping_per_stiffness=config.damping_per_stiffness,
            feet=config.feet,
            stiffness=spec.stiffness,
        )
        self.spec, self.config, self.prepared = spec, config, prepared
        self.action_scale = spec.action_scale if config.action_scale is None else config.action_scale
        self.mj_spec, self.mj_model = model, prepared.mj_model
        self.physics = physics.jax_physics(prepared.mj_model)
        self.mjx_model = self.physics.mjx_model  # for kinematics; also under Warp, whose model needs Warp's data
        self.dt, self.episode_length = config.ctrl_dt, config.episode_length
        self.joint_names = prepared.joint_names
        self.joint_range = _joint_range(prepared.mj_model)
        self.base_body_id, self.floor_geom_id = prepared.base_body_id, prepared.floor_geom_id
        self.robot_geom_ids, self.foot_geom_ids = prepared.robot_geom_ids, prepared.foot_geom_ids
        self.fingerprint = _fingerprint(prepared)
        self.action_size = prepared.mj_model.nu
        self._foot_lower = _LowerEnds(prepared.mj_model, prepared.foot_geom_ids)
        foot_bodies = prepared.mj_model.geom_bodyid[prepared.foot_geom_ids]
        self._foot_of_geom = (np.unique(foot_bodies)[:, None] == foot_bodies).astype(np.float32)  # [F, C]
        self.torque_limit = prepared.torque_limit.astype(np.float32)
        self.servo_lag = _servo_lag(prepared) if config.actuation == "position" else np.zeros(len(self.joint_names))

        stand = prepared.keyframes.get("stand", prepared.keyframes.get("home"))
        if stand is None:
            stand = next(iter(prepared.keyframes.values()), prepared.mj_model.qpos0)
        start = self._posed(prepared.keyframes.get("walk", stand), spec.start_pose)
        self.default_qpos = self.on_floor(stand)
        self.start_qpos = self.on_floor(start)
        self.standing_height = float(self.default_qpos[2])
        self.observation_size = 2 * len(self.joint_names) + 3 + 1 + 3 + 3 + 2 + 1 + self.action_size
        self.num_envs = 1
        self._own_reward: Callable[[State], Array] | None = None
        if config.renderer == "warp":
            require_warp("renderer")
        if config.physics == "warp":
            bounds = np.stack([self.control(jnp.full(self.action_size, end)) for end in (-1.0, 1.0)], axis=1)
            self.physics = physics.warp_physics(self.mj_model, self.default_qpos, bounds, config.buffer_margin)

    def for_batch(self, num_envs: int) -> "RobotEnv":
        """The same robot as one of `num_envs`: Warp keeps the contacts of all in one list."""
        env = copy.copy(self)
        env.num_envs = num_envs
        return env

    def with_start(self, qpos: Float[np.ndarray, " nq"]) -> "RobotEnv":
        """The same robot, reset to another start pose."""
        if qpos.shape != self.start_qpos.shape:
            raise ValueError(f"start pose: expected {self.start_qpos.shape}, got {qpos.shape}")
        env = copy.copy(self)
        env.start_qpos = np.asarray(qpos, np.float32)
        return env

    def with_reward(self, reward: Callable[[State], Float[Array, ""]]) -> "RobotEnv":
        """The same robot with another reward of its own.

        Args:
            reward: a pure function of the state of one robot behind a control step: `data` (MJX: `qpos`, `qvel`,
                `xpos`, ...), `obs`, `metrics`, `info`. It should be at least 0: a fall is worth 0, whatever it says.
        """
        env = copy.copy(self)
        env._own_reward = reward
        return env

    def nominal(self) -> "RobotEnv":
        """The same robot without domain randomisation."""
        env = copy.copy(self)
        env.config = replace(self.config, latency=0.0, **dict.fromkeys(SPREADS, 0.0))
        return env

    def reset(
        self,
        key: PRNGKeyArray,
        qpos: Float[Array, " nq"] | None = None,
        qvel: Float[Array, " nv"] | None = None,
        joints: Float[Array, " J"] | None = None,
    ) -> State:
        """A pose with a little noise on the joints, feet on the floor: the start pose, unless another one is given.

        It moves forward at `config.reset_velocity`, unless `qvel` is given. Until the first action arrives, which
        latency delays, position targets are at `joints` (default: standing).
        """
        if qpos is None:
            qpos = jnp.array(self.start_qpos)
        if qvel is None:
            qvel = jnp.zeros(6 + len(self.joint_names)).at[0].set(self.config.reset_velocity)
        key_q, key_v, key_world = jax.random.split(key, 3)
        noise, nj = self.config.reset_noise, len(self.joint_names)
        low, high = jnp.array(self.joint_range, jnp.float32).T
        angles = jnp.clip(qpos[7:] + jax.random.uniform(key_q, (nj,), minval=-noise, maxval=noise), low, high)
        qpos = jnp.concatenate([qpos[:7], angles])
        qvel = qvel.at[6:].add(jax.random.uniform(key_v, (nj,), minval=-noise, maxval=noise))
        action = jnp.zeros(self.action_size)
        data = self.physics.make_data(self.num_envs).replace(qpos=qpos, qvel=qvel, ctrl=self.control(action, joints))
        # Frames of bodies and geoms are all that is looked at; mjx.step computes the rest.
        above = physics.kinematics(self.physics.mjx_model, data)
        qpos = qpos.at[2].add(-self.lowest_point(above.geom_xpos, above.geom_xmat))
        data = physics.kinematics(self.physics.mjx_model, data.replace(qpos=qpos))
        info = {"step": jnp.int32(0), "last_action": action} | self._feet(data)
        return self._state(data, info, self._world(key_world))

    def step(self, state: State, action: Float[Array, " U"], joints: Float[Array, " J"] | None = None) -> State:
        """`n_substeps` of physics under one action; position targets lie around `joints` (default: standing)."""
        action = jnp.clip(action.astype(jnp.float32), -1.0, 1.0)
        world = {name: value for name, value in state.info.items() if name.startswith(WORLD)}
        changes = {name.removeprefix(WORLD): value for name, value in world.items()}
        before, now, delay = state.data.ctrl, self.control(action, joints), changes.pop("latency", None)
        model = self.physics.mjx_model.replace(**changes)

        def substep(data: mjx.Data, time: Array) -> tuple[mjx.Data, None]:
            ctrl = now if delay is None else jnp.where(time < delay, before, now)
            return physics.step(model, data.replace(ctrl=ctrl)), None

        times = self.config.sim_dt * jnp.arange(self.config.n_substeps)
        data, _ = jax.lax.scan(substep, state.data, times)
        # mjx.step leaves the frames of bodies and geoms at the pose before its last integration.
        # `ctrl` is what the next control step begins with, also where this one's came too late for every substep.
        data = physics.kinematics(self.physics.mjx_model, data.replace(ctrl=now))
        feet = {name: state.info[name] for name in ("foot_position", "foot_height")}
        return self._state(data, feet | {"last_action": action, "step": state.info["step"] + 1}, world)

    def foot_heights(
        self, geom_xpos: Float[Array | np.ndarray, "*n G 3"], geom_xmat: Float[Array | np.ndarray, "*n G 3 3"]
    ) -> Float[Array | np.ndarray, "*n C"]:
        """Height of the lowest point of each of `foot_geom_ids`, m."""
        return self._foot_lower(geom_xpos, geom_xmat)

    def lowest_point(
        self, geom_xpos: Float[Array | np.ndarray, "*n G 3"], geom_xmat: Float[Array | np.ndarray, "*n G 3 3"]
    ) -> Float[Array | np.ndarray, "*n"]:
        """Height of the lowest point of the feet, m."""
        return self.foot_heights(geom_xpos, geom_xmat).min(-1)

    def _feet(self, data: mjx.Data) -> dict[str, Array]:
        """Positions [C, 3] and heights [C] of the geoms of the feet, m."""
        heights = self.foot_heights(data.geom_xpos, data.geom_xmat)
        return {"foot_position": data.geom_xpos[self.foot_geom_ids], "foot_height": heights}

    def _posed(self, qpos: np.ndarray, pose: Mapping[str, float]) -> np.ndarray:
        qpos = np.array(qpos)
        for name, angle in pose.items():
            if name in self.joint_names:
                qpos[7 + self.joint_names.index(name)] = angle
        return qpos

    def on_floor(self, qpos: Float[np.ndarray, " nq"]) -> Float[np.ndarray, " nq"]:
        """`qpos` moved up or down so that the lowest point of the feet is at z = 0; joints within their limits."""
        qpos = np.concatenate([qpos[:7], np.clip(qpos[7:], *self.joint_range.T)])
        data = mujoco.MjData(self.mj_model)
        data.qpos[:] = qpos
        mujoco.mj_kinematics(self.mj_model, data)
        lowest = self.lowest_point(data.geom_xpos[None], data.geom_xmat.reshape(1, -1, 3, 3))
        return np.concatenate([qpos[:2], qpos[2] - lowest, qpos[3:]]).astype(np.float32)

    def control(self, action: Float[Array, " U"], joints: Float[Array, " J"] | None = None) -> Float[Array, " U"]:
        """What MuJoCo's actuators take: target angles (rad) around `joints` (default: standing), or torques (N m)."""
        if self.config.actuation == "torque":
            return action * jnp.array(self.torque_limit)
        actuated, center = self.prepared.actuated, jnp.array(self.default_qpos[7:]) if joints is None else joints
        low, high = jnp.array(self.joint_range[actuated], jnp.float32).T
        return jnp.clip(center[actuated] + self.action_scale * action, low, high)

    def _world(self, key: PRNGKeyArray) -> dict[str, Array]:
        """What this episode's physics has of its own: fields of the model, and the delay of its actions."""
        if not self.config.randomized:
            return {}
        model, config = self.mj_model, self.config
        keys = jax.random.split(key, 4)

        def factor(index: int, shape: tuple[int, ...], spread: float) -> Array:
            return jax.random.uniform(keys[index], shape, minval=1 - spread, maxval=1 + spread)

        mass, gain = factor(0, (model.nbody, 1), config.mass_spread), factor(2, (model.nu, 1), config.gain_spread)
        fields = {
            "body_mass": jnp.asarray(model.body_mass, jnp.float32) * mass[:, 0],
            "body_inertia": jnp.asarray(model.body_inertia, jnp.float32) * mass,
            "geom_friction": jnp.asarray(model.geom_friction, jnp.float32) * factor(1, (), config.friction_spread),
            "actuator_gainprm": jnp.asarray(model.actuator_gainprm, jnp.float32) * gain,
            "actuator_biasprm": jnp.asarray(model.actuator_biasprm, jnp.float32) * gain,
            "latency": jax.random.uniform(keys[3], (), maxval=config.latency),
        }
        return {f"{WORLD}{name}": value for name, value in fields.items()}

    def _state(self, data: mjx.Data, info: dict[str, Array], world: dict[str, Array]) -> State:
        finite = jnp.isfinite(data.qpos).all() & jnp.isfinite(data.qvel).all()
        feet = self._feet(data)
        # A speed over the step is that of a sliding foot only if it touches the floor at both ends of the step.
        highest = jnp.maximum(feet["foot_height"], info["foot_height"])
        touching = (highest < CONTACT_HEIGHT) * self._foot_of_geom  # [F, C]
        geom_velocity = (feet["foot_position"] - info["foot_position"]) / self.dt
        info = info | feet
        info |= {
            "foot_velocity": touching @ geom_velocity / jnp.maximum(touching.sum(axis=1, keepdims=True), 1.0),
            "foot_contact": touching.max(axis=1),
            "torque": data.actuator_force,
        }
        up = rotation_matrix(data.qpos[3:7])[2, 2]
        low = data.qpos[2] < self.spec.fall_height * self.standing_height
        fallen = low | (up < np.cos(self.config.fall_tilt)) | ~finite
        velocity = jnp.where(finite, data.qvel[:2], 0.0)
        obs = jnp.where(finite, self.observation(data.qpos, data.qvel, info["last_action"]), 0.0)
        info = {name: jnp.where(finite, value, jnp.zeros_like(value)) for name, value in info.items()}
        reward = jnp.where(fallen, 0.0, locomotion_reward(self.spec, data.qvel[:2]))
        slip = (info["foot_contact"] * jnp.linalg.norm(info["foot_velocity"][:, :2], axis=1)).sum()
        metrics = {
            "forward_velocity": velocity[0],
            "sideways_velocity": velocity[1],
            "locomotion": reward,
            "foot_slip_speed": slip / jnp.maximum(info["foot_contact"].sum(), 1.0),
            "fall": fallen.astype(jnp.float32),
            DIVERGED: 1.0 - finite.astype(jnp.float32),
        }
        metrics |= self.physics.metrics(data)
        state = State(data, obs, reward, fallen, info["step"] >= self.episode_length, metrics, info | world)
        if self._own_reward is None:
            return state
        return state.replace(reward=jnp.where(fallen, 0.0, self._own_reward(state)))

    def observation(
        self, qpos: Float[Array, " nq"], qvel: Float[Array, " nv"], last_action: Float[Array, " U"]
    ) -> Float[Array, " O"]:
        """What the policy sees of the robot.

        Joint angles relative to standing (rad) and their velocities (rad/s); the direction of gravity in the base
        frame; the base's height (m); its velocity in the heading frame (m/s) and its angular velocity in its own frame
        (rad/s); cosine and sine of the yaw; lateral offset (m); the last action.
        """
        rotation = rotation_matrix(qpos[3:7])
        forward = rotation[:2, 0] / jnp.maximum(jnp.linalg.norm(rotation[:2, 0]), 1e-6)  # (cos yaw, sin yaw)
        cos, sin = forward
        vx, vy, vz = qvel[:3]
        return jnp.concatenate(
            [
                qpos[7:] - jnp.array(self.default_qpos[7:]),
                qvel[6:],
                -rotation[2],  # direction of gravity in the base frame
                qpos[2:3],
                jnp.stack([cos * vx + sin * vy, cos * vy - sin * vx, vz]),
                qvel[3:6],
                forward,
                qpos[1:2],  # lateral offset: the camera follows along x only, so the mask depends on it
                last_action,
            ]
        )


def locomotion_reward(spec: RobotSpec, velocity: Float[Array, "2"]) -> Float[Array, ""]:
    """LocoMuJoCo's reward of a base velocity (m/s, along x and y), in [0, 1]: what arXiv 2503.10626 reports.

    Humanoids: `exp(-(v_x - v*)^2)`; quadrupeds: `exp(-5 |v - (v*, 0)|)`, v* being `spec.target_velocity`.
    """
    error = velocity - jnp.array([spec.target_velocity, 0.0])
    if spec.body == "quadruped":
        return jnp.exp(-5.0 * jnp.linalg.norm(error))
    return jnp.exp(-jnp.square(error[0]))


def _servo_lag(prepared: Prepared) -> np.ndarray:
    """Seconds by which each joint follows a moving target: damping, also the joint's own, over stiffness."""
    model, joints = prepared.mj_model, prepared.actuated
    lag = np.zeros(len(prepared.joint_names))
    damping = model.dof_damping[6 + joints] - model.actuator_biasprm[:, 2]
    lag[joints] = damping / model.actuator_gainprm[:, 0]
    return lag


WORLD = "world/"  # names in `info` of what domain randomisation has drawn
CONTACT_HEIGHT = 0.002  # m; a foot geom lower than this counts as touching the floor


def rotation_matrix(quat: Float[Array, "4"]) -> Float[Array, "3 3"]:
    """The rotation of a unit quaternion (w, x, y, z)."""
    w, x, y, z = quat
    return jnp.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
            [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
            [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
        ]
    )


class _LowerEnds:
    """Heights of the lowest points of spheres and capsules."""

    def __init__(self, model: mujoco.MjModel, geom_ids: np.ndarray):
        is_capsule = model.geom_type[geom_ids] == mujoco.mjtGeom.mjGEOM_CAPSULE
        self.geom_ids = geom_ids
        self.radius = model.geom_size[geom_ids, 0].astype(np.float32)
        self.half_length = np.where(is_capsule, model.geom_size[geom_ids, 1], 0.0).astype(np.float32)

    def __call__(
        self, geom_xpos: Float[Array | np.ndarray, "*n G 3"], geom_xmat: Float[Array | np.ndarray, "*n G 3 3"]
    ) -> Float[Array | np.ndarray, "*n C"]:
        axis_z = geom_xmat[..., self.geom_ids, 2, 2]
        return geom_xpos[..., self.geom_ids, 2] - abs(axis_z) * self.half_length - self.radius


def _joint_range(model: mujoco.MjModel) -> np.ndarray:
    """[J, 2]; joints without limits get +-pi (hinges) or +-1 m (slides)."""
    slide = model.jnt_type[1:, None] == mujoco.mjtJoint.mjJNT_SLIDE
    free = np.where(slide, 1.0, np.pi) * np.array([[-1.0, 1.0]])
    return np.where(model.jnt_limited[1:, None].astype(bool), model.jnt_range[1:], free)


def _fingerprint(prepared: Prepared) -> str:
    """A short hash of what decides how the robot looks and moves: geometry, joints and their limits."""
    model, digest = prepared.mj_model, hashlib.sha256()
    for name in ("body_parentid", "body_pos", "body_quat", "geom_type", "geom_group", "geom_bodyid", "geom_size"):
        digest.update(np.ascontiguousarray(getattr(model, name)).tobytes())
    for name in ("geom_pos", "geom_quat", "jnt_axis", "jnt_range", "jnt_pos", "mesh_vert"):
        digest.update(np.round(getattr(model, name), 5).astype(np.float32).tobytes())
    digest.update("/".join(prepared.joint_names).encode())
    return digest.hexdigest()[:16]
