"""What a search shows while it runs, in a terminal and in a file."""

import io

from rich.console import Console

from fmerge.merging.progress import SearchProgress
from fmerge.search import SearchSpace, Sobol, Trial


def seen(scores, terminal, known=0, budget=40, patience=None, width=100):
    """The last view of a search of so many trials, of which an earlier run made some."""
    search = Sobol(trials=budget)
    search.start(SearchSpace(["a", "b"]))
    search.patience = patience
    trials = [
        Trial(i, {"a": i / 100, "b": 0.5}, score, {"a": score, "b": score})
        if score is not None
        else Trial(i, {"a": i / 100, "b": 0.5}, status="failed", reason="nan")
        for i, score in enumerate(scores)
    ]
    for trial in trials[:known]:
        search.tell(trial)
    file = io.StringIO()
    console = Console(file=file, force_terminal=terminal, width=width, height=40)
    with SearchProgress(search, True, console) as shown:
        for trial in trials[known:]:
            search.tell(trial)
            shown.show()
        shown.end()
        bar = shown.tasks[0].completed, shown.tasks[0].total
    plain = Console(width=width, record=True, file=io.StringIO())
    for one in shown.get_renderables():
        plain.print(one)
    return file.getvalue(), plain.export_text(), bar


def test_a_terminal_shows_the_best_and_the_last_trials():
    _, text, bar = seen([0.5, 0.875, *[0.25] * 8, None], terminal=True)
    rows = [
        [cell.strip() for cell in line.split("│")[1:-1]]
        for line in text.splitlines()
        if "│" in line
    ]
    assert rows == [
        ["1", "87.5", "87.5", "87.5", "0.010", "0.500"],
        *[[str(i), "25.0", "25.0", "25.0", f"0.{10 * i:03}", "0.500"] for i in range(5, 10)],
        ["10", "failed", "-", "-", "0.100", "0.500"],
    ]
    assert "best 0.8750" in text and "11/40" in text and "left" in text and bar == (11, 40)


def test_a_file_gets_the_last_bar_alone():
    written, _, _ = seen([0.5, 0.875], terminal=False)
    assert written.count("Searching") == 1 and "2/40" in written and "│" not in written


def test_a_resumed_bar_ends_at_its_total():
    assert seen([0.5] * 14, terminal=False, known=7, budget=14)[2] == (14, 14)
    written, _, bar = seen([0.5, *[0.25] * 5], terminal=False, known=3, patience=5)
    assert bar == (6, 6)
    assert "The search ends before its budget: no trial in 5 was better than trial 0.\n" in written


def test_a_level_search_says_so_in_whole_words_at_any_width():
    written, _, _ = seen([0.5, *[0.25] * 20], terminal=False, width=30)
    assert written.count("No trial in") == 1  # in the tenth trial it was level for nine
    assert (
        "No trial in 19 was better than trial 0; --optimizer.search_patience ends a search that "
        "is level.\n" in written
    )
    assert "best 0.5000" in " ".join(written.split())


def test_no_score_is_no_best():
    _, text, _ = seen([None], terminal=True)
    assert "no score yet" in text and "failed" in text
