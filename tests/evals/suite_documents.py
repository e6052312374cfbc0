"""Documents of invented prose for the suite's tests, and a counter of tokens that knows nothing of the suite's code."""

import numpy as np

from skipwise.data.documents import Document

WORDS = [
    a + b for a in ("ban", "cor", "del", "fir", "gol", "hem", "jur", "lom") for b in ("a", "ent", "ing", "us", "op")
]


def sentence(rng: np.random.Generator) -> str:
    words = [str(word) for word in rng.choice(WORDS, int(rng.integers(12, 20)))]
    return " ".join(words).capitalize() + "."


def prose(name: str, num_sentences: int, *, with_headings: bool = False) -> Document:
    rng = np.random.default_rng(list(name.encode()))
    paragraphs = []
    for number in range(num_sentences // 4):
        if with_headings and number % 2 == 0:
            paragraphs.append(f"## {' '.join(rng.choice(WORDS, 4)).capitalize()}")
        paragraphs.append(" ".join(sentence(rng) for _ in range(4)))
    return Document(name=name, text="\n\n".join(paragraphs) + "\n")


def write_documents(folder, documents) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for document in documents:
        (folder / document.name).write_text(document.text, encoding="utf-8")
