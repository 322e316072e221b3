"""Wordings of questions and instructions: many from few lines of a grammar, some never trained on.

A line such as "[Repeat|Copy] [this|the following]: {text}" stands for all its combinations. One in
six of them, chosen by a checksum, is kept out of training to measure whether instructions of unseen
wording are followed. The same questions are asked about text that stands where audio would
(language model) and about recordings (audio training). `HELD_OUT` are the questions of the study of
merging, which no training sample has.

Placeholders: {name} one name, {names} a list, {examples} a few-shot block."""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import product
from typing import Literal

_UNSEEN_ONE_IN = 6


def expand(line: str) -> list[str]:
    """All texts of a line, in order; an empty alternative is allowed, spaces are tidied."""
    parts = re.split(r"\[([^\[\]]*)\]", line)
    choices = [part.split("|") if i % 2 else [part] for i, part in enumerate(parts)]
    texts = (_tidy("".join(chosen)) for chosen in product(*choices))
    return list(dict.fromkeys(texts))


def expand_all(lines: Iterable[str]) -> tuple[str, ...]:
    """All texts of several lines, each once."""
    return tuple(dict.fromkeys(text for line in lines for text in expand(line)))


def split(texts: Iterable[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """(seen, unseen); with fewer than three texts all are seen and unseen."""
    every = list(texts)
    unseen = tuple(text for text in every if zlib.crc32(text.encode()) % _UNSEEN_ONE_IN == 0)
    seen = tuple(text for text in every if text not in set(unseen))
    return (seen or tuple(every), unseen or tuple(every[-1:]))


def _tidy(text: str) -> str:
    text = re.sub(r" {2,}", " ", text)
    text = re.sub(r" ([.,?]|:(?! common))", r"\1", text).strip(" ")
    return text[:1].upper() + text[1:] if not text.startswith("{") else text


COMMON = "common"
SCIENTIFIC = "scientific"
GROUP = "group"
SOUND = "sound"
CHOICE = "choice"
YES_NO = "yes_no"
ANIMALS_PRESENT = "animals"
CAPTION = "caption"

_CANONICAL: dict[str, tuple[str, ...]] = {
    COMMON: (
        "What is the common name for the focal species in the audio?",
        "What is the common name of the animal in the audio?",
        "What is the common name of this species?",
        "Which animal is this?",
        "Which animal makes this call?",
        "Which species is calling?",
        "Name the animal in this recording.",
        "Name the species that you hear.",
        "Give the common name of the caller.",
        "Common name?",
        "Who is calling here?",
        "What animal do you hear?",
        "Tell me which animal this is.",
        "Identify the animal by its common name.",
        "What species is this?",
    ),
    SCIENTIFIC: (
        "What is the scientific name for the focal species in the audio?",
        "What is the scientific name of this species?",
        "What is the scientific name of the animal in the audio?",
        "Give the scientific name of the caller.",
        "Name the species in Latin.",
        "What is the Latin name of the animal?",
        "Scientific name?",
        "Which species is this, by its scientific name?",
        "Identify the animal by its scientific name.",
        "Tell me the taxonomic name of this animal.",
    ),
    GROUP: (
        "Is it a bird, a frog or a mammal?",
        "Which group does the animal belong to: bird, frog or mammal?",
        "Bird, frog, mammal or none?",
        "What group of animals is heard?",
        "What kind of animal is it, a bird, frog or mammal?",
        "To which group does the caller belong?",
        "Which group of animals makes this sound?",
        "Name the group of the animal: bird, frog, mammal or none.",
        "Group of the animal?",
    ),
    SOUND: (
        "What makes the sound in the audio?",
        "What makes this sound?",
        "What is making the sound?",
        "What is the source of the sound?",
        "What do you hear?",
        "What can be heard in the recording?",
        "Name the source of this sound.",
        "What is heard here?",
        "Which sound is this?",
        "Tell me what makes this noise.",
        "What produces the sound that you hear?",
    ),
    CHOICE: (
        "Which of these, if any, are present in the audio recording? {names}.",
        "Which of these is in the audio: {names}?",
        "Which one is it: {names}?",
        "Choose from this list what you hear: {names}.",
        "Pick the right name: {names}.",
        "One of these makes the sound: {names}. Which one?",
        "Options: {names}. What is heard?",
        "Select the source of the sound from {names}.",
        "What do you hear? Choose from: {names}.",
        "Here are some names: {names}. Which fits the recording?",
        "What is calling?\nOptions: {names}",
        "Which animal or sound is this?\nChoices: {names}",
    ),
    YES_NO: (
        "Is there a {name} in the audio?",
        "Is {name} in the audio, yes or no?",
        "Do you hear a {name}?",
        "Is this a {name}?",
        "Can a {name} be heard? Answer yes or no.",
        "Does the recording contain {name}?",
        "Is the sound made by a {name}?",
        "{name}: present or not? Say yes or no.",
        "Yes or no: is {name} heard here?",
        "Is a {name} present in this clip?",
    ),
    ANIMALS_PRESENT: (
        "Which animals are in the audio?",
        "Which animals are in it?",
        "List the animals in the recording.",
        "What animals can be heard?",
        "Name all animals that you hear.",
        "Which animals are heard, if any?",
        "List all animals. If there are none, say None.",
        "Which species are in the audio?",
        "Are there animals in this recording, and which?",
    ),
    CAPTION: (
        "Caption the audio.",
        "Caption the audio",
        "Describe the audio.",
        "Describe the sound in one sentence.",
        "What happens in this recording?",
        "Write a short caption.",
        "Give a caption for this clip.",
        "Describe what you hear.",
    ),
}

_QUESTION_LINES: dict[str, tuple[str, ...]] = {
    COMMON: (
        "[|Please ][give|tell|say|write] [me |]the common name of the [animal|species|caller].",
        "[Which|What] [animal|species] [is this|is it|is heard|do you hear|is calling|calls here]?",
        "[|Please ][name|identify] the [animal|species|caller][| that you hear| in the recording].",
        "What is the common name of [this animal|the species|the caller|what you hear]?",
        "[Do you know|Can you tell|Tell me] which [animal|species] this is[.|]",
        "The [animal|species] [heard here|in this recording] is called what?",
    ),
    SCIENTIFIC: (
        "[|Please ][give|tell|say|write] [me |]the [scientific|Latin] name of the "
        "[animal|species|caller].",
        "What is the [scientific|Latin|taxonomic] name of [this animal|the species|the caller]?",
        "[|Please ][name|identify] the [animal|species|caller] [in Latin|by its Latin name].",
        "[Latin|Taxonomic] name[?| of the animal?| of the species?]",
    ),
    GROUP: (
        "[|Please say: |Is it a ]bird, frog[, mammal or none| or mammal]?",
        "[Which|What] group [of animals |]is [it|this|heard]?",
        "[|Please ][name|give|tell me] the group of the [animal|caller].",
        "[Is the animal|Is the caller|Is this|Would you say] a bird, a frog or a mammal?",
        "[Does|To which group does] the [animal|caller] belong[| to the birds, frogs or mammals]?",
    ),
    SOUND: (
        "What [makes|is making|produces|causes] [the|this|that] [sound|noise]?",
        "[|Please ][tell me|say|name|write] [what|who] makes [the|this] [sound|noise].",
        "What [is heard|can be heard|do you hear|sounds] [here|in the audio|in this recording]?",
        "[Source|Name the source|What is the source] of [the|this] [sound|noise]?",
        "[Do you know|Can you tell] what makes [the|this|that] [sound|noise]?",
    ),
    CHOICE: (
        "[Which|Which one|Which name] [is it|fits|is right|is heard]: {names}?",
        "[|Please ][choose|pick|select] [what is heard|what you hear|the right name] "
        "[from|among]: {names}.",
        "[Options|Choices|Names]: {names}. [What is it|Which is heard|What do you hear]?",
        "[What is heard|What do you hear|Which animal is it]?\n[Options|Choices|Names]: {names}",
        "[From|Of] [the names|these names|these] {names}, [which one fits|which is heard]?",
    ),
    YES_NO: (
        "[Is there|Do you hear|Can you hear|Does it contain] [a |]{name}[| here| in it]?",
        "[Is this|Is it|Is that] [a |]{name}[|, yes or no]?",
        "[Yes or no|Please answer yes or no|Tell me]: [is there|do you hear] [a |]{name}?",
        "[Can|Could] [a |]{name} be heard[| here| in the audio]?",
        "[Please check|Tell me|Say] if there is [a |]{name}[| in the audio| here].",
    ),
    ANIMALS_PRESENT: (
        "[Which|What] animals [are heard|are here|do you hear|are in this clip|can you hear]?",
        "[|Please ][list|name|write] [all|the|every one of the] animals"
        "[| that you hear| in the audio| in this clip].",
        "[Tell me|Say] [all|which] animals [you hear|are in the audio|are heard].",
    ),
    CAPTION: (
        "[|Please ][caption|describe] [the|this] [audio|recording|clip|sound][.|]",
        "[|Please ][give|write] [me |]a [caption|short caption|short description]"
        "[.| of the audio.]",
        "[What happens|What is going on] [here|in the audio|in this clip]?",
    ),
}


def _families() -> tuple[dict[str, tuple[str, ...]], dict[str, tuple[str, ...]]]:
    """Canonical wordings are always seen; those made by the grammar are split."""
    seen, unseen = {}, {}
    for family, canonical in _CANONICAL.items():
        more, kept_out = split(expand_all(_QUESTION_LINES[family]))
        seen[family] = tuple(dict.fromkeys((*canonical, *more)))
        unseen[family] = tuple(text for text in kept_out if text not in set(canonical))
    return seen, unseen


SEEN, UNSEEN = _families()


_INSTRUCTION_LINES: dict[str, tuple[str, ...]] = {
    "pick_group": (
        "[|Please ][choose|pick|find|select|name] the {group} [in|from|among] "
        "[this list:|these:|] {names}",
        "[Which|Which one] [of these |of the names ]is [a|the] {group}? {names}",
        "{names}\n[Which|Which one|Which name] is [a|the] {group}?",
        "[Only one|One|Just one] of {names} is a {group}. [Which|Which one|Name it]?",
        "[Tell me|Say|Write|Print] [which|which one|which name] is the {group}: {names}",
    ),
    "is_group": (
        "Is [the|a|] {name} a {group}?[| Answer yes or no.| Yes or no?]",
        "{name}: [is it |]a {group}[ or not|]?[| Say yes or no.]",
        "[Yes or no:|True or not:] [the|a|] {name} is a {group}.",
        "[Would you say|Do you think|Is it true] that [the|a|] {name} is a {group}?",
        "[Tell me|Say] [if|whether] [the|a|] {name} is a {group}.",
    ),
    "in_list": (
        "Is {name} [in|part of|one of|among] [|this list: |these: ]{names}?",
        "[List|Names|Options]: {names}\n[Is {name} there|Does it have {name}|Is {name} in it]?",
        "[Does|Do] [the list |the names |]{names} [contain|include|have] {name}?",
        "[Can you find|Do you see|Is there] {name} in {names}?[| Yes or no?]",
        "[Look for|Search] {name} in {names}. [Is it there|Is it in the list]?",
        "[Tell me|Say] [if|whether] {name} is [in|among] {names}.",
    ),
    "copy": (
        "[|Please |Just ][repeat|copy|say|print|write|echo] [this|the following|exactly this|"
        "this text|this name]: {text}",
        "[|Please |Just ][repeat|copy|say|print|write|echo]: {text}",
        "[|Please ][repeat|copy|say|print|write] [this |]after me: {text}",
        '[Repeat|Copy|Say|Print|Write] "{text}"[ and stop|]',
        "[Write down|Give back|Say again|Output] [this|the text|the words]: {text}",
        "{text}\n[Repeat|Copy|Say] [this|that|the line above].",
    ),
    "first": (
        "[What|Which] is the first [name|entry|one] [in|of] [this list: |these: |]{names}?",
        "{names}\n[First one|First name|Which is first|Which name comes first]?",
        "[|Please ][give|print|write|say|name] [me |]the first [name |entry |]of {names}",
        "[Only|Just] the first [name|entry|one]: {names}",
        "Which [name|entry|one] [comes|stands|is] first in {names}?",
    ),
    "last": (
        "[What|Which] is the last [name|entry|one] [in|of] [this list: |these: |]{names}?",
        "{names}\n[Last one|Last name|Which is last|Which name comes last]?",
        "[|Please ][give|print|write|say|name] [me |]the last [name |entry |]of {names}",
        "[Only|Just] the last [name|entry|one]: {names}",
        "Which [name|entry|one] [comes|stands|is] last in {names}?",
    ),
    "sort": (
        "[|Please ]sort [this list|these names|this|] [by the alphabet|from a to z|]: {names}",
        "[|Please ][put|bring|write] [these|this list|these names] [in|into] alphabetical order: "
        "{names}",
        "{names}\n[Sort them|Sort these|In alphabetical order, please|Sort this list].",
    ),
    "count": (
        "How many [names|entries|items] are [in this list|there|these]? {names}",
        "[|Please ]count [the names|the entries|these|these names]: {names}",
        "{names}\n[How many|How many are these|How many names|Count them]?",
        "[Number of|Tell me the number of] [names|entries] in {names}",
    ),
    "one_more": (
        'Is [there|it|that] one name or more? [Say|Answer|Reply] "One" or "More". {names}',
        "[One or More|More or One][?|:] {names}",
        "{names}\n[One or More|Is that one or more|More than one name]? [Say|Answer] One or More.",
        "[|Please ][say|answer|reply] One or More: {names}",
    ),
    "group_of": (
        "[What|Which] is [the|a|] {name}: bird, frog[, mammal or none| or mammal]?",
        "[Which|What|To which] group [does|do] the {name} belong[| to]?",
        "Is [the|a|] {name} a bird, a frog or a mammal?",
        "[Group of|The group of|Animal group of] [the |]{name}[?|:]",
        "{name}\n[Bird, frog, mammal or none|Bird, frog or mammal|Which group]?",
        "[Tell me|Say|Name|Give] the group of [the |]{name}.",
    ),
    "to_scientific": (
        "What is the [scientific|Latin|taxonomic] name of [the |]{name}?",
        "[Scientific|Latin|Taxonomic] name of [the |]{name}[?|:]",
        "[|Please ][give|tell|write|print|say] [me |]the [scientific|Latin] name of [the |]{name}.",
        "{name} [in Latin|in science][, please.|?]",
        "How is [the |]{name} called in [science|Latin]?",
    ),
    "to_common": (
        "What is the common name of {scientific}?",
        "[Common|Usual|English] name of {scientific}[?|:]",
        "Which [animal|species] is {scientific}?",
        "{scientific} is the [Latin|scientific] name of [what|which animal]?",
        "[|Please ][give|tell|write|print|say] [me |]the [common|usual] name of {scientific}.",
        "{scientific}[: common name| in English|, which animal is it]?",
    ),
    "both_names": (
        "[|Please ][write|print|give] [both|the two] names of [the |]{name} as "
        "scientific : common[.|]",
        "Names of [the |]{name} [in the form|in the format|as] scientific : common[?|.]",
        "[|Please ][print|write] Latin name, colon, common name: {name}",
        "{name}. [Answer|Reply|Write] in the [format|form]: scientific : common",
        "For [the |]{name}, [use|write|answer in] the [form|format] scientific : common.",
        "Which species is the {name}? First its scientific name, a colon, then the other.",
        "[Scientific and common|Latin and common] name of [the |]{name}, "
        "[with a colon|colon] between.",
    ),
    "both_heard": (
        "[|Please ][write|print|give] [both|the two] names of [what you hear|the caller] as "
        "scientific : common[.|]",
        "[Scientific|Latin] name, colon, common name[?|.|:| of the caller| of the animal]",
        "[Answer|Reply|Write] in the [form|format] scientific : common[.|]",
        "[Which species is it|Who calls|Which animal is this]? [Use|Keep to] the [form|format] "
        "scientific : common[.|]",
    ),
    "list_group": (
        "[|Please ][list|name|give|write] [all|only|just] [the |]{group}s [in|of|among] {names}",
        "Which of [these|the names] are {group}s? {names}[| Say None if there are none.]",
        "{names}\n[Keep|Write|List] [only|just] the {group}s.",
        "[From|Of] {names}, [take|keep|list|name] the {group}s.",
    ),
}

# task: (wordings of training, wordings kept out)
INSTRUCTIONS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    task: split(expand_all(lines)) for task, lines in _INSTRUCTION_LINES.items()
}


ListOrder = Literal["none", "shuffled", "alphabetical", "reversed"]
Answer = Literal["common", "scientific : common"]


@dataclass(frozen=True)
class HeldOutFamily:
    """A way of asking.

    query: the wording, with `{names}` or `{examples}` where they go
    answer: what a right answer looks like
    order: order of the names of the list
    list_length: number of names in the list; 0 if there is none, -1 for all classes
    examples: labelled text descriptions in the few-shot block
    """

    name: str
    query: str
    answer: Answer = "common"
    order: ListOrder = "none"
    list_length: int = 0
    examples: int = 0


HELD_OUT: tuple[HeldOutFamily, ...] = (
    HeldOutFamily(
        "only_the_name",
        "Identify the focal species, only print the common name and nothing else.",
    ),
    HeldOutFamily("new_wording", "I recorded this on my walk today. Any idea who made it?"),
    HeldOutFamily(
        "exactly_one_of_two",
        "Identify the focal species.\nOutput exactly one of: {names}",
        order="shuffled",
        list_length=2,
    ),
    HeldOutFamily(
        "exactly_one_of_twenty",
        "Identify the focal species.\nOutput exactly one of: {names}",
        order="shuffled",
        list_length=20,
    ),
    HeldOutFamily(
        "exactly_one_of_all",
        "Identify the focal species.\nOutput exactly one of: {names}",
        order="alphabetical",
        list_length=-1,
    ),
    HeldOutFamily(
        "list_in_front",
        "Candidates, from z to a: {names}\nYour answer must be a candidate from above.",
        order="reversed",
        list_length=20,
    ),
    HeldOutFamily(
        "scientific_colon_common",
        "Identify the focal species and provide its taxonomic name followed by a colon and its"
        " common name.",
        answer="scientific : common",
    ),
    HeldOutFamily(
        "text_examples",
        "Output exactly one of: {names}\n\n{examples}\n\nAudio: <Audio><AudioHere></Audio>\nLabel:",
        order="shuffled",
        list_length=4,
        examples=4,
    ),
)
