"""Tokenizers by path or name, and which of their tokens mean what.

`bytes` needs no file: one token for each byte, and the special tokens of both styles.
"""

import hashlib
import json
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from .errors import DataError
from .progress import say

# The names that the well-known vocabularies give to each.
NAMES = {
    "pad": ("[PAD]", "<pad>", "<|padding|>", "<|pad|>", "<|endofpad|>"),
    "unk": ("[UNK]", "<unk>"),
    "cls": ("[CLS]", "<s>"),
    "sep": ("[SEP]", "</s>"),
    "mask": ("[MASK]", "<mask>"),
    "bos": ("<|startoftext|>", "<|begin_of_text|>", "<bos>", "<s>"),
    "eos": ("<|endoftext|>", "<|end_of_text|>", "<eos>", "</s>", "<|im_end|>"),
}
FILES = (("tokenizer.json",), ("encoder.json", "vocab.bpe"), ("vocab.json", "merges.txt"), ("vocab.txt",))
STYLES = {"encoder": ("cls", "sep", "mask"), "decoder": ("eos",)}


@dataclass
class TextTokenizer:
    name: str
    kind: str
    backend: object
    special: dict
    json: str = field(repr=False)

    @property
    def vocab_size(self):
        return max(self.backend.get_vocab(with_added_tokens=True).values()) + 1

    @property
    def sha256(self):
        return hashlib.sha256(self.json.encode()).hexdigest()

    @property
    def never_masked(self):
        added = self.backend.get_added_tokens_decoder()
        return sorted({i for i, token in added.items() if token.special} | set(self.special.values()))

    def style(self, wanted):
        """`wanted`, or for "auto" the one whose special tokens are there."""
        lacking = {style: [name for name in names if name not in self.special]
                   for style, names in STYLES.items()}
        if wanted == "auto":
            wanted = next((style for style in STYLES if not lacking[style]), "decoder")
        if lacking[wanted]:
            kinds = " and ".join(f"'{name}' (such as {NAMES[name][0]})" for name in lacking[wanted])
            raise DataError(f"{self.name}: no token for {kinds}, which the style '{wanted}' needs; "
                            f"name one with --special {lacking[wanted][0]}=TOKEN")
        return wanted

    def pad_id(self, style):
        return self.special.get("pad", self.special["sep" if style == "encoder" else "eos"])

    def encode(self, texts):
        """Lists of ids, without special tokens; text that spells a special token is only text."""
        return [encoding.ids for encoding in self.backend.encode_batch_fast(texts, add_special_tokens=False)]

    def entry(self):
        return {"name": self.name, "kind": self.kind, "sha256": self.sha256, "vocab_size": self.vocab_size,
                "special": self.special, "never_masked": self.never_masked}


def load(name, overrides=(), cased="auto"):
    """The tokenizer of a file, a folder, a Hugging Face name, or `bytes`. `overrides`: "eos=<|im_end|>"."""
    try:
        import tokenizers  # noqa: F401
    except ImportError as error:
        raise DataError("text needs the package tokenizers; pip install tokenizers") from error
    path = Path(name)
    if name == "bytes":
        backend = _bytes()
    elif path.is_dir():
        backend = _from_folder(path, cased)
    elif path.is_file():
        backend = _from_file(path, cased)
    else:
        backend = _from_hub(name)
    _be_plain(backend)
    special = _special(backend, name, overrides)
    backend.add_special_tokens([backend.id_to_token(i) for i in sorted(set(special.values()))])
    backend.encode_special_tokens = True
    kind = json.loads(backend.to_str())["model"]["type"].lower()
    # A vocabulary file's name says little; the folder that a GPT-2 vocabulary lies in says more.
    shown = path.name if path.exists() else name
    return TextTokenizer(shown, kind, backend, special, backend.to_str(pretty=True))


def _be_plain(backend):
    """Cutting and padding are ours."""
    backend.no_truncation()
    backend.no_padding()


def _from_folder(folder, cased):
    for names in FILES:
        if all((folder / name).is_file() for name in names):
            if len(names) == 2:
                return _gpt2(folder / names[0], folder / names[1])
            return _from_file(folder / names[0], cased)
    raise DataError(f"{folder}: no tokenizer in this folder; expected "
                    + ", or ".join(" with ".join(names) for names in FILES))


def _from_file(path, cased):
    from tokenizers import Tokenizer

    if path.suffix == ".txt":
        return _wordpiece(path, cased)
    if path.suffix != ".json":
        raise DataError(f"{path}: expected tokenizer.json, a WordPiece vocabulary (.txt) or a folder")
    try:
        return Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises plain Exception
        raise DataError(f"{path}: not a tokenizer.json: {error}; for GPT-2's files give their folder") from error


def _wordpiece(path, cased):
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers

    try:
        words = path.read_text(encoding="utf-8").split("\n")
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: byte {error.start} is not UTF-8; expected one token a line") from error
    words = [word.rstrip("\r") for word in words]
    while words and not words[-1]:
        words.pop()
    vocabulary = {}
    for number, word in enumerate(words):
        if word in vocabulary:
            raise DataError(f"{path}: line {number + 1} repeats the token {word!r} of line {vocabulary[word] + 1}")
        vocabulary[word] = number
    if "[UNK]" not in vocabulary:
        raise DataError(f"{path}: no [UNK] among its {len(words)} lines; expected a WordPiece vocabulary")
    if cased == "auto":
        cased = any(word != word.lower() for word in words if not word.startswith("["))
    backend = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]", max_input_chars_per_word=100))
    backend.normalizer = normalizers.BertNormalizer(lowercase=not cased)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece()
    return backend


def _gpt2(vocabulary, merges):
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    try:
        backend = Tokenizer(models.BPE.from_file(str(vocabulary), str(merges)))
    except Exception as error:  # the library raises plain Exception
        raise DataError(f"{vocabulary}, {merges.name}: not a byte-level BPE: {error}") from error
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    return backend


def _bytes():
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "<|endoftext|>"]
    tokens = special + sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE({token: i for i, token in enumerate(tokens)}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    return backend


def _means_a_path(name):
    """Whether no repository of the hub can be meant: those are NAME or ORG/NAME."""
    return name.startswith((".", "/", "~")) or name.count("/") > 1 or name.endswith((".txt", ".json"))


@contextmanager
def _quiet_hub():
    """Without the client's warnings about each attempt: what came of them is said once, by us."""
    from huggingface_hub.utils import logging as hub

    level = hub.get_verbosity()
    hub.set_verbosity(hub.CRITICAL)
    try:
        yield
    finally:
        hub.set_verbosity(level)


def _from_hub(name):
    from tokenizers import Tokenizer

    if _means_a_path(name):
        raise DataError(f"{name}: no such file or folder; expected a tokenizer.json, a WordPiece vocabulary (.txt), "
                        "a folder with a tokenizer, a name on the Hugging Face hub, or 'bytes'")
    say(f"{name}: no file or folder here; asking the Hugging Face hub")
    try:
        with _quiet_hub():
            return Tokenizer.from_pretrained(name)
    except Exception as error:  # network, missing repository, no tokenizer.json: all plain Exception
        reason = str(error).split("\n")[0][:200]
        raise DataError(f"{name}: neither a file or folder here nor a tokenizer that the Hugging Face hub "
                        f"gives ({reason}); download its tokenizer.json and give that path") from error


def _special(backend, name, overrides):
    special = {}
    for kind, candidates in NAMES.items():
        found = next((i for token in candidates if (i := backend.token_to_id(token)) is not None), None)
        if found is not None:
            special[kind] = found
    for override in overrides:
        kind, _, token = override.partition("=")
        if kind not in NAMES or not token:
            raise DataError(f"--special {override}: expected KIND=TOKEN with KIND among {', '.join(NAMES)}")
        number = backend.token_to_id(token)
        if number is None:
            raise DataError(f"--special {override}: {name} has no token {token!r}")
        special[kind] = number
    return special
