"""Names of validation sets are safe in file names and distinct for distinct sources."""

from __future__ import annotations

import re

from hypothesis import given, settings
from hypothesis import strategies as st

from tokenization.splits import validation_key


def test_ordinary_names_are_kept() -> None:
    assert validation_key("Pile-CC") == "validation-Pile-CC"
    assert validation_key("python_stdlib2") == "validation-python_stdlib2"


@settings(max_examples=300, deadline=None)
@given(names=st.sets(st.text(min_size=1) | st.text(alphabet="ab/. -_", min_size=1, max_size=4), max_size=30))
def test_every_name_becomes_safe_and_stays_distinct(names: set[str]) -> None:
    keys = {validation_key(name) for name in names}
    assert len(keys) == len(names)
    assert all(re.fullmatch(r"validation-[A-Za-z0-9_-]{1,60}", key) for key in keys)


def test_a_name_that_looks_like_anothers_safe_form_stays_distinct() -> None:
    made = validation_key("Wikipedia (en)")
    assert validation_key(made.removeprefix("validation-")) != made
    assert validation_key("../../etc/passwd").count("/") == 0
