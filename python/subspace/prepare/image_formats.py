"""Formats that hold many images in one file: IDX, and CIFAR's binary version."""

import gzip
import tarfile
import zlib
from math import prod
from pathlib import Path

import numpy as np

from .errors import DataError

MAX_BYTES = 1 << 34  # of one unpacked IDX file
IDX_SPLITS = {"train": "train", "t10k": "test", "test": "test", "valid": "valid"}
UNSIGNED_BYTES = 8


def idx_array(path):
    """The array of an IDX file of unsigned bytes: two zero bytes, the type, the number of axes, each
    axis as a big-endian 32-bit number, the data."""
    opener = gzip.open if path.suffix == ".gz" else open
    try:
        with opener(path, "rb") as file:
            data = file.read(MAX_BYTES + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path}: cannot be read: {error}; fetch it again") from error
    if len(data) > MAX_BYTES:
        raise DataError(f"{path}: more than {MAX_BYTES} bytes unpacked")
    if len(data) < 4 or data[:2] != b"\0\0" or not 1 <= data[3] <= 4:
        raise DataError(f"{path}: begins with {data[:4].hex(' ') or 'nothing'}; expected an IDX file (00 00 08 03 ...)")
    if data[2] != UNSIGNED_BYTES:
        raise DataError(f"{path}: IDX type 0x{data[2]:02x}; expected 0x08, unsigned bytes")
    begin = 4 + 4 * data[3]
    shape = [int.from_bytes(data[at:at + 4], "big") for at in range(4, begin, 4)]
    if len(data) != begin + prod(shape):
        raise DataError(f"{path}: {len(data)} bytes; its header promises {shape}, {begin + prod(shape)} bytes; "
                        "fetch it again")
    return np.frombuffer(data, np.uint8, offset=begin).reshape(shape)


def _idx_pair(folder, prefix):
    found = []
    for what, axes in (("images", 3), ("labels", 1)):
        names = [f"{prefix}-{what}{dot}idx{axes}-ubyte{packed}" for dot in "-." for packed in ("", ".gz")]
        path = next((folder / name for name in names if (folder / name).is_file()), None)
        found.append(path)
    return found


def read_idx(folder):
    splits = {}
    for prefix, split in IDX_SPLITS.items():
        images_path, labels_path = _idx_pair(folder, prefix)
        if not images_path and not labels_path:
            continue
        if not images_path or not labels_path:
            there, lacking = ("images", "labels") if images_path else ("labels", "images")
            raise DataError(f"{folder}: {prefix} has {there} but no {lacking} file")
        images, labels = idx_array(images_path), idx_array(labels_path)
        if images.ndim != 3 or labels.ndim != 1:
            raise DataError(f"{images_path}: shape {images.shape}, labels {labels.shape}; expected [n, height, width] "
                            "and [n]")
        if len(images) != len(labels):
            raise DataError(f"{images_path}: {len(images)} images, but {labels_path.name} has {len(labels)} labels")
        splits[split] = images[:, None], labels.astype(np.int32), [images_path, labels_path]
    return splits, None


CIFAR_SHAPE = (3, 32, 32)
# Label bytes in front of an image, and which of them is the label; 100: coarse, fine.
CIFAR10, CIFAR100 = (1, 0), (2, 1)


def _cifar_files(path):
    """Name -> bytes of the .bin and .txt files of a folder or archive; nothing is unpacked to disk."""
    wanted = (".bin", ".meta.txt", "label_names.txt")
    if path.is_dir():
        return {entry.name: entry.read_bytes() for entry in path.iterdir() if entry.name.endswith(wanted)}
    files = {}
    try:
        with tarfile.open(path) as archive:
            for member in archive:
                if member.isfile() and member.name.endswith(wanted):
                    files[Path(member.name).name] = archive.extractfile(member).read()
    except (tarfile.TarError, EOFError, OSError, zlib.error) as error:
        raise DataError(f"{path}: cannot be read: {error}; fetch it again") from error
    return files


def _cifar_images(name, data, layout):
    ahead, which = layout
    size = ahead + prod(CIFAR_SHAPE)
    if not data or len(data) % size:
        raise DataError(f"{name}: {len(data)} bytes, not a multiple of {size}; fetch it again")
    records = np.frombuffer(data, np.uint8).reshape(-1, size)
    return records[:, ahead:].reshape(-1, *CIFAR_SHAPE), records[:, which].astype(np.int32)


def read_cifar(path):
    files = _cifar_files(path)
    batches = sorted(name for name in files if name.startswith("data_batch_"))
    if batches:
        named, layout, names, count = {"train": batches, "test": ["test_batch.bin"]}, CIFAR10, "batches.meta.txt", 10
    elif "train.bin" in files:
        named, layout, names, count = {"train": ["train.bin"], "test": ["test.bin"]}, CIFAR100, \
            "fine_label_names.txt", 100
    else:
        raise DataError(f"{path}: neither data_batch_*.bin (CIFAR-10) nor train.bin (CIFAR-100); for CIFAR, give its "
                        "binary version")
    splits = {}
    for split, group in named.items():
        parts = [_cifar_images(name, files[name], layout) for name in group if name in files]
        if parts:
            images, labels = (np.concatenate(each) for each in zip(*parts))
            if labels.max() >= count:
                raise DataError(f"{path}: {split} has a label {labels.max()}; expected 0 to {count - 1}")
            splits[split] = images, labels, [path]
    classes = files.get(names, b"").decode("utf-8", "replace").split()
    return splits, classes if len(classes) == count else None
