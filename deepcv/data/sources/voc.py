"""Pascal VOC's XML: `{source: voc, annotations: Annotations, images: JPEGImages, splits: ImageSets/Main}` (the defaults)."""

from collections import defaultdict
from pathlib import PurePosixPath
from xml.etree.ElementTree import Element, TreeBuilder
from xml.parsers import expat

from deepcv.data.samples import DataError
from deepcv.data.sources.boxes import Box, Labelled, check_inside, declared_size, fitting
from deepcv.data.sources.description import Description
from deepcv.data.sources.source import Source, check_classes, source_of, unlisted
from deepcv.data.sources.tree import Tree

_LISTS = {"train": "train", "val": "val", "test": "test", "trainval": "train"}


def voc(tree: Tree, description: Description) -> Source:
    """Read the images that have an XML file of the same stem; an image's class is `boxes.image_label`. Raises DataError.

    VOC counts pixels from 1 and includes the last one; boxes here count from 0 and exclude it. Where the folder of `splits`
    holds train.txt (or trainval.txt), val.txt or test.txt, only images that one of them names are taken.
    """
    description.only("annotations", "images", "splits", "without_boxes", "unlisted")
    folder = description.place("annotations", "Annotations")
    pictures = description.place("images", "JPEGImages")
    split_of, problems = _splits(tree, description.place("splits", "ImageSets/Main"))
    image_of: dict[str, PurePosixPath] = {}
    for name in tree.files:
        if name.parent == pictures:
            if name.stem in image_of:
                problems["images of one stem"].append(f"{image_of[name.stem]} and {name}")
            image_of[name.stem] = name
    wanted = {name for name in tree.files if name.parent == folder and name.suffix.lower() == ".xml"}
    if not wanted:
        raise DataError(f"{description.origin}: there is no XML file in {folder}")
    labelled = Labelled(description)
    for stem in set(split_of) - {name.stem for name in wanted}:
        problems["images in a split's list without XML"].append(stem)
    for name, content in tree.contents(wanted):
        if split_of and name.stem not in split_of:
            continue
        image = image_of.get(name.stem)
        if image is None:
            problems[f"XML files without image in {pictures}"].append(str(name))
            continue
        labelled.named.add(image)
        try:
            root = _parse(content)
            size = declared_size(root.findtext("size/width"), root.findtext("size/height"))
            labelled.add(image, split_of.get(name.stem), _boxes(root, size), size)
        except (ValueError, expat.ExpatError) as error:
            problems["bad XML files"].append(f"{name} ({error})")
    plan = labelled.finish({**problems, **unlisted(tree, description, [pictures], labelled.named)})
    check_classes(description.origin, plan.values(), every_split=False)
    return fitting(source_of(tree, plan), description.origin, plan)


def _splits(tree: Tree, folder: PurePosixPath) -> tuple[dict[str, str], defaultdict[str, list[object]]]:
    """Return the split of each stem in the lists, and stems that two lists hold."""
    lists = {name.stem: name for name in tree.files if name.parent == folder and name.suffix == ".txt"}
    if "train" in lists:
        lists.pop("trainval", None)  # both of the others
    split_of: dict[str, str] = {}
    problems: defaultdict[str, list[object]] = defaultdict(list)
    for stem, split in _LISTS.items():
        if stem in lists:
            for line in tree.read(lists[stem]).decode("utf-8", "replace").splitlines():
                name = line.split()[0] if line.strip() else ""
                if name and split_of.setdefault(name, split) != split:
                    problems["images in two splits"].append(name)
    return split_of, problems


def _boxes(root: Element, size: tuple[float, float] | None) -> list[Box]:
    """Raise ValueError where the XML is not VOC's, or a box leaves an image of this width and height, where they are known."""
    found = []
    for item in root.findall("object"):
        label = (item.findtext("name") or "").strip()
        corners = [item.findtext(f"bndbox/{side}") for side in ("xmin", "ymin", "xmax", "ymax")]
        if not label or None in corners:
            raise ValueError("an object without name or without bndbox of xmin, ymin, xmax, ymax")
        left, top, right, bottom = (float(corner or "") for corner in corners)
        check_inside((left - 1, top - 1, right, bottom), size)
        flags = ("difficult",) if (item.findtext("difficult") or "0").strip() == "1" else ()
        found.append(Box(label, (max(0.0, left - 1), max(0.0, top - 1), right, bottom), flags))
    return found


def _parse(content: bytes) -> Element:
    """Parse without a document type: its entities could blow up or read other files."""
    builder = TreeBuilder()
    parser = expat.ParserCreate()

    def refuse(*_: object) -> None:
        raise ValueError("a document type with its entities is refused")

    parser.StartDoctypeDeclHandler = refuse
    parser.StartElementHandler = lambda tag, attributes: builder.start(tag, attributes) and None
    parser.EndElementHandler = lambda tag: builder.end(tag) and None
    parser.CharacterDataHandler = builder.data
    parser.Parse(content, True)
    return builder.close()
