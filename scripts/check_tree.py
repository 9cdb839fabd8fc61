"""Checks what docs/architecture.md promises of the tree: includes point down the list of folders,
folders that do without torch never include it, and no file names a path of somebody's machine."""

import re
import subprocess
import sys
from pathlib import Path

# A folder may include itself and what is listed with it.
MAY_USE = {
    "base": [],
    "data": ["base"],
    "kernels": ["base"],
    "checkpoint": ["base", "kernels"],
    "ops": ["base", "kernels"],
    "attention": ["base", "kernels", "checkpoint"],
    "spectrum": ["base", "kernels", "checkpoint", "attention"],
    "nn": ["base", "kernels", "checkpoint", "ops", "attention"],
    "train": ["base", "data", "kernels", "checkpoint", "attention", "nn"],
    "lora": ["base", "kernels", "checkpoint", "attention", "spectrum"],
    "causal": ["base", "data", "kernels", "checkpoint", "attention", "spectrum", "nn", "train", "lora"],
    "experts": ["base", "data", "kernels", "checkpoint", "attention", "spectrum", "nn", "train", "lora"],
    "report": ["base", "checkpoint"],
    "synth": ["base", "kernels", "checkpoint", "attention"],
    "cli": ["base", "data", "kernels", "checkpoint", "attention", "spectrum", "nn", "train", "lora",
            "causal", "experts", "report", "synth"],
}
WITHOUT_TORCH = ["base", "data", "kernels", "checkpoint", "report"]
MACHINE_PATH = re.compile(r"(^|[^\w./-])/(work|home/\w+|root|farm|tmp/team)/")


def problems(root):
    root = Path(root)
    tracked = subprocess.run(
        ["git", "ls-files"], cwd=root, capture_output=True, text=True, check=True
    ).stdout.split("\n")
    for name in filter(None, tracked):
        path = root / name
        if not path.is_file() or path.suffix in (".png", ".lock", ".safetensors"):
            continue
        try:
            lines = path.read_text().split("\n")
        except UnicodeDecodeError:
            continue
        parts = Path(name).parts
        folder = parts[1] if parts[0] == "src" and len(parts) > 2 else None
        for number, line in enumerate(lines, 1):
            if name != "scripts/check_tree.py" and MACHINE_PATH.search(line):
                yield f"{name}:{number}: a path of one machine: {line.strip()[:80]}"
            if folder is None:
                continue
            if re.search(r"\bremove_all\(", line):
                yield f"{name}:{number}: remove_tree of base/atomic_file.h, which says why"
            quoted = re.match(r'\s*#\s*include\s+"([a-z_]+)/', line)
            if quoted and quoted[1] in MAY_USE and quoted[1] != folder:
                if quoted[1] not in MAY_USE.get(folder, []):
                    yield f"{name}:{number}: src/{folder} may not include src/{quoted[1]}"
            if folder in WITHOUT_TORCH and re.match(r'\s*#\s*include\s+[<"](ATen|torch|c10)/', line):
                yield f"{name}:{number}: src/{folder} does without torch"
    for folder in sorted((root / "src").iterdir()):
        if folder.is_dir() and folder.name not in MAY_USE:
            yield f"src/{folder.name}: not in the list of folders (scripts/check_tree.py)"


if __name__ == "__main__":
    found = list(problems(sys.argv[1] if len(sys.argv) > 1 else "."))
    print("\n".join(found), end="\n" if found else "")
    sys.exit(1 if found else 0)
