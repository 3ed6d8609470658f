"""Words that a default model should not pick up from small talk. English, crude ones only; nothing is judged by topic."""

import re

CRUDE = re.compile(
    r"\b(?:(?:mother)?fuck\w*|(?:bull|horse|dip)?shit(?:s|ty|ting|head\w*)?|bitch\w*|assholes?|cunts?|nigg(?:er|a|ah)s?|fag(?:got)?s?"
    r"|sluts?|whores?|dickheads?|pussy|wank\w*|cocksuck\w*|blowjobs?|jerk(?:ed|ing)? off|boners?|horny|tits|crap(?:py)?|damn"
    r"|retard(?:ed|s)?|(?:dumb|bad|jack)?ass(?:es)?|sexy\w*|porn\w*)\b",
    re.IGNORECASE,
)


def crude(texts: list[str]) -> bool:
    """Whether one of the texts holds one of the words."""
    return any(CRUDE.search(text) for text in texts)
