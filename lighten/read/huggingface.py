"""Hugging Face checkpoint folders, offline: classifiers of images, audio and text, speech recognizers trained by CTC, sentence
encoders, causal language models.

Each becomes a module with tensors in, one tensor out, which is what tracing, scoring and exporting need.
Dimension key: B batch, T tokens or frames, E embedding.
"""

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lighten.core.errors import InputError
from lighten.core.model import Model, Origin
from lighten.engine.quiet import quiet

_FILES = (
    *("config.json", "tokenizer.json", "tokenizer_config.json", "vocab.txt", "vocab.json", "merges.txt"),
    *("special_tokens_map.json", "added_tokens.json"),
    *("spiece.model", "spm.model", "sentencepiece.bpe.model", "tokenizer.model"),
    *("preprocessor_config.json", "processor_config.json", "feature_extractor_config.json"),
    *("modules.json", "sentence_bert_config.json", "1_Pooling/config.json"),
)
_AUTO = {
    "image-classification": "AutoModelForImageClassification",
    "audio-classification": "AutoModelForAudioClassification",
    "speech-recognition": "AutoModelForCTC",
    "text-classification": "AutoModelForSequenceClassification",
    "language-model": "AutoModelForCausalLM",
    "sentence-similarity": "AutoModel",
}
_WITHOUT_HEAD = ("Model", "ForMaskedLM", "ForPreTraining")  # an encoder whose token vectors can be pooled
_HEADS = "Image-, Audio- and SequenceClassification, CTC on waveforms, CausalLM, and text encoders without a head"
# only training uses it, to hide spans of the input; many published checkpoints lack it
_ONLY_TRAINED_WITH = "masked_spec_embed"
_POOLINGS = {"pooling_mode_mean_tokens": "mean", "pooling_mode_cls_token": "cls", "pooling_mode_max_tokens": "max"}


def read_huggingface(folder: Path) -> Model:
    """The checkpoint in `folder`: config.json and safetensors (or a .bin of plain tensors), in float32 and eval mode.

    An architecture without a head is taken for a sentence encoder. Raises InputError when transformers is missing, a file is
    corrupt, weights are missing, or the checkpoint needs code of its own.
    """
    config = _config(folder)
    task = task_of(config)
    _check_files(folder)
    network = _load(folder, task, config)
    wrapped, example, names = _wrap(network, task, config, folder)
    varies = {"input_ids": "tokens", "attention_mask": "tokens"}
    varies |= {"input_values": "samples"} if example[0].dim() == 2 else {}  # a waveform, not a spectrogram
    labels = network.config.id2label if task.endswith("classification") else {}
    files = tuple(name for name in _FILES if (folder / name).is_file())
    origin = Origin(
        kind="huggingface",
        source=str(folder),
        task=task,
        folder=folder,
        files=files,
        labels=tuple(str(labels[index]) for index in sorted(labels)),
        dynamic=tuple({0: "batch", 1: varies[name]} if name in varies else {0: "batch"} for name in names),
    )
    return Model(wrapped.eval(), example, origin, names, ("embedding" if task == "sentence-similarity" else "logits",))


def build_huggingface(source: Path, *, task: str, num_labels: int | None = None) -> tuple[nn.Module, tuple[str, ...]]:
    """The network of a config.json, or of the folder it lies in, with random weights from torch's generator, in float32 and
    eval mode; and the names of its inputs. Nothing is fetched.

    task: of core.model.TASKS, which decides the head. num_labels: of a classifier whose config names no classes.
    Raises InputError as `read_huggingface` does, and for a task that has no head.
    """
    path = source / "config.json" if source.is_dir() else source
    if not path.is_file():
        raise InputError(f"{path} does not exist.", hint="Give a config.json, or a folder that holds one.")
    config = _json(path)
    if task not in _AUTO:
        raise InputError(f"A network for {task} cannot be built from a config.", hint=f"Tasks: {', '.join(_AUTO)}.")
    network = _built(path, config, task, num_labels)
    if hasattr(network.config, "use_cache"):
        network.config.use_cache = False
    wrapped, _, names = _wrap(network, task, config, path.parent)
    return wrapped.eval(), names


def _built(path: Path, config: dict[str, Any], task: str, num_labels: int | None) -> Any:
    transformers = _transformers()
    kind = config.get("model_type")
    if kind not in transformers.CONFIG_MAPPING:
        raise InputError(f"{path}: model_type is {kind!r}, which transformers does not know.")
    named = {"num_labels": num_labels} if num_labels and not {"id2label", "num_labels"} & set(config) else {}
    try:
        with quiet():
            settings = transformers.CONFIG_MAPPING[kind].from_dict({**config, **named})
            return getattr(transformers, _AUTO[task]).from_config(
                settings, dtype=torch.float32, experts_implementation="batched_mm", trust_remote_code=False
            )
    except Exception as error:  # transformers raises whatever its classes make of the numbers
        first = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise InputError(f"{path} makes no network for {task}: {first.strip()[:250]}") from error


def task_of(config: dict[str, Any]) -> str:
    """The task that the checkpoint's architecture was trained for. Raises InputError for a head that is not read."""
    architecture = str((config.get("architectures") or [""])[0])
    if architecture.endswith("ForImageClassification"):
        return "image-classification"
    if architecture.endswith(("ForCausalLM", "LMHeadModel")):
        return "language-model"
    if architecture.endswith("ForCTC"):
        return "speech-recognition"
    is_audio = "num_feat_extract_layers" in config or "num_mel_bins" in config
    if architecture.endswith("ForAudioClassification") or (architecture.endswith("ForSequenceClassification") and is_audio):
        return "audio-classification"
    if architecture.endswith("ForSequenceClassification"):
        return "text-classification"
    if config.get("is_encoder_decoder") or (architecture and not architecture.endswith(_WITHOUT_HEAD)):
        raise InputError(f"{architecture or 'An encoder-decoder'} is not read yet.", hint=f"Read are {_HEADS}.")
    return "sentence-similarity"


class Tokens(nn.Module):
    """(input_ids, attention_mask), both B x T integers, to logits."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """B x classes, or B x T x vocabulary."""
        logits: Tensor = self.network(input_ids=input_ids, attention_mask=attention_mask).logits
        return logits


class Sentence(nn.Module):
    """(input_ids, attention_mask) to one embedding a text: the mean of the tokens, the first token, or the maximum."""

    def __init__(self, network: nn.Module, pooling: str) -> None:
        super().__init__()
        self.network, self.pooling = network, pooling

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """B x E, not normalized."""
        hidden_BTE: Tensor = self.network(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        if self.pooling == "cls":
            return hidden_BTE[:, 0]
        mask_BT1 = attention_mask[..., None].to(hidden_BTE.dtype)
        if self.pooling == "max":
            # a selection: an addition would put the large number where activation ranges are observed
            return hidden_BTE.masked_fill(mask_BT1 == 0, -1e9).amax(1)
        return (hidden_BTE * mask_BT1).sum(1) / mask_BT1.sum(1).clamp_min(1e-9)


class Signal(nn.Module):
    """One real-valued input (pixels, samples or features) to logits."""

    def __init__(self, network: nn.Module, argument: str) -> None:
        super().__init__()
        self.network, self.argument = network, argument

    def forward(self, value: Tensor) -> Tensor:
        """B x classes, or B x T x vocabulary for speech."""
        logits: Tensor = self.network(**{self.argument: value}).logits
        return logits


def _config(folder: Path) -> dict[str, Any]:
    config = _json(folder / "config.json")
    if "quantization_config" in config:
        raise InputError(f"{folder} is already quantized.", hint="Start from the float checkpoint.")
    return config


def _check_files(folder: Path) -> None:
    """Names the safetensors file that is corrupt; its header, which alone is read, says how long it must be."""
    from safetensors import SafetensorError, safe_open

    for path in sorted(folder.glob("*.safetensors")):
        try:
            with safe_open(path, framework="pt"):
                continue
        except (SafetensorError, OSError) as error:
            raise InputError(f"{path} cannot be loaded, it is corrupt: {error}.") from error


def _json(path: Path) -> dict[str, Any]:
    """The file's mapping, {} when there is no such file."""
    try:
        found = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    except (OSError, ValueError) as error:
        raise InputError(f"{path} is corrupt: {error}.") from error
    if not isinstance(found, dict):
        raise InputError(f"{path} is not a mapping.")
    return found


def _transformers() -> Any:
    try:
        import transformers
    except ImportError as error:
        raise InputError(
            "Reading a Hugging Face folder needs transformers.", hint="pip install lighten[huggingface]"
        ) from error
    return transformers


def _load(folder: Path, task: str, config: dict[str, Any]) -> Any:
    transformers = _transformers()
    if "auto_map" in config and config.get("model_type") not in transformers.CONFIG_MAPPING:
        raise InputError(f"{folder} needs Python code of its own (auto_map), which lighten never runs.")
    transformers.utils.logging.disable_progress_bar()
    try:
        with quiet():
            network, report = getattr(transformers, _AUTO[task]).from_pretrained(
                folder,
                local_files_only=True,
                dtype=torch.float32,
                # the default is an operator of transformers' own, of which neither ONNX nor a reader without transformers
                # knows; networks without experts pass it over
                experts_implementation="batched_mm",
                trust_remote_code=False,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # they are refused below, by name
            )
    except Exception as error:  # transformers raises whatever its classes make of the files
        first = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise InputError(f"{folder} cannot be loaded: {first.strip()[:250]}") from error
    _refuse_unfit(folder, report, task)
    _blank_unused(network, report)
    if hasattr(network.config, "use_cache"):
        network.config.use_cache = False
    return network


def _blank_unused(network: Any, report: dict[str, Any]) -> None:
    """What is missing and unused was filled with random numbers; zeros give the same network, and its hash, each time."""
    state = network.state_dict()
    for name in report["missing_keys"]:
        state[name].zero_()


def _refuse_unfit(folder: Path, report: dict[str, Any], task: str) -> None:
    # transformers fills what is missing with random numbers; these are not used
    unused = (_ONLY_TRAINED_WITH, "pooler") if task == "sentence-similarity" else (_ONLY_TRAINED_WITH,)
    missing = sorted(key for key in report["missing_keys"] if not any(name in key for name in unused))
    if missing:
        more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
        raise InputError(f"{folder} lacks the weights {', '.join(missing[:3])}{more}.", hint="The checkpoint is incomplete.")
    if report["mismatched_keys"]:
        name, given, needed = sorted(report["mismatched_keys"])[0]
        raise InputError(f"{folder}: {name} has shape {tuple(given)}, config.json asks for {tuple(needed)}.")


def _wrap(
    network: Any, task: str, config: dict[str, Any], folder: Path
) -> tuple[nn.Module, tuple[Tensor, ...], tuple[str, ...]]:
    if task in ("text-classification", "language-model", "sentence-similarity"):
        if network.main_input_name != "input_ids":
            raise InputError(f"{folder}: {type(network).__name__} is not read yet.", hint=f"Read are {_HEADS}.")
        example = _tokens(config)
        wrapped = Sentence(network, _pooling(folder)) if task == "sentence-similarity" else Tokens(network)
        return wrapped, example, ("input_ids", "attention_mask")
    if task == "image-classification":
        return Signal(network, "pixel_values"), (torch.zeros(2, *_image_shape(config, folder)),), ("pixel_values",)
    name = network.main_input_name
    is_waveform = name == "input_values" and "num_mel_bins" not in config
    if task == "speech-recognition" and not is_waveform:
        raise InputError(f"{folder}: {type(network).__name__} is not read yet.", hint=f"Read are {_HEADS}.")
    if is_waveform:
        return Signal(network, name), (torch.zeros(2, 16_000),), (name,)
    length = config.get("max_length", 1024) if name == "input_values" else 2 * config.get("max_source_positions", 1500)
    bins = config.get("num_mel_bins", 80)
    shape = (2, length, bins) if name == "input_values" else (2, bins, length)
    return Signal(network, name), (torch.zeros(shape),), (name,)


def _tokens(config: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """Two rows of 16 tokens, or of as many as there are positions (RoBERTa never uses its first two)."""
    limits = [config[name] for name in ("max_position_embeddings", "n_positions") if isinstance(config.get(name), int)]
    shape = (2, min(16, *(max(2, limit - 2) for limit in limits), 16))
    token = 2 if config.get("pad_token_id") == 1 else 1  # in every vocabulary, and no padding
    return torch.full(shape, token), torch.ones(shape, dtype=torch.int64)


def _image_shape(config: dict[str, Any], folder: Path) -> tuple[int, int, int]:
    processor = _json(folder / "preprocessor_config.json")
    size: Any = processor.get("crop_size") if processor.get("do_center_crop") else processor.get("size")
    size = size or config.get("image_size") or 224
    if isinstance(size, dict):
        edge = size.get("shortest_edge", 224)
        size = (size.get("height", edge), size.get("width", edge))
    height, width = size if isinstance(size, list | tuple) and len(size) == 2 else (size, size)
    shape = (config.get("num_channels") or 3, height, width)
    if not all(isinstance(length, int) and length > 0 for length in shape):
        raise InputError(f"{folder}: preprocessor_config.json or config.json gives the image size {size!r}.")
    return shape


def _pooling(folder: Path) -> str:
    _check_modules(folder)
    settings = _json(folder / "1_Pooling" / "config.json")
    chosen = [mode for mode, is_on in settings.items() if mode.startswith("pooling_mode_") and is_on]
    names = [_POOLINGS.get(mode, mode) for mode in chosen] or [settings.get("pooling_mode", "mean")]
    if len(names) > 1 or names[0] not in _POOLINGS.values():
        raise InputError(
            f"{folder} pools by {' and '.join(map(str, names))}.", hint=f"Known: {', '.join(_POOLINGS.values())}, one of them."
        )
    return str(names[0])


def _check_modules(folder: Path) -> None:
    """A sentence encoder of more than a transformer and its pooling would lose the rest. (Lengths change no cosine.)"""
    path = folder / "modules.json"
    try:
        modules = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else []
        kinds = [str(module["type"]).rpartition(".")[2] for module in modules]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path} is corrupt: {error}.") from error
    other = [kind for kind in kinds if kind not in ("Transformer", "Pooling", "Normalize")]
    if other:
        raise InputError(f"{folder} has a {other[0]} layer behind its pooling, which is not read.")
