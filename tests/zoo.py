"""Tiny networks of the architectures in transformers, with seeded random weights, offline: what pruning must pass through.

Hidden size 32, 2 layers, 4 heads (2 key/value heads where it can), feed-forward size 64, 100 words and pictures of 32 or 64
pixels, unless the architecture asks for more; attention is the architecture's default. The batch is dynamic.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import transformers
from torch import Tensor
from zoo_build import TOKENS, WORDS, Inputs, build, pixels, signal, words

from lighten.core.model import Model

KINDS = ("vision", "text", "speech", "multimodal")
LABELS = 5
Settings = dict[str, Any]


@dataclass(frozen=True)
class Entry:
    """name: the row's key. kind: one of KINDS. build: a fresh model, the same one at every call."""

    name: str
    kind: str
    build: Callable[[], Model]


def by_name(name: str) -> Entry:
    """The entry of that name. Raises KeyError."""
    return {entry.name: entry for entry in ENTRIES}[name]


def _vision(name: str, architecture: str, edge: int = 32, *, output: str = "logits", **settings: Any) -> Entry:
    settings = {"num_labels": LABELS, **settings}
    inputs = {"pixel_values": partial(pixels, edge)}
    return Entry(name, "vision", partial(build, name, architecture, inputs, output=output, settings=settings))


def _text(name: str, architecture: str, *, masked: bool = True, output: str = "logits", **settings: Any) -> Entry:
    settings = {**_SPECIAL, "num_labels": LABELS, **settings}
    mask = {"attention_mask": partial(torch.ones, 2, TOKENS, dtype=torch.int64)} if masked else {}
    inputs: Inputs = {"input_ids": words, **mask}
    return Entry(name, "text", partial(build, name, architecture, inputs, output=output, settings=settings))


def _translate(name: str, architecture: str, **settings: Any) -> Entry:
    settings = {**_SPECIAL, "decoder_start_token_id": 1, **settings}
    inputs: Inputs = {"input_ids": words, "decoder_input_ids": partial(words, 7)}
    return Entry(name, "text", partial(build, name, architecture, inputs, output="logits", settings=settings))


def _speech(name: str, architecture: str, input_: tuple[str, tuple[int, ...]], **settings: Any) -> Entry:
    argument, shape = input_
    output = settings.pop("output", "logits")
    settings = {"num_labels": LABELS, **settings}
    inputs: Inputs = {argument: partial(signal, *shape)}
    if output == "decoder":
        inputs, output = {**inputs, "decoder_input_ids": partial(words, 7)}, "logits"
    return Entry(name, "speech", partial(build, name, architecture, inputs, output=output, settings=settings))


def _pair(name: str, architecture: str, second: tuple[str, Callable[[], Tensor]], *, output: str, **settings: Any) -> Entry:
    inputs: Inputs = {"input_ids": partial(words, 8), second[0]: second[1]}
    return Entry(name, "multimodal", partial(build, name, architecture, inputs, output=output, settings=settings))


_SPECIAL: Settings = {"vocab_size": WORDS, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
_ENCODER: Settings = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
_BERT: Settings = {**_ENCODER, "max_position_embeddings": 40}
_GQA: Settings = {**_BERT, "num_key_value_heads": 2}
_VIT: Settings = {**_ENCODER, "image_size": 32, "patch_size": 8}
_SEQ2SEQ: Settings = {
    **{"d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4, "decoder_attention_heads": 4},
    **{"encoder_ffn_dim": 64, "decoder_ffn_dim": 64, "max_position_embeddings": 40},
}
_T5: Settings = {"d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4}
_STAGES: Settings = {"hidden_sizes": [16, 32], "depths": [2, 2]}
_PYRAMID: Settings = {"hidden_sizes": [8, 16, 24, 32], "depths": [1, 1, 1, 1]}
_ATTENTIVE: Settings = {**_PYRAMID, "num_attention_heads": [1, 2, 4, 4]}
_SHIFTED: Settings = {
    "image_size": 32,
    "patch_size": 2,
    "embed_dim": 16,
    "depths": [2, 2],
    "num_heads": [2, 4],
    "window_size": 4,
}
_WAVE: Settings = {
    **{**_ENCODER, "conv_dim": [16, 16, 16], "conv_stride": [5, 4, 2], "conv_kernel": [10, 8, 3]},
    **{"num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 2, "classifier_proj_size": 24},
}
_SAMPLES = ("input_values", (1600,))
_TEXT_TOWER: Settings = {**_BERT, **_SPECIAL}
_TOWERS: Settings = {"text_config": _TEXT_TOWER, "vision_config": _VIT}
_REGNET: Settings = {"embedding_size": 8, "hidden_sizes": [16, 32], "depths": [1, 2], "groups_width": 8}
_TF: Settings = {"depth_multiplier": 0.25}
_EFFICIENT: Settings = {
    **{"width_coefficient": 0.25, "depth_coefficient": 1.0, "hidden_dim": 320, "in_channels": [32, 16, 40, 80]},
    **{"out_channels": [16, 40, 80, 112], "kernel_sizes": [3, 5, 3, 3], "strides": [1, 2, 2, 1]},
    **{"num_block_repeats": [1, 2, 1, 2], "expand_ratios": [1, 4, 4, 4]},
}
_CVT: Settings = {"embed_dim": [16, 32, 32], "num_heads": [1, 2, 4], "depth": [1, 2, 3], "mlp_ratio": [2.0, 2.0, 2.0]}
_HIERA: Settings = {
    "image_size": [32, 32],
    "patch_stride": [4, 4],
    "masked_unit_size": [2, 2],
    "query_stride": [2, 2],
    "num_query_pool": 1,
}
_BACKBONE: Any = transformers.ResNetConfig(  # type: ignore[call-arg]
    embedding_size=8, hidden_sizes=[8, 16, 24, 32], depths=[1, 1, 1, 1], layer_type="basic", out_indices=[1, 2, 3, 4]
)
_LEVIT: Settings = {
    **{"image_size": 64, "hidden_sizes": [32, 48, 64], "num_attention_heads": [2, 3, 4], "depths": [1, 1, 1]},
    "key_dim": [8, 8, 8],
}
_MOBILEVIT: Settings = {
    **{"image_size": 64, "hidden_sizes": [16, 24, 32], "neck_hidden_sizes": [8, 8, 16, 16, 24, 32, 48]},
    **{"num_attention_heads": 4, "expand_ratio": 2.0},
}
_SWIFTFORMER: Settings = {"embed_dims": [8, 16, 24, 32], "depths": [1, 1, 1, 2], "mlp_ratio": 2}
_FOCALNET: Settings = {
    **{"image_size": 32, "embed_dim": 16, "hidden_sizes": [16, 32], "depths": [1, 2], "focal_levels": [2, 2]},
    **{"focal_windows": [3, 3], "mlp_ratio": 2.0},
}
_YOLOS: Settings = {**_VIT, "image_size": [32, 32], "num_detection_tokens": 6}
_DPT: Settings = {
    **{**_VIT, "num_hidden_layers": 4, "backbone_out_indices": [0, 1, 2, 3], "neck_hidden_sizes": [8, 16, 24, 32]},
    "fusion_hidden_size": 16,
}
_DETR: Settings = {**_SEQ2SEQ, "num_queries": 6, "backbone_config": _BACKBONE}
_UPERNET: Settings = {"hidden_size": 24, "use_auxiliary_head": False, "backbone_config": _BACKBONE}
_MASKED: Inputs = {"pixel_values": partial(pixels, 32), "noise": partial(signal, 16)}
_FRAMES: Inputs = {"pixel_values": partial(signal, 2, 3, 32, 32)}
_VIDEO: Settings = {**_VIT, "num_frames": 2, "num_labels": LABELS}
_MAE: Settings = {
    **{**_VIT, "decoder_hidden_size": 32, "decoder_num_hidden_layers": 1, "decoder_num_attention_heads": 4},
    "decoder_intermediate_size": 64,
}
_FNET: Settings = {name: value for name, value in _BERT.items() if name != "num_attention_heads"}
_GPT_NEO: Settings = {
    **{"hidden_size": 32, "num_layers": 2, "num_heads": 4, "max_position_embeddings": 40, "window_size": 4},
    "attention_types": [[["global", "local"], 1]],
}
# transformers' own operator for experts, its default, can neither be saved as plain ATen nor written as ONNX
_BATCHED: Settings = {"experts_implementation": "batched_mm", "num_experts_per_tok": 2}
_EXPERTS: Settings = {**_BATCHED, "head_dim": 8, "moe_intermediate_size": 24, "num_experts": 4}
_STABLE: Settings = {"feat_extract_norm": "layer", "do_stable_layer_norm": True}
_DATA2VEC: Settings = {**_WAVE, "num_conv_pos_embeddings": 2, "conv_pos_kernel_size": 5}
_S2T: Settings = {
    **{**_SEQ2SEQ, **_SPECIAL, "conv_channels": 24, "input_feat_per_channel": 20, "max_source_positions": 64},
}
_DEEPSEEK: Settings = {
    **{**_BERT, "num_key_value_heads": 4, "moe_intermediate_size": 24, "n_routed_experts": 4, "kv_lora_rank": 16},
    **{"q_lora_rank": 24, "qk_rope_head_dim": 4, "v_head_dim": 8, "qk_nope_head_dim": 8, "n_group": 1, "topk_group": 1},
    **{**_BATCHED, "first_k_dense_replace": 1},
}
_W2V_BERT: Settings = {
    **{**_ENCODER, "feature_projection_input_dim": 20, "classifier_proj_size": 24, "conv_depthwise_kernel_size": 7},
}
_MEL = ("input_features", (20, 60))
_WHISPER: Settings = {
    **{**_SEQ2SEQ, **_SPECIAL, "num_mel_bins": 20, "max_source_positions": 30, "max_target_positions": 40},
    **{"decoder_start_token_id": 1, "begin_suppress_tokens": None},
}
_CLAP_AUDIO: Settings = {
    **{"window_size": 4, "num_mel_bins": 16, "spec_size": 32, "patch_size": 2, "patch_stride": [2, 2], "depths": [1, 1]},
    **{"num_attention_heads": [2, 4], "hidden_size": 32, "patch_embeds_hidden_size": 16, "num_hidden_layers": 2},
}
_XCLIP_VISION: Settings = {
    **{**_VIT, "num_frames": 2, "mit_hidden_size": 32, "mit_intermediate_size": 64, "mit_num_attention_heads": 4},
}
_CLAP: Settings = {"text_config": _TEXT_TOWER, "audio_config": _CLAP_AUDIO, "projection_dim": 24}
_XCLIP: Settings = {
    **{"text_config": _TEXT_TOWER, "vision_config": _XCLIP_VISION, "projection_dim": 32, "prompt_num_attention_heads": 4},
}

_VISION = (
    _vision("resnet-basic", "ResNetForImageClassification", **_STAGES, embedding_size=16, layer_type="basic"),
    _vision("resnet-bottleneck", "ResNetForImageClassification", **_STAGES, embedding_size=16, layer_type="bottleneck"),
    _vision("mobilenet-v1", "MobileNetV1ForImageClassification", **_TF),
    _vision("mobilenet-v2", "MobileNetV2ForImageClassification", **_TF),
    _vision("efficientnet", "EfficientNetForImageClassification", 64, **_EFFICIENT),
    _vision("regnet-x", "RegNetForImageClassification", **_REGNET, layer_type="x"),
    _vision("regnet-y", "RegNetForImageClassification", **_REGNET, layer_type="y"),
    _vision("convnext", "ConvNextForImageClassification", num_stages=2, **_STAGES),
    _vision("convnext-v2", "ConvNextV2ForImageClassification", num_stages=2, **_STAGES),
    _vision("vit", "ViTForImageClassification", **_VIT),
    _vision("deit", "DeiTForImageClassification", **_VIT),
    _vision("deit-distilled", "DeiTForImageClassificationWithTeacher", **_VIT),
    _vision("swin", "SwinForImageClassification", **_SHIFTED),
    _vision("swin-v2", "Swinv2ForImageClassification", **_SHIFTED),
    _vision("beit", "BeitForImageClassification", **_VIT, use_relative_position_bias=True),
    _vision("data2vec-vision", "Data2VecVisionForImageClassification", **_VIT, use_shared_relative_position_bias=True),
    _vision("segformer", "SegformerForImageClassification", 64, **_ATTENTIVE),
    _vision("segformer-segmentation", "SegformerForSemanticSegmentation", 64, **_ATTENTIVE, decoder_hidden_size=24),
    _vision("dinov2", "Dinov2ForImageClassification", **_VIT, mlp_ratio=2),
    _vision("dinov2-swiglu", "Dinov2ForImageClassification", **_VIT, mlp_ratio=2, use_swiglu_ffn=True),
    _vision("dinov3", "DINOv3ViTModel", output="pooler_output", **_VIT, num_register_tokens=2, use_gated_mlp=True),
    _vision("dinov2-registers", "Dinov2WithRegistersForImageClassification", **_VIT, mlp_ratio=2, num_register_tokens=2),
    _vision("poolformer", "PoolFormerForImageClassification", 64, **_PYRAMID, mlp_ratio=2.0),
    _vision("levit", "LevitForImageClassification", 64, **_LEVIT),
    _vision("mobilevit", "MobileViTForImageClassification", 64, **_MOBILEVIT),
    _vision("mobilevit-v2", "MobileViTV2ForImageClassification", 64, image_size=64, width_multiplier=0.25),
    _vision("cvt", "CvtForImageClassification", 64, **_CVT),
    _vision("pvt", "PvtForImageClassification", 64, **_ATTENTIVE, image_size=64),
    _vision("pvt-v2", "PvtV2ForImageClassification", 64, **_ATTENTIVE, image_size=64),
    _vision("bit", "BitForImageClassification", **_STAGES, embedding_size=16, num_groups=4),
    _vision("bit-bottleneck", "BitForImageClassification", **_STAGES, embedding_size=16, num_groups=4, layer_type="bottleneck"),
    _vision("swiftformer", "SwiftFormerForImageClassification", 64, **_SWIFTFORMER),
    _vision("focalnet", "FocalNetForImageClassification", **_FOCALNET),
    _vision("hiera", "HieraForImageClassification", **_HIERA, embed_dim=16, depths=[1, 2], num_heads=[2, 4]),
    _vision("vit-msn", "ViTMSNForImageClassification", **_VIT),
    _vision("yolos", "YolosForObjectDetection", **_YOLOS),
    _vision("clip-vision", "CLIPVisionModelWithProjection", output="image_embeds", **_VIT, projection_dim=24),
    _vision("siglip-vision", "SiglipVisionModel", output="pooler_output", **_VIT),
    _vision("dpt", "DPTForDepthEstimation", output="predicted_depth", **_DPT),
    _vision("detr", "DetrForObjectDetection", 64, **_DETR),
    _vision("upernet", "UperNetForSemanticSegmentation", 64, **_UPERNET),
    _vision("glpn", "GLPNForDepthEstimation", 64, output="predicted_depth", **_ATTENTIVE, decoder_hidden_size=16),
)

_PAIRED = (
    # the order in which patches are dropped is drawn by the network unless it is handed the noise
    Entry("vit-mae", "vision", partial(build, "vit-mae", "ViTMAEForPreTraining", _MASKED, output="logits", settings=_MAE)),
    Entry(
        "videomae",
        "vision",
        partial(build, "videomae", "VideoMAEForVideoClassification", _FRAMES, output="logits", settings=_VIDEO),
    ),
)

_TEXT = (
    _text("bert", "BertForSequenceClassification", **_BERT),
    _text("distilbert", "DistilBertForSequenceClassification", dim=32, n_layers=2, n_heads=4, hidden_dim=64),
    _text("roberta", "RobertaForSequenceClassification", **_BERT),
    _text("camembert", "CamembertForSequenceClassification", **_BERT),
    _text("xlm-roberta", "XLMRobertaForSequenceClassification", **_BERT),
    _text("albert", "AlbertForSequenceClassification", **_BERT, embedding_size=16),
    _text("electra", "ElectraForSequenceClassification", **_BERT, embedding_size=16),
    _text("deberta", "DebertaForSequenceClassification", **_BERT, relative_attention=True, pos_att_type=["c2p", "p2c"]),
    _text("deberta-v2", "DebertaV2ForSequenceClassification", **_BERT, relative_attention=True, pos_att_type=["c2p", "p2c"]),
    _text("mpnet", "MPNetForSequenceClassification", **_BERT),
    _text("mobilebert", "MobileBertForSequenceClassification", **_BERT, embedding_size=16, intra_bottleneck_size=16),
    _text("squeezebert", "SqueezeBertForSequenceClassification", **_BERT, embedding_size=32),
    _text("convbert", "ConvBertForSequenceClassification", **_BERT, embedding_size=16),
    _text("fnet", "FNetForSequenceClassification", masked=False, **_FNET),
    _text("funnel", "FunnelForSequenceClassification", block_sizes=[1, 1], d_model=32, n_head=4, d_head=8, d_inner=64),
    _text("modernbert", "ModernBertForSequenceClassification", **_BERT, local_attention=4),
    _text("gpt2", "GPT2LMHeadModel", n_embd=32, n_layer=2, n_head=4, n_positions=40),
    _text("gpt-neo", "GPTNeoForCausalLM", **_GPT_NEO),
    _text("gpt-neox", "GPTNeoXForCausalLM", **_BERT),
    _text("opt", "OPTForCausalLM", hidden_size=32, num_hidden_layers=2, num_attention_heads=4, ffn_dim=64),
    _text("bloom", "BloomForCausalLM", hidden_size=32, n_layer=2, n_head=4),
    _text("llama", "LlamaForCausalLM", **_GQA),
    _text("mistral", "MistralForCausalLM", **_GQA, sliding_window=4),
    _text("mixtral", "MixtralForCausalLM", **_GQA, **_BATCHED, num_local_experts=4),
    _text("qwen2", "Qwen2ForCausalLM", **_GQA),
    _text("qwen3", "Qwen3ForCausalLM", **_GQA, head_dim=8),
    _text("gemma", "GemmaForCausalLM", **_GQA, head_dim=8),
    _text("gemma2", "Gemma2ForCausalLM", **_GQA, head_dim=8, query_pre_attn_scalar=8, sliding_window=4),
    _text("gemma3", "Gemma3ForCausalLM", **_GQA, head_dim=8, query_pre_attn_scalar=8, sliding_window=4),
    _text("phi", "PhiForCausalLM", **_GQA),
    _text("phi3", "Phi3ForCausalLM", **_GQA),
    _text("stablelm", "StableLmForCausalLM", **_GQA),
    _text("falcon", "FalconForCausalLM", **_ENCODER, ffn_hidden_size=64),
    _text("falcon-gqa", "FalconForCausalLM", **_ENCODER, ffn_hidden_size=64, new_decoder_architecture=True, num_kv_heads=2),
    _text("smollm3", "SmolLM3ForCausalLM", **_GQA, no_rope_layers=[1, 0]),
    _text("olmo", "OlmoForCausalLM", **_GQA),
    _text("olmo2", "Olmo2ForCausalLM", **_GQA),
    _text("granite", "GraniteForCausalLM", **_GQA),
    _text("cohere", "CohereForCausalLM", **_GQA),
    _text("gpt-bigcode", "GPTBigCodeForCausalLM", n_embd=32, n_layer=2, n_head=4, n_positions=40),
    _text("gpt-j", "GPTJForCausalLM", n_embd=32, n_layer=2, n_head=4, n_positions=40, rotary_dim=4),
    _text("mpt", "MptForCausalLM", d_model=32, n_heads=4, n_layers=2, max_seq_len=40, expansion_ratio=2),
    _text("deepseek-v3", "DeepseekV3ForCausalLM", **_DEEPSEEK),
    _text("qwen3-moe", "Qwen3MoeForCausalLM", **_GQA, **_EXPERTS),
    _text("olmoe", "OlmoeForCausalLM", **_GQA, **_BATCHED, num_experts=4),
    _text("qwen2-moe", "Qwen2MoeForCausalLM", **_GQA, **_EXPERTS, shared_expert_intermediate_size=40),
    _text("deepseek-groups", "DeepseekV3ForCausalLM", **{**_DEEPSEEK, "n_routed_experts": 8, "n_group": 4, "topk_group": 2}),
    _text("phi-moe", "PhimoeForCausalLM", **_GQA, **_BATCHED, num_local_experts=4),
    _text("granite-moe", "GraniteMoeForCausalLM", **_GQA, **_BATCHED, num_local_experts=4),
    _text("gpt-oss", "GptOssForCausalLM", **_GQA, **_BATCHED, head_dim=8, num_local_experts=4, sliding_window=4),
    _text("lfm2", "Lfm2ForCausalLM", **_GQA, layer_types=["conv", "full_attention"], block_auto_adjust_ff_dim=False),
    _text("mamba", "MambaForCausalLM", masked=False, hidden_size=32, num_hidden_layers=2, state_size=8, time_step_rank=4),
    _text("roformer", "RoFormerForSequenceClassification", **_BERT, embedding_size=16),
    _text("xlnet", "XLNetForSequenceClassification", d_model=32, n_layer=2, n_head=4, d_inner=64),
    _text("clip-text", "CLIPTextModelWithProjection", output="text_embeds", masked=False, **_BERT, projection_dim=24),
    _text("t5-encoder", "T5EncoderModel", output="last_hidden_state", masked=False, **_T5),
    _translate("t5", "T5ForConditionalGeneration", **_T5),
    _translate("mt5", "MT5ForConditionalGeneration", **_T5),
    _translate("bart", "BartForConditionalGeneration", **_SEQ2SEQ),
    _translate("m2m100", "M2M100ForConditionalGeneration", **_SEQ2SEQ),
    _translate("marian", "MarianMTModel", **_SEQ2SEQ),
    _translate("pegasus", "PegasusForConditionalGeneration", **_SEQ2SEQ),
)

_SPEECH = (
    _speech("wav2vec2", "Wav2Vec2ForSequenceClassification", _SAMPLES, **_WAVE),
    _speech("wav2vec2-ctc", "Wav2Vec2ForCTC", _SAMPLES, **_WAVE, **_STABLE, vocab_size=30),
    _speech("hubert", "HubertForSequenceClassification", _SAMPLES, **_WAVE),
    _speech("wavlm", "WavLMForSequenceClassification", _SAMPLES, **_WAVE),
    _speech("unispeech", "UniSpeechForSequenceClassification", _SAMPLES, **_WAVE),
    _speech("unispeech-sat", "UniSpeechSatForSequenceClassification", _SAMPLES, **_WAVE),
    _speech("sew", "SEWForSequenceClassification", _SAMPLES, **_WAVE),
    _speech("data2vec-audio", "Data2VecAudioForSequenceClassification", _SAMPLES, **_DATA2VEC),
    _speech("wav2vec2-conformer", "Wav2Vec2ConformerForSequenceClassification", _SAMPLES, **_WAVE),
    _speech("wav2vec2-bert", "Wav2Vec2BertForSequenceClassification", ("input_features", (40, 20)), **_W2V_BERT),
    _speech("whisper-encoder", "WhisperForAudioClassification", _MEL, **_WHISPER, classifier_proj_size=24),
    _speech("whisper", "WhisperForConditionalGeneration", _MEL, **_WHISPER, output="decoder"),
    _speech("ast", "ASTForAudioClassification", ("input_values", (64, 32)), **_ENCODER, num_mel_bins=32, max_length=64),
    _speech("speech2text", "Speech2TextForConditionalGeneration", ("input_features", (64, 20)), **_S2T, output="decoder"),
)

_MULTIMODAL = (
    _pair("clip", "CLIPModel", ("pixel_values", partial(pixels, 32)), output="logits_per_image", **_TOWERS, projection_dim=24),
    _pair("siglip", "SiglipModel", ("pixel_values", partial(pixels, 32)), output="logits_per_image", **_TOWERS),
    _pair("clap", "ClapModel", ("input_features", partial(signal, 1, 64, 16)), output="logits_per_audio", **_CLAP),
    _pair("x-clip", "XCLIPModel", ("pixel_values", _FRAMES["pixel_values"]), output="logits_per_video", **_XCLIP),
)

ENTRIES = (*_VISION, *_PAIRED, *_TEXT, *_SPEECH, *_MULTIMODAL)
