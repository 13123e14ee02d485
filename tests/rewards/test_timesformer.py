"""TimeSformer against transformers' PyTorch, with random weights."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from nil_jax.rewards.timesformer import (
    ATTENTION_TYPES,
    Timesformer,
    TimesformerConfig,
    params_from_tensors,
    preprocess,
    tensor_shapes,
)

# The figure that this project promises for float32; measured 6e-6 at base size, on values up to 5.
PROMISED = 1e-4
SMALL = {
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "image_size": 32,
    "patch_size": 8,
    "num_frames": 4,
}


def random_peer(**settings):
    """PyTorch's network with every parameter random: the defaults leave biases and time embeddings at zero."""
    import torch
    import transformers

    torch.manual_seed(0)
    peer = transformers.TimesformerModel(transformers.TimesformerConfig(**settings)).eval()
    with torch.no_grad():
        for parameter in peer.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return torch, peer


def last_hidden_states(settings, batch):
    torch, peer = random_peer(**settings)
    config = TimesformerConfig.from_hf(peer.config.to_dict())
    tensors = {name: tensor.numpy() for name, tensor in peer.state_dict().items()}
    assert {name: tensor.shape for name, tensor in tensors.items()} == tensor_shapes(config)
    shape = (batch, config.num_frames, config.image_size, config.image_size, 3)
    pixels = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    with torch.no_grad():
        expected = peer(torch.from_numpy(pixels).permute(0, 1, 4, 2, 3)).last_hidden_state.numpy()
    params = params_from_tensors(tensors, config)
    return jax.jit(Timesformer(config).apply)({"params": params}, pixels), expected, config, params


@pytest.mark.parametrize(
    "settings",
    [{"attention_type": kind} for kind in ATTENTION_TYPES]
    + [{"qkv_bias": False}, {"hidden_act": "relu", "layer_norm_eps": 1e-3}, {"hidden_act": "gelu_new"}],
    ids=str,
)
def test_small_networks_equal_pytorch(settings, strict_promotion):
    ours, expected, config, params = last_hidden_states(SMALL | settings, batch=2)
    assert np.abs(expected).max() > 1.0
    np.testing.assert_allclose(ours, expected, rtol=0, atol=PROMISED)
    shape = (1, config.num_frames, config.image_size, config.image_size, 3)
    initial = jax.eval_shape(Timesformer(config).init, jax.random.key(0), jnp.zeros(shape))["params"]
    assert jax.tree.map(jnp.shape, initial) == jax.tree.map(jnp.shape, params)


def test_the_base_network_equals_pytorch():
    ours, expected, config, _ = last_hidden_states({}, batch=1)
    defaults = TimesformerConfig()
    assert config == defaults and ours.shape == (1, 1 + 14 * 14 * 8, 768)
    np.testing.assert_allclose(ours, expected, rtol=0, atol=PROMISED)


def test_frames_become_pixels_as_the_published_processor_makes_them(strict_promotion):
    frame = np.random.default_rng(0).integers(0, 256, (50, 50, 3), dtype=np.uint8)
    for size in (32, 96):
        config = dataclasses.replace(TimesformerConfig(), image_size=size, patch_size=16)
        resized = np.asarray(Image.fromarray(frame).resize((size, size), Image.Resampling.BILINEAR), np.float32)
        # Pillow rounds to whole grey levels after each of its two passes: at most one level, in units of the deviation.
        level = 1.01 / 255 / 0.225
        ours = preprocess(jnp.asarray(frame)[None], config)[0]
        np.testing.assert_allclose(ours, (resized / 255 - 0.45) / 0.225, rtol=0, atol=level)
    config = dataclasses.replace(config, image_size=50, patch_size=10)
    np.testing.assert_allclose(preprocess(jnp.asarray(frame), config), (frame / 255 - 0.45) / 0.225, atol=1e-5)


def test_frames_of_the_wrong_kind_are_refused():
    config = TimesformerConfig()
    with pytest.raises(TypeError, match="expected uint8"):
        preprocess(jnp.zeros((8, 8, 3)), config)
    with pytest.raises(ValueError, match="expected square RGB"):
        preprocess(jnp.zeros((8, 9, 3), jnp.uint8), config)


@pytest.mark.parametrize(
    "field, value",
    [
        ("attention_type", "axial"),
        ("hidden_act", "tanh"),
        ("hidden_size", 100),
        ("image_size", 100),
        ("num_frames", 0),
        ("num_channels", 1),
        ("image_mean", (0.5,)),  # told together with num_channels
    ],
)
def test_a_config_that_no_timesformer_has_is_refused_by_name(field, value):
    with pytest.raises(ValueError, match=f"{field}: expected|expected .*{field}"):
        TimesformerConfig(**{field: value})


def test_preprocessing_is_read_from_the_processor_file():
    config = {"model_type": "timesformer", "image_size": [224, 224]}
    other = {"rescale_factor": 1 / 127.5, "image_mean": [0.5, 0.4, 0.3], "image_std": [0.1, 0.2, 0.3]}
    read = TimesformerConfig.from_hf(config, other)
    assert (read.image_size, read.image_mean, read.image_std) == (224, (0.5, 0.4, 0.3), (0.1, 0.2, 0.3))
    assert read.rescale_factor == 1 / 127.5
    plain = TimesformerConfig.from_hf(config, other | {"do_normalize": False, "do_rescale": False})
    assert (plain.rescale_factor, plain.image_mean, plain.image_std) == (1.0, (0.0,) * 3, (1.0,) * 3)
    with pytest.raises(ValueError, match="image_size: expected a square"):
        TimesformerConfig.from_hf(config | {"image_size": [224, 192]})
