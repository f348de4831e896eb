"""The size check names each breach on a line of its own, and nothing else."""

import subprocess
import sys
from pathlib import Path

CHECK = Path(__file__).parents[1] / ".ci" / "sizes.py"


def check(*paths: Path) -> tuple[int, list[str]]:
    command = [sys.executable, str(CHECK), *map(str, paths)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert not done.stderr
    return done.returncode, done.stdout.splitlines()


def function(name: str, lines: int, decorator: str = "") -> str:
    body = "\n".join(["    pass"] * (lines - 2))
    return f'{decorator}def {name}():\n    """Counted."""\n{body}\n'


def test_each_breach_has_its_line(tmp_path):
    long, tall, wide = (tmp_path / f"{name}.py" for name in ("long", "tall", "wide"))
    long.write_text("x = 1\n" * 301)
    tall.write_text("import functools\n\n" + function("grows", 51, "@functools.cache\n"))
    wide.write_text("f(1, 2, 3, 4, 5, 6)\nobject.f(1, 2, 3, 4, 5, 6, *rest, key=7)\n")
    assert check(tmp_path) == (
        1,
        [
            f"{long}: 301 lines, at most 300",
            f"{tall}:4: grows: 51 lines, at most 50",
            f"{wide}:2: object.f: 7 positional arguments, at most 6; "
            "name them or make an object of them",
        ],
    )


def test_what_is_within_the_limits_passes(tmp_path):
    (tmp_path / "long.py").write_text("x = 1\n" * 300)
    (tmp_path / "tall.py").write_text(function("fits", 50, "@staticmethod\n"))
    (tmp_path / "wide.py").write_text("f(1, 2, 3, 4, 5, *rest, a=6, b=7, c=8)\n")
    code, lines = check(tmp_path)
    assert code == 0 and len(lines) == 1 and "within" in lines[0]


def test_methods_and_nested_functions_count(tmp_path):
    file = tmp_path / "nested.py"
    inner = "".join(f"    {line}\n" for line in function("inner", 51).splitlines())
    file.write_text(f"class Outer:\n{inner}")
    assert check(file) == (1, [f"{file}:2: inner: 51 lines, at most 50"])
