"""The page in English and Chinese: the English text is the key, and `zh.json` has the Chinese of each."""

import json
import re
from collections.abc import Iterable, Mapping, MutableMapping
from functools import cache
from importlib.resources import files
from typing import Any

import gradio as gr
from gradio.context import Context, LocalContext
from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Receive, Scope, Send

from gpt2lab import errors
from gpt2lab.errors import LabError
from gpt2lab.inspection.heads import SCORES

LANGUAGES = {"en": "English", "zh": "中文"}
COOKIE = "gpt2lab_language"  # what the switch chose
TEXTS = gr.I18n(en={}, zh={})  # of the labels of built pages: gradio translates them in the browser
USED_IN_VIEWS = re.compile(r'\b(?:t|sentence)\(\s*"((?:[^"\\]|\\.)*)"')


@cache
def catalogue() -> dict[str, str]:
    """Return the Chinese of every English text."""
    return json.loads((files("gpt2lab.app") / "zh.json").read_text(encoding="utf-8"))


def translated(text: str, language: str, values: Mapping[str, Any]) -> str:
    """Return an English template in a language, with its fields filled in; in English where there is no translation."""
    if isinstance(text, errors.Message):
        values, text = text.values, text.template
    template = catalogue().get(text, text) if language == "zh" else text
    shown = {
        name: translated(value, language, {}) if isinstance(value, errors.Message) else value
        for name, value in values.items()
    }
    return template.format(**shown) if values else template


def visitor_language() -> str:
    """Return "en" or "zh" for the visitor whose event is handled: the switch's choice, else that of the browser."""
    request = LocalContext.request.get(None)
    if request is None:
        return "en"
    chosen = request.cookies.get(COOKIE)
    asked = chosen if chosen in LANGUAGES else request.headers.get("accept-language", "")
    return "zh" if asked.lower().startswith("zh") else "en"


def _(text: str, /, **values: Any) -> Any:
    """Return a text for the visitor, in the language of the event's page.

    While a page is built there is no visitor yet: then it is a `gr.I18n` text, which the browser translates.
    text  an English template with fields as str.format takes them, or a Message of the package
    Example: _("{n} tokens", n=3) -> "3 tokens" or "3 个词元"
    """
    if LocalContext.request.get(None) is None and Context.root_block is not None:
        english = translated(text, "en", values)
        for language, texts in TEXTS.translations.items():
            texts[english] = translated(text, language, values)
        return TEXTS(english)
    return translated(text, visitor_language(), values)


def said(error: LabError) -> str:
    """Return what an error says, in the visitor's language."""
    return _(error.template, **error.values)


def spoken(value: Any) -> Any:
    """Return a JSON value with its Messages in the visitor's language; in English while a page is built."""
    if isinstance(value, dict):
        return {key: spoken(item) for key, item in value.items()}
    if isinstance(value, list):
        return [spoken(item) for item in value]
    return translated(value, visitor_language(), {}) if isinstance(value, errors.Message) else value


def listed(items: Iterable[str]) -> str:
    """Return items in a row. Example: listed(["a", "b"]) -> "a, b" """
    return _(", ").join(items)


class StartScript:
    """ASGI middleware that puts a script at the top of the page: gradio's own `head` runs after it has chosen a language."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on; put the script into the page."""
        script = start_script()

        async def sent(message: MutableMapping[str, Any]) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                if "content-length" in headers:
                    headers["content-length"] = str(int(headers["content-length"]) + len(script))
            elif message["type"] == "http.response.body" and b"<head>" in message["body"]:
                message["body"] = message["body"].replace(b"<head>", b"<head>" + script, 1)
            await send(message)

        is_page = scope["type"] == "http" and scope["method"] == "GET" and scope["path"] == "/"
        await self.app(scope, receive, sent if is_page else send)


@cache
def start_script() -> bytes:
    """Return what the page starts with: the language that the switch chose, for gradio, and the Chinese of the views."""
    static = files("gpt2lab.widgets") / "static"
    sources = [module.read_text(encoding="utf-8") for module in static.iterdir() if module.name.endswith(".js")]
    used = {json.loads(f'"{text}"') for source in sources for text in USED_IN_VIEWS.findall(source)}
    used |= {str(text) for score in SCORES.values() for text in score}
    texts = json.dumps({text: catalogue()[text] for text in sorted(used) if text in catalogue()}, ensure_ascii=False)
    start = START.replace("COOKIE", COOKIE).replace("TOAST", catalogue()["Error"])
    return start.replace("TEXTS", texts.replace("</", "<\\/")).encode()


START = """<script>
{
  const language = document.cookie.match(/(?:^|; )COOKIE=(en|zh)/)?.[1] ?? navigator.language.toLowerCase();
  const chinese = language.startsWith("zh");  // gradio knows zh-CN and zh-TW, but not zh alone
  if (chinese || language === "en") Object.defineProperty(navigator, "language", { get: () => chinese ? "zh-CN" : "en" });
  if (chinese) globalThis.gpt2labTexts = TEXTS;
  if (chinese) {  // gradio 6 titles a toast with its English kind, whatever the error's title is
    const style = document.createElement("style");
    style.textContent = `.toast-title.error { font-size: 0 !important; } .toast-title.error .toast-count { font-size: var(--text-lg); }
      .toast-title.error::before { content: "TOAST"; font-size: var(--text-lg); }`;
    document.head.append(style);
  }
}
</script>"""
SWITCH = f"""() => {{
  const to = navigator.language.toLowerCase().startsWith("zh") ? "en" : "zh";
  document.cookie = `{COOKIE}=${{to}}; max-age=31536000; path=/; samesite=lax`;
  location.reload();
}}"""
