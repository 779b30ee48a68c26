"""A small library to build in place of the kernel."""

import shutil
import subprocess
import sys
import textwrap

from rl_lnlstm.lstm.kernel import build as module
from rl_lnlstm.lstm.kernel.build import Unit, build

COMPILER = next(filter(None, map(shutil.which, ("c++", "g++", "clang++"))), None)


class Project:
    """A library of two files, and a compiler that notes what it compiles.

    It waits with compiling while there is a file `wait`, and in the middle of linking while there is one `wait-link`.
    """

    def __init__(self, folder):
        self.folder, self.cache, self.log = folder, folder / "cache", folder / "log"
        self.header = folder / "answer.h"
        self.header.write_text("int half();\n")
        (folder / "half.cc").write_text('#include "answer.h"\nint half() { return HALF; }\n')
        (folder / "answer.cc").write_text('#include "answer.h"\nextern "C" int answer() { return 2 * half(); }\n')
        self.compiler = folder / "compiler"
        self.compiler.write_text(
            f'#!/bin/sh\ncase "$*" in *" -c "*) echo compiled >> {self.log}; wait={folder}/wait;; '
            f"*-shared*) wait={folder}/wait-link;; esac\n"
            'for last; do :; done\n[ -e "$wait" ] && echo half > "$last"\n'
            'while [ -e "$wait" ]; do sleep 0.05; done\n'
            f'exec {COMPILER} "$@"\n'
        )
        self.compiler.chmod(0o755)

    def build(self, half=21, version="1", force=False):
        units = [Unit(self.folder / "half.cc", ("-fPIC", f"-DHALF={half}")), self.answer_unit]
        return build(units, [self.header], [], self.cache, version, force)

    @property
    def answer_unit(self):
        return Unit(self.folder / "answer.cc", ("-fPIC",))

    def start(self):
        """The same build in another process, which does not import TensorFlow: it would take seconds."""
        program = f"""
            import ctypes, importlib.util, sys
            from pathlib import Path
            spec = importlib.util.spec_from_file_location("build", {module.__file__!r})
            build = sys.modules["build"] = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(build)
            folder = Path({str(self.folder)!r})
            units = [build.Unit(folder / "half.cc", ("-fPIC", "-DHALF=21")),
                     build.Unit(folder / "answer.cc", ("-fPIC",))]
            path = build.build(units, [folder / "answer.h"], [], folder / "cache", "1")
            assert ctypes.CDLL(str(path)).answer() == 42
        """
        return subprocess.Popen([sys.executable, "-c", textwrap.dedent(program)])

    @property
    def compiled(self):
        """How many files, so far."""
        return len(self.log.read_text().splitlines()) if self.log.exists() else 0

    @property
    def left(self):
        """What is in the folders of the cache."""
        return sorted(path.name for path in self.cache.glob("*/*"))
