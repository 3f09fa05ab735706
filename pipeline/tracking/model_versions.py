"""Versions of the registered model: which is a release's, and which of them is the candidate."""

from __future__ import annotations

from typing import Any

ALIAS = "candidate"
PROVENANCE_TAG = "adaponder.release_sha256"
"""SHA-256 of the release's provenance.json, on its version and on the logged model that the version is made from."""
STEP_TAG = "adaponder.step"


def version_of(client: Any, name: str, provenance: str) -> Any:
    """The version of the release with this provenance; None where there is none."""
    return next((each for each in _versions(client, name) if each.tags.get(PROVENANCE_TAG) == provenance), None)


def call_candidate(client: Any, version: Any) -> None:
    """Give a version the alias, unless there is a newer one: asking for an older release again takes nothing back.

    A kill may have come between a version and its alias, so this is done whenever a release is asked for.
    """
    name, number = version.name, int(version.version)
    if any(int(each.version) > number for each in _versions(client, name)):
        return
    if str(client.get_registered_model(name).aliases.get(ALIAS)) != str(number):
        client.set_registered_model_alias(name, ALIAS, str(number))


def _versions(client: Any, name: str) -> list[Any]:
    found: list[Any] = []
    token = None
    while True:
        page = client.search_model_versions(f"name = '{name}'", page_token=token)
        found += page
        token = page.token
        if not token:
            return found
