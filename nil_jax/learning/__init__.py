"""Learning: an off-policy actor-critic and its replay. It knows transitions, not robots or pixels."""

from nil_jax.learning.actor_critic import (
    ACTOR_METRICS,
    ActorCritic,
    LearnerConfig,
    LearnerState,
    make_actor_critic,
    make_policy,
)
from nil_jax.learning.replay import Replay, ReplayState, make_replay, n_step_transition

__all__ = [
    "ACTOR_METRICS",
    "ActorCritic",
    "LearnerConfig",
    "LearnerState",
    "Replay",
    "ReplayState",
    "make_actor_critic",
    "make_policy",
    "make_replay",
    "n_step_transition",
]
