"""Masks by SAM 2: tiny random weights, against transformers' own processor and propagation."""

import json
import shutil
import sys

import huggingface_hub
import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from safetensors.torch import load_file, save_file
from scipy import ndimage

from nil_jax.reference import Video, clip_masks
from nil_jax.reference.clip_masks import agreement, bridge_gaps, find_masks
from nil_jax.reference.segment import clean
from nil_jax.reference.segment_sam2 import _pixels, inner_points, load_sam2, segment_sam2, start_prompt
from nil_jax.reference.start_frame import start_frame

SIDE = 64  # px, of the picture that the tiny SAM 2 sees
WIDTH = 128  # memories of SAM 2 are always 64 wide, and its states wider than those
COMMIT = "0123456789abcdef0123456789abcdef01234567"
FRAMES = 20  # more than SAM 2 looks back on, so that what is forgotten would be missed


def build_sam2() -> transformers.Sam2VideoModel:
    """Random weights that find something: the robot is always there, and masks are neither empty nor full."""
    backbone = {
        "model_type": "sam2_hiera_det_model",
        "hidden_size": 8,
        "image_size": [SIDE, SIDE],
        "blocks_per_stage": [1, 1, 2, 1],
        "embed_dim_per_stage": [8, 16, 32, 64],
        "num_attention_heads_per_stage": [1, 1, 2, 4],
        "window_size_per_stage": [4, 4, 4, 2],
        "global_attention_blocks": [3],
        "window_positional_embedding_background_size": [2, 2],
    }
    vision = {
        "model_type": "sam2_vision_model",
        "backbone_config": backbone,
        "backbone_channel_list": [64, 32, 16, 8],
        "backbone_feature_sizes": [[16, 16], [8, 8], [4, 4]],
        "fpn_hidden_size": WIDTH,
    }
    config = transformers.Sam2VideoConfig(
        vision_config=vision,
        prompt_encoder_config={"hidden_size": WIDTH, "image_size": SIDE},
        mask_decoder_config={
            "hidden_size": WIDTH,
            "mlp_dim": 16,
            "num_attention_heads": 2,
            "iou_head_hidden_dim": 16,
        },
        image_size=SIDE,
        memory_attention_hidden_size=WIDTH,
        memory_attention_num_layers=1,
        memory_attention_feed_forward_hidden_size=16,
        memory_attention_rope_feat_sizes=[4, 4],
        memory_encoder_hidden_size=WIDTH,
        mask_downsampler_embed_dim=WIDTH,
        memory_fuser_embed_dim=WIDTH,
        memory_fuser_intermediate_dim=16,
    )
    torch.manual_seed(0)
    network = transformers.Sam2VideoModel(config).eval()
    for name, weights in network.named_parameters():
        scale = "norm" in name and name.endswith("weight")
        torch.nn.init.normal_(weights, mean=1.0 if scale else 0.0, std=0.1)
    network.mask_decoder.pred_obj_score_head.proj_out.bias.data.fill_(6.0)
    return network


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "sam2"
    build_sam2().save_pretrained(folder)
    return folder


@pytest.fixture
def folder(saved, tmp_path):
    """One that the test may damage."""
    return shutil.copytree(saved, tmp_path / "sam2")


@pytest.fixture(scope="module")
def sam2(saved):
    torch.set_num_threads(1)
    return load_sam2(saved)


@pytest.fixture(scope="module")
def clip():
    return np.random.default_rng(0).integers(0, 256, (FRAMES, 48, 80, 3), np.uint8)


def box_mask(top, left, bottom, right, shape=(48, 80)):
    mask = np.zeros(shape, bool)
    mask[top:bottom, left:right] = True
    return mask


PROMPT = box_mask(10, 12, 40, 30)


def refused(message, function, *args, error=ValueError, **kwargs):
    """Asserts that the call is refused in one line that holds the message."""
    with pytest.raises(error, match=message) as caught:
        function(*args, **kwargs)
    assert "\n" not in str(caught.value)


def official_masks(network, frames, box, points):
    """By transformers' processor and propagation, on the whole clip at once."""
    video = torch.cat([_pixels(frame, network) for frame in frames])
    session = transformers.Sam2VideoInferenceSession(video=video, video_height=48, video_width=80, dtype=torch.float32)
    # Without the part that needs torchvision, which only resizes pictures.
    processor = object.__new__(transformers.Sam2VideoProcessor)
    processor.target_size, processor.point_pad_value = SIDE, -10
    labels = [[[1] * len(points)]]
    processor.add_inputs_to_inference_session(
        session, 0, 1, input_points=[[points]], input_labels=labels, input_boxes=[[box]]
    )
    outputs = list(network.propagate_in_video_iterator(session, start_frame_idx=0))
    logits = torch.nn.functional.interpolate(
        torch.cat([out.pred_masks for out in outputs]), (48, 80), mode="bilinear", align_corners=False
    )
    presence = torch.sigmoid(torch.cat([out.object_score_logits for out in outputs]))
    return [clean(mask) for mask in (logits[:, 0] > 0).numpy()], presence[:, 0].numpy()


def test_masks_are_those_of_transformers_own_propagation(sam2, clip):
    reported = []
    masks, presence = segment_sam2(clip, PROMPT, sam2, progress=reported.append)
    expected, expected_presence = official_masks(
        sam2.network, clip, [11.1, 8.5, 30.9, 41.5], [[x, y] for x, y in inner_points(PROMPT).tolist()]
    )
    assert masks.shape == (FRAMES, 48, 80) and masks.dtype == bool and presence.shape == (FRAMES,)
    assert (masks.any((1, 2)) & ~masks.all((1, 2))).all()  # else there is nothing to compare
    np.testing.assert_array_equal(masks, expected)
    # The same float32 operations; only their order in memory differs.
    np.testing.assert_allclose(presence, expected_presence, atol=1e-5)
    assert reported == pytest.approx(np.arange(1, FRAMES + 1) / FRAMES)


def test_another_prompt_gives_other_masks_and_the_same_one_the_same(sam2, clip):
    masks, _ = segment_sam2(clip[:3], PROMPT, sam2)
    again, _ = segment_sam2(clip[:3], PROMPT, sam2)
    other, _ = segment_sam2(clip[:3], box_mask(5, 40, 25, 70), sam2)
    np.testing.assert_array_equal(masks, again)
    assert (masks[0] != other[0]).mean() > 0.1
    assert (masks[2] != other[2]).any()  # it is also remembered
    refused("prompt: expected the robot", segment_sam2, clip, np.zeros((48, 80), bool), sam2)


def test_pictures_are_resized_and_normalised_as_by_pillow(sam2, clip):
    pixels = _pixels(clip[0], sam2.network)[0].numpy()
    size, mean, deviation = (SIDE, SIDE), np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    for channel in range(3):
        plane = Image.fromarray(clip[0, ..., channel].astype(np.float32) / 255)
        expected = (np.asarray(plane.resize(size, Image.Resampling.BILINEAR)) - mean[channel]) / deviation[channel]
        np.testing.assert_allclose(pixels[channel], expected, atol=1e-5)  # float32 rounding


def test_points_lie_deep_inside_and_apart():
    rows, columns = np.mgrid[:60, :80]
    disc, trunk, limb = (np.hypot(rows - 30, columns - 20) < 12), box_mask(20, 20, 41, 50, (60, 80)), (rows // 2 == 15)
    mask = disc | trunk | limb
    points = inner_points(mask)
    np.testing.assert_array_equal(points, [[20.5, 30.5], [29.5, 30.5], [38.5, 30.5]])
    depth = ndimage.distance_transform_edt(mask)
    x, y = points.astype(int).T
    assert (depth[y, x] >= 0.75 * depth.max()).all()
    apart = np.linalg.norm(points[:, None] - points[None], axis=-1) + 100 * np.eye(len(points))
    assert apart.min() > 0.1 * 80  # px, the longer side of the mask
    np.testing.assert_array_equal(inner_points(box_mask(3, 5, 4, 6)), [[5.5, 3.5]])


def test_the_prompt_stands_where_the_robot_stands(tiny_env):
    picture = start_frame(tiny_env, 96)
    robot = (picture < 255).any(-1)
    frame = np.full((144, 200, 3), 255, np.uint8)
    frame[40:136, 90:186] = picture
    truth = np.zeros((144, 200), bool)
    truth[40:136, 90:186] = robot
    placed = start_prompt(tiny_env, frame)
    assert (placed & truth).sum() / (placed | truth).sum() > 0.9  # outlines of a silhouette of 256 px, resized


def test_before_a_real_background_the_prompt_is_the_start_frame_in_the_middle(tiny_env):
    noise = np.random.default_rng(0).integers(0, 256, (128, 256, 3), np.uint8)
    robot = (start_frame(tiny_env, 256) < 255).any(-1)
    expected = np.zeros((128, 256), bool)
    expected[:, 64:192] = np.asarray(Image.fromarray(robot).resize((128, 128), Image.Resampling.NEAREST))
    np.testing.assert_array_equal(start_prompt(tiny_env, noise), expected)
    # Something plain to see that has not the robot's shape is not taken for it.
    wide = np.full((128, 256, 3), 255, np.uint8)
    wide[60:64, 10:250] = 0
    np.testing.assert_array_equal(start_prompt(tiny_env, wide), expected)


def test_the_setting_leads_to_sam2_and_its_traces_are_kept(tiny_env, saved, clip, sam2, monkeypatch):
    monkeypatch.setattr(clip_masks, "_expect_whole", lambda masks: None)  # what random weights find reaches every edge
    found = find_masks(tiny_env, Video(clip, 24.0), "sam2", str(saved))
    masks, presence = segment_sam2(clip, start_prompt(tiny_env, clip[0]), sam2)
    filled, gaps = bridge_gaps(masks)
    np.testing.assert_array_equal(found.masks, filled)
    np.testing.assert_allclose(found.confidence, np.where(gaps, 0, agreement(filled) * presence))
    assert found.provenance["segmentation"] == "sam2"
    assert found.provenance["segmentation_model"] == dict(sam2.identity) and len(sam2.identity["sha256"]) == 64
    summary = found.provenance["segmentation_confidence"]
    assert summary["worst"] == pytest.approx(found.confidence.min(), abs=1e-4)
    assert found.confidence[summary["worst_frame"]] == found.confidence.min()
    assert json.loads(json.dumps(found.provenance)) == found.provenance


def test_a_folder_that_is_no_sam2_is_refused(tmp_path, folder):
    refused("segmenter_model: expected a complete sam2_video", load_sam2, tmp_path)
    for name in ("no-such-folder", "a/b/c", "-a/b"):
        refused("segmenter_model: expected a folder or a Hugging Face id", load_sam2, name)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({"model_type": "bert"}))
    refused("got one of the type 'bert'; use facebook/sam2.1-hiera-tiny", load_sam2, folder)
    (folder / "config.json").write_text(
        json.dumps(config | {"model_type": "my_code", "auto_map": {"AutoConfig": "a.B"}})
    )
    refused("segmenter_model: expected", load_sam2, folder)


def test_a_damaged_or_pickled_model_is_refused(folder, saved):
    weights = folder / "model.safetensors"
    tensors = load_file(saved / weights.name)  # mapped into memory: not from the file that is overwritten here
    weights.write_bytes(weights.read_bytes()[:1000])
    refused("segmenter_model: expected a complete", load_sam2, folder)
    kept = {name: tensor for name, tensor in tensors.items() if name != "no_memory_embedding"}
    save_file(kept, weights, metadata={"format": "pt"})
    refused("got one without no_memory_embedding", load_sam2, folder)
    weights.unlink()
    torch.save(tensors, folder / "pytorch_model.bin")
    refused("with safetensors in", load_sam2, folder)


def test_without_the_extra_the_message_says_what_to_install(saved, monkeypatch):
    for name in ("torch", "transformers"):
        with monkeypatch.context() as patch:
            patch.setitem(sys.modules, name, None)
            refused(r'pip install "nil-jax\[segment\]"', load_sam2, saved)


def test_an_id_is_downloaded_without_pickles_and_its_commit_is_noted(saved, tmp_path, monkeypatch):
    snapshot = shutil.copytree(saved, tmp_path / "snapshots" / COMMIT)
    asked = []
    monkeypatch.setattr(
        huggingface_hub, "snapshot_download", lambda name, **kwargs: asked.append((name, kwargs)) or str(snapshot)
    )
    assert load_sam2("owner/name@v2").identity == {"revision": COMMIT}
    assert asked == [("owner/name", {"revision": "v2", "allow_patterns": ["*.json", "*.safetensors"]})]

    def fail(name, **kwargs):
        raise OSError("no network\nat all")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    refused("'owner/name', which is no folder and was not found: no network at all", load_sam2, "owner/name")
