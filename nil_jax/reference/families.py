"""What differs between the families of image-to-video pipelines in diffusers, in one table."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Family:
    """What one family of pipelines asks for. Arguments are those of the pipeline's call."""

    name: str  # for people
    pipeline: str  # class in diffusers
    size: tuple[int, int]  # width and height it was made for, px
    multiple: int  # of which width and height are multiples, px
    num_frames: int | tuple[str, str]  # of a usual clip, or the component and its setting that tell
    fps: int  # frames per second it was made for
    frame_step: int = 4  # a clip has k * frame_step + 1 frames
    others: tuple[str, ...] = ()  # classes that a model_index.json may name instead: same weights
    mark: tuple[str, str] | None = None  # component ("" is the pipeline) and its setting that tell this variant
    sized: bool = True  # False: no width and height, it goes by the aspect of the image
    prompt: bool = True
    negative_prompt: bool = True
    guidance: tuple[str, ...] = ("guidance_scale",)  # arguments that take the guidance scale
    fps_argument: str | None = None  # argument that tells the network the frame rate
    defaults: Mapping[str, Any] = field(default_factory=dict)  # arguments where diffusers' own defaults do not serve
    float32: tuple[str, ...] = ()  # components that lose too much in 16 bits
    modules: tuple[str, ...] = ()  # where its components come from, beside diffusers and transformers

    def nearest_side(self, pixels: int) -> int:
        """The allowed width or height nearest to a wanted one, px."""
        return max(1, round(pixels / self.multiple)) * self.multiple

    def nearest_frames(self, number: int) -> int:
        """The allowed length, at least two frames, nearest to a wanted one."""
        return max(1, round((number - 1) / self.frame_step)) * self.frame_step + 1


# Of several families with the same class the first one counts whose mark is set.
FAMILIES = (
    Family(
        "Wan 2.2 TI2V",
        "WanImageToVideoPipeline",
        size=(1280, 704),
        multiple=32,
        num_frames=121,
        fps=24,
        others=("WanPipeline",),
        mark=("", "expand_timesteps"),
        float32=("vae", "image_encoder"),
    ),
    Family(
        "Wan 2.1 and 2.2 I2V",
        "WanImageToVideoPipeline",
        size=(832, 480),
        multiple=16,
        num_frames=81,
        fps=16,
        float32=("vae", "image_encoder"),
    ),
    Family(
        "LTX-2",
        "LTX2ImageToVideoPipeline",
        size=(768, 512),
        multiple=32,
        num_frames=121,
        fps=24,
        frame_step=8,
        others=("LTX2Pipeline",),
        guidance=("guidance_scale", "audio_guidance_scale"),
        fps_argument="frame_rate",
        modules=("ltx2",),
    ),
    Family(
        "LTX-Video",
        "LTXImageToVideoPipeline",
        size=(704, 480),
        multiple=32,
        num_frames=121,
        fps=25,
        frame_step=8,
        others=("LTXPipeline", "LTXConditionPipeline"),
        fps_argument="frame_rate",
        # For decoders that take a time step; older ones pass over it.
        defaults={"decode_timestep": 0.05, "decode_noise_scale": 0.025},
    ),
    Family(
        "CogVideoX 1.5",
        "CogVideoXImageToVideoPipeline",
        size=(1360, 768),
        multiple=16,
        num_frames=81,
        fps=16,
        frame_step=16,
        mark=("transformer", "patch_size_t"),
    ),
    Family(
        "CogVideoX",
        "CogVideoXImageToVideoPipeline",
        size=(720, 480),
        multiple=16,
        num_frames=49,
        fps=8,
        frame_step=8,
    ),
    Family(
        "HunyuanVideo 1.5",
        "HunyuanVideo15ImageToVideoPipeline",
        size=(848, 480),
        multiple=16,
        num_frames=121,
        fps=24,
        sized=False,
        guidance=(),  # a component of its own guides
    ),
    Family(
        "HunyuanVideo",
        "HunyuanVideoImageToVideoPipeline",
        size=(1280, 720),
        multiple=16,
        num_frames=129,
        fps=24,
        negative_prompt=False,  # distilled: there is no second pass for it
        defaults={"guidance_scale": 6.0},  # checkpoints without an input for it pass over it
    ),
    Family(
        "Stable Video Diffusion",
        "StableVideoDiffusionPipeline",
        size=(1024, 576),
        multiple=64,
        num_frames=("unet", "num_frames"),
        fps=7,
        frame_step=1,
        prompt=False,
        negative_prompt=False,
        guidance=("max_guidance_scale",),
        fps_argument="fps",
        defaults={"decode_chunk_size": 8},  # frames decoded at once: bounds the memory
    ),
)
