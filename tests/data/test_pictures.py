"""Images under a contract: damaged ones go to quarantine, or are refused with the field."""

from __future__ import annotations

import base64
import io
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from PIL import Image

from raymlp.config.data import Data
from raymlp.config.problem import Problem
from raymlp.config.sources import ImageSource, ParquetSource
from raymlp.config.split import RandomSplit
from raymlp.core.errors import ConfigError, RequestError
from raymlp.data.contract import ColumnContract, Contract
from raymlp.data.contract_batch import REASON, check_table
from raymlp.data.contract_row import row_checker
from raymlp.data.staging import shape_of
from raymlp.data.suggest import write_experiment


def png(width: int = 9, height: int = 7) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (width, height), (200, 10, 10)).save(out, "PNG")
    return out.getvalue()


CONTRACT = Contract(columns={"shot": ColumnContract(type="bytes"), "n": ColumnContract(type="int")}).with_images(("shot",), 100)


def test_rows_with_a_damaged_or_too_large_image_are_parted_with_their_reasons() -> None:
    table = pa.table({"shot": [png(), None, png()[:-32], b"GIF?", png(20, 20), png()], "n": [1, 2, 3, 4, 5, 6]})
    good, broken = check_table(CONTRACT, table)
    assert good.column("n").to_pylist() == [1, 2, 6]
    assert good.column("shot").to_pylist() == [png(), None, png()]
    assert broken.column(REASON).to_pylist() == [
        "shot is a damaged image (OSError)",
        "shot is no image that can be read (it starts with b'GIF?')",
        "shot is an image of 20 x 20 pixels",
    ]


@pytest.mark.parametrize(
    ("value", "found"),
    [
        ("not base64!", "'not base64!' (str)"),
        ("iVBORw0K", "no image that can be read (it starts with"),
        (7, "7 (int)"),
        (base64.b64encode(png()[:-32]).decode(), "a damaged image (OSError)"),
        (base64.b64encode(png(20, 20)).decode(), "an image of 20 x 20 pixels"),
    ],
)
def test_a_request_is_refused_with_the_field_and_what_was_found(value: object, found: str) -> None:
    check = row_checker(CONTRACT)
    assert check({"shot": base64.b64encode(png()).decode(), "n": 1}, "instances[0]")["shot"] == png()
    assert check({"shot": None, "n": 1}, "instances[0]")["shot"] is None
    with pytest.raises(RequestError) as error:
        check({"shot": value, "n": 1}, "instances[3]")
    assert error.value.field == "instances[3].shot"
    assert found in error.value.found
    assert "base64 text of an image (PNG, JPEG, GIF, BMP, WEBP, TIFF) of at most 100 pixels or null" in error.value.expected


def test_a_contract_keeps_what_a_person_said_of_images_and_comes_back_from_yaml() -> None:
    assert Contract.from_yaml(CONTRACT.to_yaml()) == CONTRACT
    assert CONTRACT.with_images(("shot", "elsewhere"), 5_000).columns["shot"].max_pixels == 100
    with pytest.raises(ConfigError, match=r"data\.images names 'n', which holds int values; expected bytes"):
        CONTRACT.with_images(("n",), 100)
    with pytest.raises(ValueError, match="max_pixels is set on a column of type string"):
        ColumnContract(type="string", max_pixels=3)


def test_the_images_of_a_folder_are_always_checked_and_other_columns_where_named(tmp_path: Path) -> None:
    folder = str(tmp_path)
    pq.write_table(pa.table({"shot": [png()], "other": [b"x"], "y": ["a"]}), f"{folder}/a.parquet")
    source, problem = ParquetSource(path=f"{folder}/a.parquet"), Problem(name="p", task="multiclass", target="y")
    assert Data(source=ImageSource(path=folder), images=("image",), split=RandomSplit()).image_columns == ("image",)
    shape, _ = shape_of(problem, Data(source=source, images=("shot",), max_image_pixels=64, split=RandomSplit()))
    assert {name: rule.max_pixels for name, rule in shape.contract.columns.items()} == {"shot": 64, "other": None, "y": None}
    with pytest.raises(ConfigError, match=r"data\.images names 'shoot', which the data does not have.*Did you mean 'shot'"):
        shape_of(problem, Data(source=source, images=("shoot",), split=RandomSplit()))


def test_init_reads_free_text_and_leaves_names_of_rows_out(tmp_path: Path) -> None:
    words = ["the", "plot", "of", "this", "film", "was", "thin", "and", "its", "jokes", "were", "older", "than", "my", "hat"]
    lines = [f"r-{i},{' '.join(words[i % 5 :])} {i},{'north' if i % 2 else 'south'},{i % 3 == 0}" for i in range(300)]
    file = tmp_path / "films.csv"
    file.write_text("\n".join(["code,review,side,liked", *lines]) + "\n")
    written = write_experiment(file, "liked", name="", folder=file.parent)
    experiment = yaml.safe_load(written.path.read_text())
    assert experiment["features"] == {"text": ["review"], "text_encoding": "ngrams"}
    assert experiment["problem"]["id_columns"] == ["code"]
    assert "review is text: read as n-grams" in written.remarks
