"""Checkpoints: bit-equal round trips of what orbax alone cannot hold, and messages."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nil_jax.checkpoint import Checkpoints, outline
from nil_jax.metrics import MetricsLog, read_metrics


def tree(scale: float) -> dict:
    return {
        "key": jax.random.split(jax.random.key(3), 2),
        "empty": jnp.zeros((0, 4)),
        "nested": {"x": scale * jnp.arange(5.0), "n": jnp.int32(7)},
        "flags": jnp.array([True, False]),
    }


def test_keys_empty_leaves_and_arrays_come_back_bit_equal(tmp_path):
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    checkpoints.save(10, {"state": tree(1.5)})
    found = checkpoints.restore({"state": tree(0.0)})["state"]
    checkpoints.close()
    assert jax.tree.structure(found) == jax.tree.structure(tree(0.0))
    np.testing.assert_array_equal(jax.random.key_data(found["key"]), jax.random.key_data(tree(0)["key"]))
    np.testing.assert_array_equal(found["nested"]["x"], 1.5 * np.arange(5.0))
    assert found["empty"].shape == (0, 4) and found["nested"]["n"].dtype == jnp.int32


def test_an_outline_is_template_enough(tmp_path):
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    checkpoints.save(10, {"state": tree(1.5)})
    template = outline(tree(0.0))
    assert not any(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(template) if leaf.size)
    found = checkpoints.restore({"state": template})["state"]
    checkpoints.close()
    plain, wanted = ({**each, "key": jax.random.key_data(each["key"])} for each in (found, tree(1.5)))
    jax.tree.map(np.testing.assert_array_equal, plain, wanted)


def test_what_is_not_the_fault_of_its_files_leaves_a_checkpoint_in_peace(tmp_path, monkeypatch):
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    checkpoints.save(1, {"state": tree(1)})

    def fail(*_, **__):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: out of memory")

    monkeypatch.setattr(checkpoints._manager, "restore", fail)
    with pytest.raises(jax.errors.JaxRuntimeError, match="out of memory"):
        checkpoints.restore({"state": tree(0)})
    checkpoints.close()


def test_the_newest_of_the_kept_ones_is_restored(tmp_path):
    checkpoints = Checkpoints(tmp_path / "checkpoints", keep=2)
    for step in (1, 2, 3):
        checkpoints.save(step, {"state": tree(step)})
    assert checkpoints.latest == 3
    assert sorted(int(p.name) for p in (tmp_path / "checkpoints").iterdir() if p.name.isdigit()) == [2, 3]
    assert float(checkpoints.restore({"state": tree(0)})["state"]["nested"]["x"][1]) == 3.0
    checkpoints.close()


def test_newer_ones_are_forgotten_where_a_run_goes_on_from_an_older_one(tmp_path):
    """Until then orbax takes no checkpoint of a step before its newest."""
    checkpoints = Checkpoints(tmp_path / "checkpoints", keep=3)
    for step in (10, 20, 30):
        checkpoints.save(step, {"state": tree(step)})
    checkpoints.forget_newer(10)
    assert checkpoints.latest == 10
    checkpoints.save(15, {"state": tree(15)})
    assert float(checkpoints.restore({"state": tree(0)})["state"]["nested"]["x"][1]) == 15.0
    checkpoints.close()


def test_a_part_is_restored_alone(tmp_path):
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    checkpoints.save(1, {"learner": tree(2), "loop": {"y": jnp.ones(3)}})
    assert float(checkpoints.restore({"learner": tree(0)})["learner"]["nested"]["x"][1]) == 2.0
    checkpoints.close()


def test_none_and_another_shape_are_refused(tmp_path):
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    with pytest.raises(ValueError, match="expected at least one"):
        checkpoints.restore({"state": tree(0)})
    checkpoints.save(1, {"state": tree(1)})
    other = tree(0)
    other["nested"]["x"] = jnp.zeros(9)
    with pytest.raises(ValueError, match="expected one of the same settings"):
        checkpoints.restore({"state": other})
    checkpoints.close()


def test_a_damaged_checkpoint_does_not_stand_in_the_way_of_another(tmp_path):
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    for step in (1, 2):
        checkpoints.save(step, {"state": tree(step)})
    checkpoints.close()
    (about,) = (tmp_path / "checkpoints" / "2").glob("_CHECKPOINT_METADATA")
    about.write_text(json.dumps(json.loads(about.read_text()) | {"commit_timestamp_nsecs": "soon"}))
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    assert float(checkpoints.restore({"state": tree(0)}, 1)["state"]["nested"]["x"][1]) == 1.0
    checkpoints.save(3, {"state": tree(3)})
    assert sorted(int(p.name) for p in (tmp_path / "checkpoints").iterdir() if p.name.isdigit()) == [2, 3]
    checkpoints.close()


def test_metrics_are_read_back_without_a_torn_last_line(tmp_path):
    log = MetricsLog(tmp_path)
    log.write(1, {"a": 0.5})
    log.write(2, {"a": float("nan")})
    log.close()
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 3, "a"')
    assert read_metrics(tmp_path) == [{"step": 1, "a": 0.5}, {"step": 2, "a": None}]


def test_a_resumed_run_drops_the_rows_behind_its_checkpoint(tmp_path):
    log = MetricsLog(tmp_path)
    for step in (1, 2, 3):
        log.write(step, {"a": step})
    log.close()
    resumed = MetricsLog(tmp_path, resumed=2)
    resumed.write(3, {"a": 30.0})
    resumed.close()
    assert [row["a"] for row in read_metrics(tmp_path)] == [1, 2, 30]
