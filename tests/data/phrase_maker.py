"""A tiny data set of pictures with phrases, written into a temporary folder."""

import json
from pathlib import Path

from tests.data import makers

BOXES = [[10, 12, 50, 40], [60, 30, 90, 70], [5.5, 45, 30, 75]]


def entry(number: int, **changes) -> dict:
    phrases = [
        {"text": "the cats", "ids": [0, 2]},
        {"text": "find the dog", "ids": [1]},
        {"text": "show me a horse", "ids": []},
    ]
    fields = {
        "image": f"photos/{number}.png",
        "boxes": BOXES,
        "names": ["cat", "dog", "cat"],
        "phrases": phrases,
    }
    return fields | changes


def document(root: Path, entries: list, name: str = "pets.json") -> Path:
    """The entries as a JSON file in `root`, and the pictures that they name."""
    for number, fields in enumerate(entries):
        if isinstance(fields, dict) and str(fields.get("image", "")).startswith("photos/"):
            path = root / fields["image"]
            if not path.exists():
                makers.save(path, number)
    path = root / name
    path.write_text(json.dumps({"images": entries}))
    return path
