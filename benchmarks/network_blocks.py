"""Building blocks of networks against what they replace, from the same template of a network file.

    python -m benchmarks.network_blocks convolution --path cifar10-jpeg.tar.gz   # meta and pyramidal vs static, equal MACs
    python -m benchmarks.network_blocks segmentation                             # Attention U-Net vs U-Net
    python -m benchmarks.network_blocks blur                                     # cost of blur on activations

Trained for a few minutes on one thread, so that the differences are recorded rather than judged; `holds` is "not worse".
"""

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.pictures import cifar, garments
from benchmarks.result import emit
from deepcv.nn.layers.blur import set_blur
from deepcv.nn.spec import build, load

# `KIND` stands for the op that is compared: in a network file it cannot be a parameter.
CLASSIFIER = """\
parameters: {width: 16}
nodes:
  - {id: stem, op: conv, channels: $width}
  - {id: down1, op: KIND, channels: $width*2, stride: 2}
  - {id: body1, op: KIND, channels: $width*2}
  - {id: down2, op: KIND, channels: $width*4, stride: 2}
  - {id: body2, op: KIND, channels: $width*4}
  - {id: pool, op: global_avg_pool}
  - {id: head, op: linear, features: $classes}
outputs: {logits: head}
"""
KINDS = {"static": "conv", "meta": "meta_conv", "pyramidal": "pyramid_conv"}

# A U-Net (Ronneberger 2015) of three scales; GATE is `identity` for the plain one, see `unet`.
UNET = """\
parameters: {width: 8}
templates:
  pair:
    parameters: [channels]
    nodes:
      - {id: first, op: conv, channels: $channels}
      - {id: second, op: conv, channels: $channels}
nodes:
  - {id: fine, template: pair, channels: $width}
  - {id: pool1, op: max_pool}
  - {id: middle, template: pair, channels: $width*2}
  - {id: pool2, op: max_pool}
  - {id: coarse, template: pair, channels: $width*4}
  - {id: skip2, GATE2}
  - {id: up2, op: upsample, from: coarse, mode: bilinear}
  - {id: join2, op: concat, from: [skip2, up2]}
  - {id: back2, template: pair, channels: $width*2}
  - {id: skip1, GATE1}
  - {id: up1, op: upsample, from: back2, mode: bilinear}
  - {id: join1, op: concat, from: [skip1, up1]}
  - {id: back1, template: pair, channels: $width}
  - {id: mask, op: conv, channels: 1, kernel: 1, norm: none, activation: none}
outputs: {mask: mask}
"""

RESIDUAL = """\
parameters: {width: 64}
templates:
  block:
    parameters: [channels, stride]
    nodes:
      - {id: first, op: conv, channels: $channels, stride: $stride}
      - {id: second, op: conv, channels: $channels, activation: none}
      - {id: short, op: conv, from: input, channels: $channels, kernel: 1, stride: $stride, activation: none}
      - {id: link, op: sum, from: [short, second], activation: relu}
      - {id: soft, op: blur}
nodes:
  - {id: stem, op: conv, channels: $width}
  - {id: one, template: block, channels: $width, stride: 1}
  - {id: two, template: block, channels: $width*2, stride: 2}
  - {id: three, template: block, channels: $width*4, stride: 2}
  - {id: pool, op: global_avg_pool}
  - {id: head, op: linear, features: $classes}
outputs: {logits: head}
"""


def network(text: str, shape: tuple[int, int, int], **parameters: object) -> nn.Module:
    """The network of a file with this text, for 10 classes."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "network.yaml"
        path.write_text(text)
        return build(load(path, parameters), shape, 10)


def mega_macs(net: nn.Module, shape: tuple[int, int, int]) -> float:
    """Millions of multiply-adds of one image."""
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        net.eval()(torch.zeros(1, *shape))
    return counter.get_total_flops() / 2e6


def train(
    net: nn.Module, images: Tensor, loss_of: Callable[[Tensor, Tensor], Tensor], seed: int, epochs: int, batch: int = 50
) -> None:
    """SGD with Nesterov momentum and one cycle of the learning rate; `loss_of` takes the output and the samples' numbers."""
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.SGD(net.parameters(), 0.1, momentum=0.9, weight_decay=5e-4, nesterov=True)
    steps = epochs * (len(images) // batch)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=steps)
    net.train()
    for _ in range(epochs):
        for chosen in torch.randperm(len(images), generator=generator)[: len(images) // batch * batch].split(batch):
            (output,) = net(images[chosen]).values()
            optimizer.zero_grad()
            loss_of(output, chosen).backward()
            optimizer.step()
            schedule.step()


def outputs(net: nn.Module, images: Tensor) -> Tensor:
    """What the only output says, in eval mode."""
    with torch.no_grad():
        return torch.cat([next(iter(net.eval()(part).values())) for part in images.split(100)])


def convolution(options: argparse.Namespace) -> None:
    """Meta- and pyramidal convolution against static ones; each kind at the width whose MACs are nearest to the static net's."""
    shape, width = (3, 32, 32), 16
    count, test_count, epochs = (1_000, 500, 1) if options.quick else (options.images, 2_000, options.epochs)
    seeds = range(1 if options.quick else 3)
    images, labels = cifar(options.path, "train", count)
    test_images, test_labels = cifar(options.path, "test", test_count)
    target = mega_macs(network(CLASSIFIER.replace("KIND", "conv"), shape, width=width), shape)
    table: dict[str, dict[str, object]] = {}
    means: dict[str, float] = {}
    for kind, op in KINDS.items():
        text = CLASSIFIER.replace("KIND", op)
        macs = {w: mega_macs(network(text, shape, width=w), shape) for w in range(width - 4, width + 5)}
        chosen = min(macs, key=lambda w: abs(macs[w] - target))
        found = []
        for seed in seeds:
            torch.manual_seed(seed)
            net = network(text, shape, width=chosen)
            train(net, images, lambda output, part: F.cross_entropy(output, labels[part]), seed, epochs)
            found.append(float((outputs(net, test_images).argmax(1) == test_labels).float().mean()))
        means[kind] = statistics.mean(found)
        table[kind] = {
            "accuracy": round(means[kind], 4), "seeds": [round(one, 4) for one in found], "width": chosen,
            "mega_macs": round(macs[chosen], 2), "parameters": sum(p.numel() for p in net.parameters()),
        }  # fmt: skip
        print(kind, table[kind], file=sys.stderr, flush=True)
    emit(
        "network_blocks convolution", value=means["meta"], baseline=means["static"], n=len(seeds), epochs=epochs,
        target="accuracy not below static convolution at equal MACs", holds=means["meta"] >= means["static"],
        points={kind: round(100 * (mean - means["static"]), 2) for kind, mean in means.items()},
        images=len(images), test_images=len(test_images), kinds=table,
    )  # fmt: skip


def unet(gated: bool) -> str:
    """The network file of a U-Net, with attention gates (Oktay 2018) on its skip links or without."""
    if gated:
        gates = "op: attention_gate, from: [middle, coarse]", "op: attention_gate, from: [fine, back2]"
    else:
        gates = "op: identity, from: middle", "op: identity, from: fine"
    return UNET.replace("GATE2", gates[0]).replace("GATE1", gates[1])


def iou(scores: Tensor, masks: Tensor) -> float:
    """Intersection over union of all pixels of all pictures."""
    found, true = scores > 0, masks > 0.5
    return float((found & true).sum() / (found | true).sum())


def segmentation(options: argparse.Namespace) -> None:
    """Attention U-Net against U-Net on Fashion-MNIST garments pasted on photographs."""
    shape = (3, 48, 48)
    count, test_count, epochs = (200, 100, 1) if options.quick else (options.images, 500, options.epochs)
    seeds = range(1 if options.quick else 3)
    images, masks = garments(options.fashion, "train", count, 0)
    test_images, test_masks = garments(options.fashion, "t10k", test_count, 1)
    table: dict[str, dict[str, object]] = {}
    means: dict[str, float] = {}
    for name, gated in (("unet", False), ("attention unet", True)):
        found = []
        for seed in seeds:
            torch.manual_seed(seed)
            net = network(unet(gated), shape)
            train(
                net, images, lambda output, part: F.binary_cross_entropy_with_logits(output, masks[part]), seed, epochs
            )
            found.append(iou(outputs(net, test_images), test_masks))
        means[name] = statistics.mean(found)
        table[name] = {
            "iou": round(means[name], 4), "seeds": [round(one, 4) for one in found],
            "mega_macs": round(mega_macs(net, shape), 2), "parameters": sum(p.numel() for p in net.parameters()),
        }  # fmt: skip
        print(name, table[name], file=sys.stderr, flush=True)
    emit(
        "network_blocks segmentation", value=means["attention unet"], baseline=means["unet"], n=len(seeds), epochs=epochs,
        target="IoU not below the plain U-Net", holds=means["attention unet"] >= means["unet"], images=len(images),
        test_images=len(test_images), points=round(100 * (means["attention unet"] - means["unet"]), 2), networks=table,
    )  # fmt: skip


def blur(options: argparse.Namespace) -> None:
    """CPU seconds of a training step with blur (sigma 1) after each residual block over one where it is off."""
    torch.manual_seed(0)
    nets = {name: network(RESIDUAL, (3, 32, 32), width=options.width) for name in ("off", "control", "on")}
    set_blur(nets["on"], 1.0)
    images = torch.randn(16, 3, 32, 32)
    rounds = 5 if options.quick else 30
    ratios: dict[str, list[float]] = {"control": [], "on": []}
    for number in range(rounds + 1):
        spent = {}
        for name, net in nets.items():
            start = time.process_time()
            net(images)["logits"].square().mean().backward()
            spent[name] = time.process_time() - start
        if number:  # the first is the warm-up
            for name, values in ratios.items():
                values.append(spent[name] / spent["off"])
    value = statistics.median(ratios["on"])
    emit(
        "network_blocks blur", value=value, baseline=1.0, target="training step <= 1.10 x without blur", holds=value <= 1.1,
        n=rounds, control=statistics.median(ratios["control"]), width=options.width,
    )  # fmt: skip


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    for command in (convolution, segmentation, blur):
        added = commands.add_parser(command.__name__, help=(command.__doc__ or "").split(".")[0])
        added.set_defaults(command=command)
        added.add_argument("--quick", action="store_true")
        if command is not blur:
            added.add_argument("--epochs", type=int, default=6)
            added.add_argument("--images", type=int, default=5_000 if command is convolution else 1_500)
        if command is convolution:
            added.add_argument("--path", type=Path, required=True, help="the tar of CIFAR-10-JPEG")
        if command is segmentation:
            default = Path("/usr/share/datasets/fashion-mnist")  # where Debian's dataset-fashion-mnist puts it
            added.add_argument("--fashion", type=Path, default=default, help="folder of the four idx files")
        if command is blur:
            added.add_argument("--width", type=int, default=64)
    options = parser.parse_args()
    torch.set_num_threads(1)
    options.command(options)


if __name__ == "__main__":
    main()
