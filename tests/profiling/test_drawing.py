"""Blocks, their layout, and the graph as table, Mermaid, SVG and page."""

import re
from dataclasses import replace
from html.parser import HTMLParser
from itertools import combinations, pairwise

import pytest
import toys
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, fx, nn
from torchvision import models

from deepcv.nn import spec
from deepcv.nn.spec.expand import ZOO
from deepcv.profiling import page, report
from deepcv.profiling.amounts import rate, short
from deepcv.profiling.blocks import Block, blocks, overview, parts
from deepcv.profiling.describe import as_text, describe, table
from deepcv.profiling.drawing import draw
from deepcv.profiling.layout import HEIGHT, WIDTH, layered
from deepcv.profiling.mermaid import mermaid
from deepcv.profiling.observe import NodeProfile, observe

EVIL = '"]; click n0 "javascript:alert(1)" <script>alert(1)</script> & #quot; `x`'


@pytest.fixture(scope="module")
def digits() -> fx.GraphModule:
    return spec.build(spec.load(toys.REPOSITORY / "networks" / "digits.yaml", {}), (1, 8, 8), 10)


@pytest.fixture(scope="module")
def profile(digits: fx.GraphModule) -> report.Profile:
    return report.profile(digits, name="digits.yaml", repeats=2)


def test_describe(digits: fx.GraphModule) -> None:
    lines = describe(digits).splitlines()
    assert [line.split()[0] for line in lines if line[0].isalpha()] == [
        "node", "input", "stem", "res1.first", "res1.second", "res1.link", "down", "pool", "head", "total",
    ]  # fmt: skip
    assert re.split(r"  +", lines[4]) == [
        "res1.first",
        "Conv2d + BatchNorm2d + relu",
        "32×8×8",
        "9,280",
        "590 k",
        "5",
        "24.6 kB",
    ]
    assert re.split(r"  +", lines[-1]) == ["total", "38,122", "1.49 M", "peak 24.8 kB"]


@pytest.mark.parametrize("width", [60, 80, 200])
def test_a_table_fits_where_figures_leave_room(digits: fx.GraphModule, width: int) -> None:
    nodes = [replace(node, id=f"a_very_long_name_of_a_template.{node.id}") for node in observe(digits)]
    lines = table(blocks(nodes), 1, 1, 1, width=width).splitlines()
    assert max(map(len, lines)) <= max(width, 78)
    assert any("…" in line for line in lines) == (width < 110)


def test_text_names_every_counter_and_device(profile: report.Profile) -> None:
    text = as_text(profile)
    for word in ("torch.utils.flop_counter", "torchinfo", "fvcore", "cpu, 1 thread, batch 1", "slowest nodes on cpu"):
        assert word in text
    assert "DISAGREES" not in text


def test_mermaid_of_digits(digits: fx.GraphModule) -> None:
    assert mermaid(blocks(observe(digits))) == (
        "flowchart TD\n"
        '  n0["input<br/>input<br/>1×8×8"]\n'
        '  n1["stem<br/>Conv2d + BatchNorm2d + relu<br/>32×8×8"]\n'
        '  subgraph g2["res1"]\n'
        '    n2["res1.first<br/>Conv2d + BatchNorm2d + relu<br/>32×8×8"]\n'
        '    n3["res1.second<br/>Conv2d + BatchNorm2d + relu<br/>32×8×8"]\n'
        '    n4["res1.link<br/>add<br/>32×8×8"]\n'
        "  end\n"
        '  n5["down<br/>Conv2d + BatchNorm2d + relu<br/>64×4×4"]\n'
        '  n6["pool<br/>mean<br/>64"]\n'
        '  n7["head<br/>Linear<br/>10"]\n'
        "  n0 --> n1\n  n1 --> n2\n  n2 --> n3\n  n1 --> n4\n  n3 --> n4\n  n4 --> n5\n  n5 --> n6\n  n6 --> n7\n"
        '  n7 --> o0(["logits"])\n'
    )


class Tags(HTMLParser):
    """Counts start tags, and checks that what is opened is closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.seen: list[str] = []
        self.open: list[str] = []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append(tag)
        assert not any(name.startswith("on") or name in ("href", "src") for name, _ in attrs)
        if tag != "meta":
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        self.handle_endtag(tag) if tag != "meta" else None

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_names_cannot_leave_their_place(profile: report.Profile) -> None:
    nodes = tuple(
        replace(node, id=f"{EVIL}.{node.name}", kind=EVIL, shares=EVIL, outputs=node.outputs and (EVIL,))
        for node in profile.nodes
    )
    evil = replace(
        profile, name=EVIL, nodes=nodes, opinions=tuple(replace(one, told=EVIL, counter=EVIL) for one in profile.opinions),
        timings=tuple(replace(one, device=EVIL) for one in profile.timings),
    )  # fmt: skip
    plain, text = Tags(page.html(profile)), page.html(evil)
    assert "<script>" not in text
    assert not {"script", "a", "img", "link", "iframe"} & set(Tags(text).seen)
    assert {"svg", "table", "details", "pre"} <= set(plain.seen)
    for line in mermaid(blocks(nodes)).splitlines():
        assert re.fullmatch(
            r'flowchart TD| *end| *subgraph g\d+\["[^"<>]*"\]| *n\d+\["([^"<>`]|<br/>)*"\]|  n\d+ --> n\d+'
            r'|  n\d+ --> o\d+\(\["[^"<>`]*"\]\)',
            line,
        )


def test_the_page_asks_for_nothing_from_outside(profile: report.Profile) -> None:
    text = page.html(profile)
    assert not re.search(r"https?://|@import|url\(", text)
    assert "default-src 'none'" in text


def test_an_overview_of_a_large_network() -> None:
    nodes = observe(fx.symbolic_trace(models.resnet18(weights=None)), (3, 64, 64))
    rows, fewer = blocks(nodes), overview(nodes)
    assert len(rows) == len(nodes)
    names = [row.name for row in fewer]
    assert names[5:13] == [f"layer{one}.{other}" for one in (1, 2, 3, 4) for other in (0, 1)]
    assert [row.sources for row in fewer] == [(), *((place,) for place in range(len(fewer) - 1))]
    for figure in ("parameters", "macs", "made_bytes"):
        assert sum(getattr(row, figure) for row in fewer) == sum(getattr(row, figure) for row in rows)
    assert draw(rows).count('class="box"') == len(rows)
    inside = parts(fewer, rows)
    assert list(inside) == [f"layer{one}.{other}" for one in (1, 2, 3, 4) for other in (0, 1)]
    outside, *own = inside["layer2.0"]
    assert (outside.name, outside.kinds, outside.sources) == ("layer1.1.relu", "from outside", ())
    assert [row.name for row in own] == [row.name for row in rows if row.name.startswith("layer2.0.")]
    assert sum(row.macs for row in inside["layer2.0"]) == fewer[names.index("layer2.0")].macs
    assert own[-2].sources == (5, 7)  # the addition: of the second norm and of the shortcut's


def zoo(name: str) -> tuple[NodeProfile, ...]:
    return observe(spec.build(spec.load(ZOO / f"{name}.yaml", {}), (3, 32, 32), 10))


def test_a_block_says_whose_weights_it_shares() -> None:
    nodes = zoo("siamese")
    found = {row.name: row.remarks for row in blocks(nodes) if row.remarks}
    assert found == {f"again.{part}": (f"shares encoder.{part}",) for part in ("stem", "down1", "down2", "project")}
    assert {row.name: row.remarks for row in blocks(nodes, depth=1) if row.remarks} == {"again": ("shares encoder",)}
    assert draw(blocks(nodes, depth=1)).count(">shares encoder<") == 1
    assert "again<br/>11 layers<br/>shares encoder<br/>64" in mermaid(blocks(nodes, depth=1))
    own = [replace(node, parameters=1) for node in nodes]
    assert blocks(own, depth=1)[-1].remarks == ("partly shares encoder",)


def test_outputs_are_drawn_with_their_names() -> None:
    nodes = zoo("resnet-9-exits")
    rows = overview(nodes)
    given = {output: row.name for row in rows for output in row.outputs}
    assert given == {"exit1": "exit1.logits", "exit2": "exit2.logits", "logits": "resnet.logits"}
    assert re.findall(r"<title>output (\w+)</title>", draw(rows)) == [name for row in rows for name in row.outputs]
    assert draw(rows).count('class="output"') == 3
    assert mermaid(rows).count("([") == 3


def test_a_network_without_names_for_its_outputs() -> None:
    class Two(nn.Module):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return x + 1, x * 2

    found = {node.name: node.outputs for node in observe(fx.symbolic_trace(Two()), (3,))}
    assert found == {"x": (), "add": ("output 0",), "mul": ("output 1",)}
    assert observe(fx.symbolic_trace(nn.Sequential(nn.ReLU())), (3,))[-1].outputs == ("output",)


def test_a_collapsed_block_lists_all_the_shapes_that_leave_it() -> None:
    rows = {row.name: row for row in overview(zoo("hrnet-small"))}
    streams = ((16, 32, 32), (32, 16, 16), (64, 8, 8))
    assert rows["stage3.0"].shapes == rows["stage3.1"].shapes == streams
    assert rows["stem"].shapes == ((32, 32, 32),)
    many = replace(rows["stage3.0"], shapes=(*streams, (128, 4, 4), (256, 2, 2)), sources=())
    assert "16×32×32, 32×16×16, 64×8×8" in draw([replace(rows["stage3.0"], sources=())])
    assert re.findall(r'class="quiet"[^>]*>([^<]*)<', draw([many])) == [
        "16×32×32, 32×16×16, 64×8×8",
        "128×4×4, 256×2×2",
    ]
    assert f'height="{HEIGHT + 14}"' in draw([many])


def test_a_wide_graph_shrinks_to_its_place_but_stays_readable(profile: report.Profile) -> None:
    wide = [Block(f"box{place}", "input", (), (), 0, 0, "", 0, 0, 0.0, 1) for place in range(9)]
    width, smallest = map(int, re.findall(r'width="(\d+)" height="\d+" style="min-width:(\d+)px"', draw(wide))[0])
    assert width > 1400
    assert smallest == pytest.approx(0.7 * width, abs=1)
    assert "svg.graph { display: block; margin: 0 auto; max-width: 100%; height: auto; }" in page.html(profile)


def test_a_long_name_gives_way_in_the_middle() -> None:
    names = ["stage2.down.branch.second", "stage2.down.first", "a" * 30]
    rows = [Block(name, "input", (), (), 0, 0, "", 0, 0, 0.0, 1) for name in names]
    shown = re.findall(r'class="name"[^>]*>([^<]*)<', draw(rows))
    assert shown == ["stage2…branch.second", "stage2.down.first", "…" + "a" * 21]


def test_long_layers_are_broken_before_the_edge_of_the_box() -> None:
    row = Block("stem", "2 Conv2d + 2 BatchNorm2d + 2 relu", (), (), 0, 0, "", 0, 0, 0.0, 1)
    assert re.findall(r'class="words"[^>]*>([^<]*)<', draw([row])) == ["2 Conv2d + 2 BatchNorm2d", "2 relu"]


def test_links_go_through_what_is_not_drawn() -> None:
    nodes = observe(fx.symbolic_trace(models.shufflenet_v2_x0_5(weights=None)), (3, 64, 64))
    rows = blocks(nodes)
    assert any(node.shape is None for node in nodes)  # sizes
    assert all(row.sources for row in rows[1:])


graphs = st.lists(st.sets(st.integers(0, 30), max_size=4), min_size=1, max_size=25).map(
    lambda drawn: [
        sorted({source % place for source in sources}) if place else [] for place, sources in enumerate(drawn)
    ]
)


@settings(max_examples=100, deadline=None)
@given(graphs, st.data())
def test_boxes_of_several_heights_do_not_overlap(sources: list[list[int]], data: st.DataObject) -> None:
    heights = data.draw(st.lists(st.integers(20, 120), min_size=len(sources), max_size=len(sources)))
    laid = layered(sources, heights)
    for (one, (x, y)), (other, (other_x, other_y)) in combinations(enumerate(laid.boxes), 2):
        assert abs(x - other_x) >= WIDTH - 1e-6 or abs(y - other_y) >= (heights[one] + heights[other]) / 2
    for height, (_, y) in zip(heights, laid.boxes, strict=True):
        assert height <= laid.bands[y]
        assert height / 2 <= y <= laid.height - height / 2
    for points in laid.links.values():
        assert all(y in laid.bands for _, y in points)
        assert all(below > above for (_, above), (_, below) in pairwise(points))


@settings(max_examples=100, deadline=None)
@given(graphs)
def test_boxes_do_not_overlap_and_links_go_down(sources: list[list[int]]) -> None:
    laid = layered(sources)
    for (x, y), (other_x, other_y) in combinations(laid.boxes, 2):
        assert abs(x - other_x) >= WIDTH - 1e-6 or abs(y - other_y) >= HEIGHT
    for x, y in laid.boxes:
        assert WIDTH / 2 - 1e-6 <= x <= laid.width - WIDTH / 2 + 1e-6
        assert HEIGHT / 2 <= y <= laid.height - HEIGHT / 2
    assert set(laid.links) == {(source, target) for target, own in enumerate(sources) for source in own}
    for (source, target), points in laid.links.items():
        assert (points[0], points[-1]) == (laid.boxes[source], laid.boxes[target])
        steps = {round(below - above, 6) for (_, above), (_, below) in pairwise(points)}
        assert len(steps) == 1  # a layer at a time
        assert min(steps) > HEIGHT


def test_a_chain_is_straight() -> None:
    laid = layered([[], [0], [1], [1, 2], [3]])
    assert max(x for x, _ in laid.boxes) - min(x for x, _ in laid.boxes) < 2


def test_a_drawing_of_nothing_to_count() -> None:
    row = Block("input", "input", (), (), 0, 0, "", 0, 0, 0.0, 1)
    assert "scalar" in draw([row])
    assert 'class="bar"' not in draw([row])


@pytest.mark.parametrize(
    ("count", "expected"),
    [
        (0, "0"),
        (999, "999"),
        (1000, "1.00 k"),
        (27_444, "27.4 k"),
        (999_499, "999 k"),
        (999_500, "1.00 M"),
        (1.814e9, "1.81 G"),
    ],
)
def test_short(count: float, expected: str) -> None:
    assert short(count) == expected


def test_rate() -> None:
    assert [rate(value) for value in (7.129, 99.949, 4833.6)] == ["7.13", "99.9", "4,834"]
    assert short(512, "B") == "512 B"
    assert short(24_832, "B") == "24.8 kB"
