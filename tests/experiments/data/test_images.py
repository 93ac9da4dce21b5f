"""Image files are read as arrays: every color mode is converted correctly, and errors name the damaged file."""

import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from experiments.app import uploads
from experiments.data.images import Images, check_image, check_images, height_and_width, read_bytes, read_image
from experiments.editing.benchmark import BenchmarkEdit
from rnri.image_batch import as_images

SQUARE = (4, 4)


def middle(path: Path) -> list[int]:
    return read_image(path, SQUARE)[:, 2, 2].tolist()


def png(color_type: int, bits: int, values: list[int], size: int = 4) -> bytes:
    """A PNG of one color, for depths that Pillow reads and does not write."""
    row = b"\0" + b"".join(struct.pack(">H" if bits == 16 else ">B", value) for value in values) * size

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", size, size, bits, color_type, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(row * size)) + chunk(b"IEND", b"")


def flat(value: float, kind: str) -> Image.Image:
    return Image.fromarray(np.full(SQUARE, value, kind))


@pytest.mark.parametrize(
    ("name", "image", "options"),
    [
        ("gray16.png", flat(32768, "<u2"), {}),
        ("gray16.tiff", flat(32768, "<u2"), {}),
        ("gray16_big_endian.tiff", flat(32768, ">u2"), {}),
        ("gray16_in_32.tiff", flat(32768, "<i4"), {}),
        ("gray16.pgm", flat(32768, "<i4"), {}),
        ("float.tiff", flat(0.5, "<f4"), {}),
        ("white_is_zero.tiff", flat(32768, "<u2"), {"tiffinfo": {262: 0}}),
    ],
)
def test_16_bit_gray_levels_are_scaled(tmp_path, name, image, options):
    image.save(tmp_path / name, **options)
    assert middle(tmp_path / name) == pytest.approx([128] * 3, abs=1)


@pytest.mark.parametrize("step", [1, 256, 257])
def test_16_bit_ramp_has_256_levels(tmp_path, step):
    ramp = np.arange(0, 65536, step, dtype=np.uint16)[: 256 if step > 1 else None].reshape(-1, 256)
    Image.fromarray(ramp).save(tmp_path / "ramp.png")
    levels = np.unique(read_image(tmp_path / "ramp.png", ramp.shape))
    assert levels.tolist() == list(range(256))


@pytest.mark.parametrize(
    ("color_type", "values", "expected"),
    [
        (2, [32768, 0, 65535], [128, 0, 255]),
        (4, [32768, 65535], [128] * 3),
        (4, [0, 0], [255] * 3),
        (6, [0, 32768, 65535, 65535], [0, 128, 255]),
        (6, [0, 0, 0, 0], [255] * 3),
    ],
    ids=["RGB", "LA", "LA, clear", "RGBA", "RGBA, clear"],
)
def test_16_bit_colors_and_alpha(tmp_path, color_type, values, expected):
    (tmp_path / "x.png").write_bytes(png(color_type, 16, values))
    assert middle(tmp_path / "x.png") == pytest.approx(expected, abs=1)


@pytest.mark.parametrize(
    ("name", "image", "options", "expected"),
    [
        ("1.png", Image.new("1", SQUARE, 1), {}, [255] * 3),
        ("l.png", Image.new("L", SQUARE, 90), {}, [90] * 3),
        ("l_clear.png", Image.new("L", SQUARE, 90), {"transparency": 90}, [255] * 3),
        ("l16_clear.png", flat(1000, "<u2"), {"transparency": 1000}, [255] * 3),
        ("la.png", Image.new("LA", SQUARE, (0, 127)), {}, [128] * 3),
        ("p.gif", Image.new("RGB", SQUARE, (0, 0, 255)).quantize(), {}, [0, 0, 255]),
        ("p_clear.png", Image.new("RGB", SQUARE, (0, 0, 255)).quantize(), {"transparency": 0}, [255] * 3),
        ("rgb_clear.png", Image.new("RGB", SQUARE, (1, 2, 3)), {"transparency": (1, 2, 3)}, [255] * 3),
        ("rgba.png", Image.new("RGBA", SQUARE, (255, 0, 0, 0)), {}, [255] * 3),
        ("cmyk.tiff", Image.new("CMYK", SQUARE, (0, 255, 255, 0)), {}, [255, 0, 0]),
        ("cmyk.jpg", Image.new("CMYK", SQUARE, (255, 0, 255, 0)), {}, [0, 255, 0]),
    ],
)
def test_colors_on_a_white_background(tmp_path, name, image, options, expected):
    image.save(tmp_path / name, **options)
    assert middle(tmp_path / name) == pytest.approx(expected, abs=2)


@pytest.mark.parametrize("value, kind", [(200, "<i4"), (2**20, "<i4"), (-5, "<i4"), (40, "<f4"), (np.nan, "<f4")])
def test_unknown_white_level_is_an_error(tmp_path, value, kind):
    flat(value, kind).save(tmp_path / "x.tiff")
    with pytest.raises(
        ValueError, match=r"x\.tiff cannot be read as an image \(the gray levels .* white level is unknown"
    ):
        read_image(tmp_path / "x.tiff", SQUARE)
    with pytest.raises(ValueError, match="white level is unknown"):
        check_image(tmp_path / "x.tiff")


def test_center_crop_of_any_shape(tmp_path):
    image = np.zeros((8, 24, 3), np.uint8)
    image[:, 8:16] = 200
    Image.fromarray(image).save(tmp_path / "wide.png")
    assert (read_image(tmp_path / "wide.png", (8, 8)) == 200).all()
    assert read_image(tmp_path / "wide.png", (6, 10)).shape == (3, 6, 10)
    for k, size in enumerate([(1, 500), (500, 1), (1, 1)]):
        Image.new("L", size, 9).save(tmp_path / f"{k}.png")
        assert (read_image(tmp_path / f"{k}.png", (16, 24)) == 9).all()


@pytest.mark.parametrize("kind", ["|u1", "<u2"])
def test_exif_rotation_is_applied(tmp_path, kind):
    image = np.zeros((4, 8), kind)
    image[:, 0] = np.iinfo(kind).max
    exif = Image.Exif()
    exif[274] = 6  # rotated by 90 degrees
    Image.fromarray(image).save(tmp_path / "x.png", exif=exif)
    assert read_image(tmp_path / "x.png", (8, 4))[0, :, 0].tolist() == [255] + [0] * 7


def smooth_image(mode: str) -> Image.Image:
    """A smooth 12 x 10 image of a mode of Pillow."""
    ramp = np.linspace(0.1, 0.9, 120).reshape(10, 12)
    if mode in ("I;16", "I"):
        return Image.fromarray((ramp * 65535).astype("<u2" if mode == "I;16" else "<i4"))
    if mode == "F":
        return Image.fromarray(ramp.astype("<f4"))
    rgb = Image.fromarray((np.stack([ramp, ramp.T.reshape(10, 12), 1 - ramp], -1) * 255).astype(np.uint8))
    return rgb.quantize(16) if mode == "P" else rgb.convert(mode)


def readings(path: Path) -> dict[str, np.ndarray]:
    """The pixels ``uint8 [3, 10, 12]`` of an image file by every reader of the project."""
    edit = BenchmarkEdit("0", path, "", "", "", 0, (), np.zeros(0))
    with Image.open(path) as file:
        inverted = as_images(file, (10, 12))[0]
    limits = uploads.UploadLimits(10**6, 10**6)
    return {
        "bytes": read_bytes(path.read_bytes(), "x", (10, 12)),
        "rnri.invert": (inverted * 255).round().byte().numpy(),
        "page": np.asarray(uploads.read_image(path, (10, 12), limits)).transpose(2, 0, 1),
        "benchmark": (edit.load_image((10, 12)) * 255).round().byte().numpy(),
    }


@pytest.mark.parametrize(
    ("mode", "ending"),
    [("I;16", "png"), ("I;16", "tiff"), ("I", "tiff"), ("F", "tiff"), ("P", "png"), ("P", "gif"), ("1", "png"),
     ("CMYK", "jpg"), ("CMYK", "tiff"), ("YCbCr", "jpg"), ("LAB", "tiff"), ("L", "png"), ("RGB", "webp")],
)  # fmt: skip
def test_every_reader_gives_the_same_pixels(tmp_path, mode, ending):
    path = tmp_path / f"x.{ending}"
    exif = Image.Exif()
    smooth_image(mode).save(path, exif=exif)
    expected = read_image(path, (10, 12))
    assert expected.max() - expected.min() > 100
    for name, pixels in readings(path).items():
        np.testing.assert_array_equal(pixels, expected, name)


def test_every_reader_turns_photographs_and_reads_the_first_frame(tmp_path):
    exif = Image.Exif()
    exif[274] = 6  # rotated by 90 degrees
    turned = smooth_image("RGB").transpose(Image.Transpose.ROTATE_90)
    turned.save(tmp_path / "turned.png", exif=exif)
    smooth_image("RGB").save(tmp_path / "frames.png", save_all=True, append_images=[Image.new("RGB", (12, 10))])
    for name in ("turned.png", "frames.png"):
        expected = np.asarray(smooth_image("RGB")).transpose(2, 0, 1)
        for pixels in (read_image(tmp_path / name, (10, 12)), *readings(tmp_path / name).values()):
            np.testing.assert_array_equal(pixels, expected, name)


def test_every_reader_refuses_unknown_white_levels(tmp_path):
    path = tmp_path / "x.tiff"
    Image.fromarray(np.full((10, 12), 200, "<i4")).save(path)
    edit = BenchmarkEdit("0", path, "", "", "", 0, (), np.zeros(0))
    limits = uploads.UploadLimits(10**6, 10**6)
    for read in (
        lambda: read_image(path, (10, 12)),
        lambda: as_images(Image.open(path), (10, 12)),
        lambda: uploads.read_image(path, (10, 12), limits),
        lambda: edit.load_image((10, 12)),
    ):
        with pytest.raises(
            ValueError, match="gray levels of the image range from 200 to 200, and its white level is unknown"
        ):
            read()


def broken(folder: Path) -> list[str]:
    """Creates unreadable files in ``folder`` and returns their names."""
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    for ending in ("jpg", "png", "webp", "tiff", "gif"):
        whole = folder / f"whole.{ending}"
        Image.fromarray(noise).save(whole)
        (folder / f"cut.{ending}").write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    (folder / "empty.png").touch()
    (folder / "text.png").write_text("not an image")
    (folder / "folder.png").mkdir()
    (folder / "dangling.png").symlink_to("nowhere")
    os.mkfifo(folder / "pipe.png")
    names = [f"cut.{ending}" for ending in ("jpg", "png", "webp", "tiff", "gif")]
    names += ["empty.png", "text.png", "folder.png", "dangling.png", "pipe.png", "missing.png"]
    return names


def test_unreadable_files_are_named(tmp_path):
    for name in broken(tmp_path):
        for attempt in (check_image, lambda path: read_image(path, SQUARE)):
            with pytest.raises(ValueError, match=f"{name} cannot be read as an image"):
                attempt(tmp_path / name)


def test_decompression_bomb_is_an_error(tmp_path):
    header = struct.pack(">IIBBBBB", 20_000, 20_000, 8, 0, 0, 0, 0)
    chunk = struct.pack(">I", len(header)) + b"IHDR" + header + struct.pack(">I", zlib.crc32(b"IHDR" + header))
    (tmp_path / "bomb.png").write_bytes(b"\x89PNG\r\n\x1a\n" + chunk + struct.pack(">I", 0) + b"IDAT")
    with pytest.raises(ValueError, match=r"bomb\.png is too large .*reduce or remove it"):
        check_image(tmp_path / "bomb.png")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_damaged_files_of_every_format_are_named(tmp_path):
    """Decoders raise many types of errors; the caller gets a ValueError that names the file."""
    generator = np.random.default_rng(0)
    noise, path = Image.fromarray(generator.integers(0, 255, (32, 32, 3), dtype=np.uint8)), tmp_path / "x.bin"
    errors = 0
    for ending in ("PNG", "JPEG", "GIF", "TIFF", "WEBP", "BMP", "PPM", "ICO", "TGA", "SGI", "PCX", "DDS", "ICNS"):
        noise.save(path, ending)
        whole = path.read_bytes()
        for _ in range(40):
            damaged = bytearray(whole)
            for position in generator.integers(len(damaged), size=3):
                damaged[position] = generator.integers(256)
            path.write_bytes(damaged[: generator.integers(1, len(damaged) + 1)])
            try:
                check_image(path)
            except ValueError as error:
                errors += 1
                assert "x.bin" in str(error)
    assert errors > 200


def test_check_names_the_first_unreadable_file(tmp_path):
    files = [tmp_path / f"{k:03d}.jpg" for k in range(50)]
    for file in files:
        Image.new("RGB", (16, 16), "red").save(file)
    check_images(files, "checking")
    for file in (files[20], files[40]):
        file.write_bytes(file.read_bytes()[:-20])
    with pytest.raises(ValueError, match=r"020\.jpg cannot be read"):
        check_images(files, "checking")


def test_images_are_read_when_indexed():
    reads = []

    def read(item: int, size: tuple[int, int]) -> np.ndarray:
        reads.append(item)
        return np.full((3, *size), item, np.uint8)

    unsized = Images(range(9), read)
    with pytest.raises(ValueError, match=r"no target size is set.*data\.source\.size"):
        unsized[0]
    images = unsized.resized((2, 5)).head(4)
    assert len(images) == 4 and images.shape == (4, 3, 2, 5) and not reads
    assert images[1].shape == (3, 2, 5) and images[-1][0, 0, 0] == 3
    assert images[1:3].shape == (2, 3, 2, 5) and images[4:].shape == (0, 3, 2, 5)
    assert reads == [1, 3, 1, 2]
    assert [image[0, 0, 0] for image in images] == [0, 1, 2, 3]
    assert images[1:, 0, 0, 0].tolist() == [1, 2, 3] and images[2, :, 0, 0].tolist() == [2] * 3
    with pytest.raises(IndexError):
        images[4]


def test_file_stamp_does_not_read_files(tmp_path):
    def read(item, size):
        assert not isinstance(item, Path), "a file was read"
        return np.full((3, *size), item, np.uint8)

    path = tmp_path / "a.png"
    path.write_bytes(b"1")
    stamps = {Images([path], read, size).file_stamp(0) for size in ((2, 2), (2, 3))}
    path.write_bytes(b"22")
    stamps.add(Images([path], read, (2, 2)).file_stamp(0))
    stamps |= {Images([item], read, (2, 2)).file_stamp(0) for item in (1, 1, 2)}
    assert len(stamps) == 5


def test_fixed_size_cannot_change():
    images = Images([], read_image, (2, 5), "leave it out")
    assert images.resized((2, 5)).size == (2, 5)
    with pytest.raises(ValueError, match=r"images have 2 x 5 pixels .*, but the checkpoint needs 5 x 2: leave it out"):
        images.resized((5, 2))


@pytest.mark.parametrize("size", [0, -3, True, 2.5, "64", [64], [64, 0], [1, 2, 3], [64, None]])
def test_size_is_a_side_or_height_and_width(size):
    assert [height_and_width(right) for right in (8, [8, 16], None)] == [(8, 8), (8, 16), None]
    with pytest.raises(ValueError, match=r"data\.source\.size=.*\[height, width\]"):
        height_and_width(size)
