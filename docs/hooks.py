"""Pages that are made from other files: MkDocs calls `on_files` and `on_page_markdown`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

from mkdocs.structure.files import File, Files

from rl_lnlstm.commands.options import COMMANDS

HELP = "<!-- the help of each command -->"
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


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Puts the help of each command in the place of `HELP`."""
    return markdown.replace(HELP, "\n\n".join(map(help_of, COMMANDS))) if HELP in markdown else markdown


def help_of(command: str) -> str:
    """A section with the help of a command."""
    text = subprocess.run(
        [sys.executable, "-m", "rl_lnlstm", command, "--help"],
        env={**os.environ, "COLUMNS": "88", "NO_COLOR": "1"},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    ).stdout
    return f"## rl-lnlstm {command}\n\n```text\n{text.strip()}\n```"
