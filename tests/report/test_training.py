"""The curves of a training, from the ledger's entries."""

import re

from report.samples import small, trained

from lighten.report.page import page
from lighten.report.schema import known
from lighten.report.sections.training import section_of


def section(*entries: dict) -> str:
    return section_of(known({"steps": list(entries)}))


def test_a_training_is_drawn_with_what_it_kept_and_its_ends():
    written = section(*(trained(epoch) for epoch in range(4)), {"what": "finetune", "kept_epoch": 3})
    assert "3 epochs; the weights of epoch 3 were kept; training loss 0.630 at first, 0.309 at last" in written
    assert "validation loss 1.25 at first, 0.614 at last." in written
    # three losses, four validations: a point each, and the lines between neighbours
    assert len(re.findall("<circle", written)) == 3 + 4
    assert len(re.findall("<line", written)) == 2 + 3
    assert len(re.findall('class="mark"', written)) == 1
    assert "<title>Epoch 0, validation loss 1.250</title>" in written
    assert "<title>Epoch 3, training loss 0.3087, validation loss 0.6141, learning rate 0.0100</title>" in written


def test_the_highest_loss_is_at_the_top_and_the_lowest_at_the_bottom():
    written = section(
        {"what": "trained an epoch", "epoch": 0, "validation": 3.0}, {"what": "trained an epoch", "epoch": 1, "validation": 1.0}
    )
    assert re.findall('<circle cx="([^"]*)" cy="([^"]*)"', written) == [("25.000%", "4.0"), ("75.000%", "92.0")]


def test_two_trainings_are_two_charts_and_no_training_is_no_section():
    twice = [*(trained(epoch) for epoch in range(3)), *(trained(epoch) for epoch in range(2))]
    assert section(*twice).count("<figure") == 2
    assert section({"what": "calibrate"}) == ""
    assert section(trained(0)) == ""


def test_a_training_without_validation_has_one_line_and_one_key():
    entries = [{**trained(epoch), "validation": None} for epoch in range(3)]
    written = section(*entries)
    assert "Validation loss" not in written
    assert len(re.findall("<line", written)) == 1


def test_a_distillation_says_how_much_of_the_gap_to_its_teacher_is_gone():
    scores = {"what": "accuracy", "examples": 1000, "teacher": 0.92, "before": 0.5, "after": 0.914}
    end = {"what": "distill", "kept_epoch": 3, "teacher": "original", "loss": "kd", "scores": scores}
    training = [trained(epoch) for epoch in range(4)]
    pairs = [{"student": "add", "teacher": "add_1", "alike": 0.875}, {"student": "relu", "teacher": "relu_3", "alike": None}]
    written = section(*training, {**end, "pairs": pairs})
    assert "The teacher is original, the loss kd." in written
    said = "Accuracy on 1,000 examples held out: teacher 0.9200, student before 0.5000, taught 0.9140"
    assert f"{said}; 99% of the gap to the teacher is recovered." in written
    assert "Layers that learned from layers of the teacher: add from add_1 (similarity 0.875); relu from relu_3." in written
    alone = {"what": "trained alone", "kept_epoch": 3, "scores": {"alone": 0.86}}
    both = section(*training, end, *training, alone)
    assert "alone 0.8600, taught 0.9140; 90% of the gap to the teacher is recovered." in both
    assert both.count("<figure") == 2


def test_the_page_links_to_the_training():
    assert '<a href="#training">Training</a>' in page(small())
