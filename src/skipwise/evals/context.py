"""What every task is given: the model, its tokenizer, documents, and the seed of all draws."""

import json
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import asdict, dataclass, field, fields
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Protocol

import numpy as np
import torch
from accelerate.utils import broadcast_object_list, gather_object
from tqdm import tqdm

from skipwise.distributed import process_state
from skipwise.errors import ConfigError, DataError
from skipwise.evals.cache import SampleCache, cache_key, hash_code, hash_model, library_versions, write_sample
from skipwise.evals.settings import BosPolicy
from skipwise.model import attention_of, embedding_rows
from skipwise.records.results import EvalResult, Measurement, Sample, hash_documents, hash_tokenizer, sample_line
from skipwise.records.stats import Estimate


class Task(Protocol):
    """One kind of measurement: a frozen dataclass whose fields are its settings."""

    name: ClassVar[str]

    @property
    def uses_documents(self) -> bool:
        """Whether it reads the context's documents."""
        ...

    def check_lengths(self, context: "EvalContext", lengths: Sequence[int]) -> None:
        """Refuses lengths that the task cannot measure, before anything is computed.

        Raises:
            ConfigError: when a setting does not go with a length.
            DataError: when the documents do not suffice.
        """
        ...

    def run(self, context: "EvalContext", lengths: Sequence[int]) -> Iterable[Measurement]:
        """Measures one length after the other, in the order given.

        Args:
            context: model, tokenizer, documents and seed.
            lengths: input lengths in tokens, those to be generated included.
        """
        ...


class ChosenDocuments(NamedTuple):
    """Documents for one task.

    Attributes:
        indices: which documents, in a seeded order.
        bodies: their token ids, 1-D each, without a leading beginning-of-sequence token.
        num_skipped: documents that are too short.
    """

    indices: list[int]
    bodies: list[np.ndarray]
    num_skipped: int


@dataclass(frozen=True, kw_only=True)
class EvalContext:
    """Inputs that all tasks of one evaluation share.

    Attributes:
        model: a causal language model of the transformers library, in evaluation mode.
        tokenizer: its tokenizer.
        documents: token ids of each document, 1-D integers.
        seed: what every draw is derived from.
        cache: where samples are kept and found again; None keeps none.
        details: what joins the details of every result.
        progress: show a bar for each length.
        share_out: each rank of a distributed run measures its share of the samples; otherwise all of them.
        is_recorded: results go into a file, where they say of which weights they are. All weights are hashed for this,
            as for a cache, and for nothing else.
        answered: families of tasks that some question was answered right of, or of which it was said that none was.
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

    def rng(self, purpose: str, *numbers: int) -> np.random.Generator:
        """A generator that depends on the seed and these arguments alone, not on what was drawn before."""
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
        """One result; `details` joins the task's settings and what it was measured with."""
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
        """The token ids that go before every input under this policy: one or none.

        Raises:
            ConfigError: when the token is wanted always and the tokenizer has none.
        """
        token = self.tokenizer.bos_token_id
        if policy == "never" or (policy == "tokenizer" and token is None):
            return []
        if policy == "always":
            if token is None:
                raise ConfigError("bos is 'always' but the tokenizer has no beginning-of-sequence token: use 'never'")
            return [token]
        bare, with_special = (list(self.tokenizer.encode("a", add_special_tokens=special)) for special in (False, True))
        return [token] if with_special[:1] == [token] != bare[:1] else []

    def choose_documents(self, min_tokens: int, num_documents: int) -> ChosenDocuments:
        """Draws documents that are long enough; the same ones whenever seed, corpus and arguments are the same.

        Args:
            min_tokens: shortest usable document, in tokens without a leading beginning-of-sequence token.
            num_documents: how many at most.

        Raises:
            DataError: when there are no documents, none is long enough, or they are of another vocabulary.
        """
        bos = self.tokenizer.bos_token_id
        bodies = [
            np.asarray(ids[1:] if bos is not None and len(ids) and ids[0] == bos else ids) for ids in self.documents
        ]
        long_enough = [index for index, body in enumerate(bodies) if len(body) >= min_tokens]
        if not long_enough:
            longest = max(map(len, bodies), default=0)
            raise DataError(
                f"this measurement needs documents of at least {min_tokens} tokens, and the longest of the "
                f"{len(bodies)} given has {longest}: give longer documents or ask for shorter lengths"
            )
        chosen = [int(index) for index in self.rng("documents").permutation(long_enough)[:num_documents]]
        rows, largest = embedding_rows(self.model.config), max(int(bodies[index].max()) for index in chosen)
        if largest >= rows:
            raise DataError(
                f"the documents have token ids up to {largest}, and the model embeddings for ids 0 to {rows - 1}: "
                "tokenize them with the model's own tokenizer"
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
        """One sample for each item, in order: from the cache, from this process, or from another rank's share.

        Args:
            task: what is measured; its name and settings are part of what the samples depend on.
            length_tokens: input length.
            num_items: items are `0..num_items-1`.
            compute: takes at most `batch_items` indices and returns their samples, as JSON values, in that order. A
                pure function of task, length, seed, documents, index and scope.
            batch_items: items that are computed together at most.
            description: of the bar; by default task and length.
            **scope: JSON values of whatever else the samples depend on.

        Returns:
            All samples, the same ones on every rank.
        """
        state = process_state()
        key = self._key(task, length_tokens, scope) if self.cache is not None else ""
        known = self.cache.read(key) if self.cache is not None else {}
        if state.num_processes > 1:
            # What is missing is shared out by one view of the cache: others may already be writing to it.
            known = broadcast_object_list([known])[0]
        missing = [index for index in range(num_items) if index not in known]
        mine = missing[state.process_index :: state.num_processes] if self.share_out else missing
        measured: list[tuple[int, Sample]] = []
        writer = self.cache.writer(key) if self.cache is not None and mine else nullcontext()
        shown = self.progress and state.is_main_process and bool(mine)
        with (
            writer as file,
            tqdm(
                desc=description or f"{task.name} at {length_tokens}", total=len(mine), disable=not shown, leave=False
            ) as bar,
        ):
            for begin in range(0, len(mine), batch_items):
                indices = mine[begin : begin + batch_items]
                for index, sample in zip(indices, compute(indices), strict=True):
                    # As a later run will read it, so that fresh and cached samples give the same results to the bit.
                    sample = json.loads(json.dumps(sample))
                    measured.append((index, sample))
                    if file is not None:
                        write_sample(file, index, sample)
                bar.update(len(indices))
        if state.num_processes > 1 and self.share_out:
            measured = gather_object(measured)
            if self.cache is not None and state.is_main_process:
                self._keep_those_of_others(key, measured)
        known |= dict(measured)
        return [known[index] for index in range(num_items)]

    def _keep_those_of_others(self, key: str, measured: Sequence[tuple[int, Sample]]) -> None:
        """Where each machine has a cache of its own, a run that goes on has the first one's view of it."""
        assert self.cache is not None
        here = self.cache.read(key)
        missing = [(index, sample) for index, sample in measured if index not in here]
        if missing:
            with self.cache.writer(key) as file:
                for index, sample in missing:
                    write_sample(file, index, sample)

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
    """Token ids of one input, int64 (1, n), from its parts."""
    return torch.from_numpy(np.concatenate([np.asarray(part, np.int64) for part in parts]))[None]


@contextmanager
def result_files(
    out: str | Path | None, samples_out: str | Path | None, line: Callable[[Sample], str] = sample_line
) -> Iterator[Callable[[Measurement], None]]:
    """What writes measurements into files, each as soon as it is there, after what the files already hold.

    Args:
        out: gets a line of JSON for each result.
        samples_out: gets a line for each sample.
        line: makes the line of a sample.
    """
    with ExitStack() as stack:
        # Every rank of a distributed run has all results; the first writes them down.
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
