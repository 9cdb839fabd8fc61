"""`python -m subspace.prepare sst2`: sentences with labels, one a row."""

import hashlib
import time
from pathlib import Path

import numpy as np

from .arrays import made_by, write_array, write_atomically, write_meta
from .errors import DataError
from .folder import new_folder
from .progress import Progress, duration, say, size
from .text import add_tokenizer_options, load_tokenizer

FILES = {"train": ("train.tsv",), "valid": ("dev.tsv", "valid.tsv")}
CLASSES = ("negative", "positive")
BATCH = 4096


def add_options(parser):
    parser.add_argument("--input", metavar="FOLDER", help="holds train.tsv and dev.tsv")
    parser.add_argument("--train", metavar="FILE", help="in place of --input: TSV with the columns label and text")
    parser.add_argument("--valid", metavar="FILE", help="the held-out TSV")
    parser.add_argument("--classes", default=",".join(CLASSES), metavar="NAME,...",
                        help="names of labels 0, 1, ... (default: negative,positive)")
    add_tokenizer_options(parser)


def _files(options):
    if options.train:
        if options.input:
            raise DataError("--input and --train exclude each other")
        files = {"train": options.train, "valid": options.valid}
        return {split: Path(name) for split, name in files.items() if name}
    if not options.input:
        raise DataError("no input: give --input FOLDER, or --train FILE and --valid FILE")
    files = {}
    for split, names in FILES.items():
        files[split] = next((path for name in names if (path := Path(options.input) / name).is_file()), None)
        if not files[split]:
            raise DataError(f"{options.input}: no {' or '.join(names)} there; name the files with --train, --valid")
    return files


def read_tsv(path, classes):
    """(sentences, labels, entry of meta.json). TSV has no quoting: a quotation mark is text."""
    try:
        data = path.read_bytes()
        lines = data.decode("utf-8").split("\n")
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such file") from error
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise DataError(f"{path}: line {line} is not UTF-8 (byte 0x{data[error.start]:02x})") from error
    header = lines[0].strip().lower().split("\t")
    if len(header) != 2 or "label" not in header:
        raise DataError(f"{path}: the first line is {lines[0][:60]!r}; expected the names of two columns, one "
                        "of them 'label'")
    label_column = header.index("label")
    sentences, labels = [], []
    for number, line in enumerate(lines[1:], 2):
        line = line.removesuffix("\r")
        if not line and number == len(lines):
            break
        columns = line.split("\t")
        if len(columns) != 2:
            raise DataError(f"{path}: line {number} has {len(columns)} columns; expected 2, with a tab between")
        label, sentence = columns[label_column], columns[1 - label_column].strip()
        if label not in map(str, range(len(classes))):
            raise DataError(f"{path}: line {number}: label {label[:20]!r}; expected 0 to {len(classes) - 1} "
                            f"({', '.join(classes)})")
        if not sentence:
            raise DataError(f"{path}: line {number} has no sentence; remove the line")
        sentences.append(sentence)
        labels.append(int(label))
    if not labels:
        raise DataError(f"{path}: no sentence behind the first line")
    entry = {"name": path.name, "bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    return sentences, np.array(labels, dtype=np.int32), entry


def rows(sentences, tokenizer, style, length, progress):
    """(tokens [rows, length], lengths [rows], rows that lost their end). The tokens that say where a
    text begins and ends are kept, the text is what is cut."""
    special, pad = tokenizer.special, tokenizer.pad_id(style)
    front = [special["cls"]] if style == "encoder" else []
    back = [special["sep" if style == "encoder" else "eos"]]
    width = length - len(front) - len(back)
    dtype = np.uint16 if tokenizer.vocab_size <= 1 << 16 else np.uint32
    tokens = np.full((len(sentences), length), pad, dtype=dtype)
    lengths = np.zeros(len(sentences), dtype=np.int32)
    truncated = 0
    for begin in range(0, len(sentences), BATCH):
        for row, ids in enumerate(tokenizer.encode(sentences[begin:begin + BATCH]), begin):
            truncated += len(ids) > width
            whole = front + ids[:width] + back
            tokens[row, :len(whole)] = whole
            lengths[row] = len(whole)
        progress.show(begin)
    return tokens, lengths, truncated


def run(options):
    classes = [name.strip() for name in options.classes.split(",")]
    if len(classes) < 2 or len(set(classes)) < len(classes) or not all(classes):
        raise DataError(f"--classes {options.classes}: expected two or more different names")
    tokenizer, style = load_tokenizer(options, least=1)
    read = {split: read_tsv(path, classes) for split, path in _files(options).items()}
    with new_folder(options.out, options.force) as folder:
        splits, progress = {}, Progress("tokenizing", sum(len(part[0]) for part in read.values()))
        for split, (sentences, labels, source) in read.items():
            tokens, lengths, truncated = rows(sentences, tokenizer, style, options.length, progress)
            arrays = {"tokens": tokens, "lengths": lengths, "labels": labels}
            total = int(lengths.sum())
            added = len(labels) * (2 if style == "encoder" else 1)
            splits[split] = {
                "rows": len(labels), "tokens": total, "text_tokens": total - added, "special_tokens": added,
                "padding": tokens.size - total, "documents": len(labels),
                "words": sum(len(sentence.split()) for sentence in sentences),
                "bytes": sum(len(sentence.encode()) for sentence in sentences), "truncated": truncated,
                "sources": [source],
                "arrays": {name: write_array(folder / f"{split}.{name}.npy", array)
                           for name, array in arrays.items()},
            }
        progress.done()
        write_atomically(folder / "tokenizer.json", tokenizer.json.encode())
        meta = write_meta(folder, {
            "kind": "classification", "style": style, "length": options.length, "packed": False,
            "tokenizer": tokenizer.entry(), "pad_id": tokenizer.pad_id(style), "classes": classes, "splits": splits,
            "made_by": made_by({}),
        })
    for split, entry in meta["splits"].items():
        share = np.bincount(read[split][1], minlength=len(classes))
        counts = ", ".join(f"{count:,} {name}" for count, name in zip(share, classes))
        say(f"{split}: {counts}; {size(entry['bytes'])}, {entry['tokens']:,} tokens, "
            f"{entry['truncated']:,} cut at {options.length}")
    say(f"{style} data in {duration(time.monotonic() - progress.begun)}: {options.out}")
