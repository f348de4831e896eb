"""Tagged words from every kind of file, and what is refused, by file, row and column."""

import json

import datasets
import pandas
import pytest

from fmerge.data import TagFiles
from fmerge.errors import UserError

WORDS = [["Ada", "Lovelace", "wrote"], ["#", "code"]]
TAGS = [["B-PER", "I-PER", "O"], ["O", "O"]]
NAMES = ["B-PER", "I-PER", "O"]
NUMBERS = [[0, 1, 2], [2, 2]]
CONLL = """-DOCSTART- -X- O O

# id of a sentence
Ada NNP B-PER
Lovelace NNP I-PER
wrote VBD O

# X O
code NN O
"""
CONLLU = """# sent_id = 1
1\tAda\tada\tPROPN\tNNP\t_\t3\tnsubj\t_\t_
2-3\tdont\t_\t_\t_\t_\t_\t_\t_\t_
2\tdo\tdo\tAUX\tVB\t_\t3\taux\t_\t_
3\tnot\tnot\tPART\tRB\t_\t0\troot\t_\t_
3.1\tx\tx\tVERB\t_\t_\t_\t_\t_\t_

1\t#\t#\tSYM\t_\t_\t0\troot\t_\t_
"""


def refused(make, message):
    with pytest.raises(UserError, match=message) as caught:
        make()
    assert "\n" not in str(caught.value)


def table(path, rows, names=("tokens", "tags")):
    rows = [dict(zip(names, row, strict=True)) for row in rows]
    if path.suffix == ".parquet":
        pandas.DataFrame(rows).to_parquet(path)
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def check(task, split="train"):
    assert task.labels == NAMES and task.labels.kind == "tags"
    found = task.examples(split)
    assert [one["words"] for one in found] == WORDS
    assert [one["label"] for one in found] == NUMBERS
    assert found[0]["text"] == "Ada Lovelace wrote"
    assert list(task.metrics) == ["entity_f1"]


@pytest.mark.parametrize("name", ["x.jsonl", "x.parquet"])
def test_lists_in_tables(tmp_path, name):
    check(TagFiles(train=table(tmp_path / name, zip(WORDS, TAGS, strict=True))))
    numbers = table(tmp_path / f"n-{name}", zip(WORDS, NUMBERS, strict=True), ("words", "ner"))
    check(TagFiles(train=numbers, words="words", tags="ner", labels=NAMES))


@pytest.mark.parametrize("name", ["x.conll", "x.txt", "x.bio"])
def test_files_of_columns(tmp_path, name):
    (tmp_path / name).write_text(CONLL)
    check(TagFiles(train=str(tmp_path / name)))
    (tmp_path / name).write_text(CONLL.replace(" ", "\t").replace("#\tid\tof\ta\tsentence\n", ""))
    check(TagFiles(train=str(tmp_path / name)))
    speech = TagFiles(train=str(tmp_path / name), tag_column=1)
    assert speech.labels == ["NN", "NNP", "VBD", "X"]
    assert list(speech.metrics) == ["token_accuracy"]


def test_universal_dependencies(tmp_path):
    (tmp_path / "x.conllu").write_text(CONLLU)
    task = TagFiles(test=str(tmp_path / "x.conllu"))
    assert [one["words"] for one in task.examples("test")] == [["Ada", "do", "not"], ["#"]]
    assert task.labels == ["AUX", "PART", "PROPN", "SYM"]
    assert [one["label"] for one in task.examples("test")] == [[2, 0, 1], [3]]
    assert task.has("test") and not task.has("train")


def test_a_data_set_names_its_tags(tmp_path):
    features = datasets.Features({
        "tokens": datasets.List(datasets.Value("string")),
        "ner_tags": datasets.List(datasets.ClassLabel(names=["O", "B-PER", "I-PER"])),
    })
    rows = {"tokens": WORDS, "ner_tags": [[1, 2, 0], [0, 0]]}
    one = datasets.Dataset.from_dict(rows, features=features)
    datasets.DatasetDict({"train": one, "validation": one, "test": one}).save_to_disk(
        tmp_path / "set"
    )
    task = TagFiles(source=str(tmp_path / "set"), tags="ner_tags")
    assert task.labels == ["O", "B-PER", "I-PER"]
    assert [e["label"] for e in task.examples("validation")] == [[1, 2, 0], [0, 0]]
    assert all(task.has(split) for split in ("train", "validation", "test"))
    refused(
        lambda: TagFiles(train=["a", "b"], source=str(tmp_path / "set")),
        "source is set, so that .'a', 'b'. must be a split's name",
    )


@pytest.mark.parametrize(
    ("rows", "options", "message"),
    [
        ([(["a"], ["X", "Y"])], {}, "row 1, column 'tags': has 2 tags for 1 words; give each"),
        ([(["a", "b"], ["X"])], {}, "row 1, column 'tags': has 1 tags for 2 words; give each"),
        ([(["a"], ["Z"])], {"labels": ["X", "Y"]}, "row 1, column 'tags': unknown label 'Z'; kno"),
        ([(["a"], [7])], {"labels": ["X", "Y"]}, "row 1, column 'tags': unknown label '7'; known"),
        ([([], [])], {}, "row 1, column 'tokens': has no words; remove the row"),
        ([(["a", " "], ["X", "Y"])], {}, "column 'tokens': entry 2 is ' ', but must be a word"),
        ([(["a"], [None])], {}, "column 'tags': entry 1 is None, but must be a word or a tag"),
        ([("a b", ["X", "Y"])], {}, "column 'tokens': holds str, but a list is needed, with one"),
        ([(["a"], None)], {}, "column 'tags': is empty, but a list is needed"),
        ([(["a"], ["X"])], {}, "labels are .'X'., but a classification needs two or more"),
        ([(["a"], ["X"])], {"tags": "ner"}, "has no column 'ner'; its columns: tags, tokens"),
    ],
)
def test_unfit_rows_are_refused(tmp_path, rows, options, message):
    file = table(tmp_path / "x.jsonl", rows)
    refused(lambda: TagFiles(train=file, **options).examples("train"), message)


def test_unfit_files_are_refused(tmp_path):
    (tmp_path / "x.conll").write_text("word\n")
    refused(
        lambda: TagFiles(train=str(tmp_path / "x.conll")).labels,
        "x.conll, row 1: has 1 columns, but the word is in column 0 and its tag in column -1; set",
    )
    (tmp_path / "x.conll").write_text("\n")
    refused(lambda: TagFiles(train=str(tmp_path / "x.conll")).labels, "train split holds no rows")
    (tmp_path / "x.csv").write_text("tokens,tags\n")
    refused(lambda: TagFiles(train=str(tmp_path / "x.csv")), "x.csv: has an unknown ending; known")
    (tmp_path / "y.conll").write_text(CONLL)
    refused(
        lambda: TagFiles(train=str(tmp_path / "y.conll")).examples("test"),
        "nothing is given for the test split; set test",
    )
