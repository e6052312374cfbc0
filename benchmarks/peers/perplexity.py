"""Perplexity of the same texts by `skipwise eval` and by lm-evaluation-harness.

lm-evaluation-harness's `loglikelihood_rolling` cuts a text into pieces of `L` tokens. A piece is read behind the token
before it, the first behind the beginning-of-sequence token, and every token of it is scored. So a token has between 1
and `L` tokens before it. `skipwise eval --task sliding` moves a window of `L` tokens by `L / 2`, so that all tokens but
those of the first window have at least `L / 2` before them: a lower value, and more to compute.

Both ways are measured: the windows of lm-evaluation-harness by both programs, where the values must agree, and
skipwise's own. Texts are whole pieces long. Both sides run in one process, in turns.
"""

import json
import logging
import math
import sys
import sysconfig
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.peers.clock import Clock
from benchmarks.peers.installing import LM_EVAL, SkippedError, install, measure_apart
from benchmarks.peers.plan import Plan
from benchmarks.peers.rows import OURS, Row, Skipped

WINDOW, PIECES = 1024, 2
BATCH_TOKENS = 2048  # as skipwise's task
OVERLAPPING = f"{OURS}, --task sliding"
TOLERANCE = 1e-4


def measure(plan: Plan) -> Iterator[Row | Skipped]:
    """Both programs on the same texts."""
    try:
        python = install(LM_EVAL, plan.folder)
        question = {"model": plan.model, "rounds": plan.rounds, "texts": plan.texts}
        found = measure_apart("perplexity", question, python)
    except SkippedError as error:
        yield Skipped(part="perplexity", side=LM_EVAL.shown, reason=str(error))
        return
    ours = found[OURS]["values"][0]
    for value in found[LM_EVAL.shown]["values"]:
        if abs(value / ours - 1) > TOLERANCE:
            raise AssertionError(f"perplexity {value} of {LM_EVAL.shown} and {ours} of {OURS} on equal windows")
    case = f"{plan.texts} texts of {PIECES} windows of {WINDOW} tokens"
    for side, one in found.items():
        how = {"part": "perplexity", "case": case, "side": side}
        how["different"] = "windows overlap by half" if side == OVERLAPPING else ""
        yield Row(metric="seconds", values=one["wall"], **how)
        yield Row(metric="processor seconds", values=one["cpu"], **how)
        yield Row(metric="perplexity", values=one["values"], **how)


def texts_of(tokenizer: Any, number: int, tokens: int) -> list[tuple[str, list[int]]]:
    """Texts of the standard library that have exactly so many tokens, with these."""
    found: list[tuple[str, list[int]]] = []
    for path in sorted(Path(sysconfig.get_path("stdlib")).glob("*.py")):
        ids = tokenizer.encode(path.read_text(encoding="utf-8"), add_special_tokens=False)[:tokens]
        text = tokenizer.decode(ids)
        # A cut within a character or word may read as other tokens.
        if len(ids) == tokens and tokenizer.encode(text, add_special_tokens=False) == ids:
            found.append((text, ids))
        if len(found) == number:
            return found
    raise ValueError(f"only {len(found)} texts of the standard library have {tokens} tokens")


def rolling(model: Any, tokenizer: Any, texts: list[str]) -> Callable[[], float]:
    """Sum of negative log-likelihoods by lm-evaluation-harness."""
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    harness: Any = HFLM  # its decorators hide its parameters
    made = harness(
        pretrained=model, tokenizer=tokenizer, max_length=WINDOW, batch_size=BATCH_TOKENS // WINDOW, add_bos_token=False
    )
    asked = [
        Instance(request_type="loglikelihood_rolling", doc={}, arguments=(text,), idx=number)
        for number, text in enumerate(texts)
    ]
    return lambda: -sum(made.loglikelihood_rolling(asked, disable_tqdm=True))


def answer(question: dict[str, Any]) -> dict[str, Any]:
    """All sides in turn, in this process."""
    from skipwise.evals import EvalContext
    from skipwise.evals.tasks.sliding import SlidingWindowPerplexity, window_spans, windowed_nlls
    from skipwise.model import load_model
    from skipwise.runtime.forward import token_nlls

    logging.disable(logging.WARNING)
    model, tokenizer = load_model(question["model"], dtype="float32")
    model.eval()
    texts = texts_of(tokenizer, question["texts"], PIECES * WINDOW)
    total = len(texts) * PIECES * WINDOW
    prefix = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id

    def equal() -> float:
        import numpy as np

        spans = list(window_spans(PIECES * WINDOW + 1, WINDOW + 1, WINDOW))
        return sum(
            float(windowed_nlls(partial(token_nlls, model), [], np.array([prefix, *ids]), spans, where="a text").sum())
            for _, ids in texts
        )

    def sliding() -> float:
        import numpy as np

        task = SlidingWindowPerplexity(cut_tokens=PIECES * WINDOW)
        documents = [np.array(ids) for _, ids in texts]
        context = EvalContext(model=model, tokenizer=tokenizer, documents=documents, progress=False)
        (value,) = (r.value for m in task.run(context, [WINDOW]) for r in m.results if r.metric == "perplexity")
        return total * math.log(value)

    sides = {
        LM_EVAL.shown: rolling(model, tokenizer, [text for text, _ in texts]),
        OURS: equal,
        OVERLAPPING: sliding,
    }
    clocks, values = {side: Clock() for side in sides}, {side: [] for side in sides}
    for number in range(question["rounds"]):
        for side in list(sides)[:: -1 if number % 2 else 1]:
            clocks[side].start()
            values[side].append(math.exp(sides[side]() / total))
            clocks[side].lap()
    return {side: {"wall": clocks[side].wall, "cpu": clocks[side].cpu, "values": values[side]} for side in sides}


if __name__ == "__main__":
    print(json.dumps(answer(json.loads(sys.argv[1]))))
