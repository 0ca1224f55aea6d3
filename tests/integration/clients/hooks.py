"""How Schemathesis draws its cases; tests/integration/fuzzing.rs names this file in SCHEMATHESIS_HOOKS."""

import hypothesis
import schemathesis

# At random: by itself it looks for cases that are answered with 2xx, and the search for ever smaller ones among these takes four fifths of
# a run without one request more.
hypothesis.target = lambda *observation, **label: None


@schemathesis.hook
def filter_case(context, case):
    """Leaves out forms that break the schema. The fields of a form are text, so a number where a text belongs, or a list of one, is on
    the wire what the document allows."""
    is_wrong = case.meta is not None and case.meta.generation.mode.is_negative
    return not (is_wrong and case.media_type == "multipart/form-data")
