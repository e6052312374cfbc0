"""The inputs that all tasks of an evaluation share, its cache of samples, and the files it writes."""

import json
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Protocol

import numpy as np
import torch
from accelerate.utils import broadcast_object_list, gather_object

from skipwise.bars import Bar
from skipwise.distributed import process_state
from skipwise.errors import ConfigError, DataError
from skipwise.evals.cache import SampleCache, cache_key, hash_code, hash_model, library_versions
from skipwise.evals.languages import Language, language_of_texts
from skipwise.evals.settings import BosPolicy
from skipwise.model import attention_of, embedding_rows
from skipwise.records.results import (
    EvalResult,
    Measurement,
    Sample,
    hash_documents,
    hash_tokenizer,
    hash_tokens,
    sample_line,
)
from skipwise.records.stats import Estimate
from skipwise.runtime.forward import Where, token_nlls

# What is decoded to tell the documents' language.
_LANGUAGE_DOCUMENTS, _LANGUAGE_TOKENS = 16, 8192


class Task(Protocol):
    """One kind of measurement: a frozen dataclass whose fields are its settings."""

    name: ClassVar[str]

    @property
    def uses_documents(self) -> bool:
        """Whether the task reads the context's documents."""
        ...

    def check_lengths(self, context: "EvalContext", lengths: Sequence[int]) -> None:
        """Checks that the task can measure these lengths, before anything is computed.

        Raises:
            ConfigError: a setting does not fit a length.
            DataError: the documents do not suffice.
        """
        ...

    def run(self, context: "EvalContext", lengths: Sequence[int]) -> Iterable[Measurement]:
        """Measures one length after the other, in the given order.

        Args:
            context: the model, the tokenizer, the documents and the seed.
            lengths: input lengths in tokens, including the tokens to be generated.
        """
        ...


class ChosenDocuments(NamedTuple):
    """Documents for one task.

    Attributes:
        indices: indices of the documents, in a random order that depends on the seed.
        bodies: the token ids of each, 1-D, without a leading beginning-of-sequence token.
        num_skipped: number of documents that are too short.
    """

    indices: list[int]
    bodies: list[np.ndarray]
    num_skipped: int


@dataclass(frozen=True, kw_only=True)
class EvalContext:
    """Inputs that all tasks of one evaluation share.

    Attributes:
        model: a causal language model of the transformers library, in evaluation mode.
        tokenizer: the model's tokenizer.
        documents: token ids of each document, 1-D integers.
        seed: seed of all random draws.
        cache: stores samples and finds them again; None disables it.
        details: added to the details of every result.
        progress: whether to show a progress bar for each length.
        share_out: whether each rank of a distributed run measures a share of the samples; otherwise each measures all.
        is_recorded: whether results are written to a file, in which case they name the hash of the weights. Hashing
            reads all weights, so it is done only for this and for the cache.
        answered: families of tasks with a right answer so far, or that were already warned about.
        scored: NLLs of inputs that were read, by the hash of the input.
    """

    model: Any
    tokenizer: Any
    documents: Sequence[np.ndarray] = ()
    seed: int = 0
    cache: SampleCache | None = None
    details: Mapping[str, Any] = field(default_factory=dict)
    progress: bool = True
    share_out: bool = True
    is_recorded: bool = False
    answered: set[str] = field(default_factory=set)
    scored: dict[str, torch.Tensor] = field(default_factory=dict)

    def of_model(self, model: Any, tokenizer: Any) -> "EvalContext":
        """The same for another model."""
        return replace(self, model=model, tokenizer=tokenizer, scored={})

    def rng(self, purpose: str, *numbers: int) -> np.random.Generator:
        """A generator that depends only on the seed and these arguments, not on earlier draws."""
        return np.random.default_rng([self.seed, zlib.crc32(purpose.encode()), *numbers])

    def result(
        self,
        task: Any,
        length_tokens: int,
        metric: str,
        estimate: Estimate,
        *,
        num_samples: int,
        num_skipped: int = 0,
        **details: Any,
    ) -> EvalResult:
        """One result. Its details are the task's settings, what it was measured with, and `details`."""
        return EvalResult(
            task=task.name,
            length_tokens=length_tokens,
            metric=metric,
            value=estimate.value,
            ci_low=estimate.low,
            ci_high=estimate.high,
            num_samples=num_samples,
            num_skipped=num_skipped,
            seed=self.seed,
            details={
                "settings": asdict(task),
                **self._measured_with,
                **({"model_sha256": self._model_sha256} if self.cache is not None or self.is_recorded else {}),
                **({"documents_sha256": self._documents_sha256} if task.uses_documents else {}),
                **self.details,
                **details,
            },
        )

    @cached_property
    def _measured_with(self) -> dict[str, Any]:
        return {
            "tokenizer_sha256": hash_tokenizer(self.tokenizer),
            "model": self.model.config.name_or_path,
            "dtype": str(self.model.dtype).removeprefix("torch."),
            "attention": str(attention_of(self.model.config)),
            "device": self.model.device.type,
            "versions": library_versions(),
        }

    def bos(self, policy: BosPolicy) -> list[int]:
        """The token ids that precede every input under this policy: one or none.

        Raises:
            ConfigError: the policy is "always" and the tokenizer has no such token.
        """
        token = self.tokenizer.bos_token_id
        if policy == "never" or (policy == "tokenizer" and token is None):
            return []
        if policy == "always":
            if token is None:
                raise ConfigError(
                    "bos is 'always' but the tokenizer has no beginning-of-sequence token: use 'never'",
                    page="unsuitable-tokenizer",
                )
            return [token]
        bare, with_special = (list(self.tokenizer.encode("a", add_special_tokens=special)) for special in (False, True))
        return [token] if with_special[:1] == [token] != bare[:1] else []

    @cached_property
    def language(self) -> Language:
        """The language that most of the documents are in; English, which is said, if that has no templates."""
        return language_of_texts(self.sample_texts())

    def sample_texts(self) -> list[str]:
        """The beginnings of documents from all over them, as text: enough to tell their language."""
        chosen = range(0, len(self.documents), -(-len(self.documents) // _LANGUAGE_DOCUMENTS) or 1)
        return [self.tokenizer.decode(self.body(index)[:_LANGUAGE_TOKENS].tolist()) for index in chosen]

    def body(self, index: int) -> np.ndarray:
        """Token ids of a document, 1-D, without a leading beginning-of-sequence token."""
        ids, bos = self.documents[index], self.tokenizer.bos_token_id
        return np.asarray(ids[1:] if bos is not None and len(ids) and ids[0] == bos else ids)

    def choose_documents(self, min_tokens: int, num_documents: int) -> ChosenDocuments:
        """Draws documents that are long enough; the draw depends only on the seed, the documents and the arguments.

        Args:
            min_tokens: minimum length, in tokens without a leading beginning-of-sequence token.
            num_documents: maximum number of documents.

        Raises:
            DataError: no document is long enough, or the token ids are of another vocabulary.
        """
        bodies = [self.body(index) for index in range(len(self.documents))]
        long_enough = [index for index, body in enumerate(bodies) if len(body) >= min_tokens]
        if not long_enough:
            longest = max(map(len, bodies), default=0)
            raise DataError(
                f"this measurement needs documents of at least {min_tokens} tokens, and the longest of the "
                f"{len(bodies)} given has {longest}: give longer documents or ask for shorter lengths",
                page="no-long-documents",
            )
        chosen = [int(index) for index in self.rng("documents").permutation(long_enough)[:num_documents]]
        rows, largest = embedding_rows(self.model.config), max(int(bodies[index].max()) for index in chosen)
        if largest >= rows:
            raise DataError(
                f"the documents have token ids up to {largest}, and the model embeddings for ids 0 to {rows - 1}: "
                "tokenize them with the model's own tokenizer",
                page="unsuitable-tokenizer",
            )
        return ChosenDocuments(chosen, [bodies[index] for index in chosen], len(bodies) - len(long_enough))

    def samples(
        self,
        task: Any,
        length_tokens: int,
        num_items: int,
        compute: Callable[[Sequence[int]], list[Sample]],
        *,
        batch_items: int = 1,
        description: str | None = None,
        **scope: Any,
    ) -> list[Sample]:
        """One sample of each item, in order: from the cache, measured here, or measured by another rank.

        Args:
            task: the task; its name and settings are part of the samples' key.
            length_tokens: input length.
            num_items: the items are `0..num_items-1`.
            compute: takes at most `batch_items` indices and returns what their samples tell besides task and length, as
                JSON values. It depends only on task, length, seed, documents, index and scope.
            batch_items: maximum number of items computed together.
            description: text of the progress bar; the default is task and length.
            **scope: JSON values of everything else that the samples depend on.

        Returns:
            All samples; the same on every rank.
        """
        state = process_state()
        key = self._key(task, length_tokens, scope) if self.cache is not None else ""
        known = self.cache.read(key) if self.cache is not None else {}
        if state.num_processes > 1:
            # All ranks must agree on what is missing, while some may already be writing to the cache.
            known = broadcast_object_list([known])[0]
        missing = [index for index in range(num_items) if index not in known]
        mine = missing[state.process_index :: state.num_processes] if self.share_out else missing
        measured: dict[int, Sample] = {}
        shown = self.progress and state.is_main_process and bool(mine)
        title = description or f"{task.name} at {length_tokens}"
        with Bar(desc=title, total=len(mine), disable=not shown, leave=False) as bar:
            for begin in range(0, len(mine), batch_items):
                indices = mine[begin : begin + batch_items]
                about = {"task": task.name, "length_tokens": length_tokens}
                # As a later run will read them, so that new and cached samples give bit-identical results.
                computed = json.loads(json.dumps([about | sample for sample in compute(indices)]))
                batch = dict(zip(indices, computed, strict=True))
                if self.cache is not None:
                    self.cache.add(key, batch)
                measured |= batch
                bar.update(len(indices))
        if state.num_processes > 1 and self.share_out:
            measured = dict(gather_object(list(measured.items())))
            if self.cache is not None and state.is_main_process:
                # A resumed run reads the first rank's cache, to which other machines do not write, so their samples are
                # added here.
                here = self.cache.read(key)
                self.cache.add(key, {index: sample for index, sample in measured.items() if index not in here})
        known |= measured
        return [known[index] for index in range(num_items)]

    def token_nlls(self, input_ids: torch.Tensor, first_scored: int = 1, *, where: Where) -> torch.Tensor:
        """`runtime.forward.token_nlls` of the model, from the cache if it has read this input before.

        A long text takes minutes to read, and several tasks, or several evaluations with one scorer, ask for the same.
        """
        content = f"{tuple(input_ids.shape)} {first_scored} {hash_tokens(input_ids.flatten().numpy())}"
        if content not in self.scored:
            self.scored[content] = self._kept_nlls(content, input_ids, first_scored, where)
        return self.scored[content]

    def _kept_nlls(self, content: str, input_ids: torch.Tensor, first_scored: int, where: Where) -> torch.Tensor:
        if self.cache is None:
            return token_nlls(self.model, input_ids, first_scored, where=where)
        device = self.model.device.type
        key = cache_key(nlls=content, code=hash_code(type(self)), model=self._model_sha256, device=device)
        if (kept := self.cache.read_array(key)) is None:
            kept = token_nlls(self.model, input_ids, first_scored, where=where).numpy()
            self.cache.keep_array(key, kept)
        return torch.from_numpy(kept)

    def _key(self, task: Any, length_tokens: int, scope: dict[str, Any]) -> str:
        keyed = {field.name for field in fields(task) if field.metadata.get("sample_key", True)}
        return cache_key(
            task=task.name,
            code=hash_code(type(task)),
            settings={name: value for name, value in asdict(task).items() if name in keyed},
            length=length_tokens,
            seed=self.seed,
            model=self._model_sha256,
            device=self.model.device.type,
            tokenizer=self._measured_with["tokenizer_sha256"],
            writing=[getattr(self.tokenizer, name, None) for name in ("chat_template", "eos_token_id")],
            documents=self._documents_sha256 if task.uses_documents else None,
            scope=scope,
        )

    @cached_property
    def _model_sha256(self) -> str:
        return hash_model(self.model)

    @cached_property
    def _documents_sha256(self) -> str:
        return hash_documents(self.documents)


def as_input(*parts: Sequence[int] | np.ndarray) -> torch.Tensor:
    """Token ids of one input, int64 (1, n), concatenated from its parts."""
    return torch.from_numpy(np.concatenate([np.asarray(part, np.int64) for part in parts]))[None]


@contextmanager
def result_files(
    out: str | Path | None, samples_out: str | Path | None, line: Callable[[Sample], str] = sample_line
) -> Iterator[Callable[[Measurement], None]]:
    """Opens files for appending and yields a function that writes a measurement to them at once.

    Args:
        out: receives one line of JSON per result; None for no file.
        samples_out: receives one line per sample; None for no file.
        line: formats a sample.
    """
    with ExitStack() as stack:
        # Every rank of a distributed run has all results; only the first writes.
        result_file, sample_file = (
            stack.enter_context(Path(path).open("a", encoding="utf-8"))
            if path is not None and process_state().is_main_process
            else None
            for path in (out, samples_out)
        )

        def write(measurement: Measurement) -> None:
            for file, lines in (
                (sample_file, map(line, measurement.samples)),
                (result_file, (result.to_json() for result in measurement.results)),
            ):
                if file is not None:
                    file.writelines(one + "\n" for one in lines)
                    file.flush()

        yield write
