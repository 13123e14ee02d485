"""Before a run: does it fit into memory, and which renderer is the faster one here?

Axes: D devices, N environments of each.
"""

import math
import os
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import mujoco
import numpy as np
from mujoco.mjx import warp as mjx_warp

from nil_jax.parallel import of_the_first, own_device
from nil_jax.rewards import Encoder
from nil_jax.rollout import ImitationEnv

MASK_BYTES = 2 + 8 + 26  # a pixel's bytes: robot and reference, their coverage in float32, the renderer's work
FRAME_BYTES = 3 + 40  # colours, the renderer's work
CLIP_COPIES = 4  # of what an encoder keeps of frames: running and first states, and both again while a step is written
RENDERERS = ("jax", "warp")
CALLS = 3  # timed calls of each renderer; the fastest counts


def picture_bytes(num_envs: int, height: int, width: int, *, frame_size: int = 0, clip_bytes: int = 0) -> int:
    """Estimates the memory that pictures take at a reward tick: masks, frames, clips and the renderer's work.

    The encoder's activations, the physics and the learner come on top.

    Args:
        num_envs: environments that are drawn at once.
        height: of a mask, px.
        width: of a mask, px.
        frame_size: side of the frames for the encoder, px; 0 without one.
        clip_bytes: what the encoder keeps of the frames of one clip.
    """
    return num_envs * (MASK_BYTES * height * width + FRAME_BYTES * frame_size**2 + CLIP_COPIES * clip_bytes)


def clip_bytes(encoder: Encoder) -> int:
    """What an encoder keeps of the frames of one clip."""
    side = encoder.image_size
    frames = jax.ShapeDtypeStruct((1, encoder.num_frames, side, side, 3), jnp.uint8)
    kept = jax.eval_shape(encoder.kept, frames)
    return kept.size * kept.dtype.itemsize


def check_memory(env: ImitationEnv, num_envs: int, setting: str = "num_envs", per_setting: float = 1) -> None:
    """Refuses more pictures than the device, or the host if that is where JAX computes, has memory for.

    Args:
        env: what is to be drawn.
        num_envs: environments that are drawn at once.
        setting: the field to change, for the message.
        per_setting: environments that one unit of that field stands for.

    Raises:
        ValueError: they do not fit.
    """
    available = device_bytes()
    if env.reference is None or available is None:
        return
    height, width = env.reference.masks.shape[1:]
    encoder = env.encoder
    sizes = {} if encoder is None else {"frame_size": encoder.image_size, "clip_bytes": clip_bytes(encoder)}
    needed = picture_bytes(num_envs, height, width, **sizes)
    if needed > available:
        fitting = max(1, int(num_envs * available // needed / per_setting))
        raise ValueError(
            f"{setting}: expected pictures that fit into the {available / 1e9:.3g} GB of {own_device()}, got about "
            f"{needed / 1e9:.3g} GB for {num_envs} environments at once; type: --{setting.replace('_', '-')} {fitting}"
        )


def memory_plan(state: Any, env: ImitationEnv, num_envs: int, num_devices: int) -> dict[str, int]:
    """Bytes that a run keeps on each device, by part; what the compiled step needs while it computes comes on top.

    Args:
        state: `program.TrainingState` of shapes; its replay and environments are [D, ...].
        env: what is drawn.
        num_envs: N.
        num_devices: D.
    """
    plan = {
        "replay": _bytes(state.replay) // num_devices,
        "environments": _bytes(state.env_state) // num_devices,
        "learner": _bytes(state.learner),
    }
    if env.encoder is not None:
        plan["encoder"] = _bytes(env.encoder.params)
    if env.reference is not None:
        height, width = env.reference.masks.shape[1:]
        size = 0 if env.encoder is None else env.encoder.image_size
        plan["pictures"] = picture_bytes(num_envs, height, width, frame_size=size)
    return plan


def plan_in_words(plan: Mapping[str, int]) -> str:
    """On one line."""
    parts = ", ".join(f"{name} {size / 1e9:.2g} GB" for name, size in plan.items())
    available = device_bytes()
    return parts + (f"; {own_device()} has {available / 1e9:.3g} GB" if available else "")


def check_plan(plan: Mapping[str, int], replay_size: int, learning_starts: int, num_envs: int) -> None:
    """Refuses a run that does not fit on a device; the arguments are the settings that would make it smaller.

    Raises:
        ValueError: it does not fit.
    """
    available, needed = device_bytes(), sum(plan.values())
    if available is None or needed <= available:
        return
    room = available - (needed - plan["replay"])
    fitting = int(replay_size * room / plan["replay"])
    setting = f"replay-size {fitting}" if fitting >= max(learning_starts, num_envs) else f"num-envs {num_envs // 2}"
    raise ValueError(f"memory: expected a run that fits, got {plan_in_words(plan)}; type: --{setting}")


def compiled_bytes(compiled: Any) -> int | None:
    """What a compiled function needs at its peak, with inputs and results; None where nobody tells."""
    found = compiled.memory_analysis()
    if found is None:
        return None
    results = found.output_size_in_bytes - found.alias_size_in_bytes
    return found.argument_size_in_bytes + results + found.temp_size_in_bytes


def check_compiled(needed: int | None) -> None:
    """Refuses a compiled step that the device has no memory for.

    Raises:
        ValueError: it does not fit.
    """
    available = device_bytes()
    if needed is not None and available is not None and needed > available:
        raise ValueError(
            f"memory: expected a training step that fits into the {available / 1e9:.3g} GB of {own_device()}, got one "
            f"of {needed / 1e9:.3g} GB; type a smaller --num-envs, --batch-size or --replay-size"
        )


def _bytes(tree: Any) -> int:
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def device_bytes() -> int | None:
    """Memory that JAX may use on its first device; CPU devices share that of the machine; None: unknown."""
    found = (own_device().memory_stats() or {}).get("bytes_limit")
    if found is None and own_device().platform == "cpu" and hasattr(os, "sysconf"):
        found = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // jax.local_device_count()
    return found


def with_fastest_renderer(
    env: ImitationEnv, num_envs: int, say: Callable[[str], None], known: str | None = None
) -> ImitationEnv:
    """The environment with the renderer that its settings ask for.

    Under "auto" both draw the start pose a few times, and the faster one is taken, where Warp may be that: on a GPU if
    it is installed, and with its own physics. Elsewhere it is JAX's.

    Args:
        env: with any renderer.
        num_envs: environments that will be drawn at once.
        say: takes one line with both times.
        known: what was found before, by the run that goes on.
    """
    config = getattr(env.env, "config", None)
    if env.reference is None or config.renderer != "auto":
        return env
    if config.physics != "warp" and not (jax.default_backend() == "gpu" and mjx_warp.WARP_INSTALLED):
        return env
    if known is not None:
        return env.with_renderer(known)
    seconds = {"jax": _seconds_per_look(env.with_renderer("jax"), num_envs)}
    try:
        seconds["warp"] = _seconds_per_look(env.with_renderer("warp"), num_envs)
    except RuntimeError as error:  # it may need a newer driver than JAX does
        say(f"renderer: Warp does not draw here: {str(error).strip().splitlines()[0]}")
        seconds["warp"] = math.inf
    fastest = RENDERERS[of_the_first(RENDERERS.index(min(seconds, key=lambda kind: seconds[kind])))]
    rates = ", ".join(f"{kind} {num_envs / value:,.0f}" for kind, value in seconds.items())
    say(f"renderer: {rates} looks per second at {num_envs} environments; taking {fastest}")
    return env.with_renderer(fastest)


def _seconds_per_look(env: ImitationEnv, num_envs: int) -> float:
    """Time of one look at all robots in their start pose."""
    data = mujoco.MjData(env.env.mj_model)
    data.qpos[:] = env.env.start_qpos
    mujoco.mj_kinematics(env.env.mj_model, data)
    poses = data.geom_xpos, data.geom_xmat.reshape(-1, 3, 3), data.qpos[:3] * [1, 0, 0]
    inputs = [jnp.asarray(np.broadcast_to(pose, (num_envs, *pose.shape)), jnp.float32) for pose in poses]
    height, width = env.reference.masks.shape[1:]

    @jax.jit
    def look(*inputs):
        masks = env.renderer.masks(*inputs, height=height, width=width)
        if env.encoder is None:
            return masks
        size = env.encoder.image_size
        return masks, env.renderer.pictures(*inputs, height=size, width=size)

    return best_seconds(look, *inputs, calls=CALLS)


def best_seconds(compiled: Callable, *arguments: Any, calls: int) -> float:
    """Seconds of the fastest of a few calls, after one that may compile: others' work on a machine only slows down."""
    jax.block_until_ready(compiled(*arguments))
    seconds = []
    for _ in range(calls):
        started = time.perf_counter()
        jax.block_until_ready(compiled(*arguments))
        seconds.append(time.perf_counter() - started)
    return min(seconds)
