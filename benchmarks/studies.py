"""All clips around one reference, what they show, how far they truly are from it, and what candidates pay for them.

Axes: M clips, T ticks, F frames of the reference.
"""

import time
from collections.abc import Iterable
from dataclasses import dataclass

import common
import families
import jax
import jax.numpy as jnp
import numpy as np
from candidates import DEFAULT, HARD, MARGIN, PAPER, TERM, Bank, Candidate, make_bank
from families import RATE, Clips
from features import Embedder, embedding_rewards
from motions import Gait
from pictures import Ours, Pictures, Theirs, depth_of

from nil_jax.envs import Body
from nil_jax.reference.align import nominal_camera
from nil_jax.rendering import Camera

LENGTH, SIZE = 8, 64  # ticks of a window, px
RIGHT = (-0.04, 0.04)  # s: what is no farther than this is right
OTHER_SKILL = {"h1 walk": "h1 run", "h1 run": "h1 walk"}
CLIPS = {"quick": 30, "full": 36}  # of one family
SWEEP = {"quick": (11, 4), "full": (13, 6)}  # steps, phases
BATCH = 32  # clips in one call
BANK_CLIPS = 8  # of each family


@dataclass(frozen=True)
class Study:
    """All clips around one reference and what they are worth."""

    name: str
    graded: dict[str, np.ndarray]  # family -> its clips, by index
    constant: dict[str, np.ndarray]
    sweeps: dict[str, np.ndarray]
    strength: np.ndarray  # [M]
    distance: np.ndarray  # [M] robot sizes; nan for another robot's
    right: np.ndarray  # [M] bool
    rewards: dict[str, dict[str, np.ndarray]]  # domain -> candidate -> [M]
    cost: dict[str, float]  # candidate -> us a clip

    @property
    def pooled(self) -> np.ndarray:
        """Clips of all graded families."""
        return np.concatenate(list(self.graded.values()))


def camera(body: Body) -> Camera:
    """The side camera that a reference of this robot would be seen by."""
    return nominal_camera(body.env.mj_model, body.env.start_qpos, body.env.robot_geom_ids)


def stands(gait: Gait) -> np.ndarray:
    """Poses of a robot that does not move: standing, the start pose, the gait's mean."""
    env = gait.body.env
    return np.concatenate([gait.body.coords(np.stack([env.default_qpos, env.start_qpos])), gait.cycle.mean(0)[None]])


def draw_families(gait: Gait, gaits: dict[str, Gait], name: str, count: int, length: int, seed: int):
    """Graded and constant families around one reference."""
    rng = np.random.default_rng(seed)
    strangers = [other for other in gaits.values() if other.body.env.spec.name != gait.body.env.spec.name]
    skill, stranger = gaits.get(OTHER_SKILL.get(name, "")), next(iter(strangers), None)
    graded = families.graded(gait, stands(gait)[0], count, length, rng)
    return graded, families.constant(gait, stands(gait), count, length, rng, skill, stranger)


def reference_video(gait: Gait, length: int) -> np.ndarray:
    """Poses [F, nq] of all ticks that windows of one cycle need; tick 0 of the gait is frame length - 1 + MARGIN."""
    first, last = 1 - length - MARGIN, int(np.floor(gait.period * RATE)) + MARGIN
    return gait.body.qpos(gait.at(np.arange(first, last) / RATE))


def windows(phase: np.ndarray, video_length: int, window: int, margin: int) -> np.ndarray:
    """Frames [M, window + 2 margin] of the reference's windows that end at `phase`."""
    last = np.round(phase * RATE).astype(int) + video_length - 1 + MARGIN
    return last[:, None] + np.arange(1 - window - margin, margin + 1)


def evaluate(
    candidates: dict[str, Candidate], agent: Pictures, video: Pictures, index: np.ndarray, bank: Bank
) -> tuple[dict[str, np.ndarray], dict[str, float]]:
    """Of each candidate the rewards [M], and its cost in us a clip."""
    values, cost = {}, {}
    transform = outline_cost(agent.masks[:BATCH])
    for name, candidate in candidates.items():
        run, parts = jax.jit(candidate.function), []
        for start in range(0, len(index), BATCH):
            rows = np.minimum(np.arange(start, start + BATCH), len(index) - 1)
            pair = jax.tree.map(jnp.asarray, (agent[rows], video[index[rows]]))
            parts.append(np.asarray(run(*pair, bank)))
        cost[name] = 1e6 * common.best_seconds(run, *pair, bank) / BATCH
        if candidate.transforms:
            cost[name] += transform
        values[name] = np.concatenate(parts)[: len(index)].astype(np.float64)
    return values, cost


def outline_cost(masks: np.ndarray) -> float:
    """Of the distance transform that `Pictures.depth` holds, us a clip of the agent."""
    started = time.perf_counter()
    depth_of(masks.reshape(-1, *masks.shape[-2:]))
    return 1e6 * (time.perf_counter() - started) / len(masks)


def study(
    name: str, gaits: dict[str, Gait], size: str, candidates: dict[str, Candidate], encoders: list[Embedder]
) -> Study:
    """Draw all clips around a reference, render them, and let every candidate judge them."""
    gait, length = gaits[name], max([LENGTH, *(encoder.length for encoder in encoders)])
    body, eye = gait.body, camera(gait.body)
    graded, constant = draw_families(gait, gaits, name, CLIPS[size], length, seed=0)
    swept = families.sweeps(gait, length, *SWEEP[size])
    groups, clips, start = [], [], 0
    for part in (graded, constant, swept):
        groups.append({})
        for family, made in part.items():
            groups[-1][family] = np.arange(start, start + len(made.phase))
            start += len(made.phase)
            clips.append(made)
    video = reference_video(gait, length)
    phase = np.concatenate([made.phase for made in clips])
    index = windows(phase, length, LENGTH, MARGIN)
    agent = joined([renderer_of(made.body)(made.qpos[:, -LENGTH:]) for made in clips])
    bank = bank_of(name, gaits, eye)
    print(f"{name}: {len(phase)} clips drawn and rendered")
    rewards, cost, references = {}, {}, {}
    for domain, renderer in (("same", Ours), ("other", Theirs)):
        try:
            reference = renderer(body, eye)(video)
        except Exception as error:  # whatever the machine's OpenGL libraries say
            print(f"{name}, other domain: skipped, without MuJoCo's renderer: {error}")
            continue
        references[domain] = renderer
        rewards[domain], cost = evaluate(candidates, agent, reference, index, bank)
    for encoder in encoders:
        made, microseconds = embedded(encoder, references, gaits, name, clips)
        for domain in references:
            rewards[domain] |= made[domain]
            cost |= dict.fromkeys(made[domain], microseconds)
    for domain in references:
        sums = totals(rewards[domain])
        rewards[domain] |= {
            total: sum(weight * rewards[domain][part] for part, weight in parts.items())
            for total, parts in sums.items()
        }
        cost |= {total: sum(cost[part] for part in parts) for total, parts in sums.items()}
    distance = true_distances(gait, clips)
    return Study(
        name,
        *groups,
        strength=np.concatenate([made.strength for made in clips]),
        distance=distance,
        right=distance <= right_level(gait),
        rewards=rewards,
        cost=cost,
    )


def embedded(
    encoder: Embedder,
    references: dict[str, type[Ours] | type[Theirs]],
    gaits: dict[str, Gait],
    name: str,
    clips: list[Clips],
) -> tuple[dict[str, dict[str, np.ndarray]], float]:
    """Rewards [M] by an encoder for each domain, whose renderer draws the reference, and its cost in us a clip."""
    gait, side, agent, microseconds = gaits[name], encoder.encoder.image_size, [], 0.0
    for made in clips:
        z, microseconds = encoder(renderer_of(made.body, side), made.qpos)
        agent.append(z)
    graded, constant = draw_families(gait, gaits, name, BANK_CLIPS, encoder.length, seed=1)
    ours = renderer_of(gait.body, side)
    bank = [encoder(ours, made.qpos)[0] for made in (graded | constant).values() if made.body is gait.body]
    phase, which = np.unique(np.concatenate([made.phase for made in clips]), return_inverse=True)
    poses = gait.body.qpos(gait.at(phase[:, None] + families.ticks(encoder.length)))
    found = {}
    for domain, renderer in references.items():
        reference, _ = encoder(renderer(gait.body, camera(gait.body), side), poses)
        joint = np.concatenate(agent, axis=1), reference[:, which], np.concatenate(bank, axis=1)
        scale = encoder.encoder.scale if encoder.encoder.similarity == "l2" else None
        found[domain] = embedding_rewards(encoder.name, encoder.strides, *joint, l2_scale=scale)
    return found, microseconds


def totals(rewards: dict[str, np.ndarray]) -> dict[str, dict[str, float]]:
    """Weights of the image terms of whole rewards: the default one, and the published one with each encoder."""
    cosine = ", every 1: cosine (published)"
    found = {
        f"published reward, {name.removesuffix(cosine)}": {name: PAPER.video_weight, HARD: PAPER.mask_weight}
        for name in rewards
        if name.endswith(cosine)
    }
    video = "student, every 1: L2"
    if video in rewards and TERM in rewards:
        found["picture terms of the default reward"] = {video: DEFAULT.video_weight, TERM: DEFAULT.outline_weight}
    return found


def renderer_of(body: Body, size: int = SIZE) -> Ours:
    """Our renderer, for a robot in its own camera."""
    return Ours(body, camera(body), size)


def joined(parts: list[Pictures]) -> Pictures:
    """Pictures of several families one after the other."""
    return jax.tree.map(lambda *leaves: np.concatenate(leaves), *parts)


def bank_of(name: str, gaits: dict[str, Gait], eye: Camera) -> Bank:
    """What masks of this robot look like in other clips than those that are judged."""
    gait = gaits[name]
    graded, constant = draw_families(gait, gaits, name, BANK_CLIPS, 1, seed=1)
    poses = [made.qpos for made in (graded | constant).values() if made.body is gait.body]
    return make_bank(Ours(gait.body, eye)(np.concatenate(poses)[:, 0]).masks)


def true_distances(gait: Gait, clips: Iterable[Clips]) -> np.ndarray:
    """[M], in robot sizes."""
    body, found = gait.body, []
    for made in clips:
        if made.body is not body:
            found.append(np.full(len(made.phase), np.nan))
            continue
        reference = body.qpos(gait.at(made.phase[:, None] + families.ticks(LENGTH)))
        found.append(body.distance(body.keypoints(made.qpos[:, -LENGTH:]), body.keypoints(reference)))
    return np.concatenate(found)


def right_level(gait: Gait) -> float:
    """The mean distance of the motion to itself, as much earlier or later as still counts as right."""
    times = families.phases(gait, np.linspace(0, 1, 16, endpoint=False))[:, None] + families.ticks(LENGTH)
    points = [gait.body.keypoints(gait.body.qpos(gait.at(times + shift))) for shift in (0.0, *RIGHT)]
    return float(np.mean([gait.body.distance(moved, points[0]) for moved in points[1:]]))
