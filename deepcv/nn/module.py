"""`DeepcvModule`: a network that knows the spec it was built from, and stays what it is when it is copied or stored."""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, fx, nn

from deepcv.nn import modes, parametrizations
from deepcv.nn.emitter import Shape
from deepcv.nn.layers.norms import has_statistics
from deepcv.nn.layers.subgraphs import MixedChoice, SampledChoice
from deepcv.nn.spec import NetworkSpec, build, from_canonical, load
from deepcv.nn.spec.compile import Search, check_search
from deepcv.nn.spec.lowering import output_names


@dataclass(frozen=True)
class Blueprint:
    """All that `build` needs to make a network again; shapes are (C, H, W) by the name of the input."""

    spec: NetworkSpec
    input_shapes: Mapping[str, Shape]
    classes: int
    outputs: tuple[str, ...] | None = None
    choices: Mapping[str, str] = field(default_factory=dict)
    search: Search | None = None

    def __post_init__(self) -> None:
        """Raise SpecError for what is no kind of search."""
        check_search(self.search)

    def build(self) -> fx.GraphModule:
        """A new network; see `deepcv.nn.spec.build`."""
        return build(
            self.spec, self.input_shapes, self.classes, outputs=self.outputs, choices=self.choices, search=self.search
        )

    def plain(self) -> dict[str, Any]:
        """Plain data for JSON, from which `of_plain` makes the blueprint again."""
        return {
            "spec": self.spec.canonical(),
            "input_shapes": {name: list(shape) for name, shape in self.input_shapes.items()},
            "classes": self.classes,
            "outputs": None if self.outputs is None else list(self.outputs),
            "choices": dict(self.choices),
            "search": self.search,
        }

    @classmethod
    def of_plain(cls, plain: Mapping[str, Any]) -> Self:
        """The blueprint that gave this. Raises KeyError, TypeError, ValueError or SpecError where it is none."""
        shapes = {str(name): tuple(int(side) for side in shape) for name, shape in plain["input_shapes"].items()}
        outputs = None if plain["outputs"] is None else tuple(plain["outputs"])
        spec = from_canonical(plain["spec"])
        return cls(spec, shapes, int(plain["classes"]), outputs, dict(plain["choices"]), plain["search"])


class DeepcvModule(fx.GraphModule):
    """A network from a spec: a graph module that costs nothing more to call and remembers its spec.

    It maps a batch (N, C, H, W), or one of each of its inputs, to a dict of outputs. Keys of the state_dict begin with the ids
    of the network file. Copies and pickles are a DeepcvModule with the same spec, weights, dtypes, parametrizations, frozen
    weights and train or eval mode of every layer. A deepcopy also keeps hooks and changed layers; a pickle builds the
    layers again from the spec. A batch norm whose weights are all frozen uses its statistics also in train mode.
    """

    _blueprint: Blueprint

    @classmethod
    def from_spec(
        cls,
        spec: NetworkSpec,
        input_shape: Shape | Mapping[str, Shape],
        classes: int,
        *,
        outputs: Sequence[str] | None = None,
        choices: Mapping[str, str] | None = None,
        search: Search | None = None,
    ) -> Self:
        """Build a network; arguments, weights and errors are those of `deepcv.nn.spec.build`."""
        shapes = spec.input_shapes(input_shape)
        wanted = None if outputs is None else output_names(outputs)
        return cls.from_blueprint(Blueprint(spec, shapes, classes, wanted, dict(choices or {}), search))

    @classmethod
    def from_file(
        cls, path: Path, input_shape: Shape | Mapping[str, Shape], classes: int, **parameters: int | float | str | bool
    ) -> Self:
        """Build the network of a YAML file, with values for its `$parameters`. Raises SpecError."""
        return cls.from_spec(load(path, parameters), input_shape, classes)

    @classmethod
    def from_blueprint(cls, blueprint: Blueprint) -> Self:
        """Build a network with new weights. Raises SpecError."""
        network = blueprint.build()
        return cls._around({**vars(network), "_blueprint": blueprint})

    @classmethod
    def _around(cls, state: dict[str, Any]) -> Self:
        """A module of these attributes, those of a graph module, whose class gets the code of the graph."""
        module = cls.__new__(cls)  # each graph module has a class of its own, for its code
        type(module).__name__ = cls.__name__
        vars(module).update(state)
        module.graph = state["_graph"]
        return module

    @property
    def spec(self) -> NetworkSpec:
        """The expanded spec; `spec.sha256()` is its digest."""
        return self._blueprint.spec

    @property
    def blueprint(self) -> Blueprint:
        """The spec with the shapes and choices that this network was built for."""
        return self._blueprint

    def train(self, mode: bool = True) -> Self:
        """Set the mode of every layer; batch norms whose weights are all frozen stay in eval mode."""
        super().train(mode)
        for module in self.modules():
            if has_statistics(module) and is_frozen(module):
                module.training = False
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        return from_content, (content_of(self),)

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        state = {key: value for key, value in vars(self).items() if key != "_blueprint"}
        copied = self._base()._around({**copy.deepcopy(state, memo), "_blueprint": self._blueprint})
        modes.restore(copied, modes.resting(self))  # a layer with a deepcopy of its own may lose it
        return copied

    def __copy__(self) -> Self:
        return self._base()._around({**vars(self), "_graph": copy.deepcopy(self.graph)})

    @classmethod
    def _base(cls) -> type[Self]:
        """The class itself, below the one that fx makes for each module."""
        return cls.__mro__[1]


def content_of(network: DeepcvModule) -> dict[str, Any]:
    """What a file or a pickle holds: plain data and tensors, but for parametrizations that are not torch's own."""
    return {
        **network.blueprint.plain(),
        "frozen": [name for name, parameter in network.named_parameters() if not parameter.requires_grad],
        "eval": modes.resting(network),
        "parametrizations": parametrizations.describe(network),
        "active": {
            name: list(layer.active) for name, layer in network.named_modules() if isinstance(layer, SampledChoice)
        },
        "mixing": {
            name: layer.mixing.tolist() for name, layer in network.named_modules() if isinstance(layer, MixedChoice)
        },
        "state_dict": {key: value.detach() for key, value in network.state_dict().items()},
    }


def from_content(content: Mapping[str, Any]) -> DeepcvModule:
    """The network of this content, which it takes the tensors of; torch's random state is left alone."""
    plan = Blueprint.of_plain(content)
    with torch.random.fork_rng(devices=[]):
        network = DeepcvModule.from_blueprint(plan)
        parametrizations.restore(network, content["parametrizations"])
    state: Mapping[str, Tensor] = content["state_dict"]
    network.load_state_dict(state, assign=True)  # keeps dtypes and devices
    modes.restore(network, content["eval"])
    frozen, active, mixing = set(content["frozen"]), content["active"], content["mixing"]
    for name, parameter in network.named_parameters():
        parameter.requires_grad_(name not in frozen)
    for name, layer in network.named_modules():
        if isinstance(layer, SampledChoice):
            layer.active = tuple(active.get(name, layer.active))  # files from before lack those inside others
        elif isinstance(layer, MixedChoice) and name in mixing:
            layer.mixing = torch.tensor(mixing[name], device=next((t.device for t in state.values()), None))
    return network


def is_frozen(module: nn.Module) -> bool:
    """Whether a layer has weights and learns none of them."""
    weights = list(module.parameters())
    return bool(weights) and not any(weight.requires_grad for weight in weights)
