"""Tables as HTML and CSV."""

import csv
import html
import io
from collections.abc import Iterable, Sequence

FORMULA = ("=", "+", "-", "@", "\t", "\r")


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return an HTML table of plain strings."""
    cells = "".join(f"<th>{html.escape(cell)}</th>" for cell in head)
    lines = "".join("<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f'<div class="table"><table><thead><tr>{cells}</tr></thead><tbody>{lines}</tbody></table></div>'


def csv_bytes(head: Sequence[str], rows: Iterable[Iterable]) -> bytes:
    """Return the bytes of a CSV file.

    A spreadsheet would run a text that begins with =, +, - or @ as a formula: it gets a single quote before it.
    """
    out = io.StringIO()
    writer = csv.writer(out)
    writer.writerow([safe(cell) for cell in head])
    writer.writerows([safe(cell) for cell in row] for row in rows)
    return out.getvalue().encode()


def safe(cell):
    """A cell that no spreadsheet takes for a formula; numbers stay as they are. Example: safe("=1+1") -> "'=1+1" """
    return f"'{cell}" if isinstance(cell, str) and cell.startswith(FORMULA) else cell
