"""Conversations and plain texts from files: values, and files that do not do."""

import json

import datasets
import pytest

from fmerge.data import Chats, MultiTask, PlainText
from fmerge.errors import UserError

TALK = [
    {"role": "user", "content": "one"},
    {"role": "assistant", "content": "two"},
]


def lines(path, *rows):
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return str(path)


def test_conversations_from_json_lines_and_parquet(tmp_path):
    longer = [{"role": "system", "content": "be short", "name": "x"}, *TALK]
    file = lines(tmp_path / "a.jsonl", {"messages": TALK}, {"messages": longer, "id": 3})
    table = datasets.Dataset.from_dict({"talk": [TALK]})
    table.to_parquet(tmp_path / "b.parquet")
    data = Chats(train=file)
    assert data.labels == [] and data.metrics == ("inverse_perplexity",)
    assert data.has("train") and not data.has("test")
    plain = [{"role": "system", "content": "be short"}, *TALK]
    assert data.examples("train") == [{"messages": TALK}, {"messages": plain}]
    other = Chats(test=str(tmp_path / "b.parquet"), messages="talk", metrics=["rouge1"])
    assert other.examples("test") == [{"messages": TALK}] and other.metrics == ["rouge1"]
    with pytest.raises(UserError, match="^Chats: no file is given for the validation split; set v"):
        data.examples("validation")


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"messages": "one"}, "must be a list of messages, .* but is 'one'"),
        ({"messages": [{"role": "user"}]}, "must be a list of messages"),
        ({"messages": [{"role": "user", "content": 3}]}, "must be a list of messages"),
        ({"messages": TALK[:1]}, r"has 1 message\(s\), of which the last must be the assistant's"),
        ({"messages": []}, r"has 0 message\(s\)"),
        ({"messages": [TALK[0], {"role": "assistant", "content": " "}]}, "has 2 message"),
        ({"text": "one"}, "has no column 'messages'; its columns: text"),
    ],
)
def test_bad_conversations_are_named(tmp_path, row, message):
    file = lines(tmp_path / "a.jsonl", row)
    with pytest.raises(UserError, match=message) as error:
        Chats(train=file).examples("train")
    assert str(error.value).startswith(file) and "\n" not in str(error.value)


def test_a_file_without_rows_is_named(tmp_path):
    for kind, name in ((Chats, "a.jsonl"), (PlainText, "a.txt")):
        (tmp_path / name).write_text("\n \n")
        data = MultiTask({"a": kind(validation=str(tmp_path / name))})
        with pytest.raises(UserError, match="^task 'a': .* holds no rows, but the validation"):
            data.check_splits("validation")


def test_lines_of_a_text_are_examples(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"one, two\r\n\n  three 007\nfour")
    data = PlainText(train=str(tmp_path / "a.txt"))
    texts = ["one, two", "  three 007", "four"]
    assert data.examples("train") == [{"text": text} for text in texts]
    assert data.metrics == ("inverse_perplexity",) and data.labels == []
    file = lines(tmp_path / "b.jsonl", {"body": "red"}, {"body": ""})
    found = PlainText(train=file, text="body")
    assert found.examples("train")[0] == {"text": "red"}
    with pytest.raises(UserError, match=r"a.txt: has no column 'body'; its columns: text"):
        PlainText(train=str(tmp_path / "a.txt"), text="body").examples("train")


def test_chats_are_sorted_by_the_length_of_their_messages(tmp_path):
    long = [{"role": "user", "content": "one " * 30}, TALK[1]]
    file = lines(tmp_path / "a.jsonl", {"messages": long}, {"messages": TALK})
    data = MultiTask({"a": Chats(validation=file)}, batch_size=2)
    (loader,) = data.loaders("validation").values()
    assert [one["messages"] for one in loader.dataset.examples] == [TALK, long]
