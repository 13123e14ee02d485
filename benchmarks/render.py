"""Frames per second of the renderer beside those of MJX-Warp: same poses, same camera.

    python benchmarks/render.py [--quick | --full] [--json FILE] [--meshes MJCF]

The first peer is `mjx.refit_bvh` and `mjx.render_with_segmentation`; without Warp (`pip install -e ".[warp]"`) it is
left out. The second is MuJoCo's own renderer, one pose after the other; it needs OpenGL without a screen (`looks.py`
says how) and is left out as well where there is none. No row counts the kinematics. Compile time is a row of its own.
Memory is what XLA plans for, without inputs and pictures. The bound is the rate at which every ray would be tried
against every geom at the speed of a matrix product: what is above it comes from not trying.
"""

import importlib.util
import time
from pathlib import Path

import common
import jax
import jax.numpy as jnp
import mujoco
import numpy as np
from mujoco import mjx

import nil_jax
from nil_jax.rendering import make_scene, render, render_masks, side_camera
from nil_jax.rendering.geometry import KINDS

CASES = {  # robot, pixels, environments
    "quick": [("h1", 64, 64), ("h1", 64, 256), ("h1", 128, 64), ("meshes", 64, 64)],
    "full": [
        *[("h1", 64, n) for n in (64, 256, 1024, 4096)],
        *[(robot, size, n) for robot in ("h1", "meshes") for size in (128, 224) for n in (64, 256)],
        *[("meshes", 64, n) for n in (64, 256, 1024)],
    ],
}
EMBEDDED = Path(nil_jax.envs.__file__).parent / "assets" / "unitree_h1.xml"
OPENGL_POSES = 32  # drawn one after the other: more would only take longer
CAMERA = {"distance": 3.0, "height": 0.9, "focal": 1.3}  # m, m, image heights


def random_poses(env: nil_jax.envs.RobotEnv, count: int) -> np.ndarray:
    """Poses around mid-stride, `[count, nq]`."""
    qpos = np.tile(env.start_qpos, (count, 1))
    qpos[:, 7:] += np.random.default_rng(0).normal(scale=0.2, size=qpos[:, 7:].shape)
    return qpos.astype(np.float32)


def ours(env: nil_jax.envs.RobotEnv, size: int, qpos: np.ndarray) -> dict[str, tuple[float, float, int]]:
    """For each product: frames per second, seconds of compilation, bytes of working memory per pixel."""
    scene = make_scene(env.mj_model, env.robot_geom_ids)
    kinematics = jax.jit(jax.vmap(lambda q: nil_jax.envs.forward_kinematics(env.mjx_model, q)))
    poses = (*kinematics(jnp.asarray(qpos)), jnp.zeros((len(qpos), 3)))
    shape = {"height": size, "width": size}

    def masks(geom_xpos, geom_xmat, target):
        return render_masks(scene, geom_xpos, geom_xmat, side_camera(**CAMERA), target, **shape)

    def rgb(geom_xpos, geom_xmat, target):
        frames = render(scene, geom_xpos, geom_xmat, side_camera(**CAMERA), target, **shape)
        return frames.rgb, frames.segmentation

    results = {}
    for name, function in (("masks", masks), ("RGB + seg.", rgb)):
        started = time.perf_counter()
        compiled = jax.jit(function).lower(*poses).compile()
        compile_seconds = time.perf_counter() - started
        planned = compiled.memory_analysis()
        per_pixel = planned.temp_size_in_bytes / (len(qpos) * size * size)
        results[name] = (len(qpos) / common.best_seconds(compiled, *poses), compile_seconds, per_pixel)
    return results


def with_camera(path: Path) -> mujoco.MjModel:
    """The robot alone, seen by the same camera as ours."""
    spec = mujoco.MjSpec.from_file(str(path))
    for geom in list(spec.worldbody.geoms):
        spec.delete(geom)
    for camera in list(spec.cameras):
        spec.delete(camera)
    fovy = np.degrees(2 * np.arctan(0.5 / CAMERA["focal"]))
    turn = [np.sqrt(0.5), np.sqrt(0.5), 0, 0]  # looks along +y, z is up
    spec.worldbody.add_camera(name="side", pos=[0, -CAMERA["distance"], CAMERA["height"]], quat=turn, fovy=fovy)
    return spec.compile()


def warp(model: mujoco.MjModel, size: int, qpos: np.ndarray) -> float:
    """MJX-Warp: frames of RGB and segmentation per second."""
    context = mjx.create_render_context(
        model,
        len(qpos),
        cam_res=(size, size),
        render_rgb=True,
        render_seg=True,
        enabled_geom_groups=[0, 1, 2],
    )
    mjx_model = mjx.put_model(model, impl="warp")
    data = jax.vmap(lambda q: mjx.make_data(model, impl="warp").replace(qpos=q))(jnp.asarray(qpos))
    data = jax.jit(jax.vmap(mjx.forward, in_axes=(None, 0)))(mjx_model, data)  # kinematics alone leaves out the camera

    def draw(data):
        data = mjx.refit_bvh(mjx_model, data, context.pytree())
        rgb, _, segmentation, data = mjx.render_with_segmentation(mjx_model, data, context.pytree())
        return rgb, segmentation

    function = jax.jit(jax.vmap(draw))
    seconds = common.best_seconds(function, data)
    drawn = np.asarray(mjx.get_segmentation(context.pytree(), 0, function(data)[1])) >= 0
    assert 0.01 < drawn.mean() < 0.5, "the peer does not see the robot"
    return len(qpos) / seconds


def opengl(model: mujoco.MjModel, size: int, qpos: np.ndarray) -> float | None:
    """MuJoCo's renderer: frames of RGB and segmentation per second; None without OpenGL."""
    try:
        renderer = mujoco.Renderer(model, size, size)
    except Exception as error:  # whatever the machine's OpenGL libraries say
        print(f"without MuJoCo's renderer: {error}")
        return None
    poses = []
    for pose in qpos[:OPENGL_POSES]:
        data = mujoco.MjData(model)
        data.qpos[:] = pose
        mujoco.mj_forward(model, data)
        poses.append(data)

    def draw_all() -> int:
        shown = 0
        for data in poses:
            renderer.update_scene(data, camera="side")
            renderer.disable_segmentation_rendering()
            renderer.render()
            renderer.enable_segmentation_rendering()
            shown += (renderer.render()[..., 0] >= 0).any()
        return int(shown)

    with renderer:
        assert draw_all() == len(poses), "the peer does not see the robot"
        return len(poses) / common.best_seconds(draw_all)


def bound(env: nil_jax.envs.RobotEnv, size: int) -> float:
    """Masks per second if every ray were tried against every geom at the flops of a matrix product."""
    matrix = jnp.ones((2048, 2048))
    product = jax.jit(lambda a: a @ a).lower(matrix).compile()
    flops_per_second = 2 * 2048**3 / common.best_seconds(product, matrix)
    flops, pixels = 0.0, (jnp.zeros((1, 1, size)), jnp.zeros((1, size, 1)))
    for group in make_scene(env.mj_model, env.robot_geom_ids).groups:
        kind, parameters = KINDS[group.kind], jnp.asarray(group.parameters[:1])[None]
        surfaces = jax.tree.map(lambda leaf: leaf[0], kind.prepare(jnp.ones((1, 1, 4, 4)), parameters))
        flops += len(group.geom) * jax.jit(kind.covers).lower(surfaces, *pixels).compile().cost_analysis()["flops"]
    return flops_per_second / flops


def main() -> None:
    """Prints the rows."""
    command = common.parser(__doc__.splitlines()[0])
    default = Path(__file__).resolve().parents[2] / "shared" / "menagerie" / "unitree_h1" / "h1.xml"
    command.add_argument("--meshes", type=Path, default=default, help="MJCF of a robot with meshes")
    options = command.parse_args()
    has_warp = importlib.util.find_spec("warp") is not None
    rows = []
    for robot, size, count in CASES["full" if options.full else "quick"]:
        if robot == "meshes" and not options.meshes.is_file():
            continue
        path = EMBEDDED if robot == "h1" else options.meshes
        env = nil_jax.envs.make(path)
        qpos = random_poses(env, count)
        model = with_camera(path)
        peer = ("MJX-Warp, RGB + seg.", warp(model, size, qpos)) if has_warp else (None, None)
        for product, (rate, compile_seconds, per_pixel) in ours(env, size, qpos).items():
            name = f"{product}, {robot}, {size} px, {count} envs"
            rows.append(common.row(name, rate, "frames/s", *peer))
            rows.append(common.row(f"{name}: compile", compile_seconds, "s"))
            rows.append(common.row(f"{name}: memory", per_pixel, "bytes/pixel"))
        rows.append(common.row(f"bound of masks, {robot}, {size} px", bound(env, size), "frames/s"))
        if second := opengl(model, size, qpos):
            rows.append(common.row(f"{name}, beside OpenGL", rate, "frames/s", "MuJoCo, OpenGL", second))
    common.write(rows, options.json)


if __name__ == "__main__":
    common.run(main)
