"""The training and held-out texts as token ids, made from seeds alone."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer
from tqdm import tqdm

from . import noise, tokenizer
from .asking import phrases
from .dialogue import (
    Conversation,
    bare_request,
    short_talk,
    story_plan,
    story_talk,
)
from .surfaces import tell

LANGUAGES = ("en", "zh")
CONTEXT = 2048  # tokens; no document is longer
TRAINING_SEED, HELD_OUT_SEED, COPYING_SEED = 1, 2, 5
COPYING_TOKENS = 1_500_000
COPYING_LENGTH = 128  # tokens of a document
COPYING_PERIODS = (8, 60)  # tokens

# Kind of document -> share of all documents.
SHARES = {
    "conversation": 0.56,
    "short": 0.18,
    "story": 0.12,
    "bare request": 0.10,
    "noise": 0.03,
    "long": 0.01,
}


@dataclass(frozen=True, slots=True)
class Document:
    """A conversation, or plain text with a prefix that is only context, and its stories."""

    language: str
    talk: Conversation | None = None
    text: str = ""
    prefix: str = ""
    stories: tuple[str, ...] = ()

    def encode(self, bpe: Tokenizer) -> tokenizer.Encoded:
        """Its tokens, at most `CONTEXT` of them."""
        if self.talk is None:
            whole = tokenizer.encode_text(bpe, self.text, self.prefix)
        else:
            whole = tokenizer.encode_turns(bpe, self.talk.turns)
        return tokenizer.Encoded(whole.ids[:CONTEXT], whole.learned[:CONTEXT])


def documents(seed: int, count: int, *, held_out: bool = False) -> Iterator[Document]:
    """`count` documents, half in each language; held-out ones have pairs not in training."""
    rng = random.Random(seed)
    for number in range(count):
        language = LANGUAGES[number % 2]
        form = rng.choices(list(SHARES), list(SHARES.values()))[0]
        yield _document(rng, language, form, held_out)


def _document(rng: random.Random, language: str, form: str, held_out: bool) -> Document:
    if form in ("conversation", "long"):
        most = 9 if form == "long" else 3
        talk = story_talk(rng, language, held_out=held_out, most_stories=most)
        return Document(language, talk, stories=tuple(talk.stories))
    if form == "short":
        return Document(language, short_talk(rng, language))
    if form == "story":
        told = tell(story_plan(rng, language, held_out=held_out), rng)
        return Document(language, text=told, stories=(told,))
    if form == "bare request":
        talk = bare_request(rng, language, held_out=held_out)
        asked, answer = (turn.text for turn in talk.turns)
        stories = tuple(talk.stories)
        return Document(language, text="\n\n" + answer, prefix=asked, stories=stories)
    text = "\n\n" + rng.choice(phrases(language).LIMITS)
    return Document(language, text=text, prefix=noise.off_topic(rng, language))


def plain_text(document: Document) -> Iterator[str]:
    """The texts for the vocabulary: everything that the model should say, and the requests."""
    if document.talk is None:
        yield document.text
        return
    for turn in document.talk.turns:
        yield f"{turn.role}\n{turn.text}"


@dataclass(frozen=True, slots=True)
class Corpus:
    """Documents end to end: ids and learned of shape (tokens,), starts (documents + 1,)."""

    ids: npt.NDArray[np.uint16]
    learned: npt.NDArray[np.bool_]
    starts: npt.NDArray[np.int64]

    @classmethod
    def build(
        cls, bpe: Tokenizer, source: Iterable[Document], label: str, *, tokens: int | None = None
    ) -> Corpus:
        """The documents of the source, until there are `tokens` tokens."""
        ids, learned, starts = [], [], [0]
        with tqdm(total=tokens, unit="tok", unit_scale=True, desc=label, mininterval=2) as bar:
            for document in source:
                encoded = document.encode(bpe)
                ids.append(encoded.ids)
                learned.append(encoded.learned)
                starts.append(starts[-1] + len(encoded.ids))
                bar.update(len(encoded.ids))
                if tokens is not None and starts[-1] >= tokens:
                    break
        return cls(np.concatenate(ids), np.concatenate(learned), np.array(starts, np.int64))

    def save(self, path: Path) -> None:
        """Writes the arrays to an .npz file."""
        np.savez(path, ids=self.ids, learned=self.learned, starts=self.starts)

    @classmethod
    def load(cls, path: Path) -> Corpus:
        """Reads what `save` wrote."""
        with np.load(path) as arrays:
            return cls(arrays["ids"], arrays["learned"], arrays["starts"])


def copying(vocabulary: int) -> Corpus:
    """Documents of random tokens that repeat, in which only the repetition is learned.

    Read before the stories, they teach attention to look back and copy, which keeps a character's
    name and thing consistent. Without them that takes several million tokens more of stories.
    """
    rng = np.random.default_rng(COPYING_SEED)
    count = COPYING_TOKENS // COPYING_LENGTH
    place = np.arange(COPYING_LENGTH)
    periods = rng.integers(*COPYING_PERIODS, (count, 1))
    tokens = rng.integers(len(tokenizer.SPECIALS), vocabulary, (count, COPYING_LENGTH))
    ids = np.take_along_axis(tokens, place % periods, axis=1).astype(np.uint16)
    starts = np.arange(count + 1, dtype=np.int64) * COPYING_LENGTH
    return Corpus(ids.ravel(), (place >= periods).ravel(), starts)


def joined(first: Corpus, second: Corpus) -> Corpus:
    """The documents of the first, then those of the second."""
    return Corpus(
        np.concatenate((first.ids, second.ids)),
        np.concatenate((first.learned, second.learned)),
        np.concatenate((first.starts, second.starts[1:] + first.starts[-1])),
    )
