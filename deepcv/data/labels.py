"""Other names for classes, several of which may become one."""

from collections.abc import Iterator, Mapping
from difflib import get_close_matches

from deepcv.data.samples import DataError, Sample
from deepcv.data.sources.source import Source


def relabelled(source: Source, names: Mapping[str, str]) -> Source:
    """Give the source with classes renamed, those of equal new names merged; their order is that of the first of each.

    Raises DataError where `names` has a class that the source has not, or leaves one class.
    """
    if not names:
        return source
    if unknown := [name for name in names if name not in source.classes]:
        near = get_close_matches(unknown[0], source.classes, n=1)
        hint = f"is it {near[0]!r}?" if near else f"the classes are {', '.join(source.classes[:20])}"
        raise DataError(f"ingest.labels: there is no class {unknown[0]!r} in the dataset; {hint}")
    classes = tuple(dict.fromkeys(names.get(name, name) for name in source.classes))
    if len(classes) < 2:
        raise DataError(f"ingest.labels: leaves one class ({classes[0]}); training needs two or more")

    def samples() -> Iterator[Sample]:
        for sample in source.read():
            yield sample._replace(label=names.get(sample.label, sample.label))

    return Source(classes, source.count, samples, source.check)
