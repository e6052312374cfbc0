"""Retrieval exercises: generated windows with a passkey to find, among the documents' items."""

from typing import Any, Protocol

import numpy as np

from skipwise.data.items import IGNORED_LABEL, TrainingItem, generator_of
from skipwise.errors import ConfigError
from skipwise.evals.languages import ENGLISH, language_named
from skipwise.evals.tasks.passkey_prompt import PasskeyBuilder
from skipwise.positions import PositionSample, PositionSampler
from skipwise.window import Window

# Separates the draws of exercises from those of items, whose key is (seed, epoch, index).
_EXERCISES = 0x5EED
# Share of the keys that are drawn from three digits; measured in docs/results/seeds.md.
_FEW_DIGITS = 0.5


class Items(Protocol):
    """Items of documents by their places in a run."""

    def at(self, place: int) -> TrainingItem:
        """The item at a place."""
        ...

    def describe(self, place: int) -> dict[str, Any]:
        """Which document an item was made of."""
        ...

    def document_for(self, place: int, rng: np.random.Generator) -> np.ndarray:
        """A document to hide something in, 1-D."""
        ...


class RetrievalExercises:
    """Items of which a share are exercises: a passkey to find in the documents' text or in plain filler.

    Only the key's tokens are labelled. Positions skip as everywhere, and the key stands before the last skip where
    there is room for it: so it is asked for from any distance up to the target, and less often from near, which the
    base model can do already. Half of the keys are drawn from three digits alone, since digits that come again are what
    a small model copies wrongly.

    Args:
        tokenizer: the model's own.
        items: of the documents; the text of half of the exercises comes from these.
        sampler: chooses the positions.
        window: the three lengths, in tokens.
        seed: seed of all draws.
        share: of the places.
        language: code of the language of everything but the text of documents.

    Raises:
        ConfigError: the training window is too short for an exercise, or there are no exercises in the language.
    """

    def __init__(
        self,
        tokenizer: Any,
        items: Items,
        sampler: PositionSampler,
        window: Window,
        seed: int,
        share: float,
        language: str = ENGLISH.code,
    ) -> None:
        self._tokenizer, self._items, self._share, self._language = tokenizer, items, share, language
        self._sampler, self._window, self._seed = sampler, window, seed
        if window.train < (shortest := shortest_exercise(tokenizer, language)):
            raise ConfigError(
                f"setting 'data.retrieval' asks for exercises, and a training window of {window.train} tokens is too "
                f"short for one, which takes {shortest} with this tokenizer; train with a longer window, or without"
            )

    def at(self, place: int) -> TrainingItem:
        """The item at a place in the run."""
        return self.exercise(place) if self.stands_at(place) else self._items.at(place)

    def describe(self, place: int) -> dict[str, Any]:
        """Which document an item was made of; empty for an exercise."""
        return {} if self.stands_at(place) else self._items.describe(place)

    def stands_at(self, place: int) -> bool:
        """Whether the item at a place is an exercise."""
        return generator_of(self._seed, _EXERCISES + 1, place).random() < self._share

    def exercise(self, place: int) -> TrainingItem:
        """The exercise of a place."""
        rng = generator_of(self._seed, _EXERCISES, place)
        text = None
        if rng.random() < 0.5:
            document = self._items.document_for(place, rng)
            start = int(rng.integers(len(document)))
            text = np.roll(document, -start)[: self._window.train].tolist()
        # Made anew each time: a DataLoader's workers may have to pickle this object, and a builder cannot be pickled.
        builder = PasskeyBuilder(self._tokenizer, text, language_named(self._language))
        sample = self._sampler.sample(self._window.train, self._window, rng)
        depth = _depth_before_skip(sample, self._window.train, rng)
        prompt = builder.build(self._window.train, depth, rng, key=_key(rng))
        input_ids = np.asarray(prompt.prompt_ids + prompt.answer_ids, dtype=np.int64)
        labels = np.full_like(input_ids, IGNORED_LABEL)
        labels[-len(prompt.answer_ids) :] = prompt.answer_ids
        kept = sample.token_index
        return TrainingItem(input_ids[kept], sample.position_ids, labels[kept], is_sample=False)


def _depth_before_skip(sample: PositionSample, num_tokens: int, rng: np.random.Generator) -> float:
    """A place in a window before its last skip, 0 to 1; any place if the positions have no skip."""
    skips = np.flatnonzero(np.diff(sample.position_ids) != 1)
    before = int(sample.token_index[skips[-1]]) + 1 if skips.size else num_tokens
    return float(rng.random()) * before / num_tokens


def _key(rng: np.random.Generator) -> str:
    """Five digits, half of the time of three at most."""
    digits = rng.integers(0, 10, size=5)
    if rng.random() < _FEW_DIGITS:
        digits = rng.choice(rng.choice(10, 3, replace=False), 5)
    return "".join(map(str, digits))


def shortest_exercise(tokenizer: Any, language: str = ENGLISH.code) -> int:
    """Tokens of the shortest exercise in the language of a code."""
    return PasskeyBuilder(tokenizer, language=language_named(language)).shortest_tokens(np.random.default_rng(0))
