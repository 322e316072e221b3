"""A model as a folder that vLLM, plain transformers and this package load alike.

It holds the language model without LoRA and an adapter for each α, or one α folded into the
weights; the tokenizer with a token for sound; a processor and a chat template; and the code that
`auto_map` names, copied from this package so that nothing of it has to be installed.
"""

from __future__ import annotations

import copy
import json
import re
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from pathlib import Path
from typing import Any, cast

import torch
from transformers import AddedToken

from NatureLM import __version__
from NatureLM.errors import UsageError
from NatureLM.merging.lora import AdapterDeltas, LoraDelta, linear_shapes
from NatureLM.merging.plan import MergePlan
from NatureLM.merging.recipe import Recipe
from NatureLM.models.checkpoint.export import (
    adapter_of,
    built_aside,
    check_output,
    check_space,
    choose_plain,
    commit_lines,
    lazy_tensor,
    license_of,
    public_name,
)
from NatureLM.models.checkpoint.load import (
    CheckpointReader,
    build_on_meta,
    open_checkpoint,
    without_lora,
)
from NatureLM.models.checkpoint.peft_io import CONFIG_FILE, WEIGHTS_FILE
from NatureLM.models.checkpoint.tensors import (
    LazyTensor,
    StoredTensor,
    TensorRef,
    base_name,
    tensor_refs,
    write_file,
    write_tensors,
)
from NatureLM.models.modeling import NatureLM
from NatureLM.models.registry import is_hub_id, named
from NatureLM.prompts import AUDIO_TAG, PLACEHOLDER, ChatTemplate, prompt_parts
from NatureLM.vllm import ARCHITECTURE

ADAPTERS = "adapters"
_CARD = Path(__file__).with_name("card.md")
# The language model's names in the files: as in our own checkpoints of merged models.
_PREFIX = "llama_model."
_CODE = {  # module of this package: file of the folder
    "NatureLM.errors": "naturelm_errors",
    "NatureLM.config.model": "naturelm_sizes",
    "NatureLM.audio.fbank": "naturelm_fbank",
    "NatureLM.models.beats": "naturelm_beats",
    "NatureLM.models.audio_side": "naturelm_audio_side",
    "NatureLM.vllm.configuration_naturelm": "configuration_naturelm",
    "NatureLM.vllm.modeling_naturelm": "modeling_naturelm",
    "NatureLM.vllm.processing_naturelm": "processing_naturelm",
}
_AUTO_MAP = {
    "AutoConfig": "configuration_naturelm.NatureLMConfig",
    "AutoModelForCausalLM": f"modeling_naturelm.{ARCHITECTURE}",
    "AutoProcessor": "processing_naturelm.NatureLMAudioProcessor",
}
_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)  # that vLLM can be told as the largest


@dataclass(frozen=True)
class Exported:
    """What was written.

    adapters: names by α, the folders' names below `adapters/`; of a folded model none
    rank: of the adapters, at most
    """

    folder: Path
    adapters: Mapping[float, str]
    rank: int

    def command(self, folder: str | Path | None = None) -> str:
        """How vLLM serves it."""
        place = str(self.folder if folder is None else folder)
        name = shlex.quote(self.folder.name)
        parts = [f"vllm serve {shlex.quote(place)}", f"--served-model-name {name}"]
        if self.adapters:
            most = next((one for one in _RANKS if one >= self.rank), self.rank)
            # One more slot than adapters: on a CPU, vLLM 0.32 adds what is in the last slot to
            # requests without an adapter, so it has to stay empty.
            slots = len(self.adapters) + 1
            parts.append(f"--enable-lora --max-lora-rank {most} --max-loras {slots}")
            named = [f"{name}={place}/{ADAPTERS}/{name}" for name in self.adapters.values()]
            parts.append(f"--lora-modules {shlex.join(named)}")
        return " \\\n  ".join([*parts, "--limit-mm-per-prompt '{\"audio\": 8}'"])


def export_for_vllm(
    path_or_id: str | Path,
    output: str | Path,
    *,
    alphas: Sequence[float] = (1.0,),
    fold: bool = False,
    adapter: str | Path | None = None,
    llama_path: str | Path | None = None,
    revision: str | None = None,
    weights_hash: str | None = None,
    dtype: torch.dtype | None = None,
    max_shard_size: str | int = "5GB",
    overwrite: bool = False,
    report: Callable[[str], None] = lambda line: None,
) -> Exported:
    """Write the folder; nothing is left behind where that fails.

    path_or_id, adapter, llama_path, revision, weights_hash, dtype, overwrite: see `export_merged`
    alphas: an adapter is written for each; the model without one is that of α 0
    fold: write the only α of `alphas` into the weights, and no adapter
    report: takes a line for each file

    Raises UsageError for what cannot be asked for, CheckpointError for sources that do not fit.
    """
    _check_alphas(alphas, fold)
    reader = open_checkpoint(path_or_id, llama_path=llama_path, revision=revision)
    target = check_output(Path(output), overwrite, sources=(reader.checkpoint, reader.base))
    model = build_on_meta(NatureLM, without_lora(reader.config), reader.tokenizer)
    stored = adapter_of(reader, adapter, linear_shapes(model.language_model))
    deltas = None if stored is None else stored.deltas
    if deltas is None and list(alphas) != [1.0]:
        raise UsageError(
            f"{path_or_id} has no adapter (it was merged), so there is no α to choose; leave "
            "--alpha out, or name an adapter with --adapter"
        )
    refs = tensor_refs(model)
    chosen = choose_plain(reader, refs, weights_hash)
    layers = model.language_model.config.num_hidden_layers
    strength = alphas[0] if fold else 0.0
    plan = MergePlan(Recipe(alpha=strength), [deltas or {}], layers)
    tensors = {_name(ref): _tensor(ref, chosen, plan, dtype) for ref in refs}
    check_space(target.parent, sum(one.nbytes for one in tensors.values()))
    tokenizer, token = _tokenizer(model, reader)
    with built_aside(target) as folder:
        write_tensors(tensors, folder, max_shard_size=max_shard_size, report=report)
        names, rank = {}, 0
        for alpha in alphas if deltas is not None and not fold else ():
            names[alpha] = f"alpha-{alpha:g}"
            rank = _write_adapter(folder / ADAPTERS / names[alpha], deltas or {}, alpha)
            report(f"writing {ADAPTERS}/{names[alpha]}")
        _write_settings(folder, model, tokenizer, token, tensors)
        write_code(folder)
        exported = Exported(target, names, rank)
        source = public_name(named(path_or_id, revision))
        commits = commit_lines(reader, () if stored is None else (stored,))
        card = _card(exported, source, alphas[0] if fold else None, commits)
        (folder / "README.md").write_text(card, encoding="utf-8")
    return exported


def _check_alphas(alphas: Sequence[float], fold: bool) -> None:
    wrong = [one for one in alphas if not -100 <= one <= 100]
    names = {f"{one:g}" for one in alphas}  # which the folders of adapters have
    if not alphas or wrong or len(names) != len(alphas):
        raise UsageError(
            "--alpha takes different numbers from -100 to 100 with commas between them, such as "
            f"0.4,1.0; got {','.join(f'{one:g}' for one in alphas) or 'none'}"
        )
    if fold and len(alphas) > 1:
        raise UsageError(
            f"--fold writes one α into the weights, and --alpha names {len(alphas)}; give one, or "
            "leave --fold out for an adapter for each"
        )


# -- weights ----------------------------------------------------------------------------------


def _name(ref: TensorRef) -> str:
    """The name of a tensor in the file: that of the language model's own class where it has one,
    with the embeddings' where the output shares them."""
    own = sorted(name for name in ref.base_names if base_name(f"{_PREFIX}{name}") == name)
    inner = next((name for name in own if "embed_tokens" in name), own[0] if own else None)
    return ref.stored_name if inner is None else f"{_PREFIX}{inner}"


def _tensor(
    ref: TensorRef,
    chosen: Mapping[str, StoredTensor],
    plan: MergePlan,
    dtype: torch.dtype | None,
) -> LazyTensor:
    """A tensor as it is written; one that nothing computes with has a default, as when loading."""
    if ref.stored_name in chosen:
        own = dtype if ref.base_names else None  # the audio side keeps its precision
        return lazy_tensor(ref, chosen[ref.stored_name], plan, own)
    if ref.is_buffer:
        return LazyTensor(torch.int64, ref.shape, lambda: torch.arange(ref.shape[-1])[None])
    return LazyTensor(torch.float32, ref.shape, lambda: torch.zeros(ref.shape))


def _write_adapter(folder: Path, deltas: AdapterDeltas, alpha: float) -> int:
    """An adapter in PEFT's format whose `lora_alpha` is scaled by α; returns its rank.

    vLLM takes one rank and one `lora_alpha` for all layers. Where they differ, smaller ranks are
    filled up with zeros and the scale goes into the matrices.
    """
    rank = max(one.rank for one in deltas.values())
    scale = max((one.scale for one in deltas.values()), key=abs)
    tensors: dict[str, torch.Tensor] = {}
    for target, update in deltas.items():
        path = f"base_model.model.{_PREFIX}{target}"
        a_KI, b_OK = _uniform(update, rank, scale)
        tensors[f"{path}.lora_A.weight"], tensors[f"{path}.lora_B.weight"] = a_KI, b_OK
    folder.mkdir(parents=True)
    write_file(tensors, folder / WEIGHTS_FILE)
    settings = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "r": rank,
        "lora_alpha": _whole(scale * rank * alpha),
        "lora_dropout": 0.0,
        "bias": "none",
        "target_modules": [f"{_PREFIX}{target}" for target in sorted(deltas)],
        "inference_mode": True,
    }
    _write_json(folder / CONFIG_FILE, settings)
    return rank


def _uniform(update: LoraDelta, rank: int, scale: float) -> tuple[torch.Tensor, torch.Tensor]:
    a_KI, b_OK = update.a_KI, update.b_OK
    if update.scale != scale:
        b_OK = (b_OK.float() * (update.scale / scale)).to(b_OK)
    if update.rank < rank:
        missing = rank - update.rank
        a_KI = torch.cat([a_KI, a_KI.new_zeros(missing, a_KI.shape[1])])
        b_OK = torch.cat([b_OK, b_OK.new_zeros(b_OK.shape[0], missing)], dim=1)
    return a_KI, b_OK


def _whole(value: float) -> int | float:
    """Without the last bits that a product adds: 0.4 · 32 is 12.8."""
    value = float(f"{value:.15g}")
    return int(value) if value == int(value) else value


# -- what stands beside the weights -----------------------------------------------------------


def _tokenizer(model: NatureLM, reader: CheckpointReader) -> tuple[Any, int]:
    """The tokenizer with a token for sound, and its number.

    Raises UsageError for one that would read the parts of a prompt otherwise than the engine, which
    takes them one by one.
    """
    plain, tokenizer = model.tokenizer, copy.deepcopy(model.tokenizer)
    tokenizer.add_tokens(
        [AddedToken(PLACEHOLDER, special=True, normalized=False)], special_tokens=True
    )
    token = int(tokenizer.convert_tokens_to_ids(PLACEHOLDER))
    template = reader.config.prompt_template
    questions = [
        f"{AUDIO_TAG} What is heard?",
        f"Is {AUDIO_TAG} the same as {AUDIO_TAG}?",
        f"Audio:{PLACEHOLDER}\nLabel: crow\n\nAudio: {PLACEHOLDER}{PLACEHOLDER} \n",
    ]
    bos = tokenizer.bos_token or ""
    for prompt in [template.replace("{}", one) for one in questions]:
        expected: list[int] = []
        for part in prompt_parts(prompt, plain):
            expected += [*part, token]
        if tokenizer(bos + prompt, add_special_tokens=False).input_ids != expected[:-1]:
            raise UsageError(
                f"the tokenizer of {reader.base} reads a text with sound in it otherwise than its "
                "parts, so the positions would not be those that the model was trained with; "
                "export knows tokenizers that read the text behind a special token by itself"
            )
    tokenizer.chat_template = jinja_template(template)
    return tokenizer, token


def _write_settings(
    folder: Path,
    model: NatureLM,
    tokenizer: Any,
    token: int,
    tensors: Mapping[str, LazyTensor],
) -> None:
    config = copy.deepcopy(model.config)
    if config.llama_path and not is_hub_id(config.llama_path):
        config.llama_path = None  # a folder here, which nobody needs any more
    values = json.loads(config.to_json_string(use_diff=False))
    stored = tensors[next(name for name in tensors if name.startswith(_PREFIX))].dtype
    ends = model.eos_ids
    values |= {
        "architectures": [ARCHITECTURE],
        "auto_map": _AUTO_MAP,
        "audio_token": PLACEHOLDER,
        "audio_token_id": token,
        "dtype": str(stored).removeprefix("torch."),
        "tie_word_embeddings": bool(values["text_config"].get("tie_word_embeddings")),
    }
    values["text_config"] |= {"dtype": values["dtype"], "eos_token_id": ends}
    _write_json(folder / "config.json", values)
    generation = {
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": ends,
        "pad_token_id": tokenizer.pad_token_id,
        "do_sample": False,
        "temperature": 0.0,  # vLLM samples at 1 where a request and this file say nothing
    }
    _write_json(folder / "generation_config.json", generation)
    tokenizer.save_pretrained(folder)
    processor = {
        "processor_class": "NatureLMAudioProcessor",
        "auto_map": {"AutoProcessor": _AUTO_MAP["AutoProcessor"]},
        "sampling_rate": config.sample_rate,
        "chunk_length": config.window_seconds,
        "audio_token": PLACEHOLDER,
        "audio_positions": config.audio_positions(),
    }
    _write_json(folder / "processor_config.json", processor)
    written = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    written["processor_class"] = "NatureLMAudioProcessor"
    _write_json(folder / "tokenizer_config.json", written)


def _write_json(path: Path, values: Mapping[str, Any]) -> None:
    text = json.dumps(values, indent=2, sort_keys=True, ensure_ascii=False)
    path.write_text(f"{text}\n", encoding="utf-8")


def write_code(folder: Path) -> None:
    """Copy the modules that `auto_map` needs; their imports of each other become relative."""
    for module, name in _CODE.items():
        spec = find_spec(module)
        source = Path(cast(str, cast(ModuleSpec, spec).origin)).read_text(encoding="utf-8")
        (folder / f"{name}.py").write_text(_relative(source), encoding="utf-8")


def _relative(source: str) -> str:
    return re.sub(
        r"^from (NatureLM[\w.]*) import",
        lambda found: f"from .{_CODE[found[1]]} import",
        source,
        flags=re.MULTILINE,
    )


def _card(exported: Exported, source: str, folded: float | None, commits: Sequence[str]) -> str:
    """The text of the card; it names no place on this machine."""
    name = exported.folder.name
    if folded is not None:
        alphas = f"α = {folded:g} is folded into the weights."
    elif exported.adapters:
        listed = ", ".join(f"`{one}`" for one in exported.adapters.values())
        alphas = f"The weights are those of α = 0; the adapters {listed} add theirs."
    else:
        alphas = "The adapter is part of the weights."
    return _CARD.read_text(encoding="utf-8").format(
        name=name,
        version=__version__,
        source=source,
        alphas="\n\n".join([alphas, *commits]),
        command=exported.command("."),
        license=license_of(source),
    )


# -- the chat template ------------------------------------------------------------------------

# The same prompts as `prompts.ChatTemplate`, in Jinja. Contents are strings or lists of parts.
# Clips stand where their parts stand, or where the text says `<AudioHere>`, if it does so as often
# as there are clips; all of it as in `naturelm serve`.
_SOURCE = """\
{%- macro said(content) -%}
  {%- if content is string -%}
    {%- if PLACE in content -%}
      {{- raise_exception(PLACE ~ ' stands for sound, and the message brings none') -}}
    {%- endif -%}
    {{- content.strip() -}}
  {%- elif content is not none -%}
    {%- set ns = namespace(named=0, clips=0, pieces=[], texts=[]) -%}
    {%- for part in content -%}
      {%- if part['type'] in ['audio', 'input_audio', 'audio_url'] -%}
        {%- set ns.clips = ns.clips + 1 -%}
        {%- set ns.pieces = ns.pieces + [TAG] -%}
      {%- elif part['type'] in ['text', 'input_text', 'output_text'] -%}
        {%- set ns.named = ns.named + part['text'].count(PLACE) -%}
        {%- set ns.texts = ns.texts + [part['text']] -%}
        {%- if part['text'].strip() -%}
          {%- set ns.pieces = ns.pieces + [part['text'].strip()] -%}
        {%- endif -%}
      {%- else -%}
        {{- raise_exception('a part of type ' ~ part['type'] ~ ' is not understood') -}}
      {%- endif -%}
    {%- endfor -%}
    {%- if not ns.named -%}
      {{- ns.pieces | join(' ') -}}
    {%- elif ns.named == ns.clips -%}
      {{- (ns.texts | join(NEWLINE)).strip() -}}
    {%- else -%}
      {{- raise_exception('the text has ' ~ ns.named ~ ' places for clips, and there are '
                          ~ ns.clips ~ ' clips') -}}
    {%- endif -%}
  {%- endif -%}
{%- endmacro -%}
{%- set ns = namespace(system='', question='', open=false, turns=0, out=bos_token or '') -%}
{%- for message in messages -%}
  {%- set text = said(message['content']) -%}
  {%- if message['role'] in ['system', 'developer'] -%}
    {%- if ns.turns or ns.open -%}{{ raise_exception('a system message comes first') }}{%- endif -%}
    {%- set ns.system = ns.system ~ (BLANK if ns.system else '') ~ text -%}
  {%- elif message['role'] == 'user' -%}
    {%- set ns.question = (ns.question ~ NEWLINE ~ text).strip() if ns.open else text -%}
    {%- set ns.open = true -%}
  {%- elif message['role'] == 'assistant' and ns.open and text -%}
    {%- set ns.out = ns.out ~ OPENED ~ ns.question ~ ANSWER ~ text.replace(PLACE, '') -%}
    {%- set ns.turns = ns.turns + 1 -%}
    {%- set ns.open = false -%}
  {%- else -%}
    {{- raise_exception('an answer stands after a question') -}}
  {%- endif -%}
{%- endfor -%}
{%- if not ns.open -%}
  {{- raise_exception('the messages must end with one of the user') -}}
{%- endif -%}
{{- ns.out ~ OPENED ~ ns.question ~ ANSWER -}}
"""


def jinja_template(template: str) -> str:
    """The chat template of a model with this prompt template (`{}` stands for the question)."""
    chat = ChatTemplate.of(template)
    values = {
        "OPENED": _opened(chat),
        "ANSWER": json.dumps(chat.answer),
        "TAG": json.dumps(AUDIO_TAG),
        "PLACE": json.dumps(PLACEHOLDER),
        "NEWLINE": json.dumps("\n"),
        "BLANK": json.dumps("\n\n"),
    }
    # At once, because a value may hold such words itself.
    return re.sub(rf"\b({'|'.join(values)})\b", lambda found: values[found[1]], _SOURCE)


def _opened(chat: ChatTemplate) -> str:
    """What stands in front of a question: after an earlier answer, after the system message."""
    later, first = json.dumps(chat.end + chat.question), json.dumps(chat.start)
    if chat.start == chat.question and "user" in chat.question:
        system = json.dumps(chat.question.replace("user", "system", 1))
        before = f"({system} ~ ns.system ~ {json.dumps(chat.end + chat.start)})"
    else:
        before = f"({first} ~ ns.system ~ {json.dumps(chr(10) * 2)})"
    return f"({later} if ns.turns else {before} if ns.system else {first})"
