"""Runs a policy in MuJoCo's C engine, without this library: only JAX, NumPy and MuJoCo are imported.

    python examples/run_in_mujoco.py unitree_h1/walk              # prints how far it came, and whether it fell
    python examples/run_in_mujoco.py runs/h1 --viewer             # in MuJoCo's window
    python examples/run_in_mujoco.py h1_policy                    # a folder that `nil-jax export` wrote

A run, or a policy that ships, is exported first, into a temporary folder; only that needs nil_jax.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import jax
import jax.export
import mujoco
import numpy as np

LOW, TILTED = 0.5, 1.0  # fallen: below this share of the first height, or the base tilted by more than this (rad)


def export(run: str, folder: Path) -> Path:
    """The folder of the exported policy; `run` itself, if it is one."""
    if (Path(run) / "policy.stablehlo").is_file():
        return Path(run)
    from nil_jax import cli

    cli.main(["export", run, "-o", str(folder)])
    return folder


def fell(data: mujoco.MjData, first_height: float) -> bool:
    """Whether the base (first body, on a free joint) is low or tilted."""
    up = 1 - 2 * np.square(data.qpos[4:6]).sum()  # z of its own z axis
    return bool(data.qpos[2] < LOW * first_height or up < np.cos(TILTED))


def run(folder: Path, seconds: float, show: Callable[[mujoco.MjModel, mujoco.MjData], bool]) -> dict[str, float]:
    """One episode. `show` is called before every control step and says whether to go on.

    Returns:
        `distance` (m along x), `seconds` that it went on, and `fell` (0 or 1), which ends it.
    """
    about = json.loads((folder / "policy.json").read_text())
    policy = jax.jit(jax.export.deserialize(bytearray((folder / "policy.stablehlo").read_bytes())).call)
    model = mujoco.MjModel.from_xml_path(str(folder / "model.xml"))
    data = mujoco.MjData(model)
    data.qpos[:], data.qvel[:] = about["start_qpos"], about["start_qvel"]
    start, action, clock = data.qpos.copy(), np.zeros(model.nu, np.float32), 0
    while clock * about["ctrl_dt"] < seconds and not fell(data, start[2]) and show(model, data):
        state = data.qpos.astype(np.float32), data.qvel.astype(np.float32)
        data.ctrl[:], action = policy(*state, action, np.int32(clock))
        mujoco.mj_step(model, data, about["substeps"])
        clock += 1
    lasted = clock * about["ctrl_dt"]
    return {"distance": data.qpos[0] - start[0], "seconds": lasted, "fell": float(fell(data, start[2]))}


def window() -> Callable[[mujoco.MjModel, mujoco.MjData], bool]:
    """Shows an episode in MuJoCo's window, as fast as it really is; closing the window ends it."""
    import mujoco.viewer  # needs a display

    opened = []

    def show(model: mujoco.MjModel, data: mujoco.MjData) -> bool:
        if not opened:
            opened.extend((mujoco.viewer.launch_passive(model, data), time.perf_counter()))
            opened[0].cam.type = mujoco.mjtCamera.mjCAMERA_TRACKING
            opened[0].cam.trackbodyid = model.jnt_bodyid[0]
        handle, started = opened
        handle.sync()
        time.sleep(max(0.0, started + data.time - time.perf_counter()))
        return handle.is_running()

    return show


def main(arguments: list[str] | None = None) -> None:
    """Runs the policy and prints what became of it."""
    command = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    command.add_argument("policy", help="folder of nil-jax export, of a run, or a policy that ships: unitree_h1/walk")
    command.add_argument("--seconds", type=float, default=4.0, help="the longest (default: %(default)s)")
    command.add_argument("--viewer", action="store_true", help="show it in MuJoCo's window")
    options = command.parse_args(arguments)
    show = window() if options.viewer else lambda model, data: True
    with tempfile.TemporaryDirectory() as folder:
        found = run(export(options.policy, Path(folder) / "policy"), options.seconds, show)
    outcome = "and fell" if found["fell"] else "without a fall"
    print(f"{found['distance']:.2f} m in {found['seconds']:.2f} s {outcome}")


if __name__ == "__main__":
    main()
