"""The splits of a source, train, validation and test, as Hugging Face's `datasets` finds them in the names of folders.

https://huggingface.co/docs/datasets/repository_structure. Where folders say which images belong to a split, its reader
takes nothing else, and takes captions from metadata inside the folder alone.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from shared.intake.held_folder import HeldFolder

_KEYWORDS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "dev", "val"),
    "test": ("test", "testing", "eval", "evaluation"),
}
REST = "rest"
"""The split of images outside of all folders of splits, where there are such folders."""
_CARD = """---

# Data set

Written by Tuwen. `tuwen.json` says from which source; the images of it that are not here are in `errors.jsonl` and
`dropped.jsonl`, each with its reason.
"""
_SPLITS = {
    split: re.compile(rf"(?:.*[-._ 0-9])?(?:{'|'.join(words)})(?:[-._ 0-9].*)?", re.IGNORECASE)
    for split, words in _KEYWORDS.items()
}


def find_split(name: str) -> tuple[str, str] | None:
    """The split of an image, and the outermost folder in its name that says so; None where no folder does."""
    folders = name.split("/")[:-1]
    for depth, folder in enumerate(folders, 1):
        for split, pattern in _SPLITS.items():
            if pattern.fullmatch(folder):
                return split, "/".join(folders[:depth])
    return None


def write_card(folder: HeldFolder, files: Mapping[str, Iterable[str]]) -> None:
    """Write README.md, which tells `datasets` what belongs to each split, so that it need not guess from names.

    Args:
        files: patterns of paths for each split.
    """
    lines = ["---", "configs:", "- config_name: default", "  data_files:"]
    for split, patterns in files.items():
        lines += [f"  - split: {split}", "    path:", *(f"    - {_quote(pattern)}" for pattern in patterns)]
    folder.write("README.md", "\n".join([*lines, _CARD]).encode())


def _quote(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"
