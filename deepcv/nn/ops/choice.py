"""A place in a network that a search decides."""

from dataclasses import dataclass
from typing import ClassVar

from deepcv.nn.emitter import Emitter, FitError, Value
from deepcv.nn.ops.joins import added
from deepcv.nn.ops.op import Count, Op


@dataclass(frozen=True)
class Choice(Op):
    """Takes `n` of its inputs, the candidates, and adds them up; `pick` names them, e.g. `small` or `small, wide`.

    `build` leaves out what is not picked, so that only the winners reach `emit`; a choice that is still open becomes one layer,
    see `deepcv.nn.search_space`.
    """

    many: ClassVar[bool] = True
    pick: str | None = None
    n: Count = 1

    def emit(self, emitter: Emitter, *inputs: Value) -> Value:
        """Equal shapes, kept."""
        return added(emitter, inputs)

    def picks(self, names: tuple[str, ...]) -> tuple[int, ...] | None:
        """The places of the picked candidates among `names`, in their order; None where the choice is open."""
        if self.n > len(names):
            raise FitError(f"n: {self.n} is more than its {len(names)} candidates")
        if self.pick is None:
            return None
        picked = [name.strip() for name in self.pick.split(",")]
        if unknown := [name for name in picked if name not in names]:
            raise FitError(f"has no candidate {unknown[0]!r}; there are {', '.join(names)}")
        if len(set(picked)) != self.n or len(picked) != self.n:
            raise FitError(f"picks {self.n} of its candidates, got pick: {self.pick!r}")
        return tuple(place for place, name in enumerate(names) if name in picked)


def candidate_names(node_id: str, sources: tuple[str, ...]) -> tuple[str, ...]:
    """The candidates of a choice as its file names them: `small` for `mix.small.first` of the choice `mix`."""
    parent = node_id.rpartition(".")[0]
    inside = [source.removeprefix(f"{node_id}.") for source in sources]
    relative = [name.removeprefix(f"{parent}.") if parent else name for name in inside]
    first = [name.partition(".")[0] for name in relative]
    return tuple(first if len(set(first)) == len(first) else relative)
