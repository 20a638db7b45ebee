"""A report as a list of blocks, written as Markdown and as one HTML file with its pictures inside."""

import base64
import html
import pathlib
import re
from collections.abc import Sequence
from typing import NamedTuple


class Heading(NamedTuple):
    level: int
    text: str


class Text(NamedTuple):
    """A paragraph; `code` and **bold** are understood, here and in every cell."""

    text: str


class Bullets(NamedTuple):
    items: Sequence[str]


class Table(NamedTuple):
    """Cells of text; columns after the first `names` ones are aligned to the right."""

    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    names: int = 1
    folded: str = ""  # the line to click on, where the table is to be hidden at first


class Picture(NamedTuple):
    """A file beside the document."""

    name: str
    caption: str


Element = Heading | Text | Bullets | Table | Picture

STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; color: #222; max-width: 1100px; margin: 2em auto; padding: 0 1em; }
h1, h2, h3 { line-height: 1.2; margin-top: 1.8em; }
h2 { border-bottom: 1px solid #ccc; padding-bottom: .2em; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: 14px; margin: 1em 0; }
th, td { padding: .25em .7em; border-bottom: 1px solid #ddd; text-align: left; white-space: nowrap; }
th { border-bottom: 2px solid #888; vertical-align: bottom; }
.number { text-align: right; font-variant-numeric: tabular-nums; }
code { background: #f2f2f2; padding: 0 .2em; border-radius: 3px; }
figure { margin: 1em 0; } img { max-width: 100%; height: auto; } figcaption { color: #555; font-size: 14px; }
summary { cursor: pointer; color: #1a5fb4; }
"""


def markdown(blocks: Sequence[Element]) -> str:
    """The document as Markdown; pictures are links to files beside it."""
    return "\n\n".join(map(_markdown, blocks)) + "\n"


def _markdown(block: Element) -> str:
    match block:
        case Heading(level, text):
            return f"{'#' * level} {text}"
        case Text(text):
            return text
        case Bullets(items):
            return "\n".join(f"- {item}" for item in items)
        case Picture(name, caption):
            return f"![{pathlib.Path(name).stem}]({name})\n\n*{caption}*"
        case Table(header, rows, names, folded):
            lines = [header, ["---"] * names + ["---:"] * (len(header) - names), *rows]
            cells = [[cell.replace("|", "\\|") for cell in line] for line in lines]
            table = "\n".join(f"| {' | '.join(line)} |" for line in cells)
            return f"<details><summary>{html.escape(folded)}</summary>\n\n{table}\n\n</details>" if folded else table


def webpage(title: str, blocks: Sequence[Element], folder: pathlib.Path) -> str:
    """The document as one HTML file; the pictures are read from `folder` and put inside."""
    body = "\n".join(_html(block, folder) for block in blocks)
    return (
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n<title>{html.escape(title)}</title>\n'
        f"<style>{STYLE}</style>\n</head>\n<body>\n{body}\n</body>\n</html>\n"
    )


def _html(block: Element, folder: pathlib.Path) -> str:
    match block:
        case Heading(level, text):
            return f"<h{level}>{_inline(text)}</h{level}>"
        case Text(text):
            return f"<p>{_inline(text)}</p>"
        case Bullets(items):
            return "<ul>\n" + "\n".join(f"<li>{_inline(item)}</li>" for item in items) + "\n</ul>"
        case Picture(name, caption):
            data = base64.b64encode((folder / name).read_bytes()).decode()
            image = f'<img src="data:image/png;base64,{data}" alt="{html.escape(caption)}">'
            return f"<figure>{image}\n<figcaption>{_inline(caption)}</figcaption></figure>"
        case Table(header, rows, names, folded):

            def line(cells, tag):
                kinds = ["" if column < names else ' class="number"' for column in range(len(cells))]
                inside = (f"<{tag}{kind}>{_inline(cell)}</{tag}>" for kind, cell in zip(kinds, cells, strict=True))
                return f"<tr>{''.join(inside)}</tr>"

            body = "\n".join(line(cells, "td") for cells in rows)
            table = f'<div class="wide"><table>\n{line(header, "th")}\n{body}\n</table></div>'
            return f"<details><summary>{_inline(folded)}</summary>\n{table}\n</details>" if folded else table


def _inline(text: str) -> str:
    text = html.escape(text, quote=False)
    text = re.sub(r"`([^`]+)`", r"<code>\1</code>", text)
    return re.sub(r"\*\*([^*]+)\*\*", r"<strong>\1</strong>", text)
