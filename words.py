"""
A text as it is said: in words and plain punctuation, cut into pieces that are said at once.

It knows text only, and no voices: speak.py gives the pieces a sound.
"""

import re
import unicodedata

BETWEEN_PASSAGES = re.compile(r"^ *-{3,} *$|<\|endoftext\|>", re.MULTILINE)  # as sample.py writes it
LONGEST = 300  # characters said at once: half a minute, which bounds the memory

# -----------------------------------------------------------------------------
# from text to words

TITLES = {"Mr": "Mister", "Mrs": "Missus", "Ms": "Miz", "Dr": "Doctor", "Prof": "Professor"}
CURRENCIES = {"$": ("USD", "dollars"), "€": ("EUR", "euro"), "£": ("GBP", "pounds")}
SIGNS = {"&": "and", "@": "at", "/": "slash", "\\": "backslash", "×": "times", "÷": "divided by", "⁄": "over"}
PLAIN = str.maketrans({"’": "'", "‐": "-", "‑": "-", "…": "... ", "ß": "ss"})
NUMBER = re.compile(
    r"((?<![\w)])[-−])?([$€£])?(\d{1,3}(?:,\d{3})+(?!\d)|\d+|(?=\.\d))"  # minus, currency, whole
    r"(?:\.(\d+)|(st|nd|rd|th|s)\b)?( (?:hundred|thousand|million|billion|trillion)\b)?"  # decimals, ending, large
)


def number_in_words(match):
    """A NUMBER in words: 21st, 3.14, the 1980s, $3.14, $5 million. 1100 to 2099 are read as years."""
    from num2words import num2words

    minus, currency, whole, decimals, ending, large = match.groups(default="")
    code, unit = CURRENCIES.get(currency, ("", ""))
    number = whole.replace(",", "")
    if currency and not large and len(number) <= 15 and len(decimals) <= 2:
        words = num2words(f"{number or 0}.{decimals or 0}", to="currency", currency=code)
        words = re.sub(" sterling|, zero (cents|pence)$", "", words)
        decimals = unit = ""  # both are in `words` already
    elif re.fullmatch(r"0\d+|\d{16,}|", number):  # 007; a telephone number; nothing, as in .5
        words = digits_in_words(number)
    elif ending in ("st", "nd", "rd", "th"):
        words = num2words(int(number), to="ordinal")
    else:
        year = re.fullmatch(r"(1[1-9]|20)\d\ds?", match[0])
        words = num2words(int(number), to="year" if year else "cardinal")
    if ending == "s":
        words = re.sub("y$", "ie", words) + "s"
    point = f" point {digits_in_words(decimals)}" if decimals else ""
    return f" {'minus ' * bool(minus)}{words}{point}{large} {unit} "


def digits_in_words(digits):
    from num2words import num2words

    return " ".join(num2words(int(digit)) for digit in digits)


def character_in_words(char, letters):
    """How a voice that knows `letters` reads a character; None if it cannot."""
    kind, name = unicodedata.category(char), unicodedata.name(char, "").lower()
    if char.lower() in letters or char in " \n.,;:!?'-":
        return char
    if char in SIGNS:
        return f" {SIGNS[char]} "
    if latin := re.match(r"latin (?:small|(capital)) (?:letter|ligature) ([a-z]{1,2})\b", name):  # é, Æ, ł
        return latin[2].capitalize() if latin[1] else latin[2]
    if kind in ("Sm", "Sc", "So") and char != "\ufffd" or kind == "Po" and name.endswith(" sign"):  # +, emoji, %
        return re.sub("[^a-z]+", " ", f" {name.removesuffix(' sign')} ")
    if kind[0] == "M" or kind == "Cf":  # accents, and invisible characters
        return ""
    if kind[0] in "PZ" or kind in ("Sk", "Cc"):  # a dash is a pause; quotes, brackets and spaces are silent
        return ", " if kind == "Pd" else " "
    return None


def in_words(passage, letters):
    """
    `passage` in letters and plain punctuation, with numbers and signs as words; and the characters that cannot be read.

    `letters` are those that the voice knows, in lower case. Newlines stay.
    """
    passage = "".join(
        f" {char} " if char.isnumeric() and not char.isdecimal() else char for char in passage
    )  # the ½ in 2½
    passage = unicodedata.normalize("NFKC", passage.translate(PLAIN))
    passage = re.sub(rf"\b({'|'.join(TITLES)})\.", lambda match: TITLES[match[1]], passage)
    passage = re.sub(r"--+|(?<=\s)-(?=\s)", "—", passage)  # typed dashes
    passage = re.sub(r"(?<=\d):(?=\d\d)", " ", passage)  # 10:30
    passage = re.sub(r"(?<=\d) ?– ?(?=\d)", " to ", passage)
    passage = NUMBER.sub(number_in_words, passage)
    words = {char: character_in_words(char, letters) for char in sorted(set(passage))}
    unreadable = [char for char in words if words[char] is None]
    passage = "".join(words[char] or "" for char in passage)
    passage = re.sub(r"(?<!\w)'|'(?!\w)", "", passage)  # quotes: an apostrophe stands between letters
    passage = re.sub(r"[ -]*([.,;:!?])(?:[ ,]*,)?", r"\1", re.sub(" +", " ", passage))
    return passage, unreadable


# -----------------------------------------------------------------------------
# from words to pieces that are said at once


def pieces(passage):
    """
    Cut a passage that is in words: a list of (words to say at once, the name of the pause after them).

    Paragraphs are separated by blank lines, and by line ends after a sentence.
    """
    script = []
    for paragraph in re.split(r"\n\s*\n|(?<=[.!?])\s*\n", passage):
        # no sentence ends after an initial, as in J. R. Hartley
        for sentence in re.split(r"(?<=[.!?])(?<!\b[A-Z]\.)\s+(?=[^\sa-z])", " ".join(paragraph.split())):
            clauses = [sentence]
            if len(sentence) > LONGEST:  # as many whole clauses as fit, or else as many words
                some = rf"\S.{{0,{LONGEST - 1}}}"
                clauses = re.findall(rf"{some}(?<=[,;:])(?=\s)|{some}(?=\s|$)|\S{{{LONGEST}}}", sentence)
            script += [(clause, "clause") for clause in clauses if re.search(r"\w", clause)]
            set_last_pause(script, "sentence")
        set_last_pause(script, "paragraph")
    set_last_pause(script, "passage")
    return script


def set_last_pause(script, name):
    """Replace the pause after a script's last piece, if it has one."""
    script[-1:] = [(words, name) for words, _ in script[-1:]]
