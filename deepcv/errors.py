"""The base of DeepCV's errors.

DeepcvError
├── home.NoProjectError              the working directory belongs to no project
├── params.base.ParamsError          params.yaml is not what its sections say
├── data.samples.DataError           a dataset cannot be used
├── data.packed.ShardError           a shard is missing or damaged
├── nn.spec.SpecError                a network file is wrong
├── nn.classifier.ModelFileError     a model file is missing or damaged
├── nn.network_file.NetworkFileError a file of a network or of weights is missing or damaged
├── nn.weights.WeightsError          weights cannot be had, or do not fit
├── nn.parts.PartError               a network has no such part, or two do not fit each other
├── shared_parts.StaleError          a part was written by another process since it was read
├── serving.onnx_export.ExportError  the network has no ONNX form
├── serving.onnx_export.ParityError  the exported model computes something else
├── tracking.RegistryError           the registry has not what was asked for
└── search.manager.SearchError       a search did not end well
"""


class DeepcvError(Exception):
    """An error whose message tells a person what was expected, what was found and what to do; it needs no traceback."""
