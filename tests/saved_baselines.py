"""Tiny checkpoints of transformers' own classes with random weights, saved as folders, for tests of the baselines."""

import string

import torch
from transformers import (
    AddedToken,
    BartTokenizer,
    CLIPImageProcessor,
    CLIPTokenizer,
    Florence2Config,
    Florence2ForConditionalGeneration,
    Florence2Processor,
    Sam2Config,
    Sam2ImageProcessor,
    Sam2Model,
    Sam2Processor,
    Sam3Config,
    Sam3ImageProcessor,
    Sam3Model,
    Sam3Processor,
)


def save_florence(folder) -> str:
    """Letters and the location tokens; 17 image tokens of a 32 x 32 image."""
    torch.manual_seed(3)
    pieces = ["<s>", "<pad>", "</s>", "<unk>", *string.ascii_letters, *string.digits, *string.punctuation, "Ġ"]
    tokenizer = BartTokenizer(
        vocab={piece: index for index, piece in enumerate(pieces)},
        merges=[],
        extra_special_tokens={"image_token": "<image>"},
    )
    marks = ["<poly>", "</poly>", "<sep>", *(f"<loc_{index}>" for index in range(1000))]
    tokenizer.add_tokens([AddedToken(mark, special=True, normalized=False) for mark in marks], special_tokens=True)
    text = {"model_type": "bart", "vocab_size": len(tokenizer), "d_model": 16, "max_position_embeddings": 256}
    text |= {f"{part}_{name}": 1 for part in ("encoder", "decoder") for name in ("layers",)}
    text |= {f"{part}_attention_heads": 2 for part in ("encoder", "decoder")}
    text |= {"encoder_ffn_dim": 16, "decoder_ffn_dim": 16, "init_std": 0.5, "pad_token_id": 1, "bos_token_id": 0}
    text |= {"eos_token_id": 2, "decoder_start_token_id": 2, "forced_eos_token_id": 2}
    vision = {"depths": [1, 1], "patch_size": [7, 3], "patch_stride": [4, 2], "patch_padding": [3, 1]}
    vision |= {"patch_prenorm": [False, True], "embed_dim": [16, 16], "num_heads": [2, 2], "num_groups": [2, 2]}
    vision |= {"window_size": 4, "projection_dim": 16, "drop_path_rate": 0.0, "initializer_range": 0.3}
    config = Florence2Config(text_config=text, vision_config=vision, image_token_id=tokenizer.image_token_id)
    Florence2ForConditionalGeneration(config).save_pretrained(folder)
    images = CLIPImageProcessor(
        size={"height": 32, "width": 32},
        do_center_crop=False,
        resample=3,
        image_mean=[0.4, 0.5, 0.6],
        image_std=[0.2, 0.3, 0.4],
    )
    images.image_seq_length = 17
    Florence2Processor(images, tokenizer, post_processor_config={"polygons": {}}).save_pretrained(folder)
    return str(folder)


def save_sam3(folder) -> str:
    torch.manual_seed(4)
    pieces = [*string.ascii_lowercase, *string.digits, *string.punctuation]
    pieces = [*pieces, *(f"{piece}</w>" for piece in pieces), "<|startoftext|>", "<|endoftext|>"]
    vocabulary = {piece: index for index, piece in enumerate(pieces)}
    start, end = vocabulary["<|startoftext|>"], vocabulary["<|endoftext|>"]
    sizes = {"hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 16}
    backbone = sizes | {"model_type": "sam3_vit_model", "num_hidden_layers": 2, "image_size": 56, "patch_size": 14}
    backbone |= {"window_size": 2, "global_attn_indexes": [1], "pretrain_image_size": 28, "initializer_range": 0.2}
    words = {"vocab_size": len(pieces), "num_hidden_layers": 1, "projection_dim": 16, "max_position_embeddings": 32}
    words |= {"bos_token_id": start, "eos_token_id": end, "pad_token_id": end}
    levels = [[16, 16], [8, 8], [4, 4]]
    config = Sam3Config(
        vision_config={"backbone_config": backbone, "fpn_hidden_size": 16, "backbone_feature_sizes": levels},
        text_config=sizes | words,
        geometry_encoder_config=sizes | {"num_layers": 1},
        detr_encoder_config=sizes | {"num_layers": 1},
        detr_decoder_config=sizes | {"num_layers": 1, "num_queries": 6},
        mask_decoder_config={"hidden_size": 16, "num_attention_heads": 2},
    )
    model = Sam3Model(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(4)  # so that words and pixels matter
    model.save_pretrained(folder)
    images = Sam3ImageProcessor(size={"height": 56, "width": 56}, mask_size={"height": 16, "width": 16})
    Sam3Processor(images, CLIPTokenizer(vocab=vocabulary, merges=[])).save_pretrained(folder)
    return str(folder)


def save_sam2(folder) -> str:
    torch.manual_seed(5)
    backbone = {"model_type": "sam2_hiera_det_model", "hidden_size": 8, "num_attention_heads": 1}
    backbone |= {"image_size": [64, 64], "blocks_per_stage": [1, 1, 2, 1], "embed_dim_per_stage": [8, 16, 32, 64]}
    backbone |= {"num_attention_heads_per_stage": [1] * 4, "window_size_per_stage": [4] * 4}
    backbone |= {"global_attention_blocks": [3], "window_positional_embedding_background_size": [4, 4]}
    vision = {"backbone_config": backbone | {"initializer_range": 0.2}, "backbone_channel_list": [64, 32, 16, 8]}
    vision |= {"backbone_feature_sizes": [[16, 16], [8, 8], [4, 4]], "fpn_hidden_size": 16}
    config = Sam2Config(
        vision_config=vision,
        prompt_encoder_config={"hidden_size": 16, "image_size": 64, "patch_size": 16, "mask_input_channels": 4},
        mask_decoder_config={"hidden_size": 16, "mlp_dim": 16, "num_attention_heads": 2, "iou_head_hidden_dim": 16},
        initializer_range=0.2,
    )
    Sam2Model(config).save_pretrained(folder)
    images = Sam2ImageProcessor(size={"height": 64, "width": 64}, mask_size={"height": 16, "width": 16})
    Sam2Processor(images, target_size=64).save_pretrained(folder)
    return str(folder)
