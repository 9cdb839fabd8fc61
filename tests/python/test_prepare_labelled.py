"""python -m subspace.prepare sst2 and images."""

import gzip
import io
import json
import struct
import tarfile

import numpy as np
import pytest
from PIL import Image
from prepare_tool import Data, prepare, refuse, shared

BYTES = ("--tokenizer", "bytes")
CLS, SEP, EOS = 2, 3, 5


# --- sst2 ---------------------------------------------------------------------------------------

TRAIN = 'label\tsentence\n1\ta "good\n0\tbad film .\n'
DEV = "sentence\tlabel\nworse\t0\n"


def tsv(folder, train=TRAIN, dev=DEV):
    folder.mkdir(exist_ok=True)
    (folder / "train.tsv").write_bytes(train if isinstance(train, bytes) else train.encode())
    (folder / "dev.tsv").write_text(dev)
    return folder


def test_sentences_and_labels(tmp_path):
    prepare("sst2", "--input", tsv(tmp_path / "in"), *BYTES, "--length", "10", "--out", tmp_path / "out")
    data = Data(tmp_path / "out")
    train, valid = data.splits["train"], data.splits["valid"]
    assert train["labels"].tolist() == [1, 0] and valid["labels"].tolist() == [0]
    assert train["lengths"].tolist() == [9, 10] and valid["lengths"].tolist() == [7]
    text = [data.tokenizer().decode(row[1:length - 1].tolist()) for row, length in zip(train["tokens"], train["lengths"])]
    assert text == ['a "good', "bad film"]  # the second is cut
    assert all(row[0] == CLS and row[length - 1] == SEP for row, length in zip(train["tokens"], train["lengths"]))
    assert data.meta["classes"] == ["negative", "positive"] and data.meta["kind"] == "classification"
    entry = data.meta["splits"]["train"]
    assert entry["truncated"] == 1 and entry["words"] == 5 and entry["special_tokens"] == 4


def test_a_decoder_ends_in_eos(tmp_path):
    prepare("sst2", "--input", tsv(tmp_path / "in"), *BYTES, "--style", "decoder", "--length", "10", "--out",
            tmp_path / "out")
    rows = Data(tmp_path / "out").splits["train"]
    assert [row[length - 1] for row, length in zip(rows["tokens"], rows["lengths"])] == [EOS, EOS]
    assert rows["lengths"].tolist() == [8, 10]


@pytest.mark.parametrize("train, says", [
    ("", "names of two columns"),
    ("1\tgood\n", "names of two columns"),
    ("label\tsentence\n", "no sentence behind the first line"),
    ("label\tsentence\n2\tx\n", "line 2: label '2'; expected 0 to 1"),
    ("label\tsentence\n\tx\n", "line 2: label ''"),
    ("label\tsentence\n1\tx\ty\n", "line 2 has 3 columns"),
    ("label\tsentence\n1\tx\n\n0\ty\n", "line 3 has 1 columns"),
    ("label\tsentence\n1\t \n", "line 2 has no sentence"),
    (b"label\tsentence\n1\tb\xe4d\n", "line 2 is not UTF-8"),
])
def test_bad_sentences_are_refused(tmp_path, train, says):
    error = refuse("sst2", "--input", tsv(tmp_path / "in", train), *BYTES, "--length", "8", "--out", tmp_path / "out")
    assert says in error and "train.tsv" in error and not (tmp_path / "out" / "meta.json").exists()


def test_files_that_are_not_there_are_named(tmp_path):
    assert "no train.tsv" in refuse("sst2", "--input", tmp_path, *BYTES, "--length", "8", "--out", tmp_path / "out")
    assert "--train" in refuse("sst2", *BYTES, "--length", "8", "--out", tmp_path / "out")
    assert "none.tsv" in refuse("sst2", "--train", tmp_path / "none.tsv", *BYTES, "--length", "8", "--out",
                                tmp_path / "out")


def test_sst2(tmp_path):
    prepare("sst2", "--input", shared("sst2"), "--tokenizer", shared("vocab", "bert-base-uncased-vocab.txt"),
            "--length", "64", "--out", tmp_path / "out")
    meta = Data(tmp_path / "out").meta
    assert meta["splits"]["train"]["rows"] == 67349 and meta["splits"]["valid"]["rows"] == 872


# --- images -------------------------------------------------------------------------------------

def idx(array):
    head = b"\0\0\x08" + bytes([array.ndim]) + b"".join(struct.pack(">I", n) for n in array.shape)
    return head + array.astype(np.uint8).tobytes()


IMAGES = np.arange(5 * 2 * 3, dtype=np.uint8).reshape(5, 2, 3)
LABELS = np.array([3, 0, 1, 2, 3], dtype=np.uint8)


def idx_folder(folder, packed=True, images=idx(IMAGES), labels=idx(LABELS)):
    folder.mkdir()
    for name, data in (("train-images-idx3-ubyte", images), ("train-labels-idx1-ubyte", labels),
                       ("t10k-images-idx3-ubyte", idx(IMAGES[:1])), ("t10k-labels-idx1-ubyte", idx(LABELS[:1]))):
        if data is not None:
            path = folder / (name + (".gz" if packed else ""))
            path.write_bytes(gzip.compress(data) if packed else data)
    return folder


@pytest.mark.parametrize("packed", [True, False])
def test_idx(tmp_path, packed):
    prepare("images", "--input", idx_folder(tmp_path / "in", packed), "--out", tmp_path / "out")
    data = Data(tmp_path / "out")
    assert (data.splits["train"]["images"] == IMAGES[:, None]).all()
    assert data.splits["train"]["labels"].tolist() == LABELS.tolist()
    assert data.splits["test"]["labels"].tolist() == [3]
    image = data.meta["image"]
    assert [image[name] for name in ("channels", "height", "width")] == [1, 2, 3]
    assert image["mean"] == pytest.approx([IMAGES.mean() / 255], rel=1e-14)
    assert image["std"] == pytest.approx([IMAGES.std() / 255], rel=1e-14)
    assert data.meta["classes"] == ["0", "1", "2", "3"]


@pytest.mark.parametrize("images, labels, says", [
    (b"", idx(LABELS), "begins with nothing"),
    (b"\0\0\x08\x07", idx(LABELS), "expected an IDX file"),
    (b"\0\0\x0d" + idx(IMAGES)[3:], idx(LABELS), "IDX type 0x0d"),
    (idx(IMAGES)[:-1], idx(LABELS), "its header promises [5, 2, 3]"),
    (idx(IMAGES) + b"x", idx(LABELS), "its header promises [5, 2, 3]"),
    (b"\0\0\x08\x03" + b"\xff" * 12, idx(LABELS), "its header promises"),
    (idx(IMAGES), idx(LABELS[:4]), "has 4 labels"),
    (idx(IMAGES), None, "no labels file"),
    (idx(LABELS), idx(LABELS), "expected [n, height, width]"),
])
def test_bad_idx_is_refused(tmp_path, images, labels, says):
    folder = idx_folder(tmp_path / "in", packed=False, images=images, labels=labels)
    assert says in refuse("images", "--input", folder, "--out", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_damaged_gzip_is_refused(tmp_path):
    folder = idx_folder(tmp_path / "in")
    path = folder / "train-images-idx3-ubyte.gz"
    path.write_bytes(path.read_bytes()[:-5])
    assert "fetch it again" in refuse("images", "--input", folder, "--out", tmp_path / "out")


def cifar_records(labels, extra=0):
    generator = np.random.default_rng(len(labels))
    pixels = generator.integers(0, 256, (len(labels), 3, 32, 32), dtype=np.uint8)
    return pixels, b"".join(bytes(extra) + bytes([label]) + image.tobytes() for label, image in zip(labels, pixels))


def tar(path, files, mode="w:gz"):
    with tarfile.open(path, mode) as archive:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return path


def test_cifar_binary(tmp_path):
    (one, first), (two, second), (_, last) = (cifar_records(labels) for labels in ([1, 9], [0], [5, 5, 5]))
    names = "\n".join(f"class{i}" for i in range(10)).encode()
    files = {"data_batch_1.bin": first, "data_batch_2.bin": second, "test_batch.bin": last, "batches.meta.txt": names}
    archive = tar(tmp_path / "cifar-10-binary.tar.gz", {f"cifar-10-batches-bin/{n}": d for n, d in files.items()})
    (tmp_path / "folder").mkdir()
    for name, content in files.items():
        (tmp_path / "folder" / name).write_bytes(content)
    for number, path in enumerate((archive, tmp_path / "folder")):
        prepare("images", "--input", path, "--out", tmp_path / f"out{number}")
        data = Data(tmp_path / f"out{number}")
        assert (data.splits["train"]["images"] == np.concatenate([one, two])).all()
        assert data.splits["train"]["labels"].tolist() == [1, 9, 0] and len(data.splits["test"]["labels"]) == 3
        assert data.meta["classes"][9] == "class9"


def test_cifar_100_takes_the_fine_label(tmp_path):
    (tmp_path / "in").mkdir()
    for name, labels in (("train.bin", [99, 3]), ("test.bin", [0])):
        (tmp_path / "in" / name).write_bytes(cifar_records(labels, extra=1)[1])
    prepare("images", "--input", tmp_path / "in", "--out", tmp_path / "out")
    data = Data(tmp_path / "out")
    assert data.splits["train"]["labels"].tolist() == [99, 3] and len(data.meta["classes"]) == 100


def test_bad_cifar_is_refused(tmp_path):
    (tmp_path / "in").mkdir()
    path = tmp_path / "in" / "data_batch_1.bin"
    for content, says in ((b"x" * 3072, "multiple of 3073"), (b"", "multiple of 3073"),
                          (cifar_records([10])[1], "label 10; expected 0 to 9")):
        path.write_bytes(content)
        assert says in refuse("images", "--input", tmp_path / "in", "--out", tmp_path / "out")
    path.unlink()
    (tmp_path / "in" / "data_batch_1").write_bytes(b"\x80\x03}q\x01.")
    assert "pickles" in refuse("images", "--input", tmp_path / "in", "--out", tmp_path / "out")


def encoded(pixels, kind="PNG"):
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind)
    return file.getvalue()


def colour(seed, size=(4, 5)):
    return np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)


def tree():
    return {"data/train/cat/1.png": encoded(colour(1)), "data/train/cat/0.png": encoded(colour(0)),
            "data/train/ant/9.PNG": encoded(colour(9)), "data/val/cat/5.png": encoded(colour(5)),
            "data/README.txt": b"about"}


def write_tree(folder, files):
    for name, data in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return folder


@pytest.mark.parametrize("archive", [None, "w:xz", "w"])
def test_trees_of_images(tmp_path, archive):
    path = tar(tmp_path / "in.tar", tree(), archive) if archive else write_tree(tmp_path / "in", tree())
    prepare("images", "--input", path, "--out", tmp_path / "out")
    data = Data(tmp_path / "out")
    train = data.splits["train"]
    assert data.meta["classes"] == ["ant", "cat"] and train["labels"].tolist() == [0, 1, 1]
    for row, seed in enumerate((9, 0, 1)):  # in order of name
        assert (train["images"][row] == colour(seed).transpose(2, 0, 1)).all()
    assert data.splits["valid"]["labels"].tolist() == [1]
    assert data.meta["image"]["channels"] == 3 and data.meta["image"]["width"] == 5


def test_grey_size_and_held_out(tmp_path):
    files = {f"{name}/{i}.png": encoded(colour(i)[..., 0]) for i in range(30) for name in "ab"}
    prepare("images", "--input", write_tree(tmp_path / "in", files), "--size", "3", "--valid-fraction", "0.3",
            "--out", tmp_path / "out")
    data = Data(tmp_path / "out")
    assert data.splits["train"]["images"].shape[1:] == (1, 3, 3)
    train, valid = ({image.tobytes() for image in data.splits[name]["images"]} for name in ("train", "valid"))
    assert train and valid and not train & valid
    assert len(data.splits["train"]["labels"]) + len(data.splits["valid"]["labels"]) == 60
    # The statistics are those of what is trained on.
    assert data.meta["image"]["mean"] == pytest.approx([data.splits["train"]["images"].mean() / 255], rel=1e-12)


@pytest.mark.parametrize("change, says", [
    ({"data/train/cat/1.png": b"\x89PNG nothing"}, "cat/1.png: not a readable image"),
    ({"data/train/cat/1.png": encoded(colour(1))[:60]}, "cat/1.png: not a readable image"),
    ({"data/train/cat/1.png": encoded(colour(1, (6, 6)))}, "--size"),
    ({"data/val/dog/5.png": encoded(colour(5))}, "of class 'dog'"),
    ({"1.png": encoded(colour(1))}, "lies in no folder"),
])
def test_bad_images_are_refused(tmp_path, change, says):
    folder = write_tree(tmp_path / "in", tree() | change)
    assert says in refuse("images", "--input", folder, "--out", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_what_is_no_image_data_is_refused(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "file.tar").write_bytes(b"no archive")
    for name, says in (("none", "no such file"), ("empty", "no images"), ("file.tar", "tar archive")):
        assert says in refuse("images", "--input", tmp_path / name, "--out", tmp_path / "out")


def test_fashion_mnist(tmp_path):
    prepare("images", "--input", shared("fashion-mnist"), "--out", tmp_path / "out")
    meta = json.loads((tmp_path / "out" / "meta.json").read_text())
    assert meta["splits"]["train"]["rows"] == 60000 and meta["splits"]["test"]["rows"] == 10000
    assert meta["image"]["mean"] == pytest.approx([0.2860], abs=5e-5)
    assert meta["image"]["std"] == pytest.approx([0.3530], abs=5e-5)
