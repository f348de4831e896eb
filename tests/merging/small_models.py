"""Networks of a dozen weights and a module that reads them from memory, to be merged."""

from types import SimpleNamespace

import torch
from torch import nn

from fmerge.errors import UserError
from fmerge.params import params_of, select
from fmerge.store import TOKENIZERS


class Network(nn.Module):
    """A body of a matrix and a vector under a head of its own size."""

    def __init__(self, seed=0, outputs=2, width=3, **config):
        super().__init__()
        torch.manual_seed(seed)
        self.body = nn.Linear(width, 3)
        self.head = nn.Linear(3, outputs)
        self.config = SimpleNamespace(to_dict=lambda: {"model_type": "small"} | config)


class Module:
    """Reads networks by their names, and notes how it was asked to."""

    reads = TOKENIZERS

    def __init__(self, **networks):
        self.networks, self.asked = networks, []

    def read(self, source, task, labels=None, fresh_head=False):
        self.asked.append((source, task, labels, fresh_head))
        if source not in self.networks:
            raise UserError(f"{source}: no such file or folder")
        return self.networks[source]

    def check_preprocessor(self, model, preprocessor, source):
        self.reads.check(model, preprocessor, source)

    def body(self, model):
        return select(params_of(model), "body.")


def near(base, seed, outputs=2, step=0.1):
    """A network whose body is close to another's."""
    model = Network(seed, outputs)
    with torch.no_grad():
        for own, origin in zip(model.body.parameters(), base.body.parameters(), strict=True):
            own.copy_(origin + step * own)
    return model
