"""Makes any MJCF robot ready for MJX and for the renderer: `prepare` edits a `mujoco.MjSpec` and compiles it.

What it changes, and why:

* the base gets a free joint, in place of separate slides and hinges or of none, so that every robot has one layout;
* only the feet touch the floor: each further contact pair costs time in every step, and falls end the episode anyway;
* each actuated joint gets one actuator, so that actions mean the same on every robot;
* drawn geoms are in group 1 and the others in group 3, so that every renderer draws the same picture;
* what is no part of the robot (floors, lights, cameras, sensors, keyframes) gives way to one floor and one light.
"""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import mujoco
import numpy as np

DRAWN_GROUP, HIDDEN_GROUP = 1, 3
FOOT_SPHERE_RADIUS = 0.01  # m
FOOT_LEVEL_TOLERANCE = 0.05  # m above the lowest leaf body within which a leaf body still counts as a foot
NO_LIMIT_LEVER = 0.2  # m; a joint without any torque limit gets this times the robot's weight
FOOT_GEOMS = (int(mujoco.mjtGeom.mjGEOM_SPHERE), int(mujoco.mjtGeom.mjGEOM_CAPSULE))


@dataclass(frozen=True)
class Prepared:
    """A compiled robot and what was found out about it."""

    mj_model: mujoco.MjModel
    base_body_id: int
    robot_geom_ids: np.ndarray  # drawn geoms
    foot_geom_ids: np.ndarray  # spheres and capsules that touch the floor
    floor_geom_id: int
    joint_names: tuple[str, ...]  # order of qpos[7:]
    actuated: np.ndarray  # [nu] indices into joint_names
    torque_limit: np.ndarray  # [nu] N m (N for slides)
    keyframes: dict[str, np.ndarray]  # [nq]


@dataclass(frozen=True)
class _Actuation:
    joint: str
    torque_limit: float
    stiffness: float


def prepare(
    spec: mujoco.MjSpec,
    *,
    sim_dt: float,
    actuation: str,
    damping_per_stiffness: float,
    feet: Sequence[str] | None = None,
    stiffness: Mapping[str, float] | None = None,
) -> Prepared:
    """Edits `spec` in place and compiles it.

    Args:
        spec: the robot's model, with or without a scene around it.
        sim_dt: physics time step, s.
        actuation: "position" (servo on the target angle) or "torque".
        damping_per_stiffness: s; the servo's damping is this times its stiffness.
        feet: names of the foot bodies; by default the bodies without a joint below them that are lowest in the model's
            first pose.
        stiffness: N m / rad of the position servos by a part of the joint's name, instead of the model's own.

    Raises:
        ValueError: the model does not compile, has no base body or no feet, or has joints that are not supported.
    """
    _name_everything(spec)
    original = _compile(spec)
    base = _base_body(spec)
    joints = _actuations(original)
    keyframes = _keyframes(original, base)
    foot_spheres = _foot_geoms(original, base, feet)

    for collection in (spec.keys, spec.sensors, spec.actuators, spec.excludes, spec.pairs, spec.lights, spec.cameras):
        for element in list(collection):
            spec.delete(element)
    for body in list(spec.worldbody.bodies):
        if body.name != base.name:
            spec.delete(body)
    for geom in list(spec.worldbody.geoms):
        spec.delete(geom)

    if not (base.joints and base.joints[0].type == mujoco.mjtJoint.mjJNT_FREE):
        for joint in list(base.joints):
            spec.delete(joint)
        base.add_freejoint(name="root")
    _group_geoms(spec, base)
    _add_feet(spec, foot_spheres)
    joint_names = tuple(j.name for j in spec.joints if j.type != mujoco.mjtJoint.mjJNT_FREE)
    joints = [_stiffened(joint, stiffness or {}) for joint in joints if joint.joint in joint_names]
    _add_actuators(spec, joints, actuation, damping_per_stiffness)
    _add_world(spec)
    _solver_settings(spec, sim_dt, joints, damping_per_stiffness if actuation == "position" else 0.0)

    mj_model = _compile(spec)
    unsupported = [j for j in range(1, mj_model.njnt) if mj_model.jnt_type[j] < int(mujoco.mjtJoint.mjJNT_SLIDE)]
    if unsupported:
        name = mj_model.joint(unsupported[0]).name
        raise ValueError(f"joints: expected hinges and slides, got a ball or second free joint {name!r}; replace it")
    return Prepared(
        mj_model=mj_model,
        base_body_id=mj_model.body(base.name).id,
        robot_geom_ids=np.flatnonzero((mj_model.geom_group == DRAWN_GROUP) & (mj_model.geom_bodyid > 0)),
        foot_geom_ids=np.flatnonzero((mj_model.geom_contype == 1) & (mj_model.geom_bodyid > 0)),
        floor_geom_id=mj_model.geom("floor").id,
        joint_names=joint_names,
        actuated=np.array([joint_names.index(joint.joint) for joint in joints]),
        torque_limit=np.array([joint.torque_limit for joint in joints]),
        keyframes=keyframes,
    )


def _name_everything(spec: mujoco.MjSpec) -> None:
    """Gives names to what has none: elements are found again by name after the model is edited."""
    for kind, elements in (("body", spec.bodies), ("joint", spec.joints), ("geom", spec.geoms)):
        taken = {element.name for element in elements}
        free = (name for i in itertools.count() if (name := f"{kind}_{i}") not in taken)
        for element in elements:
            element.name = element.name or next(free)


def _compile(spec: mujoco.MjSpec) -> mujoco.MjModel:
    try:
        return spec.compile()
    except (ValueError, RuntimeError, MemoryError, mujoco.FatalError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"model: expected an MJCF that MuJoCo compiles, got an error: {reason}") from None


def _base_body(spec: mujoco.MjSpec) -> mujoco.MjsBody:
    """The top-level body with the most joints below it: the robot, not its scene."""
    bodies = list(spec.worldbody.bodies)
    counts = [sum(1 for _ in body.find_all(mujoco.mjtObj.mjOBJ_JOINT)) + len(body.joints) for body in bodies]
    if not bodies or max(counts) == 0:
        raise ValueError("model: expected a robot with joints, got none; give an MJCF whose worldbody holds the robot")
    base = bodies[int(np.argmax(counts))]
    if not any(body.joints for body in base.find_all(mujoco.mjtObj.mjOBJ_BODY)):
        raise ValueError(f"model: expected joints behind the base body {base.name!r}, got none; give a robot with some")
    return base


def _actuations(model: mujoco.MjModel) -> list[_Actuation]:
    """One entry for each actuated joint (each joint if the model has no actuators), with limits of the real robot."""
    weight = float(model.body_mass.sum() * -model.opt.gravity[2])
    found: dict[int, _Actuation] = {}
    for i in range(model.nu):
        joint = int(model.actuator_trnid[i, 0])
        if model.actuator_trntype[i] != mujoco.mjtTrn.mjTRN_JOINT or joint in found:
            continue
        gear, gain = abs(float(model.actuator_gear[i, 0])), abs(float(model.actuator_gainprm[i, 0]))
        is_servo = model.actuator_biastype[i] == mujoco.mjtBias.mjBIAS_AFFINE
        # Its length is the joint's angle times the gear, the joint's torque its force times the gear.
        stiffness = -float(model.actuator_biasprm[i, 1]) * gear**2 if is_servo else 0.0
        limits = []
        if model.jnt_actfrclimited[joint]:
            limits.append(np.abs(model.jnt_actfrcrange[joint]).max())
        if model.actuator_forcelimited[i]:
            limits.append(np.abs(model.actuator_forcerange[i]).max() * gear)
        if model.actuator_ctrllimited[i] and not is_servo:
            limits.append(np.abs(model.actuator_ctrlrange[i]).max() * gain * gear)
        limit = float(min(limits)) if limits else NO_LIMIT_LEVER * weight
        found[joint] = _Actuation(model.joint(joint).name, limit, stiffness if stiffness > 0 else limit)
    if not found:
        hinges = np.flatnonzero(model.jnt_type >= int(mujoco.mjtJoint.mjJNT_SLIDE))
        limit = NO_LIMIT_LEVER * weight
        found = {int(j): _Actuation(model.joint(j).name, limit, limit) for j in hinges}
    # Without a known servo the stiffness is the limit per radian: an error of one radian asks for all the torque.
    return [found[joint] for joint in sorted(found)]


def _stiffened(joint: _Actuation, stiffness: Mapping[str, float]) -> _Actuation:
    chosen = [value for part, value in stiffness.items() if part in joint.joint]
    return replace(joint, stiffness=chosen[0]) if chosen else joint


def _keyframes(model: mujoco.MjModel, base: mujoco.MjsBody) -> dict[str, np.ndarray]:
    """Keyframes of a model that has the common layout already: the free joint of the base first, then its others.

    Of bodies beside the robot, which are left out of the scene, they keep nothing.
    """
    if model.njnt == 0 or model.jnt_type[0] != mujoco.mjtJoint.mjJNT_FREE:
        return {}
    others = np.flatnonzero(model.body_rootid[model.jnt_bodyid] == model.body_rootid[model.jnt_bodyid[0]])[1:]
    of_one_angle = model.jnt_type[others] >= int(mujoco.mjtJoint.mjJNT_SLIDE)  # not balls, which have quaternions
    if model.body(base.name).id != model.jnt_bodyid[0] or not of_one_angle.all():
        return {}
    places = np.concatenate([np.arange(7), model.jnt_qposadr[others]])
    return {model.key(i).name or f"key{i}": model.key_qpos[i][places] for i in range(model.nkey)}


def _geom_corners(model: mujoco.MjModel, geom: int) -> np.ndarray:
    """[8, 3] corners of a geom's bounding box in the frame of its body, m."""
    signs = np.array(np.meshgrid([-1, 1], [-1, 1], [-1, 1])).reshape(3, -1).T
    corners = model.geom_aabb[geom, :3] + signs * model.geom_aabb[geom, 3:]
    rotation = np.zeros(9)
    mujoco.mju_quat2Mat(rotation, model.geom_quat[geom])
    return corners @ rotation.reshape(3, 3).T + model.geom_pos[geom]


def _foot_geoms(
    model: mujoco.MjModel, base: mujoco.MjsBody, feet: Sequence[str] | None
) -> dict[str, list[str] | np.ndarray]:
    """For each foot body: the names of its own contact geoms, or [4, 3] points (its frame) where spheres are to go."""
    data = mujoco.MjData(model)
    mujoco.mj_kinematics(model, data)
    base_id = model.body(base.name).id
    robot = [b for b in range(1, model.nbody) if model.body_rootid[b] == model.body_rootid[base_id]]
    corners = {}
    for b in robot:
        geoms = np.flatnonzero(model.geom_bodyid == b)
        if len(geoms):
            corners[b] = np.concatenate([_geom_corners(model, g) for g in geoms])
    world = {b: c @ data.xmat[b].reshape(3, 3).T + data.xpos[b] for b, c in corners.items()}
    if feet is not None:
        unknown = [name for name in feet if name not in {model.body(b).name for b in corners}]
        if unknown:
            known = ", ".join(sorted(model.body(b).name for b in corners))
            raise ValueError(f"feet: expected names of bodies with geoms ({known}), got {unknown[0]!r}")
        chosen = [model.body(name).id for name in feet]
    else:
        # Bodies without a joint of their own are parts of the one that they are welded to.
        moving_parents = {p for b in robot if model.body_jntnum[b] for p in _ancestors(model, b)}
        welded_to = {b: next((a for a in [b, *_ancestors(model, b)] if model.body_jntnum[a]), base_id) for b in corners}
        leaves = [b for b in corners if welded_to[b] != base_id and welded_to[b] not in moving_parents]
        if not leaves:
            raise ValueError("feet: expected leaf bodies with geoms, got none; name the feet: make(..., feet=(...))")
        lowest = min(world[b][:, 2].min() for b in leaves)
        chosen = [b for b in leaves if world[b][:, 2].min() < lowest + FOOT_LEVEL_TOLERANCE]
    return {model.body(b).name: _contact_of(model, data, b, world[b]) for b in chosen}


def _ancestors(model: mujoco.MjModel, body: int) -> list[int]:
    parents = []
    while body:
        body = int(model.body_parentid[body])
        parents.append(body)
    return parents


def _contact_of(model: mujoco.MjModel, data: mujoco.MjData, body: int, corners: np.ndarray) -> list[str] | np.ndarray:
    own = []
    for geom in np.flatnonzero(model.geom_bodyid == body):
        collides = model.geom_contype[geom] or model.geom_conaffinity[geom]
        if collides and model.geom_type[geom] in FOOT_GEOMS:
            own.append(model.geom(geom).name)
    if own:
        return own
    low, high = corners.min(axis=0), corners.max(axis=0)
    inset = FOOT_SPHERE_RADIUS
    spots = [
        (x, y, low[2] + inset) for x in (low[0] + inset, high[0] - inset) for y in (low[1] + inset, high[1] - inset)
    ]
    return (np.array(spots) - data.xpos[body]) @ data.xmat[body].reshape(3, 3)


def _group_geoms(spec: mujoco.MjSpec, base: mujoco.MjsBody) -> None:
    """Visual geoms where a body has any, all visible ones where it has none; then nothing collides yet."""
    for body in [base, *base.find_all(mujoco.mjtObj.mjOBJ_BODY)]:
        visible = [g for g in body.geoms if g.group <= 2 and (g.material or g.rgba[3] > 0)]
        visual = [g for g in visible if not g.contype and not g.conaffinity]
        drawn = {g.name for g in (visual or visible)}
        for geom in body.geoms:
            geom.group = DRAWN_GROUP if geom.name in drawn else HIDDEN_GROUP
    for geom in spec.geoms:
        geom.contype = geom.conaffinity = 0


def _add_feet(spec: mujoco.MjSpec, feet: dict[str, list[str] | np.ndarray]) -> None:
    for body, contact in feet.items():
        if isinstance(contact, list):
            for name in contact:
                spec.geom(name).contype = 1
            continue
        for i, spot in enumerate(contact):
            spec.body(body).add_geom(
                name=f"{body}_contact{i}",
                type=mujoco.mjtGeom.mjGEOM_SPHERE,
                size=[FOOT_SPHERE_RADIUS, 0, 0],
                pos=spot,
                mass=0,
                contype=1,
                conaffinity=0,
                group=HIDDEN_GROUP,
            )


def _add_actuators(
    spec: mujoco.MjSpec, joints: Sequence[_Actuation], actuation: str, damping_per_stiffness: float
) -> None:
    for joint in joints:
        actuator = spec.add_actuator(name=joint.joint, target=joint.joint, trntype=mujoco.mjtTrn.mjTRN_JOINT)
        # The class defaults of a model may say otherwise.
        actuator.ctrllimited, actuator.forcelimited, actuator.gear = False, True, [1, 0, 0, 0, 0, 0]
        actuator.forcerange = [-joint.torque_limit, joint.torque_limit]
        if actuation == "position":
            actuator.set_to_position(kp=joint.stiffness, kv=joint.stiffness * damping_per_stiffness)
        else:
            actuator.set_to_motor()


def _add_world(spec: mujoco.MjSpec) -> None:
    floor = spec.worldbody.add_geom(
        name="floor",
        type=mujoco.mjtGeom.mjGEOM_PLANE,
        size=[0, 0, 0.05],
        contype=0,
        conaffinity=1,
        rgba=[0.9] * 3 + [1],
    )
    floor.condim = max(floor.condim, 3)  # a model's own floor may have been all that had friction
    spec.worldbody.add_light(pos=[0, -3, 4], dir=[0, 0.6, -0.8], type=mujoco.mjtLightType.mjLIGHT_DIRECTIONAL)


def _solver_settings(
    spec: mujoco.MjSpec, sim_dt: float, actuations: Sequence[_Actuation], damping_per_stiffness: float
) -> None:
    """Few iterations of Newton's method: enough for feet on a floor, and each costs time in MJX.

    Plain Euler steps are up to twice as fast as those with implicit damping, and stable where no joint loses more than
    half of its velocity in one step, even if all it moves were its own armature.
    """
    option = spec.option
    option.timestep = sim_dt
    option.solver = mujoco.mjtSolver.mjSOL_NEWTON
    option.cone = mujoco.mjtCone.mjCONE_ELLIPTIC  # a pyramid lets feet slide sideways more easily
    servo = {a.joint: damping_per_stiffness * a.stiffness for a in actuations}
    hinges = [joint for joint in spec.joints if joint.type != mujoco.mjtJoint.mjJNT_FREE]
    damping = [float(np.max(joint.damping)) + servo.get(joint.name, 0.0) for joint in hinges]
    explicit = all(d * sim_dt <= 0.5 * joint.armature for d, joint in zip(damping, hinges, strict=True))
    integrators = mujoco.mjtIntegrator
    option.integrator = integrators.mjINT_EULER if explicit else integrators.mjINT_IMPLICITFAST
    option.iterations, option.ls_iterations = 3, 6
    option.disableflags |= mujoco.mjtDisableBit.mjDSBL_EULERDAMP
