"""Strict settings for every test, and the data that some tests need."""

import dataclasses
import gc
import os
import shutil
import subprocess
import tempfile
from contextlib import ExitStack
from functools import cache
from pathlib import Path

import jax
import pytest

jax.config.update("jax_debug_key_reuse", True)
gc.set_threshold(50_000, 10, 10)  # tests trace most of the time, and make little garbage
DOWNLOAD_SECONDS = 120
# Many tests compile the same programs, and the workers of one test run share what they compile.
RUN_ID = os.environ.get("PYTEST_XDIST_TESTRUNUID", str(os.getpid()))
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(Path(tempfile.gettempdir()) / f"nil_jax_tests_{RUN_ID}"))
jax.config.update("jax_compilation_cache_dir", os.environ["JAX_COMPILATION_CACHE_DIR"])
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)


@pytest.fixture(scope="session", autouse=True)
def optimised_fits():
    """Most tests compile longer than they run, so `make test` has XLA leave code as it is; fits run for long."""
    from nil_jax.reference import align

    options = {"xla_backend_optimization_level": 1}
    align._judge = jax.jit(align._judge.__wrapped__, static_argnames="env", compiler_options=options)


@pytest.fixture
def shared() -> Path:
    """The folder of data beside the checkout: skip without it, but on CI its absence is a failure."""
    root = Path(os.environ.get("NIL_JAX_SHARED", Path(__file__).resolve().parents[2] / "shared"))
    if not (root / "videos").is_dir():
        if os.environ.get("CI") == "true":
            pytest.fail(f"CI must have the shared data; expected a folder {root}")
        pytest.skip("no shared data beside the checkout")
    return root


@pytest.fixture
def menagerie(shared) -> Path:
    """The real robots of MuJoCo Menagerie."""
    return shared / "menagerie"


@cache
def _locomujoco(shared: Path) -> Path | str:
    """The folder of LocoMuJoCo's robots, or why there is none."""
    if given := os.environ.get("NIL_JAX_LOCOMUJOCO"):
        return Path(given)
    folder = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "nil_jax" / "locomujoco"
    if folder.is_dir():
        return folder
    # Built aside and renamed: a second test process, or one that is stopped, never leaves a half-filled folder.
    building = folder.with_name(f"{folder.name}.{os.getpid()}")
    command = ["bash", str(shared / "robots" / "get_locomujoco.sh"), str(building)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=DOWNLOAD_SECONDS)
    except subprocess.TimeoutExpired:
        return f"LocoMuJoCo's robots: the package index did not answer in {DOWNLOAD_SECONDS} s"
    if done.returncode:
        return f"LocoMuJoCo's robots: {' '.join(done.stderr.split())[-200:]}"
    try:
        building.rename(folder)
    except OSError:  # another process was first
        shutil.rmtree(building)
    return folder


@pytest.fixture
def loco(shared) -> Path:
    """The real robots of LocoMuJoCo, fetched once from the package index."""
    folder = _locomujoco(shared)
    if isinstance(folder, str):
        pytest.skip(folder)
    return folder


@pytest.fixture
def strict_promotion():
    """Strict dtype and rank promotion, for our own modules only: mjx, flashbax, brax and optax fail under them."""
    with ExitStack() as stack:
        stack.enter_context(jax.numpy_dtype_promotion("strict"))
        stack.enter_context(jax.numpy_rank_promotion("raise"))
        yield


TINY_ROBOT = """
<mujoco model="tiny">
  <compiler angle="radian"/>
  <option timestep="0.004"/>
  <worldbody>
    <geom name="ground" type="plane" size="5 5 .1"/>
    <body name="trunk" pos="0 0 0.42">
      <freejoint/>
      <geom name="trunk" type="box" size=".12 .08 .08" mass="3" rgba=".5 .5 .5 1"/>
      <body name="left" pos="0 .1 -.05">
        <joint name="left_hip" axis="0 1 0" range="-1 1" damping="1" armature=".05"/>
        <geom name="left_leg" type="capsule" fromto="0 0 0 0 0 -.3" size=".04" mass="1"/>
        <geom name="left_foot" type="capsule" fromto="-.09 0 -.33 .09 0 -.33" size=".04" mass=".3"/>
      </body>
      <body name="right" pos="0 -.1 -.05">
        <joint name="right_hip" axis="0 1 0" range="-1 1" damping="1" armature=".05"/>
        <geom name="right_leg" type="capsule" fromto="0 0 0 0 0 -.3" size=".04" mass="1"/>
        <geom name="right_foot" type="capsule" fromto="-.09 0 -.33 .09 0 -.33" size=".04" mass=".3"/>
      </body>
    </body>
  </worldbody>
  <actuator>
    <motor name="l" joint="left_hip" ctrlrange="-30 30"/>
    <motor name="r" joint="right_hip" ctrlrange="-30 30"/>
  </actuator>
</mujoco>
"""


@pytest.fixture(scope="session")
def tiny_path(tmp_path_factory) -> Path:
    """An MJCF of two hinges on a box: compiles in seconds, and stands on two wide feet."""
    path = tmp_path_factory.mktemp("tiny") / "tiny.xml"
    path.write_text(TINY_ROBOT)
    return path


@pytest.fixture(scope="session")
def tiny_env(tiny_path):
    """The environment of the tiny robot."""
    from nil_jax import envs

    return envs.make(tiny_path, sim_dt=0.004, ctrl_dt=0.02)


@pytest.fixture(scope="session")
def tiny_motion(tiny_env):
    """Poses of the tiny robot that swings its legs and moves forward; 21 ticks at 25 per second."""
    import numpy as np

    time = np.arange(21) / 25
    qpos = np.tile(tiny_env.default_qpos, (21, 1))
    qpos[:, 7], qpos[:, 8] = 0.4 * np.sin(6 * time), -0.4 * np.sin(6 * time)
    qpos[:, 0] = 0.3 * time
    return qpos.astype(np.float32)


@pytest.fixture(scope="session")
def tiny_reference(tiny_env, tiny_motion):
    """A reference of these poses, drawn by the renderer, which knows only what is to be seen of them."""
    import jax.numpy as jnp
    import numpy as np

    from nil_jax import envs
    from nil_jax.reference import Reference
    from nil_jax.rendering import make_scene, render, side_camera

    kinematics = jax.jit(jax.vmap(lambda q: envs.forward_kinematics(tiny_env.mjx_model, q)))
    geom_xpos, geom_xmat = kinematics(jnp.asarray(tiny_motion))
    camera = side_camera(2.0, 0.3, focal=2.5)
    target = jnp.asarray(tiny_motion[:, :3] * [1, 0, 0], jnp.float32)
    scene = make_scene(tiny_env.mj_model, tiny_env.robot_geom_ids)
    frames = render(scene, geom_xpos, geom_xmat, camera, target, height=32, width=32)
    return Reference(
        frames=np.asarray(frames.rgb),
        masks=np.asarray(frames.segmentation) >= 0,
        fps=25.0,
        camera=camera,
        start_qpos=tiny_motion[0],
        loop=False,
        provenance={"robot": tiny_env.spec.name, "fingerprint": tiny_env.fingerprint},
    )


@pytest.fixture(scope="session")
def moving_reference(tiny_reference, tiny_motion):
    """The reference with its poses, as a loop."""
    return dataclasses.replace(tiny_reference, motion=tiny_motion, loop=True)


@pytest.fixture(scope="session")
def clip(tiny_reference, tmp_path_factory):
    """A video of the tiny robot."""
    import numpy as np
    from PIL import Image

    from nil_jax.reference import write_video

    path = tmp_path_factory.mktemp("clip") / "swing.mp4"
    frames = np.stack([np.asarray(Image.fromarray(f).resize((128, 128))) for f in tiny_reference.frames])
    write_video(path, frames, 25.0)
    return path
