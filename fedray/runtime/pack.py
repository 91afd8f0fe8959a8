"""Pack: a host that holds sites. It interprets a stage group by group and folds the sums before it answers.

Traffic is one record per pack, not per site. Site state written in a round stays pending until the commit
that counts the site; a call that is asked twice is answered with the same bytes.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from fedray import rows, tree
from fedray.coded import arrived
from fedray.core.graph import Placement
from fedray.core.verify import verify
from fedray.errors import DataError, HostError, SiteError
from fedray.rng import Keys
from fedray.rows import Group, one_thread
from fedray.runtime import checkpoint, devices
from fedray.runtime.answered import AGAIN, Answered, Pending, RoundKey
from fedray.runtime.folded import Folded
from fedray.runtime.host import Commit, Contribution, Load, StageCall
from fedray.runtime.interpret import Interpreter, Step, steps_of
from fedray.runtime.kept import Kept
from fedray.runtime.memory import LARGE_BYTES, keep_freed_memory, sites_together
from fedray.runtime.notes import Times, Tracebacks
from fedray.runtime.plan import Plan, lane_names
from fedray.runtime.site_rows import is_table, num_rows, together
from fedray.runtime.site_table import SiteTable

KEPT_GROUPS = 64  # groups whose sites' data are kept as a sequence
KEPT_COMMITS = 32
BLANK_ROWS = 4  # of a made-up site


class Pack:
    """Many simulated sites, or one real one, in one process."""

    def __init__(
        self,
        name: str,
        sites: Mapping[str, Callable[[], Any]],
        group_size: int = 256,
        allow_empty: bool = False,
        device: str = devices.CPU,
        halvings: int = 0,
    ) -> None:
        self.name, self.sites, self.group_size, self.allow_empty = name, sites, group_size, allow_empty
        self.halvings = halvings  # of the groups, where whole ones have taken the process down
        self._tables = None if devices.check(device) == devices.CPU else devices.Tables(device)
        self._placed: set[RoundKey] = set()  # rounds whose stages run on the device
        self.first_error: BaseException | None = None  # of the last stage; it never leaves this process
        self._data: dict[str, Any] = {}
        self._places = dict.fromkeys(sites, 0)  # in the order of their training rows, which makes the groups
        self._read: dict[tuple[str, ...], Sequence[Any]] = {}  # of groups that were read lately
        self._cache: dict[Any, Any] = {}  # of the twins: buffers that outlive groups and rounds
        self._transforms: list[Any] = []
        self._plans: dict[str, Load] = {}
        self._steps: dict[tuple[str, int], list[Step]] = {}  # of a plan's stages
        self._state: dict[str, SiteTable] = {}  # slot -> current values
        self._pending: dict[RoundKey, list[Pending]] = {}
        self._groups: dict[RoundKey, list[Group]] = {}
        self._last_dealt: tuple[Any, Sequence[tuple[str, ...]]] = (None, ())
        self._broken: set[str] = set()  # sites that broke a twin: each is a group of its own from then on
        self._last: tuple[Any, Folded] | None = None
        self._kept = Kept()
        self._answered: Answered | None = None  # of one-shot rounds
        self._committed: dict[RoundKey, list[Commit]] = {}  # lately: a call that comes again brings its own
        self.is_given_up: Callable[[], bool] | None = None  # tells whether nobody waits for the call any more
        self._times, self._tracebacks = Times(name), Tracebacks("", name)

    def hello(self) -> dict[str, int]:
        """Open every site's data and return its number of training rows.

        Raises DataError for a site without training rows unless `allow_empty`, ConfigError where the device
        is not there.
        """
        if self._tables is not None:
            _ = self._tables.device  # refused here, before anything else is done
        sizes = self._training_rows()
        largest_first = sorted(self.sites, key=lambda site: (-sizes.get(site, 0), site))
        self._places, self._last_dealt = {site: place for place, site in enumerate(largest_first)}, (None, ())
        self._lay_together()
        empty = sorted(site for site, size in sizes.items() if size == 0)
        if empty and not self.allow_empty:
            raise DataError(
                f"{len(empty)} sites have no training rows: {', '.join(empty[:5])}"
                f"{', ...' if len(empty) > 5 else ''}; leave them out, or allow it with "
                "data.allow_empty=true (their weight is then 0)"
            )
        return sizes

    def _training_rows(self) -> dict[str, int]:
        """Open every site, but where the data set knows the rows and nothing is to be changed."""
        known = getattr(self.sites, "train_rows", None)
        if known is not None and not self._transforms:
            return dict(known())
        opened = [(site, self._open(site)) for site in self.sites]
        return {site: num_rows(data) for site, data in opened}

    def blank(self) -> Any:
        """Return a made-up site: the columns of one site with zeros in a few rows. None where data cannot
        make one.
        """
        data = self._open(next(iter(self.sites)))
        if is_table(data):
            return {name: it.new_zeros((BLANK_ROWS, *it.shape[1:])) for name, it in data.items()}
        return data.blank() if hasattr(data, "blank") else None

    def rehearse(self, asked: Any) -> Any:
        """Try programs on a made-up site."""
        blank = self.blank()
        return asked.on(blank) if blank is not None else None

    def prepare(self, transform: Any) -> None:
        """Pass every site's data through `transform` from now on."""
        self._transforms.append(transform)
        self._data = {site: transform(data) for site, data in self._data.items()}
        self._read = {}
        self._lay_together()

    def _lay_together(self) -> None:
        """Let the sites' rows lie in one table, where their data can."""
        together(list(self._data.values()))
        if self._tables is not None:
            self._tables.clear()

    def load(self, load: Load) -> None:
        """Verify and keep a plan; at the start of a run forget the one before, or restore a checkpoint."""
        verify(load.plan.graph)
        if load.is_start:
            kinds = checkpoint.record_kinds(*load.initial.values())
            found = checkpoint.read_sites(*load.restore, self.sites, kinds) if load.restore else {}
            self._state = {slot: SiteTable(value) for slot, value in load.initial.items()}
            for (slot, site), value in found.items():
                self._state[slot].load([(site, value)])
            self._plans, self._pending, self._groups, self._last, self._cache = {}, {}, {}, None, {}
            self._steps, self._broken, self._last_dealt = {}, set(), (None, ())
            self._kept.forget()
            self._answered = None
            self._committed.clear()
            self._tracebacks = Tracebacks(load.run, self.name)
        self._plans[load.plan.digest] = load
        if load.journal and load.plan.is_one_shot and self._answered is None:
            kinds = checkpoint.record_kinds(*load.initial.values())
            self._answered = Answered(load.journal, self.name, kinds)

    def commit(self, commits: Sequence[Commit]) -> None:
        """Make pending state of counted sites current; what else is pending for the plan is dropped, but for
        what a commit keeps.
        """
        for commit in commits:
            key = (commit.plan, commit.round, commit.attempt)
            if commit in self._committed.get(key, ()):
                continue  # else it would drop what has been written since
            self._committed.setdefault(key, []).append(commit)
            if len(self._committed) > KEPT_COMMITS:
                self._committed.pop(next(iter(self._committed)))
            if key not in self._pending:
                self._take_written(key, commit.counted)
            for slot, group, written, tagged in self._pending.get(key, ()):
                kept = [row for row in written if group.ids[row] in commit.counted]
                value = rows.expand(devices.Fetched(group)(tagged) if self._tables else tagged, group.k)
                self._table(slot, commit.plan).store(group.ids, value, kept)
            mine = [key for key in self._pending if key[0] == commit.plan]
            for key in mine:
                if key[1:] not in commit.keeps:
                    del self._pending[key]

    def _take_written(self, key: RoundKey, counted: Collection[str]) -> None:
        """Take the state that a process before this one had written down for sites that were then counted."""
        for (slot, site), value in self._answered.state_of(key).items() if self._answered else ():
            if site in counted:
                self._table(slot, key[0]).load([(site, value)])

    def save(self, address: str, round: int) -> checkpoint.Parts:
        """Write the current state of all sites; return the seals of the files."""
        state = {(slot, site): value for slot, table in self._state.items() for site, value in table.items()}
        parts = checkpoint.write_sites(address, round, self.name, self.sites, state)
        if self._answered is not None:
            self._answered.thin()
        return parts

    def state_of(self, site: str, slot: str = "state") -> Any:
        """Return a site's current state (simulation and tests)."""
        table = self._state.get(slot)
        return table.row(site) if table is not None and site in table else None

    def run(self, call: StageCall, downlink: Mapping[int, Any]) -> Contribution:
        """Run a stage for the cohort and return what leaves, folded. Raises HostError where the plan is
        unknown.
        """
        self._times.start()
        self.commit(call.commits)
        if call.plan not in self._plans:
            raise HostError(f"pack {self.name} was asked to run a plan that it was never given")
        identity = (call.run, call.plan, call.round, call.attempt, call.stage, call.cohort)
        is_known = self._last is not None and self._last[0] == identity and self._last[1].can_answer(call)
        is_one_shot = self._plans[call.plan].plan.is_one_shot and self._answered is not None
        again = self._answered.again(call) if is_one_shot and not is_known and self._answered else []
        if again:
            failures = tuple(SiteError(site, call.round, call.stage, AGAIN) for site in call.cohort)
            return Contribution(delivered=(), failures=failures)
        if not is_known:
            self._last = None  # before the stage runs: an answer can be as large as four models
            with one_thread():
                self._last = (identity, self._compute(call, downlink))
            self._tracebacks.write(self.first_error, call)
        assert self._last is not None
        with one_thread():
            answer = self._last[1].answer(call)
        if is_one_shot and not is_known and self._answered is not None:
            key = (call.plan, call.round, call.attempt)
            is_counted = call.stage == self._plans[call.plan].plan.counting_stage
            self._answered.record(call, answer, self._pending.get(key, ()) if is_counted else ())
        opened, notes = self._kept.take_opened(), self._tracebacks.take()
        return replace(answer, opened_bytes=opened, notes=notes, **self._times.told(call))

    def _compute(self, call: StageCall, downlink: Mapping[int, Any]) -> Folded:
        sent = {index: self._kept.whole(call.plan, index, value) for index, value in downlink.items()}
        downlink = {index: arrived(value) for index, value in sent.items()}
        plan, device = self._plans[call.plan].plan, self._device_of(call, downlink)
        if device is not None:
            downlink = {index: devices.placed(value, device) for index, value in downlink.items()}
        groups = self._groups_of(call, self._plans[call.plan], self._group_size(downlink))
        if (steps := self._steps.get((call.plan, call.stage))) is None:
            steps = self._steps[call.plan, call.stage] = steps_of(plan, call.stage)
        interpreter = Interpreter(
            plan,
            steps,
            call,
            downlink,
            lambda slot, sites: self._inputs(call, slot, sites, device is not None),
            lambda slot, sites: self._state_rows(call, slot, sites, device),
            self.is_given_up,
        )
        folded = Folded(plan, call, is_placed=device is not None)
        outputs = [
            (slot, index)
            for (placement, slot), index in plan.outputs.items()
            if placement is Placement.SITES and plan.stage[index] == call.stage
        ]
        pending = self._pending.setdefault((call.plan, call.round, call.attempt), [])
        pending[:] = [item for item in pending if item[0] not in {slot for slot, _ in outputs}]
        for group in groups:
            interpreter.run(group)
            folded.take(group, interpreter)
            self._times.group(group.ids)
            group.largest = {}  # it holds what was reduced, and the group lives until the next round
            written = list(group.alive)  # later stages may lose one that is counted
            pending.extend((slot, group, written, group.values[index]) for slot, index in outputs if written)
            if call.stage == plan.site_stages[-1]:
                group.values = {}
        self._set_apart(interpreter.broke_group)
        folded.failures = tuple(interpreter.failures)
        self.first_error = interpreter.first
        return folded

    def _device_of(self, call: StageCall, downlink: Mapping[int, Any]) -> torch.device | None:
        """Return where the stage runs, None in memory; a later stage runs where the first one did."""
        key = (call.plan, call.round, call.attempt)
        if self._tables is None or not (key in self._placed or devices.has_model(downlink)):
            return None
        self._placed = {key, *(old for old in self._placed if old[0] != call.plan)}
        return self._tables.device

    def _state_rows(
        self, call: StageCall, slot: str, sites: Sequence[str], device: torch.device | None
    ) -> Any:
        found = self._table(slot, call.plan).rows(sites)
        return found if device is None else devices.placed(found, device)

    def _group_size(self, downlink: Mapping[int, Any]) -> int:
        """Return how many sites are interpreted together: as many rows as stay in the processor's cache."""
        leaves = [leaf for value in downlink.values() for _, leaf in tree.leaves(value)]
        row = max((tree.nbytes(leaf) for leaf in leaves if isinstance(leaf, tree.Flat)), default=1)
        if row * len(self.sites) >= LARGE_BYTES:
            keep_freed_memory()
        limit = (devices.GROUP_BYTES,) if self._tables is not None else ()
        together = sites_together(self.group_size, row, *limit)
        return max(1, min(together, len(self.sites)) >> self.halvings) if self.halvings else together

    def _groups_of(self, call: StageCall, load: Load, size: int) -> list[Group]:
        """Return the groups of a round: sites of like size together, so that they end their steps
        together; of one region, where the plan goes by regions.
        """
        key = (call.plan, call.round, call.attempt)
        if call.stage == load.plan.site_stages[0]:
            regions = load.regions if load.plan.is_by_region else {}
            self._groups = {old: groups for old, groups in self._groups.items() if old[0] != call.plan}
            self._groups[key] = [
                Group(ids, self._cache, regions.get(ids[0], ""))
                for ids in self._dealt(call.cohort, size, regions)
            ]
            return self._groups[key]
        if key not in self._groups:
            raise HostError(
                f"pack {self.name} was asked for stage {call.stage} of round {call.round}, "
                "and has not run the stages before it"
            )
        cohort = set(call.cohort)
        for group in self._groups[key]:
            group.is_alive = [
                is_alive and site in cohort for is_alive, site in zip(group.is_alive, group.ids, strict=True)
            ]
        return self._groups[key]

    def _dealt(
        self, cohort: Sequence[str], size: int, regions: Mapping[str, str]
    ) -> Sequence[tuple[str, ...]]:
        """Return the sites of each group; a cohort that comes again is dealt as it was."""
        asked = (tuple(cohort), size, bool(regions))
        if self._last_dealt[0] != asked:
            chosen = sorted(set(cohort) - self._broken, key=self._places.__getitem__)
            parts: dict[str, list[str]] = {}
            for site in chosen:
                parts.setdefault(regions.get(site, ""), []).append(site)
            groups = [
                tuple(part[start : start + size])
                for part in parts.values()
                for start in range(0, len(part), size)
            ]
            alone = sorted(self._broken.intersection(cohort), key=self._places.__getitem__)
            self._last_dealt = (asked, [*groups, *((site,) for site in alone)])
        return self._last_dealt[1]

    def _set_apart(self, sites: set[str]) -> None:
        """Deal these sites alone from the next round on, so that theirs are not trained one by one again."""
        if not sites <= self._broken:
            self._broken |= sites
            self._last_dealt = (None, ())

    def _open(self, site: str) -> Any:
        if site not in self._data:
            opener = self.sites[site]
            data = opener()
            for transform in self._transforms:
                data = transform(data)
            if getattr(opener, "is_mapped", False):
                return data  # its rows are in files: who keeps it would keep every site that was ever asked
            self._data[site] = data
        return self._data[site]

    def _opened(self, sites: tuple[str, ...]) -> Sequence[Any]:
        """Return the data of some sites; a group that comes again is given the very sequence it had."""
        if sites in self._read:
            return self._read[sites]
        found = [self._data[site] if site in self._data else self._open(site) for site in sites]
        if all(site in self._data for site in sites):
            while len(self._read) >= KEPT_GROUPS:
                self._read.pop(next(iter(self._read)))
            self._read[sites] = found
        return found

    def _inputs(self, call: StageCall, slot: str, sites: Sequence[str], is_placed: bool) -> Sequence[Any]:
        if slot == "data":
            found = self._opened(tuple(sites))
            if is_placed and self._tables is not None:
                pairs = zip(sites, found, strict=True)
                return [self._tables.of(site, data, self._data, together) for site, data in pairs]
            return found
        if slot == "id":
            return sites
        return Keys(call.seed, call.round, tuple(sites), slot[4:])

    def _table(self, slot: str, plan: str) -> SiteTable:
        """Return the table of a slot; a program that is no training run starts it itself."""
        if slot not in self._state:
            self._state[slot] = SiteTable(self._plans[plan].initial.get(slot))
        return self._state[slot]


def expected_bytes(plan: Plan, stage: int, num_delivered: int) -> dict[str, int]:
    """Return the bytes per name that `egress` promises for a pack that delivers this many sites."""
    found = {}
    for index in plan.reduced(stage):
        node = plan.nodes[index]
        for name in lane_names(node):
            size = plan.sizes[name]
            if node.params["kind"] == "gather":
                found[name] = size.row_bytes * num_delivered
            else:
                found[name] = size.row_bytes if num_delivered == 1 else size.sum_bytes
    return found
