"""`deepcv profile` and `deepcv ops`: the same thin door, to networks; nothing heavy is imported before a command runs."""

import argparse
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from deepcv.errors import DeepcvError

if TYPE_CHECKING:
    from torch.fx import GraphModule

    from deepcv.nn import DeepcvModule
    from deepcv.nn.spec import NetworkSpec
    from deepcv.profiling.report import Profile

_INPUT = (3, 224, 224)
_CLASSES = 1000
_DESCRIPTION = """\
Tell what a network costs: for each node its shape, parameters, MACs, receptive field and memory; then latency and
throughput on each device. torchinfo, fvcore and torch's own counter are asked too; more than 2 % between them is flagged.

MODEL is a network file (YAML; random weights), a network of the zoo (resnet-18), a model file (.pt, as the stage train writes
it, or of deepcv.nn.network_file), a registered model (models:/NAME@champion, models:/NAME/3) or that of a run (runs:/ID).
"""

_OPS_DESCRIPTION = """\
Tell what a node of a network file can be: all ops by family with one line each, or of one op its keys with type, default and
unit, its shapes, where it comes from and an example line. docs/networks.md teaches the rest of a network file.
"""
_OPS_EPILOG = """\
examples:
  deepcv ops                               all ops
  deepcv ops conv                          the keys of one
  deepcv ops --schema                      the JSON Schema by which editors complete network files

A network file names the schema in its first line: # yaml-language-server: $schema=network.schema.json
"""


def add_to(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `deepcv profile`."""
    parser.description, parser.formatter_class = _DESCRIPTION, argparse.RawDescriptionHelpFormatter
    parser.add_argument(
        "model", metavar="MODEL", help="network file .yaml, name in the zoo, model file .pt, models:/… or runs:/…"
    )
    parser.add_argument(
        "--input", type=_input, action="append", default=[], metavar="[NAME=]CxHxW",
        help="one image (default: 3x224x224; a model file knows its own); NAME= for one of several inputs, repeated",
    )  # fmt: skip
    parser.add_argument(
        "--classes",
        type=_whole,
        metavar="N",
        help="$classes of a network file (default: 1000; a model file knows its own)",
    )
    parser.add_argument(
        "--set",
        type=_setting,
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="a $parameter of the network file",
    )
    parser.add_argument(
        "--choice", type=_choice, action="append", default=[], metavar="NODE=CANDIDATE",
        help="decide a choice of the network file, repeated; NODE=ONE,OTHER where it takes several",
    )  # fmt: skip
    parser.add_argument(
        "--search", choices=("sampled", "mixed"),
        help="leave open choices open: sampled runs the first candidate and tells of the others, mixed runs all",
    )  # fmt: skip
    parser.add_argument("--html", type=Path, metavar="FILE", help="also write a page with the graph drawn")
    parser.add_argument(
        "--json", type=Path, metavar="FILE", help="also write all figures as JSON; - prints them instead"
    )
    parser.add_argument("--mermaid", action="store_true", help="print the graph as Mermaid text instead")
    parser.add_argument(
        "--device", choices=("auto", "cpu", "cuda", "none"), default="auto",
        help="where to take times (default: auto, the CPU and the GPU if there is one); none: no times",
    )  # fmt: skip
    parser.add_argument(
        "--batch", type=_whole, default=1, metavar="N", help="images at once, for the times (default: 1)"
    )
    parser.add_argument("--threads", type=_whole, default=1, metavar="N", help="CPU threads (default: 1)")
    parser.add_argument("--repeat", type=_whole, default=20, metavar="N", help="runs, after 3 to warm up (default: 20)")
    parser.add_argument("--mlflow", metavar="RUN_ID", help="also log page and JSON to this MLflow run, under profile/")
    parser.set_defaults(run=_profile)


def add_ops(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `deepcv ops`."""
    parser.description, parser.epilog = _OPS_DESCRIPTION, _OPS_EPILOG
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    what = parser.add_mutually_exclusive_group()
    what.add_argument("name", nargs="?", metavar="NAME", help="an op, such as conv (default: a table of all)")
    what.add_argument("--schema", action="store_true", help="print the JSON Schema of network files instead")
    parser.set_defaults(run=_ops)


def _ops(options: argparse.Namespace) -> None:
    from deepcv.nn import network_schema, op_reference

    if options.schema:
        print(network_schema.as_json(), end="")
        return
    print(op_reference.page(options.name, _width()) if options.name else op_reference.table(_width()), end="")


def _width() -> int:
    """Columns of a table: those of the terminal, within what reads well."""
    return min(max(80, shutil.get_terminal_size((110, 0)).columns), 140)


def _whole(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number of at least 1, got {text!r}")
    return int(text)


def _input(text: str) -> tuple[str, tuple[int, ...]]:
    """The name of an input, empty for all that have none of their own, and the shape of an image."""
    name, _, shape = text.rpartition("=")
    if not re.fullmatch(r"[1-9]\d{0,5}([x×][1-9]\d{0,5}){2}", shape):
        raise argparse.ArgumentTypeError(f"expected channels, height and width such as 3x224x224, got {text!r}")
    return name, tuple(int(part) for part in re.split("[x×]", shape))


def _setting(text: str) -> tuple[str, int | float | bool | str]:
    name, equals, value = text.partition("=")
    if not (name and equals):
        raise argparse.ArgumentTypeError(f"expected NAME=VALUE such as width=32, got {text!r}")
    readers: tuple[Callable[[str], int | float], ...] = (int, float)
    for read in readers:
        try:
            return name, read(value)
        except ValueError:
            continue
    return name, {"true": True, "false": False}.get(value, value)


def _choice(text: str) -> tuple[str, str]:
    node, equals, candidates = text.partition("=")
    if not (node and equals and candidates):
        raise argparse.ArgumentTypeError(f"expected NODE=CANDIDATE such as mix=wide, got {text!r}")
    return node, candidates


def _profile(options: argparse.Namespace) -> None:
    from deepcv.profiling import describe, mermaid, report, timing
    from deepcv.profiling.blocks import blocks
    from deepcv.profiling.observe import observe

    network = _network(options)
    if options.mermaid:
        print(mermaid.mermaid(blocks(observe(network))), end="")
        return
    try:
        devices = () if options.device == "none" else timing.devices(options.device)
    except ValueError as error:
        raise DeepcvError(str(error)) from None
    name = options.model if _is_registered(options.model) else Path(options.model).name
    found = report.profile(
        network, name=name, devices=devices, batch=options.batch, repeats=options.repeat, threads=options.threads
    )
    is_json_alone = options.json is not None and str(options.json) == "-"
    print(report.as_json(found) if is_json_alone else describe.as_text(found, _width()))
    _write(found, options.html, None if is_json_alone else options.json)
    if options.mlflow:
        _log(found, options.mlflow)


def _network(options: argparse.Namespace) -> "GraphModule":
    """The network, whose graph knows the shapes of its inputs."""
    from deepcv.nn import network_file, spec

    is_registered, path = _is_registered(options.model), Path(options.model)
    if not is_registered and path.suffix not in network_file.SUFFIXES:
        network = spec.load(_network_path(path), dict(options.set))
        choices, shapes = _choices(network, options), _shapes(network, options.input)
        return spec.build(network, shapes, options.classes or _CLASSES, choices=choices, search=options.search)
    if options.input or options.classes or options.set or options.choice or options.search:
        raise DeepcvError(f"{options.model}: a model knows its own input, classes, parameters and choices")
    if is_registered:
        from deepcv import network_registry, tracking

        try:
            return network_registry.network(options.model)
        except tracking.TrackingError as error:
            raise DeepcvError(f"{options.model}: {tracking.reason(error)}") from None
    return _stored(path)


def _is_registered(model: str) -> bool:
    return model.startswith(("models:/", "runs:/"))


def _network_path(path: Path) -> Path:
    """The network file itself, or that of the zoo where no file has this name. Raises DeepcvError where neither is there."""
    from deepcv.nn.spec import expand
    from deepcv.nn.spec.errors import closest

    name = str(path)
    if path.suffix or path.is_file():
        return path
    if name not in expand.zoo():
        raise DeepcvError(f"{name}: neither a file nor a network of the zoo; {closest(name, expand.zoo())}")
    return expand.ZOO / f"{name}.yaml"


def _stored(path: Path) -> "DeepcvModule":
    """The network of a model file, or of one that `network_file.save` wrote. Raises NetworkFileError, ModelFileError."""
    from deepcv.nn import classifier, network_file

    _, beside = network_file.read(path)
    if "info" not in beside:
        return network_file.load(path)
    model, _ = classifier.load(path)
    return model.network  # type: ignore[return-value]  # `load` builds it from a spec


def _shapes(network: "NetworkSpec", given: list[tuple[str, tuple[int, ...]]]) -> dict[str, tuple[int, ...]]:
    """The shape of each input: the one given by its name, else the one given without a name, else 3x224x224."""
    shapes = dict(given)
    if len(shapes) < len(given):
        raise DeepcvError("--input: the same input is given twice; expected one CxHxW, and one NAME=CxHxW per input")
    if unknown := [name for name in shapes if name and name not in network.inputs]:
        raise DeepcvError(f"--input {unknown[0]}=…: no such input; the network has {', '.join(network.inputs)}")
    return network.input_shapes(shapes.pop("", _INPUT)) | shapes


def _choices(network: "NetworkSpec", options: argparse.Namespace) -> dict[str, str]:
    """What each choice picks, by its node id. Raises DeepcvError for an unknown name, and for a choice left open by accident."""
    from deepcv.nn.ops.choice import candidate_names
    from deepcv.nn.spec import lowering
    from deepcv.nn.spec.errors import closest

    choices: dict[str, str] = dict(options.choice)
    known = {node.id: candidate_names(node.id, node.sources) for node in network.nodes if node.op == "choice"}
    for name, pick in choices.items():
        if name not in known:
            raise DeepcvError(f"--choice {name}=…: the network has no such choice; {closest(name, known)}")
        for one in (part.strip() for part in pick.split(",")):
            if one not in known[name]:
                raise DeepcvError(f"--choice {name}={pick}: no candidate {one!r}; {closest(one, known[name])}")
    left = lowering.open_choices(lowering.pruned(lowering.decided(network, choices)))
    if left and not options.search:
        told = "; ".join(f"{name} has {', '.join(names)}" for name, names in left.items())
        first, names = next(iter(left.items()))
        raise DeepcvError(
            f"{options.model}: the network leaves choices open: {told}; decide each, e.g. --choice {first}={names[0]}, "
            "or show all candidates: --search sampled runs one of them, --search mixed all"
        )
    return choices


def _write(found: "Profile", html: Path | None, json: Path | None) -> None:
    from deepcv.files import write_text
    from deepcv.profiling import page, report

    for path, text in ((html, page.html), (json, report.as_json)):
        if path is not None:
            write_text(path, text(found))
            print(f"wrote {path}", file=sys.stderr)


def _log(found: "Profile", run_id: str) -> None:
    import tempfile

    from deepcv import tracking
    from deepcv.files import write_text
    from deepcv.profiling import page, report

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_text(folder / "profile.html", page.html(found))
        write_text(folder / "profile.json", report.as_json(found))
        try:
            tracking.connect()
            tracking.log_artifacts(run_id, folder, "profile")
        except tracking.TrackingError as error:
            raise DeepcvError(f"MLflow run {run_id!r}: {tracking.reason(error)}") from None
    print(f"logged profile/profile.html and profile/profile.json to MLflow run {run_id}", file=sys.stderr)
