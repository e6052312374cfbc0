"""Retrieval exercises: generated windows with a passkey to find, among the documents' items."""

from typing import Any, Protocol

import numpy as np

from skipwise.data.items import IGNORED_LABEL, TrainingItem, generator_of
from skipwise.errors import ConfigError
from skipwise.evals.tasks.passkey_prompt import PasskeyBuilder
from skipwise.positions import PositionSampler
from skipwise.window import Window

# Keeps the draws of exercises apart from those of items, which are seeded by (seed, epoch, index).
EXERCISES = 0x5EED


class Items(Protocol):
    """Items of documents by their places in a run."""

    def at(self, place: int) -> TrainingItem:
        """The item at a place."""
        ...

    def describe(self, place: int) -> dict[str, int]:
        """Which document an item was made of."""
        ...

    def document_for(self, place: int, rng: np.random.Generator) -> np.ndarray:
        """A document to hide something in, 1-D."""
        ...


class RetrievalExercises:
    """Windows with a passkey to find, in the documents' text or in plain filler; only the key's tokens are labelled.

    Positions skip as everywhere else, so the key is asked for from any distance up to the target.

    Args:
        tokenizer: the model's own.
        items: of the documents whose text hides half of the keys.
        sampler: chooses the positions.
        window: the three lengths, in tokens.
        seed: source of every draw.

    Raises:
        ConfigError: when the training window is too short for an exercise.
    """

    def __init__(self, tokenizer: Any, items: Items, sampler: PositionSampler, window: Window, seed: int) -> None:
        self._tokenizer, self._items = tokenizer, items
        self._sampler, self._window, self._seed = sampler, window, seed
        require_room(tokenizer, window)

    def item(self, place: int) -> TrainingItem:
        """The exercise at a place in the run."""
        rng = generator_of(self._seed, EXERCISES, place)
        text = None
        if rng.random() < 0.5:
            document = self._items.document_for(place, rng)
            start = int(rng.integers(len(document)))
            text = np.roll(document, -start)[: self._window.train].tolist()
        return self._hidden_in(text, rng)

    def _hidden_in(self, text: list[int] | None, rng: np.random.Generator) -> TrainingItem:
        # Made anew each time, as workers of a DataLoader may have to pickle this object, and a builder cannot be.
        builder = PasskeyBuilder(self._tokenizer, text)
        prompt = builder.build(self._window.train, float(rng.random()), rng)
        input_ids = np.asarray(prompt.prompt_ids + prompt.answer_ids, dtype=np.int64)
        sample = self._sampler.sample(len(input_ids), self._window, rng)
        labels = np.full_like(input_ids, IGNORED_LABEL)
        labels[-len(prompt.answer_ids) :] = prompt.answer_ids
        kept = sample.token_index
        return TrainingItem(input_ids[kept], sample.position_ids, labels[kept], is_sample=False)


def shortest_exercise(tokenizer: Any) -> int:
    """Tokens of the shortest exercise."""
    return PasskeyBuilder(tokenizer).shortest_tokens(np.random.default_rng(0))


def require_room(tokenizer: Any, window: Window) -> None:
    """Refuses a training window that is too short for an exercise.

    Raises:
        ConfigError: it is.
    """
    if window.train < (shortest := shortest_exercise(tokenizer)):
        raise ConfigError(
            f"setting 'data.retrieval' asks for exercises, and a training window of {window.train} tokens is too short "
            f"for one, which takes {shortest} with this tokenizer; train with a longer --window, or without"
        )
