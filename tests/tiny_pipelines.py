"""Image-to-video pipelines of diffusers with tiny random weights, saved as folders: real classes, no network."""

from collections.abc import Callable
from pathlib import Path

import diffusers
import tokenizers
import torch
import transformers
from diffusers.pipelines import ltx2 as ltx2_module

torch.set_num_threads(1)  # threads cost tiny networks more than they give

LETTERS = "▁abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ,.:;'|{}<>_0123456789"
WIDTH = 16  # of the text encoders' states
TINY = {"hidden_size": WIDTH, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
SVD_SEES = 224  # px: the pipeline resizes to this itself


def save(build: Callable[[], diffusers.DiffusionPipeline], folder: Path) -> Path:
    """Builds a pipeline, the same one each time, and saves it."""
    torch.manual_seed(0)
    build().save_pretrained(folder)
    return folder


def t5_tokenizer() -> transformers.T5Tokenizer:
    words = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), *((letter, -1.0) for letter in LETTERS)]
    return transformers.T5Tokenizer(vocab=words, extra_ids=0)


def t5_encoder(kind: str = "T5", size: int = 96) -> transformers.PreTrainedModel:
    config = getattr(transformers, f"{kind}Config")(
        vocab_size=size, d_model=WIDTH, d_kv=8, d_ff=16, num_layers=1, num_heads=2
    )
    return getattr(transformers, f"{kind}EncoderModel")(config).eval()


def clip_vision(name: str = "CLIPVisionModel", **settings) -> transformers.PreTrainedModel:
    sizes = {"image_size": 32, "patch_size": 16, "projection_dim": WIDTH}
    config = transformers.CLIPVisionConfig(**TINY | sizes | settings)
    return getattr(transformers, name)(config).eval()


def clip_processor(size: int) -> transformers.image_processing_backends.PilBackend:
    return transformers.CLIPImageProcessorPil(size={"shortest_edge": size}, crop_size={"height": size, "width": size})


def wan_parts(channels: int, **settings) -> dict:
    """Of Wan: the transformer sees `channels` channels a latent pixel."""
    return {
        "tokenizer": t5_tokenizer(),
        "text_encoder": t5_encoder("UMT5"),
        "vae": diffusers.AutoencoderKLWan(
            base_dim=3, z_dim=16, dim_mult=[1, 1, 1, 1], num_res_blocks=1, temperal_downsample=[False, True, True]
        ),
        "scheduler": diffusers.FlowMatchEulerDiscreteScheduler(shift=7.0),
        "transformer": wan_transformer(channels, **settings),
    }


def wan_transformer(channels: int, **settings) -> diffusers.WanTransformer3DModel:
    return diffusers.WanTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=12,
        in_channels=channels,
        out_channels=16,
        text_dim=WIDTH,
        freq_dim=16,
        ffn_dim=16,
        num_layers=1,
        rope_max_seq_len=32,
        **settings,
    )


def wan() -> diffusers.DiffusionPipeline:
    """Wan 2.1: noise, mask and condition come in, and the picture as seen by CLIP."""
    return diffusers.WanImageToVideoPipeline(
        **wan_parts(36, image_dim=WIDTH, added_kv_proj_dim=24, pos_embed_seq_len=None),
        image_encoder=clip_vision(),
        image_processor=clip_processor(32),
    )


def wan_two_experts() -> diffusers.DiffusionPipeline:
    """Wan 2.2 A14B: two transformers, no CLIP."""
    return diffusers.WanImageToVideoPipeline(**wan_parts(36), transformer_2=wan_transformer(36), boundary_ratio=0.9)


def wan_text_and_image() -> diffusers.DiffusionPipeline:
    """Wan 2.2 TI2V: its folder names the text-to-video class."""
    return diffusers.WanPipeline(**wan_parts(16), expand_timesteps=True)


def ltx() -> diffusers.DiffusionPipeline:
    """LTX-Video: its folder names the text-to-video class."""
    vae = diffusers.AutoencoderKLLTXVideo(
        latent_channels=8,
        block_out_channels=(8, 8, 8, 8),
        decoder_block_out_channels=(8, 8, 8, 8),
        layers_per_block=(1, 1, 1, 1, 1),
        decoder_layers_per_block=(1, 1, 1, 1, 1),
    )
    vae.use_framewise_encoding = vae.use_framewise_decoding = False
    transformer = diffusers.LTXVideoTransformer3DModel(
        in_channels=8,
        out_channels=8,
        num_attention_heads=2,
        attention_head_dim=8,
        cross_attention_dim=16,
        num_layers=1,
        caption_channels=WIDTH,
    )
    return diffusers.LTXPipeline(
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(),
        vae=vae,
        text_encoder=t5_encoder(),
        tokenizer=t5_tokenizer(),
        transformer=transformer,
    )


def cogvideox(**settings) -> diffusers.DiffusionPipeline:
    vae = diffusers.AutoencoderKLCogVideoX(
        block_out_channels=(8, 8, 8, 8), latent_channels=4, layers_per_block=1, norm_num_groups=2
    )
    transformer = diffusers.CogVideoXTransformer3DModel(
        **{
            "num_attention_heads": 2,
            "attention_head_dim": 16,
            "in_channels": 8,
            "out_channels": 4,
            "time_embed_dim": 4,
            "text_embed_dim": WIDTH,
            "num_layers": 1,
            "sample_width": 4,
            "sample_height": 4,
            "sample_frames": 9,
            "use_rotary_positional_embeddings": True,
        }
        | settings
    )
    return diffusers.CogVideoXImageToVideoPipeline(
        tokenizer=t5_tokenizer(),
        text_encoder=t5_encoder(),
        vae=vae,
        transformer=transformer,
        scheduler=diffusers.CogVideoXDDIMScheduler(),
    )


def cogvideox_1_5() -> diffusers.DiffusionPipeline:
    """CogVideoX 1.5: patches of two frames."""
    return cogvideox(patch_size_t=2, patch_bias=False)


def svd() -> diffusers.DiffusionPipeline:
    """Stable Video Diffusion: no text at all."""
    unet = diffusers.UNetSpatioTemporalConditionModel(
        block_out_channels=(32, 64),
        down_block_types=("CrossAttnDownBlockSpatioTemporal", "DownBlockSpatioTemporal"),
        up_block_types=("UpBlockSpatioTemporal", "CrossAttnUpBlockSpatioTemporal"),
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=24,
        layers_per_block=1,
        cross_attention_dim=WIDTH,
        num_attention_heads=2,
        num_frames=7,
    )
    vae = diffusers.AutoencoderKLTemporalDecoder(
        down_block_types=("DownEncoderBlock2D",) * 4, block_out_channels=(32, 32, 32, 32)
    )
    return diffusers.StableVideoDiffusionPipeline(
        vae=vae,
        image_encoder=clip_vision("CLIPVisionModelWithProjection", image_size=SVD_SEES, patch_size=56),
        unet=unet,
        scheduler=diffusers.EulerDiscreteScheduler(
            prediction_type="v_prediction", use_karras_sigmas=True, sigma_min=0.002, sigma_max=700.0
        ),
        feature_extractor=clip_processor(SVD_SEES),
    )


def hunyuan() -> diffusers.DiffusionPipeline:
    """HunyuanVideo, the variant that replaces the first frame's tokens."""
    tokenizer = word_tokenizer("<image>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")
    text = transformers.LlamaConfig(**TINY | {"num_hidden_layers": 3}, vocab_size=len(tokenizer))
    vision = clip_vision(image_size=48, patch_size=2).config  # 576 patches, as the pipeline counts on
    llava = transformers.LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        pad_token_id=tokenizer.pad_token_id,
    )
    vae = diffusers.AutoencoderKLHunyuanVideo(
        latent_channels=4, block_out_channels=(8, 8, 8, 8), layers_per_block=1, norm_num_groups=4
    )
    transformer = diffusers.HunyuanVideoTransformer3DModel(
        in_channels=4,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=10,
        num_layers=1,
        num_single_layers=1,
        num_refiner_layers=1,
        text_embed_dim=WIDTH,
        pooled_projection_dim=8,
        rope_axes_dim=(2, 4, 4),
        image_condition_type="token_replace",
    )
    clip_text = transformers.CLIPTextConfig(**TINY | {"hidden_size": 8}, vocab_size=100, bos_token_id=2, eos_token_id=3)
    return diffusers.HunyuanVideoImageToVideoPipeline(
        text_encoder=transformers.LlavaForConditionalGeneration(llava).eval(),
        tokenizer=tokenizer,
        transformer=transformer,
        vae=vae,
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=7.0),
        text_encoder_2=transformers.CLIPTextModel(clip_text).eval(),
        tokenizer_2=word_tokenizer(model_max_length=77),
        image_processor=clip_processor(48),
    )


def word_tokenizer(*special: str, **settings) -> transformers.PreTrainedTokenizerFast:
    """Words of one letter; all else is unknown."""
    words = dict.fromkeys(["<unk>", "<pad>", "<s>", "</s>", *LETTERS])
    model = tokenizers.models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>")
    inner = tokenizers.Tokenizer(model)
    inner.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=inner,
        unk_token="<unk>",
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        additional_special_tokens=list(special),
        **settings,
    )


def ltx2() -> diffusers.DiffusionPipeline:
    """LTX-2: makes sound as well; its folder names the text-to-video class."""
    text = transformers.Gemma3TextConfig(
        **TINY | {"num_hidden_layers": 2}, vocab_size=200, num_key_value_heads=1, head_dim=8
    )
    vision = transformers.SiglipVisionConfig(**TINY, image_size=32, patch_size=8)
    config = transformers.Gemma3Config(text_config=text, vision_config=vision, mm_tokens_per_image=4)
    vae = diffusers.AutoencoderKLLTX2Video(
        latent_channels=4,
        block_out_channels=(8, 8, 8, 8),
        decoder_block_out_channels=(8, 16, 32),
        layers_per_block=(1, 1, 1, 1, 1),
        decoder_layers_per_block=(1, 1, 1, 1),
        spatial_compression_ratio=32,
        temporal_compression_ratio=8,
    )
    audio_vae = diffusers.AutoencoderKLLTX2Audio(
        base_channels=8, ch_mult=(1,), num_res_blocks=1, latent_channels=2, norm_type="pixel", mel_bins=16
    )
    transformer = diffusers.LTX2VideoTransformer3DModel(
        in_channels=4,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=8,
        cross_attention_dim=16,
        audio_in_channels=8,
        audio_out_channels=8,
        audio_num_attention_heads=2,
        audio_attention_head_dim=4,
        audio_cross_attention_dim=8,
        num_layers=1,
        caption_channels=WIDTH,
    )
    connectors = ltx2_module.LTX2TextConnectors(
        caption_channels=WIDTH,
        text_proj_in_factor=3,
        video_connector_num_attention_heads=2,
        video_connector_attention_head_dim=8,
        video_connector_num_layers=1,
        video_connector_num_learnable_registers=None,
        audio_connector_num_attention_heads=2,
        audio_connector_attention_head_dim=8,
        audio_connector_num_layers=1,
        audio_connector_num_learnable_registers=None,
    )
    vocoder = ltx2_module.LTX2Vocoder(
        in_channels=32,  # two of sound, times mel_bins
        hidden_channels=16,
        upsample_kernel_sizes=[4, 4],
        upsample_factors=[2, 2],
        resnet_kernel_sizes=[3],
        resnet_dilations=[[1, 3]],
    )
    return diffusers.LTX2Pipeline(
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(),
        vae=vae,
        audio_vae=audio_vae,
        text_encoder=transformers.Gemma3ForConditionalGeneration(config).eval(),
        tokenizer=word_tokenizer(),
        connectors=connectors,
        transformer=transformer,
        vocoder=vocoder,
    )


def hunyuan_1_5() -> diffusers.DiffusionPipeline:
    """HunyuanVideo 1.5: chooses its size, guides by a component, reports no progress."""
    tokenizer = word_tokenizer()
    tokenizer.chat_template = "{% for message in messages %}{{ message['content'] }}{% endfor %}"
    text = transformers.Qwen2_5_VLTextConfig(
        **TINY | {"num_hidden_layers": 3},
        vocab_size=len(tokenizer),
        num_key_value_heads=1,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [1, 1, 2]},
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    # 729 patches, as the pipeline counts on.
    vision = transformers.SiglipVisionConfig(**TINY | {"hidden_size": 8}, image_size=54, patch_size=2)
    vae = diffusers.AutoencoderKLHunyuanVideo15(
        latent_channels=4, block_out_channels=(32, 32, 32, 32, 32), layers_per_block=1
    )
    transformer = diffusers.HunyuanVideo15Transformer3DModel(
        in_channels=9,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=8,
        num_layers=1,
        num_refiner_layers=1,
        text_embed_dim=WIDTH,
        text_embed_2_dim=WIDTH,
        image_embed_dim=8,
        rope_axes_dim=(2, 2, 4),
        target_size=32,
    )
    return diffusers.HunyuanVideo15ImageToVideoPipeline(
        text_encoder=transformers.Qwen2_5_VLTextModel(text).eval(),
        tokenizer=tokenizer,
        transformer=transformer,
        vae=vae,
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=7.0),
        text_encoder_2=t5_encoder(size=384),
        tokenizer_2=transformers.ByT5Tokenizer(),
        guider=diffusers.ClassifierFreeGuidance(guidance_scale=2.0),
        image_encoder=transformers.SiglipVisionModel(vision).eval(),
        feature_extractor=transformers.SiglipImageProcessorPil(size={"height": 54, "width": 54}),
    )
