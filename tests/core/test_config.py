"""Settings: unique names, presets, storing, and messages."""

import dataclasses
import inspect

import numpy as np
import pytest

from nil_jax import cli
from nil_jax.config import PRESETS, Config, TrainConfig, differences, flatten, load_config, preset, save_config
from nil_jax.rewards import RewardConfig


def test_field_names_are_unique_over_all_parts():
    names = [f.name for part in dataclasses.fields(Config) for f in dataclasses.fields(part.default_factory)]
    assert len(names) == len(set(names)) == len(flatten(Config()))


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_presets_survive_storing(tmp_path, name):
    config = preset(name).with_fields(actor_hidden=(8, 9), encoder="folder")
    save_config(config, tmp_path / "config.json")
    assert load_config(tmp_path / "config.json") == config


def test_single_fields_change_without_naming_their_part():
    config = Config().with_fields(num_envs=7, gamma=0.5, mask_size=32)
    assert (config.train.num_envs, config.learner.gamma, config.reference.mask_size) == (7, 0.5, 32)
    assert differences(Config(), config) == {"num_envs": (128, 7), "gamma": (0.98, 0.5), "mask_size": (64, 32)}


def test_lists_and_numbers_of_numpy_are_taken_and_other_types_are_refused(tmp_path):
    config = Config().with_fields(seed=np.arange(3)[2], gamma=np.float32(0.5), actor_hidden=[8, 9])
    assert config == Config().with_fields(seed=2, gamma=0.5, actor_hidden=(8, 9))
    save_config(config, tmp_path / "config.json")
    assert load_config(tmp_path / "config.json") == config
    for name, value in {"num_timesteps": 3e5, "gamma": "high", "loop": 1, "critic": 2}.items():
        with pytest.raises(ValueError, match=f"config: expected {name} of type .*, got {str(value)!r}"):
            Config().with_fields(**{name: value})


def test_the_paper_preset_has_the_published_terms_and_uses_no_motion():
    config = preset("paper")
    assert config.reward == RewardConfig.paper()
    assert not config.reference.track and config.env.actuation == "torque"
    assert config.env.ctrl_dt * config.reference.fps == 1.0  # a look at every control step


@pytest.mark.parametrize("words", [["--reward", "paper"], ["--reward=paper"]])
def test_the_command_line_takes_the_defaults_of_the_named_reward(words):
    command = cli._with_preset(["train", "unitree_a1", "clip.mp4", *words])
    assert inspect.signature(command).parameters["config"].default == Config().with_fields(reward="paper")


def test_the_command_line_takes_the_defaults_of_the_run_that_it_resumes(tmp_path):
    saved = preset("gpu").with_fields(num_timesteps=77_000, gamma=0.9)
    save_config(saved, tmp_path / "config.json")
    for words in (["-o", str(tmp_path)], [f"-o{tmp_path}"], [f"--output={tmp_path}", "--preset", "gpu"]):
        command = cli._with_preset(["train", "unitree_a1", "clip.mp4", "--resume", *words])
        assert inspect.signature(command).parameters["config"].default == saved
    (odd := tmp_path / "lr=3e-4").mkdir()
    save_config(saved, odd / "config.json")
    command = cli._with_preset(["train", "unitree_a1", "clip.mp4", "--resume", "-o", str(odd)])
    assert inspect.signature(command).parameters["config"].default == saved
    (seed := tmp_path / "seeds" / "seed_3").mkdir(parents=True)
    save_config(saved, seed / "config.json")
    command = cli._with_preset(["train", "unitree_a1", "clip.mp4", "--resume", "-o", str(tmp_path / "seeds")])
    assert inspect.signature(command).parameters["config"].default == saved
    command = cli._with_preset(["train", "unitree_a1", "clip.mp4", "--resume", "-o", str(tmp_path / "none")])
    assert inspect.signature(command).parameters["config"].default == Config()


def test_unknown_fields_and_presets_are_refused():
    with pytest.raises(ValueError, match="'num_env'"):
        Config().with_fields(num_env=3)
    with pytest.raises(ValueError, match="expected one of cpu, gpu, paper"):
        preset("tpu")


@pytest.mark.parametrize("field", ["num_timesteps", "num_envs", "num_evals", "num_eval_envs"])
def test_counts_below_one_are_refused(field):
    with pytest.raises(ValueError, match=f"{field}: expected an integer >= 1, got 0"):
        TrainConfig(**{field: 0})


@pytest.mark.parametrize("field, value", [("num_devices", 0), ("num_devices", -1), ("seed", -1), ("seed", 2**32)])
def test_numbers_out_of_range_are_refused(field, value):
    with pytest.raises(ValueError, match=f"{field}: expected an integer .*, got {value}"):
        TrainConfig(**{field: value})


def test_damaged_settings_are_refused(tmp_path):
    (tmp_path / "config.json").write_text('{"train": {"nonsense": 1}}')
    with pytest.raises(ValueError, match="expected the settings of a run"):
        load_config(tmp_path / "config.json")
