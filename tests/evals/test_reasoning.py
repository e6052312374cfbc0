"""Reasoning tasks: a solver that reads the prompt alone is always right, and a guesser scores what chance says."""

import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from refusals import refused

from skipwise.data.language import language_of
from skipwise.errors import ConfigError
from skipwise.evals import TASK_GROUPS, TASKS, SampleCache, evaluate
from skipwise.evals.languages import ENGLISH, LANGUAGES, Language
from skipwise.evals.reasoning.task import NUMBER, FirstNamed, any_of
from skipwise.records.results import hash_tokens

from .tiny import (
    PROSE,
    ChatTokenizer,
    Oracle,
    PieceTokenizer,
    Utf8Tokenizer,
    body_of,
    context_of,
    prose_documents,
)

NAMES = TASK_GROUPS["reasoning"]
HIDING = ("reasoning_associations", "reasoning_alike", "reasoning_chains")
EVERY_LANGUAGE = pytest.mark.parametrize("language", LANGUAGES.values(), ids=LANGUAGES)
EVERY_TASK = pytest.mark.parametrize("name", NAMES)


def task_of(name: str, **settings: Any) -> Any:
    return TASKS[name](**settings)


def with_prose(tokenizer: Any = None, model: Any = None, **more: Any) -> Any:
    tokenizer = tokenizer or Utf8Tokenizer()
    return context_of(model, tokenizer, documents=prose_documents(tokenizer), **more)


def text_of(context: Any, prompt: Any) -> str:
    return context.tokenizer.decode(prompt.prompt_ids)


# --- a reader of prompts ----------------------------------------------------------------------------------------------


def found(template: str, text: str) -> list[dict[str, str]]:
    """What a template's fields hold, wherever the text has it, in order."""
    pattern, seen = "", set()
    for part in re.split(r"(\{\w+\})", template.strip("\n")):
        name = part[1:-1]
        if not part.startswith("{"):
            pattern += re.escape(part)
        elif name in seen:
            pattern += f"(?P={name})"
        else:
            pattern += f"(?P<{name}>[^\n]+?)"
            seen.add(name)
    return [match.groupdict() for match in re.finditer(rf"(?m)^{pattern}$", text)]


def asked(words: Any, text: str) -> dict[str, str]:
    """What is asked, by the last lines of a prompt."""
    question = f"{words.question.lstrip(chr(10))}\n{words.prefix}"
    (last,) = found(question, "\n".join(text.splitlines()[-2:]))
    return last


class Associations:
    """Knows where landmarks are, as readers do."""

    @staticmethod
    def solve(language: Language, text: str) -> str:
        words = language.reasoning.associations
        where, place = dict(words.landmarks), asked(words, text)["place"]
        (name,) = [fact["name"] for fact in found(words.fact, text) if where[fact["landmark"]] == place]
        return name

    @staticmethod
    def offered(language: Language, text: str) -> list[str]:
        return [fact["name"] for fact in found(language.reasoning.associations.fact, text)]


class Alike:
    @staticmethod
    def solve(language: Language, text: str) -> str:
        words = language.reasoning.alike
        return Alike.offered(language, text)[words.ordinals.index(asked(words, text)["ordinal"])]

    @staticmethod
    def offered(language: Language, text: str) -> list[str]:
        words = language.reasoning.alike
        key = asked(words, text)["key"]
        return [one["value"] for one in found(words.exchange, text) if one["key"] == key]


class Walks:
    @staticmethod
    def solve(language: Language, text: str) -> str:
        edges = dict(re.findall(r"(?m)^(\d+) -> (\d+)$", text))
        walk = asked(language.reasoning.walks, text)
        place = walk["start"]
        for _ in range(int(walk["steps"])):
            place = edges[place]
        return place

    @staticmethod
    def offered(language: Language, text: str) -> list[str]:
        return sorted({node for edge in re.findall(r"(?m)^(\d+) -> (\d+)$", text) for node in edge})


class Chains:
    @staticmethod
    def solve(language: Language, text: str) -> str:
        words = language.reasoning.chains
        thing, holder = asked(words, text)["thing"], None
        for line in text.splitlines():
            for fact in found(words.takes, line):
                holder = fact["name"] if fact["thing"] == thing else holder
            for fact in found(words.gives, line):
                if fact["thing"] == thing:
                    assert fact["name"] == holder, "who gives a thing has it"
                    holder = fact["other"]
        (place,) = [fact["place"] for fact in found(words.stays, text) if fact["name"] == holder]
        return place

    @staticmethod
    def offered(language: Language, text: str) -> list[str]:
        return [fact["place"] for fact in found(language.reasoning.chains.stays, text)]


class Shots:
    """Knows which words go together, as readers do."""

    @staticmethod
    def solve(language: Language, text: str) -> str:
        words = language.reasoning.shots
        class_of = {word: place for place, each in enumerate(words.classes) for word in each.split()}
        (own,) = {class_of[word] for word in asked(words, text)["words"].split(language.comma)}
        shots = Shots.read(language, text)
        assert not {word for shot, _ in shots for word in shot} & {*asked(words, text)["words"].split(language.comma)}
        (number,) = {number for shot, number in shots if class_of[shot[0]] == own}
        return number

    @staticmethod
    def read(language: Language, text: str) -> list[tuple[list[str], str]]:
        lines = re.findall(rf"(?m)^(\S.*?):{language.space}(\d\d)$", text)
        return [(shot.split(language.comma), number) for shot, number in lines]

    @staticmethod
    def offered(language: Language, text: str) -> list[str]:
        return sorted({number for _, number in Shots.read(language, text)})


READERS: dict[str, Any] = dict(zip(NAMES, (Associations, Alike, Walks, Chains, Shots), strict=True))


def score_of(name: str, language: Language) -> Callable[[str, Any], float]:
    score = FirstNamed(task_of(name).possible(language.reasoning))
    return lambda output, prompt: score(output, prompt.references)


# --- what is asked ----------------------------------------------------------------------------------------------------


@EVERY_TASK
@EVERY_LANGUAGE
def test_a_reader_of_the_prompt_alone_is_always_right(name: str, language: Language) -> None:
    context, reader, score = with_prose(), READERS[name], score_of(name, language)
    for haystack in ("documents", "filler") if name in HIDING else (None,):
        task = task_of(name, language=language.code, **({"haystack": haystack} if haystack else {}))
        for trial in range(10):
            prompt = task.prompt(context, 1800, trial)
            assert prompt.num_tokens == 1800
            text = text_of(context, prompt)
            answer = reader.solve(language, text)
            assert score(language.answer(answer) + ".", prompt) == 1
            assert context.tokenizer.decode(prompt.answer_ids) == language.answer(answer)
            # No character is cut but those of documents that earlier cuts have left.
            assert "\ufffd" not in text


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("reasoning_associations", {"num_people": 12}),
        ("reasoning_alike", {"num_alike": 6}),
        ("reasoning_walks", {"num_steps": 1}),
        ("reasoning_walks", {"num_steps": 8}),
        ("reasoning_chains", {"num_gifts": 0}),
        ("reasoning_chains", {"num_gifts": 3}),
    ],
)
def test_more_is_asked_where_more_is_set(name: str, settings: dict[str, int]) -> None:
    context, score = with_prose(), score_of(name, ENGLISH)
    for trial in range(10):
        prompt = task_of(name, **settings).prompt(context, 3000, trial)
        text = text_of(context, prompt)
        assert score(READERS[name].solve(ENGLISH, text), prompt) == 1
        assert prompt.details["chance"] == pytest.approx(1 / len(READERS[name].offered(ENGLISH, text)))


@EVERY_TASK
def test_a_guesser_scores_chance_wherever_it_guesses(name: str) -> None:
    context, score, rng = with_prose(), score_of(name, ENGLISH), np.random.default_rng(0)
    number, task = 250, task_of(name)
    guessed = {"any": 0.0, "the first": 0.0, "the last": 0.0}
    chance = 0.0
    for trial in range(number):
        prompt = task.prompt(context, 1500, trial)
        text = text_of(context, prompt)
        offered = READERS[name].offered(ENGLISH, text)
        assert len(set(offered)) == len(offered)
        assert sum(score(one, prompt) for one in offered) == 1
        assert prompt.details["chance"] == pytest.approx(1 / len(offered))
        chance += prompt.details["chance"] / number
        places = sorted(offered, key=lambda one, text=text: text.rindex(one, 0, text.rindex("\n", 0, -40)))
        guesses = (str(rng.choice(offered)), places[0], places[-1])
        for how, guess in zip(guessed, guesses, strict=True):
            guessed[how] += score(guess, prompt) / number
    sigma = math.sqrt(chance * (1 - chance) / number)
    assert all(abs(share - chance) < 4 * sigma for share in guessed.values()), (chance, guessed)


def stems(text: str) -> set[str]:
    """What tells content words of a text: beginnings of words, in Japanese and Chinese also parts of runs of a script.

    Articles, prepositions and endings tell nothing of what is asked.
    """
    latin = re.findall(r"[a-zà-ɏœ]{4,}", text.casefold())
    korean = re.findall("[\uac00-\ud7a3]{2,}", text)
    katakana, ideographs = re.findall("[\u30a1-\u30fc]{3,}", text), re.findall("[\u3400-\u9fff]{2,}", text)
    parts = {run[place : place + 3] for run in katakana for place in range(len(run) - 2)}
    parts |= {run[place : place + 2] for run in ideographs for place in range(len(run) - 1)}
    return {word[:5] for word in latin} | {word[:2] for word in korean} | parts


@EVERY_LANGUAGE
def test_no_content_word_of_the_question_is_in_a_fact(language: Language) -> None:
    words = language.reasoning.associations
    assert len(dict(words.landmarks)) == len({place for _, place in words.landmarks}) == len(words.landmarks) == 16
    facts = {landmark: words.fact.format(name="", landmark=landmark) for landmark, _ in words.landmarks}
    for _, place in words.landmarks:
        question = words.question.format(place=place) + "\n" + words.prefix
        for fact in facts.values():
            assert not stems(question) & stems(fact)
        assert stems(question), "something is asked"


@EVERY_LANGUAGE
def test_templates_are_in_their_language(language: Language) -> None:
    words = language.reasoning
    asked = (words.associations, words.alike, words.walks, words.chains, words.shots)
    spoken = [text for one in asked for text in (one.instruction, one.question, one.prefix)]
    spoken += [
        words.associations.fact,
        words.alike.exchange,
        words.chains.takes,
        words.chains.gives,
        words.chains.stays,
    ]
    spoken += [*words.chains.things, *words.chains.places, *words.alike.ordinals, *words.shots.classes]
    spoken += [part for landmark in words.associations.landmarks for part in landmark]
    text = re.sub(r"\{\w+\}", "", " ".join(spoken))
    assert language_of(text) == language.code
    assert {language_of(re.sub(r"\{\w+\}", "", one.instruction)) for one in asked} == {language.code}
    # In scripts of their own, no Latin word is left.
    assert language.code in "endefres" or not re.search("[A-Za-z]", text)
    # Each template has the fields that are filled in.
    fields = [re.findall(r"\{(\w+)\}", text) for text in spoken[:20]]
    assert [sorted(set(one)) for one in fields] == [
        *([], ["place"], []),
        *([], ["key", "ordinal"], []),
        *([], ["start", "steps"], []),
        *([], ["thing"], ["thing"]),
        *([], ["words"], ["words"]),
        ["landmark", "name"],
        ["key", "value"],
        ["name", "thing"],
        ["name", "other", "thing"],
        ["name", "place"],
    ]


@EVERY_LANGUAGE
def test_words_can_be_told_apart(language: Language) -> None:
    words = language.reasoning
    names = words.names.split()
    pools = [names, list(words.chains.places), list(words.chains.things), list(words.alike.ordinals)]
    assert [len(pool) for pool in pools] == [12, 8, 4, 6]
    assert [len(each.split()) for each in words.shots.classes] == [12] * 6
    pools.append(" ".join(words.shots.classes).split())
    for pool in pools:
        assert len({one.casefold() for one in pool}) == len(pool)
    for pool in (names, [place.split()[-1] for place in words.chains.places]):
        for one in pool:
            assert re.findall(any_of(pool), f"x {one}. {one}", re.IGNORECASE) == [one, one]


@EVERY_TASK
@pytest.mark.parametrize("length", [1200, 1201, 3333])
def test_prompt_and_answer_have_exactly_the_length(name: str, length: int) -> None:
    for tokenizer in (Utf8Tokenizer(), PieceTokenizer()):
        prompt = task_of(name).prompt(with_prose(tokenizer), length, 3)
        assert prompt.num_tokens == length == len(prompt.prompt_ids) + 24
        assert prompt.prompt_ids[0] == tokenizer.bos_token_id


@pytest.mark.parametrize("name", ["reasoning_walks", "reasoning_shots"])
def test_lists_leave_no_room_for_another_line(name: str) -> None:
    for length in range(1200, 1260):
        text = text_of(context := with_prose(), task_of(name).prompt(context, length, 0))
        words = task_of(name).words(ENGLISH.reasoning)
        filler = text[len(words.instruction) : text.index("\n", len(words.instruction))]
        assert len(filler) < 40


def test_long_lists_have_enough_numbers_and_every_class() -> None:
    context = with_prose(PieceTokenizer())
    prompt = task_of("reasoning_walks").prompt(context, 12_000, 0)
    nodes = prompt.details["nodes"]
    assert nodes > 600
    assert len(Walks.offered(ENGLISH, text_of(context, prompt))) == nodes
    prompt = task_of("reasoning_shots").prompt(context, 12_000, 0)
    counts = [number for _, number in Shots.read(ENGLISH, text_of(context, prompt))]
    assert len(counts) == prompt.details["shots"] > 600
    sizes = {counts.count(number) for number in set(counts)}
    assert max(sizes) - min(sizes) <= 1


@EVERY_TASK
def test_a_trial_depends_on_seed_length_and_number_alone(name: str) -> None:
    context, task = with_prose(), task_of(name)
    first = task.prompt(context, 1500, 3)
    task.prompt(context, 1500, 0)
    assert task.prompt(context, 1500, 3) == task_of(name, trials=50).prompt(context, 1500, 3) == first
    others = [task.prompt(context, 1500, 4), task.prompt(with_prose(seed=1), 1500, 3), task.prompt(context, 1501, 3)]
    assert all(other.prompt_ids != first.prompt_ids for other in others)


FROZEN = {
    "reasoning_associations": "401151a7a52ae3bd",
    "reasoning_alike": "ab4a4cf0334f762a",
    "reasoning_walks": "431a38d8c67b9a30",
    "reasoning_chains": "c7f39f4478ae46ef",
    "reasoning_shots": "e14413da260084cc",
}


@EVERY_TASK
def test_prompts_stay_those_that_earlier_results_were_measured_on(name: str) -> None:
    prompts = [task_of(name).prompt(with_prose(), length, 1) for length in (1500, 6000)]
    assert hash_tokens([token for prompt in prompts for token in prompt.prompt_ids])[:16] == FROZEN[name]


@pytest.mark.parametrize("name", HIDING)
def test_what_answers_is_at_the_depth_that_is_told(name: str) -> None:
    context, parts = with_prose(), []
    for trial in range(10):
        prompt = task_of(name).prompt(context, 4000, trial)
        text, depth = text_of(context, prompt), prompt.details["depth"]
        words = task_of(name).words(ENGLISH.reasoning)
        answer = READERS[name].solve(ENGLISH, text)
        template = {"reasoning_chains": "stays", "reasoning_alike": "exchange"}.get(name, "fact")
        (line,) = [line for line in text.splitlines()[:-2] if answer in line and found(getattr(words, template), line)]
        begin, end = len(words.instruction), text.index(text.splitlines()[-2])
        # Other hidden lines before it are no part of the haystack.
        assert (text.index(line) - begin) / (end - begin) == pytest.approx(depth, abs=0.1)
        parts.append(int(depth * 5))
    assert parts == [0, 1, 2, 3, 4] * 2


# --- how it is answered -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("output", "right"),
    [
        (" Ada", True),
        (" ada.", True),
        ("\n**Ada**, I think", True),
        (" Boris, Ada", False),
        (" Adam and Ada", True),
        (" Ada or Boris", True),
        ("", False),
        (" nobody", False),
    ],
)
def test_the_first_possible_answer_counts(output: str, right: bool) -> None:
    assert FirstNamed(any_of(["Ada", "Boris"]))(output, ["Ada"]) == right


def test_numbers_are_whole_and_may_be_full_width() -> None:
    score = FirstNamed(NUMBER)
    assert score(" １２３です", ["123"]) == 1
    assert score(" 1234", ["123"]) == 0
    assert FirstNamed(any_of(["台所", "庭"]))("台所です", ["台所"]) == 1


def reading(solve: Callable[[str, str], str]) -> Oracle:
    """A model that continues an English prompt with what `solve` makes of it."""

    def continuation(text: str) -> str:
        for name in NAMES:
            words = task_of(name).words(ENGLISH.reasoning)
            *_, question, said = ["", *text.splitlines()][-2:]
            for slots in found(words.question, question):
                end = words.prefix.format(**slots)
                if said.startswith(end):
                    return f" {solve(name, text[: len(text) - len(said) + len(end)])}."[len(said) - len(end) :]
        return ""

    return Oracle(continuation)


@EVERY_TASK
def test_results_tell_score_chance_and_depths_and_samples_are_kept(name: str, tmp_path: Path) -> None:
    tokenizer, lines = Utf8Tokenizer(), tmp_path / "samples.jsonl"
    documents = [np.array(body_of(np.array(ids))) for ids in prose_documents(tokenizer)]
    model = reading(lambda name, text: READERS[name].solve(ENGLISH, text))
    cache = SampleCache(tmp_path / "cache")
    how: dict[str, Any] = {"progress": False, "cache": cache}
    results = evaluate(model, tokenizer, [task_of(name, trials=5)], [1300], documents, samples_out=lines, **how)
    whole, *depths = results
    assert (whole.metric, whole.value, whole.num_samples, whole.details["interval"]) == ("score", 1.0, 5, "Wilson")
    samples = [json.loads(line) for line in lines.read_text().splitlines()]
    assert whole.details["chance"] == pytest.approx(sum(sample["chance"] for sample in samples) / 5)
    assert len(depths) == (5 if name in HIDING else 0)
    assert {(one.metric, one.value, one.num_samples) for one in depths} <= {("score_at_depth", 1.0, 1)}
    assert [one.details["depth_from"] for one in depths] == [0.0, 0.2, 0.4, 0.6, 0.8][: len(depths)]
    read = model.tokens_read
    # Twice as many trials: the first five are known.
    again = evaluate(model, tokenizer, [task_of(name, trials=10)], [1300], documents, **how)
    assert (again[0].value, again[0].num_samples) == (1.0, 10)
    assert model.tokens_read < 2.2 * read


@EVERY_TASK
def test_a_model_that_lists_all_answers_scores_like_one_that_guesses(name: str) -> None:
    tokenizer = Utf8Tokenizer()

    def all_of(name: str, text: str) -> str:
        offered = READERS[name].offered(ENGLISH, text)
        return " ".join([*sorted(set(offered) - {READERS[name].solve(ENGLISH, text)}), *offered])

    few = {"num_depths": 1} if name in HIDING else {}
    task, documents = task_of(name, trials=1, **few), [np.array(list(PROSE.encode()))]
    (whole, *_) = evaluate(reading(all_of), tokenizer, [task], [1300], documents, progress=False)
    assert whole.value == 0


@EVERY_TASK
def test_a_chat_has_the_request_in_its_turn_and_the_answers_beginning_in_the_models(name: str) -> None:
    context = with_prose(ChatTokenizer())
    prompt = task_of(name, chat=True).prompt(context, 1500, 2)
    assert prompt.num_tokens == 1500
    text = text_of(context, prompt)
    words = task_of(name).words(ENGLISH.reasoning)
    assert text.startswith(f"<user>{words.instruction}")
    request, _, prefix = text.partition("</user><assistant>")
    answer = READERS[name].solve(ENGLISH, f"{request}\n{prefix}")
    assert answer.endswith(prompt.references[0])
    assert context.tokenizer.decode(prompt.answer_ids) == f" {answer}"


@EVERY_TASK
def test_a_thinking_model_begins_itself(name: str) -> None:
    context = with_prose(ChatTokenizer())
    prompt = task_of(name, chat=True, thinking_tokens=100).prompt(context, 1500, 2)
    assert (prompt.num_tokens, prompt.max_new_tokens, prompt.answer_ids) == (1500, 124, [])
    assert text_of(context, prompt).endswith("</user><assistant>")


@EVERY_TASK
def test_a_length_that_holds_no_prompt_is_refused_in_one_line(name: str) -> None:
    context = with_prose()
    with refused(ConfigError, rf"^{name} length is 90 tokens; .* ask for at least (\d+)") as caught:
        task_of(name).check_lengths(context, [90])
    least = int(re.findall(r"at least (\d+)", str(caught.value))[0])
    # A little more, since another length has other draws.
    assert task_of(name).prompt(context, int(1.2 * least), 0).num_tokens == int(1.2 * least)


@EVERY_TASK
def test_the_language_is_that_of_the_haystack_or_chosen(name: str) -> None:
    assert task_of(name).spoken(with_prose()) == {}
    assert task_of(name, language="ja").spoken(with_prose()) == {"language": "ja"}
    with refused(ConfigError, "language is 'xx'"):
        task_of(name, language="xx")
    assert task_of(name).uses_documents == (name in HIDING)
