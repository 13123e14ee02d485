"""Loading a checkpoint folder, embedding clips with it, and what a bad folder gets."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from nil_jax.rewards import clip_indices, embed_clips, embedding, load_encoder
from nil_jax.rewards.timesformer import TimesformerConfig, tensor_shapes

ROUNDING = 2e-5  # float32 through three small layers, batched otherwise
CONFIG = {
    "model_type": "timesformer",
    "architectures": ["TimesformerModel"],
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "image_size": 16,
    "patch_size": 8,
    "num_frames": 4,
    "attention_type": "divided_space_time",
}


def write_checkpoint(folder, config=CONFIG, prefix=""):
    """A checkpoint of random tensors in Hugging Face's layout."""
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    rng = np.random.default_rng(0)
    shapes = tensor_shapes(TimesformerConfig.from_hf(config))
    tensors = {prefix + name: rng.normal(0, 0.2, shape).astype(np.float32) for name, shape in shapes.items()}
    save_file(tensors, folder / "model.safetensors")
    return tensors


@pytest.fixture
def checkpoint(tmp_path):
    write_checkpoint(tmp_path / "net")
    return tmp_path / "net"


def random_frames(*batch, size=16, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (*batch, size, size, 3), dtype=np.uint8)


def embed(encoder, frames):
    return jax.jit(encoder.embed)(encoder.params, jnp.asarray(frames))


@pytest.mark.parametrize("kind", ["divided_space_time", "space_only"])
@pytest.mark.parametrize("pooling", ["cls", "mean"])
def test_a_checkpoint_that_pytorch_saved_embeds_as_pytorch_does(tmp_path, kind, pooling):
    import torch
    import transformers

    torch.manual_seed(0)
    settings = {name: value for name, value in CONFIG.items() if name not in ("model_type", "architectures")}
    settings["attention_type"] = kind
    peer = transformers.TimesformerModel(transformers.TimesformerConfig(**settings)).eval()
    peer.save_pretrained(tmp_path / "peer", max_shard_size="40KB")
    assert (tmp_path / "peer" / "model.safetensors.index.json").is_file()
    encoder = load_encoder(tmp_path / "peer", pooling)
    frames = random_frames(3, 4)
    pixels = torch.from_numpy(((frames / 255 - 0.45) / 0.225).astype(np.float32)).permute(0, 1, 4, 2, 3)
    with torch.no_grad():
        tokens = peer(pixels).last_hidden_state.numpy()
    pooled = tokens[:, 0] if pooling == "cls" else tokens[:, 1:].mean(1)
    expected = pooled.reshape(3, -1, 32).mean(1)
    np.testing.assert_allclose(embed(encoder, frames), expected, rtol=0, atol=ROUNDING)


def test_an_encoder_says_what_it_takes_and_gives(checkpoint, strict_promotion):
    encoder = load_encoder(str(checkpoint))
    assert (encoder.num_frames, encoder.image_size, encoder.embedding_size) == (4, 16, 32)
    z = embed(encoder, random_frames(2, 3, 4))
    assert z.shape == (2, 3, 32) and z.dtype == jnp.float32
    assert embed(encoder, random_frames(4, size=40)).shape == (32,)
    with pytest.raises(ValueError, match="expected clips of 4 frames"):
        embed(encoder, random_frames(5))
    with pytest.raises(TypeError, match="expected uint8"):
        embed(encoder, np.zeros((4, 16, 16, 3), np.float32))


def test_embedding_compiles_once_and_maps_over_a_batch(checkpoint):
    encoder, traces = load_encoder(checkpoint), []

    @jax.jit
    def counted(params, frames):
        traces.append(1)
        return encoder.embed(params, frames)

    frames = jnp.asarray(random_frames(3, 4))
    together = counted(encoder.params, frames)
    counted(jax.tree.map(lambda x: 2 * x, encoder.params), frames)
    assert len(traces) == 1
    one_by_one = jax.jit(jax.vmap(encoder.embed, (None, 0)))(encoder.params, frames)
    np.testing.assert_allclose(one_by_one, together, atol=ROUNDING)


def test_half_precision_stays_near_float32(checkpoint):
    frames = jnp.asarray(random_frames(2, 4))
    full, half = load_encoder(checkpoint), load_encoder(checkpoint, dtype="bfloat16")
    assert {x.dtype for x in jax.tree.leaves(half.params)} == {jnp.dtype("bfloat16")}
    z, z_half = embed(full, frames), embed(half, frames)
    assert z_half.dtype == jnp.float32
    # bfloat16 keeps 8 bits, a relative 0.4 %; it adds up over some twenty operations.
    assert jnp.linalg.norm(z - z_half) < 0.05 * jnp.linalg.norm(z)


def test_the_digest_changes_with_weights_config_pooling_and_dtype(checkpoint):
    digests = [
        load_encoder(checkpoint).digest,
        load_encoder(checkpoint, pooling="mean").digest,
        load_encoder(checkpoint, dtype="bfloat16").digest,
    ]
    assert load_encoder(checkpoint).digest == digests[0]
    (checkpoint / "preprocessor_config.json").write_text(json.dumps({"image_mean": [0.5] * 3}))
    digests.append(load_encoder(checkpoint).digest)
    tensors = load_file(checkpoint / "model.safetensors")
    tensors["layernorm.bias"][0] += 1e-3
    save_file(tensors, checkpoint / "model.safetensors")
    digests.append(load_encoder(checkpoint).digest)
    assert len(set(digests)) == 5 and all(len(digest) == 16 for digest in digests)


def test_a_classification_checkpoint_is_the_same_encoder(checkpoint):
    plain = load_encoder(checkpoint)
    tensors = write_checkpoint(checkpoint, prefix="timesformer.")
    head = {"classifier.weight": np.zeros((5, 32), np.float32), "classifier.bias": np.zeros(5, np.float32)}
    save_file(tensors | head, checkpoint / "model.safetensors")
    assert load_encoder(checkpoint).digest == plain.digest


def test_clips_of_a_video_end_at_their_time_and_repeat_the_first_frame():
    np.testing.assert_array_equal(clip_indices(5, 3, stride=2), [[0, 0, 0], [0, 0, 1], [0, 0, 2], [0, 1, 3], [0, 2, 4]])
    np.testing.assert_array_equal(clip_indices(3, 1), [[0], [1], [2]])
    np.testing.assert_array_equal(clip_indices(4, 3, loop=True), [[2, 3, 0], [3, 0, 1], [0, 1, 2], [1, 2, 3]])
    with pytest.raises(ValueError, match="stride >= 1"):
        clip_indices(5, 3, stride=0)


def test_a_long_video_is_embedded_in_chunks_of_any_size(checkpoint):
    encoder, video = load_encoder(checkpoint), random_frames(7, size=24)
    indices = clip_indices(7, 4)
    whole = embed(encoder, video[indices])
    for batch_size in (3, 16):
        np.testing.assert_allclose(embed_clips(encoder, video, indices, batch_size), whole, atol=ROUNDING)
    assert embed_clips(encoder, video, indices[:0]).shape == (0, 32)
    with pytest.raises(ValueError, match="expected frames of a video of 6"):
        embed_clips(encoder, video[:6], indices)
    with pytest.raises(ValueError, match=r"expected \[M, 4\]"):
        embed_clips(encoder, video, indices[:, :3])


def test_missing_unexpected_and_misshapen_tensors_are_listed(checkpoint):
    tensors = load_file(checkpoint / "model.safetensors")
    del tensors["embeddings.cls_token"], tensors["encoder.layer.1.output.dense.bias"]
    tensors["encoder.layer.2.output.dense.bias"] = np.zeros(32, np.float32)
    tensors["layernorm.bias"] = np.zeros(31, np.float32)
    save_file(tensors, checkpoint / "model.safetensors")
    with pytest.raises(ValueError) as error:
        load_encoder(checkpoint)
    message = str(error.value)
    assert "missing: embeddings.cls_token, encoder.layer.1.output.dense.bias" in message
    assert "unexpected: encoder.layer.2.output.dense.bias" in message
    assert "wrong shape: layernorm.bias (31,) instead of (32,)" in message
    save_file({"x": np.zeros(1, np.float32)}, checkpoint / "model.safetensors")
    with pytest.raises(ValueError, match="more; unexpected: x"):
        load_encoder(checkpoint)


def test_another_architecture_is_named(checkpoint):
    (checkpoint / "config.json").write_text(json.dumps({"model_type": "videomae", "architectures": ["VideoMAEModel"]}))
    with pytest.raises(ValueError, match=r"expected a checkpoint of 'timesformer', got 'videomae'.*VideoMAEModel"):
        load_encoder(checkpoint)


def test_a_folder_with_pickled_weights_only_says_how_to_convert_them(checkpoint):
    (checkpoint / "model.safetensors").rename(checkpoint / "pytorch_model.bin")
    with pytest.raises(ValueError, match=r"got config.json, pytorch_model.bin; .*save_pretrained"):
        load_encoder(checkpoint)


def test_broken_files_are_named(checkpoint):
    index = checkpoint / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "part-2.safetensors"}}))
    with pytest.raises(ValueError, match=r"missing: part-2.safetensors"):
        load_encoder(checkpoint)
    index.unlink()
    (checkpoint / "model.safetensors").write_bytes(b"\x00" * 40)
    with pytest.raises(ValueError, match=r"expected a safetensors file .*model.safetensors, got "):
        load_encoder(checkpoint)
    (checkpoint / "config.json").write_text("{")
    with pytest.raises(ValueError, match=r"expected a JSON object in .*config.json, got "):
        load_encoder(checkpoint)
    (checkpoint / "config.json").unlink()
    with pytest.raises(ValueError, match=r"expected a file config.json"):
        load_encoder(checkpoint)


def test_what_is_neither_folder_nor_id_is_refused_without_a_download(tmp_path, monkeypatch):
    for name in ("no-such-folder", str(tmp_path / "nothing"), "./a/b"):
        with pytest.raises(ValueError, match="expected a folder or a Hugging Face id"):
            load_encoder(name)
    import huggingface_hub as hub

    def fail(name, **kwargs):
        assert name == "owner/name" and kwargs["revision"] == "refs/pr/2"
        raise OSError("no network\nat all")

    monkeypatch.setattr(hub, "snapshot_download", fail)
    with pytest.raises(ValueError, match=r"name@refs/pr/2', which is no folder and was not found: no network at all$"):
        load_encoder("owner/name@refs/pr/2")


def test_a_hugging_face_id_loads_what_the_hub_returns(checkpoint, monkeypatch):
    import huggingface_hub as hub

    monkeypatch.setattr(hub, "snapshot_download", lambda *args, **kwargs: str(checkpoint))
    assert load_encoder("owner/name").digest == load_encoder(checkpoint).digest


@pytest.mark.parametrize("setting", [{"pooling": "max"}, {"dtype": "float64"}, {"num_frames": 5}], ids=str)
def test_unknown_settings_are_refused(checkpoint, setting):
    # A ValueError of ours, or a TypeError where the signatures are checked too.
    with pytest.raises((ValueError, TypeError), match=next(iter(setting))):
        load_encoder(checkpoint, **setting)


def test_many_clips_take_no_more_memory_than_a_few(checkpoint, monkeypatch):
    encoder, frames = load_encoder(checkpoint), jnp.asarray(random_frames(21, 4))
    whole = embed(encoder, frames)
    monkeypatch.setattr(embedding, "AT_ONCE", 4)
    chunked = jax.jit(lambda params, frames: encoder.embed(params, frames))  # nothing that was traced before
    np.testing.assert_allclose(chunked(encoder.params, frames), whole, atol=ROUNDING)

    def activations(count):
        shape = jax.ShapeDtypeStruct((count, *frames.shape[1:]), jnp.uint8)
        return chunked.lower(encoder.params, shape).compile().memory_analysis().temp_size_in_bytes

    assert activations(64) < 1.1 * activations(4)  # 13 times as much without chunks
