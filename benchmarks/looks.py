"""Stills beside those of MuJoCo's own OpenGL renderer: same robots, poses, camera and lights, white background.

    python benchmarks/looks.py [--quick | --full] [--json FILE] [--sheet FILE] [--meshes MJCF] [--loco FOLDER]

PSNR and SSIM are those of the box around the robot: white would flatter them. The peer has 16 samples a pixel and round
shapes of 128 pieces; its defaults are coarser. It needs OpenGL without a screen. On Debian that is
`apt-get install libosmesa6` and MUJOCO_GL=osmesa, or `apt-get install libegl1 libgl1-mesa-dri` and MUJOCO_GL=egl.
`--sheet` writes a picture with one row per robot: ours on the left, MuJoCo's on the right.
"""

import importlib.util
import time
from pathlib import Path

import common
import mujoco
import numpy as np
from PIL import Image
from scipy import ndimage

import nil_jax
from nil_jax.envs import mjcf
from nil_jax.reference.align import nominal_camera
from nil_jax.rendering import Camera, still

SIZE = {"quick": 384, "full": 768}  # px
MARGIN = 8  # px around the robot
WINDOW = 1.5  # px, standard deviation of SSIM's Gaussian window, as published
PEER = "MuJoCo, OpenGL"


def robots(meshes: Path, loco: Path | None) -> dict[str, Path]:
    """MJCF files by name: those that are there."""
    assets = Path(nil_jax.envs.__file__).parent / "assets"
    brax = Path(str(importlib.util.find_spec("brax").origin)).parent / "envs" / "assets"
    found = {
        "h1, embedded": assets / "unitree_h1.xml",
        "a1, embedded": assets / "unitree_a1.xml",
        "h1, Menagerie": meshes,
        "ant, Brax": brax / "ant.xml",
        "humanoid, Brax": brax / "humanoid.xml",
    }
    if loco:
        found |= {
            "h1, LocoMuJoCo": loco / "unitree_h1" / "h1.xml",
            "a1, LocoMuJoCo": loco / "quadrupeds" / "unitree_a1_position.xml",
            "talos, LocoMuJoCo": loco / "talos" / "talos.xml",
        }
    return {name: path for name, path in found.items() if path.is_file()}


def on_white(path: Path, config: nil_jax.envs.EnvConfig, size: int) -> mujoco.MjModel:
    """The model as the env has it, before a white sky."""
    spec = mujoco.MjSpec.from_file(str(path))
    mjcf.prepare(
        spec,
        sim_dt=config.sim_dt,
        actuation=config.actuation,
        damping_per_stiffness=config.damping_per_stiffness,
        feet=config.feet,
    )
    for texture in list(spec.textures):
        if texture.type == mujoco.mjtTexture.mjTEXTURE_SKYBOX:
            spec.delete(texture)
    flat, sky = mujoco.mjtBuiltin.mjBUILTIN_FLAT, mujoco.mjtTexture.mjTEXTURE_SKYBOX
    spec.add_texture(name="white", type=sky, builtin=flat, rgb1=[1, 1, 1], rgb2=[1, 1, 1], width=16, height=96)
    model = spec.compile()
    model.vis.global_.offwidth = model.vis.global_.offheight = size
    model.vis.quality.offsamples, model.vis.quality.numslices, model.vis.quality.numstacks = 16, 128, 64
    return model


def opengl(model: mujoco.MjModel, qpos: np.ndarray, camera: Camera, size: int) -> np.ndarray:
    """MuJoCo's picture."""
    data = mujoco.MjData(model)
    data.qpos[:] = qpos
    mujoco.mj_forward(model, data)
    position = np.asarray(camera.position)
    eye = mujoco.MjvCamera()
    eye.lookat, eye.distance, eye.azimuth, eye.elevation = [qpos[0], 0, position[2]], -position[1], 90, 0
    model.vis.global_.fovy = np.degrees(2 * np.arctan(0.5 / float(camera.focal)))
    options = mujoco.MjvOption()
    options.geomgroup[:], options.sitegroup[:] = 0, 0
    options.geomgroup[mjcf.DRAWN_GROUP] = 1
    model.geom_group[model.geom_bodyid == 0] = mjcf.HIDDEN_GROUP  # the floor
    with mujoco.Renderer(model, size, size) as renderer:
        renderer.update_scene(data, eye, options)
        return renderer.render()


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    """Peak signal-to-noise ratio of two pictures [H, W, 3] uint8, dB."""
    return float(-10 * np.log10(np.mean(np.square((a.astype(float) - b) / 255))))


def ssim(a: np.ndarray, b: np.ndarray) -> float:
    """Structural similarity (Wang et al., 2004) of two pictures [H, W, 3] uint8, mean over pixels and colours."""
    a, b = a / 255, b / 255

    def smooth(image: np.ndarray) -> np.ndarray:
        return ndimage.gaussian_filter(image, (WINDOW, WINDOW, 0))

    mean_a, mean_b = smooth(a), smooth(b)
    var_a, var_b = smooth(a * a) - mean_a**2, smooth(b * b) - mean_b**2
    cov = smooth(a * b) - mean_a * mean_b
    alike = (2 * mean_a * mean_b + 0.01**2) * (2 * cov + 0.03**2)
    return float(np.mean(alike / ((mean_a**2 + mean_b**2 + 0.01**2) * (var_a + var_b + 0.03**2))))


def box(*pictures: np.ndarray) -> tuple[slice, slice]:
    """Rows and columns of what is not white, and a little more."""
    shown = np.any([(picture < 250).any(axis=-1) for picture in pictures], axis=0)
    return tuple(
        slice(max(0, seen[0] - MARGIN), seen[-1] + MARGIN + 1)
        for seen in (np.flatnonzero(shown.any(axis=1)), np.flatnonzero(shown.any(axis=0)))
    )


def main() -> None:
    """Prints the rows."""
    command = common.parser(__doc__.splitlines()[0])
    default = Path(__file__).resolve().parents[2] / "shared" / "menagerie" / "unitree_h1" / "h1.xml"
    command.add_argument("--meshes", type=Path, default=default, help="MJCF of Menagerie's Unitree H1")
    command.add_argument("--loco", type=Path, help="folder with LocoMuJoCo's robot models")
    command.add_argument("--sheet", type=Path, metavar="FILE", help="write the pictures to this file")
    options = command.parse_args()
    size, rows, sheet = SIZE["full" if options.full else "quick"], [], []
    for name, path in robots(options.meshes, options.loco).items():
        env = nil_jax.envs.make(path)
        qpos, ids = np.asarray(env.start_qpos), env.robot_geom_ids
        camera = nominal_camera(env.mj_model, qpos, ids)
        target = np.array([qpos[0], 0.0, 0.0])
        started = time.perf_counter()
        ours = still(env.mj_model, qpos, camera, target, height=size, width=size, geom_ids=ids)
        seconds = time.perf_counter() - started
        model = on_white(path, env.config, size)
        started = time.perf_counter()
        try:
            peer = opengl(model, qpos, camera, size)
        except Exception as error:  # whatever the machine's OpenGL libraries say
            raise SystemExit(f"looks.py: expected OpenGL for the peer's pictures, got: {error}") from None
        peer_seconds = time.perf_counter() - started
        part = box(ours, peer)
        here = {"device": common.cpu()}
        rows.append(common.row(f"{name}: PSNR to MuJoCo's picture", psnr(ours[part], peer[part]), "dB", **here))
        rows.append(common.row(f"{name}: SSIM with MuJoCo's picture", ssim(ours[part], peer[part]), "", **here))
        what = f"{name}: {size} px still"
        rows.append(common.row(what, seconds, "s", PEER, peer_seconds, higher_is_better=False, **here))
        sheet.append(np.concatenate([ours, peer], axis=1))
    common.write(rows, options.json)
    if options.sheet:
        options.sheet.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.concatenate(sheet)).save(options.sheet)


if __name__ == "__main__":
    common.run(main)
