"""Folders and archives with one file an image: [train|valid|test/]CLASS/NAME.jpg."""

import io
import tarfile
import zlib
from pathlib import Path, PurePosixPath

import numpy as np

from .errors import DataError
from .progress import Progress

KINDS = (".jpg", ".jpeg", ".png", ".bmp", ".webp")
SPLITS = {"train": "train", "training": "train", "valid": "valid", "val": "valid", "validation": "valid",
          "test": "test"}
# Pillow reads far more formats than anyone stores data sets in, and each is a parser of untrusted bytes.
FORMATS = ("JPEG", "PNG", "BMP", "WEBP")


def _members(path):
    """(path inside, bytes) of every image. Nothing is unpacked to disk, links are not followed."""
    if path.is_dir():
        for file in sorted(path.rglob("*")):
            if file.suffix.lower() in KINDS and file.is_file():
                yield PurePosixPath(file.relative_to(path).as_posix()), file.read_bytes()
        return
    try:
        with tarfile.open(path) as archive:
            for member in archive:
                inside = PurePosixPath(member.name)
                if member.isfile() and inside.suffix.lower() in KINDS:
                    yield inside, archive.extractfile(member).read()
    except (tarfile.TarError, EOFError, OSError, zlib.error) as error:
        raise DataError(f"{path}: cannot be read as a tar archive: {error}; fetch it again") from error


def _decode(path, inside, data, size, channels):
    from PIL import Image

    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            channels = channels or (1 if image.mode in ("1", "L", "I", "I;16", "LA") else 3)
            image = image.convert("L" if channels == 1 else "RGB")
            if size and image.size != (size, size):
                image = image.resize((size, size), Image.Resampling.BICUBIC)
            pixels = np.asarray(image)
    except Exception as error:  # Pillow's decoders raise many kinds, all of which mean a bad file
        raise DataError(f"{path}: {inside}: not a readable image ({error}); repair or remove it") from error
    return pixels.reshape(*pixels.shape[:2], channels).transpose(2, 0, 1)


def _place(path, inside):
    """(split, class) of an image's path, whatever folders stand in front."""
    parts = inside.parts[:-1]
    if not parts:
        raise DataError(f"{path}: {inside} lies in no folder; expected CLASS/{inside} or train/CLASS/{inside}")
    named = [at for at, part in enumerate(parts[:-1]) if part in SPLITS]
    return (SPLITS[parts[named[-1]]] if named else "train"), parts[-1]


def read_tree(path, size=None, channels=None):
    try:
        import PIL  # noqa: F401
    except ImportError as error:
        raise DataError(f"{path}: reading image files needs the package pillow; pip install pillow") from error
    progress = Progress("reading images", 1)
    found, first = {}, None
    for count, (inside, data) in enumerate(_members(path), 1):
        split, label = _place(path, inside)
        pixels = _decode(path, inside, data, size, channels)
        if first is None:
            first, channels = (inside, pixels.shape), pixels.shape[0]
        if pixels.shape != first[1]:
            raise DataError(f"{path}: {inside} has {pixels.shape[2]} x {pixels.shape[1]} pixels; {first[0]} has "
                            f"{first[1][2]} x {first[1][1]}. Make them equal with --size PIXELS")
        found.setdefault(split, []).append((label, inside, pixels))
        progress.count(count, "images")
    progress.done()
    if not found:
        raise DataError(f"{path}: no images ({', '.join(KINDS)}) there; expected train/CLASS/*.jpg or CLASS/*.jpg")
    classes = sorted({label for label, _, _ in found.get("train", [])})
    number = {label: at for at, label in enumerate(classes)}
    splits = {}
    for split, images in found.items():
        for label, inside, _ in images:
            if label not in number:
                raise DataError(f"{path}: {inside} is of class '{label}', of which the training images have none "
                                f"({', '.join(classes[:10])}, ...)")
        # An archive's order is an accident; that of names is not.
        images.sort(key=lambda entry: entry[1])
        splits[split] = (np.stack([pixels for _, _, pixels in images]),
                         np.array([number[label] for label, _, _ in images], dtype=np.int32), [Path(path)])
    return {split: splits[split] for split in ("train", "valid", "test") if split in splits}, classes
