"""Tiny random checkpoints of transformers' own vision-language classes, in the hub's layout; nothing is downloaded."""

import json
import string
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers as hf
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from tokenizers.processors import TemplateProcessing
from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil
from transformers.models.gemma3.image_processing_pil_gemma3 import Gemma3ImageProcessorPil
from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import GotOcr2ImageProcessorPil
from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil
from transformers.models.llava_next.image_processing_pil_llava_next import LlavaNextImageProcessorPil
from transformers.models.llava_onevision.image_processing_pil_llava_onevision import LlavaOnevisionImageProcessorPil
from transformers.models.pixtral.image_processing_pil_pixtral import PixtralImageProcessorPil
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil
from transformers.models.smolvlm.image_processing_pil_smolvlm import SmolVLMImageProcessorPil

SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
TEXT = {**SIZES, "num_key_value_heads": 2, "initializer_range": 0.2, "head_dim": 8}
VISION = {**SIZES, "image_size": 28, "patch_size": 7, "initializer_range": 0.2}
MROPE = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 1, 1]}
CHAT = """{% for message in messages %}{{ message['role'].upper() + ': ' }}{% for part in message['content'] %}\
{% if part['type'] == 'image' %}{{ '<image>' }}{% else %}{{ part['text'] }}{% endif %}{% endfor %}{{ ' ' }}\
{% endfor %}{% if add_generation_prompt %}{{ 'ASSISTANT: ' }}{% endif %}"""


def tokenizer(*special, bos=True, **named):
    """A tokenizer of single letters and marks, with a token that begins every text, as Llama's, unless not `bos`."""
    words = ["<pad>", "<s>", "</s>", *special, *string.printable]
    fast = Tokenizer(models.WordLevel({word: i for i, word in enumerate(dict.fromkeys(words))}, unk_token="<pad>"))
    fast.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    fast.decoder = decoders.Fuse()
    fast.add_special_tokens(list(special))
    if bos:
        fast.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return hf.PreTrainedTokenizerFast(
        tokenizer_object=fast, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<pad>",
        extra_special_tokens=named,
    )  # fmt: skip


def text_config(words, model_type="llama", **more):
    """The settings of a tiny decoder for a tokenizer."""
    ids = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    return {"model_type": model_type, "vocab_size": len(words), **ids, **TEXT, **more}


def llava(chat=CHAT, **more):
    """LLaVA 1.5: its processor cuts the frame's top and bottom off."""
    words = tokenizer("<image>", image_token="<image>")
    pictures = hf.CLIPImageProcessor(size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28})
    config = hf.LlavaConfig(
        vision_config={"model_type": "clip_vision_model", **VISION},
        text_config=text_config(words, **more),
        image_token_id=words.convert_tokens_to_ids("<image>"),
    )
    options = {"patch_size": 7, "vision_feature_select_strategy": "default", "num_additional_image_tokens": 1}
    return hf.LlavaForConditionalGeneration(config), hf.LlavaProcessor(pictures, words, **options, chat_template=chat)


def llava_sliding():
    """LLaVA over a Mistral with a sliding window that is shorter than a prompt."""
    return llava(None, model_type="mistral", sliding_window=8)


def llava_next():
    """LLaVA 1.6: tiles, a smaller whole image, and a token at the end of each row."""
    words = tokenizer("<image>", image_token="<image>")
    grids = [[28, 56], [56, 28], [56, 56]]
    crop = {"height": 28, "width": 28}
    pictures = LlavaNextImageProcessorPil(size={"shortest_edge": 28}, crop_size=crop, image_grid_pinpoints=grids)
    config = hf.LlavaNextConfig(
        vision_config={"model_type": "clip_vision_model", **VISION},
        text_config=text_config(words),
        image_token_id=words.convert_tokens_to_ids("<image>"),
        image_grid_pinpoints=grids,
    )
    options = {"patch_size": 7, "vision_feature_select_strategy": "default", "num_additional_image_tokens": 1}
    return hf.LlavaNextForConditionalGeneration(config), hf.LlavaNextProcessor(pictures, words, **options)


def llava_onevision():
    """LLaVA-OneVision: tiles of a SigLIP tower."""
    words = tokenizer("<image>", "<video>", image_token="<image>", video_token="<video>")
    grids, size = [[28, 28], [28, 56], [56, 56]], {"height": 28, "width": 28}
    config = hf.LlavaOnevisionConfig(
        vision_config={"model_type": "siglip_vision_model", "vision_use_head": False, **VISION},
        text_config=text_config(words, "qwen2"),
        image_token_id=words.convert_tokens_to_ids("<image>"),
        video_token_id=words.convert_tokens_to_ids("<video>"),
        image_grid_pinpoints=grids,
    )
    pictures = LlavaOnevisionImageProcessorPil(size=size, image_grid_pinpoints=grids)
    options = {"num_image_tokens": 16, "vision_feature_select_strategy": "full"}
    model = hf.LlavaOnevisionForConditionalGeneration(config)
    return model, ("LlavaOnevisionProcessor", pictures, words, options)


IDEFICS = ("<fake_token_around_image>", "<image>", "<global-img>", "<end_of_utterance>")


def idefics3():
    """Idefics3, of SmolVLM-256M."""
    words = tokenizer(*IDEFICS, image_token="<image>")
    config = hf.Idefics3Config(
        vision_config=VISION, text_config=text_config(words), scale_factor=2, pad_token_id=0,
        image_token_id=words.convert_tokens_to_ids("<image>"),
    )  # fmt: skip
    pictures = Idefics3ImageProcessorPil(size={"longest_edge": 56}, max_image_size={"longest_edge": 28})
    return hf.Idefics3ForConditionalGeneration(config), hf.Idefics3Processor(pictures, words, image_seq_len=4)


def smolvlm():
    """SmolVLM 2."""
    words = tokenizer(*IDEFICS, "<video>", image_token="<image>", video_token="<video>")
    config = hf.SmolVLMConfig(
        vision_config=VISION, text_config=text_config(words), scale_factor=2, pad_token_id=0,
        image_token_id=words.convert_tokens_to_ids("<image>"),
    )  # fmt: skip
    pictures = SmolVLMImageProcessorPil(size={"longest_edge": 56}, max_image_size={"longest_edge": 28})
    return hf.SmolVLMForConditionalGeneration(config), ("SmolVLMProcessor", pictures, words, {"image_seq_len": 4})


QWEN = ("<|image_pad|>", "<|video_pad|>", "<|vision_start|>", "<|vision_end|>")


def _qwen(config_class, model_class, processor, patch_size, vision, mrope):
    words = tokenizer(
        *QWEN, bos=False, image_token=QWEN[0], video_token=QWEN[1], vision_start_token=QWEN[2], vision_end_token=QWEN[3]
    )
    ids = dict(
        zip(("image", "video", "vision_start", "vision_end"), words.convert_tokens_to_ids(list(QWEN)), strict=True)
    )
    text = text_config(words, rope_parameters=mrope)
    del text["model_type"]
    config = config_class(
        vision_config={"depth": 2, "num_heads": 4, "intermediate_size": 48, "patch_size": patch_size,
                       "spatial_merge_size": 2, "temporal_patch_size": 2, "initializer_range": 0.2, **vision},
        text_config=text, **{f"{name}_token_id": number for name, number in ids.items()},
    )  # fmt: skip
    pictures = Qwen2VLImageProcessorPil(
        size={"shortest_edge": 64, "longest_edge": 64 * 12}, patch_size=patch_size, merge_size=2, temporal_patch_size=2
    )
    return model_class(config), (processor, pictures, words, {})


def qwen2_vl():
    """Qwen2-VL: positions of three numbers; the connector ends its tower."""
    vision = {"embed_dim": 32, "hidden_size": 32, "mlp_ratio": 1}
    return _qwen(hf.Qwen2VLConfig, hf.Qwen2VLForConditionalGeneration, "Qwen2VLProcessor", 4, vision, MROPE)


def qwen2_5_vl():
    """Qwen2.5-VL: attention in windows of the image."""
    vision = {"hidden_size": 32, "out_hidden_size": 32, "window_size": 16, "fullatt_block_indexes": [1]}
    return _qwen(hf.Qwen2_5_VLConfig, hf.Qwen2_5_VLForConditionalGeneration, "Qwen2_5_VLProcessor", 4, vision, MROPE)


def qwen3_vl():
    """Qwen3-VL: features of the tower enter the decoder's first layers too."""
    vision = {"hidden_size": 32, "out_hidden_size": 32, "num_position_embeddings": 64, "deepstack_visual_indexes": [0]}
    mrope = {**MROPE, "mrope_interleaved": True}
    return _qwen(hf.Qwen3VLConfig, hf.Qwen3VLForConditionalGeneration, "Qwen3VLProcessor", 4, vision, mrope)


def paligemma(text="gemma", **more):
    """PaliGemma: image and prompt attend in both directions."""
    words = tokenizer("<image>", bos=False, image_token="<image>")
    pictures = SiglipImageProcessorPil(size={"height": 28, "width": 28}, image_seq_length=16)
    pictures.image_seq_length = 16
    processor = hf.PaliGemmaProcessor(pictures, words)
    config = hf.PaliGemmaConfig(
        vision_config={"model_type": "siglip_vision_model", "vision_use_head": False, "projection_dim": 32, **VISION},
        text_config=text_config(processor.tokenizer, text, **more),
        image_token_id=words.convert_tokens_to_ids("<image>"),
        projection_dim=32,
    )
    return hf.PaliGemmaForConditionalGeneration(config), processor


def paligemma2():
    """PaliGemma 2: a Gemma 2 with a sliding window in every second layer."""
    return paligemma("gemma2", sliding_window=8, query_pre_attn_scalar=8)


def gemma3():
    """Gemma 3: the image attends in both directions, and five of six layers look through a window."""
    names = {"image_token": "<image_soft_token>", "boi_token": "<start_of_image>", "eoi_token": "<end_of_image>"}
    words = tokenizer(*names.values(), **names)
    ids = words.convert_tokens_to_ids(list(names.values()))
    pictures = Gemma3ImageProcessorPil(size={"height": 28, "width": 28})
    text = text_config(words, "gemma3_text", sliding_window=8, query_pre_attn_scalar=8,
                       layer_types=["sliding_attention", "full_attention"])  # fmt: skip
    config = hf.Gemma3Config(
        vision_config={"model_type": "siglip_vision_model", "vision_use_head": False, **VISION}, text_config=text,
        image_token_id=ids[0], boi_token_id=ids[1], eoi_token_id=ids[2], mm_tokens_per_image=4,
    )  # fmt: skip
    return hf.Gemma3ForConditionalGeneration(config), hf.Gemma3Processor(pictures, words, image_seq_length=4)


def internvl():
    """InternVL: tiles; its sizes are pairs."""
    names = {"start_image_token": "<img>", "end_image_token": "</img>", "context_image_token": "<IMG_CONTEXT>",
             "video_token": "<video>"}  # fmt: skip
    words = tokenizer(*names.values(), bos=False, **names)
    vision = {**VISION, "image_size": [28, 28], "patch_size": [7, 7]}
    config = hf.InternVLConfig(
        vision_config=vision, text_config=text_config(words, "qwen2"), downsample_ratio=0.5,
        image_token_id=words.convert_tokens_to_ids("<IMG_CONTEXT>"),
    )  # fmt: skip
    pictures = GotOcr2ImageProcessorPil(size={"height": 28, "width": 28}, crop_to_patches=True, max_patches=4)
    processor = ("InternVLProcessor", pictures, words, {"image_seq_length": 4})
    return hf.InternVLForConditionalGeneration(config), processor


def pixtral():
    """Pixtral: LLaVA around a tower of any size, with a token at the end of each row."""
    names = {"image_token": "[IMG]", "image_break_token": "[IMG_BREAK]", "image_end_token": "[IMG_END]"}
    words = tokenizer(*names.values(), **names)
    pictures = PixtralImageProcessorPil(size={"longest_edge": 28}, patch_size=7)
    config = hf.LlavaConfig(
        vision_config={"model_type": "pixtral", **VISION, "head_dim": 8},
        text_config=text_config(words, "mistral", sliding_window=None),
        image_token_id=words.convert_tokens_to_ids("[IMG]"), vision_feature_layer=-1,
        vision_feature_select_strategy="full",
    )  # fmt: skip
    processor = ("PixtralProcessor", pictures, words, {"patch_size": 7})
    return hf.LlavaForConditionalGeneration(config), processor


def mistral3():
    """Mistral 3: Pixtral's tower, four patches a token."""
    names = {"image_token": "[IMG]", "image_break_token": "[IMG_BREAK]", "image_end_token": "[IMG_END]"}
    words = tokenizer(*names.values(), **names)
    pictures = PixtralImageProcessorPil(size={"longest_edge": 56}, patch_size=7)
    config = hf.Mistral3Config(
        vision_config={"model_type": "pixtral", **VISION, "image_size": 56, "head_dim": 8},
        text_config=text_config(words, "mistral", sliding_window=None),
        image_token_id=words.convert_tokens_to_ids("[IMG]"), spatial_merge_size=2, vision_feature_layer=-1,
    )  # fmt: skip
    processor = ("PixtralProcessor", pictures, words, {"patch_size": 7, "spatial_merge_size": 2})
    return hf.Mistral3ForConditionalGeneration(config), processor


def _blip2(config_class, model_class, processor, words, qformer, vision):
    config = config_class(
        vision_config={"model_type": vision, **VISION, "intermediate_size": 48},
        qformer_config={**SIZES, "model_type": qformer, "encoder_hidden_size": 32, "vocab_size": len(words)},
        text_config=text_config(words, "opt", ffn_dim=48, max_position_embeddings=256, word_embed_proj_dim=32),
        num_query_tokens=4, image_token_index=words.convert_tokens_to_ids("<image>"),
    )  # fmt: skip
    return model_class(config), processor


def fastvlm():
    """FastVLM: its tower, convolutions and a last stage of attention, is timm's."""
    words = tokenizer("<image>", bos=False, image_token="<image>")
    pictures = hf.CLIPImageProcessor(
        size={"shortest_edge": 128}, crop_size={"height": 128, "width": 128}, image_mean=[0, 0, 0], image_std=[1, 1, 1]
    )
    stages = {"layers": [1] * 5, "embed_dims": [8, 8, 16, 32, 64], "mlp_ratios": [2] * 5, "inference_mode": True}
    vision = {"model_type": "timm_wrapper", "architecture": "fastvit_mci3", "hidden_size": 128, "do_pooling": True,
              "global_pool": "avg", "model_args": stages, "initializer_range": 0.2}  # fmt: skip
    config = hf.FastVlmConfig(
        vision_config=vision, text_config=text_config(words, "qwen2"), image_seq_length=4,
        image_token_id=words.convert_tokens_to_ids("<image>"),
    )  # fmt: skip
    options = {"patch_size": 64, "vision_feature_select_strategy": "full", "num_additional_image_tokens": 0}
    return hf.FastVlmForConditionalGeneration(config), hf.LlavaProcessor(pictures, words, **options)


def blip2():
    """BLIP-2: queries between a frozen tower and a frozen decoder."""
    words = tokenizer("<image>", image_token="<image>")
    pictures = BlipImageProcessorPil(size={"height": 28, "width": 28})
    processor = hf.Blip2Processor(pictures, words, num_query_tokens=4)
    model = hf.Blip2ForConditionalGeneration
    return _blip2(hf.Blip2Config, model, processor, words, "blip_2_qformer", "blip_2_vision_model")


def instructblip():
    """InstructBLIP: the queries read the question too."""
    words = tokenizer("<image>", image_token="<image>")
    pictures = BlipImageProcessorPil(size={"height": 28, "width": 28})
    reader = tokenizer("<image>")
    processor = hf.InstructBlipProcessor(pictures, words, reader, num_query_tokens=4)
    model = hf.InstructBlipForConditionalGeneration
    return _blip2(hf.InstructBlipConfig, model, processor, words, "instructblip_qformer", "instructblip_vision_model")


Build = Callable[[], tuple[hf.PreTrainedModel, Any]]
CLASSES: dict[str, Build] = {
    "llava": llava, "llava-sliding": llava_sliding, "llava-next": llava_next, "llava-onevision": llava_onevision,
    "idefics3": idefics3, "smolvlm2": smolvlm, "qwen2-vl": qwen2_vl, "qwen2.5-vl": qwen2_5_vl, "qwen3-vl": qwen3_vl,
    "paligemma": paligemma, "paligemma2": paligemma2, "gemma3": gemma3, "internvl": internvl, "pixtral": pixtral,
    "mistral3": mistral3, "fastvlm": fastvlm, "blip2": blip2, "instructblip": instructblip,
}  # fmt: skip


PACKAGES = {"pixtral": "torchvision", "mistral3": "torchvision", "fastvlm": "timm"}  # that a class is not made without


def write(name: str, directory: Path) -> Path:
    """Write the checkpoint of a class as a download would leave it; return its directory."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model, processor = CLASSES[name]()
        for parameter in model.parameters():  # Gemma 3's connector starts as 0
            if parameter.ndim > 1 and not parameter.any():
                torch.nn.init.normal_(parameter, std=0.2)
    model.save_pretrained(directory)
    if not isinstance(processor, tuple):
        processor.save_pretrained(directory)
        return directory
    # a processor that also takes videos is made with torchvision only; its parts are written without
    name_of_class, pictures, words, options = processor
    for part in (pictures, words):
        part.save_pretrained(directory)
    (directory / "processor_config.json").write_text(json.dumps({"processor_class": name_of_class, **options}))
    return directory
