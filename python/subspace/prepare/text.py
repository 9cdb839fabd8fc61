"""`python -m subspace.prepare text`: documents to rows of tokens."""

import math
import time
from contextlib import ExitStack
from dataclasses import dataclass

import numpy as np

from . import tokenizer as tokenizers
from .arrays import ArrayWriter, made_by, write_atomically, write_meta
from .documents import RULES, begins_with_title
from .errors import DataError
from .folder import SHARDS, new_folder
from .progress import Progress, duration, say, size
from .rows import Layout, PackedRows, SplitRows
from .shards import read_shards, tokenized
from .sources import Source

# What the parts of a data set are called by the `datasets` package.
THEIR_NAMES = {"train": "train", "valid": "validation", "test": "test"}
MAX_LENGTH = 1 << 20


def add_tokenizer_options(parser):
    parser.add_argument("--tokenizer", required=True, metavar="PATH|NAME",
                        help="tokenizer.json, a WordPiece vocabulary (.txt), a folder of GPT-2's two files, "
                             "a name on the Hugging Face hub, or 'bytes'")
    parser.add_argument("--length", type=int, required=True, help="tokens a row, special tokens among them")
    parser.add_argument("--style", choices=("auto", "encoder", "decoder"), default="auto",
                        help="encoder: rows in CLS and SEP; decoder: EOS behind a document; "
                             "auto (default): by the tokenizer")
    parser.add_argument("--case", choices=("auto", "keep", "lower"), default="auto",
                        help="for a WordPiece vocabulary: auto (default) keeps case if it has capital letters")
    parser.add_argument("--special", action="append", default=[], metavar="KIND=TOKEN",
                        help="which token is pad, unk, cls, sep, mask, bos or eos, where its name does not say so")


def add_options(parser):
    parser.add_argument("--input", nargs="+", required=True, metavar="FILE",
                        help=".txt, .jsonl (each also .gz, .xz), .parquet, or datasets:NAME[:CONFIG]")
    parser.add_argument("--valid", nargs="+", default=[], metavar="FILE", help="held-out text")
    parser.add_argument("--test", nargs="+", default=[], metavar="FILE", help="more held-out text")
    parser.add_argument("--valid-fraction", type=float, default=0.0, metavar="F",
                        help="hold out this share of the input's documents, chosen by their text")
    add_tokenizer_options(parser)
    parser.add_argument("--pack", action="store_true", help="documents follow each other without regard to rows")
    parser.add_argument("--documents", choices=RULES, default="auto",
                        help="what begins a document: titles ('= Title ='), blank lines, each line, each file or "
                             "record; auto (default): titles where a text file begins with one, else file, or blank "
                             "for one text file of which a share is held out")
    parser.add_argument("--field", default="text", help="field or column that holds the text (default: text)")


def load_tokenizer(options, least):
    """The tokenizer and style that the options mean; `least` content tokens must fit in a row."""
    cased = {"auto": "auto", "keep": True, "lower": False}[options.case]
    tokenizer = tokenizers.load(options.tokenizer, options.special, cased)
    style = tokenizer.style(options.style)
    shortest = least + (2 if style == "encoder" else 1)
    if not shortest <= options.length <= MAX_LENGTH:
        raise DataError(f"--length {options.length}: expected {shortest} to {MAX_LENGTH} for style '{style}'")
    return tokenizer, style


@dataclass
class _Split:
    """One split's rows on their way to files."""

    builder: object
    writers: dict
    sources: list
    documents: int = 0
    words: int = 0
    bytes: int = 0
    text_tokens: int = 0
    lowest: float = 1.0  # place of a document, where a share is held out

    def add(self, shard, ids, counts):
        self.lowest = min([self.lowest, *(piece.place for piece in shard.pieces)])
        self.documents += sum(piece.first for piece in shard.pieces)
        self.words += sum(piece.words for piece in shard.pieces)
        self.bytes += sum(piece.size for piece in shard.pieces)
        self.text_tokens += len(ids)
        self.builder.add(ids.astype(np.int64), counts, shard.firsts())

    def finish(self, length):
        self.builder.finish()
        rows, tokens = self.builder.rows, self.builder.total
        return {
            "rows": rows, "tokens": tokens, "text_tokens": self.text_tokens,
            "special_tokens": tokens - self.text_tokens, "padding": rows * length - tokens,
            "documents": self.builder.document_count, "words": self.words, "bytes": self.bytes,
            "sources": [source.entry() for source in self.sources],
            "arrays": {name: writer.finish() for name, writer in self.writers.items()},
        }


class _Job:
    def __init__(self, options, rule, folder, tokenizer, style):
        self.options, self.rule, self.folder, self.tokenizer = options, rule, folder, tokenizer
        pad = tokenizer.pad_id(style)
        self.layout = Layout(options.length, style, tokenizer.special, pad)
        self.dtype = np.uint16 if tokenizer.vocab_size <= 1 << 16 else np.uint32
        self.splits = {}
        self.files = ExitStack()

    def open_split(self, name, sources):
        def writer(array, dtype, row_shape=()):
            path = self.folder / f"{name}.{array}.npy"
            return self.files.enter_context(ArrayWriter(path, dtype, row_shape))

        writers = {
            "tokens": writer("tokens", self.dtype, (self.options.length,)),
            "lengths": writer("lengths", np.int32),
            "documents": writer("documents", np.int64),
        }
        builder = (PackedRows if self.options.pack else SplitRows)(self.layout, *writers.values())
        self.splits[name] = _Split(builder, writers, sources)

    def read(self, name, sources, fraction, progress, before):
        self.open_split(name, sources)
        if fraction:
            self.open_split("valid", sources)
        kept = 0
        shards = read_shards(sources, name, self.rule, fraction)
        for shard, ids, counts, was_there in tokenized(shards, self.folder / SHARDS, self.tokenizer):
            self.splits[shard.split].add(shard, ids, counts)
            if was_there:
                kept += 1
                progress.skip(before + shard.position)
            progress.show(before + shard.position, f"{self.tokens():,} tokens")
        if kept:
            say(f"{name}: {kept} shards of an earlier run were kept")

    def tokens(self):
        return sum(split.text_tokens for split in self.splits.values())

    def finish(self):
        entries = {}
        for name, split in self.splits.items():
            if split.text_tokens == 0:
                raise DataError(self.nothing_in(name, split))
            entries[name] = split.finish(self.options.length)
        return entries

    def nothing_in(self, name, split):
        names = ", ".join(source.name for source in split.sources)
        documents = sum(self.splits[part].documents for part in ("train", "valid") if part in self.splits)
        if self.options.valid_fraction and name != "test" and documents:
            return (f"{names}: --valid-fraction {self.options.valid_fraction} of {documents} documents leaves '{name}' "
                    f"empty; {self.other_share(name, documents)}")
        return f"{names}: no text for '{name}'; expected at least one word"

    def other_share(self, name, documents):
        if name == "train" or documents == 1:
            return "choose another share, let --documents (blank, line) find more of them, or name files with --valid"
        share = math.floor(self.splits["train"].lowest * 1000 + 1) / 1000  # just above the lowest place
        return f"choose a larger one (from {share:.3f} on it holds one out), or name files with --valid"


def _sources(options):
    named = {"train": options.input, "valid": options.valid, "test": options.test}
    return {split: [Source(name, options.field, THEIR_NAMES[split]) for name in names]
            for split, names in named.items() if names}


def _check(options):
    if options.valid_fraction and options.valid:
        raise DataError("--valid and --valid-fraction exclude each other")
    if not 0 <= options.valid_fraction < 1:
        raise DataError(f"--valid-fraction {options.valid_fraction}: expected a share from 0 to below 1")


def _rule(options, sources):
    """What --documents means: of one text file that is one document no share could be held out."""
    only = sources["train"][0]
    alone = len(sources["train"]) == 1 and only.is_text
    if options.documents != "auto" or not options.valid_fraction or not alone:
        return options.documents
    if begins_with_title(next(only.records())):
        return "titles"
    say(f"{only.name}: no titles; blank lines are taken to separate its documents (--documents blank)")
    return "blank"


def run(options):
    _check(options)
    sources = _sources(options)
    rule = _rule(options, sources)
    tokenizer, style = load_tokenizer(options, least=1)
    with new_folder(options.out, options.force) as folder:
        job = _Job(options, rule, folder, tokenizer, style)
        progress = Progress("tokenizing", sum(s.size for group in sources.values() for s in group))
        before = 0
        with job.files:
            for split, group in sources.items():
                job.read(split, group, options.valid_fraction if split == "train" else 0.0, progress, before)
                before += sum(source.size for source in group)
            entries = job.finish()
        progress.done()
        write_atomically(folder / "tokenizer.json", tokenizer.json.encode())
        entry = tokenizer.entry()
        meta = write_meta(folder, {
            "kind": "text", "style": style, "length": options.length, "packed": options.pack, "tokenizer": entry,
            "pad_id": job.layout.pad, "splits": entries,
            "made_by": made_by({"documents": rule, "valid_fraction": options.valid_fraction}),
        })
    report(meta, folder, progress)


def report(meta, folder, progress):
    for name, entry in meta["splits"].items():
        padding = 100 * entry["padding"] / (entry["padding"] + entry["tokens"])
        say(f"{name}: {entry['documents']:,} documents, {entry['words']:,} words, {size(entry['bytes'])}; "
            f"{entry['tokens']:,} tokens in {entry['rows']:,} rows of {meta['length']}, {padding:.1f} % padding")
    say(f"{meta['style']} data in {duration(time.monotonic() - progress.begun)}: {folder}")
