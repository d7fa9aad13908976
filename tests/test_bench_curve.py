"""The benchmark of curves: what a rate is, what is cut, how runs are put together."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from scripts.bench.clients.streams import Call, read_streams
from scripts.bench.common import BenchError
from scripts.bench.curve import rate_of, steady
from scripts.bench.report.curve import Point, from_json, ratio, to_json
from scripts.bench.servers.contenders import Answer, Turn, judge
from scripts.bench.workloads import GREEDY, Request
from tests.test_bench import HEAD, OK, answering, results, rows_of, run_script

POINT = Point("run", 0, "model", 0, "decode", 1, "cLLM", 16, 10.0)


def answer(*times: float, tokens: int = 0, cut: bool = False) -> Answer:
    request = Request("x", len(times), GREEDY)
    return Answer(request, 0.0, list(times), tokens or len(times), cut=cut)


def test_curves_are_measured_merged_and_drawn(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    found, text = results(tmp_path, "curve", "--server", "cllm", "--busy", "0", "1")
    places = [(p["busy"], p["kind"], p["sequences"]) for p in found["points"]]
    assert places == [
        (0, "prompt", 1), (0, "prompt", 4), (0, "decode", 1), (0, "decode", 4),
        (1, "prompt", 1), (1, "decode", 1),
    ]  # fmt: skip
    assert all(point["rate"] > 0 and point["cut"] == 0 for point in found["points"])
    assert "failures" not in text
    for row in rows_of(found, "cllm-stories-q8_0: time outside llama_decode"):
        assert 0 < row["decode, %"] < 100
    file, picture = tmp_path / "results.json", tmp_path / "curve.svg"
    done = run_script("curve", "--from", str(file), str(file), "--picture", str(picture))
    assert done.returncode == 0, done.stderr
    assert "generated tokens/s, next to 1 busy" in done.stdout
    assert "<svg" in picture.read_text()


def test_decode_counts_only_while_all_streams_run() -> None:
    early = answer(0.0, 1.0, 2.0, 3.0, 4.0, 5.0)
    late = answer(2.0, 2.5, 3.0, 3.5, 4.0, 4.5, 5.0, 5.5)
    # From 2 to 5: one token a second and two.
    assert steady([early, late]) == pytest.approx(3.0)
    # Each piece of the late one stands for two tokens.
    assert steady([early, replace(late, tokens=16)]) == pytest.approx(5.0)
    assert steady([answer(0.0, 1.0), answer(2.0, 3.0)]) is None


def test_prompts_count_only_if_they_were_answered() -> None:
    failed = replace(answer(2.0), fault="an error")
    turn = Turn(1, 2.0, [answer(1.0), answer(2.0, cut=True), failed])
    assert rate_of("prompt", turn, [100, 200, 300]) == 50.0


def test_a_stream_that_takes_too_long_is_cut_with_what_had_arrived() -> None:
    raw = HEAD + b"9\r\ndata: 1\n\n\r\n"
    with answering(raw, OK) as port:  # it waits for a second request
        ((stream,),) = read_streams(
            "127.0.0.1", port, [[Call(b"GET / HTTP/1.1\r\n\r\n")]], silence=60,
            progress=lambda: None, limit=0.5,
        )  # fmt: skip
    assert stream.cut
    judged = judge(Request("x", 5, GREEDY), stream)
    assert (judged.cut, judged.fault, judged.tokens) == (True, None, 1)


def test_a_ratio_pairs_the_rounds_of_one_run() -> None:
    base = replace(POINT, server="llama-server")
    points = [
        replace(POINT, rate=30.0), replace(base, rate=10.0),
        # Another run, in which the reference is slower, and one that has no reference.
        replace(POINT, run="b", rate=8.0), replace(base, run="b", rate=8.0),
        replace(POINT, run="c", rate=1.0),
    ]  # fmt: skip
    assert ratio(points, "cLLM") == 2.0
    assert ratio(points, "xllamacpp") is None


def test_a_file_without_points_is_named(tmp_path: Path) -> None:
    file = tmp_path / "a.json"
    file.write_text(json.dumps({"points": to_json([POINT])}))
    assert from_json(file) == [POINT]
    file.write_text("{}")
    with pytest.raises(BenchError, match=r"a\.json"):
        from_json(file)
