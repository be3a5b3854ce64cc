"""tools/data/events/text.py: events of a line each, in the orders and with the separators that are found."""

import numpy as np
import pytest

from tools.data.events import read
from tools.data.events.formats import check_events, format_of, read_recording
from tools.data.events.reading import EventFormatError
from tools.errors import UserError

WANTED = [(5, 7, 10, True), (6, 0, 20, False), (7, 8, 1_500_000, True)]


def lines(rows, separator=" ", end="\n"):
    return "".join(separator.join(row.split()) + end for row in rows)


ROWS = ["10 5 7 1", "20 6 0 0", "1500000 7 8 1"]
SECONDS = ["0.000010 5 7 1", "0.000020 6 0 0", "1.500000 7 8 1"]


@pytest.mark.parametrize("rows", [ROWS, SECONDS])
@pytest.mark.parametrize("separator", [" ", ",", "\t", ";", ", ", "  "])
@pytest.mark.parametrize("end", ["\n", "\r\n", " \n"])
def test_any_separator_and_unit(tmp_path, rows, separator, end):
    for text in (lines(rows, separator, end), lines(rows, separator, end).rstrip()):
        (tmp_path / "a.unknown").write_text(text, newline="")
        reading = read_recording(tmp_path / "a.unknown")
        assert reading.events.tolist() == WANTED and reading.format == "text" and reading.sensor is None


@pytest.mark.parametrize(
    "text",
    [
        "# a comment\n\n" + lines(ROWS),
        "timestamp,x,y,polarity\n" + lines(ROWS, ","),
        "TS X Y ON\n" + lines(ROWS),
        "# t x y p\n" + lines(ROWS),
        "# columns: t x y p\n# here x and y are pixels at t\n" + lines(ROWS),
        "#x,y,pol,t\n5,7,1,10\n6,0,0,20\n7,8,1,1500000\n",
        "x y p t label\n5 7 1 10 3\n6 0 0 20 3\n7 8 1 1500000 3\n",
        "t x y p\n10 5 7 1\n20 6 0 -1\n1500000 7 8 1\n",
        "10 5 7 1 # the first\n\n20 6 0 0\n# between\n1500000 7 8 1\n",
        "1e-5 5 7 1\n.00002 6 0 0\n+1.5 7 8 1.0\n",
        "0.0000101 5 7 1\n0.0000199 6 0 0\n1.5000000 7 8 1\n",  # rounded
        "0.00001 5 7 1\n0.00002 6 0 0\n1.50000 7 8 1\n",
        "\ufeff10 5 7 1\n20 6 0 0\n1500000 7 8 1\n",
        '"t","x","y","p"\n10,5,7,1\n20,6,0,0\n1500000,7,8,1\n',
        ",t,x,y,p\n0,10,5,7,1\n1,20,6,0,0\n2,1500000,7,8,1\n",  # as pandas writes
        ";t;x;y;p\n0;10;5;7;1\n1;20;6;0;0\n2;1500000;7;8;1\n",
        "t,x,y,p\n10,5,7,True\n20,6,0,False\n1500000,7,8,True\n",
        "10 5 7 true\n20 6 0 FALSE\n1500000 7 8 True\n",
        "% geometry:640,480\n10 5 7 1\n20 6 0 0\n1500000 7 8 1\n",
    ],
)
def test_headers_comments_and_numbers_as_they_are_found(tmp_path, text):
    (tmp_path / "a.txt").write_text(text)
    assert read(tmp_path / "a.txt").tolist() == WANTED


def test_a_line_of_two_numbers_is_the_sensor(tmp_path):
    (tmp_path / "a.txt").write_text("240 180\n" + lines(SECONDS))
    reading = read_recording(tmp_path / "a.txt")
    assert reading.sensor == (240, 180) and reading.events.tolist() == WANTED


@pytest.mark.parametrize("time", [1468940293.8443, 1468940293.844300, 1468940293.000001])
def test_times_since_1970_are_exact(tmp_path, time):
    for row in (f"{time:.6f}", f"{time:.9f}", repr(time), f"{time:.6f}00000000000000"):
        (tmp_path / "a.txt").write_text(f"{row} 1 2 1\n")
        assert read(tmp_path / "a.txt")["t"].tolist() == [round(time * 1e6)]


@pytest.mark.parametrize("times", [("1.000000", "3.000000"), ("1.0", "3.5"), ("0.0", "0.0"), ("0", "3.000000")])
def test_whole_seconds_are_seconds_if_other_digits_say_so(tmp_path, times):
    (tmp_path / "a.txt").write_text("".join(f"{time} 3 4 1\n" for time in times))
    assert read(tmp_path / "a.txt")["t"].tolist() == [1e6 * float(time) for time in times]


def test_columns_may_be_told(tmp_path):
    path = tmp_path / "a.log"
    path.write_text("5 7 1 9 10\n6 0 0 9 20\n7 8 1 9 1500000\n")
    assert read(path, columns="x, y, p, other, t").tolist() == WANTED
    path.write_text("col row sign extra when\n" + path.read_text())
    assert read(path, columns="x,y,p,other,t").tolist() == WANTED
    with pytest.raises(EventFormatError, match="line 2: expected 4 numbers .x, y, p, t., got '5 7 1 9 10'"):
        read(path, columns="x,y,p,t")
    with pytest.raises(EventFormatError, match="expected columns t, x, y, p, or their names, got columns x, y, p$"):
        read(path, columns="x,y,p")


def test_another_order_that_is_not_told_is_told_about(tmp_path):
    (tmp_path / "a.csv").write_text("320,240,1,1000\n321,240,0,1010\n")  # as of Metavision: x, y, p, t
    with pytest.raises(EventFormatError, match="got 1000; if the columns are not t, x, y, p, name them with --columns"):
        read(tmp_path / "a.csv")
    assert read(tmp_path / "a.csv", columns="x,y,p,t").tolist() == [(320, 240, 1000, True), (321, 240, 1010, False)]


def test_without_polarities_all_are_on(tmp_path):
    (tmp_path / "a.txt").write_text("1 2 3\n4 5 6\n")
    assert read(tmp_path / "a.txt").tolist() == [(2, 3, 1, True), (5, 6, 4, True)]


@pytest.mark.parametrize(
    ("text", "byte", "problem"),
    [
        (lines(ROWS) + "9 9 9\n", 32, "line 4: expected 4 numbers (t, x, y, p), got '9 9 9'"),
        ("10 5 7 1\n20 6 0 0 20 6 0 0\n", 9, "line 2: expected 4 numbers"),
        ("10 5 7 1\n20 6 0\n30 1 2 3 4\n", 9, "line 2: expected 4 numbers"),
        ("# c\n10 5 7 1\n\n20 6 - 0\n", 14, "line 4: expected 4 numbers"),
        ("10 5 7 1\n20 6 1-1\n", 9, "line 2: expected 4 numbers"),
        ("10 5 7 1\n20 6 0 nan\n", 9, "line 2: expected 4 numbers"),
        ("10 5 7 1\n20,,0,1\n", 9, "line 2: expected 4 numbers"),
        ("10 5 7 1\n20 6 0 2\n", 9, "event 1: expected a whole p from 0 to 1, got 2"),
        ("10 5 7 1\n\n20 6.5 0 1\n", 10, "event 1: expected a whole x from 0 to 65535, got 6.5"),
        ("10 5 7 1\n20 99999 0 1\n", 9, "event 1: expected a whole x"),
        ("10 5 7 1\n99999999999999999999 5 7 1\n", 9, "event 1: expected a whole t"),
        ("10 5 7 1\n99999999999999999999999999.5 5 7 1\n", 9, "event 1: expected a whole t"),
        ("1 2\n3 4\n", 4, "line 2: expected columns t, x, y, p, or their names, got '3 4'"),
        ("0 128\n10 5 7 1\n", 0, "line 1: expected columns t, x, y, p, or their names, got '0 128'"),
        ("a,b,c\n1,2,3\n", 0, "line 1: expected columns t, x, y, p, or their names, got 'a b c'"),
        ("t,x,y,p\n100.0,3,4,1\n250.0,5,6,0\n", 8, "line 2: expected times in seconds, or in microseconds as integers"),
        ("0.0 3 4 1\n100.0 3 4 1\n", 0, "line 1: expected times in seconds, or in microseconds as integers"),
        ("1.000e+02 3.000e+00 4 1\n2.500e+02 5 6 0\n", 0, "line 1: expected times in seconds, or in microseconds"),
        ("t x y p\n", 0, "expected events, got none"),
        ("", 0, "expected events, got an empty file"),
        ("\n", 1, "line 1: expected columns"),
    ],
)
def test_a_bad_line_is_named_by_its_number_and_first_byte(tmp_path, text, byte, problem):
    (tmp_path / "a.txt").write_text(text)
    with pytest.raises(EventFormatError) as caught:
        read(tmp_path / "a.txt")
    assert f"a.txt, byte {byte}: {problem}" in str(caught.value)


def test_bytes_are_counted_from_the_start_of_the_file(tmp_path):
    for text in ("10 5 7 1\n20 6 0 2\n", "10 5 7 1\n20 6 0\n"):
        (tmp_path / "a.txt").write_text("\ufeff" + text)
        with pytest.raises(EventFormatError, match="a.txt, byte 12: "):
            read(tmp_path / "a.txt")


def test_a_truncated_last_line_costs_its_event_only(tmp_path):
    (tmp_path / "a.txt").write_text(lines(SECONDS) + "1.6000")
    with pytest.raises(EventFormatError, match="line 4"):
        read(tmp_path / "a.txt")
    reading = read_recording(tmp_path / "a.txt", lenient=True)
    assert reading.events.tolist() == WANTED and reading.counts == {"truncated": 1}


def test_a_line_that_is_none_costs_its_event_only(tmp_path):
    (tmp_path / "a.txt").write_text(SECONDS[0] + "\n0.0000 ?\n" + lines(SECONDS[1:]))
    with pytest.raises(EventFormatError, match="line 2"):
        read(tmp_path / "a.txt")
    reading = read_recording(tmp_path / "a.txt", lenient=True)
    assert reading.events.tolist() == WANTED and reading.counts == {"impossible": 1}


@pytest.mark.parametrize("wrong", ["3e1", "99.", "0.3", "1e400"])
def test_a_damaged_time_does_not_change_the_unit_of_the_others(tmp_path, wrong):
    (tmp_path / "a.txt").write_text(lines([f"{wrong} 1 1 1", *ROWS]))
    with pytest.raises(EventFormatError):
        check_events(read_recording(tmp_path / "a.txt"), (9, 9))
    checked = check_events(read_recording(tmp_path / "a.txt", lenient=True), (9, 9), lenient=True)
    assert checked.events.tolist() == WANTED
    (tmp_path / "a.txt").write_text(lines([*SECONDS, "2 1 1 1"]))  # as %g writes 2.0
    assert read(tmp_path / "a.txt")["t"].tolist() == [10, 20, 1_500_000, 2_000_000]


@pytest.mark.parametrize("between", ["", "\n"])  # regular, or not
def test_times_that_were_read_as_signed_go_on(tmp_path, between):
    (tmp_path / "a.txt").write_text(f"2147483646 1 2 1\n{between}-2147483648 1 2 0\n")
    assert read(tmp_path / "a.txt")["t"].tolist() == [2**31 - 2, 2**31]


def test_times_that_would_be_rounded_are_refused(tmp_path):
    (tmp_path / "a.txt").write_text("1609459200123456789 1 2 1\n1609459200123457789 1 2 1\n")  # nanoseconds
    with pytest.raises(EventFormatError, match="event 0: expected a whole t from 0 to .* in microseconds"):
        read(tmp_path / "a.txt")


def test_utf16_is_named(tmp_path):
    (tmp_path / "a.csv").write_text("t,x,y,p\n1,2,3,1\n", encoding="utf-16")
    with pytest.raises(EventFormatError, match="got UTF-16"):
        read(tmp_path / "a.csv")


def test_regular_and_other_texts_give_the_same(tmp_path):
    random = np.random.default_rng(0)
    for _ in range(30):
        rows = [f"{t} {x} {y} {p}" for t, x, y, p in random.integers(0, (10**6, 999, 99, 2), size=(20, 4))]
        found = []
        for text in (lines(rows), lines(rows, "  "), "# all\n" + lines(rows, ",", " # each\n")):
            (tmp_path / "a.txt").write_text(text)
            found.append(read(tmp_path / "a.txt").tolist())
        assert found[0] == found[1] == found[2]
        assert [(t, x, y, int(p)) for x, y, t, p in found[0]] == [tuple(map(int, row.split())) for row in rows]


@pytest.mark.parametrize("head", [b"hello world\n", b"1 2\n", b"1 2 3 4 5\n", b"1 2 3 4\0\n", b"", b"a,b,c\n1,2,3\n"])
def test_what_is_not_text_of_events(head):
    with pytest.raises(UserError, match="text"):
        format_of("a.unknown", head)
