"""The describer: a CNN encoder and a recurrent decoder with attention, told which language and style to write.

The encoder is a recogniser, and what the decoder looks at are the concepts that it read (see `concepts`).

Teacher-forced training runs each LSTM over the whole caption at once: the first reads the words so far, its states
look at the picture, the second writes from both (attention between two layers, as in Anderson et al., 2018).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from workers.models.concepts import Eyes
from workers.models.recognizer import Reading
from workers.models.text import END, PAD, Vocabulary, vocabulary

State = tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]
"""Hidden and cell states of both LSTMs, each (1, rows, hidden)."""


@dataclass(frozen=True, slots=True)
class Sight:
    """What the decoder looks at, one row for each caption to write."""

    keys: Tensor
    """(rows, tokens, width)"""
    values: Tensor
    """(rows, tokens, width)"""

    def rows(self, index: Tensor) -> Sight:
        """The rows with these numbers."""
        return Sight(self.keys[index], self.values[index])


class Describer(nn.Module):
    """A recogniser, and two LSTMs that write what it read; see the module."""

    def __init__(
        self,
        width: int = 96,
        hidden: int = 192,
        dropout: float = 0.1,
        words: Vocabulary | None = None,
    ):
        super().__init__()
        self.vocabulary = words or vocabulary()
        size = len(self.vocabulary)
        self.eyes = Eyes(width, glimpses=bool(self.vocabulary.own))
        self.words = nn.Embedding(size, width, padding_idx=PAD)
        self.reader = nn.LSTM(width, hidden, batch_first=True)
        self.query = nn.Linear(hidden, width)
        self.writer = nn.LSTM(hidden + width, hidden, batch_first=True)
        self.dropout = nn.Dropout(dropout)
        self.next_word = nn.Linear(hidden + width, size)

    def look(self, images: Tensor) -> tuple[Sight, Tensor]:
        """Pictures (B, 3, 64, 64) in [-1, 1] → what to attend to, and the logit of being of the drawn world (B,)."""
        reading = self.eyes.recognizer(images)
        return self.regard(reading), reading.domain

    def regard(self, reading: Reading) -> Sight:
        """What to attend to of a recogniser's reading."""
        return Sight(*self.eyes(reading))

    def forward(self, sight: Sight, ids: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        """Logits of the next token after each of `ids` (rows, length) → (rows, length, vocabulary), and the state."""
        before_reading, before_writing = state if state is not None else (None, None)
        read, reading = self.reader(self.dropout(self.words(ids)), before_reading)
        scale = sight.keys.shape[-1] ** -0.5
        weights = (self.query(read) @ sight.keys.transpose(1, 2) * scale).softmax(-1)
        seen = weights @ sight.values
        written, writing = self.writer(self.dropout(torch.cat([read, seen], -1)), before_writing)
        logits = self.next_word(self.dropout(torch.cat([written, seen], -1)))
        return logits, (reading, writing)


@dataclass(frozen=True, slots=True)
class Written:
    """One caption as written."""

    ids: tuple[int, ...]
    """Token ids, without the begin and end tokens."""
    confidences: tuple[float, ...]
    """Probability of each token given those before it, the end token last where it was reached."""


@torch.no_grad()
def write(
    model: Describer,
    sight: Sight,
    begin: Tensor,
    *,
    beams: int = 3,
    max_tokens: int = 64,
    step: Callable[[int], bool] = lambda _: True,
) -> list[Written]:
    """Beam search for all rows at once.

    Args:
        begin: the begin token of each row, int64 (rows,).
        step: told the number of tokens written; False stops early with what there is.
    """
    rows = len(begin)
    device = begin.device
    sight = sight.rows(torch.arange(rows, device=device).repeat_interleave(beams))
    last = begin.repeat_interleave(beams)
    # All beams of a row start equal: only the first may be continued.
    total = torch.full((rows, beams), -torch.inf, device=device)
    total[:, 0] = 0.0
    # Number of the first beam of each row, (rows, 1).
    first = torch.arange(rows, device=device)[:, None] * beams
    ended = torch.zeros(rows * beams, dtype=torch.bool, device=device)
    ids = torch.empty(rows * beams, 0, dtype=torch.long, device=device)
    each = torch.empty(rows * beams, 0, device=device)
    state: State | None = None
    for count in range(1, max_tokens + 1):
        logits, state = model(sight, last[:, None], state)
        log_p = logits[:, 0].float().log_softmax(-1)
        # An ended caption goes on with padding, at no cost.
        log_p[ended] = -torch.inf
        log_p[ended, PAD] = 0.0
        size = log_p.shape[-1]
        candidates = total[:, :, None] + log_p.view(rows, beams, size)
        total, chosen = candidates.view(rows, -1).topk(beams, dim=1)
        origin = (chosen // size + first).view(-1)
        last = (chosen % size).view(-1)
        each = torch.cat([each[origin], log_p[origin, last][:, None]], 1)
        ids = torch.cat([ids[origin], last[:, None]], 1)
        state = tuple((h[:, origin], c[:, origin]) for h, c in state)  # type: ignore[assignment]  # as long as before
        ended = ended[origin] | (last == END)
        if bool(ended.all()) or not step(count):
            break
    # Beam 0 is the most probable caption of its row.
    return [_to_written(ids[row * beams].tolist(), each[row * beams].exp().tolist()) for row in range(rows)]


@torch.no_grad()
def sample(
    model: Describer,
    sight: Sight,
    begin: Tensor,
    seeds: Sequence[int],
    *,
    max_tokens: int = 64,
    step: Callable[[int], bool] = lambda _: True,
) -> list[Written]:
    """Draws each word at random, as probable as the model finds it. What a row draws does not depend on other rows.

    Args:
        begin, step: as for `write`.
        seeds: one for each row.
    """
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    draws = torch.stack([torch.rand(max_tokens, generator=generator) for generator in generators], 1)
    draws = draws.to(begin.device)
    last = begin
    state: State | None = None
    ended = torch.zeros_like(begin, dtype=torch.bool)
    ids: list[Tensor] = []
    each: list[Tensor] = []
    for count in range(1, max_tokens + 1):
        logits, state = model(sight, last[:, None], state)
        p = logits[:, 0].float().softmax(-1)
        # The word whose stretch of [0, 1) the number falls into; rounding may leave it beyond the last one.
        drawn = torch.searchsorted(p.cumsum(-1), draws[count - 1][:, None]).clamp_(max=p.shape[-1] - 1)
        each.append(p.gather(1, drawn)[:, 0])
        last = drawn[:, 0].masked_fill(ended, PAD)
        ids.append(last)
        ended = ended | (last == END)
        if bool(ended.all()) or not step(count):
            break
    rows = zip(torch.stack(ids, 1).tolist(), torch.stack(each, 1).tolist(), strict=True)
    return [_to_written(words, probabilities) for words, probabilities in rows]


def _to_written(ids: list[int], confidences: list[float]) -> Written:
    length = ids.index(END) if END in ids else len(ids)
    return Written(tuple(ids[:length]), tuple(confidences[: length + 1]))
