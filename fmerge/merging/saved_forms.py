"""How merged models are written: in the dtypes, shards and side files of their experts."""

from collections.abc import Mapping

from fmerge.merging.experts import Ensemble
from fmerge.store import Dtype, SavedForm, form_of, merged_dtypes, parse_size


def saved_forms(
    ensemble: Ensemble, dtype: Dtype | None = None, max_shard_size: int | str | None = None
) -> Mapping[str, SavedForm]:
    """Chooses the form of every task's merged model.

    Args:
        ensemble: The experts.
        dtype: The dtype of all weights; the experts' own where it is left out.
        max_shard_size: The largest size of a shard; that of the expert's where it is left out.

    Returns:
        Task name to form. Each tensor gets the narrowest dtype that holds the numbers of all
        experts, donors among them.
    """
    size = parse_size(max_shard_size)
    own = {name: form_of(source, name) for name, source in ensemble.sources.items()}
    if not any(form.dtypes for form in own.values()) and dtype is None:
        return {task: SavedForm({}, size, own[task].folder) for task in ensemble.tasks}
    return {
        task: SavedForm(
            merged_dtypes(list(own.values()), list(model.state_dict()), dtype),
            size or own[task].shard_bytes,
            own[task].folder,
        )
        for task, model in ensemble.models.items()
    }
