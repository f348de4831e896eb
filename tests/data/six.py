"""Rows of the six data sets of Lee et al. (NAACL 2025), in their own columns and layouts."""

import re

import datasets

LETTERS = "ABCDEFGH"
SIZES = {"train": 5, "validation": 5, "test": 7}
NAMES = {"paws": "labeled_final", "winogrande": "winogrande_xl"}


def _choices(texts):
    return {"text": texts, "label": list(LETTERS[: len(texts)])}


def paws(i):
    return {"id": i, "sentence1": f"cat {i} saw dog", "sentence2": "dog saw cat", "label": i % 2}


def qasc(i):
    return {
        "id": str(i),
        "question": f"What has {i} moon?",
        "choices": _choices(["sky", "sea", "tree", "stone", "red", "blue", "green", "fish"]),
        "answerKey": LETTERS[(i + 2) % 8],
        "fact1": "a tree has a moon.",
        "fact2": "a moon is one.",
        "combinedfact": "a tree has one.",
        "formatted_question": "What has (A) sky (B) sea",
    }


def quartz(i):
    return {
        "id": str(i),
        "question": f"Is the sun {i} more red or less red?",
        "choices": _choices(["more", "less"]),
        "answerKey": LETTERS[(i + 1) % 2],
        "para": "The sun is red.",
        "para_id": "p",
    }


def story_cloze(i):
    story = {f"input_sentence_{k}": f"cat {i} {word}." for k, word in enumerate("abcd", start=1)}
    return {
        "story_id": str(i),
        **story,
        "sentence_quiz1": "dog ran.",
        "sentence_quiz2": "dog sat.",
        "answer_right_ending": 2 - i % 2,
    }


def wiki_qa(i):
    return {
        "question_id": f"Q{i}",
        "question": f"how far is moon {i}",
        "document_title": "moon",
        "answer": "The moon is far.",
        "label": (i + 1) % 2,
    }


def winogrande(i):
    return {
        "sentence": f"The cat {i} fled the dog as the _ was mad.",
        "option1": "cat",
        "option2": "dog",
        "answer": "12"[(i + 1) % 2],
    }


TASKS = {one.__name__: one for one in (paws, qasc, quartz, story_cloze, wiki_qa, winogrande)}
# the prompt of the first training row, i.e. row 0, by hand
EXPECTED = {
    "paws": {
        "text": "First sentence: cat 0 saw dog\nSecond sentence: dog saw cat\n"
        "Do both sentences mean the same? Answer yes or no.",
        "choices": ["no", "yes"],
        "label": 0,
    },
    "qasc": {
        "text": "Two facts: a tree has a moon. a moon is one.\nQuestion: What has 0 moon?\n"
        "Possible answers: sky, sea, tree, stone, red, blue, green, fish\nThe right answer is:",
        "choices": ["sky", "sea", "tree", "stone", "red", "blue", "green", "fish"],
        "label": 2,
    },
    "quartz": {
        "text": "What is known: The sun is red.\nQuestion: Is the sun 0 more red or less red?\n"
        'Is it "more" or "less"?',
        "choices": ["more", "less"],
        "label": 1,
    },
    "story_cloze": {
        "text": "Story: cat 0 a. cat 0 b. cat 0 c. cat 0 d.\nOne ending: dog ran.\n"
        "Another ending: dog sat.\nThe ending that belongs to the story:",
        "choices": ["dog ran.", "dog sat."],
        "label": 1,
    },
    "wiki_qa": {
        "text": "Question: how far is moon 0\nSentence: The moon is far.\n"
        "Does the sentence answer the question? Answer yes or no.",
        "choices": ["no", "yes"],
        "label": 1,
    },
    "winogrande": {
        "text": "The cat 0 fled the dog as the _ was mad.\n"
        "What belongs in place of the _, cat or dog?",
        "choices": ["cat", "dog"],
        "label": 1,
    },
}
_FIVE, _SEVEN = list(range(5)), list(range(7))
_PLAIN = {"train": _FIVE, "validation": _FIVE, "test": _SEVEN}
_HALVED = {"train": _FIVE, "validation": [0, 1], "test": [2, 3, 4]}
SPLITS = {
    "paws": _PLAIN,
    "qasc": _HALVED,
    "quartz": _PLAIN,
    "story_cloze": {"train": _FIVE, "validation": [0, 1, 2], "test": [3, 4, 5, 6]},
    "wiki_qa": _PLAIN,
    "winogrande": _HALVED,
}


def marker(text: str) -> int:
    """The number of the row that a prompt was made of."""
    return int(re.search(r"\d+", text)[0])


def rows(task, split, count=None) -> dict:
    """Columns of a split; Story Cloze has no training split."""
    made = [TASKS[task](i) for i in range(count or SIZES[split])]
    if split == "test" and task in {"qasc", "winogrande"}:  # as on the hub: without answers
        made = [row | {"answerKey" if task == "qasc" else "answer": ""} for row in made]
    return {key: [row[key] for row in made] for key in made[0]}


def _splits(task):
    names = ["validation", "test"] if task == "story_cloze" else list(SIZES)
    return {split: rows(task, split) for split in names}


def hub_folder(task, folder, splits=None) -> str:
    """Parquet files and a card, as on the hub."""
    name = NAMES.get(task, "default")
    card = ["---", "configs:", f"- config_name: {name}", "  data_files:"]
    for split, columns in (splits or _splits(task)).items():
        path = folder / task / name / f"{split}-00000-of-00001.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        datasets.Dataset.from_dict(columns).to_parquet(path)
        card += [f"  - split: {split}", f"    path: {name}/{split}-*"]
    (folder / task / "README.md").write_text("\n".join([*card, "---"]))
    return str(folder / task)


def saved_folder(task, folder) -> str:
    """What save_to_disk writes, under the name of the configuration if there is one."""
    made = {split: datasets.Dataset.from_dict(one) for split, one in _splits(task).items()}
    datasets.DatasetDict(made).save_to_disk(folder / task / NAMES.get(task, ""))
    return str(folder / task)
