"""One process of a command: command_worker.py <command> <its arguments>."""

import importlib
import multiprocessing
import sys

from headrace.errors import run_command

if __name__ == "__main__":
    # it was started as a daemon, so that it ends with the tests; those may have no children, which loaders need
    multiprocessing.current_process()._config["daemon"] = False
    name, *arguments = sys.argv[1:]
    sys.exit(run_command(lambda: importlib.import_module(f"headrace.train.dense.{name}").main(arguments)))
