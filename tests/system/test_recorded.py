"""Objects tell the arguments they were made with."""

from dataclasses import dataclass
from inspect import signature

from fmerge.methods import TIES, Average
from fmerge.search import Sobol
from fmerge.system.recorded import Recorded, arguments_of


class Base(Recorded):
    def __init__(self, x, *, y=2, **more):
        self.z = x * y


class Derived(Base):
    def __init__(self, a, b=5):
        super().__init__(a + b, y=3, w=9)


def test_the_outermost_constructor_counts_whatever_is_kept():
    assert arguments_of(Derived(1)) == {"a": 1, "b": 5}
    assert arguments_of(Base(4, w=1)) == {"x": 4, "y": 2, "w": 1}
    assert Derived(1).z == 18
    assert list(signature(Derived).parameters) == ["a", "b"]


def test_a_changed_object_tells_what_it_was_made_with():
    one = Sobol(trials=4)
    one.trials = 9
    assert arguments_of(one) == {"trials": 4, "seed": 0}


def test_classes_without_a_constructor_and_foreign_classes():
    @dataclass
    class Point:
        x: int

    class Kept:
        def __init__(self, a, b, c):
            self.a, self._b = a, b

    assert arguments_of(Point(3)) == {"x": 3}
    assert arguments_of(Kept(1, 2, 3)) == {"a": 1, "b": 2}
    assert arguments_of(Average()) == {} and arguments_of(object()) == {}
    assert arguments_of(TIES(density=0.3)) == {"density": 0.3, "scale": 1.0, "per_tensor": False}
