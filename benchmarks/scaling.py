"""What grows with environments and devices: memory and speed of the H1's training step.

    python benchmarks/scaling.py [--quick | --full] [--json FILE]

Each size runs in a process of its own. Devices of a CPU are virtual ones, which share its cores: that shows what
splitting costs, or gains where one device leaves cores idle, not what more hardware brings. The peer is the first size.
"""

import json
import os
import subprocess
import sys

import common
import jax

SIZES = {
    "quick": ((64, 1), (64, 2)),
    "full": ((32, 1), (128, 1), (512, 1), (128, 2), (128, 8)),
}  # environments, devices
TICKS = 5  # per timed call


def measure(num_envs: int, num_devices: int) -> dict[str, float]:
    """Memory of one size by part, and seconds of a training step."""
    import train

    from nil_jax import capacity

    made, _ = train.program(num_envs, num_devices)
    state = jax.eval_shape(made.init, jax.random.key(0))
    imitation = made.env.env
    plan = capacity.memory_plan(state, imitation, num_envs // num_devices, num_devices)

    def steps(state):
        return jax.lax.scan(made.training_step, state, None, TICKS)

    compiled = (
        jax.jit(steps, in_shardings=(made.shardings,), out_shardings=(made.shardings, None)).lower(state).compile()
    )
    seconds = common.best_seconds(compiled, jax.jit(made.init, out_shardings=made.shardings)(jax.random.key(0)))
    env_steps = num_envs * TICKS * imitation.control_steps_per_tick
    analysis = compiled.memory_analysis()
    return plan | {"speed": env_steps / seconds, "work": analysis.temp_size_in_bytes}


def has(num_devices: int) -> bool:
    """Whether this machine has so many devices; a CPU is made to."""
    enough = jax.default_backend() == "cpu" or num_devices <= jax.device_count()
    if not enough:
        print(f"left out: {num_devices} devices, of which there are {jax.device_count()}", file=sys.stderr)
    return enough


def in_its_own_process(num_envs: int, num_devices: int) -> dict[str, float]:
    """The same, where JAX sees so many devices."""
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={num_devices}"
    command = [sys.executable, __file__, "--size", str(num_envs), str(num_devices)]
    done = subprocess.run(command, env=os.environ | {"XLA_FLAGS": flags}, stdout=subprocess.PIPE, check=True, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    """Prints the table."""
    command = common.parser(__doc__.splitlines()[0])
    command.add_argument("--size", nargs=2, type=int, metavar=("ENVS", "DEVICES"), help="measure one, print JSON")
    options = command.parse_args()
    if options.size:
        print(json.dumps(measure(*options.size)))
        return
    # This process only names the device, and must not take the memory of the others for it.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    sizes = [size for size in SIZES["full" if options.full else "quick"] if has(size[1])]
    rows, first = [], None
    for num_envs, num_devices in sizes:
        found = in_its_own_process(num_envs, num_devices)
        title = f"H1, {num_envs} envs" + (f" on {num_devices} devices" if num_devices > 1 else "")
        share = num_envs // num_devices
        first = first or (f"{num_envs} envs, 1 device", found["speed"], found["work"] / share)
        rows.append(common.row(f"{title}: training step", found["speed"], "env steps/s", first[0], first[1]))
        work = found["work"] / share / 1e6
        rows.append(
            common.row(f"{title}: work of a step", work, "MB per env", first[0], first[2] / 1e6, higher_is_better=False)
        )
        for part in ("environments", "pictures"):
            rows.append(common.row(f"{title}: {part}", found[part] / share / 1e6, "MB per env"))
        for part in ("replay", "learner"):
            rows.append(common.row(f"{title}: {part}", found[part] / 1e6, "MB on each device"))
    common.write(rows, options.json)


if __name__ == "__main__":
    common.run(main)
