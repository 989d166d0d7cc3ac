import httpx
import pytest
from gradio_client import Client

from gpt2lab.model.lab import load_model

PATIENCE = 120_000  # milliseconds: the first model run imports torch


@pytest.fixture(scope="module")
def lab():
    return load_model("builtin")


def open_tab(page, name):
    page.get_by_role("tab", name=name).click()


def toast(page):
    return page.locator("[data-testid=toast-body]")


@pytest.fixture(scope="module")
def client(app_url):
    return Client(app_url, verbose=False)


def test_no_client_names_a_model_that_is_not_offered(client, app_url):
    for label in ("/etc", "../../etc", "auto", "", None, "gpt2/../builtin"):
        with pytest.raises(Exception, match=r"is unknown|not in the list"):
            pytest.fail(f"{label!r}: {client.predict(text='text', model=label, api_name='/surprisal')}")


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
