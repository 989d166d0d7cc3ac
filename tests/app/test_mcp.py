"""The endpoints as tools of the Model Context Protocol."""

import ast
import asyncio

import pytest

from gpt2lab.app import app as page
from gpt2lab.app import build_app, serve
from gpt2lab.errors import LabError

ENDPOINTS = ["perplexity", "surprisal", "attention", "head_scores", "logit_lens", "generate", "ablate"]
ENDPOINTS += ["estimate", "start_run", "run_status"]


def test_a_client_lists_the_tools_and_calls_one(tmp_path):
    pytest.importorskip("mcp")
    demo = build_app(tmp_path)
    url = serve(demo, block=False, mcp=True)
    try:
        tools, answer, refused = asyncio.run(conversation(f"{url}gradio_api/mcp/"))
    finally:
        demo.close(verbose=False)
    assert [tool.name for tool in tools] == ENDPOINTS
    for tool in tools:
        assert len(tool.description) > 80
        assert all(one["description"] for one in tool.inputSchema["properties"].values()), tool.name
    assert tools[1].inputSchema["required"] == ["text"]
    found = ast.literal_eval(answer.content[0].text)
    assert found["tokens"] == ["The", "·moon", "·is", "·round", "."]
    assert refused.isError
    assert refused.content[0].text.startswith("model '/etc' is unknown")


async def conversation(url):
    """(tools, an answer, an error) of a server."""
    from mcp import ClientSession
    from mcp.client.streamable_http import streamable_http_client

    async with streamable_http_client(url) as (reading, writing, _), ClientSession(reading, writing) as session:
        await session.initialize()
        tools = (await session.list_tools()).tools
        answer = await session.call_tool("surprisal", {"text": "The moon is round."})
        return tools, answer, await session.call_tool("surprisal", {"text": "x", "model": "/etc"})


def test_without_the_package_a_line_says_what_to_install(monkeypatch, run_cli, tmp_path):
    monkeypatch.setattr(page, "find_spec", lambda name: None)
    with pytest.raises(LabError, match=r"pip install 'gpt2lab\[mcp\]'"):
        serve(build_app(tmp_path), mcp=True)
    status, out, err = run_cli("app", "--mcp", "--runs", tmp_path)
    assert (status, out) == (2, "")
    assert "pip install" in err.strip().splitlines()[-1]
