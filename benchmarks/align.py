"""How well camera, start pose and motion are found: from masks of known poses, recorded gaits and generated clips.

    python benchmarks/align.py [--quick | --full] [--json FILE] [--videos FOLDER] [--mocap FOLDER] [--menagerie ROOT]
                               [--loco ROOT]

Known poses have random joint angles in the plane of the picture, random distance, height, scale and place; MuJoCo's
rays see them. Recorded gaits are one cycle each, drawn by our renderer, tracked from the true first pose on. The clips
are those of ../shared/videos; ROOT of --loco is a folder made by ../shared/robots/get_locomujoco.sh.
"""

import dataclasses
import time
from pathlib import Path

import common
import jax.numpy as jnp
import mujoco
import numpy as np
from families import RATE, SAGITTAL
from motions import RECORDINGS, read_gait
from pictures import Ours

import nil_jax
from nil_jax.reference import fit_start, read_video, segment_uniform
from nil_jax.reference.align import nominal_camera, sagittal_joints, sagittal_partners
from nil_jax.reference.motion import fit_motion
from nil_jax.reference.prepare import resized
from nil_jax.reference.segment import crop, square_crop
from nil_jax.rendering import Camera, pixel_rays

SIZE = 64  # px, of a mask
POSES = {"quick": 3, "full": 20}
JOINT_SPREAD = 0.25  # rad, standard deviation
FOUND, FOUND_SHARE, SECONDS = 0.95, 0.95, 120  # IoU that counts as found, in how many draws, and how long it may take
CLIPS = (  # clip, folder and file of the robot (None: the embedded one), IoU to reach
    ("h1_walk_kling", "menagerie", "unitree_h1/h1.xml", 0.85),
    ("h1_walk_kling", None, "unitree_h1", 0.80),
    ("a1_walk_kling", "loco", "quadrupeds/unitree_a1_torque.xml", 0.80),
    ("a1_walk_kling", None, "unitree_a1", 0.80),
    ("talos_walk_kling", "loco", "talos/talos.xml", 0.80),
)


def draw(env: nil_jax.envs.RobotEnv, rng: np.random.Generator) -> tuple[np.ndarray, Camera]:
    """A pose with its feet on the floor, and a camera that sees it whole."""
    qpos, joints = np.array(env.start_qpos), sagittal_joints(env.mj_model, env.start_qpos)
    low, high = env.joint_range[joints].T
    qpos[7 + joints] = np.clip(qpos[7 + joints] + rng.normal(scale=JOINT_SPREAD, size=len(joints)), low, high)
    qpos = env.on_floor(qpos)
    camera = nominal_camera(env.mj_model, env.start_qpos, env.robot_geom_ids)
    nearer, zoom = np.exp(rng.uniform(-0.3, 0.3)), np.exp(rng.uniform(-0.2, 0.0))
    return qpos, dataclasses.replace(
        camera,
        position=camera.position * jnp.array([1.0, nearer, 1.0]),
        focal=camera.focal * nearer * zoom,
        center=camera.center + jnp.asarray(rng.uniform(-0.04, 0.04, 2), jnp.float32),
    )


def seen(env: nil_jax.envs.RobotEnv, qpos: np.ndarray, camera: Camera) -> np.ndarray:
    """The robot's mask by MuJoCo's rays."""
    model, data = env.mj_model, mujoco.MjData(env.mj_model)
    data.qpos[:] = qpos
    mujoco.mj_kinematics(model, data)
    origins, rays = (np.array(part, np.float64).reshape(-1, 3) for part in pixel_rays(camera, SIZE, SIZE))
    origins[:, 0] += qpos[0]
    hit, robot = np.zeros(1, np.int32), set(env.robot_geom_ids.tolist())
    groups = np.isin(np.arange(mujoco.mjNGROUP), model.geom_group[env.robot_geom_ids]).astype(np.uint8)
    mask = []
    for origin, ray in zip(origins, rays / np.linalg.norm(rays, axis=1, keepdims=True), strict=True):
        found = mujoco.mj_ray(model, data, origin, ray, groups, 1, -1, hit) >= 0
        mask.append(found and int(hit[0]) in robot)
    return np.array(mask).reshape(SIZE, SIZE)


def known_poses(name: str, number: int) -> list[dict]:
    """Rows of one embedded robot."""
    env, rng = nil_jax.envs.make(name), np.random.default_rng(0)
    ious, seconds, sides = [], [], []
    joints = sagittal_joints(env.mj_model, env.start_qpos)
    partners, sign = sagittal_partners(env.mj_model, joints)
    for _ in range(number):
        qpos, camera = draw(env, rng)
        mask = seen(env, qpos, camera)
        started = time.perf_counter()
        fit = fit_start(env, mask)
        seconds.append(time.perf_counter() - started)
        again = seen(env, fit.start_qpos, fit.camera)
        ious.append((mask & again).sum() / (mask | again).sum())
        error = fit.start_qpos[7 + joints] - [qpos[7 + joints], sign * qpos[7 + joints[partners]]]
        sides.append(np.abs(error[0]).mean() < np.abs(error[1]).mean())
    share = float(np.mean(np.array(ious) >= FOUND))
    return [
        common.row(f"{name}, {number} known poses: found (IoU {FOUND})", share, "share", "required", FOUND_SHARE),
        common.row(f"{name}: worst", float(min(ious)), "IoU"),
        common.row(f"{name}: left and right told apart", float(np.mean(sides)), "share"),
        common.row(f"{name}: median time", float(np.median(seconds)), "s", "required", SECONDS, higher_is_better=False),
    ]


def clip(path: Path, robot: str | Path, what: str, reach: float) -> list[dict]:
    """Rows of the first frame of one clip."""
    frames = read_video(path).frames
    masks = segment_uniform(frames)
    mask = resized(crop(masks[:1], square_crop(masks), False)[0], SIZE)
    env, started = nil_jax.envs.make(robot), time.perf_counter()
    iou = fit_start(env, mask).iou
    took = common.row(f"{what}: time", time.perf_counter() - started, "s", "required", SECONDS, higher_is_better=False)
    return [common.row(f"{what}: first frame", iou, "IoU", "required", reach), took]


def tracked(name: str, robot: str, mocap: Path) -> list[dict]:
    """Rows of one recorded gait: how far the fitted legs are from the true ones, and from the other side's."""
    env = nil_jax.envs.make(robot)
    gait = read_gait(RECORDINGS[name], mocap, env)
    ticks = round(gait.period * RATE)
    qpos = gait.body.qpos(gait.at(np.arange(ticks) * gait.period / ticks))
    camera = nominal_camera(env.mj_model, env.start_qpos, env.robot_geom_ids)
    masks, started = Ours(gait.body, camera)(qpos[None]).masks[0], time.perf_counter()
    found = fit_motion(env, masks, camera, qpos[0], fps=RATE, loop=True).qpos
    seconds = (time.perf_counter() - started) / ticks
    joints = sagittal_joints(env.mj_model, env.start_qpos)
    partners, sign = sagittal_partners(env.mj_model, joints)
    sides = qpos[:, 7 + joints], sign * qpos[:, 7 + joints[partners]]
    legs = [any(part in env.joint_names[j] for part in SAGITTAL["hip"] + SAGITTAL["knee"]) for j in joints]
    own, other = (np.abs(found[:, 7 + joints] - side)[:, legs].mean(1) for side in sides)
    return [
        common.row(f"{name}, tracked: hips and knees, mean error", float(own.mean()), "rad"),
        common.row(f"{name}, tracked: ticks with exchanged legs", float((other < own).mean()), "share"),
        common.row(f"{name}, tracked: time of a tick", seconds, "s"),
    ]


def main() -> None:
    """Prints the rows."""
    shared = Path(__file__).resolve().parents[2] / "shared"
    command = common.parser(__doc__.splitlines()[0])
    command.add_argument("--videos", type=Path, default=shared / "videos", metavar="FOLDER")
    command.add_argument("--mocap", type=Path, default=shared / "mocap", metavar="FOLDER")
    command.add_argument("--menagerie", type=Path, default=shared / "menagerie", metavar="ROOT")
    command.add_argument("--loco", type=Path, metavar="ROOT", help="made by ../shared/robots/get_locomujoco.sh")
    options = command.parse_args()
    rows = []
    for name in ("unitree_h1", "unitree_a1"):
        rows += known_poses(name, POSES["full" if options.full else "quick"])
    for name, robot in (("h1 walk", "unitree_h1"), ("a1 walk", "unitree_a1"), ("talos walk", "talos")):
        if options.mocap.is_dir():
            rows += tracked(name, robot, options.mocap)
    for video, source, robot, reach in CLIPS:
        root = getattr(options, source) if source else None
        path, model = options.videos / f"{video}.mp4", root / robot if root else robot
        if path.is_file() and (source is None or (root and model.is_file())):
            rows += clip(path, model, f"{video}, {source or 'embedded'}", reach)
    common.write(rows, options.json)


if __name__ == "__main__":
    common.run(main)
