"""The networks of published models at their full size with random weights: speed does not depend on the weights.

Made on the GPU, in bfloat16, and saved like any checkpoint. The tokenizers are those of the tiny checkpoints: how many
tokens there are matters to speed, not which.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, EulerDiscreteScheduler, StableDiffusionXLPipeline, UNet2DConditionModel
from transformers import (
    BlipConfig,
    BlipForConditionalGeneration,
    BlipProcessor,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
)
from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil

from tests.support.checkpoints import bert_tokenizer, clip_tokenizer

PROMPT_TOKENS = 77


def stable_diffusion_xl(folder: Path, device: str = "cuda") -> Path:
    """SDXL 1.0: a UNet of 2.6 billion parameters, both text encoders, the autoencoder; makes 1024×1024."""
    with torch.device(device):
        pipeline = StableDiffusionXLPipeline(
            vae=sdxl_autoencoder(),
            text_encoder=CLIPTextModel(_text(768, 12, 12, 3072, "quick_gelu", projection=768)),
            text_encoder_2=CLIPTextModelWithProjection(_text(1280, 32, 20, 5120, "gelu", projection=1280)),
            tokenizer=clip_tokenizer(PROMPT_TOKENS),
            tokenizer_2=clip_tokenizer(PROMPT_TOKENS),
            unet=sdxl_unet(),
            scheduler=EulerDiscreteScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear"),
        )
    pipeline.to(torch.bfloat16).save_pretrained(folder)
    return folder


def sdxl_unet() -> UNet2DConditionModel:
    return UNet2DConditionModel(
        sample_size=128,
        in_channels=4,
        out_channels=4,
        block_out_channels=(320, 640, 1280),
        layers_per_block=2,
        attention_head_dim=(5, 10, 20),
        transformer_layers_per_block=(1, 2, 10),
        cross_attention_dim=2048,
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=256,
        projection_class_embeddings_input_dim=1280 + 6 * 256,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    )


def sdxl_autoencoder() -> AutoencoderKL:
    return AutoencoderKL(
        block_out_channels=(128, 256, 512, 512),
        layers_per_block=2,
        latent_channels=4,
        sample_size=1024,
        scaling_factor=0.13025,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
    )


def blip_large(folder: Path, device: str = "cuda") -> Path:
    """BLIP large, the captioner: a ViT-L of 384×384 pixels and a decoder of 12 layers, 470 million parameters."""
    tokenizer = bert_tokenizer()
    with torch.device(device):
        model = BlipForConditionalGeneration(blip_config(tokenizer))
    model.to(torch.bfloat16).save_pretrained(folder)
    processor = BlipImageProcessorPil(size={"height": 384, "width": 384})
    BlipProcessor(image_processor=processor, tokenizer=tokenizer).save_pretrained(folder)
    return folder


def blip_config(tokenizer: Any) -> BlipConfig:
    ids = tokenizer.convert_tokens_to_ids
    return BlipConfig(
        text_config={
            "vocab_size": 30524,
            "hidden_size": 768,
            "encoder_hidden_size": 1024,
            "intermediate_size": 3072,
            "num_hidden_layers": 12,
            "num_attention_heads": 12,
            "bos_token_id": ids("[DEC]"),
            "eos_token_id": ids("[SEP]"),
            "sep_token_id": ids("[SEP]"),
            "pad_token_id": ids("[PAD]"),
        },
        vision_config={
            "hidden_size": 1024,
            "intermediate_size": 4096,
            "num_hidden_layers": 24,
            "num_attention_heads": 16,
            "image_size": 384,
            "patch_size": 16,
        },
    )


def _text(width: int, layers: int, heads: int, inner: int, activation: str, projection: int) -> CLIPTextConfig:
    tokenizer = clip_tokenizer(PROMPT_TOKENS)
    return CLIPTextConfig(
        vocab_size=49408,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        hidden_size=width,
        intermediate_size=inner,
        num_attention_heads=heads,
        num_hidden_layers=layers,
        max_position_embeddings=PROMPT_TOKENS,
        projection_dim=projection,
        hidden_act=activation,
    )
