"""Draws a policy that ships with the package as a looping picture: the motion that it follows, and what it does.

python examples/gallery.py unitree_h1/walk -o docs/unitree_h1_walk.gif
"""

import argparse
from pathlib import Path

import jax
import numpy as np
from PIL import Image

import nil_jax
from nil_jax.evaluation import compiled_episodes, episode_pictures

SIZE = 200  # px of a panel


def main() -> None:
    """Writes the picture."""
    command = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    command.add_argument("name", help="such as unitree_h1/walk, or a folder of nil_jax.save_pretrained")
    command.add_argument("-o", "--output", type=Path, required=True, metavar="GIF")
    command.add_argument("--seconds", type=float, default=3.0)
    options = command.parse_args()
    found = nil_jax.load_pretrained(options.name)
    env, policy = found.env, {"policy": found.policy}
    episodes = compiled_episodes(env, policy, 1, jax.random.key(0))
    agent = episode_pictures(env, episodes["policy"], SIZE)[: round(options.seconds * env.reference.fps)]
    clip = [env.reference.frames[i % env.clip_length] for i in range(len(agent))]
    pairs = zip(clip, agent, strict=True)
    panels = [
        np.concatenate([np.asarray(Image.fromarray(left).resize((SIZE, SIZE))), right], 1) for left, right in pairs
    ]
    pictures = [Image.fromarray(panel).quantize(32, dither=Image.Dither.NONE) for panel in panels]
    pace = round(1000 / env.reference.fps)
    pictures[0].save(options.output, save_all=True, append_images=pictures[1:], duration=pace, loop=0, optimize=True)


if __name__ == "__main__":
    main()
