"""The matcher: how probable it is that a text fits a picture.

An image encoder and a text encoder that meet late. The text becomes a few *claims*; each claim looks for its evidence
in the picture and is judged by itself; a text fits when all its claims do, so the probabilities are multiplied.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import logsigmoid
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from workers.models.text import PAD, Vocabulary, vocabulary
from workers.models.trunk import WIDTH, Trunk

CLAIMS = 8


@dataclass(frozen=True, slots=True)
class Claims:
    """What B texts claim."""

    search: Tensor
    """What each claim looks for, (B, claims, width)."""
    expect: Tensor
    """What it expects to find there, (B, claims, width)."""
    bias: Tensor
    """(B, claims)"""


class Matcher(nn.Module):
    """An image encoder and a text encoder; see the module."""

    def __init__(self, width: int = WIDTH, dropout: float = 0.1, words: Vocabulary | None = None):
        super().__init__()
        self.vocabulary = words or vocabulary()
        self.trunk = Trunk(width)
        self.keys = nn.Linear(width, width)
        self.values = nn.Linear(width, width)
        self.whole = nn.Linear(2 * width, width)
        self.words = nn.Embedding(len(self.vocabulary), width, padding_idx=PAD)
        self.reader = nn.GRU(width, width, batch_first=True, bidirectional=True)
        self.dropout = nn.Dropout(dropout)
        self.pick = nn.Linear(2 * width, CLAIMS)
        self.search = nn.Linear(2 * width, width)
        self.expect = nn.Linear(2 * width, width)
        self.claim_bias = nn.Linear(2 * width, 1)
        self.strength = nn.Parameter(torch.tensor(1.0))
        self.slope: Tensor
        self.offset: Tensor
        self.register_buffer("slope", torch.tensor(1.0))
        self.register_buffer("offset", torch.tensor(0.0))

    def encode_images(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Pictures (B, 3, 64, 64) in [-1, 1] → keys and values (B, cells + 1, width)."""
        return self.regard(self.trunk(images).far)

    def regard(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """The trunk's tokens (B, cells, width) → keys and values (B, cells + 1, width)."""
        whole = self.whole(torch.cat([tokens.mean(1), tokens.amax(1)], 1))
        tokens = torch.cat([tokens, whole[:, None]], 1)
        return self.keys(tokens), self.values(tokens)

    def encode_texts(self, ids: Tensor) -> Claims:
        """Padded token ids (B, length) → what the texts claim."""
        lengths = (ids != PAD).sum(1).clamp(min=1).cpu()
        words = self.dropout(self.words(ids))
        packed = pack_padded_sequence(words, lengths, batch_first=True, enforce_sorted=False)
        context, _ = pad_packed_sequence(self.reader(packed)[0], batch_first=True)
        padding = (ids == PAD)[:, : context.shape[1], None]
        weights = self.pick(context).masked_fill(padding, -1e4).softmax(1)
        claims = self.dropout(weights.transpose(1, 2) @ context)
        return Claims(self.search(claims), self.expect(claims), self.claim_bias(claims).squeeze(-1))

    def evidence(self, image: tuple[Tensor, Tensor], text: Claims, *, pairwise: bool) -> Tensor:
        """Log probability that each text fits each picture: (B,) for pairs, or (images, texts)."""
        keys, values = image
        scale = keys.shape[-1] ** -0.5
        if pairwise:
            found = (text.search @ keys.transpose(1, 2) * scale).softmax(-1) @ values
            score = (found * text.expect).sum(-1)
        else:
            # t: texts, k: claims, i: images, n: cells
            weights = torch.einsum("tkd,ind->itkn", text.search, keys).mul(scale).softmax(-1)
            found = torch.einsum("itkn,ind->itkd", weights, values)
            score = torch.einsum("itkd,tkd->itk", found, text.expect)
        # A claim is taken as true until something speaks against it.
        claims = logsigmoid(score.float() * self.strength * scale + text.bias.float() + 3.0)
        return claims.sum(-1)

    def calibrated(self, log_p: Tensor) -> Tensor:
        """Log odds that mean what they say, from the evidence (Platt scaling)."""
        return self.slope * log_odds(log_p) + self.offset


def log_odds(log_p: Tensor) -> Tensor:
    """Return log(p / (1 − p)), given log p."""
    log_p = log_p.clamp(max=-1e-6)
    return log_p - torch.log(-torch.expm1(log_p))
