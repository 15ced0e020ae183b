"""Tasks for Label Studio: tasks.json with each image, the models' captions as predictions and people's as annotations.

https://labelstud.io/guide/tasks. labeling.xml is a form that shows them. Local images are named as Label Studio serves
them when its document root is /: `LABEL_STUDIO_LOCAL_FILES_SERVING_ENABLED=true`, `…_DOCUMENT_ROOT=/`.
"""

from __future__ import annotations

import json
from typing import Any
from urllib.parse import quote

from shared.intake.held_folder import HeldFolder
from tuwen.annotations import Caption
from workers.datasets.exports.files import create_text, to_line
from workers.datasets.exports.words import record
from workers.datasets.exports.writers import Exported

_FORM = """<View>
  <Image name="image" value="$image"/>
  <TextArea name="caption" toName="image" value="$caption" editable="true" maxSubmissions="1"/>
</View>
"""


class LabelStudio:
    """Writes tasks.json and labeling.xml into a folder."""

    wants_images = False

    def __init__(self, folder: HeldFolder, source: str) -> None:
        """`source` is where the images are."""
        self._source = source
        folder.write("labeling.xml", _FORM.encode())
        self._tasks = create_text(folder, "tasks.json")
        self._tasks.write("[")

    def write(self, exported: Exported) -> None:
        """Write the task of one image."""
        known, words = exported.annotation, exported.words
        whole = record(exported.number, known, words)
        task: dict[str, Any] = {
            "data": {"image": self._address(known.name), "caption": words.text, "name": known.name},
            "meta": {"tuwen": json.loads(json.dumps(whole))},
            "predictions": [_prediction(caption) for caption in (*known.captions, *known.others)],
        }
        people = [review.text for review in known.reviews if review.text is not None]
        if people:
            task["annotations"] = [{"result": [_textarea(text)]} for text in people[:1]]
        self._tasks.write(("\n" if exported.number == 0 else ",\n") + to_line(task))

    def close(self) -> None:
        self._tasks.write("\n]\n")
        self._tasks.close()

    def _address(self, name: str) -> str:
        if self._source.startswith("s3://"):
            return f"{self._source}/{name}"
        return f"/data/local-files/?d={quote(f'{self._source}/{name}'.lstrip('/'))}"


def _prediction(caption: Caption) -> dict[str, Any]:
    made = caption.provenance
    score = caption.score if caption.score is not None else caption.confidence
    return {"model_version": f"{made.model} {made.revision}", "score": score, "result": [_textarea(caption.text)]}


def _textarea(text: str) -> dict[str, Any]:
    return {"from_name": "caption", "to_name": "image", "type": "textarea", "value": {"text": [text]}}
