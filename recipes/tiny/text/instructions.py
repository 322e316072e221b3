"""Wordings of the text-only tasks, as lines of the grammar."""

from __future__ import annotations

from recipes.tiny.text.grammar import expand_all, split

_LINES: dict[str, tuple[str, ...]] = {
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
    task: split(expand_all(lines)) for task, lines in _LINES.items()
}
