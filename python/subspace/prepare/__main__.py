"""python -m subspace.prepare text|sst2|images"""

import argparse
import importlib
import signal
import sys

from .errors import DataError

COMMANDS = {
    "text": "documents to rows of tokens",
    "sst2": "GLUE SST-2, or other sentences with labels in TSV",
    "images": "labelled images: IDX (MNIST), CIFAR's binary files, folders or archives of JPEG and PNG",
}


def parser():
    top = argparse.ArgumentParser(prog="python -m subspace.prepare",
                                  description="Makes training data; docs/data.md describes the files.")
    commands = top.add_subparsers(dest="command", required=True, metavar="|".join(COMMANDS))
    for name, text in COMMANDS.items():
        command = commands.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")
        importlib.import_module(f".{name}", __package__).add_options(command)
        command.add_argument("--out", required=True, metavar="DIR", help="folder to make")
        command.add_argument("--force", action="store_true", help="make the data anew if there is some")
    return top


def main(arguments=None):
    options = parser().parse_args(arguments)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        importlib.import_module(f".{options.command}", __package__).run(options)
    except DataError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        print(f"error: {error}; nothing was left half written", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted; what was finished is kept, the same command goes on from there", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
