"""Self-contained, offline HTML documents: nothing in them can reach the network or the page around them."""

import html
import json
from dataclasses import dataclass, field
from pathlib import Path

from gpt2lab.files import write_bytes

# No network requests; only inline scripts and styles.
POLICY = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data:"
DARK = (
    "color-scheme: dark; --ink: #e4e4e7; --paper: #18181b; --line: #3f3f46; --soft: #a1a1aa; "
    "--accent: #a5b4fc; --hot: 206, 72, 16; --cold: 59, 110, 225;"
)
LIGHT = "color-scheme: light; --ink: #18181b; --paper: #ffffff; --line: #d4d4d8; --soft: #52525b;"
THEMES = {
    "light": f":root {{ {LIGHT} }}",
    "dark": f":root {{ {DARK} }}",
    "auto": f":root {{ {LIGHT} }} @media (prefers-color-scheme: dark) {{ :root {{ {DARK} }} }}",
}
STYLE = """
body { margin: 0; padding: 12px; background: var(--paper); color: var(--ink);
       font: 15px/1.5 system-ui, sans-serif; overflow-wrap: anywhere; }
"""
# of documents that are read from top to bottom
ARTICLE = """
body { max-width: 960px; margin: auto; padding: 24px 16px; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.15rem; margin-top: 2rem; }
table { border-collapse: collapse; } th, td { border: 1px solid var(--line); padding: 4px 12px; text-align: left; }
th { overflow-wrap: normal; } td { overflow-wrap: break-word; }
.table { overflow-x: auto; }
img { max-width: 100%; border-radius: 6px; } figure { margin: 1rem 0; }
figcaption, .soft { color: var(--soft); }
"""


@dataclass(frozen=True)
class Page:
    """A whole HTML document. In a notebook it shows itself, sandboxed; `save` writes it to a file."""

    html: str = field(repr=False)
    height: int = 600

    def iframe(self) -> str:
        """The document in a frame that runs its scripts and saves files, but cannot touch what is around it; height in pixels."""
        source = html.escape(self.html, quote=True)
        return (
            f'<iframe sandbox="allow-scripts allow-downloads" srcdoc="{source}" title="interactive view" '
            f'style="width: 100%; height: {self.height}px; border: 0"></iframe>'
        )

    def _repr_html_(self) -> str:
        return self.iframe()

    def save(self, path: str | Path) -> Path:
        """Write the document, whole or not at all."""
        return write_bytes(path, self.html.encode())


def document(title: str, body: str, *, style: str = "", theme: str = "auto", height: int = 600) -> Page:
    """A page from its parts.

    title  plain text; it is escaped here
    body   HTML, in which the caller has escaped every text that is not its own
    theme  "light", "dark", or "auto" for what the reader's system prefers
    """
    return Page(
        f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{POLICY}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{html.escape(title)}</title>
<style>{THEMES[theme]}{STYLE}{style}</style></head>
<body>
{body}
</body></html>
""",
        height,
    )


def script_json(value) -> str:
    """JSON that can stand inside a `<script>`: no text in it can end the script.

    Example: script_json("</script>") -> '"\\\\u003c/script>"'
    """
    return json.dumps(value, ensure_ascii=True, separators=(",", ":")).replace("<", "\\u003c")
