"""Pixels as transformers' own processors make them; files that are broken, huge or no images."""

import io
import json
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from jaxlean.data import images
from jaxlean.data.images import Preprocess, open_image, preprocess, random_part, read_preprocess
from jaxlean.errors import DataError, ModelError


def picture(width: int, height: int, seed: int = 0, mode: str = "RGB") -> Image.Image:
    """Smooth in the large, rough in the small: every filter gives something of its own."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:height, 0:width] / 20
    waves = np.stack([np.sin(x + y), np.cos(2 * x - y), np.sin(x * y)], axis=-1) * 100 + 128
    pixels = np.clip(waves + rng.normal(0, 20, waves.shape), 0, 255).astype(np.uint8)
    return Image.fromarray(pixels).convert(mode)


# processor, what its config says
CONFIGS = [
    ("ViT", {}),
    ("ViT", {"size": {"height": 30, "width": 44}, "resample": 3, "image_mean": [0.1, 0.2, 0.3]}),
    ("ViT", {"do_resize": False, "do_rescale": False}),
    ("ViT", {"do_normalize": False, "rescale_factor": 0.5, "resample": 0}),
    ("CLIP", {}),
    ("CLIP", {"size": {"shortest_edge": 50}, "crop_size": {"height": 48, "width": 48}}),
    ("CLIP", {"size": {"shortest_edge": 32}, "crop_size": {"height": 61, "width": 40}}),  # smaller than the cut
    ("CLIP", {"do_resize": False, "crop_size": {"height": 90, "width": 33}}),
    ("MobileNetV1", {}),
    ("MobileNetV2", {}),
    ("MobileNetV2", {"size": {"shortest_edge": 41}, "crop_size": {"height": 35, "width": 32}, "resample": 1}),
    ("EfficientNet", {}),
    ("EfficientNet", {"rescale_offset": True, "rescale_factor": 1 / 127.5, "resample": 0, "include_top": False}),
    (
        "EfficientNet",
        {"do_center_crop": True, "size": {"height": 60, "width": 60}, "crop_size": {"height": 51, "width": 52}},
    ),
    ("EfficientNet", {"do_normalize": False}),
]


@pytest.mark.parametrize("size", [(64, 64), (97, 45), (40, 83)], ids=str)
@pytest.mark.parametrize(("kind", "config"), CONFIGS, ids=[f"{kind}-{i}" for i, (kind, _) in enumerate(CONFIGS)])
def test_pixels_are_those_of_transformers(kind, config, size, tmp_path):
    import transformers

    processor = getattr(transformers, f"{kind}ImageProcessorPil")(**config)
    processor.save_pretrained(tmp_path)
    image = picture(*size)
    want = processor(images=image, return_tensors="np")["pixel_values"][0].transpose(1, 2, 0)
    ours = read_preprocess(tmp_path)
    got = ours(image)
    assert got.dtype == np.float32
    assert got.shape == want.shape
    if ours.crop is not None or isinstance(ours.size, tuple):
        assert got.shape[:2] == ours.shape
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-5)
    # what the file does not say is what the class does
    np.testing.assert_array_equal(preprocess({"image_processor_type": f"{kind}ImageProcessor", **config})(image), got)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ({"feature_extractor_type": "ViTFeatureExtractor", "size": 40}, {"size": {"height": 40, "width": 40}}),
        ({"feature_extractor_type": "CLIPFeatureExtractor", "size": 40}, {"size": {"shortest_edge": 40}}),
        ({"image_processor_type": "ViTImageProcessorFast", "image_std": 0.5}, {"image_std": [0.5] * 3}),
    ],
)
def test_old_files_mean_the_same(old, new):
    kind = "CLIP" if "CLIP" in str(old) else "ViT"
    assert preprocess(old) == preprocess({"image_processor_type": f"{kind}ImageProcessor", **new})


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({"image_processor_type": "DetrImageProcessor"}, ["not supported", "DetrImageProcessor", "ViTImageProcessor"]),
        ({}, ["no image_processor_type"]),
        ({"image_processor_type": "ViTImageProcessor", "do_pad": True}, ["pads"]),
        ({"image_processor_type": "ViTImageProcessor", "size": {"longest_edge": 9}}, ["longest_edge"]),
        ({"image_processor_type": "ViTImageProcessor", "image_mean": [0.1]}, ["three channels"]),
        ({"image_processor_type": "ViTImageProcessor", "resample": 9}, ["a filter"]),
    ],
)
def test_what_is_not_supported_is_refused(config, says):
    with pytest.raises(ModelError) as caught:
        preprocess(config, where="m/preprocessor_config.json")
    for words in [*says, "m/preprocessor_config.json"]:
        assert words in str(caught.value)


def test_a_model_without_a_processor(tmp_path):
    with pytest.raises(ModelError, match="preprocessor_config"):
        read_preprocess(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text("{")
    with pytest.raises(ModelError, match=r"preprocessor_config.json:1"):
        read_preprocess(tmp_path)
    (tmp_path / "preprocessor_config.json").unlink()
    (tmp_path / "processor_config.json").write_text(
        json.dumps({"image_processor": {"image_processor_type": "CLIPImageProcessor"}})
    )
    assert read_preprocess(tmp_path).crop == (224, 224)


def test_images_of_different_sizes_make_no_batch():
    with pytest.raises(ModelError, match="different sizes"):
        _ = preprocess({"image_processor_type": "CLIPImageProcessor", "do_center_crop": False}).shape


@pytest.fixture(scope="module")
def small():
    return preprocess({"image_processor_type": "ViTImageProcessor", "size": 24})


def test_augmentation_is_a_function_of_seed_row_and_epoch(small):
    image = picture(60, 50)
    first = small.augmented(image, seed=3, row=5, epoch=1)
    assert first.shape == (24, 24, 3)
    assert first.dtype == np.float32
    np.testing.assert_array_equal(small.augmented(image, seed=3, row=5, epoch=1), first)
    for other in ({"seed": 4}, {"row": 6}, {"epoch": 2}):
        assert np.abs(small.augmented(image, **{"seed": 3, "row": 5, "epoch": 1, **other}) - first).max() > 0.1


def test_augmentation_of_the_whole_is_the_image_or_its_mirror(small):
    image, plain = picture(40, 40), small(picture(40, 40))
    seen = set()
    for row in range(200):
        rng = np.random.default_rng([0, 0, row])
        if random_part(rng, 40, 40, (1.0, 1.0)) != (0, 0, 40, 40):
            continue
        got = small.augmented(image, seed=0, row=row, epoch=0, scale=(1.0, 1.0))
        mirrored = np.array_equal(got, plain[:, ::-1])
        assert mirrored or np.array_equal(got, plain)
        seen.add(mirrored)
    assert seen == {True, False}


def test_parts_lie_within_the_image_and_have_their_share():
    rng = np.random.default_rng(0)
    shares = []
    for _ in range(500):
        left, top, wide, high = random_part(rng, 100, 80, (0.2, 0.6))
        assert 0 <= left <= 100 - wide
        assert 0 <= top <= 80 - high
        assert 0.7 < wide / high < 1.4
        shares.append(wide * high / 8000)
    assert 0.18 < min(shares) < 0.25
    assert 0.55 < max(shares) < 0.62
    assert random_part(rng, 1000, 10, (1.0, 1.0)) == (493, 0, 13, 10)  # nothing of 4:3 has that area


@pytest.mark.parametrize("mode", ["L", "LA", "RGBA", "P", "CMYK", "1"])
@pytest.mark.parametrize("as_what", ["path", "bytes", "column", "stored", "pillow"])
def test_every_kind_of_image_becomes_rgb(mode, as_what, tmp_path):
    image = picture(12, 9, mode=mode)
    file = tmp_path / ("a.tif" if mode == "CMYK" else "a.png")
    image.save(file)
    value = {
        "path": str(file),
        "bytes": file.read_bytes(),
        "column": {"bytes": file.read_bytes(), "path": None},
        "stored": {"bytes": None, "path": str(file)},
        "pillow": image,
    }[as_what]
    got = open_image(value, origin="row 1")
    np.testing.assert_array_equal(np.asarray(got), np.asarray(image.convert("RGB")))


def test_a_photo_is_turned_upright(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    picture(12, 9).save(tmp_path / "a.png", exif=exif)
    assert open_image("a.png", origin="row 1", folder=tmp_path).size == (9, 12)


def bomb(width: int, height: int) -> bytes:
    """A PNG of a few bytes that says it is large."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    packed = zlib.compress(bytes(1000))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", packed) + chunk(b"IEND", b"")


def png() -> bytes:
    out = io.BytesIO()
    picture(64, 64).save(out, "PNG")
    return out.getvalue()


BROKEN = {
    "a bomb that Pillow refuses": (bomb(60000, 60000), "an image too large to unpack"),
    "a bomb that Pillow warns of": (bomb(12000, 12000), "an image too large to unpack"),
    "text": (b"hello", "not an image"),
    "nothing": (b"", "not an image"),
    "cut off": (png()[:3000], "a broken image"),
    "altered": (png()[:200] + b"\0\0\0\0\0\0" + png()[206:], "a broken image"),
    "too little in it": (bomb(100, 100), "a broken image"),
    "a program": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n", "not an image"),
}


@pytest.mark.parametrize("name", BROKEN)
@pytest.mark.parametrize("as_file", [True, False], ids=["file", "bytes"])
def test_a_broken_image_is_an_error_with_its_place(name, as_file, tmp_path):
    content, says = BROKEN[name]
    file = tmp_path / "a.png"
    file.write_bytes(content)
    with pytest.raises(DataError) as caught:
        open_image(str(file) if as_file else content, origin="cats.parquet row 7")
    assert says in str(caught.value)
    assert "cats.parquet row 7" in str(caught.value)
    assert ("a.png" in str(caught.value)) == as_file


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")  # as outside of tests, where it only warns
def test_a_bomb_is_refused_by_its_header_whatever_pillow_says():
    with pytest.raises(DataError, match="12000 x 12000 pixels"):
        open_image(bomb(12000, 12000), origin="row 1")


@pytest.mark.parametrize(
    ("value", "says"),
    [
        ("missing.png", "there is no such image"),
        ("https://example.org/a.png", "https://example.org/a.png"),
        (7, "int"),
        ({"bytes": None, "path": None}, "dict"),
    ],
)
def test_what_is_no_image(value, says, tmp_path):
    with pytest.raises(DataError, match="image") as caught:
        open_image(value, origin="row 3", folder=tmp_path)
    assert says in str(caught.value)
    assert "row 3" in str(caught.value)


def test_an_image_of_sixteen_bits_is_refused(tmp_path):
    Image.fromarray(np.full((4, 4), 40000, np.uint16)).save(tmp_path / "deep.png")
    with pytest.raises(DataError, match="more than 8 bits"):
        open_image(tmp_path / "deep.png", origin="row 1")


def test_without_pillow_the_extra_is_named(monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(images.RunError, match=r"jaxlean\[vision\]"):
        open_image(b"", origin="row 1")


def test_a_preprocess_is_what_it_says():
    pixels = np.full((2, 2, 3), 255, np.uint8)
    steps = Preprocess(None, None, factor=1 / 127.5, offset=1.0, mean=(0.5,) * 3, std=(0.25,) * 3, twice=True)
    np.testing.assert_allclose(steps.normalise(pixels), 8.0, rtol=1e-6)
