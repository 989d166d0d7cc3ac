"""app.py as a Space of the hub runs it: a process with its environment, on what its README has preloaded."""

import re
import shutil
import subprocess
import sys

import httpx
import pytest
import yaml

from gpt2lab.data.sources import HUB_MODELS, WIKITEXT_REPO
from tests.hub import Hub
from tests.processes import PATIENCE, ROOT
from tests.serving import free_port, served

FRONT = yaml.safe_load((ROOT / "README.md").read_text(encoding="utf-8").split("---\n")[1])
FETCH = """
import sys
from huggingface_hub import hf_hub_download
for line in sys.argv[1:]:
    repo, files = line.split()
    for file in files.split(","):
        hf_hub_download(repo, file)
"""


def test_the_front_matter_is_what_a_space_reads():
    assert FRONT["sdk"] == "gradio"
    assert f"gradio=={FRONT['sdk_version']}" in (ROOT / "requirements.txt").read_text().splitlines()
    assert (ROOT / FRONT["app_file"]).is_file()
    assert len(FRONT["short_description"]) <= 60
    assert {FRONT["colorFrom"], FRONT["colorTo"]} <= {*"red yellow green blue indigo purple pink gray".split()}
    assert FRONT["suggested_hardware"] == "cpu-basic"
    assert FRONT["datasets"] == [WIKITEXT_REPO]
    assert all(
        re.fullmatch(r"\S+ \S+(,\S+)*", line) and line.split()[0] in HUB_MODELS for line in FRONT["preload_from_hub"]
    )


@pytest.fixture
def space(tmp_path, tiny_folder):
    """The environment of a Space whose build has preloaded what the README names, from a stand-in hub."""
    repository = tmp_path / "hub" / "gpt2"
    shutil.copytree(tiny_folder, repository)
    for file in ("merges.txt", "vocab.json", "generation_config.json"):
        if not (repository / file).exists():
            (repository / file).write_text("{}")
    with Hub(tmp_path / "hub") as hub:
        environment = {
            "HF_ENDPOINT": hub.url,
            "HF_HOME": str(tmp_path / "hf"),
            "HF_HUB_OFFLINE": "0",
            "SPACE_ID": "someone/gpt2lab",
            "GRADIO_SERVER_NAME": "0.0.0.0",
            "GRADIO_SERVER_PORT": str(free_port()),
        }
        command = [sys.executable, "-c", FETCH, *FRONT["preload_from_hub"]]
        subprocess.run(command, env=environment | {"PATH": ""}, check=True, timeout=PATIENCE)
        hub.requests.clear()
        yield hub, environment


@pytest.mark.slow
def test_app_py_serves_the_preloaded_model_and_refuses_to_train(space, tmp_path):
    hub, environment = space
    runs_before = (ROOT / "runs").exists()
    with served(tmp_path / "server", "app.py", **environment) as server:
        elsewhere = (
            f"http://127.0.0.2:{environment['GRADIO_SERVER_PORT']}"  # reached where all addresses are listened on
        )
        assert "gpt2lab" in httpx.get(elsewhere).text
        assert server.explores()
        done, found = server.ask("surprisal", "The moon", "gpt2", 5)
        assert done, found
        assert found["model"] == "gpt2"
        for name in ("start_run", "estimate"):
            done, said = server.ask(name, "builtin", "sample", "full", 2, None, None, None, None, 0)
            assert not done
            assert "training is off on this server" in str(said)
        assert "Traceback" not in server.printed()
    assert not [path for _, path, _ in hub.requests if "resolve" in path]  # nothing is downloaded again
    assert (ROOT / "runs").exists() == runs_before
