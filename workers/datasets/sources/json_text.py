"""JSON as ijson reads it: in UTF-8, and without the NaN that Python's json writes and JSON does not have."""

from __future__ import annotations

import codecs
import re
from collections.abc import Iterator
from typing import BinaryIO

from tuwen.errors import ConfigurationError, SourceUnusable
from workers.datasets.sources.encodings import Encoding

_CHUNK = 2**20
_TOKEN = re.compile(r'[^"NI-]+|"(?:[^"\\]|\\.)*"|-?NaN|-?Infinity|[-NI]', re.DOTALL)
_NO_JSON = frozenset(("NaN", "-NaN", "Infinity", "-Infinity"))
_LONGEST_WORD = len("-Infinity")


class JsonText:
    """The text of a JSON file as UTF-8. Bytes that are no characters raise. It can be read again after `rewind`."""

    def __init__(self, file: BinaryIO, encoding: Encoding) -> None:
        self._file = file
        self.encoding = encoding
        self.lenient = False
        """Whether NaN and Infinity are read as null, which makes reading ten times slower."""
        self.rewind()

    def rewind(self) -> None:
        """Start again."""
        self._file.seek(len(self.encoding.mark))
        self._decoder = codecs.getincrementaldecoder(self.encoding.name or "ascii")()
        self._rest = ""
        self._ready = b""
        self._ended = False

    def read(self, size: int = -1) -> bytes:
        """Read up to `size` bytes; empty at the end.

        Raises:
            UnicodeDecodeError
        """
        while not self._ended and (size < 0 or len(self._ready) < max(size, 1)):
            chunk = self._file.read(_CHUNK)
            self._ended = not chunk
            text = self._decoder.decode(chunk, final=self._ended)
            self._ready += (self._replace(text) if self.lenient else text).encode("utf-8", "surrogatepass")
        if size < 0:
            size = len(self._ready)
        read, self._ready = self._ready[:size], self._ready[size:]
        return read

    def _replace(self, text: str) -> str:
        """Replace what is no JSON, as far as tokens are complete; the rest waits for the next chunk."""
        text = self._rest + text
        replaced = []
        position = 0
        while position < len(text):
            token = _TOKEN.match(text, position)
            may_be_cut = not self._ended and position > len(text) - _LONGEST_WORD
            if token is None or (may_be_cut and token[0][0] in "-NI"):
                break
            replaced.append("null" if token[0] in _NO_JSON else token[0])
            position = token.end()
        self._rest = text[position:]
        return "".join(replaced) + (self._rest if self._ended else "")


def read_items(text: JsonText, prefix: str, path: str) -> Iterator[dict[str, object]]:
    """Yield the objects at `prefix` of a JSON file, in ijson's notation, from its start.

    Raises:
        SourceUnusable: the file is no whole JSON.
        ConfigurationError: ijson is missing.
    """
    try:
        import ijson
    except ImportError as error:
        raise ConfigurationError("COCO files need ijson: pip install 'tuwen[datasets]'") from error
    text.rewind()
    try:
        for item in ijson.items(text, prefix, use_float=True):
            if isinstance(item, dict):
                yield item
    except (ijson.JSONError, UnicodeDecodeError) as error:
        raise SourceUnusable(f"{path!r} is not whole JSON: {error}", field="source") from error
