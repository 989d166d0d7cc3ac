"""Fresh processes without seconds of imports: they are forked from one that has imported everything."""

import contextlib
import multiprocessing
import multiprocessing.forkserver
import os
import signal
import subprocess
import sys
from pathlib import Path

from gpt2lab import cli
from gpt2lab.training import worker

ROOT = Path(__file__).parents[1]
PATIENCE = 120  # seconds
FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["tests.warm"])


def fork(target, *arguments):
    """Start a function of a module in a process; it has the environment and the folder of this one."""
    with contextlib.chdir(ROOT):  # where the server finds `tests.warm`
        multiprocessing.forkserver.ensure_running()
    process = FORKS.Process(target=_call, args=(dict(os.environ), target, arguments))
    process.start()
    return process


def _call(environment, target, arguments):
    os.environ.clear()
    os.environ.update(environment)
    target(*arguments)


class Command:
    """`gpt2lab ARGUMENTS` in such a process, with its output in files of a folder.

    main    what to call, with the arguments in sys.argv
    before  (function, its arguments) to call first; None: nothing
    """

    def __init__(self, folder, *arguments, main=cli.main, before=None, **variables):
        folder.mkdir(parents=True)
        self.arguments, self.out, self.err = arguments, folder / "out", folder / "err"
        streams = [str(self.out), str(self.err)]
        self.process = fork(_command, streams, [*map(str, arguments)], variables, before, main)
        self.pid = self.process.pid

    def finish(self, seconds=PATIENCE):
        """Wait for its end; what `subprocess.run` returns."""
        self.process.join(seconds)
        texts = (path.read_text(encoding="utf-8") if path.exists() else "" for path in (self.out, self.err))
        return subprocess.CompletedProcess(self.arguments, self.process.exitcode, *texts)


def _command(streams, arguments, variables, before, main):
    for number, path in enumerate(streams, 1):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND), number)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored by what a shell starts in the background
    os.environ.update(variables)
    sys.argv = ["gpt2lab", *arguments]
    if before:
        function, *given = before
        function(*given)
    main()


class Worker:
    """The process of a run: what `subprocess.Popen` is to `jobs.spawn`."""

    def __init__(self, command, *, stdout, **options):
        assert command[:3] == [sys.executable, "-m", "gpt2lab.training.worker"]
        self.process = fork(_work, stdout.name, command[3:])
        self.pid = self.process.pid

    def poll(self):
        return self.process.exitcode

    def wait(self):
        """Nothing: `poll` leaves no zombie."""


def _work(log, arguments):
    for number in (1, 2):
        os.dup2(os.open(log, os.O_WRONLY | os.O_APPEND), number)
    sys.argv = ["worker", *arguments]
    sys.exit(worker.main())
