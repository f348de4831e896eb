"""Where Fishers lie, against cases worked by hand."""

import pytest
import torch

from fmerge.fisher import summary
from fmerge.fisher.summary import summarise_fishers


def test_cosine_and_overlap_worked_by_hand():
    found = summarise_fishers({
        "a": {"m.0.w": torch.tensor([[1.0]]), "m.1.w": torch.tensor([3.0])},
        "b": {"m.0.w": torch.tensor([[20.0]]), "m.1.w": torch.tensor([20.0])},
    })
    # (1·20 + 3·20) / (√10 · √800), and min(1/4, 1/2) + min(3/4, 1/2)
    assert found.cosines[0][1] == found.cosines[1][0] == pytest.approx(80 / 8000**0.5)
    assert found.overlaps[0][1] == found.overlaps[1][0] == pytest.approx(0.75)
    assert [found.cosines[i][i] for i in range(2)] == pytest.approx([1, 1])
    assert [found.overlaps[i][i] for i in range(2)] == pytest.approx([1, 1])
    assert found.layers == {"m.0": pytest.approx([0.25, 0.5]), "m.1": pytest.approx([0.75, 0.5])}
    assert found.means == [2.0, 20.0]
    assert found.shared == {"m.0": [pytest.approx(0.25)], "m.1": [pytest.approx(0.5)]}


def test_chunks_add_up(monkeypatch):
    generator = torch.Generator().manual_seed(0)
    fishers = {
        name: {key: torch.rand(7, 5, generator=generator) ** 4 for key in ("l.0.w", "l.0.b", "x.w")}
        for name in "abc"
    }
    monkeypatch.setattr(summary, "_CHUNK", 4)
    found = summarise_fishers(fishers)
    flat = torch.stack([torch.cat([t.flatten() for t in f.values()]).double() for f in
                        fishers.values()])  # fmt: skip
    shares = flat / flat.sum(1, keepdim=True)
    for a in range(3):
        for b in range(3):
            cosine = torch.cosine_similarity(flat[a], flat[b], dim=0)
            assert found.cosines[a][b] == pytest.approx(float(cosine))
            # 1 minus half the distance of the masses
            overlap = 1 - float((shares[a] - shares[b]).abs().sum()) / 2
            assert found.overlaps[a][b] == pytest.approx(overlap)
    pairs = [found.overlaps[a][b] for a, b in ((0, 1), (0, 2), (1, 2))]
    assert [sum(one) for one in zip(*found.shared.values(), strict=True)] == pytest.approx(pairs)
    assert [sum(layer) for layer in zip(*found.layers.values(), strict=True)] == pytest.approx([
        1,
        1,
        1,
    ])


def test_a_fisher_of_zeros_is_like_no_other():
    found = summarise_fishers({"a": {"w": torch.zeros(3)}, "b": {"w": torch.ones(3)}})
    assert found.cosines == [[0, 0], [0, pytest.approx(1)]]
    assert found.overlaps[0] == [0, 0] and found.layers == {"w": [0, pytest.approx(1)]}
