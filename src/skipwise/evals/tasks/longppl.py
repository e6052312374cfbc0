"""LongPPL: perplexity over the tokens that a long context helps to predict."""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, ClassVar, NamedTuple, get_args

import numpy as np
from pydantic import Field

from skipwise.data.tokens import Reading, TextEncoder, encoder_of
from skipwise.distributed import process_state
from skipwise.errors import ConfigError
from skipwise.evals.cache import hash_model
from skipwise.evals.context import EvalContext, as_input
from skipwise.evals.settings import NO_KEY, BosPolicy, Count
from skipwise.evals.tasks.nll import INTERVAL, DocumentTask, first_nlls, mean_nll, nll_record
from skipwise.evals.tasks.sliding import WindowSpan, windowed_nlls
from skipwise.model import load_model, read_config, rope_state
from skipwise.model.source import locate, quiet_transformers
from skipwise.model.tokenizer import load_tokenizer
from skipwise.records.results import EvalResult, Measurement, Sample, hash_tokenizer
from skipwise.records.stats import Estimate

logger = logging.getLogger("skipwise")

# Tokens after the cut that are decoded and encoded, too, so that the cut does not change the tokens before it.
_MARGIN_TOKENS = 64

Scorer = Annotated[
    str | None,
    Field(min_length=1, description="the model that chooses: a folder, a hub name or a .gguf file"),
]


@dataclass(frozen=True, slots=True, kw_only=True)
class LongPPL(DocumentTask):
    """Perplexity of the evaluated model over key tokens, which a scorer model chooses.

        exp(sum of NLL / number of tokens) over tokens with  NLL(short) - NLL(long) > min_gain  and  NLL(long) < max_nll

    where the scorer's NLL(long) is given all of the first L tokens before the token, and NLL(short) only the nearest:
    windows of `short_tokens + stride_tokens` start every `stride_tokens`, and each scores its last `stride_tokens`. A
    scorer with another tokenizer marks stretches of text, and the evaluated model's tokens inside them are key. Further
    results are the perplexity over all tokens of the same documents and the share of key tokens.

    Attributes:
        scorer: folder, hub name or GGUF file of the model that chooses; it is loaded in the evaluated model's dtype. By
            default the evaluated model itself. To compare models, use one scorer and one dtype: models that choose for
            themselves are measured on different tokens.
        short_tokens: `K`, the minimum size of a short context; the first K tokens cannot be key.
        stride_tokens: number of tokens that share a short context.
        min_gain: decrease of the NLL, in nats, that makes a token key.
        max_nll: upper bound of a key token's NLL with the long context, in nats.
        num_documents: maximum number of documents; each has at least the largest length.
        bos: whether inputs begin with the beginning-of-sequence token, which then counts towards their length.
            `tokenizer` means: if the tokenizer adds one.

    Source: arXiv 2410.23771 and its authors' package `longppl` 0.3. Three deviations: where the policy adds a
    beginning-of-sequence token, short contexts begin with it, too, so that its absence is not what is measured;
    documents are weighted by their key tokens; white space at the beginning of a token does not exclude it from a
    stretch of text.
    """

    name: ClassVar[str] = "longppl"
    scorer: Scorer = field(default=None, metadata=NO_KEY)
    short_tokens: Annotated[int, Field(ge=2)] = 4096
    stride_tokens: Count = 1024
    min_gain: float = 2.0
    max_nll: float = 2.0
    num_documents: Count = field(default=20, metadata=NO_KEY)
    bos: BosPolicy = "tokenizer"

    def check_lengths(self, context: EvalContext, lengths: Sequence[int]) -> None:
        """Checks that lengths leave a short context, documents are long enough, and the scorer can read them.

        Of the scorer, only the config and the tokenizer are read.
        """
        if min(lengths) <= self.short_tokens:
            raise ConfigError(
                f"longppl has short contexts of {self.short_tokens} tokens and the shortest length is {min(lengths)}; "
                "ask for longer lengths or set fewer short_tokens",
                page="length-does-not-fit",
            )
        chosen = self.documents(context, lengths)
        if self.scorer is not None:
            self._check_scorer(self.scorer, context, lengths, chosen.bodies)

    def run(self, context: EvalContext, lengths: Sequence[int]) -> Iterator[Measurement]:
        """Measures all lengths on the same documents."""
        bos, chosen, about = context.bos(self.bos), self.documents(context, lengths), self.about(lengths)
        scorer, longest = self._scorer(context), max(lengths)
        scope: dict[str, Any] = {}
        if not scorer.is_evaluated and context.cache is not None:
            scope = {
                "scorer_model": hash_model(scorer.context.model),
                "scorer_tokenizer": hash_tokenizer(scorer.context.tokenizer),
            }

        def measure(length: int, body: np.ndarray, where: str) -> dict[str, Any]:
            ids, nlls = first_nlls(context, bos, body, length, longest, where)
            record = nll_record(ids, nlls)
            is_key = self._key_tokens(context, scorer, body, length - len(bos), longest, nlls.numpy(), where)
            if is_key is None:
                return record | {"key_tokens": None, "unscorable": "its tokens are not those of its own text"}
            # The first token has no NLL unless a token precedes it.
            is_key = is_key[len(is_key) - len(nlls) :]
            return record | {"key_tokens": int(is_key.sum()), "key_nll_sum": float(nlls.numpy()[is_key].sum())}

        for length in lengths:
            samples = self.samples(context, length, chosen, measure, **about, **scope)
            yield Measurement(self.results(context, length, samples, num_skipped=chosen.num_skipped, **about), samples)

    def results(
        self, context: EvalContext, length: int, samples: Sequence[Sample], *, num_skipped: int = 0, **about: Any
    ) -> list[EvalResult]:
        """LongPPL, or a warning if there is no key token; perplexity; share of key tokens."""
        judged = [sample for sample in samples if sample["key_tokens"] is not None]
        keyed = [sample for sample in judged if sample["key_tokens"]]

        def result(metric: str, estimate: Estimate, measured: Sequence[Sample], **details: Any) -> EvalResult:
            details |= {"interval": INTERVAL, "scorer": self.scorer or "the evaluated model", **about}
            skipped = num_skipped + len(samples) - len(measured)
            return context.result(
                self, length, metric, estimate, num_samples=len(measured), num_skipped=skipped, **details
            )

        results = []
        if keyed:
            tokens = [sample["key_tokens"] for sample in keyed]
            mean = mean_nll(context, [sample["key_nll_sum"] for sample in keyed], tokens)
            results.append(result("longppl", mean.exp(), keyed, key_tokens=sum(tokens)))
        elif process_state().is_main_process:
            logger.warning(
                "longppl at %d: no key token in the %d documents that can be judged of %d, so there is no LongPPL; take"
                " longer documents, another scorer, a smaller min_gain or a larger max_nll",
                length,
                len(judged),
                len(samples),
            )
        results.append(self.perplexity(context, length, samples, num_skipped=num_skipped, **about))
        if judged:
            counts = ([sample[name] for sample in judged] for name in ("key_tokens", "scored_tokens"))
            results.append(result("key_share", mean_nll(context, *counts), judged))
        return results

    def _check_scorer(
        self, scorer: str, context: EvalContext, lengths: Sequence[int], bodies: Sequence[np.ndarray]
    ) -> None:
        """Raises ConfigError if the scorer's tokenizer cannot be matched, or inputs exceed its window."""
        place = locate(scorer, weights=False)
        with quiet_transformers():
            tokenizer: Any = load_tokenizer(place)
        if hash_tokenizer(tokenizer) == hash_tokenizer(context.tokenizer):
            most = max(lengths)
        elif not (tokenizer.is_fast and getattr(context.tokenizer, "is_fast", False)):
            raise ConfigError(
                f"longppl.scorer is {scorer!r}, whose tokenizer is another than the model's, and one of them does not "
                "say where its tokens are in a text; take a scorer with the same tokenizer"
            )
        else:
            num_bos, bos = len(context.bos(self.bos)), replace(context, tokenizer=tokenizer).bos(self.bos)
            texts = (_located(context.tokenizer, body, length - num_bos) for length in lengths for body in bodies)
            most = max(
                (len(bos) + len(_encode(tokenizer, found.text, found.reading)[0]) for found in texts if found),
                default=0,
            )
        window = rope_state(read_config(scorer)).maximum
        if most > window:
            raise ConfigError(
                f"longppl has inputs of up to {most} tokens for its scorer {scorer!r}, whose window is {window}; ask "
                "for shorter lengths or take a scorer with a longer window",
                page="length-does-not-fit",
            )

    def _scorer(self, context: EvalContext) -> "_Scorer":
        if self.scorer is None:
            return _Scorer(context, context.bos(self.bos), is_evaluated=True, same_tokens=True)
        model, tokenizer = load_model(self.scorer, dtype=context.model.dtype)
        network: Any = model
        scorer = context.of_model(network.to(context.model.device).eval(), tokenizer)
        same_tokens = hash_tokenizer(tokenizer) == hash_tokenizer(context.tokenizer)
        return _Scorer(scorer, scorer.bos(self.bos), is_evaluated=False, same_tokens=same_tokens)

    def _key_tokens(
        self,
        context: EvalContext,
        scorer: "_Scorer",
        body: np.ndarray,
        num_tokens: int,
        longest: int,
        nlls: np.ndarray,
        where: str,
    ) -> np.ndarray | None:
        """Which of a document's first `num_tokens` tokens are key, bool; None if the tokenizers cannot be matched.

        `nlls` are the evaluated model's, of the tokens that have one; `longest` is the largest length.
        """
        if scorer.is_evaluated:
            return self._chosen(scorer, body[:num_tokens], nlls, where)
        where = f"{where}, scorer"
        if scorer.same_tokens:
            length = num_tokens + len(scorer.bos)
            (_, own) = first_nlls(scorer.context, scorer.bos, body, length, longest, where)
            return self._chosen(scorer, body[:num_tokens], own.numpy(), where)
        found = _located(context.tokenizer, body, num_tokens)
        if found is None:
            return None
        scorer_body, scorer_spans = _encode(scorer.context.tokenizer, found.text, found.reading)
        is_key = self._chosen(scorer, scorer_body, scorer.nlls(scorer_body, where), where)
        return inside(_without_leading_space(found.text, found.spans), scorer_spans[is_key])

    def _chosen(self, scorer: "_Scorer", body: np.ndarray, nlls: np.ndarray, where: str) -> np.ndarray:
        """Which tokens of `body` the scorer chooses, bool; `nlls` are its NLLs with the long context."""
        reach = self.short_tokens - len(scorer.bos)
        is_key = np.zeros(len(body), bool)
        if len(body) > reach:
            spans = (
                WindowSpan(begin, begin + reach, min(begin + reach + self.stride_tokens, len(body)))
                for begin in range(0, len(body) - reach, self.stride_tokens)
            )
            where = f"{where}, short context"
            short = windowed_nlls(scorer.context.token_nlls, scorer.bos, body, spans, where=where).numpy()
            long = nlls[-len(short) :]
            is_key[reach:] = (short - long > self.min_gain) & (long < self.max_nll)
        return is_key


class _Scorer(NamedTuple):
    """The model that chooses the key tokens.

    Attributes:
        context: the evaluation's context, with the scorer's model and tokenizer.
        bos: token ids that precede each of its inputs.
        is_evaluated: whether it is the evaluated model itself.
        same_tokens: whether it has the evaluated model's tokenizer.
    """

    context: EvalContext
    bos: list[int]
    is_evaluated: bool
    same_tokens: bool

    def nlls(self, body: np.ndarray, where: str) -> np.ndarray:
        """NLLs with the whole left context, 1-D, of every token that has a predecessor."""
        return self.context.token_nlls(as_input(self.bos, body), where=where)[0].numpy()


def inside(spans: np.ndarray, stretches: np.ndarray) -> np.ndarray:
    """Which spans lie within the union of the stretches, bool (n,); stretches that touch are joined.

    Args:
        spans: begins and exclusive ends, (n, 2).
        stretches: the same, (m, 2), ordered by begin.
    """
    if not len(stretches):
        return np.zeros(len(spans), bool)
    reached = np.maximum.accumulate(stretches[:, 1])
    opens = np.concatenate([[True], stretches[1:, 0] > reached[:-1]])
    begins, ends = stretches[opens, 0], reached[np.append(opens[1:], True)]
    place = np.searchsorted(begins, spans[:, 0], side="right") - 1
    return (place >= 0) & (spans[:, 1] <= ends[place])


def _without_leading_space(text: str, spans: np.ndarray) -> np.ndarray:
    """The spans without leading white space; spans of nothing but white space are unchanged."""
    shortened = [len(text[begin:end].lstrip()) for begin, end in spans]
    return np.array([(end - kept if kept else begin, end) for kept, (begin, end) in zip(shortened, spans, strict=True)])


class _Located(NamedTuple):
    """Text of a document's first tokens.

    Attributes:
        text: the text.
        spans: the position of each token in it, (n, 2) characters.
        reading: whether control tokens in it are text, or tokens such as those between joined documents.
    """

    text: str
    spans: np.ndarray
    reading: Reading


def _located(tokenizer: Any, body: np.ndarray, num_tokens: int) -> _Located | None:
    """The text of a document's first tokens; None if it tokenizes to others."""
    ids = body[: num_tokens + _MARGIN_TOKENS].tolist()
    text = tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
    for reading in get_args(Reading):
        own, spans = _encode(tokenizer, text, reading)
        if np.array_equal(own[:num_tokens], body[:num_tokens]):
            return _Located(text[: spans[num_tokens - 1, 1]], spans[:num_tokens], reading)
    return None


def _encode(tokenizer: Any, text: str, reading: Reading) -> tuple[np.ndarray, np.ndarray]:
    """Token ids of a text, int64 (n,), and their positions in it, (n, 2) characters."""
    encoder = encoder_of(tokenizer)
    if reading == "text" and isinstance(encoder, TextEncoder):
        encoded = encoder.engine.encode(text, add_special_tokens=False)
        return np.array(encoded.ids, np.int64), np.array(encoded.offsets, np.int64).reshape(-1, 2)
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    return np.array(encoded["input_ids"], np.int64), np.array(encoded["offset_mapping"], np.int64).reshape(-1, 2)
