"""Write docs/network.schema.json: the JSON Schema of network files, as `deepcv ops --schema` prints it.

Run by `make schema`. A network file names it in its first line: `# yaml-language-server: $schema=../docs/network.schema.json`.
"""

from pathlib import Path

from deepcv.nn.network_schema import as_json

if __name__ == "__main__":
    Path("docs/network.schema.json").write_text(as_json(), encoding="utf-8")
