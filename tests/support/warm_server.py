"""Runs programs in a Python that has imported what they need, each in a process forked from it:
`python -P warm_server.py SOCKET MODULE...`, with `lean=FOLDER` first of the modules to import as
runners do (phibuild/worker/lean.py), with the phibuild in that folder, of which nothing stays; a
path is run as a script.

A request is the descriptors of a file, {"words": what follows `python` on a command line,
"environ", "cwd", "cores": those that it may run on, [] for all} in JSON, of standard input, output
and error, and of a pipe that gets the program's exit code. Standard library only.
"""

from __future__ import annotations

import atexit
import gc
import importlib
import json
import os
import runpy
import socket
import sys
import threading
import traceback
import types

_FILES = 5  # descriptors of a request
_waiters: list[int] = []
_set: dict[str, str] = {}
"""Variables of the environment that imports set, as they would have in each program."""


def serve(connection: socket.socket) -> None:
    """Run what is asked for until the other end has gone; returns in the process of a program."""
    while True:
        message, files, _, _ = socket.recv_fds(connection, 1, _FILES)
        if not message:
            os._exit(0)
        if (waiter := os.fork()) == 0:
            connection.close()
            if (program := os.fork()) == 0:
                with open(files[0], encoding="utf-8") as request:
                    become(json.load(request), files[1:])
                return
            status = os.waitpid(program, 0)[1]
            os.write(files[-1], b"%d" % os.waitstatus_to_exitcode(status))
            os._exit(0)
        for file in files:
            os.close(file)
        # Reaped when it has written; another request may come before.
        _waiters.append(waiter)
        _waiters[:] = [pid for pid in _waiters if os.waitpid(pid, os.WNOHANG)[0] == 0]


def become(request: dict[str, object], files: list[int]) -> None:
    """Give this process the streams, the environment, the folder and the cores of a program."""
    for number, file in enumerate(files[:3]):
        os.dup2(file, number)
    for file in files:
        os.close(file)
    os.environ.clear()
    os.environ.update({**_set, **request["environ"]})  # type: ignore[dict-item]
    os.chdir(str(request["cwd"]))
    if request["cores"]:
        os.sched_setaffinity(0, request["cores"])  # type: ignore[arg-type]
    sys.stdin = sys.__stdin__ = open(0, closefd=False)  # type: ignore[misc]  # noqa: SIM115
    sys.stdout = sys.__stdout__ = open(1, "w", closefd=False)  # type: ignore[misc]  # noqa: SIM115
    sys.stderr = sys.__stderr__ = open(  # type: ignore[misc]  # noqa: SIM115
        2, "w", buffering=1, errors="backslashreplace", closefd=False
    )
    sys.argv = request["words"]  # type: ignore[assignment]


def run() -> None:
    """Run sys.argv as `python` would: -m MODULE, -c CODE or a file, after -P or not."""
    words = sys.argv
    own = words[0] != "-P"  # a program's own folder is the first that modules come from
    if not own:
        words = words[1:]
    paths = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]
    sys.path[:0] = paths
    importlib.invalidate_caches()
    match words:
        case "-m", name, *_:
            sys.path[:0] = [os.getcwd()] if own else []
            sys.argv = words[1:]
            runpy.run_module(name, run_name="__main__", alter_sys=True)
        case "-c", code, *more:
            sys.path[:0] = [""] if own else []
            sys.argv = ["-c", *more]
            main = sys.modules["__main__"] = types.ModuleType("__main__")
            exec(compile(code, "<string>", "exec"), vars(main))
        case path, *_:
            sys.path[:0] = [os.path.dirname(os.path.abspath(path))] if own else []
            sys.argv = words
            runpy.run_path(path, run_name="__main__")


def import_lean(folder: str, modules: list[str]) -> None:
    sys.path.insert(0, folder)
    importlib.import_module("phibuild.worker.lean").import_lean()
    for name in modules:
        importlib.import_module(name)
    sys.path.remove(folder)
    for name in [name for name in sys.modules if name.partition(".")[0] == "phibuild"]:
        del sys.modules[name]  # each program has its own


def main() -> None:
    number, *modules = sys.argv[1:]
    given = dict(os.environ)
    if modules[0].startswith("lean="):
        import_lean(modules[0].removeprefix("lean="), modules[1:])
    else:
        for name in modules:
            if name.endswith(".py"):
                runpy.run_path(name)
            else:
                importlib.import_module(name)
    _set.update({name: os.environ[name] for name in os.environ.keys() - given.keys()})
    gc.freeze()
    serve(socket.socket(fileno=int(number)))
    code = 0
    try:
        run()
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else int(error.code is not None)
        if code and not isinstance(error.code, int):
            print(error.code, file=sys.stderr)
    except BaseException:  # as Python itself ends then
        code = 1
        traceback.print_exc()
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # without taking all modules down


if __name__ == "__main__":
    main()
