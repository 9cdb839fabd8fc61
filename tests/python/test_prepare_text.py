"""python -m subspace.prepare text"""

import gzip
import json
import lzma
import re
import signal
import subprocess
import sys
import time
import types

import numpy as np
import pytest
from prepare_tool import Data, command, environment, prepare, refuse, shared

WIKI = """ = First = 

One line .
 = = Section = = 
= 1 + 1 =
More of the first .

 = Second = 

The [SEP] second one .
"""
FIRST = "= First = \n\nOne line .\n = = Section = = \n= 1 + 1 =\nMore of the first ."
SECOND = "= Second = \n\nThe [SEP] second one ."
BYTES = ("--tokenizer", "bytes", "--style", "decoder", "--length", "64")
PAD, CLS, SEP, MASK, EOS = 0, 2, 3, 4, 5


@pytest.fixture
def write(tmp_path):
    def write_(name, content):
        data = content.encode() if isinstance(content, str) else content
        opener = {".gz": gzip.open, ".xz": lzma.open}.get("." + name.rpartition(".")[2], open)
        with opener(tmp_path / name, "wb") as file:
            file.write(data)
        return tmp_path / name
    return write_


def made(tmp_path, *arguments, out="out"):
    prepare("text", *arguments, "--out", tmp_path / out)
    return Data(tmp_path / out)


@pytest.mark.parametrize("name", ["a.txt", "a.txt.xz", "a.txt.gz", "a"])
@pytest.mark.parametrize("pack", [[], ["--pack"]])
def test_titles_make_documents(write, tmp_path, name, pack):
    data = made(tmp_path, "--input", write(name, WIKI), *BYTES, *pack)
    assert data.documents() == [FIRST, SECOND]
    entry = data.meta["splits"]["train"]
    assert entry["documents"] == 2
    assert entry["bytes"] == len((FIRST + SECOND).encode()) == entry["text_tokens"]
    assert entry["words"] == len(FIRST.split()) + len(SECOND.split())
    assert entry["special_tokens"] == 2  # an EOS each
    assert data.meta["packed"] == bool(pack)
    source, = entry["sources"]
    assert source["name"] == name and source["bytes"] == (tmp_path / name).stat().st_size


@pytest.mark.parametrize("rule, expected", [
    ("file", [WIKI.strip()]),
    ("blank", [" = First = ", "One line .\n = = Section = = \n= 1 + 1 =\nMore of the first .", " = Second = ",
               "The [SEP] second one ."]),
    ("line", [line for line in WIKI.split("\n") if line]),
])
def test_rules_for_documents(write, tmp_path, rule, expected):
    data = made(tmp_path, "--input", write("a.txt", WIKI), *BYTES, "--documents", rule)
    assert data.documents() == [text.strip() for text in expected]


def test_line_ends_marks_and_blank_ends_are_no_text(write, tmp_path):
    data = made(tmp_path, "--input", write("a.txt", "\ufeff\r\n\r\nAbc\r\ndef \r\n\r\n".encode()), *BYTES)
    assert data.documents() == ["Abc\ndef"]


def test_jsonl_records_are_documents(write, tmp_path):
    lines = [{"text": "One\n\ntwo"}, {"text": "  "}, {"text": "Thrée"}]
    path = write("a.jsonl.gz", "\n".join(map(json.dumps, lines)) + "\n\n")
    data = made(tmp_path, "--input", path, *BYTES)
    assert data.documents() == ["One\n\ntwo", "Thrée"]
    data = made(tmp_path, "--input", path, *BYTES, "--documents", "line", out="lines")
    assert data.documents() == ["One", "two", "Thrée"]


def test_parquet_records_are_documents(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    import pyarrow.parquet as parquet

    parquet.write_table(pyarrow.table({"body": ["One", "two\nlines"]}), tmp_path / "a.parquet")
    data = made(tmp_path, "--input", tmp_path / "a.parquet", *BYTES, "--field", "body")
    assert data.documents() == ["One", "two\nlines"]
    assert "no column 'text'" in refuse("text", "--input", tmp_path / "a.parquet", *BYTES, "--out", tmp_path / "b")
    (tmp_path / "bad.parquet").write_bytes(b"PAR1 nothing")
    error = refuse("text", "--input", tmp_path / "bad.parquet", *BYTES, "--out", tmp_path / "b")
    assert "bad.parquet: not a readable parquet" in error


def test_a_missing_package_is_named(monkeypatch, tmp_path):
    from subspace.prepare.errors import DataError
    from subspace.prepare.sources import Source

    (tmp_path / "a.parquet").write_bytes(b"PAR1")
    for module, name in (("datasets", "datasets:x"), ("pyarrow", str(tmp_path / "a.parquet"))):
        monkeypatch.setitem(__import__("sys").modules, module, None)
        with pytest.raises(DataError, match=f"pip install {module}"):
            list(Source(name, "text", "train").records())


def test_datasets_names(monkeypatch):
    """The package is not needed to see that it is asked the right thing."""
    from subspace.prepare.errors import DataError
    from subspace.prepare.sources import Source

    class Rows(list):
        column_names = ["text"]

    asked = []

    def load_dataset(name, config, split):
        asked.append((name, config, split))
        if name == "none":
            raise ConnectionError("no network")
        return Rows([{"text": "One\ntwo"}, {"text": "three"}])

    monkeypatch.setitem(__import__("sys").modules, "datasets", types.SimpleNamespace(load_dataset=load_dataset))
    source = Source("datasets:org/wiki:raw", "text", "validation")
    assert [list(lines) for lines in source.records()] == [["One\n", "two\n"], ["three\n"]]
    assert asked == [("org/wiki", "raw", "validation")] and source.entry()["bytes"] == 12
    with pytest.raises(DataError, match="no network"):
        list(Source("datasets:none", "text", "train").records())
    with pytest.raises(DataError, match="no column 'body'"):
        list(Source("datasets:x", "body", "train").records())


def wordpiece(folder):
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "second", "one", "##s", ".", "[", "]", "sep"]
    (folder / "vocab.txt").write_text("\n".join(tokens) + "\n")
    return folder / "vocab.txt"


def test_encoder_rows(write, tmp_path):
    path = write("a.txt", "The seconds [SEP]\n\nOne.\n")
    data = made(tmp_path, "--input", path, "--tokenizer", wordpiece(tmp_path), "--length", "5", "--documents", "blank")
    # the second ##s | [ sep ] -> in the text, [SEP] is three ordinary tokens
    assert data.splits["train"]["tokens"].tolist() == [
        [2, 5, 6, 8, 3], [2, 10, 12, 11, 3], [2, 7, 9, 3, 0]]
    assert data.splits["train"]["documents"].tolist() == [1, 11, 14]
    assert data.meta["style"] == "encoder" and data.meta["pad_id"] == 0
    assert data.meta["tokenizer"]["special"] == {"pad": 0, "unk": 1, "cls": 2, "sep": 3, "mask": 4}
    assert data.meta["tokenizer"]["never_masked"] == [0, 1, 2, 3, 4]
    assert data.meta["tokenizer"]["vocab_size"] == 13
    packed = made(tmp_path, "--input", path, "--tokenizer", tmp_path / "vocab.txt", "--length", "5", "--documents",
                  "blank", "--pack", out="packed")
    assert packed.splits["train"]["tokens"].tolist() == [
        [2, 5, 6, 8, 3], [2, 10, 12, 11, 3], [2, 3, 7, 9, 3]]
    assert packed.splits["train"]["documents"].tolist() == [1, 12, 15]


def test_case_follows_the_vocabulary(tmp_path):
    from subspace.prepare.tokenizer import load

    path = wordpiece(tmp_path)
    assert load(str(path)).encode(["THE"]) == [[5]]
    assert load(str(path), cased=True).encode(["THE"]) == [[1]]
    path.write_text(path.read_text() + "The\n")
    assert load(str(path)).encode(["The", "THE"]) == [[13], [1]]


def test_gpt2_folder(write, tmp_path):
    from tokenizers import pre_tokenizers

    folder = tmp_path / "gpt2"
    folder.mkdir()
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = [*letters, "Ġt", "Ġth", "<|endoftext|>"]
    (folder / "encoder.json").write_text(json.dumps({token: i for i, token in enumerate(tokens)}))
    (folder / "vocab.bpe").write_text("#version: 0.2\nĠ t\nĠt h\n")
    data = made(tmp_path, "--input", write("a.txt", "a the <|endoftext|>"), "--tokenizer", folder, "--length", "32")
    ids = data.splits["train"]["tokens"][0]
    length = data.splits["train"]["lengths"][0]
    assert ids[0] == letters.index("a") and ids[1] == 257  # " th"
    assert length == 1 + 2 + len(" <|endoftext|>") + 1
    assert (ids[:length] == 258).sum() == 1 and (ids[length - 1:] == 258).all()
    assert data.meta["style"] == "decoder" and data.meta["pad_id"] == 258


def test_tokenizer_json_is_taken_as_it_is(write, tmp_path):
    path = write("a.txt", "Some text")
    first = made(tmp_path, "--input", path, *BYTES)
    second = made(tmp_path, "--input", path, "--tokenizer", tmp_path / "out" / "tokenizer.json", "--style", "decoder",
                  "--length", "64", out="again")
    assert second.meta["tokenizer"]["sha256"] == first.meta["tokenizer"]["sha256"]
    assert second.meta["id"] == first.meta["id"]


def test_large_vocabularies_have_32_bit_tokens(write, tmp_path):
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"w{i}" for i in range(70000))]
    (tmp_path / "vocab.txt").write_text("\n".join(tokens))
    data = made(tmp_path, "--input", write("a.txt", "w69999 w0"), "--tokenizer", tmp_path / "vocab.txt", "--length", "4")
    assert data.splits["train"]["tokens"].dtype == np.uint32
    assert data.splits["train"]["tokens"].tolist() == [[2, 70004, 5, 3]]


def test_held_out_documents(write, tmp_path):
    lines = [f"document number {i}" for i in range(400)] + ["document number 7"] * 3
    path = write("a.txt", "\n".join(lines))
    data = made(tmp_path, "--input", path, *BYTES, "--documents", "line", "--valid-fraction", "0.25")
    train, valid = data.documents("train"), data.documents("valid")
    assert sorted(train + valid) == sorted(lines)
    assert not set(train) & set(valid), "a document stands on both sides"
    assert 70 <= len(valid) <= 130
    # What is held out depends on a document's text alone.
    path = write("b.txt", "\n".join(lines[::2]))
    half = made(tmp_path, "--input", path, *BYTES, "--documents", "line", "--valid-fraction", "0.25", out="half")
    assert set(half.documents("valid")) <= set(valid)


def test_one_file_without_titles_is_held_out_by_its_paragraphs(write, tmp_path):
    text = "\n\n".join(f"Paragraph number {i}\nhas two lines." for i in range(60))
    arguments = ("text", "--input", write("a.txt", text), *BYTES, "--valid-fraction", "0.25", "--out")
    assert "a.txt: no titles; blank lines" in prepare(*arguments, tmp_path / "auto")
    data = Data(tmp_path / "auto")
    assert len(data.documents("train")) + len(data.documents("valid")) == 60
    prepare(*arguments, tmp_path / "blank", "--documents", "blank")
    assert data.meta == Data(tmp_path / "blank").meta
    # A title is one, and files are documents where there are several.
    titled = made(tmp_path, "--input", write("b.txt", WIKI), *BYTES, "--valid-fraction", "0.5", out="titled")
    assert sorted(titled.documents("train") + titled.documents("valid")) == [FIRST, SECOND]
    error = refuse("text", "--input", tmp_path / "a.txt", tmp_path / "a.txt", *BYTES, "--valid-fraction", "0.5", "--out",
                   tmp_path / "two")
    assert "of 2 documents leaves" in error and "blank lines" not in error


def test_too_small_a_share_says_which_is_not(write, tmp_path):
    text = "\n".join(f"document number {i}" for i in range(30))
    arguments = ("text", "--input", write("a.txt", text), *BYTES, "--documents", "line", "--out", tmp_path / "out")
    error = refuse(*arguments, "--valid-fraction", "0.0001")
    share = re.search(r"from (0\.\d{3}) on", error).group(1)
    prepare(*arguments, "--valid-fraction", share)
    assert len(Data(tmp_path / "out").documents("valid")) == 1
    assert "leaves 'valid' empty" in refuse(*arguments, "--force", "--valid-fraction", f"{float(share) - 0.001:.3f}")


def test_after_an_error_what_is_kept_is_said(write, tmp_path):
    arguments = ("--documents", "line", "--out", tmp_path / "out")
    path = write("a.txt", "One\nTwo\nThree")
    error = refuse("text", "--input", path, *BYTES, "--valid-fraction", "0.0001", *arguments)
    assert f"{tmp_path / 'out' / 'shards'}: 1 finished shards of tokens are kept" in error
    assert sorted(item.name for item in (tmp_path / "out").iterdir()) == [".lock", "shards"]
    assert "1 shards of an earlier run were kept" in prepare("text", "--input", path, *BYTES, *arguments)
    assert Data(tmp_path / "out").documents() == ["One", "Two", "Three"]
    # Nothing finished, nothing kept.
    error = refuse("text", "--input", write("b.txt", b"fine\nb\xe4d\n"), *BYTES, "--out", tmp_path / "bad")
    assert "kept" not in error and [item.name for item in (tmp_path / "bad").iterdir()] == [".lock"]


def test_splits_from_files(write, tmp_path):
    data = made(tmp_path, "--input", write("a.txt", "One"), write("b.txt", "Two"), "--valid", write("c.txt", "Three"),
                "--test", write("d.txt", "Four"), *BYTES)
    assert data.documents("train") == ["One", "Two"]
    assert data.documents("valid") == ["Three"] and data.documents("test") == ["Four"]


def test_long_documents_are_cut_where_tokens_do_not_change(tmp_path, monkeypatch):
    from subspace.prepare import documents, tokenizer

    generator = np.random.default_rng(0)
    words = ["ab", "the", " x", "\n", "\n", "\n ", "\n\n", ".", " ", "Zé", "\t"]
    text = "".join(generator.choice(words, 4000)).strip()
    monkeypatch.setattr(documents, "PIECE", 200)
    lines = text.splitlines(keepends=True)
    pieces = list(documents.pieces(iter(lines), "file", True))
    assert len(pieces) > 20 and [piece.first for piece in pieces] == [True] + [False] * (len(pieces) - 1)
    assert "".join(piece.text for piece in pieces) == text
    assert sum(piece.words for piece in pieces) == len(text.split())
    vocabulary = shared("vocab", "gpt2")
    for name in (vocabulary, vocabulary.parent / "bert-base-uncased-vocab.txt"):
        backend = tokenizer.load(str(name))
        whole, = backend.encode([text])
        assert [i for ids in backend.encode([piece.text for piece in pieces]) for i in ids] == whole


def corpus(path, megabytes):
    """Documents of made-up words, so that shards differ."""
    generator = np.random.default_rng(1)
    words = ["".join(chr(97 + c) for c in generator.integers(0, 26, 5)) for _ in range(500)]
    with open(path, "w") as file:
        for number in range(megabytes * 20):
            text = " ".join(words[i] for i in generator.integers(0, 500, 8200))
            file.write(f"= Title {number} =\n\n{text}\n\n")


def test_killed_and_started_again_ends_with_the_same_bits(tmp_path):
    corpus(tmp_path / "a.txt", 13)
    arguments = ("text", "--input", tmp_path / "a.txt", *BYTES, "--pack", "--out")
    process = subprocess.Popen(command(*arguments, tmp_path / "killed"), env=environment(),
                               stderr=subprocess.DEVNULL)
    deadline = time.time() + 120
    while not list((tmp_path / "killed").glob("shards/*.npz")) and time.time() < deadline:
        time.sleep(0.005)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    kept = sorted((tmp_path / "killed" / "shards").glob("*.npz"))
    assert 0 < len(kept) < 4 and not (tmp_path / "killed" / "meta.json").exists()
    # One of the finished shards is damaged besides.
    if len(kept) > 1:
        kept[0].write_bytes(kept[0].read_bytes()[:-10])
    assert "shards of an earlier run were kept" in prepare(*arguments, tmp_path / "killed") or len(kept) == 1
    prepare(*arguments, tmp_path / "whole")
    for name in ("train.tokens.npy", "train.lengths.npy", "train.documents.npy", "meta.json", "tokenizer.json"):
        assert (tmp_path / "killed" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name
    assert Data(tmp_path / "killed").meta["splits"]["train"]["documents"] == 260


def test_interrupt_keeps_shards(tmp_path):
    corpus(tmp_path / "a.txt", 13)
    process = subprocess.Popen(command("text", "--input", tmp_path / "a.txt", *BYTES, "--out", tmp_path / "out"),
                               env=environment(), stderr=subprocess.PIPE, text=True)
    deadline = time.time() + 120
    while not list((tmp_path / "out").glob("shards/*.npz")) and time.time() < deadline:
        time.sleep(0.005)
    process.send_signal(signal.SIGTERM)
    _, error = process.communicate(timeout=120)
    assert process.returncode == 130 and "interrupted" in error and "Traceback" not in error
    assert list((tmp_path / "out").glob("shards/*.npz"))
    assert not list((tmp_path / "out").glob("*.npy"))


def test_data_is_not_overwritten_unasked(write, tmp_path):
    path = write("a.txt", "One")
    made(tmp_path, "--input", path, *BYTES)
    again = ("text", "--input", write("b.txt", "Two"), *BYTES, "--out", tmp_path / "out")
    assert "--force" in refuse(*again)
    assert Data(tmp_path / "out").documents() == ["One"]
    prepare(*again, "--force")
    assert Data(tmp_path / "out").documents() == ["Two"]
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / "thesis.tex").write_text("dear")
    assert "no training data" in refuse("text", "--input", path, *BYTES, "--out", tmp_path / "foreign")


def test_one_folder_has_one_writer(write, tmp_path):
    import fcntl

    (tmp_path / "out").mkdir()
    with open(tmp_path / "out" / ".lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert "another process" in refuse("text", "--input", write("a.txt", "One"), *BYTES, "--out", tmp_path / "out")


@pytest.mark.parametrize("name, content, says", [
    ("a.txt", b"", "empty file"),
    ("a.txt", b" \n\n", "no text for 'train'"),
    ("a.txt", b"fine\nb\xe4d\n", "line 2, byte 2 of it is 0xe4"),
    ("a.txt.gz", b"", "no text"),
    ("a.jsonl", b'{"text": "x"}\n{"text": ', "line 2 is not JSON"),
    ("a.jsonl", b"[1]\n", "line 1 is a list"),
    ("a.jsonl", b'{"body": "x"}\n', "fields: 'body'"),
    ("a.jsonl", b'{"text": "\\ud800"}\n', "surrogate"),
    ("a.json", b'{"text": "x"}', ".jsonl"),
])
def test_bad_text_is_refused(write, tmp_path, name, content, says):
    error = refuse("text", "--input", write(name, content), *BYTES, "--out", tmp_path / "out")
    assert says in error and name in error
    assert not (tmp_path / "out" / "meta.json").exists()


@pytest.mark.parametrize("name", ["a.txt.gz", "a.txt.xz"])
def test_damaged_archives_are_refused(write, tmp_path, name):
    path = write(name, "text\n" * 10000)
    whole = path.read_bytes()
    for damaged in (whole[:-20], b"nothing of the kind"):
        path.write_bytes(damaged)
        error = refuse("text", "--input", path, *BYTES, "--out", tmp_path / "out")
        assert name in error and "fetch it again" in error


@pytest.mark.parametrize("arguments, says", [
    (["--tokenizer", "bytes", "--length", "2"], "--length 2: expected 3 to"),
    (["--tokenizer", "bytes", "--length", "9", "--valid-fraction", "1.5"], "--valid-fraction 1.5"),
    (["--tokenizer", "bytes", "--length", "9", "--valid-fraction", "0.5"], "of 1 documents leaves"),
    (["--tokenizer", "bytes", "--length", "9", "--special", "end=x"], "expected KIND=TOKEN"),
    (["--tokenizer", "bytes", "--length", "9", "--special", "eos=nope"], "no token 'nope'"),
    (["--tokenizer", "./none/at/all", "--length", "9"], "./none/at/all: no such file or folder; expected"),
    (["--tokenizer", "none.txt", "--length", "9"], "none.txt: no such file or folder; expected"),
    (["--tokenizer", "none/tokenizer.json", "--length", "9"], "none/tokenizer.json: no such file or folder"),
    (["--tokenizer", "one/two/three", "--length", "9"], "one/two/three: no such file or folder"),
    (["--tokenizer", ".", "--length", "9"], "no tokenizer in this folder"),
])
def test_wrong_options_are_explained(write, tmp_path, arguments, says):
    path = write("a.txt", "Only one document")
    assert says in refuse("text", "--input", path, *arguments, "--out", tmp_path / "out")


def test_bad_tokenizers_are_refused(tmp_path):
    from subspace.prepare.errors import DataError
    from subspace.prepare.tokenizer import load

    for name, content, says in (("vocab.txt", "a\nb\n", "no \\[UNK\\]"), ("vocab.txt", "[UNK]\na\na\n", "repeats"),
                                ("tokenizer.json", "{}", "not a tokenizer.json"), ("a.model", "x", "expected")):
        (tmp_path / name).write_text(content)
        with pytest.raises(DataError, match=says):
            load(str(tmp_path / name))


WITHOUT_NETWORK = """
import sys, types, tokenizers
from subspace.prepare.__main__ import main

def from_pretrained(name):
    from huggingface_hub.utils import logging  # as late as the library does it
    logging.get_logger("huggingface_hub.utils._http").warning("Retrying in 1s")
    raise Exception("no network\\nat all")

tokenizers.Tokenizer = types.SimpleNamespace(from_pretrained=from_pretrained)
sys.exit(main(sys.argv[1:]))
"""


def test_a_name_is_asked_for_once_and_without_noise(write, tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_NETWORK, "text", "--input", write("a.txt", "One"), "--tokenizer", "org/none",
         "--length", "9", "--out", tmp_path / "out"], env=environment(), capture_output=True, text=True, timeout=300)
    assert done.returncode == 1 and not (tmp_path / "out").exists()
    first, second = done.stderr.splitlines()
    assert first == "org/none: no file or folder here; asking the Hugging Face hub"
    assert "org/none: neither a file" in second and "hub gives (no network); download" in second


def test_a_tokenizer_without_an_end_needs_one_named(write, tmp_path):
    (tmp_path / "vocab.txt").write_text("[UNK]\nend\n")
    arguments = ("text", "--input", write("a.txt", "end"), "--tokenizer", tmp_path / "vocab.txt", "--length", "4")
    assert "--special eos=TOKEN" in refuse(*arguments, "--out", tmp_path / "out")
    prepare(*arguments, "--special", "eos=end", "--out", tmp_path / "out")


def test_missing_files_are_named(tmp_path):
    error = refuse("text", "--input", tmp_path / "none.txt", *BYTES, "--out", tmp_path / "out")
    assert "none.txt: no such file" in error and "datasets:" in error
    assert "a folder" in refuse("text", "--input", tmp_path, *BYTES, "--out", tmp_path / "out")


def test_wikipedia(tmp_path):
    valid = shared("enwiki", "valid.txt.xz")
    vocab = shared("vocab", "bert-base-uncased-vocab.txt")
    data = made(tmp_path, "--input", valid, "--tokenizer", vocab, "--length", "128")
    with lzma.open(valid, "rt") as file:
        text = file.read()
    entry = data.meta["splits"]["train"]
    assert entry["documents"] == 58 and entry["words"] == len(text.split())
    # Against the tokenizer of transformers, document by document.
    from transformers import BertTokenizerFast

    oracle = BertTokenizerFast(vocab=str(vocab))
    arrays = data.splits["train"]
    starts = arrays["documents"]
    documents = ["= " + part for part in ("\n\n" + text).split("\n\n= ")[1:]]
    assert len(documents) == 58
    for document, begin, end in zip(documents, starts, starts[1:]):
        mine = [i for i in arrays["tokens"].ravel()[begin:end] if i not in (0, 101, 102)]
        assert mine == oracle(document, add_special_tokens=False, verbose=False)["input_ids"]
