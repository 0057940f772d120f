"""Many windows through the model at once, one layer after the other."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from torch import Tensor
from torch.nn import Module

from phibuild.backends.pytorch.layerwise import LayerwisePhi3, Positions
from phibuild.backends.pytorch.memory import BATCH_TOKENS


def through_layers(
    model: LayerwisePhi3,
    states: Sequence[Tensor],
    rotations: Sequence[Positions],
    enter: Callable[[int, Module], None] | None = None,
) -> Iterator[int]:
    """Send `states`, each [W, T, hidden] and rotated by its own of `rotations`, through all layers
    in place; yield the number of each layer after it.

    A layer's weights are read once. `enter(number, layer)` is called with each before it runs.
    """
    mask = model.mask(states[0].shape[1])
    for number, layer in enumerate(model.layers()):
        if enter is not None:
            enter(number, layer)
        for hidden, positions in zip(states, rotations, strict=True):
            for batch in in_batches(hidden):
                batch.copy_(layer(batch, attention_mask=mask, position_embeddings=positions))
        yield number


def in_batches(states: Tensor, tokens: int = BATCH_TOKENS) -> Sequence[Tensor]:
    """Return views of [W, T, ...]: some windows each, of about so many tokens together, which are
    enough for large matrix products."""
    batches: Sequence[Tensor] = states.split(max(tokens // states.shape[1], 1))
    return batches
