"""What all tests share."""

import pytest


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line(
        "markers", "gpu: needs a CUDA device; generated only where there is one"
    )
    config.addinivalue_line("markers", "smoke: a small part of the table of operator cases")
