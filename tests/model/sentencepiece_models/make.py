"""Makes the files beside it with the sentencepiece library: three tiny models, and the ids it gives of texts.

    pip install sentencepiece==0.2.3 && python tests/model/sentencepiece_models/make.py

`baichuan` is a bilingual BPE with bytes for rare characters, single digits, nothing put before a text and no space
taken away. `prefixed` has a space put before every text, as Llama's. `joined` is what SentencePiece makes unless it is
told otherwise, with repeated spaces joined and no bytes, and here with a rule that rewrites full-width letters.
"""

# ruff: noqa: RUF001
import contextlib
import io
import json
import unicodedata
from pathlib import Path
from typing import Any

import sentencepiece as library  # pyright: ignore[reportMissingImports]

spm: Any = library
HERE = Path(__file__).parent
ENGLISH = """
The window of a language model is the longest text that it was trained on; positions beyond it are foreign to it.
Skipping positions inside a short window lets the model meet every distance up to the target length.
Rotary embeddings turn each pair of dimensions by an angle that grows with the position of the token.
A token may be a word, a part of a word, a character or a single byte, and there are 125696 of them in version 2.
"""
CHINESE = """
语言模型的窗口是它训练时见过的最长文本，超出窗口的位置对它来说是陌生的。
在短窗口内跳过一些位置，模型就能遇到直到目标长度的每一个距离。
旋转位置编码把每一对维度按照词元的位置旋转一个角度。
登鹳雀楼：白日依山尽，黄河入海流。欲穷千里目，更上一层楼。
"""
CODE = "def mean(values):\n    return sum(values) / len(values)  # none\nfor x in range(100):\n    print(x, x**2)\n"
TEXTS = [
    "",
    "a",
    " ",
    "   ",
    " leading and trailing ",
    "two  spaces,   three\tand a tab\nand lines\n\n",
    "The window is trained on 2048 tokens.",
    "the the theme, token tokens ttt aaaa ababab",
    "白日依山尽，黄河入海流。",
    "mixed 语言 text 模型12345",
    "rare: \u9f98 \U0001f999 é ñ \u0000 \ufffd \u200d",
    "e\u0301 decomposed, ＡＢＣ full-width, ﬁ ligature",
    "\u2581 the mark itself",
    CODE,
    ENGLISH,
    CHINESE,
]
SYMBOLS = ["before <sep> after", "a<sep><sep>b", "end<sep>"]
"""With a symbol that two of the models have as one piece by order of their maker."""


def train(name: str, *given: str, **settings: Any) -> None:
    model = io.BytesIO()
    lines = [*ENGLISH.splitlines(), *CHINESE.splitlines(), *CODE.splitlines()]
    spm.SentencePieceTrainer.train(
        sentence_iterator=iter(line for line in lines if line),
        model_writer=model,
        model_type="bpe",
        vocab_size=600,
        hard_vocab_limit=False,
        user_defined_symbols=[*given],
        control_symbols=["<reserved_0>"],
        minloglevel=2,
        **settings,
    )
    (HERE / f"{name}.model").write_bytes(model.getvalue())
    processor = spm.SentencePieceProcessor(model_proto=model.getvalue())
    recorded = []
    for text in [*TEXTS, *(SYMBOLS if given else ())]:
        ids = processor.encode(text)
        recorded.append({"text": text, "ids": ids, "decoded": processor.decode(ids)})
    (HERE / f"{name}.json").write_text(json.dumps(recorded) + "\n")


def main() -> None:
    """Makes all."""
    apart = {"byte_fallback": True, "split_digits": True, "character_coverage": 0.98}
    apart |= {"normalization_rule_name": "identity", "remove_extra_whitespaces": False}
    train("baichuan", "<sep>", add_dummy_prefix=False, allow_whitespace_only_pieces=True, **apart)
    train("prefixed", "<sep>", allow_whitespace_only_pieces=True, **apart)
    rules = HERE / "rules.tsv"
    widths = (chr(code) for code in range(0xFF21, 0xFF3B))
    rules.write_text("".join(f"{ord(wide):X}\t{ord(unicodedata.normalize('NFKC', wide)):X}\n" for wide in widths))
    with contextlib.chdir(HERE):  # The model keeps the name.
        train("joined", normalization_rule_tsv=rules.name)
    rules.unlink()


if __name__ == "__main__":
    main()
