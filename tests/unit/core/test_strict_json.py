"""Numbers that JSON does not have."""

import json
import math

from openwork.core.strict_json import dumps, numbers


def test_they_go_as_names_and_come_back():
    data = {"a": [1.5, math.inf, {"b": -math.inf}], "c": (math.nan, 2), "d": "text", "e": None, "f": True}
    text = dumps(data, indent=1)
    plain = json.loads(text, parse_constant=lambda name: 1 / 0)
    assert plain == {"a": [1.5, "Infinity", {"b": "-Infinity"}], "c": ["NaN", 2], "d": "text", "e": None, "f": True}
    back = numbers(plain)
    assert back["a"] == [1.5, math.inf, {"b": -math.inf}]
    assert math.isnan(back["c"][0])
    assert (back["c"][1], back["d"], back["e"], back["f"]) == (2, "text", None, True)
