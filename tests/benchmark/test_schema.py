"""The published schema of `bench.json` is the one that is checked, and refuses what is not so."""

from __future__ import annotations

import json
from collections.abc import Callable
from importlib.resources import files
from typing import Any

import pytest
from pydantic import ValidationError

from laco_deploy.benchmark.schema import SCHEMA_ID, SCHEMA_VERSION, BenchReport, json_schema
from tests.benchmark.made import THREE, report_of

Spoil = Callable[[dict[str, Any]], None]


@pytest.fixture
def found() -> dict[str, Any]:
    return json.loads(report_of(THREE).model_dump_json())


def test_published_schema_is_the_one_of_the_models() -> None:
    published = (files("laco_deploy.benchmark") / SCHEMA_ID).read_text(encoding="utf-8")
    wanted = json.dumps(json_schema(), indent=2) + "\n"
    assert published == wanted, "write it again: python -m laco_deploy.benchmark.schema_file"


def test_published_schema_names_every_key_of_a_report(found: dict[str, Any]) -> None:
    schema = json_schema()
    assert schema["properties"]["schema_version"]["const"] == SCHEMA_VERSION
    assert found.keys() == schema["properties"].keys()
    result = schema["$defs"]["VariantResult"]
    assert found["results"][0].keys() == result["properties"].keys()
    assert not result["additionalProperties"]


def test_report_survives_a_round_trip() -> None:
    report = report_of(THREE)
    assert BenchReport.model_validate_json(report.model_dump_json()) == report


def _other_version(found: dict[str, Any]) -> None:
    found["schema_version"] = 1


def _unknown_bundle(found: dict[str, Any]) -> None:
    found["results"][0]["bundle"] = "elsewhere"


def _bundle_twice(found: dict[str, Any]) -> None:
    found["bundles"].append(found["bundles"][0])


def _unknown_baseline(found: dict[str, Any]) -> None:
    found["results"][0]["baseline"] = "nobody"


def _other_lengths(found: dict[str, Any]) -> None:
    found["settings"]["new_tokens"] = [6, 64, 128]


def _descending_lengths(found: dict[str, Any]) -> None:
    found["settings"]["new_tokens"].reverse()


def _whole_is_not_the_longest(found: dict[str, Any]) -> None:
    one = found["results"][0]
    one["request_ms"] = one["answers"][0]["request_ms"]


def _no_reason(found: dict[str, Any]) -> None:
    one = found["results"][0]
    one["energy_joules"] = one["energy_note"] = None


def _interval_beside_the_median(found: dict[str, Any]) -> None:
    ratio = found["results"][0]["speedup_over_uncompressed"]["ttft"]
    ratio["ci95_low"] = ratio["median"] * 1.01


def _a_round_less_of_an_answer(found: dict[str, Any]) -> None:
    found["results"][0]["answers"][0]["request_ms"]["runs"].pop()


@pytest.mark.parametrize(
    "spoil",
    [
        _other_version,
        _unknown_bundle,
        _bundle_twice,
        _unknown_baseline,
        _other_lengths,
        _descending_lengths,
        _whole_is_not_the_longest,
        _no_reason,
        _interval_beside_the_median,
        _a_round_less_of_an_answer,
    ],
)
def test_schema_refuses(spoil: Spoil, found: dict[str, Any]) -> None:
    BenchReport.model_validate(found)
    spoil(found)
    with pytest.raises(ValidationError):
        BenchReport.model_validate(found)
