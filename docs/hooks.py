"""Shows the notebooks as pages of the site: MkDocs calls `on_files`."""

from __future__ import annotations

import json
from typing import Any

from mkdocs.structure.files import File, Files

DOWNLOAD = '[Download this notebook]({name}){{ download="{name}" .md-button }}'


def on_files(files: Files, config: Any) -> Files:
    """Adds a page `notebooks/NAME.md` for each `notebooks/NAME.ipynb`."""
    for file in list(files):
        if file.src_uri.endswith(".ipynb"):
            page = file.src_uri.removesuffix("ipynb") + "md"
            files.append(File.generated(config, page, content=as_markdown(file.content_string, file.src_uri)))
    return files


def as_markdown(notebook: str, path: str) -> str:
    """The cells of a notebook and their outputs: text, and PNG pictures."""
    parts = []
    for cell in json.loads(notebook)["cells"]:
        source = "".join(cell["source"])
        parts.append(source if cell["cell_type"] == "markdown" else f"```python\n{source}\n```")
        for output in cell.get("outputs", []):
            if "text" in output:
                parts.append(f"```text\n{''.join(output['text'])}```")
            elif "image/png" in output["data"]:
                picture = "".join(output["data"]["image/png"]).replace("\n", "")
                parts.append(f"![Output of the code above](data:image/png;base64,{picture})")
    parts.append(DOWNLOAD.format(name=path.rpartition("/")[2]))
    return "\n\n".join(parts)
