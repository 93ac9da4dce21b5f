"""Pipelines with the architectures of public checkpoints and random weights, for measurements of speed and memory.

The speed and the memory of a network do not depend on its weights. The configs are copied from the files
``config.json`` of the public checkpoints. The tokenizers know only letters, but pad prompts to the length of the real
tokenizers. No file is read or written.
"""

from __future__ import annotations

import string
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import diffusers
import torch
import transformers
from diffusers import DiffusionPipeline
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from torch import nn
from transformers import CLIPTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast, T5TokenizerFast

from rnri import LatentDiffusion

INITIAL_STD = 0.02
"""Standard deviation of the random weights, which keeps the outputs of all networks finite in bfloat16."""
TINY_LATENT = 16
"""Height and width of the latents of tiny pipelines."""
CHAT = "{% for message in messages %}user {{ message['content'] }} {% endfor %}assistant "

Config = Mapping[str, Any]


@dataclass(frozen=True)
class Component:
    """One network of a pipeline.

    Attributes:
        name: name of the class in diffusers or, for text encoders, in transformers.
        config: config of the public checkpoint.
        tiny: entries that replace entries of ``config`` for a small network, which a CPU evaluates in milliseconds.
    """

    name: str
    config: Config
    tiny: Config

    def build(self, *, tiny: bool) -> nn.Module:
        """Return the network on PyTorch's default device, in PyTorch's default dtype."""
        config = {**self.config, **(self.tiny if tiny else {})}
        if hasattr(diffusers, self.name):
            return getattr(diffusers, self.name).from_config(config)
        network_class = getattr(transformers, self.name)
        return network_class(network_class.config_class(**config))


@dataclass(frozen=True)
class Checkpoint:
    """The architecture of a public checkpoint.

    Attributes:
        hub_id: id of the checkpoint on the Hugging Face Hub.
        pipeline: name of the pipeline class of diffusers.
        network: the network that predicts noise or velocity, as a pair of its name in the pipeline and its
            architecture.
        vae: the autoencoder.
        text_encoders: the text encoders by name.
        scheduler: name of the scheduler class and its config.
        tokenizers: functions that create a tokenizer with a given size of the vocabulary, by the name of the tokenizer.
        steps: number of sampling steps that the authors of a distilled checkpoint recommend; 20 for other checkpoints.
        options: additional arguments of the pipeline class.
    """

    hub_id: str
    pipeline: str
    network: tuple[str, Component]
    vae: Component
    text_encoders: Mapping[str, Component]
    scheduler: tuple[str, Config]
    tokenizers: Mapping[str, Callable[[int], PreTrainedTokenizerBase]]
    steps: int = 20
    options: Config = field(default_factory=dict)

    @property
    def is_turbo(self) -> bool:
        """Whether the checkpoint is distilled to at most four sampling steps."""
        return self.steps <= 4

    def build(self, device: str | torch.device, dtype: torch.dtype, *, tiny: bool = False) -> LatentDiffusion:
        """Return the model with random weights on ``device``. If ``tiny``, the networks and the images are small."""
        previous = torch.get_default_dtype()
        torch.set_default_dtype(dtype)
        try:
            with torch.random.fork_rng(devices=[]), torch.device(device):
                torch.manual_seed(0)
                name, network = self.network
                networks = {name: network, "vae": self.vae, **self.text_encoders}
                components = {key: randomize(part.build(tiny=tiny)) for key, part in networks.items()}
        finally:
            torch.set_default_dtype(previous)
        scheduler, config = self.scheduler
        tokenizers = {
            key: make(components[key.replace("tokenizer", "text_encoder")].config.vocab_size)
            for key, make in self.tokenizers.items()
        }
        pipeline: DiffusionPipeline = getattr(diffusers, self.pipeline)(
            **components, **tokenizers, scheduler=getattr(diffusers, scheduler)(**config), **self.options
        )
        if tiny and hasattr(pipeline, "default_sample_size"):
            pipeline.default_sample_size = TINY_LATENT
        pipeline.set_progress_bar_config(disable=True)
        model = LatentDiffusion(pipeline, 1.0)
        if not tiny:
            return model
        side = TINY_LATENT * model.family.pixels_per_latent
        return LatentDiffusion(pipeline, 1.0, (side, side))


def randomize(network: nn.Module) -> nn.Module:
    """Replace the matrices of ``network`` by random numbers, because some classes initialize them with zeros."""
    with torch.no_grad():
        for weight in network.parameters():
            if weight.ndim > 1:
                weight.normal_(std=INITIAL_STD)
    return network.eval().requires_grad_(False)


def count_weights(component: Component) -> int:
    """Return the number of weights of the network at its full size, without allocating memory."""
    with torch.device("meta"):
        return sum(weight.numel() for weight in component.build(tiny=False).parameters())


def _filled(words: list[str], size: int) -> list[str]:
    """Return a vocabulary of ``size`` words: ``words``, followed by words that no prompt contains."""
    return words + [chr(0x10000 + k) for k in range(size - len(words))]


def clip_tokenizer(size: int) -> CLIPTokenizer:
    """Return a tokenizer with a vocabulary of ``size`` tokens, which pads prompts to 77 tokens, as for CLIP."""
    letters = [f"{letter}</w>" for letter in string.ascii_lowercase]
    words = [*_filled([*string.ascii_lowercase, *letters], size - 2), "<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer(vocab={word: k for k, word in enumerate(words)}, merges=[], model_max_length=77)


def t5_tokenizer(size: int) -> T5TokenizerFast:
    """Return a tokenizer with a vocabulary of ``size`` tokens, which include letters and the special tokens of T5."""
    special = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("\u2581", -2.0)]
    words = _filled(list(string.ascii_lowercase), size - len(special))
    return T5TokenizerFast(vocab=special + [(word, -3.0) for word in words], extra_ids=0, model_max_length=512)


def chat_tokenizer(size: int) -> PreTrainedTokenizerFast:
    """Return a tokenizer with a vocabulary of ``size`` tokens and a chat template like that of Qwen."""
    words = _filled(["<pad>", "<unk>", " ", *string.ascii_lowercase], size)
    tokenizer = Tokenizer(models.WordLevel({word: k for k, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    tokenizer.decoder = decoders.Fuse()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", unk_token="<unk>")
    fast.chat_template = CHAT
    fast.model_max_length = 4096
    return fast


TINY_TEXT = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "projection_dim": 32,
    "bos_token_id": 62,
    "eos_token_id": 63,
}
TINY_DECODER = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 16,
}

CLIP_L = {
    "vocab_size": 49408,
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "max_position_embeddings": 77,
    "hidden_act": "quick_gelu",
    "projection_dim": 768,
}
OPEN_CLIP_G = CLIP_L | {
    "hidden_size": 1280,
    "intermediate_size": 5120,
    "num_hidden_layers": 32,
    "num_attention_heads": 20,
    "hidden_act": "gelu",
    "projection_dim": 1280,
}
CLIP_TEXT = Component("CLIPTextModel", CLIP_L, TINY_TEXT)
T5_XXL = Component(
    "T5EncoderModel",
    {
        "vocab_size": 32128,
        "d_model": 4096,
        "d_kv": 64,
        "d_ff": 10240,
        "num_layers": 24,
        "num_heads": 64,
        "feed_forward_proj": "gated-gelu",
        "tie_word_embeddings": False,
    },
    {"vocab_size": 64, "d_model": 64, "d_kv": 8, "d_ff": 32, "num_layers": 1, "num_heads": 2},
)
QWEN3_4B = Component(
    "Qwen3Model",
    {
        "vocab_size": 151936,
        "hidden_size": 2560,
        "intermediate_size": 9728,
        "num_hidden_layers": 36,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "max_position_embeddings": 40960,
        "rms_norm_eps": 1e-6,
    },
    TINY_DECODER,
)
GEMMA2_2B = Component(
    "Gemma2Model",
    {
        "vocab_size": 256000,
        "hidden_size": 2304,
        "intermediate_size": 9216,
        "num_hidden_layers": 26,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "head_dim": 256,
        "max_position_embeddings": 8192,
        "attn_implementation": "eager",
    },
    TINY_DECODER,
)

VAE_CONFIG = {
    "in_channels": 3,
    "out_channels": 3,
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
    "block_out_channels": [128, 256, 512, 512],
    "layers_per_block": 2,
    "norm_num_groups": 32,
}
TINY_VAE = {
    "down_block_types": ["DownEncoderBlock2D"] * 2,
    "up_block_types": ["UpDecoderBlock2D"] * 2,
    "block_out_channels": [8, 16],
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "latent_channels": 4,
    "sample_size": 32,
}
WITHOUT_QUANT = {"use_quant_conv": False, "use_post_quant_conv": False}


def _vae(**config: object) -> Component:
    return Component("AutoencoderKL", VAE_CONFIG | config, TINY_VAE)


SD_VAE = _vae(latent_channels=4, scaling_factor=0.18215, sample_size=512)
SDXL_VAE = _vae(latent_channels=4, scaling_factor=0.13025, sample_size=1024, force_upcast=True)
SD3_VAE = _vae(latent_channels=16, scaling_factor=1.5305, shift_factor=0.0609, sample_size=1024, **WITHOUT_QUANT)
FLUX_VAE = _vae(latent_channels=16, scaling_factor=0.3611, shift_factor=0.1159, sample_size=1024, **WITHOUT_QUANT)
SANA_VAE = Component(
    "AutoencoderDC",
    {
        "in_channels": 3,
        "latent_channels": 32,
        "attention_head_dim": 32,
        "encoder_block_types": ["ResBlock"] * 3 + ["EfficientViTBlock"] * 3,
        "decoder_block_types": ["ResBlock"] * 3 + ["EfficientViTBlock"] * 3,
        "encoder_block_out_channels": [128, 256, 512, 512, 1024, 1024],
        "decoder_block_out_channels": [128, 256, 512, 512, 1024, 1024],
        "encoder_layers_per_block": [2, 2, 2, 3, 3, 3],
        "decoder_layers_per_block": [3, 3, 3, 3, 3, 3],
        "encoder_qkv_multiscales": [[], [], [], [5], [5], [5]],
        "decoder_qkv_multiscales": [[], [], [], [5], [5], [5]],
        "downsample_block_type": "conv",
        "upsample_block_type": "interpolate",
        "decoder_norm_types": "rms_norm",
        "decoder_act_fns": "silu",
        "scaling_factor": 0.41407,
    },
    {
        "latent_channels": 4,
        "attention_head_dim": 2,
        "encoder_block_types": ["ResBlock", "EfficientViTBlock"],
        "decoder_block_types": ["ResBlock", "EfficientViTBlock"],
        "encoder_block_out_channels": [8, 8],
        "decoder_block_out_channels": [8, 8],
        "encoder_layers_per_block": [1, 1],
        "decoder_layers_per_block": [1, 1],
        "encoder_qkv_multiscales": [[], [5]],
        "decoder_qkv_multiscales": [[], [5]],
    },
)

SD_UNET = Component(
    "UNet2DConditionModel",
    {
        "sample_size": 64,
        "in_channels": 4,
        "out_channels": 4,
        "down_block_types": ["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"],
        "up_block_types": ["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 3,
        "block_out_channels": [320, 640, 1280, 1280],
        "layers_per_block": 2,
        "cross_attention_dim": 768,
        "attention_head_dim": 8,
        "norm_num_groups": 32,
    },
    {
        "sample_size": TINY_LATENT,
        "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D"],
        "up_block_types": ["CrossAttnUpBlock2D", "UpBlock2D"],
        "block_out_channels": [32, 32],
        "layers_per_block": 1,
        "cross_attention_dim": 32,
        "attention_head_dim": 4,
        "norm_num_groups": 8,
    },
)
SDXL_CONFIG = {
    "sample_size": 128,
    "in_channels": 4,
    "out_channels": 4,
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
    "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
    "block_out_channels": [320, 640, 1280],
    "layers_per_block": 2,
    "transformer_layers_per_block": [1, 2, 10],
    "attention_head_dim": [5, 10, 20],
    "cross_attention_dim": 2048,
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
    "norm_num_groups": 32,
}
TINY_SDXL = SD_UNET.tiny | {
    "transformer_layers_per_block": 1,
    "cross_attention_dim": 64,
    "addition_time_embed_dim": 8,
    "projection_class_embeddings_input_dim": 6 * 8 + 32,
}
SDXL_UNET = Component("UNet2DConditionModel", SDXL_CONFIG, TINY_SDXL)
SDXL_TURBO_UNET = Component("UNet2DConditionModel", SDXL_CONFIG | {"sample_size": 64}, TINY_SDXL)
SD3_TRANSFORMER = Component(
    "SD3Transformer2DModel",
    {
        "sample_size": 128,
        "patch_size": 2,
        "in_channels": 16,
        "out_channels": 16,
        "num_layers": 24,
        "num_attention_heads": 24,
        "attention_head_dim": 64,
        "joint_attention_dim": 4096,
        "caption_projection_dim": 1536,
        "pooled_projection_dim": 2048,
        "pos_embed_max_size": 192,
    },
    {
        "sample_size": TINY_LATENT,
        "in_channels": 4,
        "out_channels": 4,
        "num_layers": 2,
        "num_attention_heads": 4,
        "attention_head_dim": 8,
        "joint_attention_dim": 64,
        "caption_projection_dim": 32,
        "pooled_projection_dim": 64,
        "pos_embed_max_size": 16,
    },
)
FLUX_TRANSFORMER = Component(
    "FluxTransformer2DModel",
    {
        "patch_size": 1,
        "in_channels": 64,
        "num_layers": 19,
        "num_single_layers": 38,
        "num_attention_heads": 24,
        "attention_head_dim": 128,
        "joint_attention_dim": 4096,
        "pooled_projection_dim": 768,
        "guidance_embeds": False,
        "axes_dims_rope": [16, 56, 56],
    },
    {
        "in_channels": 16,
        "num_layers": 1,
        "num_single_layers": 1,
        "num_attention_heads": 2,
        "attention_head_dim": 16,
        "joint_attention_dim": 64,
        "pooled_projection_dim": 32,
        "axes_dims_rope": [4, 4, 8],
    },
)
Z_IMAGE_TRANSFORMER = Component(
    "ZImageTransformer2DModel",
    {
        "all_patch_size": [2],
        "all_f_patch_size": [1],
        "in_channels": 16,
        "dim": 3840,
        "n_layers": 30,
        "n_refiner_layers": 2,
        "n_heads": 30,
        "n_kv_heads": 30,
        "cap_feat_dim": 2560,
        "axes_dims": [32, 48, 48],
        "axes_lens": [1536, 512, 512],
    },
    {
        "in_channels": 4,
        "dim": 32,
        "n_layers": 2,
        "n_refiner_layers": 1,
        "n_heads": 2,
        "n_kv_heads": 2,
        "cap_feat_dim": 32,
        "axes_dims": [4, 6, 6],
        "axes_lens": [512, 64, 64],
    },
)
SANA_TRANSFORMER = Component(
    "SanaTransformer2DModel",
    {
        "sample_size": 32,
        "patch_size": 1,
        "in_channels": 32,
        "out_channels": 32,
        "num_layers": 20,
        "num_attention_heads": 70,
        "attention_head_dim": 32,
        "num_cross_attention_heads": 20,
        "cross_attention_head_dim": 112,
        "cross_attention_dim": 2240,
        "caption_channels": 2304,
        "mlp_ratio": 2.5,
    },
    {
        "sample_size": TINY_LATENT,
        "in_channels": 4,
        "out_channels": 4,
        "num_layers": 2,
        "num_attention_heads": 2,
        "attention_head_dim": 16,
        "num_cross_attention_heads": 2,
        "cross_attention_head_dim": 16,
        "cross_attention_dim": 32,
        "caption_channels": 32,
    },
)

DIFFUSION = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "num_train_timesteps": 1000}
TWO_CLIP = {
    "text_encoder": CLIP_TEXT,
    "text_encoder_2": Component("CLIPTextModelWithProjection", OPEN_CLIP_G, TINY_TEXT),
}
TWO_CLIP_TOKENIZERS = {"tokenizer": clip_tokenizer, "tokenizer_2": clip_tokenizer}
FLOW = "FlowMatchEulerDiscreteScheduler"

CHECKPOINTS = {
    "sdxl_turbo": Checkpoint(
        "stabilityai/sdxl-turbo",
        "StableDiffusionXLPipeline",
        ("unet", SDXL_TURBO_UNET),
        SDXL_VAE,
        TWO_CLIP,
        ("EulerAncestralDiscreteScheduler", DIFFUSION | {"timestep_spacing": "trailing"}),
        TWO_CLIP_TOKENIZERS,
        steps=4,
        options={"add_watermarker": False},
    ),
    "sd15": Checkpoint(
        "stable-diffusion-v1-5/stable-diffusion-v1-5",
        "StableDiffusionPipeline",
        ("unet", SD_UNET),
        SD_VAE,
        {"text_encoder": CLIP_TEXT},
        ("DDIMScheduler", DIFFUSION | {"steps_offset": 1, "clip_sample": False, "set_alpha_to_one": False}),
        {"tokenizer": clip_tokenizer},
        options={"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False},
    ),
    "sd3": Checkpoint(
        "stabilityai/stable-diffusion-3-medium-diffusers",
        "StableDiffusion3Pipeline",
        ("transformer", SD3_TRANSFORMER),
        SD3_VAE,
        {
            "text_encoder": Component("CLIPTextModelWithProjection", CLIP_L, TINY_TEXT),
            "text_encoder_2": TWO_CLIP["text_encoder_2"],
            "text_encoder_3": T5_XXL,
        },
        (FLOW, {"shift": 3.0}),
        {**TWO_CLIP_TOKENIZERS, "tokenizer_3": t5_tokenizer},
    ),
    "flux_schnell": Checkpoint(
        "black-forest-labs/FLUX.1-schnell",
        "FluxPipeline",
        ("transformer", FLUX_TRANSFORMER),
        FLUX_VAE,
        {"text_encoder": CLIP_TEXT, "text_encoder_2": T5_XXL},
        (FLOW, {"shift": 1.0}),
        {"tokenizer": clip_tokenizer, "tokenizer_2": t5_tokenizer},
        steps=4,
    ),
    "sana": Checkpoint(
        "Efficient-Large-Model/Sana_1600M_1024px_diffusers",
        "SanaPipeline",
        ("transformer", SANA_TRANSFORMER),
        SANA_VAE,
        {"text_encoder": GEMMA2_2B},
        (FLOW, {"shift": 3.0}),
        {"tokenizer": chat_tokenizer},
    ),
    "z_image_turbo": Checkpoint(
        "Tongyi-MAI/Z-Image-Turbo",
        "ZImagePipeline",
        ("transformer", Z_IMAGE_TRANSFORMER),
        FLUX_VAE,
        {"text_encoder": QWEN3_4B},
        (FLOW, {"shift": 3.0}),
        {"tokenizer": chat_tokenizer},
        steps=8,
    ),
    "sdxl": Checkpoint(
        "stabilityai/stable-diffusion-xl-base-1.0",
        "StableDiffusionXLPipeline",
        ("unet", SDXL_UNET),
        SDXL_VAE,
        TWO_CLIP,
        (
            "EulerDiscreteScheduler",
            DIFFUSION | {"steps_offset": 1, "timestep_spacing": "leading", "use_karras_sigmas": False},
        ),
        TWO_CLIP_TOKENIZERS,
        options={"add_watermarker": False},
    ),
}
"""The architectures of ``benchmarks.full_size``, in the order in which they are measured."""
