"""Files that grow by lines."""

import json

from headrace.train.engine import run_directory


def test_a_line_of_json_is_whole_or_not_there(tmp_path):
    file = tmp_path / "lines.jsonl"
    file.write_bytes(b'{"a": 1}\n{"b"')
    run_directory.append_line(file, json.dumps({"c": 3}))
    assert file.read_text().splitlines() == ['{"a": 1}', '{"b"', '{"c": 3}']
