"""Checkpoints and weight files that would load, and be wrong, or fail far from their cause."""

import json
import random

import checkpoints
import pytest
import torch
import transformers
from safetensors.torch import load_file

import lighten
from lighten.core.errors import InputError
from lighten.read.module import read_state

SMALL = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}


def change(folder, **settings):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))
    return folder


@pytest.mark.parametrize("head", ["BertForTokenClassification", "BertForQuestionAnswering", "Wav2Vec2ForXVector"])
def test_a_head_that_is_not_read_is_not_dropped_in_silence(head, tmp_path) -> None:
    change(checkpoints.bert_classifier(tmp_path), architectures=[head])
    with pytest.raises(InputError, match=f"{head} is not read yet"):
        lighten.load(tmp_path)


def test_an_encoder_of_images_is_no_sentence_encoder(tmp_path) -> None:
    transformers.ViTModel(transformers.ViTConfig(**SMALL, image_size=16, patch_size=8)).save_pretrained(tmp_path)
    with pytest.raises(InputError, match="ViTModel is not read yet"):
        lighten.load(tmp_path)


def test_an_encoder_decoder_is_no_sentence_encoder(tmp_path) -> None:
    config = transformers.T5Config(vocab_size=14, d_model=16, d_kv=8, d_ff=32, num_layers=1, num_heads=2)
    transformers.T5Model(config).save_pretrained(tmp_path)
    with pytest.raises(InputError, match="T5Model is not read yet"):
        lighten.load(tmp_path)


def test_a_quantized_checkpoint_is_refused(tmp_path) -> None:
    change(checkpoints.bert_classifier(tmp_path), quantization_config={"quant_method": "gptq", "bits": 4})
    with pytest.raises(InputError, match="already quantized"):
        lighten.load(tmp_path)


def test_a_weight_of_another_shape_is_named_with_both_shapes(tmp_path) -> None:
    change(checkpoints.bert_classifier(tmp_path), intermediate_size=48)
    with pytest.raises(InputError, match=r"intermediate\.dense\.bias has shape \(32,\), config\.json asks for \(48,\)"):
        lighten.load(tmp_path)


def test_the_corrupt_file_is_named(tmp_path) -> None:
    path = checkpoints.bert_classifier(tmp_path) / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-50])
    with pytest.raises(InputError, match=r"model\.safetensors cannot be loaded, it is corrupt"):
        lighten.load(tmp_path)


def test_weights_in_several_files_are_read_and_the_missing_one_is_named(tmp_path) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    network = transformers.BertForSequenceClassification.from_pretrained(checkpoints.bert_classifier(whole))
    network.save_pretrained(parts, max_shard_size="4KB")
    files = sorted(parts.glob("model-*.safetensors"))
    assert len(files) > 1
    expected = load_file(whole / "model.safetensors")["classifier.weight"]
    assert torch.equal(lighten.load(parts).module.network.classifier.weight, expected)
    files[0].unlink()
    with pytest.raises(InputError, match=files[0].name):
        lighten.load(parts)


@pytest.mark.parametrize("positions", [8, 24])
def test_the_example_has_no_more_tokens_than_there_are_positions(positions, tmp_path) -> None:
    config = transformers.BertConfig(**SMALL, vocab_size=14, max_position_embeddings=positions, num_labels=3)
    transformers.BertForSequenceClassification(config).save_pretrained(tmp_path)
    model = lighten.load(tmp_path)
    assert model.example[0].shape == (2, min(16, positions - 2))
    assert model.module(*model.example).shape == (2, 3)


def test_the_example_holds_no_padding_where_padding_is_token_one(tmp_path) -> None:
    config = transformers.RobertaConfig(**SMALL, vocab_size=14, max_position_embeddings=26, pad_token_id=1)
    transformers.RobertaModel(config).save_pretrained(tmp_path)
    assert not (lighten.load(tmp_path).example[0] == 1).any()


def test_an_image_size_that_is_none_is_refused(tmp_path) -> None:
    (checkpoints.resnet(tmp_path) / "preprocessor_config.json").write_text('{"size": "big"}')
    with pytest.raises(InputError, match="gives the image size 'big'"):
        lighten.load(tmp_path)


def test_an_example_for_a_folder_is_refused_rather_than_ignored(tmp_path) -> None:
    with pytest.raises(InputError, match="says itself what its inputs are"):
        lighten.load(checkpoints.bert_classifier(tmp_path), example=torch.zeros(2, 16))


def test_padding_takes_no_part_in_the_maximum(tmp_path) -> None:
    model = lighten.load(checkpoints.sentence_encoder(tmp_path, pooling_mode_max_tokens=True))
    ids, mask = torch.tensor([[2, 7, 5, 0, 0]]), torch.tensor([[1, 1, 1, 0, 0]])
    alone = model.module(ids[:, :3], mask[:, :3])
    torch.testing.assert_close(model.module(ids, mask), alone)


def test_a_damaged_torch_file_is_refused_wherever_the_damage_lies(tmp_path) -> None:
    random.seed(0)
    originals = []
    for is_zip in (True, False):
        torch.save({"w": torch.ones(3, 3)}, tmp_path / "w.pth", _use_new_zipfile_serialization=is_zip)
        originals.append((tmp_path / "w.pth").read_bytes())
    refused = 0
    for _ in range(200):
        content = bytearray(random.choice(originals))
        for _ in range(random.randint(1, 8)):
            content[random.randrange(len(content))] = random.randrange(256)
        (tmp_path / "w.pth").write_bytes(content)
        try:
            read_state(tmp_path / "w.pth")
        except InputError:
            refused += 1
    assert refused > 100  # the rest hit bytes that say nothing, such as the numbers themselves
