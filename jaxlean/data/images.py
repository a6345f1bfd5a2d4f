"""Image files -> pixels as a model wants them: what its preprocessor_config.json says, with numpy and Pillow.

The steps, their order and their arithmetic are those of transformers' processors on Pillow
(`transformers.image_processing_backends.PilBackend`): resize, cut out the middle, to 0..1, mean and spread. Only the
order of dims differs, [height, width, channels] here, and every image becomes RGB: transformers leaves a grey one with
a single channel where the config does not ask for RGB, and a model for colours then fails.

Files come from anywhere. So only formats with a decoder inside of Pillow are opened (EPS would start a program), an
image is refused by the size in its header before it is unpacked, and what cannot be read names its file and row.
"""

import contextlib
import io
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxlean.errors import DataError, ModelError, RunError

if TYPE_CHECKING:
    from PIL.Image import Image

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "PPM")
MAX_PIXELS = 89_478_485  # where Pillow warns: 256 MB of RGB
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm")

_HALF = {"image_mean": (0.5, 0.5, 0.5), "image_std": (0.5, 0.5, 0.5)}
_CLIP = {
    "image_mean": (0.48145466, 0.4578275, 0.40821073),
    "image_std": (0.26862954, 0.26130258, 0.27577711),
}
_BILINEAR, _BICUBIC = 2, 3
_MOBILENET = {**_HALF, "resample": _BILINEAR, "size": {"shortest_edge": 256}, "crop_size": 224, "do_center_crop": True}
# What a processor does that its config does not mention, by the word before "ImageProcessor" in its name.
DEFAULTS: dict[str, dict[str, Any]] = {
    "ViT": {**_HALF, "resample": _BILINEAR, "size": 224},
    "CLIP": {**_CLIP, "resample": _BICUBIC, "size": {"shortest_edge": 224}, "crop_size": 224, "do_center_crop": True},
    "MobileNetV1": _MOBILENET,
    "MobileNetV2": _MOBILENET,
    "EfficientNet": {**_HALF, "resample": _BICUBIC, "size": 346, "crop_size": 289, "include_top": True},
}
# Those for which `size: 224`, as old files have it, is the shorter edge.
_BY_SHORTER_EDGE = ("CLIP", "MobileNetV1", "MobileNetV2")


@dataclass(frozen=True)
class Preprocess:
    """How an image becomes pixels.

    Attributes:
        size: (height, width) that it is resized to; one number is its shorter edge; None leaves it as it is.
        crop: (height, width) cut out of the middle, black around where the image is smaller.
        resample: Pillow's number of the filter: 0 nearest, 1 Lanczos, 2 bilinear, 3 bicubic.
        factor: what 0..255 is multiplied with, None for not at all.
        offset: subtracted after that.
        mean, std: subtracted and divided by, for each channel; None for neither.
        twice: whether it is divided by std once more (EfficientNet's `include_top`).
    """

    size: tuple[int, int] | int | None
    crop: tuple[int, int] | None
    resample: int = _BILINEAR
    factor: float | None = 1 / 255
    offset: float = 0.0
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    twice: bool = False

    @property
    def shape(self) -> tuple[int, int]:
        """(height, width) of what comes out.

        Raises:
            ModelError: it differs from image to image, and they would not fit into a batch.
        """
        if self.crop is not None:
            return self.crop
        if isinstance(self.size, tuple):
            return self.size
        raise ModelError(
            "the image processor gives images of different sizes", got=f"size {self.size}, no center crop",
            fix="set do_center_crop and crop_size, or height and width of size, in preprocessor_config.json",
        )  # fmt: skip

    def __call__(self, image: "Image") -> np.ndarray:
        """An RGB image -> float32 [height, width, 3], for evaluation: nothing is drawn."""
        if self.size is not None:
            height, width = self.size if isinstance(self.size, tuple) else shorter_edge(image, self.size)
            image = image.resize((width, height), resample=self.resample)
        pixels = np.asarray(image)
        return self.normalise(pixels if self.crop is None else middle(pixels, self.crop))

    def augmented(
        self, image: "Image", *, seed: int, row: int, epoch: int, scale: tuple[float, float] = (0.08, 1.0)
    ) -> np.ndarray:
        """An RGB image -> float32 [height, width, 3], for training: a random part of it, mirrored or not.

        A part of `scale` of the area, whose sides are 3:4 to 4:3, is resized to `shape` (arXiv 1409.4842, as
        torchvision's RandomResizedCrop draws it). A pure function of its arguments: a resumed run sees what the run
        that was cut off would have seen.
        """
        rng = np.random.default_rng([seed, epoch, row])
        height, width = self.shape
        left, top, wide, high = random_part(rng, image.width, image.height, scale)
        image = image.resize((width, height), resample=self.resample, box=(left, top, left + wide, top + high))
        pixels = np.asarray(image)
        return self.normalise(pixels[:, ::-1] if rng.random() < 0.5 else pixels)

    def normalise(self, pixels: np.ndarray) -> np.ndarray:
        """uint8 [height, width, 3] -> float32 of the same shape."""
        # float64 in between, as transformers does
        wide: np.ndarray = (pixels if self.factor is None else pixels * np.float64(self.factor)).astype(np.float32)
        wide = wide - np.float32(self.offset)
        if self.mean is not None:
            wide = (wide - np.asarray(self.mean, np.float32)) / np.asarray(self.std, np.float32)
        return wide / np.asarray(self.std, np.float32) if self.twice else wide


def read_preprocess(folder: Path) -> Preprocess:
    """The preprocessing beside a model.

    Raises:
        ModelError: there is none, or it asks for something that is not supported.
    """
    for name in ("preprocessor_config.json", "processor_config.json"):
        file = folder / name
        if file.exists():
            try:
                config = json.loads(file.read_text(encoding="utf-8"))
            except json.JSONDecodeError as error:
                raise ModelError("malformed JSON", where=f"{file}:{error.lineno}", got=error.msg) from None
            return preprocess(config.get("image_processor", config), where=file)
    raise ModelError("the model does not say how its images are made", where=folder, wanted="preprocessor_config.json")


def preprocess(config: Mapping[str, Any], *, where: object = None) -> Preprocess:
    """`preprocessor_config.json` -> `Preprocess`; also as old files have it (`feature_extractor_type`, `size: 224`).

    Raises:
        ModelError: an unknown processor, or a step that is not supported.
    """
    name = config.get("image_processor_type") or config.get("feature_extractor_type") or ""
    kind = next(
        (kind for kind in DEFAULTS if name.startswith((f"{kind}ImageProcessor", f"{kind}FeatureExtractor"))), ""
    )
    if not kind:
        raise ModelError(
            "an image processor that is not supported", where=where, got=name or "no image_processor_type",
            wanted=", ".join(f"{kind}ImageProcessor" for kind in DEFAULTS),
        )  # fmt: skip
    given = DEFAULTS[kind] | {key: value for key, value in config.items() if value is not None}
    if given.get("do_pad"):
        raise ModelError("an image processor that pads is not supported", where=where, got="do_pad: true")
    size = given["size"] if given.get("do_resize", True) else None
    normalises = given.get("do_normalize", True)
    std = _three(given["image_std"], where)
    return Preprocess(
        size=None if size is None else _size(size, kind in _BY_SHORTER_EDGE, where),
        crop=_rectangle(given["crop_size"], where) if given.get("do_center_crop", False) else None,
        resample=_filter(given["resample"], where),
        factor=given.get("rescale_factor", 1 / 255) if given.get("do_rescale", True) else None,
        offset=1.0 if given.get("rescale_offset", False) and given.get("do_rescale", True) else 0.0,
        mean=_three(given["image_mean"], where) if normalises else None,
        std=std,
        twice=bool(given.get("include_top", False)),
    )


def _size(size: Any, by_edge: bool, where: object) -> tuple[int, int] | int:
    if isinstance(size, int) and by_edge:
        return size
    if isinstance(size, Mapping) and set(size) == {"shortest_edge"}:
        return int(size["shortest_edge"])
    return _rectangle(size, where)


def _rectangle(size: Any, where: object) -> tuple[int, int]:
    if isinstance(size, int):
        return size, size
    if isinstance(size, Mapping) and set(size) == {"height", "width"}:
        return int(size["height"]), int(size["width"])
    raise ModelError("a size of images that is not supported", where=where, got=size, wanted="height and width")


def _three(values: Any, where: object) -> tuple[float, ...]:
    values = (values,) * 3 if isinstance(values, int | float) else tuple(values)
    if len(values) != 3:
        raise ModelError("an image has three channels", where=where, got=values, wanted="a number for each")
    return tuple(float(value) for value in values)


def _filter(resample: Any, where: object) -> int:
    if resample in range(6):
        return int(resample)
    raise ModelError("a filter for resizing that Pillow does not have", where=where, got=resample, wanted="0 to 5")


def open_image(value: Any, *, origin: str, folder: Path | None = None) -> "Image":
    """A row's image -> RGB, turned upright as its EXIF says.

    Args:
        value: a path, the bytes of a file, a Pillow image, or `{bytes, path}` as `datasets` stores one.
        origin: the row's place, for messages.
        folder: where relative paths start.

    Raises:
        DataError: no image, a broken one, one too large to unpack, or one of more than 8 bits a channel.
    """
    try:
        from PIL import Image, ImageOps, UnidentifiedImageError
    except ImportError:
        raise RunError(
            "reading images needs Pillow, which is not installed", fix="pip install 'jaxlean[vision]'"
        ) from None

    source, name = _source(value, origin, folder)
    where = origin if name is None or name in origin else f"{origin}: {name}"
    try:
        given = isinstance(source, Image.Image)
        with contextlib.nullcontext(source) if given else Image.open(source, formats=FORMATS) as image:
            if image.width * image.height > MAX_PIXELS:
                raise Image.DecompressionBombError(f"{image.width} x {image.height} pixels")
            if image.mode.startswith(("I", "F")):
                raise DataError(
                    "an image of more than 8 bits a channel", where=where, got=f"mode {image.mode}",
                    fix="save it with 8 bits a channel, scaled as you want the model to see it",
                )  # fmt: skip
            return ImageOps.exif_transpose(image).convert("RGB")
    except DataError:
        raise
    except FileNotFoundError:
        raise DataError("there is no such image", where=where) from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise DataError(
            "an image too large to unpack", where=where, got=error, wanted=f"at most {MAX_PIXELS} pixels",
            fix="make it smaller, or leave it out",
        ) from None  # fmt: skip
    except UnidentifiedImageError:
        raise DataError("not an image", where=where, wanted="one of " + ", ".join(FORMATS)) from None
    # what Pillow's decoders raise for broken files: it has no class of its own for that
    except (OSError, SyntaxError, ValueError, EOFError, IndexError, KeyError, TypeError, OverflowError) as error:
        raise DataError("a broken image", where=where, got=f"{type(error).__name__}: {error}") from None


def _source(value: Any, origin: str, folder: Path | None) -> tuple[Any, str | None]:
    """(what to open, its name if it has one)."""
    if isinstance(value, Mapping) and (value.get("bytes") is not None or value.get("path") is not None):
        name = value.get("path")
        return (io.BytesIO(value["bytes"]), name) if value.get("bytes") is not None else _source(name, origin, folder)
    if isinstance(value, str | Path) and "://" not in str(value):
        file = folder / value if folder is not None else Path(value)
        return file, str(file)
    if isinstance(value, bytes):
        return io.BytesIO(value), None
    if hasattr(value, "convert") and hasattr(value, "getexif"):
        return value, getattr(value, "filename", None) or None
    got = str(value)[:80] if isinstance(value, str) else type(value).__name__
    raise DataError("not an image", where=origin, got=got, wanted="a path, the bytes of a file, or {bytes, path}")


def shorter_edge(image: "Image", edge: int) -> tuple[int, int]:
    """(height, width) of an image whose shorter edge is to be `edge`; the longer one is cut off to a whole number."""
    if image.width <= image.height:
        return int(edge * image.height / image.width), edge
    return edge, int(edge * image.width / image.height)


def middle(pixels: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """The middle of an image [height, width, channels], with zeros around where it is smaller than that."""
    out = np.zeros((*size, pixels.shape[2]), pixels.dtype)
    into, outof = [], []
    for have, want in zip(pixels.shape[:2], size, strict=True):
        start = (have - want) // 2
        first, last = max(start, 0), min(start + want, have)
        outof.append(slice(first, last))
        into.append(slice(first - start, last - start))
    out[into[0], into[1]] = pixels[outof[0], outof[1]]
    return out


def random_part(
    rng: np.random.Generator, width: int, height: int, scale: tuple[float, float]
) -> tuple[int, int, int, int]:
    """(left, top, width, height) of a part of an image, within it; the middle, where ten draws do not fit."""
    for _ in range(10):
        area = width * height * rng.uniform(*scale)
        ratio = math.exp(rng.uniform(math.log(3 / 4), math.log(4 / 3)))
        wide, high = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < wide <= width and 0 < high <= height:
            return int(rng.integers(0, width - wide + 1)), int(rng.integers(0, height - high + 1)), wide, high
    wide, high = min(width, max(1, round(height * 4 / 3))), min(height, max(1, round(width * 4 / 3)))
    return (width - wide) // 2, (height - high) // 2, wide, high
