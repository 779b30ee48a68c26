import os

import pytest

from tests.lstm.kernel_project import COMPILER, Project


@pytest.fixture
def project(tmp_path, monkeypatch):
    if COMPILER is None or os.name != "posix":
        pytest.skip("no C++ compiler")
    project = Project(tmp_path)
    monkeypatch.setenv("CXX", str(project.compiler))
    return project
