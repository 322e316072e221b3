"""Static steps give what plain ones give, recorded or not, whatever rows come and go."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from cuda_stand_in import Machine
from decoding import ENDS, requests_about_clips, tell_of_sessions, texts
from examples import examples
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from NatureLM.generation import cuda_graphs as module
from NatureLM.generation.cuda_graphs import Bucket, GraphCapture, GraphRunner, make_graph_runner
from NatureLM.generation.decoding import DecodingSession, Prompt
from NatureLM.generation.engine import Engine, GenerationOptions
from NatureLM.generation.prefill import to_device
from NatureLM.merging.recipe import Recipe
from NatureLM.models import NatureLM

CPU = torch.device("cpu")
SWEEP = (0.0, 0.4, 1.0)


@pytest.fixture(autouse=True)
def quiet(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """Steps are captured without a word, unless a test expects one and clears it."""
    yield
    assert caplog.messages == []


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps are recorded the first time."""
    monkeypatch.setattr(module, "_PATIENCE", 0)


@dataclass
class Repeating:
    """A recorder that records nothing, and counts."""

    records: int = 0
    replays: int = 0
    error: Exception | None = None

    def __call__(self, work: Any) -> Any:
        if self.error is not None:
            raise self.error
        self.records += 1

        def replay() -> Tensor:
            self.replays += 1
            return work()

        return replay


@dataclass
class Pair:
    """The same session twice: plain, and by static steps."""

    double: NatureLM
    graphs: GraphRunner
    prompts: list[Prompt]
    sessions: list[DecodingSession] = field(default_factory=list)

    def begin(self, places: list[int]) -> list[DecodingSession]:
        chosen = [self.prompts[place] for place in places]
        return [
            DecodingSession(
                self.double.language_model,
                [one.embeds_LD for one in chosen],
                [one.alpha for one in chosen],
                graphs=graphs,
            )
            for graphs in (None, self.graphs)
        ]

    def step(self, tokens: Tensor) -> None:
        for session in self.sessions:
            session.step(tokens)
        plain, static = self.sessions
        assert static.logits_RV.shape == plain.logits_RV.shape
        assert torch.allclose(static.logits_RV, plain.logits_RV, rtol=0, atol=1e-9)


OPERATIONS = st.lists(
    st.one_of(
        st.tuples(st.just("step"), st.integers(1, 4)),
        st.tuples(st.just("select"), st.lists(st.integers(0, 99), min_size=1, max_size=7)),
        st.tuples(st.just("join"), st.lists(st.integers(0, 17), min_size=1, max_size=3)),
    ),
    min_size=1,
    max_size=8,
)


def play(pair: Pair, first: list[int], operations: list[Any], seed: int) -> None:
    """Do the same to both sessions, and compare them after each step."""
    generator = torch.Generator().manual_seed(seed)
    vocabulary = pair.double.language_model.config.vocab_size

    def step() -> None:
        rows = pair.sessions[0].rows
        pair.step(torch.randint(0, vocabulary, (rows,), generator=generator))

    with torch.inference_mode():
        pair.sessions = pair.begin(first)
        step()
        for kind, what in operations:
            if kind == "select":
                for session in pair.sessions:
                    session.select([row % session.rows for row in what])
                step()
            elif kind == "join":
                for session, other in zip(pair.sessions, pair.begin(what), strict=True):
                    session.join(other)
            else:
                for _ in range(what):
                    step()


@pytest.mark.parametrize("recorded", [False, True])
@examples(6)
@given(
    first=st.lists(st.integers(0, 17), min_size=1, max_size=5),
    operations=OPERATIONS,
    seed=st.integers(0, 99),
)
@pytest.mark.usefixtures("impatient")
def test_steps_are_those_of_a_plain_session(
    recorded: bool,
    first: list[int],
    operations: list[Any],
    seed: int,
    double: NatureLM,
    prompts: list[Prompt],
    cuda_stand_in: Machine,
) -> None:
    cuda_stand_in.graphs.clear()
    runner = GraphRunner(double.language_model, GraphCapture(CPU) if recorded else None)
    play(Pair(double, runner, prompts), first, operations, seed)
    assert (sum(graph.replays for graph in cuda_stand_in.graphs) >= 1) is recorded


@pytest.mark.parametrize(
    ("beams", "how"),
    [(1, {}), (2, {"batch_rows": 4}), (1, {"batch_tokens": 900}), (2, {"batch_tokens": 900})],
)
def test_the_engine_answers_alike(
    beams: int, how: dict[str, Any], double: NatureLM, clips: dict[str, Any]
) -> None:
    options = GenerationOptions(max_new_tokens=9, num_beams=beams)

    def run(capture: bool | None) -> dict[Any, str | None]:
        engine = Engine(double, options, eos_ids=ENDS, capture=capture, **how)
        assert (engine._graphs is not None) == bool(capture)
        return texts(engine, requests_about_clips(double, SWEEP), clips)

    assert run(True) == run(None) == run(False)


@pytest.mark.gpu
@pytest.mark.parametrize("beams", [1, 2])
def test_captured_steps_answer_alike_on_a_gpu(
    beams: int, nano_folder: Any, nano_waveforms: dict[str, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With real graphs: `make test-gpu`."""
    assert torch.cuda.is_available(), "this test needs CUDA"
    monkeypatch.setattr(module, "_PATIENCE", 0)
    model = NatureLM.from_pretrained(nano_folder / "checkpoint", dtype=torch.float32, device="cuda")
    options = GenerationOptions(max_new_tokens=9, num_beams=beams)
    clips = Engine(model).encode(nano_waveforms, nano_waveforms.__getitem__)
    found = []
    for capture in (True, False):
        engine = Engine(model, options, eos_ids=ENDS, capture=capture)
        found.append(texts(engine, requests_about_clips(model, SWEEP), clips))
    assert found[0] == found[1]


def test_rows_that_are_no_numbers_disturb_nobody(double: NatureLM, prompts: list[Prompt]) -> None:
    """They leave, and others take their places in the memory that they filled."""
    broken = Prompt(prompts[0].embeds_LD * torch.nan, 1.0)
    pair = Pair(double, GraphRunner(double.language_model), [*prompts, broken])
    with torch.inference_mode():
        pair.sessions = pair.begin([2, len(prompts), 5])
        for session in pair.sessions:
            session.step(torch.tensor([3, 4, 5]))
            assert session.logits_RV[1].isnan().all()
            session.select([2, 0])
        pair.step(torch.tensor([7, 8]))
        for session, other in zip(pair.sessions, pair.begin([9, 10]), strict=True):
            session.join(other)
        pair.step(torch.tensor([7, 8, 9, 10]))
        pair.step(torch.tensor([1, 2, 3, 4]))


def test_sessions_take_turns(double: NatureLM, prompts: list[Prompt]) -> None:
    """The memory holds one of them; the other moves out with all that it had."""
    runner = GraphRunner(double.language_model)
    pairs = [Pair(double, runner, prompts) for _ in range(2)]
    with torch.inference_mode():
        for pair, places in zip(pairs, ([0, 7, 8], [3, 4]), strict=True):
            pair.sessions = pair.begin(places)
        for turn in range(4):
            for pair in pairs:
                pair.step(torch.full((pair.sessions[0].rows,), turn))


def test_rows_move_within_the_memory(double: NatureLM, prompts: list[Prompt]) -> None:
    """Where rows leave or change places nothing is allocated, and the cache stays where it is."""
    runner = GraphRunner(double.language_model)
    pair = Pair(double, runner, prompts)
    with torch.inference_mode():
        pair.sessions = pair.begin([0, 1, 2, 3, 4])
        pair.step(torch.arange(5))
        owner = pair.sessions[1]._cache.kv_layers[0].owner
        assert owner is not None
        for rows in ([4, 3, 2, 1, 0], [1, 1, 2, 0], [3, 0]):
            for session in pair.sessions:
                session.select(rows)
            assert pair.sessions[1]._cache.kv_layers[0].owner is owner
            pair.step(torch.arange(len(rows)))
        assert {bucket.rows for bucket, _ in runner._steps} == {8, 4, 2}


def test_buckets() -> None:
    rows = [Bucket.of(count, 1).rows for count in range(1, 400)]
    assert all(count <= bucket < 2 * count for count, bucket in enumerate(rows, 1))
    assert sorted(set(rows)) == [1, 2, 4, 8, 16, 32, 64, 128, 192, 256, 320, 384, 448]
    assert [Bucket.of(1, count).columns for count in (1, 64, 65, 200)] == [64, 64, 128, 256]
    assert Bucket(4, 64).positions == 256


@pytest.mark.usefixtures("impatient")
def test_few_steps_are_kept_and_the_latest_used_stay(
    double: NatureLM, prompts: list[Prompt], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_MAX_STEPS", 2)
    recorder = Repeating()
    runner = GraphRunner(double.language_model, recorder)
    pair = Pair(double, runner, prompts)

    def buckets() -> list[int]:
        return [bucket.rows for bucket, _ in runner._steps]

    def go(rows: list[int]) -> None:
        for session in pair.sessions:
            session.select(rows)
        pair.step(torch.arange(len(rows)))

    with torch.inference_mode():
        pair.sessions = pair.begin([0, 1, 2, 3, 4])
        pair.step(torch.arange(5))
        go([0, 1, 2])
        assert buckets() == [8, 4]
        go([0, 1])
        assert buckets() == [4, 2]
        assert recorder.records == 3
        go([1, 0])
        assert recorder.records == 3
        assert recorder.replays == 4
        go([0])
        assert buckets() == [2, 1]
        assert len(runner) == 2


def test_a_step_is_recorded_when_it_has_come_often(double: NatureLM, prompts: list[Prompt]) -> None:
    recorder = Repeating()
    pair = Pair(double, GraphRunner(double.language_model, recorder), prompts)
    with torch.inference_mode():
        pair.sessions = pair.begin([0, 5])
        for number in range(module._PATIENCE + 3):
            assert recorder.replays == max(0, number - module._PATIENCE)
            pair.step(torch.tensor([number, 2]))
    assert recorder.records == 1


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (torch.OutOfMemoryError("CUDA out of memory"), "OutOfMemoryError: CUDA out of memory"),
        (RuntimeError("operation not permitted when stream is capturing"), "not permitted"),
        (TypeError("no such argument"), "TypeError: no such argument"),
    ],
)
def test_what_cannot_be_recorded_is_said_once_and_decoded_plainly(
    error: Exception,
    said: str,
    double: NatureLM,
    prompts: list[Prompt],
    caplog: pytest.LogCaptureFixture,
) -> None:
    recorder = Repeating(error=error)
    runner = GraphRunner(double.language_model, recorder)
    pair = Pair(double, runner, prompts)
    with torch.inference_mode():
        pair.sessions = pair.begin([0, 5, 11])
        for number in range(module._PATIENCE + 3):
            pair.step(torch.tensor([number, 2, 3]))
    assert len(caplog.messages) == 1
    assert said in caplog.messages[0]
    assert "step by step" in caplog.messages[0]
    assert len(runner) == 0
    assert recorder.records == 0
    recorder.error = None
    with torch.inference_mode():
        for session in pair.sessions:
            session.select([0])
        pair.step(torch.tensor([1]))
    assert len(runner) == isinstance(error, torch.OutOfMemoryError), "less memory may do"
    caplog.clear()


class Stale(Repeating):
    """A recorder that gives the first result again and again."""

    def __call__(self, work: Any) -> Any:
        first = work().clone()
        return lambda: first


@pytest.mark.usefixtures("impatient")
def test_a_replay_that_goes_another_way_is_found_and_said(
    double: NatureLM, prompts: list[Prompt], caplog: pytest.LogCaptureFixture
) -> None:
    runner = GraphRunner(double.language_model, Stale())
    pair = Pair(double, runner, prompts)
    with torch.inference_mode():
        pair.sessions = pair.begin([0, 5])
        pair.step(torch.tensor([1, 2]))
        assert caplog.messages == [], "the first replay is of the very step that was recorded"
        for number in (2, 3):
            pair.step(torch.tensor([number, 2]))  # compares with a plain session
    assert len(caplog.messages) == 1
    assert "other logits" in caplog.messages[0]
    caplog.clear()


def test_rows_are_compared_by_their_size_and_never_pass_for_what_is_no_number() -> None:
    row = torch.tensor([[1.0, -2.0, 3.0]])
    assert module.difference(row, row) == 0
    assert module.difference(row * 1.05, row) == pytest.approx(0.05)
    assert module.difference(row * torch.nan, row) == 1
    assert module.difference(row * torch.nan, row * torch.nan) == 0
    infinite = torch.tensor([[torch.inf, 1.0, 2.0]])
    assert not module.difference(infinite, -infinite) <= 0.1


@pytest.mark.usefixtures("impatient")
def test_a_refused_recording_leaves_the_stream_as_it_was(
    double: NatureLM,
    prompts: list[Prompt],
    cuda_stand_in: Machine,
    caplog: pytest.LogCaptureFixture,
) -> None:
    runner = GraphRunner(double.language_model, GraphCapture(CPU))
    pair = Pair(double, runner, prompts)
    main = cuda_stand_in.stream
    cuda_stand_in.refuse = RuntimeError("capture failed")
    with torch.inference_mode():
        pair.sessions = pair.begin([0, 5, 11])
        pair.step(torch.tensor([1, 2, 3]))
        pair.step(torch.tensor([1, 2, 3]))
    assert len(caplog.messages) == 1
    assert cuda_stand_in.stream is main
    caplog.clear()


def test_recording_warms_up_and_shares_memory(cuda_stand_in: Machine) -> None:
    recorder = GraphCapture(CPU)
    main = cuda_stand_in.stream
    number = torch.ones(3)
    streams: list[object] = []

    def work() -> Tensor:
        streams.append(cuda_stand_in.stream)
        return (number * 2).exp()

    replay = recorder(work)
    assert len(streams) == 2
    assert set(streams) == set(cuda_stand_in.streams)
    assert cuda_stand_in.stream is main
    number.fill_(3)
    first = replay()
    assert torch.equal(first, torch.full((3,), 6.0).exp())
    other = recorder(lambda: number + 1)
    assert torch.equal(other(), torch.full((3,), 4.0))
    assert torch.equal(first, torch.full((3,), 6.0).exp()), "another graph's replay spoilt it"
    number.fill_(0)
    assert torch.equal(replay(), torch.ones(3))
    assert len(streams) == 2, "a replay runs no Python"
    assert len({graph.pool() for graph in cuda_stand_in.graphs}) == 1
    assert len(cuda_stand_in.streams) == 1
    assert set(cuda_stand_in.modes) == {"thread_local"}


def test_the_stand_in_refuses_what_graphs_refuse(
    cuda_stand_in: Machine,
) -> None:
    for work in (
        lambda: torch.ones(2) * torch.ones(1).item(),
        lambda: torch.tensor([1.0]) + 1,
        lambda: torch.ones(2)[torch.ones(2) > 0],
    ):
        with pytest.raises(RuntimeError, match="not permitted"):
            GraphCapture(CPU)(work)


@pytest.mark.usefixtures("impatient")
def test_what_was_recorded_of_another_state_is_not_replayed(
    double: NatureLM,
    prompts: list[Prompt],
    cuda_stand_in: Machine,
) -> None:
    """Folding moves weights and switches adapters off; a recipe changes how strongly they act."""
    cuda_stand_in.lenient = True  # the check of a folded model's α compares numbers of the host
    runner = GraphRunner(double.language_model, GraphCapture(CPU))
    whole = [one for one in prompts if one.alpha == 1.0]
    pair = Pair(double, runner, whole)
    tokens = torch.tensor([1, 2, 3])

    def steps() -> int:
        """Graphs that two steps after prompts of the same lengths ask for."""
        before = len(cuda_stand_in.graphs)
        pair.sessions = pair.begin([0, 1, 2])
        pair.step(tokens)
        pair.step(tokens)
        return len(cuda_stand_in.graphs) - before

    with torch.inference_mode():
        assert steps() == 1
        assert steps() == 0
        with double.fold(1.0):
            assert steps() == 1
        assert steps() == 1
        with double.use_recipe(Recipe.model_validate({"alpha": 0.5})):
            assert steps() == 1
        assert steps() == 1
        assert steps() == 0
        weight = double.language_model.lm_head.weight
        weight.mul_(1.5)  # in place: the graph reads what lies there
        try:
            assert steps() == 0
        finally:
            weight.div_(1.5)


def test_memory_is_bounded_and_given_back(double: NatureLM, prompts: list[Prompt]) -> None:
    longest = Bucket.of(1, max(one.embeds_LD.shape[0] for one in prompts[:5]) + 1).columns
    runner = GraphRunner(double.language_model, max_positions=4 * longest)
    pair = Pair(double, runner, prompts)
    with torch.inference_mode():
        pair.sessions = pair.begin([0, 1, 2, 3, 4])
        pair.step(torch.arange(5))
        assert len(runner) == 0, "eight rows are too many, and the step is a plain one"
        for session in pair.sessions:
            session.select([0, 1, 4])
        pair.step(torch.arange(3))
        assert len(runner) == 1
        runner.release()
        assert len(runner) == 0
        pair.step(torch.arange(3))
        assert len(runner) == 1


def test_the_engine_gives_memory_back_where_it_runs_out(
    double: NatureLM, clips: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    options = GenerationOptions(max_new_tokens=5, num_beams=1)
    released: list[int] = []
    release = GraphRunner.release

    def check(prompts: int) -> None:
        if prompts > 7:
            raise torch.OutOfMemoryError("CUDA out of memory")

    def counting(runner: GraphRunner) -> None:
        released.append(len(runner))
        release(runner)

    tell_of_sessions(monkeypatch, check)
    monkeypatch.setattr(GraphRunner, "release", counting)
    engine = Engine(double, options, eos_ids=ENDS, capture=True)
    answers = list(engine.run(requests_about_clips(double, SWEEP), clips.__getitem__))
    assert len(answers) == 27
    assert len(released) >= 2


def test_who_takes_static_steps(
    double: NatureLM, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    model = double.language_model
    assert Engine(double)._graphs is None
    assert Engine(double, capture=False)._graphs is None
    made = Engine(double, capture=True)._graphs
    assert made is not None
    assert made._capture is None, "there is nothing to record on a processor"
    monkeypatch.setattr(model.config, "_attn_implementation", "eager")
    assert make_graph_runner(model) is None
    assert len(caplog.messages) == 1
    caplog.clear()


def test_transfers_are_pinned_on_the_way_to_cuda_only() -> None:
    asked: list[Any] = []

    class Stand:
        device = CPU

        def pin_memory(self) -> Stand:
            asked.append("pinned")
            return self

        def to(self, device: torch.device, non_blocking: bool = False) -> Stand:
            asked.append((device.type, non_blocking))
            return self

    to_device(Stand(), torch.device("cuda"))  # type: ignore[arg-type]
    assert asked == ["pinned", ("cuda", True)]
    asked.clear()
    to_device(Stand(), CPU)  # type: ignore[arg-type]
    assert asked == [("cpu", False)]
    tensor = torch.ones(2)
    assert to_device(tensor, CPU) is tensor
