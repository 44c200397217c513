"""Which columns look personal: own detectors on a bounded sample, with check digits where the numbers have them.

E-mail, phone, payment card (Luhn), IBAN (ISO 7064 mod 97), IP address, US social security number, and national ids of some
countries are judged by their values. Names of people and dates of birth are judged by the column's name and the values' shape
alone: a name in a column that is not called one, or inside a sentence, is not found. Nothing found is no proof.

Counts of parts add up, so that the scan runs where the rows are.
"""

from __future__ import annotations

import ipaddress
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from raymlp.data.profile import column_type, to_text

SAMPLE_ROWS = 1_000
"""Rows of a part that are looked at."""
SAMPLE_PARTS = 16
"""Parts, evenly spaced, that are looked at."""
MAX_CHARACTERS = 2_000
"""Characters of a value that are looked at."""
MIN_HITS = 3
MIN_NAMES = 50
TITLES = frozenset({"mr", "mrs", "miss", "ms", "dr", "master", "rev", "sir", "herr", "frau", "mme", "don"})
VALUES = "values"
Counts = dict[str, dict[str, int]]
"""Column to detector to number of distinct values that fit; under `values` how many there were."""


@dataclass(frozen=True)
class Detector:
    """What personal data of one kind looks like. `share` is how many of the values, in [0, 1], must fit."""

    words: str
    fits: Callable[[str], bool]
    share: float
    proposal: Any
    hints: frozenset[str] = frozenset()
    """Words of which one must be in the column's name; empty asks for none."""


@dataclass(frozen=True)
class Finding:
    """A column that looks personal, and the rule to propose."""

    column: str
    words: str
    share: float
    values: int
    proposal: Any

    def __str__(self) -> str:
        seen = f" ({self.share:.0%} of {self.values:,} values)" if self.values else ""
        return (
            f"column '{self.column}' looks like {self.words}{seen} and has no privacy rule; "
            f"set data.privacy.columns.{self.column}={_flow(self.proposal)}, or keep where that is meant"
        )


def counted(table: pa.Table, *, known: Collection[str] = ()) -> Counts:
    """Counts of the first rows of a table; columns in `known` are left out."""
    counts: Counts = {}
    for name in table.column_names:
        column = table.column(name)
        kind = column_type(column.type)
        if name in known or kind not in ("string", "int", "timestamp"):
            continue
        sample = column.slice(0, SAMPLE_ROWS).drop_null()
        values = [] if kind == "timestamp" else [value[:MAX_CHARACTERS] for value in pc.unique(to_text(sample)).to_pylist()]
        counts[name] = _fitting(name, kind, values, len(sample))
    return counts


def added(counts: Iterable[Mapping[str, Mapping[str, int]]]) -> Counts:
    """The counts of several parts."""
    total: dict[str, Counter[str]] = {}
    for part in counts:
        for name, hits in part.items():
            total.setdefault(name, Counter()).update(hits)
    return {name: dict(hits) for name, hits in total.items()}


def findings(counts: Counts) -> list[Finding]:
    """Columns that look personal, each once, as the kind that fits best."""
    found = []
    for name, hits in counts.items():
        values = hits.get(VALUES, 0)
        kinds = [kind for kind in hits if kind in DETECTORS and _enough(hits[kind], values, DETECTORS[kind])]
        if kinds:
            best = max(kinds, key=lambda kind: hits[kind])
            detector = DETECTORS[best]
            found.append(Finding(name, detector.words, hits[best] / values, values, detector.proposal))
        elif BIRTH in hits:
            found.append(Finding(name, "dates of birth, by its name", 0.0, 0, {"kind": "generalise", "to": "year"}))
    return found


def scan(table: pa.Table, *, known: Collection[str] = ()) -> list[Finding]:
    """Columns of a table that look personal, from its first rows."""
    return findings(counted(table, known=known))


def sampled_parts(count: int) -> set[int]:
    """The parts of `count` that are looked at."""
    return set(range(0, count, max(1, -(-count // SAMPLE_PARTS))))


def _enough(hits: int, values: int, detector: Detector) -> bool:
    return hits >= min(MIN_HITS, values) and hits >= detector.share * values and hits > 0


def _fitting(name: str, kind: str, values: list[str], rows: int) -> dict[str, int]:
    words = words_of(name)
    if kind == "timestamp":
        return {BIRTH: 1} if words & BIRTH_WORDS else {}
    hits = {VALUES: len(values)}
    candidates = [value for value in values if CANDIDATE.search(value)]
    for label, detector in DETECTORS.items():
        if detector.hints and not detector.hints & words:
            continue
        pool = values if label == "name" else candidates
        hits[label] = sum(detector.fits(value) for value in pool)
    if "name" in hits and words <= {"name"} and _names_things(values, rows):
        del hits["name"]
    return hits


def _names_things(values: list[str], rows: int) -> bool:
    """Whether a column that is only called `name` names shops or airports: few values, or a word that many share (`Airport`)."""
    words = Counter(word for value in values for word in set(re.findall(r"[^\W\d_]{2,}", value.lower())) - TITLES)
    shared = max(words.values(), default=0)
    return len(values) < max(MIN_NAMES, rows / 2) or shared > 0.15 * len(values)


def words_of(name: str) -> frozenset[str]:
    """Words of a column's name: `firstName`, `first_name` and `FIRST NAME` are first and name; joined ones also stand whole."""
    parts = re.findall(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])", name)
    words = {part.lower() for part in parts}
    return frozenset(words | {"".join(part.lower() for part in parts)})


# ---------------------------------------------------------------------- values

CANDIDATE = re.compile(r"@|(?:\d\D*){6}|:.*:|[A-Z]{6}\d\d")
"""What a value of any detector but names must hold; most values of most columns are done with it."""
EMAIL = re.compile(r"(?<![\w.+-])[\w.+-]+@[A-Za-z0-9](?:[A-Za-z0-9-]*\.)+[A-Za-z]{2,}(?![\w-])")
PHONE = re.compile(
    r"(?<![\w.+-])(?:\+[1-9](?:[ ()./-]{0,2}\d){7,14}"  # E.164, in groups or not
    r"|(?:1[ .-])?(?:\(\d{3}\) ?|\d{3}[ .-])\d{3}[ .-]\d{4}"  # North America
    r"|\(?0\d{1,4}\)?[ /-]{1,3}\d{2,4}(?:[ -]?\d{2,4}){1,3})(?![\w-])"  # 0171 234567, (030) 123 456, 020 7946 0958
)
BARE_PHONE = re.compile(r"\+?\d{7,15}")
CARD = re.compile(r"(?<![\w.])(?:\d[ -]?){12,18}\d(?![\w.])")
CARD_START = re.compile(
    r"4(?:\d{12}|\d{15}|\d{18})|5[1-5]\d{14}|2(?:22[1-9]|2[3-9]\d|[3-6]\d\d|7[01]\d|720)\d{12}|3[47]\d{13}"
    r"|3(?:0[0-5]|[68]\d)\d{11}|35\d{14}|6(?:011|4[4-9]\d|5\d\d)\d{12}"
)
IBAN = re.compile(r"\b[A-Z]{2}\d{2}(?: ?[A-Z0-9]){11,30}\b")
IBAN_LENGTH = {
    "AD": 24, "AE": 23, "AL": 28, "AT": 20, "BA": 20, "BE": 16, "BG": 22, "BH": 22, "BR": 29, "CH": 21, "CR": 22, "CY": 28,
    "CZ": 24, "DE": 22, "DK": 18, "DO": 28, "EE": 20, "ES": 24, "FI": 18, "FR": 27, "GB": 22, "GE": 22, "GI": 23, "GR": 27,
    "HR": 21, "HU": 28, "IE": 22, "IL": 23, "IS": 26, "IT": 27, "JO": 30, "KW": 30, "KZ": 20, "LB": 28, "LI": 21, "LT": 20,
    "LU": 20, "LV": 21, "MC": 27, "MD": 24, "ME": 22, "MK": 19, "MT": 31, "NL": 18, "NO": 15, "PK": 24, "PL": 28, "PT": 25,
    "QA": 29, "RO": 24, "RS": 22, "SA": 24, "SE": 24, "SI": 19, "SK": 24, "SM": 27, "TN": 24, "TR": 26, "UA": 29,
}  # fmt: skip
IPV4 = re.compile(r"(?<![\w.])\d{1,3}(?:\.\d{1,3}){3}(?![\w.])")
IPV6 = re.compile(r"(?<![\w:])[0-9A-Fa-f:]{3,39}(?![\w:])")
SSN = re.compile(r"(?<![\w-])(?!000|666|9)\d{3}-(?!00)\d{2}-(?!0000)\d{4}(?![\w-])")
NAME = re.compile(r"[^\W\d_]+(?:[ ,.'\u2019()\"-]+[^\W\d_]+){0,7}[.)\"]*")
BIRTH = "birth"
BIRTH_WORDS = frozenset({"birth", "birthday", "birthdate", "born", "dob"})


def luhn(digits: str) -> bool:
    """Whether the last digit fits the others (ISO/IEC 7812)."""
    doubled = [sum(divmod(int(digit) * 2, 10)) for digit in digits[-2::-2]]
    return (sum(map(int, digits[-1::-2])) + sum(doubled)) % 10 == 0


def is_card(text: str) -> bool:
    """Whether a text holds a payment card number: a known start and length, and Luhn."""
    numbers = (re.sub(r"\D", "", match.group()) for match in CARD.finditer(text))
    return any(CARD_START.fullmatch(number) and luhn(number) for number in numbers)


def is_iban(text: str) -> bool:
    """Whether a text holds an IBAN: the country's length, and remainder 1 modulo 97 (ISO 13616)."""
    for match in IBAN.finditer(text):
        number = match.group().replace(" ", "")
        length = IBAN_LENGTH.get(number[:2])
        if length is not None and len(number) >= length:
            number = number[:length]
            if int("".join(str(int(sign, 36)) for sign in number[4:] + number[:4])) % 97 == 1:
                return True
    return False


def is_ip(text: str) -> bool:
    """Whether a text holds an IPv4 or IPv6 address."""
    parts = [*IPV4.findall(text), *(part for part in IPV6.findall(text) if part.count(":") > 1)]
    return any(_parses(part) for part in parts)


def _parses(address: str) -> bool:
    try:
        ipaddress.ip_address(address)
    except ValueError:
        return False
    return True


def is_national_id(text: str) -> bool:
    """Whether a text is an id of one of the countries below, check digits and all."""
    plain = re.sub(r"[ ./-]", "", text).upper()
    return any(check(plain) for check in NATIONAL)


def spanish(text: str) -> bool:
    """DNI or NIE: the letter is the number modulo 23."""
    if not re.fullmatch(r"(?:\d|[XYZ])\d{7}[A-Z]", text):
        return False
    number = int(text[:-1].replace("X", "0").replace("Y", "1").replace("Z", "2"))
    return "TRWAGMYFPDXBNJZSQVHLCKE"[number % 23] == text[-1]


def french(text: str) -> bool:
    """NIR: the last two digits are 97 less the rest modulo 97; Corsica's departments have letters."""
    if not re.fullmatch(r"[1-4]\d{2}(?:0[1-9]|1[0-2]|[2-9]\d)\d(?:\d|A|B)\d{8}", text):
        return False
    digits = text.replace("2A", "19").replace("2B", "18")
    return digits.isdigit() and 97 - int(digits[:13]) % 97 == int(digits[13:])


def italian(text: str) -> bool:
    """Codice fiscale: the last letter is the sum of values of odd and even places modulo 26."""
    if not re.fullmatch(r"[A-Z]{6}\d{2}[A-EHLMPRST]\d{2}[A-Z]\d{3}[A-Z]", text):
        return False
    odd = dict(zip("0123456789", (1, 0, 5, 7, 9, 13, 15, 17, 19, 21), strict=True))
    odd |= dict(zip("ABCDEFGHIJKLMNOPQRSTUVWXYZ", ITALIAN_ODD, strict=True))
    even = {sign: int(sign, 36) - (0 if sign.isdigit() else 10) for sign in text}
    total = sum((odd if place % 2 == 0 else even)[sign] for place, sign in enumerate(text[:15]))
    return chr(ord("A") + total % 26) == text[15]


ITALIAN_ODD = (1, 0, 5, 7, 9, 13, 15, 17, 19, 21, 2, 4, 18, 20, 11, 3, 6, 8, 12, 14, 16, 10, 22, 25, 24, 23)


def polish(text: str) -> bool:
    """PESEL: a date of birth (the century is in the month), and a weighted sum."""
    if not re.fullmatch(r"\d{11}", text) or not 1 <= int(text[2:4]) % 20 <= 12 or not 1 <= int(text[4:6]) <= 31:
        return False
    return sum(int(digit) * weight for digit, weight in zip(text, (1, 3, 7, 9, 1, 3, 7, 9, 1, 3, 1), strict=True)) % 10 == 0


def brazilian(text: str) -> bool:
    """CPF: two check digits modulo 11."""
    if not re.fullmatch(r"\d{11}", text) or len(set(text)) == 1:
        return False
    digits = [int(digit) for digit in text]
    checks = [sum(d * w for d, w in zip(digits, range(n + 1, 1, -1), strict=False)) * 10 % 11 % 10 for n in (9, 10)]
    return checks == digits[9:]


def british(text: str) -> bool:
    """NHS number: one check digit modulo 11."""
    if not re.fullmatch(r"\d{10}", text):
        return False
    check = -sum(int(d) * w for d, w in zip(text, range(10, 1, -1), strict=False)) % 11
    return check == int(text[9])


def german(text: str) -> bool:
    """Tax id: ISO 7064 mod 11,10, and among the first ten digits one repeats."""
    if not re.fullmatch(r"[1-9]\d{10}", text) or len(set(text[:10])) not in (8, 9):
        return False
    product = 10
    for digit in text[:10]:
        total = (int(digit) + product) % 10 or 10
        product = total * 2 % 11
    return (11 - product) % 10 == int(text[10])


def dutch(text: str) -> bool:
    """BSN: a weighted sum that 11 divides."""
    if not re.fullmatch(r"\d{9}", text) or text == "0" * 9:
        return False
    return sum(int(d) * w for d, w in zip(text, (9, 8, 7, 6, 5, 4, 3, 2, -1), strict=True)) % 11 == 0


NATIONAL = (spanish, french, italian, polish, brazilian, british, german, dutch)


def is_name(text: str) -> bool:
    """Whether a text has the shape of a person's name: one to eight words of letters, at least one with a capital."""
    return 2 <= len(text) <= 60 and NAME.fullmatch(text.strip()) is not None and any(sign.isupper() for sign in text)


PHONE_WORDS = frozenset({"phone", "telephone", "tel", "mobile", "cell", "cellphone", "fax", "msisdn", "telefon", "handy", "phonenumber"})
NAME_WORDS = frozenset(
    {
        "name",
        "firstname",
        "lastname",
        "surname",
        "forename",
        "fullname",
        "givenname",
        "familyname",
        "middlename",
        "maidenname",
        "vorname",
        "nachname",
        "personname",
        "customername",
        "patientname",
        "passengername",
        "employeename",
        "prenom",
        "nombre",
        "apellido",
    }
)
HASHED = "hash"
DETECTORS: dict[str, Detector] = {
    "email": Detector("e-mail addresses", lambda text: EMAIL.search(text) is not None, 0.02, HASHED),
    "iban": Detector("bank account numbers (IBAN)", is_iban, 0.05, "drop"),
    "card": Detector("payment card numbers", is_card, 0.2, "drop"),
    "ssn": Detector("US social security numbers", lambda text: SSN.search(text) is not None, 0.1, "drop"),
    "phone": Detector("phone numbers", lambda text: PHONE.search(text) is not None, 0.2, {"kind": "mask", "keep_last": 2}),
    "bare phone": Detector(
        "phone numbers", lambda text: BARE_PHONE.fullmatch(text) is not None, 0.5, {"kind": "mask", "keep_last": 2}, PHONE_WORDS
    ),
    "ip": Detector("IP addresses", is_ip, 0.5, HASHED),
    "national": Detector("national ids", is_national_id, 0.8, "pseudonymise"),
    "name": Detector("names of people, by its name and shape", is_name, 0.8, "drop", NAME_WORDS),
}


def _flow(proposal: Any) -> str:
    if isinstance(proposal, str):
        return proposal
    return "{" + ",".join(f"{key}:{value}" for key, value in proposal.items()) + "}"
