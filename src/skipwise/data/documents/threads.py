"""Work on documents in parallel threads, with the results in order."""

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from itertools import islice
from typing import TypeVar

from skipwise.data.documents.document import Document

# A batch is one call in one thread: large enough to hide its overhead, small enough to spread a small corpus over the
# threads.
_BATCH_CHARACTERS = 1 << 19
_BATCH_DOCUMENTS = 512
_LOOK_SECONDS = 0.2

Result = TypeVar("Result")


def in_threads(
    work: Callable[[list[Document]], Iterable[Result]],
    documents: Iterator[Document],
    workers: int,
    waiting_for: Callable[[], None] = lambda: None,
) -> Iterator[Result]:
    """Works on batches of documents in threads; yields results in order, and runs at most a few batches ahead.

    Args:
        work: returns the results of a batch; it gains from threads as far as it releases the GIL.
        documents: in reading order.
        workers: number of threads.
        waiting_for: called repeatedly while waiting for the next batch.
    """
    batches = _batches(documents)
    waiting: list[Future[Iterable[Result]]] = []
    with ThreadPoolExecutor(workers) as pool:
        while True:
            waiting += [pool.submit(work, batch) for batch in islice(batches, 2 * workers - len(waiting))]
            if not waiting:
                return
            while not wait(waiting[:1], _LOOK_SECONDS).done:
                waiting_for()
            yield from waiting.pop(0).result()


def _batches(documents: Iterator[Document]) -> Iterator[list[Document]]:
    batch: list[Document] = []
    characters = 0
    for document in documents:
        batch.append(document)
        characters += len(document.text)
        if characters >= _BATCH_CHARACTERS or len(batch) == _BATCH_DOCUMENTS:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch
