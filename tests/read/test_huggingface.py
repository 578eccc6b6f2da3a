"""Checkpoint folders load offline, become one graph, and give files that compute the same."""

import json

import checkpoints
import pytest
import torch
import transformers
from networks import Tensors
from safetensors.torch import load_file, save_file

import lighten
from lighten.analyze.trace import trace
from lighten.core.cost import Target
from lighten.core.data import Data
from lighten.core.errors import InputError
from lighten.core.run import Run
from lighten.export.archive import write_archive
from lighten.export.onnx import OnnxExporter
from lighten.methods.quantize.integer import Quantize
from lighten.read.saved import load_saved

CLASSES = ("cat", "dog", "eel")
TOKENS = ("input_ids", "attention_mask")
TOKEN_DIMS = ({0: "batch", 1: "tokens"},) * 2


def cls_encoder(folder):
    return checkpoints.sentence_encoder(folder, pooling_mode_cls_token=True, pooling_mode_mean_tokens=False)


def max_encoder(folder):
    return checkpoints.sentence_encoder(folder, pooling_mode_max_tokens=True)


FACTS = {
    checkpoints.resnet: ("image-classification", CLASSES, ("pixel_values",), ({0: "batch"},)),
    checkpoints.vit: ("image-classification", CLASSES, ("pixel_values",), ({0: "batch"},)),
    checkpoints.spectrogram_transformer: ("audio-classification", CLASSES, ("input_values",), ({0: "batch"},)),
    checkpoints.wav2vec2: ("audio-classification", CLASSES, ("input_values",), ({0: "batch", 1: "samples"},)),
    checkpoints.wav2vec2_ctc: ("speech-recognition", (), ("input_values",), ({0: "batch", 1: "samples"},)),
    checkpoints.hubert_ctc: ("speech-recognition", (), ("input_values",), ({0: "batch", 1: "samples"},)),
    checkpoints.wavlm_ctc: ("speech-recognition", (), ("input_values",), ({0: "batch", 1: "samples"},)),
    checkpoints.bert_classifier: ("text-classification", CLASSES, TOKENS, TOKEN_DIMS),
    checkpoints.sentence_encoder: ("sentence-similarity", (), TOKENS, TOKEN_DIMS),
    checkpoints.llama: ("language-model", (), TOKENS, TOKEN_DIMS),
    checkpoints.mixtral: ("language-model", (), TOKENS, TOKEN_DIMS),
}
# one with convolutions and one with tokens by default; the rest takes a minute
WHOLE_WAY = [
    checkpoints.resnet,
    checkpoints.sentence_encoder,
    *(
        pytest.param(make, marks=pytest.mark.slow)
        for make in (
            checkpoints.vit,
            checkpoints.spectrogram_transformer,
            checkpoints.wav2vec2,
            checkpoints.wav2vec2_ctc,
            checkpoints.hubert_ctc,
            checkpoints.wavlm_ctc,
            checkpoints.bert_classifier,
            cls_encoder,
            max_encoder,
            checkpoints.llama,
        )
    ),
]


def other_inputs(model):
    """Five examples, and another number of tokens or samples than in the example the network was traced with."""
    generator = torch.Generator().manual_seed(1)
    if model.input_names == TOKENS:
        mask = torch.ones(5, 11, dtype=torch.int64)
        mask[1, 6:], mask[3, 3:] = 0, 0
        return torch.randint(1, len(checkpoints.WORDS), (5, 11), generator=generator), mask
    shape = [9_000] if "samples" in model.origin.dynamic[0].values() else model.example[0].shape[1:]
    return (torch.randn(5, *shape, generator=generator),)


@pytest.mark.parametrize("make", FACTS, ids=lambda make: make.__name__)
def test_a_folder_gives_task_labels_and_inputs(make, tmp_path) -> None:
    model = lighten.load(make(tmp_path))
    assert (model.origin.task, model.origin.labels, model.input_names, model.origin.dynamic) == FACTS[make]
    assert model.origin.kind == "huggingface"
    assert "config.json" in model.origin.files
    assert not model.module.training
    assert {value.dtype for value in model.module.parameters()} == {torch.float32}


@pytest.mark.parametrize("make", WHOLE_WAY, ids=lambda make: make.__name__)
@torch.no_grad()
def test_a_folder_is_traced_exported_quantized_and_saved(make, tmp_path) -> None:
    model, exporter = lighten.load(make(tmp_path)), OnnxExporter()
    x = other_inputs(model)
    expected = model.module(*x)

    graph = trace(model)
    torch.testing.assert_close(graph.module(*x), expected, rtol=1e-5, atol=1e-6)  # batch normalization is folded

    path = exporter.write_float(model, tmp_path / "float.onnx").path
    torch.testing.assert_close(exporter.open(path, Target())(*x), expected, rtol=1e-4, atol=1e-5)

    split = Tensors(x)
    data = Data("tensors", model.origin.task, "agreement", split, split)
    prepared = Quantize().prepare(model, graph, data=data, run=Run())
    made = prepared.realize(prepared.proposals()[0])
    rounded = made.graph(*x)
    path = exporter.write(made, tmp_path / "int8.onnx").path
    # single codes may round the other way, which moves an output by a step or so: far below the range of the outputs
    assert (exporter.open(path, Target())(*x) - rounded).abs().max() < 0.03 * (rounded.max() - rounded.min())
    operators = exporter.operators(path)
    assert operators.get("MatMul:int8", 0) + operators.get("Conv:int8", 0) >= 6

    (tmp_path / "saved").mkdir()
    write_archive(made, tmp_path / "saved")
    again = load_saved(tmp_path / "saved")
    assert torch.equal(again.module(*x), rounded)
    assert again.origin.dynamic == model.origin.dynamic


@torch.no_grad()
def test_experts_are_read_in_a_form_that_onnx_can_hold(tmp_path) -> None:
    model, exporter = lighten.load(checkpoints.mixtral(tmp_path)), OnnxExporter()
    x = other_inputs(model)
    path = exporter.write_float(model, tmp_path / "float.onnx").path
    torch.testing.assert_close(exporter.open(path, Target())(*x), model.module(*x), rtol=1e-4, atol=1e-5)


def test_poolings_are_the_mean_the_first_and_the_largest_of_the_real_tokens(tmp_path) -> None:
    folders = {name: tmp_path / name for name in ("mean", "cls", "max")}
    for name, folder in folders.items():
        checkpoints.sentence_encoder(folder, pooling_mode=name)
    models = {name: lighten.load(folder) for name, folder in folders.items()}
    ids, mask = torch.tensor([[2, 7, 5, 0, 0]]), torch.tensor([[1, 1, 1, 0, 0]])
    hidden = models["mean"].module.network(input_ids=ids, attention_mask=mask).last_hidden_state[0, :3]
    expected = {"mean": hidden.mean(0), "cls": hidden[0], "max": hidden.amax(0)}
    for name, model in models.items():
        torch.testing.assert_close(model.module(ids, mask)[0], expected[name])


def test_two_poolings_at_once_are_refused(tmp_path) -> None:
    folder = checkpoints.sentence_encoder(tmp_path, pooling_mode_mean_tokens=True, pooling_mode_cls_token=True)
    with pytest.raises(InputError, match="pools by mean and cls"):
        lighten.load(folder)


def test_an_unknown_pooling_is_refused(tmp_path) -> None:
    folder = checkpoints.sentence_encoder(tmp_path, pooling_mode_lasttoken=True)
    with pytest.raises(InputError, match="pools by pooling_mode_lasttoken"):
        lighten.load(folder)


def test_a_layer_behind_the_pooling_is_refused(tmp_path) -> None:
    kinds = ("Transformer", "Pooling", "Dense")
    modules = [{"type": f"sentence_transformers.models.{kind}"} for kind in kinds]
    (checkpoints.sentence_encoder(tmp_path) / "modules.json").write_text(json.dumps(modules))
    with pytest.raises(InputError, match="has a Dense layer behind its pooling"):
        lighten.load(tmp_path)


def test_the_image_size_is_the_processors(tmp_path) -> None:
    path = checkpoints.resnet(tmp_path) / "preprocessor_config.json"
    settings = json.loads(path.read_text()) | {"do_center_crop": True, "crop_size": {"height": 24, "width": 40}}
    path.write_text(json.dumps(settings))
    assert lighten.load(tmp_path).example[0].shape == (2, 3, 24, 40)


def test_a_folder_that_brings_code_is_refused(tmp_path) -> None:
    path = checkpoints.resnet(tmp_path) / "config.json"
    own = {"auto_map": {"AutoModelForImageClassification": "modeling.Net"}, "model_type": "no-such-network"}
    path.write_text(json.dumps(json.loads(path.read_text()) | own))
    with pytest.raises(InputError, match="auto_map"):
        lighten.load(tmp_path)


def test_code_that_the_architecture_does_not_need_is_passed_over(tmp_path) -> None:
    path = checkpoints.resnet(tmp_path) / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"auto_map": {"AutoModel": "modeling.Net"}}))
    assert lighten.load(tmp_path).origin.task == "image-classification"


@pytest.mark.parametrize("name", ["config.json", "preprocessor_config.json"])
def test_a_corrupt_configuration_is_refused(name, tmp_path) -> None:
    (checkpoints.resnet(tmp_path) / name).write_text('{"architectures": [')
    with pytest.raises(InputError, match=rf"{name} is corrupt"):
        lighten.load(tmp_path)


def test_a_configuration_that_is_no_mapping_is_refused(tmp_path) -> None:
    (checkpoints.resnet(tmp_path) / "config.json").write_text("[]")
    with pytest.raises(InputError, match=r"config\.json is not a mapping"):
        lighten.load(tmp_path)


def test_an_unknown_architecture_is_refused(tmp_path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "no-such-network", "architectures": ["NoForCausalLM"]}))
    with pytest.raises(InputError, match="cannot be loaded: .*no-such-network"):
        lighten.load(tmp_path)


def test_a_folder_without_weights_is_refused(tmp_path) -> None:
    (checkpoints.resnet(tmp_path) / "model.safetensors").unlink()
    with pytest.raises(InputError, match="cannot be loaded: .*model.safetensors"):
        lighten.load(tmp_path)


def test_truncated_weights_are_refused(tmp_path) -> None:
    path = checkpoints.resnet(tmp_path) / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(InputError, match="cannot be loaded"):
        lighten.load(tmp_path)


def test_missing_weights_are_named_rather_than_filled_with_random_numbers(tmp_path) -> None:
    path = checkpoints.bert_classifier(tmp_path) / "model.safetensors"
    weights = load_file(path)
    del weights["classifier.weight"]
    save_file(weights, path, metadata={"format": "pt"})
    with pytest.raises(InputError, match=r"lacks the weights classifier\.weight"):
        lighten.load(tmp_path)


def test_an_encoder_without_its_pooler_is_complete(tmp_path) -> None:
    path = checkpoints.sentence_encoder(tmp_path) / "model.safetensors"
    weights = {name: value for name, value in load_file(path).items() if "pooler" not in name}
    save_file(weights, path, metadata={"format": "pt"})
    assert lighten.load(tmp_path).origin.task == "sentence-similarity"


def test_what_only_training_uses_may_be_missing_and_is_always_the_same(tmp_path) -> None:
    """facebook/wav2vec2-base-960h, among others, lacks the vector that hides spans of the input in training."""
    path = checkpoints.wav2vec2_ctc(tmp_path) / "model.safetensors"
    weights = {name: value for name, value in load_file(path).items() if not name.endswith("masked_spec_embed")}
    save_file(weights, path, metadata={"format": "pt"})
    first, again = (lighten.load(tmp_path).module.state_dict() for _ in range(2))
    assert all(torch.equal(value, again[name]) for name, value in first.items())
    assert not first["network.wav2vec2.masked_spec_embed"].any()


@torch.no_grad()
def test_weights_under_the_names_of_older_checkpoints_are_found(tmp_path) -> None:
    """Weight normalization kept its factors as weight_g and weight_v before PyTorch 2.0."""
    expected = lighten.load(checkpoints.wav2vec2_ctc(tmp_path)).module(torch.ones(1, 4_000))
    path, names = tmp_path / "model.safetensors", {"parametrizations.weight.original0": "weight_g"}
    names["parametrizations.weight.original1"] = "weight_v"
    weights = load_file(path)
    for new, old in names.items():
        (name,) = [name for name in weights if name.endswith(new)]
        weights[name.replace(new, old)] = weights.pop(name)
    save_file(weights, path, metadata={"format": "pt"})
    torch.testing.assert_close(lighten.load(tmp_path).module(torch.ones(1, 4_000)), expected)


def test_a_recognizer_of_spectrograms_is_refused(tmp_path) -> None:
    small = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    config = transformers.Wav2Vec2BertConfig(**small, vocab_size=8, pad_token_id=0)
    transformers.Wav2Vec2BertForCTC(config).save_pretrained(tmp_path)
    with pytest.raises(InputError, match="Wav2Vec2BertForCTC is not read yet. Read are .*CTC on waveforms"):
        lighten.load(tmp_path)


def test_nan_weights_are_named(tmp_path) -> None:
    path = checkpoints.bert_classifier(tmp_path) / "model.safetensors"
    weights = load_file(path)
    weights["classifier.bias"][0] = float("nan")
    save_file(weights, path, metadata={"format": "pt"})
    with pytest.raises(InputError, match=r"NaN or infinity: network\.classifier\.bias"):
        lighten.load(tmp_path)


def test_half_precision_checkpoints_are_read_in_float32(tmp_path) -> None:
    path = checkpoints.bert_classifier(tmp_path) / "model.safetensors"
    save_file({name: value.half() for name, value in load_file(path).items()}, path, metadata={"format": "pt"})
    assert {value.dtype for value in lighten.load(tmp_path).module.parameters()} == {torch.float32}


def test_a_pickled_module_in_a_bin_file_is_refused(tmp_path) -> None:
    (checkpoints.resnet(tmp_path) / "model.safetensors").unlink()
    torch.save(torch.nn.Linear(2, 2), tmp_path / "pytorch_model.bin")
    with pytest.raises(InputError, match="cannot be loaded"):
        lighten.load(tmp_path)


def test_separate_weights_are_refused(tmp_path) -> None:
    with pytest.raises(InputError, match="has weights of its own"):
        lighten.load(checkpoints.resnet(tmp_path), weights="other.safetensors")
