"""A reference without a generator's gap: a real gait of motion capture, drawn by our renderer, with its true motion.

    python benchmarks/oracle.py NAME -o FOLDER [--mocap FOLDER]

NAME is "h1 walk", "h1 run", "a1 walk" or "talos walk". What a policy reaches that was trained on it
(`nil-jax train ROBOT FOLDER -o RUN`) is what one from a clip of the same gait can hope for.
"""

import argparse
from pathlib import Path

import common
import numpy as np
from motions import RECORDINGS, ROBOTS, read_gait

import nil_jax
from nil_jax.envs import Body
from nil_jax.reference import draw_reference
from nil_jax.reference.motion import travelled

FPS = 25.0


def oracle(name: str, mocap: Path) -> nil_jax.Reference:
    """One cycle of a gait as a reference that loops; its period is rounded to whole ticks."""
    env = nil_jax.envs.make(ROBOTS[name])
    gait = read_gait(RECORDINGS[name], mocap, env)
    count = round(gait.period * FPS)
    body = Body(env)
    qpos = body.qpos(gait.at(np.arange(count) * gait.period / count))
    qpos[1:, 0] = np.cumsum(travelled(body, qpos, loop=True)[:-1])
    return draw_reference(env, qpos, FPS, loop=True, provenance={"source": name})


def main() -> None:
    """Writes the reference."""
    command = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    command.add_argument("name", choices=ROBOTS)
    command.add_argument("-o", "--output", type=Path, required=True, metavar="FOLDER")
    shared = Path(__file__).resolve().parents[2] / "shared"
    command.add_argument("--mocap", type=Path, default=shared / "mocap", metavar="FOLDER")
    options = command.parse_args()
    reference = oracle(options.name, options.mocap)
    reference.save(options.output)
    print(f"{options.output}: {len(reference.masks)} ticks at {FPS:g} per second, {reference.travel_speed:.2f} m/s")


if __name__ == "__main__":
    common.run(main)
