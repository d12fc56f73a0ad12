"""Durations from a config or earlier runs, the outlook on a market, and the command that shows both."""

from __future__ import annotations

import json
import math
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from launcher.cli.main import main
from launcher.errors import Refused, UserError
from launcher.money import catalogs, estimate, forecast
from launcher.money.estimate import Past, Work

ROOT = Path(__file__).parents[2]
CATALOGS = ROOT / "tests" / "fixtures" / "catalogs" / "v8"

NANO3: dict[str, Any] = {
    "recipe": {
        "_target_": "megatron.bridge.recipes.nemotronh.nemotron_3_nano.nemotron_3_nano_pretrain_config"
    },
    "model": {"seq_length": 8192},
    "train": {"train_iters": 2000, "global_batch_size": 512},
}
QWEN = {**NANO3, "recipe": {"_target_": "megatron.bridge.recipes.qwen.qwen3.qwen3_8b_peft_config"}}


def test_hours_are_the_work_over_the_speed() -> None:
    work = estimate.work_of(NANO3)
    assert work.tokens == 2000 * 512 * 8192
    guess = estimate.estimate(work, "H100", 16, 2)
    assert guess.hours is not None
    # 6 x 3.6 B x 8.39 B over 16 x 989 TFLOP/s x 0.25
    assert guess.hours == pytest.approx(1.812e20 / (16 * 989e12 * 0.25) / 3600, rel=1e-3)
    assert "MFU 0.25 (assumed)" in guess.source
    given_mfu = estimate.estimate(estimate.work_of(NANO3, mfu=0.5), "H100", 16, 2)
    assert given_mfu.hours == pytest.approx(guess.hours / 2)
    assert estimate.estimate(work, "H100", 8, 1).hours == pytest.approx(guess.hours * 2)


def test_frozen_weights_cost_two_thirds_and_dense_ones_all_count() -> None:
    assert estimate.work_of(QWEN).flops == 4 * 8.19e9
    assert not estimate.work_of(QWEN).experts


def test_a_card_in_a_slot_is_slower() -> None:
    assert estimate.peak_tflops("H100") == 989
    assert estimate.peak_tflops("H100", "gpu_1x_h100_pcie") == 756
    assert estimate.peak_tflops("H100-80G-PCIe") == 756
    assert estimate.peak_tflops("H100-NVL") == 835
    assert estimate.peak_tflops("A100-80GB") == 312
    assert estimate.peak_tflops("RTX6000-Ada") is None


@pytest.mark.parametrize(
    ("values", "gpu", "why"),
    [
        ({"train": {"train_iters": 5, "global_batch_size": 8}}, "H100", "number of tokens is not known"),
        ({**NANO3, "recipe": {"_target_": "a.b.c"}}, "H100", "model is not known"),
        (NANO3, "MI300X", "speed of MI300X is not known"),
        (NANO3, None, "without GPUs"),
        ({**NANO3, "model": {"seq_length": "${art:data,pack_size}"}}, "H100", "data .* is not made yet"),
    ],
)
def test_what_is_not_known_is_said(values: dict[str, Any], gpu: str | None, why: str) -> None:
    guess = estimate.estimate(estimate.work_of(values), gpu, 8, 1)
    assert guess.hours is None
    assert guess.high is None
    assert re.search(why, guess.source)


def test_an_earlier_run_is_better_than_the_formula() -> None:
    past = (
        Past("other", "A100", 8, 1, 5e4, None),
        Past("newest", "H100", 8, 1, 1e5, 3.0),
    )
    guess = estimate.estimate(estimate.work_of(NANO3, past=past), "H100", 16, 2)
    assert guess.hours == pytest.approx(2000 * 512 * 8192 / 2e5 / 3600)
    assert "scaled from 8 GPUs" in guess.source
    assert guess.spread < estimate.ASSUMED_SPREAD
    took = estimate.estimate(Work(past=past), "H100", 8, 1)
    assert took.hours == 3.0
    assert estimate.estimate(Work(past=past), "H100", 16, 2).hours is None
    assert estimate.estimate(Work(hours=7.0, past=past), "H100", 16, 2).hours == 7.0


@pytest.mark.parametrize("mfu", [0.0, -0.1, 1.2, math.nan])
def test_an_mfu_is_a_share(mfu: float) -> None:
    with pytest.raises(UserError, match="--mfu"):
        estimate.work_of(NANO3, mfu=mfu)


# The market.


@settings(max_examples=40, deadline=None)
@given(
    hours=st.sampled_from([0.5, 10.0, 300.0]),
    spot=st.one_of(st.none(), st.floats(0.1, 1e3)),
    on_demand=st.floats(0.1, 1e3),
    deadline=st.sampled_from([None, 0.4, 12.0, 100.0, 900.0]),
    budget=st.one_of(st.none(), st.floats(1.0, 1e5)),
)
def test_an_outlook_keeps_its_own_bounds(
    hours: float, spot: float | None, on_demand: float, deadline: float | None, budget: float | None
) -> None:
    seen = forecast.outlook(hours, 0.1, spot=spot, on_demand=on_demand, deadline=deadline, budget=budget)
    assert seen.cost >= 0
    assert seen.worst is None or seen.cost <= seen.worst + 1e-6
    assert budget is None or (seen.worst is not None and seen.worst <= budget)
    assert (seen.chance is None) == (deadline is None and budget is None)
    assert seen.chance is None or 0 <= seen.chance <= 1
    assert seen.cost <= seen.needed + 1e-6
    if deadline is not None and spot is not None:
        assert seen.elapsed <= deadline + 1e-6


def test_nodes_that_stay_cost_their_hours() -> None:
    seen = forecast.outlook(10.0, 0.0, spot=None, on_demand=50.0)
    assert seen.cost == pytest.approx((10 + forecast.RESTART_HOURS) * 50)
    assert seen.worst == pytest.approx(seen.cost)
    assert forecast.outlook(10.0, 0.0, spot=None, on_demand=50.0, deadline=10.5).chance == 1.0
    assert forecast.outlook(10.0, 0.0, spot=None, on_demand=50.0, deadline=10.1).chance == 0.0
    assert forecast.outlook(10.0, 0.0, spot=None, on_demand=50.0, budget=509.0).chance == 0.0
    assert 0.3 < (forecast.outlook(10.0, 0.3, spot=None, on_demand=50.0, deadline=10.2).chance or 0) < 0.7


def test_on_demand_saves_a_deadline_that_spot_would_miss() -> None:
    alone = forecast.outlook(20.0, 0.0, spot=10.0, on_demand=None, deadline=26.0)
    saved = forecast.outlook(20.0, 0.0, spot=10.0, on_demand=40.0, deadline=26.0)
    assert alone.chance is not None
    assert saved.chance is not None
    assert alone.chance < 0.75 < 0.99 < saved.chance
    assert alone.needed < saved.needed < 20 * 40
    assert saved.worst == 26 * 40


def test_more_time_is_cheaper() -> None:
    costs = [
        forecast.outlook(20.0, 0.0, spot=10.0, on_demand=40.0, deadline=d).cost for d in (21, 26, 40, 80)
    ]
    assert costs == sorted(costs, reverse=True)
    assert forecast.outlook(20.0, 0.0, spot=10.0, on_demand=None).worst is None


# The command.


def plan(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    with pytest.raises(SystemExit) as end:
        main(["plan", *argv, "--project", str(ROOT)])
    assert end.value.code == 0
    return capsys.readouterr().out


@pytest.fixture(autouse=True)
def prices(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv(catalogs.FOLDER_ENV, str(CATALOGS))
    # What somebody has run here, or shares, must not be in these plans.
    monkeypatch.setenv("NEMO_SKY_ARTIFACTS", str(tmp_path / "store"))


def test_a_plan_names_every_place_its_price_and_the_best(capsys: pytest.CaptureFixture[str]) -> None:
    facts = json.loads(plan(capsys, "nano3", "pretrain", "--cloud", "any", "--json"))
    assert (facts["nodes"], facts["gpus"], facts["tokens"]) == (2, "H100:8", 2000 * 512 * 8192)
    rows = {(row["place"], row["market"], row["gpu"]): row for row in facts["rows"]}
    assert rows["aws/us-east-1/use1-az2", "spot", "H100"]["price_per_hour"] == 38.5062
    assert rows["aws/us-east-1/use1-az2", "on-demand", "H100"]["price_per_node_hour"] == 55.04
    bids = rows["mithril/us-central2-a", "spot", "H100"]
    assert (bids["cost_usd"], bids["price_per_hour"]) == (None, 16.0)
    assert facts["best"]["place"] == "nebius/eu-north1"
    assert facts["left_out"]["runpod"] == "one node only"
    costs = [row["cost_usd"] for row in facts["rows"] if row["cost_usd"] is not None]
    assert costs == sorted(costs)


@pytest.mark.parametrize(("by", "key"), [("price", "price_per_hour"), ("hours", "hours"), ("place", "place")])
def test_a_plan_sorts(capsys: pytest.CaptureFixture[str], by: str, key: str) -> None:
    facts = json.loads(plan(capsys, "nano3", "pretrain", "--sort", by, "--json"))
    values = [row[key] for row in facts["rows"] if row[key] is not None]
    assert values == sorted(values)
    unknown = [row[key] is None for row in facts["rows"]]
    assert unknown == sorted(unknown)


def test_a_plan_says_what_a_budget_lacks(capsys: pytest.CaptureFixture[str]) -> None:
    text = plan(capsys, "nano3", "pretrain", "--cloud", "aws", "--budget", "100", "--deadline", "20h")
    assert "$100.00 falls short by $" in text
    assert "nano3/pretrain, config default: 2 nodes with H100:8" in text
    enough = plan(
        capsys, "nano3", "pretrain", "--cloud", "aws", "--spot", "--budget", "$5k", "--deadline", "3d"
    )
    assert "falls short" not in enough
    assert "  on-demand  " not in enough
    assert "runs as a job on its own cluster, on spot as a managed job\n" in text
    assert "runs as a managed job: spot nodes can be preempted" in enough
    assert "  spot-first  " in text
    assert "  spot-first  " not in enough
    assert "  spot  " in enough


def test_a_place_that_nobody_prices_is_unknown_and_never_free(capsys: pytest.CaptureFixture[str]) -> None:
    [row] = json.loads(plan(capsys, "nano3", "pretrain", "--cloud", "slurm", "--json"))["rows"]
    assert (row["price_per_hour"], row["cost_usd"]) == (None, None)
    assert "price_per_hour in clusters/slurm.yaml" in row["note"]
    text = plan(capsys, "nano3", "pretrain", "--cloud", "slurm")
    assert text.count("unknown") >= 5
    assert "0.00" not in text


def test_a_profiles_own_price_needs_no_catalog(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(catalogs.FOLDER_ENV, str(tmp_path / "none"))
    own = tmp_path / "own.yaml"
    own.write_text("infra: slurm/rig/gpu\nprice_per_hour: 12.5\ncontainers: false\n")
    [row] = json.loads(plan(capsys, "nano3", "pretrain", "--cluster", str(own), "--work", "4h", "--json"))[
        "rows"
    ]
    assert (row["place"], row["price_per_hour"], row["work_hours"]) == ("slurm/rig/gpu", 25.0, 4.0)
    assert row["cost_usd"] == pytest.approx(25 * 4.2, rel=0.02)
    own.write_text("infra: aws/us-east-1\nprice_per_hour: 12.5\n")
    words = ("nano3", "pretrain", "--cluster", str(own), "--work", "4h", "--json")
    for more, market in (((), "on-demand"), (("--spot",), "spot")):
        [row] = json.loads(plan(capsys, *words, *more))["rows"]
        assert (row["market"], row["price_per_hour"]) == (market, 25.0)
        assert row["cost_usd"] > 25 * 4
    with pytest.raises(SystemExit):
        main(["plan", "nano3", "pretrain", "--project", str(ROOT), "--deadline", "36"])
    assert "--deadline: '36' is not a duration" in capsys.readouterr().err


def test_a_plan_without_a_place_is_refused_with_the_nearest_name(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["plan", "nano3", "pretrain", "--cloud", "aws", "--project", str(ROOT), "--region"]
    for region, wanted in (("us-eats-1", "did you mean 'us-east-1'?"), ("us-east-1", None)):
        with pytest.raises(SystemExit) as end:
            main([*words, region])
        assert end.value.code == (Refused.exit_code if wanted else 0)
        assert (wanted or "") in capsys.readouterr().err


def test_a_plan_in_which_nothing_fits_calls_no_place_the_best(capsys: pytest.CaptureFixture[str]) -> None:
    said = plan(capsys, "nano3", "pretrain", "--cloud", "aws", "--region", "us-east-1", "--budget", "50")
    assert "best: none, for no place is expected to be done within these limits" in said
    assert "$50.00 falls short by $" in said


def test_without_catalogs_a_plan_says_how_to_get_them_and_what_it_knows(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(catalogs.FOLDER_ENV, str(tmp_path))
    with pytest.raises(SystemExit) as end:
        main(["plan", "nano3", "pretrain", "--cloud", "aws", "--project", str(ROOT)])
    assert end.value.code == Refused.exit_code
    said = capsys.readouterr().err
    assert "without prices: 2 nodes with H100:8 for about 12h" in said
    assert "sky check" in said


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["nano3", "all"], "one stage"),
        (["nano3", "pretrain", "--sort", "prise"], "did you mean 'price'"),
        (["nano3", "pretrain", "--budget", "lots"], "not an amount"),
        (["nano3", "pretrain", "--deadline", "36"], "not a duration"),
        (["nano3", "pretrain", "--cloud", "aws", "--gpus", "H100:many"], "TYPE:COUNT"),
    ],
)
def test_a_plan_refuses_what_makes_no_sense(
    capsys: pytest.CaptureFixture[str], argv: list[str], said: str
) -> None:
    with pytest.raises(SystemExit) as end:
        main(["plan", *argv, "--project", str(ROOT)])
    assert end.value.code == 2
    assert said in capsys.readouterr().err


def test_a_plan_is_drawn_the_same_twice(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    texts = []
    for name in ("a.svg", "b.svg"):
        plan(capsys, "nano3", "pretrain", "--cloud", "aws", "--plot", str(tmp_path / name))
        texts.append((tmp_path / name).read_text())
    assert texts[0] == texts[1]
    assert "expected cost" in texts[0]
    assert "aws/us-east-1/use1-atl2-az1" in texts[0]


def test_a_plan_imports_neither_sky_nor_mlflow_nor_torch() -> None:
    code = (
        "import sys\nfrom launcher.cli.main import main\n"
        f"try:\n    main(['plan', 'nano3', 'pretrain', '--json', '--project', {str(ROOT)!r}])\n"
        "except SystemExit as end:\n    assert not end.code\n"
        "print({'sky', 'mlflow', 'torch', 'pandas', 'ray', 'boto3'} & set(sys.modules), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr.strip().endswith("set()")
