"""Image files by class. A model folder's own image processor prepares them where there is one; else they are resized to the
model's height and width (bilinear), in its number of channels, scaled to [0, 1].
"""

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lighten.core.data import Data, Example
from lighten.core.errors import InputError
from lighten.core.model import Model
from lighten.data.folders import Kind, load_folder

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".ppm", ".pgm")
_THUMBNAIL = 64


def load_images(folder: Path, *, model: Model, seed: int) -> Data:
    """A folder of images by class, or with train/ and test/ below it."""
    prepare = _processor(model) or _plain(model)
    expected = tuple(model.example[0].shape[1:])

    def prepared(path: Path) -> Tensor:
        pixels = prepare(_open(path))
        if pixels.shape != expected:
            raise InputError(
                f"{path}: the model's image processor gives {tuple(pixels.shape)}, the model takes {expected}.",
                hint="Give the images one shape, or a fixed height and width in preprocessor_config.json.",
            )
        return pixels

    def collate(paths: list[Any]) -> tuple[Tensor, ...]:
        return (torch.stack([prepared(path) for path in paths]),)

    return load_folder(folder, kind=Kind("image-classification", SUFFIXES, _check, collate, _show), model=model, seed=seed)


def thumbnail(pixels: Any) -> bytes:
    """A PNG of at most 64 pixels a side from an H x W or H x W x 3 uint8 array or a PIL image."""
    from PIL import Image

    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    image = image.convert("RGB")
    image.thumbnail((_THUMBNAIL, _THUMBNAIL))
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def _open(path: Path) -> Any:
    try:
        from PIL import Image
    except ImportError as error:
        raise InputError("Reading images needs Pillow.", hint="pip install lighten[images]") from error
    try:
        with Image.open(path) as image:
            return _eight_bits(image).convert("RGB")
    except Image.DecompressionBombError as error:
        raise ValueError(str(error)) from error


def _eight_bits(image: Any) -> Any:
    """Pillow would cut 16-bit gray values off at 255, which makes such images white."""
    if image.mode == "F":
        raise ValueError("it holds real numbers, whose range is unknown")
    if not image.mode.startswith("I"):
        return image
    from PIL import Image

    return Image.fromarray((np.asarray(image).clip(0, 65_535) // 257).astype(np.uint8))


def _check(path: Path) -> None:
    _open(path)


def _show(path: Path, index: int) -> Example:
    return Example(f"{path.parent.name}/{path.name}", image_png=thumbnail(_open(path)))


def _plain(model: Model) -> Callable[[Any], Tensor]:
    shape = model.example[0].shape
    if len(shape) != 4 or shape[1] not in (1, 3):
        raise InputError(f"The model takes {tuple(shape)}, which is no batch of images with 1 or 3 channels.")
    channels, height, width = shape[1:]

    def prepare(image: Any) -> Tensor:
        resized = image.convert("L" if channels == 1 else "RGB").resize((width, height), 2)  # 2: bilinear
        pixels = torch.from_numpy(np.array(resized, dtype=np.float32) / 255)
        return pixels[None] if channels == 1 else pixels.permute(2, 0, 1)

    return prepare


def _processor(model: Model) -> Callable[[Any], Tensor] | None:
    if model.origin.folder is None or "preprocessor_config.json" not in model.origin.files:
        return None
    try:
        from transformers import AutoImageProcessor
    except ImportError as error:
        raise InputError("The model's image processor needs transformers.", hint="pip install lighten[huggingface]") from error
    loader: Any = AutoImageProcessor
    try:
        processor = loader.from_pretrained(model.origin.folder, local_files_only=True, backend="pil")
    except Exception as error:  # transformers raises whatever its classes make of the file
        raise InputError(f"The image processor in {model.origin.folder} cannot be loaded: {error}.") from error

    def prepare(image: Any) -> Tensor:
        pixels: Tensor = processor(images=image, return_tensors="pt")["pixel_values"][0]
        return pixels

    return prepare
