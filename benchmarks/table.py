"""What trained policies reach, beside their controls: one table from finished runs, or from policies that ship.

    python benchmarks/table.py RUN [RUN ...] [--quick | --full] [--json FILE] [--mocap FOLDER]

Runs of the same robot and clip are seeds of one row: mean, and with several the half width of its 95 % interval
(Student's t). `--quick` evaluates 8 episodes of each policy, `--full` 64. Measures are those of
`nil_jax.evaluation.run_episodes`; in addition

- `locomotion from rest`: the same reward when the robot begins at rest;
- another recorded gait of this robot as a control, with --mocap, where there is one: how well it fits the clip's masks;
- `locomotion of the recording`: that of a real walk of this robot, with --mocap, where there is one;
- `mocap_error` (m): how far windows of 0.32 s of the first episode are from the nearest ones of a real walk of this
  robot, root mean square over keypoints; only with --mocap and a robot that has one;
- `mocap_error of the poses`: the same of the reference's own poses, which no imitation of it can be asked to beat;
  beside it, as "standing still", that of the standing pose held for ever.
"""

from collections import defaultdict
from functools import partial
from pathlib import Path

import common
import jax
import jax.numpy as jnp
import numpy as np
import scipy.stats
from motions import RECORDINGS, ROBOTS, Gait, read_gait, recorded_velocity
from rich.console import Console
from rich.table import Table

import nil_jax
from nil_jax import evaluation
from nil_jax.cache import use_compilation_cache
from nil_jax.envs import Body
from nil_jax.envs.robot import locomotion_reward
from nil_jax.pretrained import load_policies
from nil_jax.rewards import mask_iou

EPISODES = {"quick": 8, "full": 64}
WINDOW_SECONDS, PHASES, LAPS = 0.32, 64, 8  # s; windows of a cycle; repetitions of the poses
UNITS = {
    "locomotion": "of 400",
    "locomotion from rest": "of 400",
    "locomotion of the recording": "of 400",
    "fall": "of the episodes",
    "distance": "m",
    "speed": "m/s",
    "mask_iou": "",
    "mask_iou_shuffled": "",
    "pose_error": "m",
    "mocap_error": "m",
    "mocap_error of the poses": "m",
    "foot_slip": "m/s",
    "torque": "of the limits",
    "jerk": "rad/s^3",
}
LOWER_IS_BETTER = ("fall", "pose_error", "mocap_error", "mocap_error of the poses", "foot_slip", "torque", "jerk")


def measured(folder: Path, count: int, mocap: Path | None) -> tuple[str, int, dict[str, dict[str, float]]]:
    """What a run is called, what tells its clip from others of that name, and the measures of its policies by name."""
    env, policies = load_policies(folder)
    if env.reference is None:
        raise SystemExit(f"table.py: expected runs that imitate a clip, got {folder}, which was trained without")
    policy, robot = policies.pop("policy"), env.env.spec.handle
    found = evaluation.evaluate(env, policy, others=policies, num_envs=count)
    rest = evaluation.evaluate(env, policy, others=policies, num_envs=count, at_rest=True)
    for name, row in found.items():
        row["locomotion from rest"] = rest[name]["locomotion"]
    gaits = [name for name, known in ROBOTS.items() if known == robot]
    gait = next((name for name in gaits if name.endswith("walk")), None)
    for name in gaits if mocap else ():
        if name != gait:
            found[f"recorded {name}"] = {"mask_iou": fit_to_clip(env, read_gait(RECORDINGS[name], mocap, env.env))}
    if mocap and gait:
        real, velocity = read_gait(RECORDINGS[gait], mocap, env.env), recorded_velocity(RECORDINGS[gait], mocap)
        paid = jax.vmap(partial(locomotion_reward, env.env.spec))(velocity)
        found["policy"]["locomotion of the recording"] = evaluation.LOCOMOTION_STEPS * float(paid.mean())
        standing = {"standing still": evaluation.zero_action(env.action_size)}
        chosen = {"policy": policy, **standing}
        for name, episode in evaluation.compiled_episodes(env, chosen, 1, jax.random.key(0), standing).items():
            found.setdefault(name, {})["mocap_error"] = nearest(real, episode.qpos[episode.alive], env.reference.fps)
        poses = {"policy": env.reference.motion, "standing still": env.env.default_qpos[None]}
        for name, qpos in poses.items() if env.reference.motion is not None else ():
            found[name]["mocap_error of the poses"] = nearest(real, np.concatenate([qpos] * LAPS), env.reference.fps)
    title = f"{robot}, {env.reference.provenance.get('source', 'clip')}"
    return title, hash(env.reference.masks.tobytes()), found


def fit_to_clip(env: nil_jax.ImitationEnv, gait: Gait) -> float:
    """Mean IoU of the clip's masks with those of a gait, which begins with the clip."""
    reference = env.reference
    times = np.arange(LAPS * len(reference.masks)) / reference.fps
    qpos = gait.body.qpos(gait.at(times))
    geom_xpos, geom_xmat = (jnp.asarray(leaf) for leaf in gait.body.kinematics(qpos)[:2])
    height, width = reference.masks.shape[1:]
    masks = env.renderer.masks(geom_xpos, geom_xmat, jnp.zeros((len(qpos), 3)), height=height, width=width)
    return float(mask_iou(masks, jnp.tile(jnp.asarray(reference.masks), (LAPS, 1, 1))).mean())


def nearest(gait: Gait, qpos: np.ndarray, rate: float) -> float:
    """Mean distance (m) of windows of a path, of poses at this rate, from the nearest ones of a gait."""
    body: Body = gait.body
    window = max(2, round(WINDOW_SECONDS * rate))
    starts = np.arange(0, max(1, len(qpos) - window), window // 2)
    points = body.keypoints(qpos)[np.minimum(starts[:, None] + np.arange(window), len(qpos) - 1)]
    phases = np.linspace(0, gait.period, PHASES, endpoint=False)[:, None] + np.arange(window) / rate
    wanted = body.keypoints(body.qpos(gait.at(phases)))
    return body.size * float(np.mean([body.distance(wanted, part[None]).min() for part in points]))


def half_width(values: list[float]) -> float:
    """Of the 95 % interval of a mean."""
    return float(scipy.stats.t.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / np.sqrt(len(values)))


def rows_of(title: str, runs: list[dict[str, dict[str, float]]]) -> list[dict]:
    """The policy's measures beside the best control's."""
    rows = []
    controls = [name for name in runs[0] if name != "policy"]
    for what, unit in UNITS.items():
        if any(what not in run["policy"] for run in runs):
            continue
        known = [name for name in runs[0] if all(what in run.get(name, {}) for run in runs)]
        mean = {name: float(np.mean([run[name][what] for run in runs])) for name in known}
        lower = what in LOWER_IS_BETTER
        best = (min if lower else max)((name for name in controls if name in mean), key=mean.get, default=None)
        label, peer = f"{title}: {what}", () if best is None else (best, mean[best])
        rows.append(common.row(label, mean["policy"], unit, *peer, higher_is_better=not lower))
        if len(runs) > 1:
            spread = half_width([run["policy"][what] for run in runs])
            rows.append(common.row(f"{label}, +- ({len(runs)} seeds)", spread, unit))
    return rows


def main() -> None:
    """Prints the tables."""
    command = common.parser(__doc__.splitlines()[0])
    command.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="a folder, or a name such as talos/walk")
    shared = Path(__file__).resolve().parents[2] / "shared" / "mocap"
    command.add_argument("--mocap", type=Path, default=shared if shared.is_dir() else None, metavar="FOLDER")
    options = command.parse_args()
    use_compilation_cache()  # seeds of one row run the same programs
    groups = defaultdict(list)
    for folder in options.runs:
        title, clip, found = measured(folder, EPISODES["full" if options.full else "quick"], options.mocap)
        groups[title, clip].append(found)
    rows, console = [], Console(width=200)
    for (title, _), runs in groups.items():
        printed = Table("", *runs[0], title=f"{title} ({len(runs)} seeds)")
        for what in UNITS:
            means = [np.mean([run.get(name, {}).get(what, np.nan) for run in runs]) for name in runs[0]]
            printed.add_row(what, *(f"{mean:.3f}" for mean in means))
        console.print(printed)
        rows += rows_of(title, runs)
    common.write(rows, options.json)


if __name__ == "__main__":
    common.run(main)
