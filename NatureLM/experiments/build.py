"""From a configuration and its data to a plan."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from NatureLM.beans.samples import DataError, Sample, SampleSet, open_samples
from NatureLM.config.extended import AUDIO_EXAMPLES, ExtendedConfig
from NatureLM.experiments.plan import Plan
from NatureLM.experiments.render import Renderer
from NatureLM.experiments.select import Selection, select
from NatureLM.experiments.support import Support


def make_plan(
    config: ExtendedConfig, template: str, *, warn: Callable[[str], None] = lambda _: None
) -> Plan:
    """The plan of an experiment; labels are read, sound is not.

    template: text around a query, with `{}`
    warn: takes notes that a user should see

    Raises DataError, TableError or UsageError: data that cannot be read, nothing left to test, too
    few example clips, no question to ask.
    """
    if config.data is None:
        raise DataError("extended.data: no data are named")
    data = open_samples(config.data, config.datasets)
    if config.top_k_species is not None and len(data.datasets) > 1:
        raise DataError(
            f"extended.top_k_species is {config.top_k_species}, and it works with one dataset; "
            f"{data.name} holds {', '.join(data.datasets)}: name one in extended.datasets"
        )
    selection = select(config, data.samples)
    for note in (*data.notes, *selection.notes):
        warn(note)
    if config.queries is None:
        _check_instructions(selection.samples, data.name)
    support = _support(config, data, selection)
    renderer = Renderer(template, selection.species, support, config.seed)
    return Plan(selection.samples, config.queries, config.lora_scales, renderer)


def _support(config: ExtendedConfig, data: SampleSet, selection: Selection) -> Support | None:
    if not any(f"{{{AUDIO_EXAMPLES}}}" in query for query in config.queries or ()):
        return None
    pool: Sequence[Sample] = data.samples
    name = data.name
    table = config.support_table
    if table is not None:
        pool, name = open_samples(table, key_prefix="support:").samples, table.path
    support = Support(pool, config.n_examples, config.seed, name)
    support.check([one.name for one in selection.species], selection.samples)
    return support


def _check_instructions(samples: Sequence[Sample], name: str) -> None:
    silent = next((sample for sample in samples if not sample.instruction.strip()), None)
    if silent is not None:
        raise DataError(
            f"{name}: sample {silent.id!r} brings no question of its own (column "
            "instruction_text), and extended.queries is not set: put at least one question there"
        )
