"""The models that a merge tensor by tensor writes: what each of their tensors is made of."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fmerge.errors import UserError
from fmerge.merging.buffers import persistent_buffers
from fmerge.merging.experts import Ensemble
from fmerge.params import Params
from fmerge.store import SavedForm, ShardPlan, plan_shards


@dataclass(frozen=True)
class Output:
    """One merged model before it is written.

    Attributes:
        task: Its task.
        form: The dtypes that it is written in.
        weights: Name of a parameter to its name in the files.
        values: Names in the files to buffers that are not merged.
        moving: Name of a merged buffer to its name in the files.
        plan: The files.
    """

    task: str
    form: SavedForm
    weights: Mapping[str, str]
    values: Params
    moving: Mapping[str, str]
    plan: ShardPlan

    def rounded(self, name: str, tensor: Tensor) -> Tensor:
        """Rounds a parameter or buffer to the dtype that it is written in.

        Args:
            name: Its name in the model.
            tensor: The tensor.

        Returns:
            It in that dtype.

        Raises:
            UserError: If a number is beyond the range of the dtype.
        """
        if not tensor.is_floating_point():
            return tensor
        dtype = self.form.dtype_of(name)
        if tensor.dtype == dtype:
            return tensor
        found = tensor.to(dtype)
        if torch.isinf(found).sum() > torch.isinf(tensor).sum():
            raise UserError(
                f"tensor '{name}' of the merge has numbers beyond the range of {dtype}; "
                "set --dtype bfloat16 or float32"
            )
        return found


def outputs_of(ensemble: Ensemble, forms: Mapping[str, SavedForm]) -> list[Output] | None:
    """Plans the files of all merged models.

    Args:
        ensemble: The experts, of headers alone.
        forms: Task name to the form of its model.

    Returns:
        A model for each task, or one for all where there are no heads; None where what
        ``save_pretrained`` would write is made of the parameters otherwise than by name.
    """
    found = []
    for task in ensemble.tasks[:1] if _one_network(ensemble) else ensemble.tasks:
        made = _output(task, ensemble, forms[task])
        if made is None:
            return None
        found.append(made)
    return found


def _one_network(ensemble: Ensemble) -> bool:
    """Whether no expert has parameters that are not merged."""
    bodies = ensemble.bodies
    return all(
        name in bodies[task]
        for task, one in ensemble.models.items()
        for name, _ in one.named_parameters()
    )


def _output(task: str, ensemble: Ensemble, form: SavedForm) -> Output | None:
    model = ensemble.models[task]
    saved = _saved(model)
    if saved is None:
        return None
    # parameters of headers alone have a number of their own each, in memory of its own
    owners = {one.untyped_storage().data_ptr(): name for name, one in model.named_parameters()}
    buffers = persistent_buffers(model)
    named = {one.untyped_storage().data_ptr(): name for name, one in buffers.items()}
    weights: dict[str, str] = {}
    moving: dict[str, str] = {}
    values: Params = {}
    meta: Params = {}
    for name, tensor in saved.items():
        place = tensor.untyped_storage().data_ptr()
        own = owners.get(place) or named.get(place)
        if not place or own is None or tensor.shape != model.state_dict()[own].shape:
            return None
        dtype = form.dtype_of(own) if tensor.is_floating_point() else tensor.dtype
        meta[name] = torch.empty(tensor.shape, dtype=dtype, device="meta")
        if place in owners:
            weights[own] = name
        elif own in ensemble.moving:
            moving[own] = name
        else:
            values[name] = ensemble.constants.get(own, buffers[own]).to(dtype)
    count = model.num_parameters()  # type: ignore[operator]
    plan = plan_shards(meta, form.shard_bytes, count)
    return Output(task, form, weights, values, moving, plan)


def _saved(model: nn.Module) -> dict[str, Tensor] | None:
    """What ``save_pretrained`` would write, by its names in the files."""
    from transformers import PreTrainedModel
    from transformers.core_model_loading import WeightConverter, revert_weight_conversion
    from transformers.modeling_utils import remove_tied_weights_from_state_dict

    if not isinstance(model, PreTrainedModel):
        return None
    conversions = getattr(model, "_weight_conversions", None) or []
    if any(isinstance(one, WeightConverter) for one in conversions):
        return None
    ignored = set(model._keys_to_ignore_on_save or [])
    state = {name: one for name, one in model.state_dict().items() if name not in ignored}
    state = remove_tied_weights_from_state_dict(state, model)
    found: dict[str, Tensor] = revert_weight_conversion(model, state)
    return found
