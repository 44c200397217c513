"""Each kind of source: JSON, text, images, TFRecord, SQL, Delta, Iceberg, Kafka."""

from __future__ import annotations

import gzip
import importlib
import json
import os
import sqlite3
import struct
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from raymlp.config.data import Data
from raymlp.config.problem import Problem
from raymlp.config.runtime import Runtime
from raymlp.config.sources import (
    DeltaSource,
    IcebergSource,
    ImageSource,
    JsonSource,
    KafkaSource,
    SqlSource,
    TextSource,
    TfRecordSource,
)
from raymlp.config.split import RandomSplit
from raymlp.core.errors import ConfigError, DataError, RequestError, SourceUnavailable
from raymlp.data import parquet, sources
from raymlp.data.contract import Contract
from raymlp.data.contract_batch import REASON, check_table
from raymlp.data.contract_row import row_checker
from raymlp.data.snapshot import load_contract, load_profile, prepare, read_split

ROWS = [{"id": 1, "city": "Köln", "score": 0.5}, {"id": 2, "city": None, "score": 2.0}, {"id": 3, "city": "Oslo", "score": None}]


def rows(source: Any, bad: sources.BadRows | None = None, batch_rows: int = 100) -> list[dict[str, Any]]:
    types = sources.schema_of(source)
    found = []
    for part in sources.parts_of(source):
        for table in sources.read(source, part, types, batch_rows=batch_rows, bad=bad or sources.BadRows()):
            assert table.num_rows <= batch_rows
            found += table.to_pylist()
    return found


# ------------------------------------------------------------------------------------------------- json


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.json.gz", "pretty.json"])
def test_json_lines_and_arrays_give_the_same_rows(tmp_path: Path, name: str) -> None:
    lines = "\n".join(json.dumps(row) for row in ROWS)
    text = {"a.jsonl": lines, "pretty.json": json.dumps(ROWS, indent=2)}.get(name, json.dumps(ROWS))
    (tmp_path / name).write_bytes(gzip.compress(text.encode()) if name.endswith("gz") else text.encode())
    source = JsonSource(path=str(tmp_path / name))
    assert sources.schema_of(source) == {"id": "int", "city": "string", "score": "float"}
    assert rows(source) == ROWS


@given(
    st.lists(
        st.fixed_dictionaries(
            {
                "n": st.integers(-(2**63), 2**63 - 1),
                "x": st.floats(allow_nan=False, allow_infinity=False),
                "t": st.text(st.characters(codec="utf-8")),
            }
        ),
        min_size=1,
        max_size=20,
    ),
    st.booleans(),
)
@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_json_of_any_values_comes_back_as_json_loads_gives_it(tmp_path: Path, values: list[dict[str, Any]], as_array: bool) -> None:
    values = [{**value, "t": f"x{value['t']}"} for value in values]
    text = json.dumps(values) if as_array else "\n".join(json.dumps(value) for value in values)
    (tmp_path / "a.json").write_text(text)
    source = JsonSource(path=str(tmp_path / "a.json"), types={"n": "int", "x": "float", "t": "string"})
    assert rows(source, batch_rows=7) == json.loads(json.dumps(values))


def test_an_array_longer_than_a_piece_is_read_whole(tmp_path: Path) -> None:
    values = [{"n": i, "t": "x" * 300} for i in range(10_000)]
    (tmp_path / "a.json").write_text(json.dumps(values))
    assert rows(JsonSource(path=str(tmp_path / "a.json")), batch_rows=4096) == values


def test_lines_that_are_no_object_are_bad_rows_with_their_number(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"a": 1}\n\n{"a": 2\n[3]\nnull\n{"a": 4, "b": [1, 2]}\n')
    bad = sources.BadRows()
    assert rows(JsonSource(path=str(tmp_path / "a.jsonl")), bad) == [{"a": 1}, {"a": 4}]
    assert bad.reasons == [
        "line 3 is null or no JSON; expected an object",
        "line 4 is list; expected an object",
        "line 5 is null or no JSON; expected an object",
    ]


def test_json_values_of_mixed_types_leave_their_column_as_text(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"a": 1}\n{"a": "oops"}\n{"a": true}\n{"a": null}\n')
    source = JsonSource(path=str(tmp_path / "a.jsonl"), types={"a": "int"})
    assert [row["a"] for row in rows(source)] == ["1", "oops", "true", None]
    assert sources.schema_of(JsonSource(path=str(tmp_path / "a.jsonl"))) == {"a": "string"}


def test_whole_numbers_beyond_64_bits_and_iso_moments_get_their_type(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"n": 1, "t": "2013-07-01T09:00:00Z"}\n{"n": 99999999999999999999, "t": "2013-07-02T09:00:00Z"}\n')
    assert sources.schema_of(JsonSource(path=str(tmp_path / "a.jsonl"))) == {"n": "float", "t": "timestamp"}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('[{"a": 1}, {"a": 2', r"a\.json, element 2: the array ends too early"),
        ('[{"a": 1}, {"a": oops}]' + " " * (3 << 20), r"a\.json, element 2: no JSON, or longer than 1 MiB"),
        ('{"a": "' + "x" * (2 << 20) + '"}', r"a\.json, line 1 is longer than 1 MiB"),
        ('[{"a": "' + "x" * (3 << 20) + '"}]', r"a\.json, element 1: no JSON, or longer than 1 MiB"),
        ("{\n  'a': 1\n}\n", r"a\.json holds no JSON object \(line 1 is null or no JSON"),
        ("[" * 100_000, r"a\.json"),
        ("a,b\n1,2\n", r"a\.json holds no JSON object"),
        ("[]", r"a\.json holds no rows"),
        ("\xff\xfe{", r"a\.json"),
    ],
)
def test_broken_json_is_named_by_file_and_place(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "a.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(DataError, match=words):
        rows(JsonSource(path=str(tmp_path / "a.json"), max_row_mb=1))


# ------------------------------------------------------------------------------------------------- text


def test_text_gives_a_row_a_line_or_a_file(tmp_path: Path) -> None:
    for name, text in (("b.txt", "three\n"), ("a.txt", "\ufeffone\r\n\ntwo — 2\n")):
        (tmp_path / name).write_bytes(text.encode())
    lines = rows(TextSource(path=str(tmp_path)))
    assert [(row["text"], Path(row["path"]).name) for row in lines] == [("one", "a.txt"), ("two — 2", "a.txt"), ("three", "b.txt")]
    assert [row["text"] for row in rows(TextSource(path=str(tmp_path), row="file"))] == ["one\r\n\ntwo — 2\n", "three\n"]


def test_text_that_is_not_utf_8_is_named_by_line(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"fine\ncaf\xe9\n")
    with pytest.raises(DataError, match=r"a\.txt, line 2 is not UTF-8 text.*encoding"):
        rows(TextSource(path=str(tmp_path)))
    assert [row["text"] for row in rows(TextSource(path=str(tmp_path), encoding="latin-1"))] == ["fine", "café"]
    with pytest.raises(DataError, match=r"a\.txt is longer than 1e-06 MiB"):
        rows(TextSource(path=str(tmp_path), row="file", max_row_mb=1e-6))


# ------------------------------------------------------------------------------------------------- images


def test_images_come_as_bytes_with_the_folder_as_label(tmp_path: Path) -> None:
    png = b"\x89PNG\r\n\x1a\n" + b"rest"
    for name in ("cat/1.png", "dog/2.PNG"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_bytes(png + name.encode())
    (tmp_path / "dog" / "empty.png").write_bytes(b"")
    (tmp_path / "dog" / "fake.jpg").write_bytes(b"<html>")
    (tmp_path / "dog" / "huge.jpg").write_bytes(b"\xff\xd8\xff" + b"0" * 2000)
    source = ImageSource(path=str(tmp_path), label=True, max_image_mb=0.001)
    bad = sources.BadRows()
    found = rows(source, bad)
    assert sources.schema_of(source) == {"image": "bytes", "path": "string", "label": "string"}
    assert [(row["image"], row["label"]) for row in found] == [(png + b"cat/1.png", "cat"), (png + b"dog/2.PNG", "dog")]
    assert [reason.split("/")[-1].split(" ")[0] for reason in bad.reasons] == ["empty.png", "fake.jpg", "huge.jpg"]
    assert "label" not in rows(source.model_copy(update={"label": False}))[0]
    assert len(sources.fingerprint(source)) == 5


# ------------------------------------------------------------------------------------------------- tfrecord


def tfrecord(records: list[bytes]) -> bytes:
    """The format as its documentation gives it."""
    crc = pytest.importorskip("google_crc32c").value

    def masked(data: bytes) -> int:
        return ((crc(data) >> 15 | crc(data) << 17) + 0xA282EAD8) & 0xFFFFFFFF

    heads = [struct.pack("<Q", len(record)) for record in records]
    framed = zip(heads, records, strict=True)
    return b"".join(head + struct.pack("<I", masked(head)) + record + struct.pack("<I", masked(record)) for head, record in framed)


def example(**features: Any) -> bytes:
    """A tf.train.Example spelled byte by byte, so that the reader is not tested with itself."""

    def field(number: int, content: bytes) -> bytes:
        return bytes([number << 3 | 2]) + varint(len(content)) + content

    def varint(number: int) -> bytes:
        number &= (1 << 64) - 1
        out = b""
        while True:
            number, low = number >> 7, number & 127
            out += bytes([low | 128 * (number > 0)])
            if not number:
                return out

    entries = b""
    for name, values in features.items():
        first = values[0] if values else b""
        if isinstance(first, bytes):
            feature = field(1, b"".join(field(1, value) for value in values))
        elif isinstance(first, float):
            feature = field(2, field(1, struct.pack(f"<{len(values)}f", *values)))
        else:
            feature = field(3, field(1, b"".join(varint(value) for value in values)))
        entries += field(1, field(1, name.encode()) + field(2, feature))
    return field(1, entries)


def test_tfrecord_examples_are_read_without_tensorflow(tmp_path: Path) -> None:
    records = [example(n=[-5], x=[0.5], s=["Zoë".encode()], many=[1, 2]), example(n=[2**40], x=[], s=[b"b"], many=[3])]
    (tmp_path / "a.tfrecord").write_bytes(tfrecord(records))
    source = TfRecordSource(path=str(tmp_path / "a.tfrecord"))
    assert sources.schema_of(source) == {"n": "int", "s": "string", "x": "float"}
    assert rows(source) == [{"n": -5, "s": "Zoë", "x": 0.5}, {"n": 2**40, "s": "b", "x": None}]
    (tmp_path / "b.tfrecord.gz").write_bytes(gzip.compress(tfrecord(records)))
    assert rows(TfRecordSource(path=str(tmp_path / "b.tfrecord.gz"))) == rows(source)


def test_a_tfrecord_keeps_bytes_that_are_no_text(tmp_path: Path) -> None:
    (tmp_path / "a.tfrecord").write_bytes(tfrecord([example(image=[b"\x89PNG"]), example(image=[b"GIF8"])]))
    source = TfRecordSource(path=str(tmp_path / "a.tfrecord"))
    assert sources.schema_of(source) == {"image": "bytes"}
    assert [row["image"] for row in rows(source)] == [b"\x89PNG", b"GIF8"]


@pytest.mark.parametrize(
    ("place", "words"),
    [(0, "record 1: its head is damaged"), (14, "record 1: its checksum is wrong"), (-1, "record 2: its checksum is wrong")],
)
def test_a_changed_byte_in_a_tfrecord_is_found_by_its_checksum(tmp_path: Path, place: int, words: str) -> None:
    data = bytearray(tfrecord([example(n=[1]), example(n=[2])]))
    data[place] ^= 1
    (tmp_path / "a.tfrecord").write_bytes(data)
    with pytest.raises(DataError, match=rf"a\.tfrecord, {words}"):
        rows(TfRecordSource(path=str(tmp_path / "a.tfrecord")))


def test_a_cut_off_or_overlong_tfrecord_is_named(tmp_path: Path) -> None:
    whole = tfrecord([example(n=[1]), example(n=[2])])
    (tmp_path / "a.tfrecord").write_bytes(whole[:-6])
    with pytest.raises(DataError, match=r"a\.tfrecord ends within record 2"):
        rows(TfRecordSource(path=str(tmp_path / "a.tfrecord")))
    (tmp_path / "a.tfrecord").write_bytes(tfrecord([b"x" * 2000]))
    with pytest.raises(DataError, match=r"record 1 has 2,000 bytes; expected at most 0\.001 MiB"):
        rows(TfRecordSource(path=str(tmp_path / "a.tfrecord"), max_row_mb=0.001))


# ------------------------------------------------------------------------------------------------- sql


def database(path: Path) -> Path:
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE t (id INTEGER, city TEXT, score REAL)")
        connection.executemany("INSERT INTO t VALUES (:id, :city, :score)", ROWS)
    connection.close()
    return path


def test_a_query_on_sqlite_is_read_in_its_order(tmp_path: Path) -> None:
    source = SqlSource(url=f"sqlite:///{database(tmp_path / 'a.db')}", query="SELECT * FROM t WHERE id < 3 ORDER BY id DESC")
    assert rows(source, batch_rows=1) == [ROWS[1], ROWS[0]]
    before = sources.fingerprint(source)
    assert before == sources.fingerprint(source)
    with sqlite3.connect(tmp_path / "a.db") as connection:
        connection.execute("UPDATE t SET score = 9")
    connection.close()
    assert before != sources.fingerprint(source)


def test_a_query_cannot_change_the_database(tmp_path: Path) -> None:
    path = database(tmp_path / "a.db")
    with pytest.raises(DataError, match="readonly database"):
        rows(SqlSource(url=f"sqlite:///{path}", query="DELETE FROM t"))


@pytest.mark.parametrize(
    ("query", "words"),
    [
        ("SELECT town FROM t", r"no such column: town.*Set data.source.query"),
        ("SELECT id, city AS id FROM t", "gives the column 'id' twice"),
        ("SELECT * FROM t WHERE id > 9", "holds no rows"),
    ],
)
def test_a_wrong_query_says_so(tmp_path: Path, query: str, words: str) -> None:
    with pytest.raises(DataError, match=words):
        rows(SqlSource(url=f"sqlite:///{database(tmp_path / 'a.db')}", query=query))


def test_a_missing_or_false_database_is_named(tmp_path: Path) -> None:
    with pytest.raises(SourceUnavailable, match=r"b\.db is no file"):
        sources.parts_of(SqlSource(url=f"sqlite:///{tmp_path / 'b.db'}", query="SELECT 1"))
    (tmp_path / "b.db").write_text("no database at all, but long enough to be read as a header of one")
    with pytest.raises(DataError, match=r"b\.db refused.*not a database"):
        rows(SqlSource(url=f"sqlite:///{tmp_path / 'b.db'}", query="SELECT * FROM t"))


@pytest.mark.parametrize("url", ["postgresql://me:secret@host/db", "postgresql://host/db?user=me&password=secret", "mysql://host/db"])
def test_an_address_with_a_password_or_of_an_unknown_database_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match=r"password; expected it in the environment|is no known database address"):
        SqlSource(url=url, query="SELECT 1")


def test_a_postgres_that_does_not_answer_is_unavailable() -> None:
    pytest.importorskip("psycopg")
    source = SqlSource.model_validate(
        {"url": "postgresql://127.0.0.1:9/none", "query": "SELECT 1", "retry": {"attempts": 2, "first_wait_s": 0}}
    )
    with pytest.raises(SourceUnavailable, match=r"127\.0\.0\.1:9/none did not answer.*Tried 2 times"):
        sources.schema_of(source)


def test_a_query_on_postgres_gives_the_same_rows_as_on_sqlite() -> None:
    psycopg = pytest.importorskip("psycopg")
    url = os.environ.get("RAYMLP_TEST_POSTGRES")
    if not url:
        pytest.skip("no PostgreSQL; set RAYMLP_TEST_POSTGRES to an address whose database may be written")
    with psycopg.connect(url) as connection:
        connection.execute("DROP TABLE IF EXISTS raymlp_test")
        connection.execute("CREATE TABLE raymlp_test (id int, city text, score numeric(4, 2), at timestamptz)")
        for row in ROWS:
            connection.execute("INSERT INTO raymlp_test VALUES (%(id)s, %(city)s, %(score)s, '2013-07-01 10:00+01')", row)
    source = SqlSource(url=url, query="SELECT * FROM raymlp_test ORDER BY id;")
    assert sources.schema_of(source) == {"id": "int", "city": "string", "score": "float", "at": "timestamp"}
    assert rows(source) == [{**row, "at": datetime(2013, 7, 1, 9, tzinfo=UTC)} for row in ROWS]
    before = sources.fingerprint(source)
    assert before == sources.fingerprint(source)
    with psycopg.connect(url) as connection:
        connection.execute("CREATE SEQUENCE IF NOT EXISTS raymlp_test_number")
    with pytest.raises(DataError, match="read-only transaction"):
        rows(SqlSource(url=url, query="SELECT nextval('raymlp_test_number') AS n"))
    with psycopg.connect(url) as connection:
        connection.execute("UPDATE raymlp_test SET score = 1 WHERE id = 1")
    assert before != sources.fingerprint(source)


# ------------------------------------------------------------------------------------------------- lakes


def test_a_delta_table_is_read_at_a_version_with_columns_and_rows_chosen(tmp_path: Path) -> None:
    deltalake = pytest.importorskip("deltalake")
    place = str(tmp_path / "table")
    deltalake.write_deltalake(place, pa.Table.from_pylist(ROWS), partition_by=["id"])
    deltalake.write_deltalake(place, pa.table({"id": [4], "city": ["Rome"], "score": [4.0]}), mode="append")
    by_id = sorted(rows(DeltaSource(path=place)), key=lambda row: row["id"])
    assert by_id == [*ROWS, {"id": 4, "city": "Rome", "score": 4.0}]
    assert sorted(rows(DeltaSource(path=place, version=0)), key=lambda row: row["id"]) == ROWS
    chosen = DeltaSource(path=place, columns=("city",), where=(("id", ">=", 3),))
    assert sorted(row["city"] for row in rows(chosen)) == ["Oslo", "Rome"]
    assert len(sources.parts_of(chosen)) == 2
    assert [fact["version"] for fact in sources.fingerprint(DeltaSource(path=place))] == [1]
    with pytest.raises(SourceUnavailable, match="is no Delta table"):
        sources.parts_of(DeltaSource(path=str(tmp_path)))


def test_an_iceberg_table_is_read_at_a_snapshot_with_columns_and_rows_chosen(tmp_path: Path) -> None:
    catalogs = pytest.importorskip("pyiceberg.catalog")
    pytest.importorskip("sqlalchemy")
    properties = {"type": "sql", "uri": f"sqlite:///{tmp_path}/catalog.db", "warehouse": f"file://{tmp_path}/warehouse"}
    catalog = catalogs.load_catalog("test", **properties)
    catalog.create_namespace("space")
    data = pa.Table.from_pylist(ROWS)
    table = catalog.create_table("space.t", schema=data.schema)
    table.append(data)
    first = table.current_snapshot().snapshot_id
    table.append(pa.table({"id": [4], "city": ["Rome"], "score": [4.0]}))
    source = IcebergSource(table="space.t", catalog="test", properties=properties)
    assert sorted(rows(source), key=lambda row: row["id"]) == [*ROWS, {"id": 4, "city": "Rome", "score": 4.0}]
    assert rows(source.model_copy(update={"snapshot_id": first})) == ROWS
    assert rows(source.model_copy(update={"columns": ("city",), "where": (("id", "in", (3, 9)),)})) == [{"city": "Oslo"}]
    with pytest.raises(SourceUnavailable, match="not in the catalog"):
        sources.parts_of(source.model_copy(update={"table": "space.none"}))
    catalog.close()


# ------------------------------------------------------------------------------------------------- kafka


def test_kafka_settings_reach_the_reader_and_the_password_stays_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    from raymlp.data.sources import kafka

    source = KafkaSource.model_validate(
        {"servers": ["a:9092", "b:9092"], "topic": "t", "start": 5, "end": "2013-07-01T00:00:00", "client": {"sasl.mechanism": "PLAIN"}}
    )
    part = sources.Part(source.name, piece=((0, 5, 9), (1, 7, 7)))
    monkeypatch.setenv("RAYMLP_KAFKA_USER", "me")
    with pytest.raises(ConfigError, match="RAYMLP_KAFKA_PASSWORD go together"):
        kafka.arguments(source, part)
    monkeypatch.setenv("RAYMLP_KAFKA_PASSWORD", "secret")
    asked = kafka.arguments(source, part)
    assert asked == {
        "topics": "t",
        "bootstrap_servers": ["a:9092", "b:9092"],
        "start_offset": {"t": {0: 5, 1: 7}},
        "end_offset": {"t": {0: 9, 1: 7}},
        "consumer_config": {"sasl.mechanism": "PLAIN", "sasl.username": "me", "sasl.password": "secret"},
        "timeout_ms": 300_000,
    }
    assert "secret" not in source.model_dump_json()
    import inspect

    import ray

    inspect.signature(ray.data.read_kafka).bind(**asked)


def test_a_kafka_message_gives_the_fields_of_its_json_object() -> None:
    from raymlp.data.sources import kafka

    message = {"value": b'{"a": 1}', "partition": 2, "offset": 7, "timestamp": 1_372_672_800_000}
    assert kafka.row_of(message) == {"a": 1, "partition": 2, "offset": 7, "timestamp": datetime(2013, 7, 1, 10, tzinfo=UTC)}
    assert kafka.row_of({**message, "value": b"[1]"}) is None
    assert kafka.row_of({**message, "value": None}) is None


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"start": 9, "end": 9}, "start is 9; expected less than end"),
        ({"end": 9, "client": {"sasl.password": "x"}}, "sasl.password is a secret"),
    ],
)
def test_kafka_bounds_and_secrets_are_checked_with_the_config(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        KafkaSource(servers=("a:9092",), topic="t", **changes)


# ------------------------------------------------------------------------------------------------- extras


@pytest.mark.parametrize(
    ("source", "extra"),
    [
        (TfRecordSource(path="a.tfrecord"), "tfrecord"),
        (SqlSource(url="postgresql://host/db", query="SELECT 1"), "postgres"),
        (DeltaSource(path="table"), "delta"),
        (IcebergSource(table="a.b"), "iceberg"),
        (KafkaSource(servers=("a:1",), topic="t", end=9), "kafka"),
    ],
)
def test_a_missing_package_names_its_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: Any, extra: str) -> None:
    from raymlp.data.sources import extras

    def refuse(name: str) -> Any:
        raise ImportError(f"No module named '{name}'")

    (tmp_path / "a.tfrecord").write_bytes(b"x")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(extras, "import_module", refuse)
    with pytest.raises(ConfigError, match=rf"Install it: pip install 'raymlp\[{extra}\]'"):
        sources.schema_of(source)


def test_every_kind_of_source_has_a_section_and_a_module() -> None:
    from typing import get_args

    from raymlp.config.sources import Source

    kinds = {section.model_fields["kind"].default for section in get_args(get_args(Source)[0])}
    assert kinds == set(sources.KINDS)
    for kind in kinds:
        module = importlib.import_module(f"raymlp.data.sources.{kind}")
        assert all(callable(getattr(module, name)) for name in ("parts", "fingerprint", "schema", "batches"))


# ------------------------------------------------------------------------------------------------- into a snapshot


@pytest.mark.ray
def test_images_reach_a_snapshot_as_bytes_and_false_ones_the_quarantine(ray_runtime: Runtime, tmp_path: Path) -> None:
    for i in range(60):
        folder = tmp_path / "in" / ("cat", "dog")[i % 2]
        folder.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (5, 4), (i, 0, 0)).save(folder / f"{i:02}.png")
    (tmp_path / "in" / "cat" / "false.png").write_bytes(b"text")
    cut = tmp_path / "in" / "cat" / "cut.png"
    Image.effect_noise((9, 9), 50).save(cut)
    cut.write_bytes(cut.read_bytes()[:-50])
    Image.new("RGB", (50, 50)).save(tmp_path / "in" / "dog" / "large.png")
    problem = Problem(name="pets", task="binary", target="label", positive_class="cat")
    data = Data(source=ImageSource(path=str(tmp_path / "in"), label=True), split=RandomSplit(), max_bad_share=0.1, max_image_pixels=99)
    snapshot = prepare(problem, data, tmp_path / "out")
    assert snapshot.quarantined == 3
    reasons = pa.concat_tables(parquet.read(file) for file in (snapshot.path / "quarantine").glob("*.parquet")).column(REASON).to_pylist()
    assert sorted(reason for reason in reasons if reason.startswith("image is")) == [
        "image is a damaged image (OSError)", "image is an image of 50 x 50 pixels",
    ]  # fmt: skip
    assert load_contract(snapshot.path).columns["image"].max_pixels == 99
    train = read_split(snapshot.path, "train")
    assert train.column("image").type == pa.binary()
    assert {value[:8] for value in train.column("image").to_pylist()} == {b"\x89PNG\r\n\x1a\n"}
    profile = load_profile(snapshot.path).columns["image"]
    assert (profile.type, profile.nulls, profile.num_distinct) == ("bytes", 0, train.num_rows)


@pytest.mark.ray
def test_a_database_and_json_lines_of_the_same_rows_give_the_same_snapshot(ray_runtime: Runtime, tmp_path: Path) -> None:
    values = [{"x": i, "k": f"k{i % 3}", "y": i % 2} for i in range(100)]
    (tmp_path / "a.jsonl").write_text("\n".join(json.dumps(value) for value in values))
    with sqlite3.connect(tmp_path / "a.db") as connection:
        connection.execute("CREATE TABLE t (x INTEGER, k TEXT, y INTEGER)")
        connection.executemany("INSERT INTO t VALUES (:x, :k, :y)", values)
    connection.close()
    problem = Problem(name="toy", task="binary", target="y", positive_class="1")
    both = (JsonSource(path=str(tmp_path / "a.jsonl")), SqlSource(url=f"sqlite:///{tmp_path / 'a.db'}", query="SELECT * FROM t ORDER BY x"))
    made = [prepare(problem, Data(source=source, split=RandomSplit()), tmp_path / "out") for source in both]
    assert made[0].path != made[1].path
    assert made[0].digest == made[1].digest


def test_bytes_are_checked_as_base64_at_the_endpoint_and_kept_out_of_quarantine() -> None:
    contract = Contract.model_validate({"columns": {"image": {"type": "bytes"}, "n": {"type": "int"}}})
    check = row_checker(contract)
    assert check({"image": "iVBORw==", "n": 1}, "instances[0]") == {"image": b"\x89PNG", "n": 1}
    with pytest.raises(RequestError, match=r"instances\[0\]\.image is .*; expected base64 text or null"):
        check({"image": "not base64!", "n": 1}, "instances[0]")
    good, broken = check_table(contract, pa.table({"image": [b"\x89", b"\xff"], "n": ["1", "oops"]}))
    assert good.to_pylist() == [{"image": b"\x89", "n": 1}]
    assert broken.column("image").to_pylist() == ["ff000000"]


def test_a_whole_number_beyond_64_bits_is_a_bad_row_and_no_crash() -> None:
    contract = Contract.model_validate({"columns": {"n": {"type": "int"}}})
    good, broken = check_table(contract, pa.table({"n": ["1", "99999999999999999999", "-9223372036854775808"]}))
    assert good.column("n").to_pylist() == [1, -(2**63)]
    assert broken.num_rows == 1


def test_init_suggests_a_json_source_for_a_json_file(tmp_path: Path) -> None:
    from raymlp.data import suggest

    (tmp_path / "a.jsonl").write_text("\n".join(json.dumps(row) for row in ROWS))
    assert suggest._source(tmp_path / "a.jsonl") == JsonSource(path=str(tmp_path / "a.jsonl"))
