"""Checkpoints of the real architectures, small enough to be made in a moment: random weights, saved as people get them.

    folder = stable_diffusion_xl(tmp_path / "sdxl")       # then diffusers:FOLDER names it

Their pictures are noise and their sentences babble, but every line that a full-size checkpoint runs, they run.
Each builder seeds torch, so that a checkpoint is the same wherever it is made. Needs the extra `models`.
"""

from __future__ import annotations

import os
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"  # read when the libraries are first imported; tests need no hub

import torch
from diffusers import (
    AutoencoderKL,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
from peft import LoraConfig, get_peft_model_state_dict
from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE, WordLevel
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing
from transformers import (
    BertTokenizer,
    BlipConfig,
    BlipForConditionalGeneration,
    BlipProcessor,
    CLIPConfig,
    CLIPModel,
    CLIPProcessor,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    PreTrainedTokenizerFast,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
    Qwen2VLProcessor,
    SiglipConfig,
    SiglipModel,
    SiglipProcessor,
    T5Config,
    T5EncoderModel,
)
from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

from workers.engines.processors import images_only

PROMPT_TOKENS = 16
"""Tokens that the text encoders of the tiny generators and matchers take, beginning and end included."""

WORDS = ("a", "the", "black", "white", "red", "cat", "dog", "bird", "grass", "snow", "on", "in", "of", "and", "photo")


# ── text to image ─────────────────────────────────────────────────────────────────────────────────


def stable_diffusion(folder: Path) -> Path:
    """A UNet with one text encoder; makes 32×32."""
    torch.manual_seed(1)
    StableDiffusionPipeline(
        vae=_autoencoder(),
        text_encoder=CLIPTextModel(_text_config()),
        tokenizer=clip_tokenizer(),
        unet=_unet(cross_attention_dim=32),
        scheduler=EulerDiscreteScheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).save_pretrained(folder)
    return folder


def checked_stable_diffusion(folder: Path) -> Path:
    """A UNet with a safety checker, which looks at the pictures that were made; this one lets all pass."""
    pipeline = StableDiffusionPipeline.from_pretrained(stable_diffusion(folder), safety_checker=None)
    vision = {"hidden_size": 32, "intermediate_size": 37, "num_hidden_layers": 1, "num_attention_heads": 4}
    vision |= {"image_size": 32, "patch_size": 8}
    checker = StableDiffusionSafetyChecker(CLIPConfig(vision_config=vision, projection_dim=32))
    for thresholds in (checker.concept_embeds_weights, checker.special_care_embeds_weights):
        torch.nn.init.constant_(thresholds, 2.0)  # no cosine is as large
    processor = CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    pipeline.register_modules(safety_checker=checker, feature_extractor=processor)
    pipeline.save_pretrained(folder)
    return folder


def stable_diffusion_xl(folder: Path) -> Path:
    """A UNet with two text encoders, pooled text and size conditions; makes 32×32."""
    torch.manual_seed(2)
    StableDiffusionXLPipeline(
        vae=_autoencoder(),
        text_encoder=CLIPTextModel(_text_config()),
        text_encoder_2=CLIPTextModelWithProjection(_text_config()),
        tokenizer=clip_tokenizer(),
        tokenizer_2=clip_tokenizer(),
        unet=_sdxl_unet(),
        scheduler=EulerDiscreteScheduler(),
    ).save_pretrained(folder)
    return folder


def stable_diffusion_3(folder: Path) -> Path:
    """A diffusion transformer with three text encoders, one of them T5; makes 32×32, in steps of 4."""
    torch.manual_seed(3)
    StableDiffusion3Pipeline(
        transformer=SD3Transformer2DModel(
            sample_size=16,
            patch_size=2,
            in_channels=4,
            num_layers=1,
            attention_head_dim=8,
            num_attention_heads=4,
            joint_attention_dim=64,
            caption_projection_dim=32,
            pooled_projection_dim=64,
            out_channels=4,
            pos_embed_max_size=32,
        ),
        vae=_autoencoder(shift_factor=0.06),
        text_encoder=CLIPTextModelWithProjection(_text_config()),
        tokenizer=clip_tokenizer(),
        text_encoder_2=CLIPTextModelWithProjection(_text_config()),
        tokenizer_2=clip_tokenizer(),
        text_encoder_3=T5EncoderModel(T5Config(vocab_size=64, d_model=64, d_kv=8, d_ff=64, num_layers=1, num_heads=4)),
        tokenizer_3=_word_tokenizer(512),
        scheduler=FlowMatchEulerDiscreteScheduler(),
    ).save_pretrained(folder)
    return folder


def flux(folder: Path) -> Path:
    """A diffusion transformer whose latents are a sequence of patches; makes 32×32."""
    torch.manual_seed(9)
    FluxPipeline(
        transformer=FluxTransformer2DModel(
            patch_size=1,
            in_channels=16,
            num_layers=1,
            num_single_layers=1,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=64,
            pooled_projection_dim=32,
            axes_dims_rope=(4, 4, 8),
        ),
        vae=_autoencoder(shift_factor=0.1),
        text_encoder=CLIPTextModel(_text_config()),
        tokenizer=clip_tokenizer(),
        text_encoder_2=T5EncoderModel(T5Config(vocab_size=64, d_model=64, d_kv=8, d_ff=64, num_layers=1, num_heads=4)),
        tokenizer_2=_word_tokenizer(512),
        scheduler=FlowMatchEulerDiscreteScheduler(),
    ).save_pretrained(folder)
    return folder


def _unet(**conditions: object) -> UNet2DConditionModel:
    return UNet2DConditionModel(
        sample_size=16,
        in_channels=4,
        out_channels=4,
        block_out_channels=(32, 64),
        layers_per_block=1,
        norm_num_groups=8,
        attention_head_dim=(2, 4),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        use_linear_projection=True,
        **conditions,
    )


def _sdxl_unet() -> UNet2DConditionModel:
    return _unet(
        cross_attention_dim=64,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=32 + 6 * 8,
    )


def _autoencoder(**config: float) -> AutoencoderKL:
    return AutoencoderKL(
        block_out_channels=(16, 32),
        norm_num_groups=8,
        latent_channels=4,
        sample_size=32,
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        **config,
    )


def _text_config() -> CLIPTextConfig:
    tokenizer = clip_tokenizer()
    return CLIPTextConfig(
        vocab_size=len(tokenizer),
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        hidden_size=32,
        intermediate_size=37,
        num_attention_heads=4,
        num_hidden_layers=2,
        max_position_embeddings=PROMPT_TOKENS,
        projection_dim=32,
    )


# ── image to text ─────────────────────────────────────────────────────────────────────────────────


def blip(folder: Path) -> Path:
    torch.manual_seed(4)
    tokenizer = bert_tokenizer()
    id_of = tokenizer.convert_tokens_to_ids
    config = BlipConfig(
        text_config={
            "vocab_size": len(tokenizer),
            "initializer_range": 0.5,  # or it would write the same of every picture
            "hidden_size": 32,
            "encoder_hidden_size": 32,
            "intermediate_size": 37,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "max_position_embeddings": 64,
            "bos_token_id": id_of("[DEC]"),
            "eos_token_id": id_of("[SEP]"),
            "sep_token_id": id_of("[SEP]"),
            "pad_token_id": id_of("[PAD]"),
        },
        vision_config={
            "initializer_range": 0.5,
            "hidden_size": 32,
            "intermediate_size": 37,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "image_size": 32,
            "patch_size": 8,
        },
        projection_dim=32,
    )
    BlipForConditionalGeneration(config).save_pretrained(folder)
    processor = BlipImageProcessorPil(size={"height": 32, "width": 32})
    BlipProcessor(image_processor=processor, tokenizer=tokenizer).save_pretrained(folder)
    return folder


CHAT = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>{% else %}{{ part['text'] }}{% endif %}"
    "{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def qwen2_vl(folder: Path) -> Path:
    """A chat model that reads images of any size, more tokens the larger."""
    torch.manual_seed(5)
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>"]
    special += ["<|image_pad|>", "<|video_pad|>"]
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    inner = Tokenizer(BPE({letter: id for id, letter in enumerate(letters)}, []))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=inner,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        additional_special_tokens=special,
        model_max_length=4096,
    )
    id_of = tokenizer.convert_tokens_to_ids
    config = Qwen2VLConfig(
        text_config={
            "vocab_size": len(tokenizer),
            "initializer_range": 0.5,
            "hidden_size": 32,
            "intermediate_size": 37,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 4096,
            "rope_parameters": {"type": "mrope", "mrope_section": [1, 1, 2], "rope_type": "default", "rope_theta": 1e4},
            "bos_token_id": id_of("<|endoftext|>"),
            "eos_token_id": id_of("<|im_end|>"),
            "pad_token_id": id_of("<|endoftext|>"),
        },
        vision_config={
            "initializer_range": 0.5,
            "depth": 2,
            "embed_dim": 32,
            "hidden_size": 32,
            "mlp_ratio": 2,
            "num_heads": 4,
            "patch_size": 4,
            "spatial_merge_size": 2,
            "temporal_patch_size": 2,
        },
        image_token_id=id_of("<|image_pad|>"),
        video_token_id=id_of("<|video_pad|>"),
        vision_start_token_id=id_of("<|vision_start|>"),
        vision_end_token_id=id_of("<|vision_end|>"),
    )
    Qwen2VLForConditionalGeneration(config).save_pretrained(folder)
    pixels = Qwen2VLImageProcessorPil(
        patch_size=4, merge_size=2, temporal_patch_size=2, size={"shortest_edge": 16 * 16, "longest_edge": 32 * 32}
    )
    processor = images_only(Qwen2VLProcessor)
    processor(image_processor=pixels, tokenizer=tokenizer, chat_template=CHAT).save_pretrained(folder)
    return folder


# ── image and text ────────────────────────────────────────────────────────────────────────────────


def clip(folder: Path) -> Path:
    torch.manual_seed(6)
    vision = {"hidden_size": 32, "intermediate_size": 37, "num_hidden_layers": 2, "num_attention_heads": 4}
    vision |= {"image_size": 32, "patch_size": 8}
    CLIPModel(
        CLIPConfig(text_config=_text_config().to_dict(), vision_config=vision, projection_dim=32)
    ).save_pretrained(folder)
    processor = CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    CLIPProcessor(image_processor=processor, tokenizer=clip_tokenizer()).save_pretrained(folder)
    return folder


def siglip(folder: Path) -> Path:
    torch.manual_seed(7)
    sizes = {"hidden_size": 32, "intermediate_size": 37, "num_hidden_layers": 2, "num_attention_heads": 4}
    text = sizes | {"vocab_size": 64, "max_position_embeddings": PROMPT_TOKENS, "projection_size": 32}
    text |= {"bos_token_id": 1, "eos_token_id": 1, "pad_token_id": 0}
    vision = sizes | {"image_size": 32, "patch_size": 8}
    SiglipModel(SiglipConfig(text_config=text, vision_config=vision)).save_pretrained(folder)
    processor = SiglipImageProcessorPil(size={"height": 32, "width": 32})
    SiglipProcessor(image_processor=processor, tokenizer=_word_tokenizer(PROMPT_TOKENS)).save_pretrained(folder)
    return folder


# ── tokenizers ────────────────────────────────────────────────────────────────────────────────────


def clip_tokenizer(longest: int = PROMPT_TOKENS) -> CLIPTokenizer:
    """A tokenizer whose tokens are the bytes, each in a second form for the end of a word, and the words of `WORDS`."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    merges = _merges([word for word in WORDS if len(word) > 1])
    tokens[-2:-2] = [left + right for left, right in merges]
    return CLIPTokenizer(vocab={token: id for id, token in enumerate(tokens)}, merges=merges, model_max_length=longest)


def bert_tokenizer() -> BertTokenizer:
    """A tokenizer as BLIP's: whole words, with a token of its own to begin a text."""
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[DEC]"]
    vocabulary = {word: id for id, word in enumerate([*special, *WORDS])}
    return BertTokenizer(vocab=vocabulary, additional_special_tokens=["[DEC]"])


def _merges(words: list[str]) -> list[tuple[str, str]]:
    """Byte pairs that make each of the words one token."""
    merges: dict[tuple[str, str], None] = {}
    for word in words:
        parts = [*word[:-1], f"{word[-1]}</w>"]
        while len(parts) > 1:
            merges[parts[0], parts[1]] = None
            parts[:2] = [parts[0] + parts[1]]
    return list(merges)


def _word_tokenizer(longest: int) -> PreTrainedTokenizerFast:
    """A tokenizer whose tokens are the words of `WORDS`, with an end as T5's and SigLIP's have."""
    inner = Tokenizer(
        WordLevel({word: id for id, word in enumerate(["<pad>", "</s>", "<unk>", *WORDS])}, unk_token="<unk>")
    )
    inner.pre_tokenizer = Whitespace()
    inner.post_processor = TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=inner, eos_token="</s>", pad_token="<pad>", unk_token="<unk>", model_max_length=longest
    )


def lora_for_stable_diffusion_xl(file: Path) -> Path:
    """A LoRA of the UNet's attention, as training scripts of diffusers save them."""
    torch.manual_seed(8)
    unet = _sdxl_unet()
    unet.add_adapter(LoraConfig(r=4, target_modules=["to_q", "to_v"], init_lora_weights=False))
    StableDiffusionXLPipeline.save_lora_weights(
        file.parent, unet_lora_layers=get_peft_model_state_dict(unet), weight_name=file.name, safe_serialization=True
    )
    return file
