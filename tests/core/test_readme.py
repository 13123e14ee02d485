"""The README's example runs as printed, only shorter."""

import os
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SHORT = "num_timesteps=64, num_envs=16, num_eval_envs=1, num_evals=1, learning_starts=32, grad_updates_per_step=1"


@pytest.mark.slow
def test_the_python_example_trains_and_evaluates(tmp_path, monkeypatch):
    code, *_ = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), flags=re.DOTALL)
    assert code.count("num_timesteps=100_000") == 1
    code = code.replace("num_timesteps=100_000", SHORT).replace("num_envs=8", "num_envs=1")
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    monkeypatch.chdir(tmp_path)
    names = {}
    exec(compile(code, "README.md", "exec"), names)
    assert set(names["rows"]) == {"policy", "zero action", "random policy", "standing still"}
    assert names["rows"]["policy"]["mask_iou"] == pytest.approx(
        names["result"].evaluation["policy"]["mask_iou"], abs=0.2
    )
    assert os.path.getsize(tmp_path / "runs/prowl/comparison.mp4") > 1000
