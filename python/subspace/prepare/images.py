"""`python -m subspace.prepare images`: labelled images to `uint8` arrays."""

import time
from pathlib import Path

import numpy as np

from .arrays import made_by, sha256_of, write_array, write_meta
from .errors import DataError
from .folder import new_folder
from .image_files import read_tree
from .image_formats import read_cifar, read_idx
from .progress import Progress, duration, say
from .documents import in_held_out

IDX, CIFAR = "idx", "cifar"


def add_options(parser):
    parser.add_argument("--input", required=True, metavar="PATH",
                        help="a folder of IDX files (MNIST, Fashion-MNIST; also .gz), CIFAR's binary version (folder or "
                             "archive), or a folder or archive of train|valid|test/CLASS/*.jpg|png, or CLASS/*.jpg|png")
    parser.add_argument("--valid-fraction", type=float, default=0.0, metavar="F",
                        help="hold out this share of the training images, chosen by their bytes")
    parser.add_argument("--channels", type=int, choices=(1, 3), help="grey or colour (default: as the first image is)")
    parser.add_argument("--size", type=int, metavar="PIXELS",
                        help="resize images of files to a square; without it all must have one size")
    parser.add_argument("--classes", metavar="NAME,...", help="names of labels 0, 1, ... where the files have none")


def _kind(path):
    if path.is_dir():
        names = [entry.name for entry in path.iterdir()]
        if any("-images-idx3-ubyte" in name or "-images.idx3-ubyte" in name for name in names):
            return IDX
        if any(name.endswith(".bin") for name in names):
            return CIFAR
        if "data_batch_1" in names or "train" in names and (path / "train").is_file():
            raise DataError(f"{path}: CIFAR as Python pickles, which can run any code when read; fetch the "
                            "'binary version' of the same data")
        return "tree"
    if not path.is_file():
        raise DataError(f"{path}: no such file or folder")
    return CIFAR if "binary" in path.name and ".tar" in path.name else "tree"


def _hold_out(splits, fraction):
    images, labels, sources = splits["train"]
    if "valid" in splits:
        raise DataError("--valid-fraction: the input has held-out images of its own ('valid')")
    held = np.array([in_held_out(image.tobytes(), fraction) for image in images])
    if held.all() or not held.any():
        raise DataError(f"--valid-fraction {fraction} of {len(images)} images leaves one of the parts empty; "
                        "choose another share")
    return {"train": (images[~held], labels[~held], sources), "valid": (images[held], labels[held], sources),
            **{name: part for name, part in splits.items() if name != "train"}}


def statistics(images):
    """Mean and population standard deviation of each channel over all pixels / 255, from exact sums."""
    channels = images.shape[1]
    histogram = np.zeros((channels, 256), dtype=np.int64)
    for channel in range(channels):
        for begin in range(0, len(images), 1024):
            histogram[channel] += np.bincount(images[begin:begin + 1024, channel].ravel(), minlength=256)
    values = np.arange(256)
    count = histogram.sum(axis=1)
    mean = (histogram @ values) / count
    variance = (histogram * (values - mean[:, None]) ** 2).sum(axis=1) / count
    return (mean / 255).tolist(), (np.sqrt(variance) / 255).tolist()


def _named_classes(options, classes, splits):
    count = 1 + max(int(labels.max()) for _, labels, _ in splits.values())
    if options.classes:
        classes = [name.strip() for name in options.classes.split(",")]
        if len(classes) < count:
            raise DataError(f"--classes names {len(classes)}, but there is a label {count - 1}")
    return classes or [str(label) for label in range(count)]


def _check(splits, classes):
    """Splits must fit each other, and labels the classes."""
    shape = splits["train"][0].shape[1:]
    for name, (images, labels, _) in splits.items():
        if images.shape[1:] != shape:
            raise DataError(f"{name}: images of {images.shape[1:]}, those of train have {shape} "
                            "(channels, height, width)")
        if len(images) == 0:
            raise DataError(f"{name}: no images")
        if labels.max() >= len(classes):
            raise DataError(f"{name}: a label {labels.max()}; expected 0 to {len(classes) - 1}")


def run(options):
    path = Path(options.input)
    kind = _kind(path)
    if not 0 <= options.valid_fraction < 1:
        raise DataError(f"--valid-fraction {options.valid_fraction}: expected a share from 0 to below 1")
    if kind != "tree" and (options.size or options.channels):
        raise DataError("--size and --channels are for folders and archives of image files")
    progress = Progress("reading images", 1)
    if kind == IDX:
        splits, classes = read_idx(path)
    elif kind == CIFAR:
        splits, classes = read_cifar(path)
    else:
        splits, classes = read_tree(path, options.size, options.channels)
    if "train" not in splits:
        raise DataError(f"{path}: no images to train on, only {', '.join(splits)}")
    if options.valid_fraction:
        splits = _hold_out(splits, options.valid_fraction)
    classes = _named_classes(options, classes, splits)
    _check(splits, classes)
    mean, std = statistics(splits["train"][0])
    channels, height, width = splits["train"][0].shape[1:]
    with new_folder(options.out, options.force) as folder:
        entries = {}
        for split, (images, labels, sources) in splits.items():
            entries[split] = {"rows": len(labels), "sources": [_entry(source) for source in sources], "arrays": {
                "images": write_array(folder / f"{split}.images.npy", images),
                "labels": write_array(folder / f"{split}.labels.npy", labels)}}
        write_meta(folder, {
            "kind": "images", "classes": classes, "splits": entries,
            "image": {"channels": channels, "height": height, "width": width, "mean": mean, "std": std},
            "made_by": made_by({"valid_fraction": options.valid_fraction}),
        })
    for split, entry in entries.items():
        say(f"{split}: {entry['rows']:,} images of {channels} x {height} x {width}")
    say(f"mean {', '.join(f'{m:.4f}' for m in mean)}; std {', '.join(f'{s:.4f}' for s in std)} (of pixels / 255)")
    say(f"{len(classes)} classes in {duration(time.monotonic() - progress.begun)}: {folder}")


def _entry(source):
    """A file by its hash; a folder, of which only the arrays' hashes are kept, by its name."""
    if source.is_dir():
        return {"name": source.name, "bytes": 0, "sha256": ""}
    with open(source, "rb") as file:
        return {"name": source.name, "bytes": source.stat().st_size, "sha256": sha256_of(file)}
