"""Pickles of I3D's weights: the published one, and those made by hand to crash, or to fill memory or disk."""

import pickle
import struct
import tracemalloc

import numpy as np
import pytest

from nil_jax.rewards import i3d, i3d_weights, load_encoder

MEMORY = 2**25  # bytes that a refusal may take; each attack on memory asks for hundreds of times as many


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("NIL_JAX_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def read(file):
    return i3d_weights.read_weights(file, check=lambda tensors: None)


def write(path, content):
    path.write_bytes(content)
    return path


def text(value):
    return pickle.BINUNICODE + struct.pack("<I", len(value)) + value.encode()


def number(value):
    return pickle.BININT + struct.pack("<i", value)


def data(value):
    return pickle.BINBYTES + struct.pack("<I", len(value)) + value


def group(*parts):
    return pickle.MARK + b"".join(parts) + pickle.TUPLE


def call(module, name, *arguments):
    return pickle.GLOBAL + f"{module}\n{name}\n".encode() + group(*arguments) + pickle.REDUCE


def put(index):
    return pickle.LONG_BINPUT + struct.pack("<I", index)


def get(index):
    return pickle.LONG_BINGET + struct.pack("<I", index)


def tree(**values):
    """A pickle of a dict, of pickled values."""
    items = b"".join(text(name) + value for name, value in values.items())
    return pickle.EMPTY_DICT + pickle.MARK + items + pickle.SETITEMS


def whole(value):
    return pickle.PROTO + b"\x03" + value + pickle.STOP


def dtype(kind, order="<", names=pickle.NONE, fields=pickle.NONE, size=-1, flags=0):
    state = group(number(3), text(order), pickle.NONE, names, fields, number(size), number(-1), number(flags))
    return call("numpy", "dtype", text(kind), pickle.NEWFALSE, pickle.NEWTRUE) + state + pickle.BUILD


def array(shape, kind, content):
    ndarray = pickle.GLOBAL + b"numpy\nndarray\n"
    made = call("numpy._core.multiarray", "_reconstruct", ndarray, group(number(0)), data(b"b"))
    sizes = group(*(number(size) for size in shape))
    return made + group(number(1), sizes, kind, pickle.NEWFALSE, data(content)) + pickle.BUILD


FLOAT = array([2], dtype("f4"), bytes(8))
POINTER = tree(x=group(dtype("O", "|"), number(0)))  # fields of a structure
MANY = [f"a{i}" for i in range(1000)]
LONG_KEY = pickle.EMPTY_DICT + get(0) + pickle.EMPTY_DICT + pickle.SETITEM  # its text is at 0
STRIDES = [group(number(2**31 - 1), number(1000)), text("f8"), data(bytes(8)), number(0), group(number(0), number(0))]


def sixty(join, inner):
    """Each level holds the one before twice: 2^60 ways to the innermost."""
    levels = [join(get(level), get(level)) + put(level + 1) for level in range(60)]
    return inner + put(0) + b"".join(levels)


TUPLES = sixty(group, pickle.EMPTY_TUPLE)
ATTACKS = {
    # Bytes that would be taken for the addresses of objects.
    "pointers": tree(a=array([1], dtype("O", "|", flags=1), b"A" * 8)),
    "pointers in a field": tree(a=array([1], dtype("V8", "|", group(text("x")), POINTER, size=8), b"A" * 8)),
    # A table with a row for each index up to the largest.
    "memo": pickle.EMPTY_DICT + put(30_000_000),
    "memory as it was left": tree(a=call("numpy", "ndarray", group(number(25_000_000)), text("f8"))),
    "strides of 0": tree(a=call("numpy", "ndarray", *STRIDES)),
    "shared dicts": sixty(lambda a, b: tree(a=a, b=b), pickle.EMPTY_DICT),
    "a dict in itself": pickle.EMPTY_DICT + put(0) + text("a") + get(0) + pickle.SETITEM,
    "a key that is hashed for ever": TUPLES + pickle.EMPTY_DICT + get(60) + FLOAT + pickle.SETITEM,
    "a name that is formatted for ever": TUPLES + text("x") + pickle.STACK_GLOBAL,
    "a long key, often": text("k" * 2**20) + put(0) + tree(**dict.fromkeys(MANY, LONG_KEY)),
    "a key of two lines": tree(**{"a\nb": FLOAT}),
    "one array, often": array([2**18], dtype("f4"), bytes(2**20)) + put(0) + tree(**dict.fromkeys(MANY, get(0))),
    "many opcodes": pickle.EMPTY_DICT * 10**6,
    "persistent id": tree(a=text("x") + pickle.BINPERSID),
    "persistent line": tree(a=pickle.PERSID + b"x\n"),
    "extension": tree(a=pickle.EXT1 + b"\x01"),
    "instance": tree(a=pickle.MARK + pickle.INST + b"os\nsystem\n"),
    "new object": tree(a=pickle.GLOBAL + b"numpy\ndtype\n" + group(text("f4")) + pickle.NEWOBJ),
    "call of a result": tree(a=FLOAT + group() + pickle.REDUCE),
    "state of a dict": tree(a=tree() + tree(x=FLOAT) + pickle.BUILD),
    "too few bytes": tree(a=array([3], dtype("f4"), bytes(8))),
    "too many bytes": tree(a=array([1], dtype("f4"), bytes(8))),
    "a size that means any": tree(a=array([-1], dtype("f4"), bytes(8))),
    "more axes than NumPy has": tree(a=array([1] * 1000, dtype("f4"), bytes(4))),
    "the other byte order": tree(a=array([2], dtype("f4", ">"), bytes(8))),
    "an empty stack": pickle.SETITEM,
    "a length beyond the file": pickle.BINBYTES8 + struct.pack("<Q", 2**62),
    "tensors of another network": tree(a=FLOAT),
}


@pytest.mark.parametrize("attack", ATTACKS)
def test_a_hostile_pickle_is_refused_in_one_line_and_leaves_memory_and_cache_alone(attack, tmp_path, cache):
    file = write(tmp_path / "hostile.ckpt", whole(ATTACKS[attack]))
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match=r"\Aencoder: expected [^\n]*\Z") as error:
            load_encoder(f"i3d@{file}")
        assert tracemalloc.get_traced_memory()[1] < MEMORY
    finally:
        tracemalloc.stop()
    assert str(file) in str(error.value)
    assert not cache.exists()


def test_a_pickle_larger_than_any_weights_is_refused(tmp_path, monkeypatch):
    file = write(tmp_path / "large.ckpt", whole(tree(a=FLOAT)))
    monkeypatch.setattr(i3d_weights, "MAX_BYTES", file.stat().st_size)
    assert list(i3d_weights._read_pickle(file)) == ["a"]
    monkeypatch.setattr(i3d_weights, "MAX_BYTES", file.stat().st_size - 1)
    with pytest.raises(ValueError, match=r"expected a pickle of arrays in .*large.ckpt, got more than 0 MB; type: pip"):
        i3d_weights._read_pickle(file)


@pytest.mark.parametrize("protocol", [3, 4])
def test_honest_arrays_are_read_as_they_were_written(protocol, tmp_path, cache):
    rng = np.random.default_rng(0)
    shared = rng.normal(size=(2, 3)).astype(np.float32)
    values = {
        "half": rng.normal(size=4).astype(np.float16),
        "double": rng.normal(size=(300, 70)),
        "by_columns": np.asfortranarray(rng.normal(size=(2, 3, 4)).astype(np.float32)),
        "scalar": np.array(1.5, np.float32),
        "empty": np.zeros((0, 3), np.float32),
        "once": shared,
        "twice": shared,
    }
    nested = {"params": {"a": values, "nothing": {}}, "batch_stats": {"a": {"mean": shared.reshape(1, 1, 6)}}}
    expected = {f"params/a/{name}": value for name, value in values.items()}
    expected |= {"batch_stats/a/mean": shared.reshape(6)}
    file = write(tmp_path / "honest.ckpt", pickle.dumps(nested, protocol))
    for found in (read(file), read(file)):  # of the pickle, of the cache
        assert found.keys() == expected.keys()
        for name, value in expected.items():
            assert found[name].dtype == value.dtype
            np.testing.assert_array_equal(found[name], value, strict=True)


@pytest.mark.filterwarnings("ignore:numpy.core:DeprecationWarning")  # the old name is in the published pickle
def test_the_published_weights_are_what_an_unpickler_makes_of_them(cache):
    file = i3d_weights.find_weights()
    found, count = read(file), 0
    with file.open("rb") as stream:
        nodes = list(pickle.load(stream).items())
    for name, value in nodes:
        if isinstance(value, dict):
            nodes += [(f"{name}/{key}", inner) for key, inner in value.items()]
            continue
        value = value.reshape(-1) if name.startswith("batch_stats/") else value
        np.testing.assert_array_equal(found[name], value, strict=True)
        count += 1
    assert count == len(found) == len(i3d.tensor_shapes())


def test_tensors_are_checked_before_they_are_kept_and_when_they_come_from_the_cache(tmp_path, cache):
    def refuse(tensors):
        raise ValueError(f"not {list(tensors)}")

    file = write(tmp_path / "honest.ckpt", whole(tree(a=FLOAT)))
    with pytest.raises(ValueError, match=r"not \['a'\]"):
        i3d_weights.read_weights(file, refuse)
    assert not cache.exists()
    read(file)
    assert len(list(cache.rglob("*.safetensors"))) == 1
    with pytest.raises(ValueError, match=r"not \['a'\]"):
        i3d_weights.read_weights(file, refuse)
