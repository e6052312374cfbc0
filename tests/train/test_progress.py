"""What a run shows while it trains: the losses of documents and of exercises apart, and the preflight in one line."""

import logging

import pytest
import torch

from skipwise.records.verdict import Verdict
from skipwise.train.preparation import _tell
from skipwise.train.progress import LossesApart, ShownLosses, _perplexities


def batch(mean: float, labels: int, *places: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    return torch.tensor(mean), torch.tensor(labels), torch.tensor(places)


def test_losses_of_documents_and_of_exercises_are_means_over_their_own_labels() -> None:
    losses = LossesApart(lambda place: place >= 100)
    losses.count(*batch(3.0, 200, 1, 2))
    losses.count(*batch(2.0, 100, 3, 100))  # Mixed: hardly any label is the exercise's.
    losses.count(*batch(0.5, 5, 101))
    losses.count(*batch(0.1, 15, 102, 103))
    losses.count(*batch(9.0, 0, 4))  # No label, no loss.
    taken = losses.take()
    assert taken["documents_loss"] == pytest.approx((3.0 * 200 + 2.0 * 100) / 300)
    assert taken["exercises_loss"] == pytest.approx((0.5 * 5 + 0.1 * 15) / 20)
    losses.count(*batch(0.25, 4, 104))
    assert losses.take() == {"exercises_loss": 0.25}
    assert losses.take() == {}


def test_a_step_of_exercises_alone_does_not_look_like_a_fall_of_the_loss() -> None:
    shown = ShownLosses()
    assert shown.text({"loss": 3.4567}) == "loss 3.46"
    assert shown.text({"loss": 3.35, "documents_loss": 3.35}) == "loss 3.35"
    assert shown.text({"loss": 0.002, "exercises_loss": 0.0021}) == "loss 3.35, exercises 0.0021"
    assert shown.text({"loss": 3.2, "documents_loss": 3.25}) == "loss 3.25, exercises 0.0021"


def test_validation_is_a_sentence_by_source() -> None:
    logs = {"eval_perplexity_256": 7.961, "eval_perplexity_32768": 8.4, "eval_perplexity_256_my_manuals": 5.0}
    assert _perplexities(logs) == "perplexity 7.96 at 256, 8.40 at 32k; my_manuals: perplexity 5.00 at 256"
    assert _perplexities({"loss": 1.0}) == ""


def test_a_sound_preflight_is_one_line_and_a_failed_one_says_all(caplog: pytest.LogCaptureFixture) -> None:
    sound = [Verdict(name="reach", status="pass", detail="far"), Verdict(name="mask", status="note", detail="needed")]
    with caplog.at_level(logging.INFO, logger="skipwise"):
        _tell(sound)
        assert caplog.messages == ["preflight: 2 checks passed"]
        caplog.clear()
        failed = [*sound, Verdict(name="loss", status="fail", detail="differs", cure="update")]
        _tell(failed)
        assert caplog.messages == [verdict.line for verdict in failed]
    caplog.clear()
    with caplog.at_level(logging.DEBUG, logger="skipwise"):
        _tell(sound)
        assert caplog.messages == [*(verdict.line for verdict in sound), "preflight: 2 checks passed"]
