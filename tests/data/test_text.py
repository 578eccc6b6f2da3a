"""Tables of texts, and plain text."""

import json
from dataclasses import replace

import checkpoints
import pytest
import torch
from networks import residual

import lighten
from lighten.core.errors import InputError

SENTENCES = ("the film is good", "the plot is thin", "a very bad film", "good")


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    makers = {
        "classifier": checkpoints.bert_classifier,
        "sentences": checkpoints.sentence_encoder,
        "language": checkpoints.llama,
    }
    return {name: lighten.load(make(tmp_path_factory.mktemp(name))) for name, make in makers.items()}


@pytest.fixture
def load(tmp_path):
    def write_and_load(name: str, text: str, model):
        (tmp_path / name).write_text(text, encoding="utf-8")
        return lighten.load_data(tmp_path / name, model=model)

    return write_and_load


def lines(*records) -> str:
    return "".join(json.dumps(record) + "\n" for record in records)


def ids(text: str) -> list[int]:
    return [checkpoints.WORDS.index(word) for word in text.split()]


def targets(split):
    return torch.cat([batch.target for batch in split.batches(4)]).tolist()


def test_text_and_label_from_csv(load, models) -> None:
    data = load("data.csv", 'text,label\nthe film is good,dog\n"good, very good",EEL\n', models["classifier"])
    assert (data.task, data.metric, data.labels) == ("text-classification", "accuracy", ("cat", "dog", "eel"))
    (batch,) = data.test.batches(8)
    assert batch.target.tolist() == [1, 2]
    assert batch.inputs[0][0, :4].tolist() == ids("the film is good")
    assert batch.inputs[1].tolist() == [[1, 1, 1, 1], [1, 1, 1, 1]]
    assert data.test.describe(1).text == "good, very good"


def test_text_and_label_from_json_lines(load, models) -> None:
    data = load("data.jsonl", lines({"text": "good", "label": 2}, {"text": "bad", "label": 0}), models["classifier"])
    assert targets(data.test) == [2, 0]
    assert data.labels == ("cat", "dog", "eel")


def test_shorter_texts_are_padded_under_the_mask(load, models) -> None:
    data = load("data.csv", "text,label\ngood,cat\nthe film is good,cat\n", models["classifier"])
    (batch,) = data.test.batches(2)
    assert batch.inputs[0].tolist() == [[*ids("good"), 0, 0, 0], ids("the film is good")]
    assert batch.inputs[1].tolist() == [[1, 0, 0, 0], [1, 1, 1, 1]]


def test_long_texts_are_cut_at_what_the_network_has_positions_for(load, models) -> None:
    data = load("data.csv", f"text,label\n{'good ' * 100},cat\n", models["classifier"])
    (batch,) = data.test.batches(1)
    assert batch.inputs[0].shape == (1, checkpoints.POSITIONS)
    assert models["classifier"].module(*batch.inputs).shape == (1, 3)


def test_a_sentence_encoders_own_length_goes_before(load, tmp_path) -> None:
    folder = checkpoints.sentence_encoder(tmp_path / "model")
    (folder / "sentence_bert_config.json").write_text('{"max_seq_length": 5}')
    data = load("data.csv", f"text,label\n{'good ' * 100},cat\n", lighten.load(folder))
    assert next(data.test.batches(1)).inputs[0].shape == (1, 5)


def test_a_byte_order_mark_and_capital_letters_do_no_harm(load, models) -> None:
    assert len(load("DATA.CSV", "\ufefftext,label\ngood,cat\n", models["classifier"]).test) == 1


def test_pairs_and_a_score_are_for_sentence_encoders(load, models) -> None:
    data = load("data.csv", "text_a,text_b,score\ngood,bad,0.5\nthe film,a film,4.5\n", models["sentences"])
    assert (data.task, data.metric) == ("sentence-similarity", "spearman")
    (batch,) = data.test.batches(8)
    first_and_second = [ids("good")[0], ids("the")[0], ids("bad")[0], ids("a")[0]]
    assert batch.inputs[0][:, 0].tolist() == first_and_second  # all first texts, then all second ones
    assert batch.target.tolist() == [0.5, 4.5]
    assert data.test.describe(1).text == "the film | a film"


def test_labels_make_a_probe_of_a_sentence_encoder(load, models) -> None:
    rows = [{"text": text, "label": label} for text in SENTENCES for label in ("neg", "pos")] * 3
    data = load("data.jsonl", lines(*rows), models["sentences"])
    assert (data.metric, data.labels) == ("probe", ("neg", "pos"))
    assert sorted(targets(data.train)) == [0] * 4 + [1] * 4  # 30 % of each class


def test_bad_rows_are_left_out_and_named(load, models) -> None:
    text = "text,label\ngood,cat\n,cat\nbad,\ngood, very good,cat\nfilm\nbad,dog\n"
    data = load("data.csv", text, models["classifier"])
    assert [(row.where, row.why) for row in data.bad_rows] == [
        ("line 5", "more fields than the header has; a text with commas must be in quotes"),
        ("line 3", "no text"),
        ("line 4", "no label"),
        ("line 6", "no label"),
    ]
    assert targets(data.test) == [0, 1]


def test_bad_json_lines_are_left_out_and_named(load, models) -> None:
    text = lines({"text": "good", "label": "cat"}) + "{\n\n[1]\n" + lines({"text": None, "label": 1})
    data = load("data.jsonl", text, models["classifier"])
    assert [row.where for row in data.bad_rows] == ["line 2", "line 4", "line 5"]
    assert [row.why.partition(":")[0] for row in data.bad_rows] == ["not JSON", "not a JSON object", "no text"]
    assert len(data.test) == 1


def test_bad_scores_are_left_out_and_named(load, models) -> None:
    rows = ["good,bad,1", "good,bad,high", "good,bad,", "good,bad,nan", "good,bad,inf", "good,,2"]
    data = load("data.csv", "\n".join(["sentence1,sentence2,score", *rows]), models["sentences"])
    whys = ["score 'high' is not a number", "score '' is not a number", "score is nan", "score is inf", "no text"]
    assert [row.why for row in data.bad_rows] == whys
    assert len(data.test) == 1


@pytest.mark.parametrize(
    ("name", "text", "kind", "message"),
    [
        ("a.csv", "text,label\n", "classifier", "holds no usable row"),
        ("a.csv", "", "classifier", "holds no usable row"),
        ("a.csv", "text,label\ngood,\nbad,\n", "classifier", r"no usable row; 2 are bad, the first: line 2 \(no label\)"),
        ("a.csv", "review,label\ngood,cat\n", "classifier", "has the columns label, review. Needed: text and label"),
        ("a.csv", "text\ngood\n", "classifier", "has the columns text. Needed: text and label"),
        ("a.csv", "text_a,text_b,label\ngood,bad,1\n", "sentences", "Needed: .* text_a, text_b and score"),
        ("a.csv", "text,label\ngood,bird\n", "classifier", "no class 'bird'. Its classes are cat, dog, eel"),
        ("a.csv", "text,label\ngood,999999999\n", "classifier", "A label is 999999999, which is no class number"),
        ("a.csv", "text_a,text_b,score\ngood,bad,1\n", "classifier", "holds pairs of texts, .* is for text-classification"),
        ("a.csv", "text,label\ngood,cat\n", "language", "is a table, .* a language model"),
        ("a.txt", "good film " * 50, "classifier", "is plain text, .* is for text-classification"),
        ("a.txt", "", "language", "fewer than two tokens"),
        ("a.txt", "good", "language", "fewer than two tokens"),
        ("a.parquet", "good", "classifier", r"\.parquet file is not read"),
    ],
)
def test_a_file_that_cannot_be_used_is_refused(name, text, kind, message, load, models) -> None:
    with pytest.raises(InputError, match=message):
        load(name, text, models[kind])


@pytest.mark.parametrize("name", ["a.csv", "a.txt"])
def test_bytes_that_are_no_text_are_refused(name, models, tmp_path) -> None:
    (tmp_path / name).write_bytes(b"text,label\n\xff\xfe,1\n")
    with pytest.raises(InputError, match="cannot be read|not readable UTF-8"):
        lighten.load_data(tmp_path / name, model=models["language" if name == "a.txt" else "classifier"])


def test_a_network_without_a_tokenizer_is_refused(load) -> None:
    with pytest.raises(InputError, match="residual has no tokenizer. Text needs a Hugging Face folder"):
        load("a.csv", "text,label\ngood,1\n", residual())


def test_a_corrupt_tokenizer_is_refused(load, tmp_path) -> None:
    model = lighten.load(checkpoints.bert_classifier(tmp_path / "model"))
    (tmp_path / "model" / "tokenizer.json").write_text("{")
    with pytest.raises(InputError, match="The tokenizer in .* cannot be loaded"):
        load("a.csv", "text,label\ngood,cat\n", model)


def test_plain_text_becomes_windows_the_first_for_calibration(load, models) -> None:
    count = 12 * checkpoints.POSITIONS + 5  # the last, shorter window is dropped
    words = ("the film is good " * count).split()[:count]
    data = load("a.txt", " ".join(words), models["language"])
    assert (data.task, data.metric) == ("language-model", "perplexity")
    assert (len(data.train), len(data.test)) == (3, 9)
    batch = next(data.test.batches(2))
    assert batch.inputs[0].shape == (2, checkpoints.POSITIONS)
    assert batch.inputs[0][0].tolist() == ids(" ".join(words))[3 * checkpoints.POSITIONS : 4 * checkpoints.POSITIONS]
    assert batch.inputs[1].all()
    assert batch.target is None
    assert data.test.describe(0).text.startswith("the film is good")


def test_a_short_text_is_one_window(load, models) -> None:
    data = load("a.txt", "the film is good", models["language"])
    assert data.train is None
    assert next(data.test.batches(2)).inputs[0].tolist() == [ids("the film is good")]


def test_generic_names_of_the_model_yield_to_those_of_the_data(load, models) -> None:
    model = models["classifier"]
    model = replace(model, origin=replace(model.origin, labels=("LABEL_0", "LABEL_1", "LABEL_2")))
    assert load("a.csv", "text,label\ngood,pos\nbad,neg\n", model).labels == ("neg", "pos")
