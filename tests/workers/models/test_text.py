"""Text as token ids."""

import numpy as np
import pytest

from workers.models.text import END, LENGTH, PAD, UNKNOWN, Vocabulary, unknown_words, vocabulary
from workers.scenes.grammar import caption, sample_scene


def test_every_caption_has_only_known_tokens_and_fits():
    rng = np.random.default_rng(0)
    for i in range(600):
        scene = sample_scene(rng, "unseen" if i % 2 else "train")
        for language in ("zh", "en"):
            for style in ("short", "detailed", "tags"):
                text = caption(scene, language, style, rng)
                ids = vocabulary().encode(text)
                assert UNKNOWN not in ids
                assert ids[-1] == END
                assert len(ids) < LENGTH
                assert vocabulary().decode(ids) == text


def test_ids_are_the_same_in_every_process():
    assert Vocabulary().symbols == vocabulary().symbols
    assert len(set(vocabulary().symbols)) == len(vocabulary())


def test_words_that_only_people_use_are_put_as_the_grammar_puts_them():
    vocab = vocabulary()
    assert vocab.decode(vocab.encode("a black kitten")) == "a black cat"
    assert vocab.encode("A BLACK CAT") == vocab.encode("a black cat")


def test_foreign_words_become_unknown_tokens_and_are_named():
    assert vocabulary().encode("zebra") == [UNKNOWN, END]
    assert unknown_words("a zebra and a cat on mars") == ("zebra", "mars")


def test_batches_are_padded_to_their_longest():
    ids = vocabulary().encode_batch(["cat", "a black cat"])
    assert ids.shape == (2, 4)
    assert ids[0, 2:].tolist() == [PAD, PAD]


def test_a_text_without_end_is_cut():
    ids = vocabulary().encode("cat " * 1000)
    assert len(ids) == LENGTH
    assert ids[-1] == END


@pytest.mark.parametrize("style", ["short", "detailed", "tags"])
def test_begin_tokens_differ_and_are_never_decoded(style):
    begin = {vocabulary().begin(language, style) for language in ("zh", "en")}
    assert len(begin) == 2
    assert vocabulary().decode([*begin, END]) == ""
