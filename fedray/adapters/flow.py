"""FedML Flow programs: a chain of steps of a client and a server, run as a traced round.

A client's steps in a row are one `map`, a server's one `apply`. Where Params go from clients to the server
they are a weighted `mean` under the step's name (a model travels as its change), so that quorum, noise, masks
and compression apply; with `each=True` they are a `gather`, and the first step of the server is called once
a client, as in FedML. Loops are tagged or written out; the loop is the round.
Deviations: the server does not count messages unless `each`; between steps executors keep only `self.state`.
"""

import copy
import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import fedray as fr
from fedray import tree

Method = Callable[[Any], Any]


class Params(dict[str, Any]):
    """What a step hands to the next, by name."""

    KEY_MODEL_PARAMS, KEY_NUM_EXAMPLES = "model_params", "num_examples"
    add = dict.__setitem__


class FedMLExecutor:
    """A role. Its steps are methods that read `get_params()` and return Params; a client also has `data` and
    `rng`. Numbers and tensors in `state` are kept from step to step and round to round.
    """

    data, rng = None, None

    def __init__(self, id: int = 0, neighbor_id_list: Any = (0,)) -> None:
        self.id, self.neighbor_id_list, self.params = id, list(neighbor_id_list), Params()
        self.state: dict[str, Any] = {}

    def get_params(self) -> Params:
        """Return what the step before handed over."""
        return self.params

    def run(self, methods: tuple[Method, ...], params: Any, kept: Any, **inputs: Any) -> tuple[Any, Any]:
        """Run steps on a copy of the executor; return the last Params and what it keeps."""
        own = copy.deepcopy(self)
        own.state = dict(kept)
        vars(own).update(inputs)
        for method in methods:
            if params is None:
                break
            own.params = Params(params)
            params = method(own)
        return params, own.state


@dataclass(frozen=True)
class FlowState:
    """The model, what else the server hands to clients, and what its executor keeps."""

    params: Any
    others: dict[str, Any]
    kept: dict[str, Any]


@dataclass(frozen=True)
class AtSites:
    """Steps of the client; `first` come before them at a site that was never asked."""

    client: FedMLExecutor
    methods: tuple[Method, ...]
    first: tuple[Method, ...]
    each: bool

    def __call__(self, given: Mapping[str, Any], kept: Any, data: Any, rng: Any) -> dict[str, Any]:
        """Return what is sent, its weight, and what the site keeps."""
        methods = (*self.first, *self.methods) if kept is None else self.methods
        found, state = self.client.run(methods, given, (kept or {}).get("own", {}), data=data, rng=rng)
        if found is None:
            raise ValueError(f"{methods[-1].__qualname__} returned no Params: the server would wait forever")
        sent, model = dict(found), Params.KEY_MODEL_PARAMS
        weight = sent.pop(Params.KEY_NUM_EXAMPLES, 1)
        if model in sent:
            own = tree.flatten(sent[model], given[model].schema)
            sent[model] = own if self.each else tree.sub(own, given[model])
        return {"sent": sent, "weight": weight, "kept": {"own": state, "asked": 1}}


@dataclass(frozen=True)
class AtServer:
    """Steps of the server, on the mean of what clients sent or on the Params of each."""

    server: FedMLExecutor
    methods: tuple[Method, ...]
    each: bool = False

    def __call__(self, given: Mapping[str, Any], sent: Any, kept: Any) -> FlowState:
        """Return what goes to the clients next. `given` is what they had, `sent` what came back."""
        params, methods, model = dict(given if sent is None else sent), self.methods, Params.KEY_MODEL_PARAMS
        if self.each and sent is not None:
            last: Any = None
            for site in sorted(sent):
                one = {**sent[site]["sent"], Params.KEY_NUM_EXAMPLES: sent[site]["weight"]}
                found, kept = self.server.run(methods[:1], one, kept)
                last = last if found is None else found
            params, methods = last, methods[1:]
        elif sent is not None and model in params:
            params[model] = tree.add(given[model], params[model])
        params, kept = self.server.run(methods, params, kept)
        if params is None or model not in params:
            raise ValueError(f"{self.server.__class__.__name__} handed on no Params with {model!r}")
        others = {name: value for name, value in params.items() if name != model}
        return FlowState(tree.flatten(params[model], given[model].schema), others, kept)


@dataclass(frozen=True)
class Step:
    """A step by its name; only a client's may say `each`."""

    name: str
    method: Method
    each: bool
    is_client: bool


@dataclass
class FedMLAlgorithmFlow:
    """Steps in their order; see `add_flow` and `build`."""

    client: FedMLExecutor
    server: FedMLExecutor
    loop_times: int = 1
    steps: list[Step] = field(default_factory=list)
    tags: dict[str, int] = field(default_factory=dict)
    ONCE: ClassVar = "FLOW_TAG_ONCE"
    FINISH: ClassVar = "FLOW_TAG_FINISH"  # of a last step: it says nothing that its place does not
    LOOP_START: ClassVar = "FLOW_TAG_LOOP_START"
    LOOP_END: ClassVar = "FLOW_TAG_LOOP_END"

    def add_flow(self, name: str, method: Method, flow_tag: str = ONCE, *, each: bool = False) -> None:
        """Add a step: a method of the client's or of the server's class. Raises ValueError on another's."""
        roles = [getattr(type(role), method.__name__, None) is method for role in (self.client, self.server)]
        if sum(roles) != 1:
            raise ValueError(
                f"step {name!r}, {method.__qualname__}, is not a step of exactly one role: all clients run "
                "the same steps and none branches off; let them differ in data or state"
            )
        if flow_tag not in (self.ONCE, self.FINISH):
            self.tags[flow_tag] = len(self.steps)
        self.steps.append(Step(name, method, each, roles[0]))

    def parts(self) -> tuple[list[Step], list[Step], list[Step], int]:
        """Return the steps before the loop, in it and after it, and how often it is run.

        Raises ValueError where they are no rounds.
        """
        if set(self.client.neighbor_id_list) != {self.server.id}:
            raise ValueError("clients that send to clients: no flow through a server; use fr.mix in a round")
        first, end, times = self._loop()
        before, body, after = self.steps[:first], self.steps[first:end], self.steps[end:]
        after = after[(times - 1) * len(body) if not self.tags else 0 :]
        roles = [step.is_client for step in before]
        if True not in [step.is_client for step in body] or body[-1].is_client:
            raise ValueError("a loop has steps of clients and ends with one of the server: it has the model")
        if roles != sorted(roles) or any(step.is_client for step in after):
            raise ValueError(
                "before the loop come steps of the server, then of clients; after it steps of the server "
                "alone. A loop that is written out repeats the same steps in each of its rounds"
            )
        return before, body, after, self.loop_times if self.tags else times

    def _loop(self) -> tuple[int, int, int]:
        """Return where the loop's first round begins and ends, and how often it stands there."""
        steps, number = self.steps, len(self.steps)
        if self.tags:
            if set(self.tags) != {self.LOOP_START, self.LOOP_END}:
                raise ValueError(f"only {sorted(self.tags)} is there: a loop has a LOOP_START and a LOOP_END")
            return self.tags[self.LOOP_START], self.tags[self.LOOP_END] + 1, 1
        longest = [next((place for place, step in enumerate(steps) if step.is_client), 0), number, 1]
        covered = 0
        for start, size in itertools.product(range(number), range(2, number // 2 + 1)):
            times = 1
            while steps[start + times * size : start + (times + 1) * size] == steps[start : start + size]:
                times += 1
            if times > 1 and times * size > covered:
                covered, longest = times * size, [start, start + size, times]
        return longest[0], longest[1], longest[2]

    @property
    def rounds(self) -> int:
        """How often the loop runs: the `rounds` of `fit`."""
        return self.parts()[3]

    def build(self) -> fr.Algorithm:
        """Return the algorithm. Raises ValueError on a flow that is no round."""
        before, body, _, _ = self.parts()
        opening = tuple(step.method for step in before if not step.is_client)
        visit = tuple(step.method for step in before if step.is_client)

        def init(params: Any) -> FlowState:
            given = {Params.KEY_MODEL_PARAMS: tree.flatten(params)}
            return AtServer(self.server, opening)(given, None, {})

        def round(state: Any, site: Any) -> fr.Outputs:
            own: Any = site.state
            sent: Any = None
            given: Any = fr.apply(handed_on, state)
            first, each = visit, False
            for is_client, group in itertools.groupby(body, lambda step: step.is_client):
                steps = list(group)
                methods = tuple(step.method for step in steps)
                if is_client:
                    each = steps[-1].each
                    call = AtSites(self.client, methods, first, each)
                    found = fr.map(call, fr.broadcast(given), own, site.data, site.rng)
                    own, first = found["kept"], ()
                    sent = reduced(found, steps[-1])
                else:
                    state = fr.apply(AtServer(self.server, methods, each), given, sent, state.kept)
                    given, sent = fr.apply(handed_on, state), None
            return fr.Outputs(server=state, site=own)

        return fr.Algorithm(init, round, lambda server: None, name=f"flow({self.client.__class__.__name__})")

    def finish(self, state: FlowState) -> FlowState:
        """Return the state after the server's steps that follow the loop."""
        last = tuple(step.method for step in self.parts()[2])
        return AtServer(self.server, last)(handed_on(state), None, state.kept)


def reduced(found: Any, step: Step) -> Any:
    """Return at the server what clients send: the mean, or each client's where the step says so."""
    if step.each:
        return fr.gather({"sent": found["sent"], "weight": found["weight"]}, name=step.name)
    return fr.mean(found["sent"], weight=found["weight"], name=step.name)


def handed_on(state: FlowState) -> dict[str, Any]:
    """Return the server's Params."""
    return {Params.KEY_MODEL_PARAMS: state.params, **state.others}

