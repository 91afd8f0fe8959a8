"""The table of site state: equal to a plain dict, in memory and on disk, at the cost of the cohort."""

import os
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from fedray import rows as stacks
from fedray import tree
from fedray.errors import MemoryForecastError
from fedray.rows import Column, Ragged, Rows
from fedray.runtime import site_table
from fedray.runtime.site_table import SiteTable


@dataclass(frozen=True)
class Kept:
    """A state with a leaf of each kind."""

    weights: Any
    count: int
    rate: float
    parts: tuple[Any, list[Any]]
    label: str = "momentum"
    nothing: None = None


def flat(number: float) -> tree.Flat:
    return tree.flatten({"w": torch.full((3, 2), float(number)), "b": torch.tensor([-1.0, 1.0]) * number})


def kept(number: int) -> Kept:
    generator = torch.Generator().manual_seed(number)
    return Kept(
        weights=flat(float(torch.randn((), generator=generator))),
        count=number,
        rate=number / 7,
        parts=(torch.randn(2, 3, generator=generator, dtype=torch.float64),
               [torch.tensor(number), torch.randn((), generator=generator).to(torch.float16)]),
    )


@pytest.fixture(params=["memory", "disk"])
def table(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[SiteTable]:
    limit = 2**30 if request.param == "memory" else 5000
    with SiteTable(kept(0), limit_bytes=limit, directory=tmp_path) as made:
        yield made


def value_of(stacked: Any, row: int) -> Any:
    return stacks.row(Rows(stacked), row)


def same_kinds(a: Any, b: Any) -> bool:
    return [type(leaf) for _, leaf in tree.leaves(a)] == [type(leaf) for _, leaf in tree.leaves(b)]


def test_many_rounds_leave_what_a_plain_dict_holds(table: SiteTable) -> None:
    draws, sites, plain = random.Random(3), [f"s{i}" for i in range(400)], {}
    for round in range(40):
        cohort = draws.sample(sites, 25)
        found = table.rows(cohort)
        for row, site in enumerate(cohort):
            assert tree.equal(value_of(found, row), plain.get(site, kept(0)))
        new = [kept(1000 * round + row + 1) for row in range(25)]
        counted = sorted(draws.sample(range(25), 20))
        table.store(cohort, stacks.stack(new).value, counted)
        plain |= {cohort[row]: new[row] for row in counted}
    assert dict.fromkeys(site for site, _ in table.items()).keys() == plain.keys()
    for site, value in table.items():
        assert tree.equal(value, plain[site]) and same_kinds(value, plain[site])
        assert tree.equal(table.row(site), plain[site]) and same_kinds(table.row(site), plain[site])
    assert len(table) == len(plain) and table.nbytes >= len(plain) * tree.nbytes(flat(0))
    assert not table._objects and table.is_on_disk == (table.limit_bytes < table.nbytes)


def test_rows_equal_what_stacking_the_single_values_gives(table: SiteTable) -> None:
    table.store(["a", "b"], stacks.stack([kept(1), kept(2)]).value)
    found, expected = table.rows(["b", "new", "a"]), stacks.stack([kept(2), kept(0), kept(1)]).value
    assert found.weights == expected.weights and found.weights.buffer.shape[0] == 3
    assert torch.equal(found.parts[0], expected.parts[0]) and found.parts[0].shape == (3, 2, 3)
    assert torch.equal(found.count.numbers, expected.count.numbers) and found.count.is_whole
    assert not found.rate.is_whole and found.label == "momentum" and found.nothing is None


def test_what_is_read_and_what_was_given_share_no_memory(table: SiteTable) -> None:
    given = stacks.stack([kept(1), kept(2)]).value
    table.store(["a", "b"], given)
    given.weights.buffer.zero_()
    table.rows(["a", "b"]).weights.buffer.fill_(9)
    table.row("a").parts[0].fill_(9)
    assert tree.equal(table.row("a"), kept(1)) and tree.equal(table.row("b"), kept(2))


@pytest.mark.parametrize("number", [3, 0, -7, 2**53, 2.5, -0.0, float("inf"), float("nan"), 5e-324])
def test_a_number_keeps_its_kind_and_its_bits(number: float) -> None:
    table = SiteTable(0)
    table.store(["a"], stacks.stack([number]).value)
    table.store(["b"], stacks.stack([1]).value)
    table.store(["c"], stacks.stack([0.5]).value)
    found = table.row("a")
    assert type(found) is type(number)
    assert float(found).hex() == float(number).hex()
    assert {site: type(value) for site, value in table.items()} == {"a": type(number), "b": int, "c": float}
    assert table.rows(["b", "new"]).is_whole and not table.rows(["b", "c"]).is_whole


def test_bits_of_tensors_survive(table: SiteTable) -> None:
    odd = torch.tensor([float("nan"), -0.0, 1e-45, float("-inf")])
    odd.view(torch.int32)[0] = 0x7FC12345  # a NaN with a payload
    table.store(["a"], stacks.stack([odd]).value)
    assert table.row("a").view(torch.int32).tolist() == odd.view(torch.int32).tolist()


def test_the_first_commit_sets_the_structure_where_it_differs_from_the_start() -> None:
    table = SiteTable(None)
    table.store(["a", "b"], stacks.stack([flat(1), flat(2)]).value)
    assert isinstance(table.rows(["b", "a"]), tree.Flat)
    mixed = table.rows(["a", "new"])
    assert isinstance(mixed, Ragged) and mixed.items[1] is None and mixed.items[0] == flat(1)
    assert table.row("new") is None and "new" not in table and "a" in table


ODD = {
    "another schema": tree.flatten({"w": torch.ones(5)}),
    "another type": torch.ones(3),
    "a structure": {"w": torch.ones(3), "n": 2},
    "another dtype": tree.flatten({"w": torch.ones(3, 2, dtype=torch.float64), "b": torch.ones(2).double()}),
    "nothing": None,
    "text": "text",
}


@pytest.mark.parametrize("odd", ODD)
def test_a_value_of_another_structure_is_kept_as_it_is(odd: str) -> None:
    table = SiteTable(flat(0))
    table.store(["a", "b"], stacks.stack([flat(1), flat(2)]).value)
    table.store(["c", "a"], stacks.stack([ODD[odd], flat(4)]).value)
    assert tree.equal(table.row("c"), ODD[odd]) and table.row("a") == flat(4)
    found = table.rows(["b", "c"])
    assert isinstance(found, Ragged) and tree.equal(found.items[1], ODD[odd])
    assert sorted(site for site, _ in table.items()) == ["a", "b", "c"] and len(table) == 3
    table.store(["c", "a"], stacks.stack([flat(7), flat(8)]).value)
    assert table.rows(["c", "a"]) == stacks.stack([flat(7), flat(8)]).value


def test_only_counted_rows_are_kept() -> None:
    table = SiteTable(flat(0))
    table.store(["a", "b", "c"], stacks.stack([flat(1), flat(2), flat(3)]).value, [2, 0])
    table.store(["a", "b", "c"], stacks.stack([flat(5), flat(6), flat(7)]).value, [])
    assert [site for site, _ in table.items()] == ["c", "a"] and "b" not in table
    assert table.rows(["a", "b", "c"]) == stacks.stack([flat(1), flat(0), flat(3)]).value


def test_a_plain_leaf_among_rows_stands_for_each_of_them() -> None:
    table = SiteTable({"n": 0, "w": torch.zeros(2)})
    table.store(["a", "b"], {"n": 4, "w": torch.ones(2, 2)})
    assert table.row("b")["n"] == 4 and isinstance(table.row("b")["n"], int)


def test_items_can_be_loaded_into_another_table(table: SiteTable) -> None:
    table.store([str(i) for i in range(30)], stacks.stack([kept(i) for i in range(30)]).value)
    table.store(["odd"], stacks.stack([torch.ones(2)]).value)
    again = SiteTable(kept(0))
    again.load(table.items())
    assert len(again) == 31 and tree.equal(again.row("odd"), torch.ones(2))
    assert all(tree.equal(again.row(str(i)), kept(i)) for i in range(30))


def test_stacked_items_cover_every_site_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(site_table, "CHUNK", 7)
    table = SiteTable(0.0)
    table.store([str(i) for i in range(20)], Column(torch.arange(20.0, dtype=torch.float64), False))
    chunks = list(table.stacked_items())
    assert [len(sites) for sites, _ in chunks] == [7, 7, 6]
    found = {site: value.row(row) for sites, value in chunks for row, site in enumerate(sites)}
    assert found == {str(i): float(i) for i in range(20)}


class Work(TorchDispatchMode):
    """Count operations and the elements that they make or write; growing is counted apart."""

    def __init__(self) -> None:
        super().__init__()
        self.operations, self.elements = 0, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        self.operations += 1
        is_write = func._schema.name == "aten::index_copy_"
        self.elements += args[3].numel() if is_write else getattr(made, "numel", lambda: 0)()
        return made


@pytest.mark.parametrize("limit", [2**30, 0])
def test_a_round_costs_the_same_whatever_the_number_of_sites(limit: int, tmp_path: Path) -> None:
    work = {}
    for num_sites in (200, 20_000):
        table = SiteTable(flat(0), limit_bytes=limit, directory=tmp_path)
        names = [str(i) for i in range(num_sites)]
        table.store(names, stacks.stack([flat(1)] * num_sites).value)
        cohort = names[50:150]
        with Work() as counted:
            table.store(cohort, table.rows(cohort), range(0, 100, 2))
        work[num_sites] = (counted.operations, counted.elements)
        table.close()
    assert work[200] == work[20_000]
    assert work[200][1] < 20 * 100 * flat(0).schema.stride


def test_the_number_of_operations_does_not_follow_the_cohort() -> None:
    found = []
    for size in (10, 1000):
        table = SiteTable(flat(0))
        names = [str(i) for i in range(size)]
        table.store(names, stacks.stack([flat(1)] * size).value)
        with Work() as counted:
            table.store(names, table.rows(names))
        found.append(counted.operations)
    assert found[0] == found[1]


def test_above_the_limit_rows_lie_in_a_sparse_file_without_a_name(tmp_path: Path) -> None:
    width, limit = 50_000, 100_000_000
    table = SiteTable(torch.zeros(width), limit_bytes=limit, directory=tmp_path)
    table.store([str(i) for i in range(63)], torch.ones(63, width))
    assert not table.is_on_disk  # 64 rows of 200 kB
    for first in range(63, 640, 63):
        table.store([str(i) for i in range(first, first + 63)], torch.full((63, width), float(first)))
    assert table.is_on_disk and list(tmp_path.iterdir()) == []
    (stored,) = table._stored
    told = os.fstat(stored.file.fileno())
    assert told.st_size == len(stored.data) * 4 * width
    assert told.st_blocks * 512 < told.st_size  # rows that were never made take no room
    assert table.row("5")[0] == 1 and table.row("70")[-1] == 63 and table.row("629")[0] == 567
    table.close()
    assert stored.file.closed and len(table) == 0


def test_growth_moves_nothing_and_is_rare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = []
    plain = SiteTable._resize
    monkeypatch.setattr(SiteTable, "_resize", lambda self, rows: (sizes.append(rows), plain(self, rows))[1])
    table = SiteTable(flat(0), limit_bytes=0, directory=tmp_path)
    for i in range(1000):
        table.store([str(i)], stacks.stack([flat(i)]).value)
    assert sizes == [1, 64, 128, 256, 512, 1024]
    assert all(table.row(str(i)) == flat(i) for i in range(0, 1000, 37))


def test_a_disk_without_room_is_refused_before_it_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = SiteTable(torch.zeros(1000), limit_bytes=0, directory=tmp_path)
    table.store(["a"], torch.ones(1, 1000))
    usage = type("Usage", (), {"free": 100})
    monkeypatch.setattr(site_table.shutil, "disk_usage", lambda _: usage)
    with pytest.raises(MemoryForecastError, match="name a folder with more room"):
        table.store([str(i) for i in range(100)], torch.ones(100, 1000))
    assert len(table) == 1 and torch.equal(table.row("a"), torch.ones(1000))
