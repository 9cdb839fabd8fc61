"""Text as it comes: files of several kinds and `datasets` names become records, a record lines.

A source is read as a stream, once, in order; nothing of it is held but what is being looked at.
"""

import gzip
import hashlib
import io
import json
import lzma
import re
from pathlib import Path

from .errors import DataError

TEXT, RECORDS, PARQUET = ".txt", ".jsonl", ".parquet"
PACKED = {".gz": gzip.open, ".xz": lzma.open}
DATASETS = "datasets:"
SURROGATE = re.compile("[\ud800-\udfff]")


class _Counted(io.RawIOBase):
    """A binary file that hashes and counts what is read from it."""

    def __init__(self, path):
        self.file = open(path, "rb")
        self.digest, self.count = hashlib.sha256(), 0

    def readable(self):
        return True

    def readinto(self, buffer):
        got = self.file.readinto(buffer)
        self.digest.update(memoryview(buffer)[:got])
        self.count += got
        return got

    def close(self):
        self.file.close()
        super().close()


class Source:
    """One input. `records()` gives each record as an iterator of lines (with their line ends);
    a text file is one record. After that, `entry()` describes it for meta.json. `size` and
    `position()` measure progress, in bytes."""

    def __init__(self, name, field, split):
        self.name, self.field, self.split = name, field, split
        self.raw, self.entry_ = None, None
        self.size = 0
        if name.startswith(DATASETS):
            self.kind, self.packed = DATASETS, None
            return
        path = Path(name)
        if not path.is_file():
            raise DataError(_not_there(path))
        suffixes = [suffix.lower() for suffix in path.suffixes]
        self.packed = suffixes.pop() if suffixes and suffixes[-1] in PACKED else None
        self.kind = suffixes[-1] if suffixes else TEXT
        self.kind = RECORDS if self.kind == ".ndjson" else self.kind
        self.kind = self.kind if self.kind in (RECORDS, PARQUET, ".json") else TEXT
        if self.kind == ".json":
            raise DataError(f"{name}: a .json file is one value; expected .jsonl, one object a line")
        if self.kind == PARQUET and self.packed:
            raise DataError(f"{name}: a packed parquet file; unpack it first")
        self.size = path.stat().st_size
        if self.size == 0:
            raise DataError(f"{name}: an empty file; expected text")

    @property
    def is_text(self):
        return self.kind == TEXT

    def position(self):
        return self.raw.count if self.raw else self.size

    def entry(self):
        return self.entry_

    def records(self):
        if self.kind == DATASETS:
            yield from self._from_datasets()
        elif self.kind == PARQUET:
            yield from self._from_parquet()
        elif self.kind == RECORDS:
            for number, line in self._numbered_lines():
                if line.strip():
                    yield _lines(self._field_of(line, number))
        else:
            yield (line for _, line in self._numbered_lines())

    def _numbered_lines(self):
        """(number, text) of each line; line ends become a line feed, a byte order mark goes."""
        self.raw = _Counted(self.name)
        number = 0
        try:
            with io.BufferedReader(self.raw, 1 << 20) as buffered:
                with (PACKED[self.packed](buffered) if self.packed else buffered) as file:
                    for number, line in enumerate(file, 1):
                        text = line.decode("utf-8")
                        if number == 1:
                            text = text.removeprefix("\ufeff")
                        yield number, text[:-2] + "\n" if text.endswith("\r\n") else text
        except UnicodeDecodeError as error:
            raise DataError(
                f"{self.name}: line {number}, byte {error.start + 1} of it is 0x{error.object[error.start]:02x}, "
                "which is not UTF-8; convert the file (iconv -f ... -t UTF-8)") from error
        except (EOFError, lzma.LZMAError, gzip.BadGzipFile, OSError) as error:
            raise DataError(
                f"{self.name}: cannot be read behind line {number}: {error}; "
                "the file is damaged or not whole, fetch it again") from error
        self.entry_ = {"name": Path(self.name).name, "bytes": self.raw.count,
                       "sha256": self.raw.digest.hexdigest()}

    def _field_of(self, line, number):
        try:
            record = json.loads(line)
        except json.JSONDecodeError as error:
            raise DataError(f"{self.name}: line {number} is not JSON: {error}; "
                            "expected one object a line") from error
        if not isinstance(record, dict):
            raise DataError(f"{self.name}: line {number} is a {type(record).__name__}; expected an object")
        text = record.get(self.field)
        if not isinstance(text, str):
            found = ", ".join(map(repr, list(record)[:8])) or "none"
            raise DataError(f"{self.name}: line {number} has no text in the field '{self.field}' "
                            f"(fields: {found}); name the field with --field")
        if SURROGATE.search(text):
            raise DataError(f"{self.name}: line {number}: the text has half a surrogate pair, which is "
                            "no character; repair that line or remove it")
        return text

    def _from_parquet(self):
        try:
            import pyarrow.parquet as parquet
        except ImportError as error:
            raise DataError(f"{self.name}: reading parquet needs the package pyarrow; "
                            "pip install pyarrow") from error
        self.raw = _Counted(self.name)
        try:
            with self.raw as file:
                while file.read(1 << 20):
                    pass
            self.entry_ = {"name": Path(self.name).name, "bytes": self.raw.count,
                           "sha256": self.raw.digest.hexdigest()}
            table = parquet.ParquetFile(self.name)
            names = table.schema_arrow.names
            if self.field not in names:
                raise DataError(f"{self.name}: no column '{self.field}' (columns: "
                                f"{', '.join(map(repr, names))}); name it with --field")
            for batch in table.iter_batches(columns=[self.field], batch_size=1024):
                for value in batch.column(0).to_pylist():
                    yield _lines(self._as_text(value))
        except DataError:
            raise
        except Exception as error:  # pyarrow has its own kinds, all of which mean a damaged file
            raise DataError(f"{self.name}: not a readable parquet file: {error}") from error

    def _from_datasets(self):
        try:
            import datasets
        except ImportError as error:
            raise DataError(f"{self.name}: needs the package datasets; pip install datasets, or give "
                            "files (.txt, .jsonl, .parquet)") from error
        name, _, config = self.name.removeprefix(DATASETS).partition(":")
        try:
            rows = datasets.load_dataset(name, config or None, split=self.split)
        except Exception as error:  # the package raises dozens of kinds
            raise DataError(f"{self.name}: datasets.load_dataset('{name}', {config or None!r}, "
                            f"split='{self.split}') failed: {error}") from error
        if self.field not in rows.column_names:
            raise DataError(f"{self.name}: no column '{self.field}' (columns: {', '.join(rows.column_names)}); "
                            "name it with --field")
        digest, count = hashlib.sha256(), 0
        for row in rows:
            text = self._as_text(row[self.field])
            data = text.encode()
            digest.update(len(data).to_bytes(8, "little") + data)
            count += len(data)
            yield _lines(text)
        self.entry_ = {"name": f"{self.name}[{self.split}]", "bytes": count, "sha256": digest.hexdigest()}

    def _as_text(self, value):
        if not isinstance(value, str):
            raise DataError(f"{self.name}: the column '{self.field}' has a {type(value).__name__} "
                            f"({str(value)[:40]}); expected text. Name another with --field")
        return value


def _lines(text):
    return (line + "\n" for line in text.replace("\r\n", "\n").split("\n"))


def _not_there(path):
    if path.is_dir():
        return f"{path}: a folder; expected files, for instance {path}/*.txt"
    return (f"{path}: no such file; for a name of the datasets package write "
            f"{DATASETS}{path}[:CONFIG]")
