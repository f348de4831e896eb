"""Prompts of the six shipped tasks by value, splits, and what a user's own task takes."""

import datasets
import pytest

from fmerge.data import Prompted
from fmerge.data.prompts import halves
from fmerge.data.template_files import shipped
from fmerge.errors import UserError
from tests.data import six

ROWS = {"question": ["a", "b", "c"], "answer": ["yes", "no", "yes"], "good": [1, 0, 1]}
OWN = {"text": "Is it {{ question }}?", "choices": ["no", "yes"], "label": "{{ answer }}"}


def write(path, rows=ROWS):
    table = datasets.Dataset.from_dict(rows)
    {".csv": table.to_csv, ".jsonl": table.to_json, ".parquet": table.to_parquet}[path.suffix](path)
    return str(path)


def refused(message, split="train", **options):
    with pytest.raises(UserError, match=message) as caught:
        Prompted(**options).examples(split)
    assert "\n" not in str(caught.value)


def test_every_shipped_template_is_tested():
    assert shipped() == sorted(six.TASKS)


@pytest.mark.parametrize("layout", ["hub", "saved"])
@pytest.mark.parametrize("task", six.TASKS)
def test_a_row_of_each_task(task, layout, tmp_path):
    write_layout = {"hub": six.hub_folder, "saved": six.saved_folder}[layout]
    data = Prompted(task, source=write_layout(task, tmp_path))
    assert dict(data.examples("train")[0]) == six.EXPECTED[task]
    assert data.labels == [] and data.metrics == ("accuracy",)


@pytest.mark.parametrize("task", six.TASKS)
def test_splits_of_each_task(task, tmp_path):
    """The rows carry their number in their data set's split."""
    data = Prompted(task, source=six.hub_folder(task, tmp_path))
    for split, expected in six.SPLITS[task].items():
        assert [six.marker(one["text"]) for one in data.examples(split)] == expected, split


@pytest.mark.parametrize("rows", [2, 3, 9, 926, 1267, 1871])
def test_halves_are_those_of_train_test_split(rows):
    table = datasets.Dataset.from_dict({"i": list(range(rows))})
    parts = table.train_test_split(test_size=0.5, shuffle=False)
    for half, part in (("first", parts["train"]), ("second", parts["test"])):
        assert list(range(*halves(rows)[half])) == list(part["i"])


def test_a_repeated_answer_of_qasc_counts_once(tmp_path):
    rows = six.rows("qasc", "train", 1)
    rows["choices"][0]["text"][3] = rows["choices"][0]["text"][2] + " "
    rows["answerKey"] = ["D"]
    source = six.hub_folder("qasc", tmp_path, {"train": rows})
    (example,) = Prompted("qasc", source=source).examples("train")
    assert len(example["choices"]) == 7 and example["label"] == 2


@pytest.mark.parametrize("ending", [".csv", ".jsonl", ".parquet"])
def test_files_of_your_own(tmp_path, ending):
    files = {
        "train": write(tmp_path / f"train{ending}"),
        "validation": f"first half of {write(tmp_path / f'rest{ending}')}",
        "test": f"second half of {tmp_path / f'rest{ending}'}",
    }
    data = Prompted(splits=files, **OWN)
    assert [(one["text"], one["label"]) for one in data.examples("train")] == [
        ("Is it a?", 1), ("Is it b?", 0), ("Is it c?", 1),
    ]  # fmt: skip
    assert [one["text"] for one in data.examples("validation")] == ["Is it a?"]
    assert [one["text"] for one in data.examples("test")] == ["Is it b?", "Is it c?"]


def test_one_file_is_one_split(tmp_path):
    path = write(tmp_path / "my.csv")
    data = Prompted(source=path, **OWN)
    assert len(data.examples("validation")) == len(data.examples("validation")) == 3
    with pytest.raises(UserError, match=r"both the validation and the test split; set splits, "):
        data.examples("test")
    halved = Prompted(source=path, splits={"test": "second half of half"}, **OWN)
    assert len(halved.examples("test")) == 2
    (tmp_path / "own.yaml").write_text(f"source: {path}")
    named = Prompted(str(tmp_path / "own.yaml"), **OWN)
    named.examples("train")
    with pytest.raises(UserError, match="both the train and the test split"):
        named.examples("test")


def test_a_file_in_the_place_of_a_shipped_source(tmp_path):
    rows = {"sentence1": ["a"], "sentence2": ["b"], "label": [1]}
    data = Prompted("paws", source=write(tmp_path / "my.jsonl", rows))
    assert data.examples("test")[0]["label"] == 1


def test_a_saved_folder_and_a_template_of_your_own(tmp_path):
    datasets.DatasetDict({"dev": datasets.Dataset.from_dict(ROWS)}).save_to_disk(tmp_path / "saved")
    (tmp_path / "mine.yaml").write_text(
        'text: \'{{ question }}\'\nchoices: ["no", "yes"]\nlabel: good\n'
        f"source: {tmp_path / 'saved'}\nsplits: {{validation: dev}}\n"
    )
    template = str(tmp_path / "mine.yaml")
    assert [one["label"] for one in Prompted(template).examples("validation")] == [1, 0, 1]
    changed = Prompted(template, text="So: {{ question }}", splits={"test": "dev"})
    assert changed.examples("test")[0]["text"] == "So: a"


@pytest.mark.parametrize(
    ("label", "expected"),
    [
        ("good", [1, 0, 1]),
        ("{{ good }}", [1, 0, 1]),
        ("answer", [1, 0, 1]),
        ("1 - good", [0, 1, 0]),
        ("good == 1", [1, 0, 1]),
        ("{% if good %}yes{% else %}no{% endif %}", [1, 0, 1]),
        ("'0'", [0, 0, 0]),
    ],
)
def test_labels_are_indices_or_texts(tmp_path, label, expected):
    data = Prompted(splits={"train": write(tmp_path / "a.csv")}, **OWN | {"label": label})
    assert [one["label"] for one in data.examples("train")] == expected


def test_choices_are_a_list_or_an_expression(tmp_path):
    files = {"train": write(tmp_path / "a.csv")}
    for choices in (["{{ answer }}", "maybe"], "[answer, 'maybe']", "{{ [answer, 'maybe'] }}"):
        data = Prompted(splits=files, **OWN | {"choices": choices, "label": "0"})
        assert [one["choices"][0] for one in data.examples("train")] == ["yes", "no", "yes"]


BAD = {
    "choices: ": [
        ({"choices": ["one"]}, "row 1 of .*: there is .'one'., but at least two are needed"),
        ({"choices": ["yes", "{{ answer }}"]}, "row 1 of .*: 'yes' is there twice"),
        ({"choices": ["", "yes"]}, "row 1 of .*: one of .* is empty"),
        ({"choices": "answer"}, "row 1 of .*: is 'yes', but must give a list"),
        ({"choices": "a {{ answer }}"}, "is text, but must be a list or give one"),
    ],
    "label: ": [
        ({"choices": ["yes", "ja"]}, "row 2 of .*: 'no' is none of the choices .*from 0 to 1"),
        ({"label": "good + 1"}, "row 1 of .*: 2 is none of the choices"),
        ({"label": "0 - good"}, "row 1 of .*: -1 is none of the choices"),
        ({"label": "good / 2"}, "row 1 of .*: 0.5 is none of the choices"),
    ],
    "text: ": [
        ({"text": "{% if answer == 'yes' %}x{% endif %}"}, "row 2 of .*: the prompt is empty"),
        ({"text": "a\n{{ b"}, "line 2 of the template: unexpected end of template"),
        ({"text": "{{ a | nope }}"}, "line 1 of the template: No filter named 'nope'"),
        ({"text": "{{ answer.length }}"}, "row 1 of .*: .*has no attribute 'length'"),
        ({"text": "{{ answer.__class__ }}"}, "row 1 of .*: access to attribute '__class__'"),
    ],
}


@pytest.mark.parametrize(
    ("field", "change", "message"),
    [(field, change, message) for field, cases in BAD.items() for change, message in cases],
)
def test_bad_templates_are_named_with_the_first_bad_row(tmp_path, field, change, message):
    path = write(tmp_path / "a.csv")
    expected = f"Prompted: {field}{message}"
    if message.startswith("row"):
        place, _, reason = message.partition(".*: ")
        expected = f"Prompted: {place}{path}: {field}{reason}"
    refused(expected, splits={"train": path}, **OWN | change)


def test_rows_of_a_second_half_are_named_by_their_own_number(tmp_path):
    path = write(tmp_path / "a.csv")
    change = {"choices": ["{{ question }}", "b"], "label": "0"}
    refused(
        "row 2 of .*'b' is there twice", splits={"train": f"second half of {path}"}, **OWN | change
    )


def test_what_is_lacking_is_said(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "a.csv")
    files = {"train": "a.csv"}
    for options, message in [
        ({"template": "pows"}, "unknown template 'pows'; give a YAML file or one of: paws, qasc"),
        ({"template": "story_cloze"}, "template story_cloze: source is not set: its licence asks"),
        ({"template": "paws", "template_name": "x"}, "holds one template; leave template_name out"),
        ({"template_name": "x"}, "template_name is set, but template is not"),
        ({}, "Prompted: source is not set; name the data, or files as splits"),
        ({"source": "none.csv", **OWN}, "none.csv: no such file"),
        ({"splits": {"train": "none.csv"}, **OWN}, "none.csv: no such file"),
        ({"splits": {"dev": "a.csv"}, **OWN}, "unknown split 'dev' in splits; known: test, train"),
        ({"splits": {"test": "a.csv"}, **OWN}, "Prompted: has no train split; set splits.train"),
        ({"splits": files, "text": "a"}, "Prompted: choices is not set"),
        (
            {"splits": files, **OWN, "label": "nope"},
            "a.csv: has no column 'nope'; its columns: ",
        ),
    ]:
        refused(message, **options)


def test_a_lacking_split_of_a_data_set_is_said(tmp_path):
    source = six.hub_folder("paws", tmp_path, {"train": six.rows("paws", "train", 1)})
    refused("labeled_final: cannot read its test split", "test", template="paws", source=source)


MISSING = {"question": ["a", None, "c"], "answer": ["yes", "no", "yes"], "good": [1, 0, 1]}


@pytest.mark.parametrize("ending", [".csv", ".jsonl", ".parquet"])
@pytest.mark.parametrize(
    "text", ["Is it {{ question }}?", "{{ 'Is it ' ~ question }}", "{{ [question] | join }}"]
)
def test_a_missing_value_is_never_rendered(tmp_path, ending, text):
    path = write(tmp_path / f"a{ending}", MISSING)
    line = r" \(line 3\)" if ending == ".csv" else ""
    refused(
        f"Prompted: row 2 of {path}: text: column 'question' is empty; test it with .*row{line}$",
        splits={"train": path},
        **OWN | {"text": text},
    )


@pytest.mark.parametrize("ending", [".csv", ".jsonl", ".parquet"])
def test_a_missing_value_can_be_tested(tmp_path, ending):
    path = write(tmp_path / f"a{ending}", MISSING)
    for text in (
        "Is it {% if question is none %}so{% else %}{{ question }}{% endif %}?",
        "Is it {{ question or 'so' }}?",
        "Is it {{ 'so' if not question else question }}?",
    ):
        data = Prompted(splits={"train": path}, **OWN | {"text": text})
        texts = [one["text"] for one in data.examples("train")]
        assert texts == ["Is it a?", "Is it so?", "Is it c?"]


@pytest.mark.parametrize("ending", [".csv", ".jsonl", ".parquet"])
@pytest.mark.parametrize("label", ["answer", "{{ answer }}", "good | int", "good - 0", "good"])
def test_a_missing_label_is_refused(tmp_path, ending, label):
    rows = {"question": ["a", "b"], "answer": ["yes", None], "good": [1, None]}
    path = write(tmp_path / f"a{ending}", rows)
    column = "answer" if "answer" in label else "good"
    refused(
        f"row 2 of .*column '{column}' is empty",
        splits={"train": path},
        **OWN | {"label": label},
    )


def test_columns_of_csv_are_as_they_stand(tmp_path):
    (tmp_path / "a.csv").write_text("q;flag;n\nnull;true;007\nNA;false;8\n")
    data = Prompted(
        splits={"train": str(tmp_path / "a.csv")},
        text="{{ q }} {{ n }} {{ flag }}{% if flag %}!{% endif %}",
        choices=["true", "false"],
        label="flag",
    )
    texts = [(one["text"], one["label"]) for one in data.examples("train")]
    assert texts == [("null 007 true!", 0), ("NA 8 false", 1)]


def test_a_whole_number_is_an_index_also_where_it_is_written_as_a_float(tmp_path):
    rows = {"question": ["a", "b"], "answer": ["yes", "no"], "good": [1.0, 0.0]}
    for ending in (".csv", ".jsonl", ".parquet"):
        path = write(tmp_path / f"a{ending}", rows)
        data = Prompted(splits={"train": path}, **OWN | {"label": "good"})
        assert [one["label"] for one in data.examples("train")] == [1, 0]


@pytest.mark.parametrize("ending", [".csv", ".jsonl", ".parquet"])
def test_columns_are_named_and_files_are_several(tmp_path, ending):
    one, two = write(tmp_path / f"p1{ending}"), write(tmp_path / f"p2{ending}", MISSING)
    (tmp_path / "rows").mkdir()
    rest = write(tmp_path / "rows" / f"p3{ending}", {key: row[:1] for key, row in ROWS.items()})
    for files in ([one, rest], [str(tmp_path / f"p1*{ending}"), rest]):
        data = Prompted(
            splits={"train": files}, text="question", choices=["no", "yes"], label="answer"
        )
        assert [(e["text"], e["label"]) for e in data.examples("train")] == [
            ("a", 1), ("b", 0), ("c", 1), ("a", 1),
        ]  # fmt: skip
    refused(
        f"row 2 of {two}: text: column 'question' is empty",
        splits={"train": [one, two]},
        **OWN | {"text": "question"},
    )
    # a word that is no column is the prompt itself
    data = Prompted(splits={"train": one}, **OWN | {"text": "Well"})
    assert data.examples("train")[0]["text"] == "Well"
    assert data.has("train") and not data.has("test")


FREE = {"text": "Is it {{ question }}?"}


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("answer", "yes"),
        ("{{ answer }}", "yes"),
        (" {{ answer }}, {{ good }}. ", "yes, 1."),
        ("good", "1"),
    ],
)
def test_free_answers(tmp_path, answer, expected):
    file = write(tmp_path / "a.jsonl")
    data = Prompted(splits={"train": file}, answer=answer, **FREE)
    assert data.examples("train")[0] == {"text": "Is it a?", "answer": expected}
    assert data.metrics == ("inverse_perplexity",)
    assert Prompted(source=file, answer=answer, metrics=["bleu"], **FREE).metrics == ["bleu"]


def test_free_answers_that_do_not_do(tmp_path):
    source = write(tmp_path / "a.jsonl", {"question": ["a"], "answer": [" "], "many": [["b"]]})
    where = {"source": source, **FREE}
    refused("row 1 of .*: answer: it is empty", answer="answer", **where)
    refused("row 1 of .*: answer: is list, but must be a text", answer="many", **where)
    refused("answer: is given, and so is choices; drop one", answer="many", choices=["a"], **where)
    refused("has no column 'missing'", answer="missing", **where)
    refused("answer: ", answer="the answer", **where)
    refused("text is not set", answer="many", source=source)
