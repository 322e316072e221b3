"""Wordings of the questions about a sound, by family.

The same questions are asked about text that stands where audio would (language model) and about
recordings (audio training). Placeholders: {name} one name, {names} a list, {count} its length.
`UNSEEN` holds wordings of the same families that no training sample has.
"""

from __future__ import annotations

from recipes.tiny.text.grammar import expand_all, split

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

_LINES: dict[str, tuple[str, ...]] = {
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
        more, kept_out = split(expand_all(_LINES[family]))
        seen[family] = tuple(dict.fromkeys((*canonical, *more)))
        unseen[family] = tuple(text for text in kept_out if text not in set(canonical))
    return seen, unseen


SEEN, UNSEEN = _families()
