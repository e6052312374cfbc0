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
from skipwise.evals.tasks.nll import (
    INTERVAL,
    ScoresDocuments,
    document_samples,
    long_documents,
    mean_nll,
    nll_sample,
    perplexity_result,
)
from skipwise.evals.tasks.sliding import WindowSpan, windowed_nlls
from skipwise.model import load_model, read_config, rope_state
from skipwise.model.source import locate, quiet_transformers
from skipwise.model.tokenizer import load_tokenizer
from skipwise.records.results import EvalResult, Measurement, Sample, hash_tokenizer
from skipwise.runtime.forward import token_nlls

logger = logging.getLogger("skipwise")

# Tokens behind the cut that are decoded and encoded too, so that the cut itself changes nothing before it.
_MARGIN_TOKENS = 64

Scorer = Annotated[
    str | None,
    Field(min_length=1, description="the model that chooses: a folder, a hub name or a .gguf file"),
]


@dataclass(frozen=True, slots=True, kw_only=True)
class LongPPL(ScoresDocuments):
    """Perplexity of the evaluated model over key tokens, and which those are is a scorer's judgement.

        exp(sum of NLL / number of tokens) over tokens with  NLL(short) - NLL(long) > min_gain  and  NLL(long) < max_nll

    where the scorer's NLL(long) is given all of the first L tokens that come before, and NLL(short) only the nearest
    ones: windows of `short_tokens + stride_tokens` start every `stride_tokens`, and each scores its last
    `stride_tokens`. A scorer with another tokenizer marks stretches of text, and the evaluated model's tokens inside
    them are key. Beside it stand the perplexity over all tokens of the same documents and the share of key tokens.

    Attributes:
        scorer: folder, hub name or GGUF file of the model that chooses; None for the evaluated model itself. Compare
            models by one scorer: by itself, each is measured on other tokens.
        short_tokens: `K`, the fewest tokens of a short context; the first K tokens cannot be key.
        stride_tokens: tokens that share a short context.
        min_gain: fall of the NLL, in nats, that makes a token key.
        max_nll: NLL with the long context, in nats, that a key token stays below.
        num_documents: documents at most, each of at least the largest length.
        bos: whether inputs begin with the beginning-of-sequence token, which then counts towards their length.

    Source: arXiv 2410.23771 and its authors' package `longppl` 0.3. Three deviations: a short context too begins with
    the beginning-of-sequence token where the policy puts one, so that its absence is not what is measured; documents
    are weighted by their key tokens; white space that begins a token does not keep it out of a stretch of text.
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
        """Refuses lengths without a short context, documents that are too short, and a scorer that cannot read them.

        Of the scorer the config and the tokenizer are read, not the weights.
        """
        if min(lengths) <= self.short_tokens:
            raise ConfigError(
                f"longppl has short contexts of {self.short_tokens} tokens and the shortest length is {min(lengths)}; "
                "ask for longer lengths or set fewer short_tokens"
            )
        chosen = long_documents(context, self, max(lengths))
        if self.scorer is not None:
            self._check_scorer(self.scorer, context, lengths, chosen.bodies)

    def run(self, context: EvalContext, lengths: Sequence[int]) -> Iterator[Measurement]:
        """Measures each length on the same documents."""
        bos = context.bos(self.bos)
        chosen = long_documents(context, self, max(lengths))
        scorer = self._scorer(context)
        scope: dict[str, Any] = {"longest_tokens": max(lengths)}
        if not scorer.is_evaluated and context.cache is not None:
            scope |= {
                "scorer_model": hash_model(scorer.context.model),
                "scorer_tokenizer": hash_tokenizer(scorer.context.tokenizer),
            }

        def measure(length: int, index: int, body: np.ndarray, where: str) -> Sample:
            ids = as_input(bos, body[: length - len(bos)])
            (nlls,) = token_nlls(context.model, ids, where=where)
            sample = nll_sample(self, length, index, ids, nlls)
            is_key = self._key_tokens(context, scorer, body, length - len(bos), nlls.numpy(), where)
            if is_key is None:
                return sample | {"key_tokens": None, "unscorable": "its tokens are not those of its own text"}
            # Without a token before it, the first one has no NLL.
            is_key = is_key[len(is_key) - len(nlls) :]
            return sample | {"key_tokens": int(is_key.sum()), "key_nll_sum": float(nlls.numpy()[is_key].sum())}

        for length, samples in document_samples(context, self, lengths, chosen, measure, **scope):
            yield Measurement(self._results(context, length, samples, chosen.num_skipped, max(lengths)), samples)

    def _check_scorer(
        self, scorer: str, context: EvalContext, lengths: Sequence[int], bodies: Sequence[np.ndarray]
    ) -> None:
        """Raises ConfigError when the scorer's tokenizer cannot be matched, or the inputs are beyond its window."""
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
                "for shorter lengths or take a scorer with a longer window"
            )

    def _scorer(self, context: EvalContext) -> "_Scorer":
        if self.scorer is None:
            return _Scorer(context, context.bos(self.bos), is_evaluated=True, same_tokens=True)
        model, tokenizer = load_model(self.scorer)
        network: Any = model
        scorer = replace(context, model=network.to(context.model.device).eval(), tokenizer=tokenizer)
        same_tokens = hash_tokenizer(tokenizer) == hash_tokenizer(context.tokenizer)
        return _Scorer(scorer, scorer.bos(self.bos), is_evaluated=False, same_tokens=same_tokens)

    def _key_tokens(
        self, context: EvalContext, scorer: "_Scorer", body: np.ndarray, num_tokens: int, nlls: np.ndarray, where: str
    ) -> np.ndarray | None:
        """Which of a document's first tokens are key: bool (num_tokens,), or None where tokenizers cannot be matched.

        Args:
            context: of the evaluated model.
            scorer: who chooses.
            body: token ids of the document, 1-D.
            num_tokens: how many of them are measured.
            nlls: the evaluated model's NLLs of these.
            where: what is being measured, for an error's text.
        """
        if scorer.is_evaluated:
            return self._chosen(scorer, body[:num_tokens], nlls, where)
        where = f"{where}, scorer"
        if scorer.same_tokens:
            return self._chosen(scorer, body[:num_tokens], scorer.nlls(body[:num_tokens], where), where)
        found = _located(context.tokenizer, body, num_tokens)
        if found is None:
            return None
        scorer_body, scorer_spans = _encode(scorer.context.tokenizer, found.text, found.reading)
        is_key = self._chosen(scorer, scorer_body, scorer.nlls(scorer_body, where), where)
        return inside(_without_leading_space(found.text, found.spans), scorer_spans[is_key])

    def _chosen(self, scorer: "_Scorer", body: np.ndarray, nlls: np.ndarray, where: str) -> np.ndarray:
        """Which tokens of `body` the scorer finds key, from its NLLs with the long context; bool, one a token."""
        reach = self.short_tokens - len(scorer.bos)
        is_key = np.zeros(len(body), bool)
        if len(body) > reach:
            spans = (
                WindowSpan(begin, begin + reach, min(begin + reach + self.stride_tokens, len(body)))
                for begin in range(0, len(body) - reach, self.stride_tokens)
            )
            where = f"{where}, short context"
            short = windowed_nlls(scorer.context.model, scorer.bos, body, spans, where=where).numpy()
            long = nlls[-len(short) :]
            is_key[reach:] = (short - long > self.min_gain) & (long < self.max_nll)
        return is_key

    def _results(
        self, context: EvalContext, length: int, samples: Sequence[Sample], num_skipped: int, longest: int
    ) -> list[EvalResult]:
        """LongPPL, if there is any key token, else a warning; perplexity; share of key tokens."""
        judged = [sample for sample in samples if sample["key_tokens"] is not None]
        keyed = [sample for sample in judged if sample["key_tokens"]]
        chosen_from = {"longest_tokens": longest}
        details = {"interval": INTERVAL, "scorer": self.scorer or "the evaluated model", **chosen_from}
        results = []
        if not keyed and process_state().is_main_process:
            logger.warning(
                "longppl at %d: no key token in the %d documents that can be judged of %d, so there is no LongPPL; take"
                " longer documents, another scorer, a smaller min_gain or a larger max_nll",
                length,
                len(judged),
                len(samples),
            )
        if keyed:
            tokens = [sample["key_tokens"] for sample in keyed]
            results.append(
                context.result(
                    self,
                    length,
                    "longppl",
                    mean_nll(context, [sample["key_nll_sum"] for sample in keyed], tokens).exp(),
                    num_samples=len(keyed),
                    num_skipped=num_skipped + len(samples) - len(keyed),
                    key_tokens=sum(tokens),
                    **details,
                )
            )
        results.append(perplexity_result(self, context, length, samples, num_skipped, **chosen_from))
        if judged:
            share = mean_nll(
                context, [sample["key_tokens"] for sample in judged], [sample["scored_tokens"] for sample in judged]
            )
            skipped = num_skipped + len(samples) - len(judged)
            results.append(
                context.result(
                    self, length, "key_share", share, num_samples=len(judged), num_skipped=skipped, **details
                )
            )
        return results


class _Scorer(NamedTuple):
    """Who chooses the key tokens.

    Attributes:
        context: the evaluation's, with the scorer's model and tokenizer.
        bos: the token ids that go before each of its inputs.
        is_evaluated: whether it is the evaluated model itself.
        same_tokens: whether it has the evaluated model's tokenizer.
    """

    context: EvalContext
    bos: list[int]
    is_evaluated: bool
    same_tokens: bool

    def nlls(self, body: np.ndarray, where: str) -> np.ndarray:
        """NLLs with all that comes before, 1-D; of every token that anything precedes."""
        return token_nlls(self.context.model, as_input(self.bos, body), where=where)[0].numpy()


def inside(spans: np.ndarray, stretches: np.ndarray) -> np.ndarray:
    """Which spans lie within the union of the stretches, where those that touch are one; bool (n,).

    Args:
        spans: begins and ends, (n, 2), ends exclusive.
        stretches: the same, (m, 2), in order of their begins.
    """
    if not len(stretches):
        return np.zeros(len(spans), bool)
    reached = np.maximum.accumulate(stretches[:, 1])
    opens = np.concatenate([[True], stretches[1:, 0] > reached[:-1]])
    begins, ends = stretches[opens, 0], reached[np.append(opens[1:], True)]
    place = np.searchsorted(begins, spans[:, 0], side="right") - 1
    return (place >= 0) & (spans[:, 1] <= ends[place])


def _without_leading_space(text: str, spans: np.ndarray) -> np.ndarray:
    """Spans that begin at their first character that is no white space; those of nothing else stay as they are."""
    shortened = [len(text[begin:end].lstrip()) for begin, end in spans]
    return np.array([(end - kept if kept else begin, end) for kept, (begin, end) in zip(shortened, spans, strict=True)])


class _Located(NamedTuple):
    """Text of a document's first tokens.

    Attributes:
        text: which.
        spans: where in it they are, (n, 2) characters.
        reading: whether control tokens in it are text or tokens, as those between joined documents are.
    """

    text: str
    spans: np.ndarray
    reading: Reading


def _located(tokenizer: Any, body: np.ndarray, num_tokens: int) -> _Located | None:
    """Finds the text of a document's first tokens; None where it makes others."""
    ids = body[: num_tokens + _MARGIN_TOKENS].tolist()
    text = tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
    for reading in get_args(Reading):
        own, spans = _encode(tokenizer, text, reading)
        if np.array_equal(own[:num_tokens], body[:num_tokens]):
            return _Located(text[: spans[num_tokens - 1, 1]], spans[:num_tokens], reading)
    return None


def _encode(tokenizer: Any, text: str, reading: Reading) -> tuple[np.ndarray, np.ndarray]:
    """Token ids of a text, int64 (n,), and where in it they are, (n, 2) characters."""
    encoder = encoder_of(tokenizer)
    if reading == "text" and isinstance(encoder, TextEncoder):
        encoded = encoder.engine.encode(text, add_special_tokens=False)
        return np.array(encoded.ids, np.int64), np.array(encoded.offsets, np.int64).reshape(-1, 2)
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    return np.array(encoded["input_ids"], np.int64), np.array(encoded["offset_mapping"], np.int64).reshape(-1, 2)
