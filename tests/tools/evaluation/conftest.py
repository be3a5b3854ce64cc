import json
from pathlib import Path

import jsonschema
import pytest


@pytest.fixture(scope="module")
def schema():
    """The schema of results.json."""
    content = json.loads((Path(__file__).parents[3] / "docs" / "results.schema.json").read_text())
    jsonschema.Draft202012Validator.check_schema(content)
    return jsonschema.Draft202012Validator(content)
