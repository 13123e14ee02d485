"""The demo learns: several minutes, so it runs in `make test-slow`."""

from pathlib import Path

import pytest

import nil_jax

CLIP = Path(__file__).resolve().parents[2] / "examples" / "a1_prowl.mp4"


@pytest.mark.slow
def test_the_demo_beats_its_controls_on_return_and_iou(tmp_path):
    env = nil_jax.envs.make("unitree_a1")
    settings = {"num_timesteps": 75_000, "num_evals": 3, "grad_updates_per_step": 8}
    result = nil_jax.train(env, CLIP, output=tmp_path / "run", progress=False, **settings)
    trained = result.evaluation.pop("policy")
    for name, control in result.evaluation.items():
        assert trained["return"] > control["return"], name
        assert trained["mask_iou"] > control["mask_iou"], name
