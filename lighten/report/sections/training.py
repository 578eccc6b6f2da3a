"""Training: the loss by epoch, of examples that trained and of those held out; who taught, and how much of the gap is gone."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from lighten.report import charts, figures
from lighten.report.markup import NOTHING, Html, element, figure, paragraph, section, text
from lighten.report.schema import Report

_SERIES = (("loss", "Training loss", "before"), ("validation", "Validation loss", "after"))


@dataclass
class _Training:
    """One training's entries in the ledger, the one before training first. end: the one that says what came of it; its
    `kept_epoch` is the epoch whose weights it ended with.
    """

    epochs: list[Mapping[str, Any]] = field(default_factory=list)
    end: Mapping[str, Any] = field(default_factory=dict)

    @property
    def kept(self) -> int | None:
        return self.end.get("kept_epoch")


def section_of(report: Report) -> Html:
    """Nothing where no step trained."""
    trainings = _trainings(report.get("steps", []))
    if not trainings:
        return NOTHING
    keys = (
        element("span", element("span", class_=f"key {kind}"), text(name), class_="keyed")
        for key, name, kind in _SERIES
        if any(key in epoch for training in trainings for epoch in training.epochs)
    )
    taught = [paragraph(text(line)) for line in _of_teachers(trainings)]
    return section("Training", paragraph(*keys, class_="small"), *map(_curves, trainings), *taught, key="training")


def _trainings(entries: Sequence[Mapping[str, Any]]) -> list[_Training]:
    found: list[_Training] = []
    for entry in entries:
        if entry.get("what") == "trained an epoch":
            if entry.get("epoch") == 0 or not found:
                found.append(_Training())
            found[-1].epochs.append(entry)
        elif "kept_epoch" in entry and found:
            found[-1].end = entry
    return [training for training in found if len(training.epochs) > 1]


def _curves(training: _Training) -> Html:
    epochs = training.epochs
    lines = [([epoch.get(key) for epoch in epochs], kind) for key, _, kind in _SERIES]
    said = _sentence(training)
    drawn = charts.curves(lines, tips=[_tip(epoch) for epoch in epochs], mark=training.kept, label=said)
    return element("figure", element("figcaption", figure(said)), drawn, class_="training")


def _of_teachers(trainings: Sequence[_Training]) -> Iterable[str]:
    """For each distillation, what teacher and student reach on the examples held out, and which layers were matched."""
    ends = [training.end for training in trainings]
    for end, following in zip(ends, [*ends[1:], {}], strict=True):
        if end.get("what") != "distill":
            continue
        yield f"The teacher is {end.get('teacher')}, the loss {end.get('loss')}." + _gap(end, following)
        if end.get("pairs"):
            yield "Layers that learned from layers of the teacher: " + "; ".join(_pair(pair) for pair in end["pairs"]) + "."


def _gap(end: Mapping[str, Any], following: Mapping[str, Any]) -> str:
    """The share is of what the student lacks: without a teacher where it was trained so too, else before it was trained."""
    scores = end.get("scores")
    if not scores:
        return ""
    alone = following.get("scores", {}).get("alone") if following.get("what") == "trained alone" else None
    known = {"teacher": scores["teacher"], "student before": scores["before"], "alone": alone, "taught": scores["after"]}
    said = ", ".join(f"{name} {figures.significant(value, 4)}" for name, value in known.items() if value is not None)
    start = scores["before"] if alone is None else alone
    gap = scores["teacher"] - start
    share = "" if not gap else f"; {(scores['after'] - start) / gap:.0%} of the gap to the teacher is recovered"
    return f" {scores['what'].capitalize()} on {figures.number_of(scores['examples'], 'example')} held out: {said}{share}."


def _pair(pair: Mapping[str, Any]) -> str:
    alike = pair.get("alike")
    said = "" if alike is None else f" (similarity {figures.significant(alike)})"
    return f"{pair['student']} from {pair['teacher']}{said}"


def _sentence(training: _Training) -> str:
    epochs = training.epochs
    said = figures.number_of(len(epochs) - 1, "epoch")
    said += "" if training.kept is None else f"; the weights of epoch {training.kept} were kept"
    return "; ".join([said, *_ends(epochs)]) + "."


def _ends(epochs: Sequence[Mapping[str, Any]]) -> Iterable[str]:
    for key, name, _ in _SERIES:
        known = [epoch[key] for epoch in epochs if key in epoch]
        if known:
            yield f"{name.lower()} {figures.significant(known[0])} at first, {figures.significant(known[-1])} at last"


def _tip(epoch: Mapping[str, Any]) -> str:
    parts = [f"{name.lower()} {figures.significant(epoch[key], 4)}" for key, name, _ in _SERIES if key in epoch]
    rate = [f"learning rate {figures.significant(epoch['lr'])}"] if epoch.get("lr") else []
    return ", ".join([f"Epoch {epoch.get('epoch')}", *parts, *rate])
