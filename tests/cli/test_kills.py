"""Kill -9 at seeded instants; after each the same command ends in the uninterrupted result.

29 here; 20 of a search (test_resume.py), 12 of Fishers (test_fisher_pass.py), 6 of fits
(test_fit_resumes.py, test_interrupts.py): 67 in all, and of one of two processes in
test_lost_processes.py. Without the slow ones 12 here and 5 of a search.
"""

import multiprocessing
import os
import random
import re
import shutil
import signal

import pytest
import torch
from lightning.fabric.plugins.io import torch_io
from safetensors.torch import load_file

from fmerge.cli.app import main
from fmerge.modules import TextClassifier
from fmerge.report import write as shown
from fmerge.store import atomic, read_fisher
from tests.cli.run import data_config
from tests.cli.test_fit_resumes import fit
from tests.cli.test_resume import merge

RESULTS = ("report.md", "report.html", "scores.json", "search.png", "merged")


def run(arguments):
    main([str(one) for one in arguments])


def kill_at(arguments, owner, name, times, after):
    """Runs a command that kills itself at the given use of a function; whether it came there."""

    def target():
        torch.set_num_threads(1)
        whole, left = getattr(owner, name), iter(range(times))

        def dying(*args, **kwargs):
            last = next(left, None) is None
            if last and not after:
                os.kill(os.getpid(), signal.SIGKILL)
            result = whole(*args, **kwargs)
            if last:
                os.kill(os.getpid(), signal.SIGKILL)
            return result

        setattr(owner, name, dying)
        run(arguments)

    process = multiprocessing.get_context("fork").Process(target=target)
    process.start()
    process.join(300)
    assert process.exitcode in {0, -signal.SIGKILL}
    return process.exitcode != 0


def assert_same_folder(found, expected):
    """Same files, and in them the same bytes but for the folder's own name and for times."""
    names = sorted(str(one.relative_to(expected)) for one in expected.rglob("*") if one.is_file())
    assert names == sorted(str(one.relative_to(found)) for one in found.rglob("*") if one.is_file())
    for name in names:
        if name == "report.html":
            assert timeless(found / name) == timeless(expected / name)
        elif name not in {"config.yaml", "times.txt"}:
            assert (found / name).read_bytes() == (expected / name).read_bytes(), name


def timeless(path):
    """A report's text without its folder's name and its times, the column of seconds included."""
    page = path.read_text().replace(str(path.parent), "OUTPUT")
    page = re.sub(
        r"<tr><th[^>]*>before the interruption</th>\s*<td.*?</tr>\s*", "", page, flags=re.S
    )
    page = re.sub(r"\d+\.\d s\b|\d+ min \d+ s\b", "TIME", page)
    start = page.find(">seconds</button></th></tr></thead>")
    end = page.find("</table>", start)
    rows = re.sub(r'<td class="number">[\d.]+</td>\s*</tr>', "</tr>", page[start:end])
    return page if start < 0 else page[:start] + rows + page[end:]


def assert_same_fisher(found, expected):
    """The same values, bit for bit, and the same provenance; their order in a header is free."""
    (values, provenance), (others, other) = read_fisher(found), read_fisher(expected)
    assert provenance == other and values.keys() == others.keys()
    assert all(torch.equal(values[name], value) for name, value in others.items())


@pytest.mark.slow
@pytest.mark.parametrize("most", [3, 14])
def test_a_merge_killed_after_its_search_ends_in_the_same_folder(
    zoo, tmp_path, record_property, most
):
    """While it is tested, written and reported; the trials are all there already."""
    whole, output, begun = tmp_path / "whole", tmp_path / "killed", tmp_path / "begun"
    run(merge(zoo, tmp_path, whole))
    shutil.copytree(whole, begun)
    for name in RESULTS:
        one = begun / name
        shutil.rmtree(one) if one.is_dir() else one.unlink()
    moments = [  # the function, and how often it comes at the least
        (TextClassifier, "test_step", 9),
        (atomic, "_sync", 20),
        (atomic, "replacing_file", 4),
        (shown, "draw_search", 1),
        (shown, "write_text", 3),
        (TextClassifier, "save", 1),
    ]
    generator, kills = random.Random(7), []
    while len(kills) < most:
        owner, name, uses = moments[len(kills) % len(moments)]
        times, after = generator.randrange(uses), generator.random() < 0.5
        shutil.rmtree(output, ignore_errors=True)
        shutil.copytree(begun, output)
        assert kill_at(merge(zoo, tmp_path, output), owner, name, times, after), (name, times)
        kills.append(name)
        if not (output / "report.md").is_file():  # the last that is written
            run(merge(zoo, tmp_path, output))
        (output / ".fmerge.lock").unlink(missing_ok=True)
        assert_same_folder(output, whole)
    record_property("figure", f"{len(kills)} kills of a merge's last phase: the same folder")


@pytest.mark.slow
@pytest.mark.parametrize("most", [3, 9])
def test_a_fit_killed_at_any_instant_ends_at_the_same_weights(zoo, tmp_path, record_property, most):
    whole = tmp_path / "whole"
    run(fit(zoo, tmp_path, whole))
    moments = [
        (TextClassifier, "training_step", 20),
        (torch_io, "_atomic_save", 8),
        (atomic, "_sync", 8),
    ]
    generator, kills = random.Random(11), []
    for i in range(most):
        owner, name, uses = moments[i % len(moments)]
        output = tmp_path / f"killed_{i}"
        last = output / "checkpoints" / "last.ckpt"
        times, after = generator.randrange(uses), generator.random() < 0.5
        assert kill_at(fit(zoo, tmp_path, output), owner, name, times, after), (name, times)
        kills.append(f"{name} {times}")
        resuming = ["--ckpt_path", last] if last.is_file() else ["--overwrite", "true"]
        run(fit(zoo, tmp_path, output, *resuming))
        for task in zoo.tasks:
            found = load_file(output / "expert" / task / "model.safetensors")
            expected = load_file(whole / "expert" / task / "model.safetensors")
            assert all(torch.equal(found[one], value) for one, value in expected.items()), kills
        assert not [one for one in output.glob(".*") if one.name != ".fmerge.lock"]
    record_property("figure", f"{len(kills)} kills of a fit ({', '.join(kills)}): same weights")


@pytest.mark.slow
def test_a_fisher_killed_while_it_is_written_is_the_same(zoo, tmp_path, record_property):
    def fisher(output):
        config = ["--config", data_config(zoo, tmp_path, "colour"), "--save_every", "0"]
        return ["fisher", *config, "--expert", zoo.experts["colour"], "--output", output]

    whole, kills = tmp_path / "whole.safetensors", 0
    run(fisher(whole))
    # five batches and their savings, then the Fisher: every saving and the end have two flushes
    for times in range(1, 12, 2):
        output = tmp_path / f"killed_{times}.safetensors"
        assert kill_at(fisher(output), atomic, "_sync", times, after=times % 4 == 1)
        kills += 1
        if not output.exists():
            run(fisher(output))
            assert not list(tmp_path.glob(f"{output.stem}.unfinished*"))
            assert not list(tmp_path.glob(f".{output.name}.*.safetensors"))
        assert_same_fisher(output, whole)
    record_property("figure", f"{kills} kills of a Fisher while it writes: the same file")
