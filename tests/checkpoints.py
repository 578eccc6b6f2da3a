"""Tiny Hugging Face checkpoint folders with random weights, made on the spot: no file is downloaded."""

import json
from pathlib import Path
from typing import Any

import torch
import transformers

WORDS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", "bad", "film", "good", "is", "plot", "the", "thin", "very", "was")
POSITIONS = 24
_LABELS = {"id2label": {0: "cat", 1: "dog", 2: "eel"}, "label2id": {"cat": 0, "dog": 1, "eel": 2}}
_SMALL = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
_PIXELS = {"do_resize": True, "do_rescale": True, "do_normalize": True, "image_mean": [0.5] * 3, "image_std": [0.5] * 3}
_BERT = {**_SMALL, "vocab_size": len(WORDS), "max_position_embeddings": POSITIONS}


def resnet(folder: Path) -> Path:
    config = transformers.ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic", **_LABELS)
    _save(transformers.ResNetForImageClassification, config, folder)
    return _write(folder, "preprocessor_config.json", image_processor_type="ViTImageProcessor", size=_square(32), **_PIXELS)


def vit(folder: Path) -> Path:
    config = transformers.ViTConfig(**_SMALL, image_size=32, patch_size=8, **_LABELS)
    _save(transformers.ViTForImageClassification, config, folder)
    return _write(folder, "preprocessor_config.json", image_processor_type="ViTImageProcessor", size=_square(32), **_PIXELS)


def spectrogram_transformer(folder: Path) -> Path:
    config = transformers.ASTConfig(**_SMALL, num_mel_bins=32, max_length=64, **_LABELS)
    _save(transformers.ASTForAudioClassification, config, folder)
    transformers.ASTFeatureExtractor(num_mel_bins=32, max_length=64).save_pretrained(folder)
    return folder


# the convolutions and position embedding of wav2vec 2.0, small; HuBERT and WavLM are built of the same parts
_WAVEFORM: dict[str, Any] = {
    **{"conv_dim": [8, 8], "conv_stride": [5, 4], "conv_kernel": [10, 8], "num_feat_extract_layers": 2},
    **{"num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 2},
}
LETTERS = ("<pad>", "<s>", "</s>", "<unk>", "|", *"ADEGHLNOTS")


def wav2vec2(folder: Path) -> Path:
    config = transformers.Wav2Vec2Config(**_SMALL, **_WAVEFORM, classifier_proj_size=8, **_LABELS)
    _save(transformers.Wav2Vec2ForSequenceClassification, config, folder)
    transformers.Wav2Vec2FeatureExtractor().save_pretrained(folder)
    return folder


def wav2vec2_ctc(folder: Path) -> Path:
    return _recognizer(transformers.Wav2Vec2ForCTC, transformers.Wav2Vec2Config, folder)


def hubert_ctc(folder: Path) -> Path:
    return _recognizer(transformers.HubertForCTC, transformers.HubertConfig, folder)


def wavlm_ctc(folder: Path) -> Path:
    return _recognizer(transformers.WavLMForCTC, transformers.WavLMConfig, folder)


def bert_classifier(folder: Path) -> Path:
    _save(transformers.BertForSequenceClassification, transformers.BertConfig(**_BERT, **_LABELS), folder)
    return _tokenizer(folder)


def sentence_encoder(folder: Path, **pooling: Any) -> Path:
    _save(transformers.BertModel, transformers.BertConfig(**_BERT), folder)
    _write(folder, "1_Pooling/config.json", **(pooling or {"pooling_mode_mean_tokens": True}))
    return _tokenizer(folder)


def llama(folder: Path) -> Path:
    config = transformers.LlamaConfig(**_BERT, num_key_value_heads=1, bos_token_id=2, eos_token_id=3, pad_token_id=0)
    _save(transformers.LlamaForCausalLM, config, folder)
    return _tokenizer(folder)


def mixtral(folder: Path) -> Path:
    config = transformers.MixtralConfig(
        **_BERT, num_key_value_heads=1, bos_token_id=2, eos_token_id=3, pad_token_id=0, num_local_experts=4
    )
    _save(transformers.MixtralForCausalLM, config, folder)
    return _tokenizer(folder)


def _save(kind: Any, config: Any, folder: Path) -> None:
    torch.manual_seed(0)
    transformers.utils.logging.disable_progress_bar()
    kind(config).save_pretrained(folder)


def _recognizer(kind: Any, config: Any, folder: Path) -> Path:
    """Token 0 is CTC's blank, as in the published checkpoints; the vocabulary has capitals only, as theirs."""
    _save(kind, config(**_SMALL, **_WAVEFORM, vocab_size=len(LETTERS), pad_token_id=0), folder)
    transformers.Wav2Vec2FeatureExtractor().save_pretrained(folder)
    (folder / "letters.json").write_text(json.dumps({letter: index for index, letter in enumerate(LETTERS)}))
    transformers.Wav2Vec2CTCTokenizer(str(folder / "letters.json")).save_pretrained(folder)
    (folder / "letters.json").unlink()
    return folder


def _tokenizer(folder: Path) -> Path:
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = Tokenizer(models.WordLevel({word: index for index, word in enumerate(WORDS)}, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    special = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    transformers.PreTrainedTokenizerFast(tokenizer_object=words, **special).save_pretrained(folder)
    return folder


def _square(edge: int) -> dict[str, int]:
    return {"height": edge, "width": edge}


def _write(folder: Path, name: str, **settings: Any) -> Path:
    path = folder / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(settings))
    return folder
