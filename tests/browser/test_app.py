import json

import httpx
import pytest
from gradio_client import Client
from playwright.sync_api import expect

from gpt2lab.app.events import ALONE
from gpt2lab.app.tasks import EXAMPLES as TASK_EXAMPLES
from gpt2lab.generation.tasks import translate
from gpt2lab.model.lab import load_model

PATIENCE = 120_000  # milliseconds: the first model run imports torch


@pytest.fixture(scope="module")
def lab():
    return load_model("builtin")


def open_tab(page, name):
    page.get_by_role("tab", name=name).click()


def toast(page):
    return page.locator("[data-testid=toast-body]")


def test_tasks_are_done_by_the_package_s_recipes(page, lab):
    open_tab(page, "Generate")
    page.locator("#tasks").get_by_role("button", name="Tasks").click()
    page.locator("#tasks-task").get_by_label("translate").check()
    expect(page.locator("#tasks-examples textarea")).to_be_visible(timeout=PATIENCE)
    page.locator("#tasks-text textarea").fill("The moon is round.")
    page.locator("#tasks-go").click()
    expect(page.locator("#tasks-note")).to_contain_text("5 BLEU", timeout=PATIENCE)
    pairs = [tuple(line.split(" = ")) for line in TASK_EXAMPLES["translate"].splitlines()]
    expected = translate(lab, "The moon is round.", examples=pairs)
    assert page.locator("#tasks-result textarea").input_value() == expected.text
    assert page.locator("#tasks-whole textarea").input_value() == expected.prompts[0] + expected.generations[0].text
    page.locator("#tasks-text textarea").fill("two\nlines")
    page.locator("#tasks-go").click()
    expect(toast(page).last).to_contain_text("has several lines", timeout=PATIENCE)


GENERATE = {"label": "builtin", "other": ALONE, "prompt": "The", "count": 1, "by": "rank", "length": 5}
GENERATE |= {
    "temperature": 1,
    "top_p": 1,
    "top_k": 0,
    "seed": 0,
    "min_p": 0,
    "penalty": 1,
    "window": 0,
    "precision": "fp32",
}


@pytest.fixture(scope="module")
def client(app_url):
    return Client(app_url, verbose=False)


def test_no_client_names_a_model_that_is_not_offered(client, app_url):
    for label in ("/etc", "../../etc", "auto", "", None, "gpt2/../builtin"):
        with pytest.raises(Exception, match=r"is unknown|not in the list"):
            pytest.fail(f"{label!r}: {client.predict(label, 'text', ALONE, api_name='/explore')}")


def test_no_request_of_a_view_names_a_model_that_is_not_offered(app_url):
    [page] = [
        one
        for one in httpx.get(f"{app_url}config").json()["components"]
        if one["props"].get("elem_id") == "explore-page"
    ]
    for data in (
        None,
        [],
        7,
        {},
        {"subject": {"models": ["/etc"], "text": "x"}},
        {"kind": ["x"], "subject": {"models": ["builtin"], "text": "x"}},
    ):
        body = {"data": data, "component_id": page["id"], "fn_name": "answer", "session_hash": "s"}
        answer = httpx.post(f"{app_url}gradio_api/component_server", json=body)
        assert answer.status_code == 200
        assert list(answer.json()) == ["error"]


def test_bad_sampling_over_http_is_refused_with_the_value_s_name(client):
    for change, message in (
        ({"top_p": 0}, "minimum value 0.05"),  # a slider's own limits
        ({"length": 10**9}, "maximum value 512"),
        ({"by": "smell"}, "smell"),
        ({"other": "/etc"}, "not in the list|is unknown"),
        ({"top_k": -3}, "top_k"),  # the package's
        ({"window": 512}, "window 512 is out of range"),
        ({"prompt": "x" * 5000}, "the prompt has"),
    ):
        with pytest.raises(Exception, match=message):
            pytest.fail(f"{change}: {client.predict(*(GENERATE | change).values(), api_name='/generate')}")


def test_a_value_that_is_not_a_number_is_refused(app_url):
    call = f"{app_url}gradio_api/call/generate"
    for temperature, ending in ((float("nan"), "event: error"), (0.5, "event: complete")):
        body = json.dumps({"data": list((GENERATE | {"temperature": temperature}).values())})
        event = httpx.post(call, content=body, headers={"Content-Type": "application/json"}).json()["event_id"]
        assert ending in httpx.get(f"{call}/{event}", timeout=60).text
