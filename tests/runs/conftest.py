"""Whole runs, most of them in processes of their own."""

import pytest


@pytest.fixture(scope="session", autouse=True)
def _compiled_once(shared_programs: None) -> None:
    """Most of these processes compile what others have compiled."""
