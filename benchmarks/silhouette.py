"""How closely the silhouettes of the embedded robots match the real robots' meshes (mask IoU, same poses, same rays).

    python benchmarks/silhouette.py [--quick | --full] [--json FILE] [--menagerie ROOT] [--loco ROOT]

ROOT of --loco is a folder made by ../shared/robots/get_locomujoco.sh. A robot of MuJoCo Menagerie that is not below its
ROOT is fetched. The ant has no meshes: it is compared with Brax's. Masks are cast with `mujoco.mj_ray`, pixel by pixel:
`mj_multiRay` skips a body when a ray misses its collision geoms, and so loses drawn geoms.
"""

import sys
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path

import mujoco
import mujoco_menagerie
import numpy as np

REQUIRED_IOU = 0.85
VIEWS = {"side": 0.0, "front": np.pi / 2, "45 degrees": np.pi / 4}  # rad, turn of the camera about z
CAMERA_DISTANCE = 3.0  # m
POSE_NOISE = {"swing": 0.35, "other": 0.17}  # rad, uniform, on joints about y and on the others
BASE_NOISE = 0.2  # rad, uniform, yaw and pitch of the base


@dataclass(frozen=True)
class Robot:
    """An embedded robot and where the real one is."""

    name: str
    source: str  # "menagerie", "loco" or "brax": whose model it is
    path: str  # of the real model, below that ROOT
    mesh_group: int  # geom group of what the real model draws
    view_height: float  # m that the image spans at the robot
    view_offset: float  # m from the base up to the middle of the image


ROBOTS = (
    Robot("unitree_h1", "menagerie", "unitree_h1/h1.xml", 2, 2.2, -0.15),
    Robot("unitree_a1", "loco", "quadrupeds/unitree_a1_torque.xml", 0, 0.85, -0.1),
    Robot("unitree_g1", "menagerie", "unitree_g1/g1.xml", 2, 1.7, -0.1),
    Robot("talos", "loco", "talos/talos.xml", 0, 2.2, -0.15),
    Robot("ant", "brax", "ant.xml", 0, 2.4, -0.2),
)
EMBEDDED_GROUP = 1


def embedded_xml(name: str) -> str:
    """The MJCF of a robot that ships with the package."""
    return (resources.files("nil_jax.envs") / "assets" / f"{name}.xml").read_text()


def embedded_model(name: str) -> mujoco.MjModel:
    """A robot that ships with the package."""
    return mujoco.MjModel.from_xml_string(embedded_xml(name))


def real_path(robot: Robot, root: Path | None) -> Path | None:
    """The real model: below `root`, from Brax, or fetched from MuJoCo Menagerie; None where it is not to be had."""
    if robot.source == "brax":
        root = Path(str(resources.files("brax"))) / "envs" / "assets"
    path = None if root is None else root / robot.path
    if path is not None and path.is_file():
        return path
    return _fetched(robot) if robot.source == "menagerie" else None


@cache
def _fetched(robot: Robot) -> Path | None:
    try:
        return mujoco_menagerie.get(robot.name).path() / Path(robot.path).name
    except (mujoco_menagerie.MenagerieError, OSError):
        return None


def real_model(path: Path) -> mujoco.MjModel:
    """The real robot without its floor, on a free joint (LocoMuJoCo gives the base six joints of its own).

    Bodies without joints are fused with their parents: what does not move is one link.
    """
    spec = mujoco.MjSpec.from_file(str(path))
    for geom in list(spec.worldbody.geoms):
        spec.delete(geom)
    base = spec.worldbody.first_body()
    if all(joint.type != mujoco.mjtJoint.mjJNT_FREE for joint in base.joints):
        for joint in list(base.joints):
            spec.delete(joint)
        base.add_freejoint()
    spec.compiler.fusestatic = True
    return spec.compile()


def random_poses(model: mujoco.MjModel, count: int, seed: int = 0) -> np.ndarray:
    """Poses around standing and mid-stride, `[count, nq]`."""
    rng = np.random.default_rng(seed)
    swing = np.abs(model.jnt_axis[1:, 1]) > 0.5
    noise = np.where(swing, POSE_NOISE["swing"], POSE_NOISE["other"])
    poses = model.key_qpos[np.arange(count) % model.nkey]
    low, high = model.jnt_range[1:].T
    poses[:, 7:] = np.clip(poses[:, 7:] + rng.uniform(-noise, noise, (count, model.njnt - 1)), low, high)
    for pose, (yaw, pitch) in zip(poses, rng.uniform(-BASE_NOISE, BASE_NOISE, (count, 2)) / 2, strict=True):
        turn, lean = np.array([np.cos(yaw), 0, 0, np.sin(yaw)]), np.array([np.cos(pitch), 0, np.sin(pitch), 0])
        mujoco.mju_mulQuat(pose[3:7], turn, lean)
    return poses


def posed(model: mujoco.MjModel, pose: np.ndarray, like: mujoco.MjModel | None = None) -> mujoco.MjData:
    """Kinematics of `model` at `pose`; with `like`, `pose` is in that model's order and joints are matched by name."""
    data = mujoco.MjData(model)
    like = like or model
    data.qpos[:7] = pose[:7]
    for joint in range(1, like.njnt):
        data.qpos[model.joint(like.joint(joint).name).qposadr[0]] = pose[like.jnt_qposadr[joint]]
    mujoco.mj_kinematics(model, data)
    return data


def mask(
    model: mujoco.MjModel,
    data: mujoco.MjData,
    group: int,
    middle: np.ndarray,
    view_height: float,
    size: int,
    turn: float,
) -> np.ndarray:
    """Mask `[size, size]` of the geoms of `group`, from a camera at `CAMERA_DISTANCE` that looks at `middle`."""
    right, forward = np.array([np.cos(turn), np.sin(turn), 0]), np.array([-np.sin(turn), np.cos(turn), 0])
    steps = ((np.arange(size) + 0.5) / size - 0.5) * view_height / CAMERA_DISTANCE
    across, down = np.meshgrid(steps, steps)
    rays = forward + across[..., None] * right - down[..., None] * np.array([0, 0, 1.0])
    rays = (rays / np.linalg.norm(rays, axis=-1, keepdims=True)).reshape(-1, 3)
    groups = (np.arange(mujoco.mjNGROUP) == group).astype(np.uint8)
    eye, hit = middle - CAMERA_DISTANCE * forward, np.zeros(1, np.int32)
    inside = [mujoco.mj_ray(model, data, eye, ray, groups, 1, -1, hit) >= 0 for ray in rays]
    return np.array(inside).reshape(size, size)


def intersection_over_union(a: np.ndarray, b: np.ndarray) -> float:
    """|a and b| / |a or b| of two masks."""
    return float((a & b).sum() / max((a | b).sum(), 1))


def silhouette_iou(
    robot: Robot, embedded: mujoco.MjModel, real: mujoco.MjModel, *, turn: float = 0.0, poses: int = 20, size: int = 128
) -> np.ndarray:
    """IoU of the embedded and the real robot's mask in each of `poses` random poses, `[poses]`."""
    values = []
    for pose in random_poses(embedded, poses):
        middle = np.array([pose[0], pose[1], pose[2] + robot.view_offset])
        camera = (middle, robot.view_height, size, turn)
        ours = mask(embedded, posed(embedded, pose), EMBEDDED_GROUP, *camera)
        theirs = mask(real, posed(real, pose, embedded), robot.mesh_group, *camera)
        values.append(intersection_over_union(ours, theirs))
    return np.array(values)


def main() -> int:
    """Prints the rows; 2 where there is no real robot to compare with."""
    import common  # beside this file; imported here so that tests can load the functions above

    shared = Path(__file__).resolve().parents[2] / "shared"
    command = common.parser("Silhouettes of the embedded robots against the real meshes.")
    command.add_argument("--menagerie", type=Path, default=shared / "menagerie", metavar="ROOT")
    command.add_argument("--loco", type=Path, metavar="ROOT", help="made by ../shared/robots/get_locomujoco.sh")
    options = command.parse_args()
    poses, size = (100, 256) if options.full else (20, 128)
    rows = []
    for robot in ROBOTS:
        root = getattr(options, robot.source, None)
        path = real_path(robot, root)
        if path is None:
            expected = f"expected {robot.path} below --{robot.source} ROOT, got {root}"
            print(f"{robot.name}: skipped; {expected}", file=sys.stderr)
            continue
        models = embedded_model(robot.name), real_model(path)
        for view, turn in VIEWS.items():
            value = float(silhouette_iou(robot, *models, turn=turn, poses=poses, size=size).mean())
            peer = ("required", REQUIRED_IOU) if view == "side" else (None, None)
            rows.append(common.row(f"silhouette {robot.name}, {view}", value, "IoU", *peer, device=common.cpu()))
    if not rows:
        return 2
    common.write(rows, options.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
