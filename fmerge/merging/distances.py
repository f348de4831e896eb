"""Sums over tensors that give the distances of models, layer by layer."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from fmerge.fisher.summary import layer_of
from fmerge.params import Params
from fmerge.report.distances import BASE, LayerDistances


class DistanceSums:
    """Adds up the products of models' differences, in float64.

    Args:
        names: The experts m.
        based: Whether all is compared with a base; with the first expert if not.
    """

    def __init__(self, names: Sequence[str], based: bool) -> None:
        self.names = list(names)
        self.based = based
        self._layers: dict[str, Tensor] = {}

    def add(self, name: str, products: Tensor) -> None:
        """Takes one tensor of all models.

        Args:
            name: Its name.
            products: Of θ₀ and of δₘ = θₘ − θ₀ all products with each other (k, k), θ₀ first.
                Where there is no base, θ₀ is θ₁, which has no δ.
        """
        layer = layer_of(name)
        own = products.double().cpu()
        self._layers[layer] = self._layers.get(layer, torch.zeros_like(own)) + own

    def found(self, names: Sequence[str] = ()) -> LayerDistances | None:
        """Gives the distances.

        Args:
            names: Tensors, in the order in which their layers are told; as they came if left out.

        Returns:
            What the sums say; None where no tensor was seen.
        """
        if not self._layers:
            return None
        products = {}
        for layer in dict.fromkeys([*map(layer_of, names), *self._layers]):
            own = self._layers[layer]
            steps = own[1:, 1:]
            if not self.based:  # the first expert is no step away from itself
                steps = torch.nn.functional.pad(steps, (1, 0, 1, 0))
            products[layer] = steps.tolist()
        norms = {layer: float(self._layers[layer][0, 0]) for layer in products}
        origin = BASE if self.based else self.names[0]
        return LayerDistances(self.names, origin, products, norms)


def layer_distances(base: Params | None, bodies: Mapping[str, Params]) -> LayerDistances | None:
    """Measures how far models lie from their base and from each other.

    Args:
        base: θ₀, of the tensors that count; None compares with the first expert.
        bodies: θₘ by expert, of its layout; without a base all of their tensors count.

    Returns:
        The distances; None where there is no tensor.
    """
    sums = DistanceSums(list(bodies), base is not None)
    others = list(bodies.values())
    origin = others.pop(0) if base is None else base
    for name, tensor in origin.items():
        first = tensor.flatten()
        steps = [(one[name] - tensor).flatten() for one in others]
        rows = torch.stack([first, *steps])
        sums.add(name, rows @ rows.T)
    return sums.found()
