"""
A text as it is said: in words and plain punctuation, cut into pieces that are said at once.

It knows text only, and no voices: speak.py gives the pieces a sound.
"""

import re
import unicodedata
from functools import lru_cache

BETWEEN_PASSAGES = re.compile(r"^ *-{3,} *$|<\|endoftext\|>", re.MULTILINE)  # as sample.py writes it
LONGEST = 300  # characters said at once: half a minute, which bounds the memory

# -----------------------------------------------------------------------------
# integers, in the languages of num2words

CODES = {"eng": "en", "nb": "no", "nn": "no", "kk": "kz"}  # num2words' names, where they are others
REGIONS = ("fr_BE", "fr_CH", "pt_BR")  # they count in their own way
BEST_AS_DIGITS = ("am", "ar", "fa", "he", "th")  # espeak says their digits right, and their unvowelled words wrong
YEARS = ("en", "de", "nl", "no", "da")  # 1984 is nineteen eighty-four, and num2words does it well


def code_of(language):
    """What num2words calls an ISO 639-1 code or a voice of espeak's, such as en-us or pt-br; "" if it lacks it."""
    from num2words import CONVERTER_CLASSES

    first, _, region = language.replace("_", "-").partition("-")
    first = CODES.get(first.lower(), first.lower())
    code = f"{first}_{region.upper()}"
    return code if code in REGIONS else first if first in CONVERTER_CLASSES else ""


@lru_cache(maxsize=10_000)
def integer(number, code="en", to="cardinal"):
    """An integer of 0 or more as a cardinal, an ordinal or a year; None where num2words cannot say it."""
    from num2words import num2words

    if number >= (10**15 if code == "en" else 10**6 if code == "am" else 10**9):  # beyond, it errs or never returns
        return None
    options = {"reading": True} if (code, to) == ("ja", "cardinal") else {}  # kana: espeak does not know kanji
    try:
        return " ".join(num2words(number, lang=code, to=to, **options).split()) or None
    except Exception:  # each language has its own gaps: NotImplementedError, TypeError, KeyError ...
        return None


def digit_by_digit(digits, code="en"):
    return " ".join(integer(int(digit), code) or digit for digit in digits)


# -----------------------------------------------------------------------------
# English abbreviations and Roman numerals

TITLES = "Mr Mister, Mrs Missus, Ms Miz, Dr Doctor, Prof Professor, Sgt Sergeant, Capt Captain, Lt Lieutenant"
RANKS = (
    "Col Colonel, Maj Major, Cpl Corporal, Gen General, Rev Reverend, Gov Governor, Sen Senator, Rep Representative, "
    "Hon Honourable, Mt Mount, Ft Fort, Mme Madame, Messrs Messieurs"
)
BEFORE_NUMBERS = (
    "No number, Nos numbers, vol volume, Vol Volume, p page, pp pages, ch chapter, Ch Chapter, fig figure, Fig Figure, "
    "sec section, Sec Section, c circa, ca circa, Jan January, Feb February, Mar March, Apr April, Jun June, Jul July, "
    "Aug August, Sept September, Oct October, Nov November, Dec December"
)
INSIDE = "e.g for example, i.e that is, vs versus, cf compare, approx approximately, viz namely"  # of a sentence
ANYWHERE = (  # also at the end of a sentence
    "etc et cetera, &c et cetera, Jr Junior, Sr Senior, dept department, Dept Department, Ave Avenue, Rd Road, "
    "Blvd Boulevard, Inc Incorporated, Ltd Limited, Corp Corporation, Co Company, a.m A-M, p.m P-M, A.M A-M, P.M P-M"
)
OPENERS = "The|An?|He|She|It|They|We|I|You|His|Her|This|That|There|But|And|In|On|At|When|Then|What|Why|How|No|So"
SENTENCE_ENDS = r"""(?=\.['")\]]*(?:\s+['"(]*[A-Z0-9]|\s*\Z|\s*\n\s*\n))"""
KINGS = (
    "Alexander|Benedict|Catherine|Charles|Clement|Edward|Elizabeth|Francis|Frederick|George|Gregory|Henry|Innocent|"
    "Ivan|James|John|Leo|Louis|Mary|Napoleon|Nicholas|Paul|Peter|Philip|Pius|Richard|Urban|Wilhelm|William"
)

ROMAN = r"(?=[CLXVI])C{0,3}(?:XC|XL|L?X{0,3})(?:IX|IV|V?I{0,3})"
AFTER_NUMERALS = "of|was|is|and|had|has|in|who|began|ended|came|died|became|ruled|reigned"  # Charles I was, Part I is


def table(rows):
    """A table "short long, ..." as a dictionary, and a pattern for its short forms."""
    long = dict(row.split(" ", 1) for row in rows.split(", "))
    return long, "|".join(map(re.escape, sorted(long, key=len, reverse=True)))


def abbreviations(rows, before, after):
    """The rule (pattern, replacement) for a table whose short forms stand between two patterns."""
    long, short = table(rows)
    return rf"{before}({short}){after}", lambda match: long[match[1]]


def roman_numeral(match):
    """Chapter IV and World War II: four, two. Henry VIII: the eighth. Numerals up to CCCXCIX."""
    name, space, numeral = match.groups()
    values = [{"I": 1, "V": 5, "X": 10, "L": 50, "C": 100}[letter] for letter in numeral]
    number = sum(-one if one < after else one for one, after in zip(values, [*values[1:], 0]))
    words = f"the {integer(number, to='ordinal')}" if re.fullmatch(KINGS, name) else integer(number)
    return f"{name}{space}{words}"


SHORT_FORMS = [
    # 5 Main St. or on Main St. She: a street has a name before it, and no name after it
    (
        rf"(\b(?:[A-Z][a-z]+|\d+(?:st|nd|rd|th))\s)St\b(?!\.?\s(?!(?:{OPENERS})\b)[A-Z])(?:{SENTENCE_ENDS}|\.?)",
        r"\1Street",
    ),
    (r"(\d(?:st|nd|rd|th)\s)St\.", r"\1Street"),
    (r"(\b(?:on|along|down|off)\s[A-Z][a-z]+\s)St\.", r"\1Street."),  # on Wall St. Traders
    (r"(\b[A-Z][a-z]+\s)Dr\.(?!\s[A-Z])", r"\1Drive"),  # 5 Maple Dr.
    (r"\b(at|in|of|from|to|past|outside) no\.(?=\s?\d)", r"\1 number"),  # at no. 5, but not: said no. 5 came
    (r"\bSt\b\.?(?=\s[A-Z])", "Saint"),
    abbreviations(TITLES, r"\b", r"(?:\.|\b(?=\s[A-Z]))"),
    abbreviations(RANKS, r"\b", r"\.(?=\s[A-Z])"),
    abbreviations(BEFORE_NUMBERS, r"(?<![\w.])", r"\.(?=\s?\d|\s[IVX]{2,}\b)"),  # no. 5 may end a sentence
    abbreviations(INSIDE, r"(?<![\w.])", r"\."),
    abbreviations(ANYWHERE, r"(?<![\w.])", rf"(?:{SENTENCE_ENDS}|\.)"),
    (rf"\b(War)(\s)({ROMAN})(?!\w)", roman_numeral),
    # other words follow the pronoun I, as in the Book I read
    (
        rf"\b((?i:chapter|part|book|act|scene|volume|section|article)|Bowl|{KINGS})(\s)({ROMAN})(?!\w)"
        rf"(?!(?<=\sI)(?:'|\s+(?!(?:{AFTER_NUMERALS})\b)\w))",
        roman_numeral,
    ),
    (r"\b([A-Z][a-z]+)(\s)(?=[IVX]{2})(X{0,3}(?:IX|IV|V?I{0,3}))(?!\w)", roman_numeral),  # Rocky II
    (r"\bv(?=\d)", "version "),  # v2.0
    (r"\bAD(?= \d)|(?<=\d )AD\b", "A-D"),  # AD 79: espeak says it as a word
    (r"\b([CF])#", r"\1 sharp "),
    (r"#(?=[A-Za-z])", " hashtag "),
    (r"https?://", ""),
    (r"\.(?<=\w\.)(?=[a-z]{2}|[a-z]\.[a-z]{2})", " dot "),  # example.com
    (r"_(?<=\w_)(?=\w)", " underscore "),
]

# -----------------------------------------------------------------------------
# English numbers

CURRENCIES = {  # one, many, a hundredth, hundredths
    "$": ("dollar", "dollars", "cent", "cents"),
    "£": ("pound", "pounds", "penny", "pence"),
    "€": ("euro", "euro", "cent", "cents"),
    "¥": ("yen", "yen", "", ""),
    "₹": ("rupee", "rupees", "paisa", "paise"),
}
LARGE = {"k": "thousand", "m": "million", "mn": "million", "b": "billion", "bn": "billion", "tn": "trillion"}
UNITS, UNIT = table(  # with (s), or (one|many)
    "km kilometre(s), m metre(s), cm centimetre(s), mm millimetre(s), mi mile(s), ft f(oot|eet), km^2 square "
    "kilometre(s), m^2 square metre(s), m^3 cubic metre(s), km/h kilometre(s) per hour, m/s metre(s) per second, mph "
    "mile(s) per hour, kg kilogram(s), g gram(s), mg milligram(s), lb pound(s), lbs pound(s), oz ounce(s), l "
    "litre(s), ml millilitre(s), min minute(s), sec second(s), ms millisecond(s), hrs hour(s), kB kilobyte(s), KB "
    "kilobyte(s), MB megabyte(s), GB gigabyte(s), TB terabyte(s), Hz hertz, kHz kilohertz, MHz megahertz, GHz "
    "gigahertz, dB decibel(s), V volt(s), W watt(s), kW kilowatt(s), kWh kilowatt hour(s), °C degree(s) Celsius, °F "
    "degree(s) Fahrenheit, ° degree(s), ¢ cent(s), % percent"
)
UNIT = rf"(?:(?P<unit>{UNIT})(?!\w|\^)(?:\.(?=\s[a-z]))?)"
NUMBER = re.compile(
    rf"""(?P<minus>(?<![\w)])[-−])?(?:(?P<currency>[{"".join(CURRENCIES)}])\s?)?
    (?P<whole>\d{{1,3}}(?:,\d{{3}})+(?!\d)|\d+|(?=\.\d))(?:\.(?P<decimals>\d+)|(?P<ending>st|nd|rd|th|s)\b)?
    (?:\s?(?P<large>(?:hundred|thousand|million|billion|trillion|mn|bn|tn|(?(currency)[kKmMbB]|(?!)))\b)|
    \s?{UNIT})?""",
    re.VERBOSE,
)
FRACTION = re.compile(
    r"(?<![\w/⁄.,])(?:(?P<whole>\d{1,9})\s)?(?P<above>\d{1,2})(?:/(?P<below>2|3|4|5|8|10|16|100)|⁄(?P<small>\d{1,9}))(?![\d/⁄])"
    rf"(?:\s*{UNIT})?"
)


def spaced(words, match):
    """`words` in the place of a match: away from a small letter beside it, and tied to a capital, as in A-four."""
    before, after = match.string[match.start() - 1 : match.start()], match.string[match.end() : match.end() + 1]
    left, right = ("-" if char.isupper() else " " if char.isalnum() else "" for char in (before, after))
    return f"{left}{words}{right}"


def unit_in_words(unit, many):
    return re.sub(r"\((?:(\w+)\|)?(\w+)\)", r"\2" if many else r"\1", f" {UNITS[unit]}") if unit else ""


def number_in_words(match):
    """A NUMBER in words: 21st, 3.14, the 1980s, $3.14, $5bn, -5 °C. 1100 to 2099 are years, where nothing follows."""
    minus, currency, whole, decimals, ending, large, unit = match.groups(default="")
    number = whole.replace(",", "")
    if currency and not large and len(decimals) <= 2 and len(number) <= 15:
        words = money(int(number or 0), int(decimals.ljust(2, "0")), *CURRENCIES[currency])
        currency = decimals = ""  # both are in `words` already
    elif re.fullmatch(r"0\d+|\d{16,}|", number):  # 007; a telephone number; nothing, as in .5
        words = digit_by_digit(number)
    elif ending in ("st", "nd", "rd", "th"):
        words = integer(int(number), to="ordinal")
    else:
        year = re.fullmatch(r"(1[1-9]|20)\d\d", whole) and not (currency or decimals or large or unit)
        words = integer(int(number), to="year" if year else "cardinal") or digit_by_digit(number)
    if ending == "s":
        words = re.sub("y$", "ie", words) + ("es" if words.endswith("x") else "s")
    words += f" point {digit_by_digit(decimals)}" if decimals else ""
    words += f" {LARGE.get(large.lower(), large)}" if large else ""
    words += f" {CURRENCIES[currency][1]}" if currency else ""
    words += unit_in_words(unit, number != "1" or decimals)
    return spaced(f"{'minus ' * bool(minus)}{words.strip()}", match)


def money(whole, hundredths, one, many, hundredth, smaller):
    """$3.14 as three dollars, fourteen cents; $0.50 as fifty cents."""
    amounts = [f"{integer(whole)} {one if whole == 1 else many}"] if whole or not hundredths else []
    amounts += [f"{integer(hundredths)} {hundredth if hundredths == 1 else smaller}"] if hundredths else []
    return ", ".join(amounts)


def time_in_words(match):
    """10:00, 7:05, 10:30 P-M, 23:59:05"""
    hour, minute, second, half = int(match["hour"]), match["minute"], match["second"], match["half"] or ""
    if minute == "00" and not second:
        after = "" if half else " o'clock" if hour <= 12 else " hundred"
        words = f"{integer(hour)}{after}" if hour else "midnight"
    else:
        words = f"{integer(hour)} {'oh ' * (minute[0] == '0')}{integer(int(minute))}"
        words += f" and {integer(int(second))} second{'s' * (second != '01')}" if second else ""
    return spaced(words + half, match)


def fraction_in_words(match):
    """1/2, 2 1/2, ¾ km. 24/7 and 9/11 are none."""
    above, below = int(match["above"]), int(match["below"] or match["small"])
    if match["below"] and above >= below or below < 2:
        return match[0]
    one = {2: "half", 4: "quarter"}.get(below) or integer(below, to="ordinal")
    many = "halves" if below == 2 else f"{one}s"
    words = f"{integer(above)} {one if above == 1 else many}"
    if match["whole"]:
        words = f"{integer(int(match['whole']))} and {f'a {one}' if above == 1 else words}"
    unit = unit_in_words(match["unit"], match["whole"])
    return spaced(words + (unit if match["whole"] or not unit else f" of a{unit}"), match)


def range_in_words(match):
    """10-20 as 10 to 20, $5-10 as 5 to $10 and $5m-6m as $5m to $6m; but fifty-fifty."""
    currency, first, last = match.groups()
    if first == last.rstrip(".,"):
        return match[0]
    return f"{currency if first[-1].isalpha() else ''}{first} to {currency}{last}"


def by_digits(match):
    """The digits of a telephone number, in groups."""
    groups = re.findall(r"\d+", match[0])
    return spaced("plus " * (match[0][0] == "+") + ", ".join(map(digit_by_digit, groups)), match)


def dotted(match):
    """1.2.3 and 192.168.0.1, whose longer parts are read digit by digit."""
    parts = match[0].split(".")
    said = [integer(int(part)) if len(part) < 3 else digit_by_digit(part) for part in parts]
    return spaced(" point ".join(said), match)


START = "\0"  # marks a number that begins a sentence: its word gets a capital
NUMBER_RULES = [
    # not after ext. 12 and the like: shorter words before a full stop may be abbreviations
    (r"((?:(?:\w{4}|\bno|\d|['\")\]])\.|[!?]|\.['\")\]])['\")\]]*\s+['\"(]*)(?=[\d$£€¥#+])", rf"\1{START}"),
    (r"(?<=\d)'s\b", "s"),  # the 1980's
    (r"(?<=\d)m(?=\s(?:people|children|men|women|[a-z]{2,}[^\Ws]s)\b)", " million"),  # 1.5m visitors
    (
        r"\+\d{1,3}(?:[ -]?\(?\d{2,5}\)?)+(?![\w-])|"  # +44 20 7946 0958, (212) 555-1234
        r"(?:\(\d{3}\) ?|\b\d{3}-)\d{3}-\d{4}\b|\b555-\d{4}\b|\b0\d{2,4}(?: \d{3,4})+\b",
        by_digits,
    ),
    (
        r"(\d) ?([ap])\.?m\b|(\d) ?([AP])M\b",
        lambda match: f"{match[1] or match[3]} {match[2] or match[4]}-m".upper(),
    ),
    (r"\b(\d{1,2})\.([0-5]\d)(?= [AP]-M)", r"\1:\2"),  # 7.30pm
    (r"(?<![\w-])\d+(?:-\d+){2,}(?![\w-])", lambda match: match[0].replace("-", ", ")),  # 2025-12-24
    (r"(?<![\w/])\d+(?:/\d+){2,}(?![\w/])", lambda match: match[0].replace("/", " slash ")),  # 24/12/2025
    (r"(?<=[AP]-M)(?:-| ?– ?)(?=\d)", " to "),
    (r"(?<![\w.,-])([$€£¥]?)(\d[\d,.]*(?:[kmb]n?)?)(?:-| ?– ?)\1?(\d[\d,.]*)(?![\d-])", range_in_words),
    (r"(?<=\d) ?– ?(?=\d)", " to "),
    (
        r"\b(?<![.:,])(?P<hour>[01]?\d|2[0-4]):(?P<minute>[0-5]\d)(?::(?P<second>[0-5]\d))?(?![\d:])(?P<half> [AP]-M)?",
        time_in_words,
    ),
    (r"(?<=\d):(?=\d)", " to "),  # 3:2
    (r"(?<![\w.,])(\d[\d,.]*) ?([€£¥])(?!\d)", r"\2\1"),  # 5 €
    (r"([€£$]\d+),(\d\d)(?!\d|,\d)", r"\1.\2"),  # €2,50
    (r"(?<![\w.,])(\d)p\b", r"£0.0\1"),  # 5p
    (r"(?<![\w.,])(\d\d)p\b", r"£0.\1"),  # 50p
    (r"(\d)['′] ?(\d{1,2})(?:\"|″|'')", r"\1 foot \2"),  # 5'10"
    (FRACTION, fraction_in_words),
    (r"(?<=\d)/(?=\d)", " "),  # 24/7
    (r"(?<=\d)/(?=[a-z]+\b)", " per "),  # $5/hour
    (r"(?<![\w.])\d+(?:\.\d+){2,}(?!\w)", dotted),
    (r"(?<!m)\^2(?!\d)", " squared"),
    (r"(?<!m)\^3(?!\d)", " cubed"),
    (r"(?<!m)\^(?=[-−]?\d)", " to the power of "),  # 10^6
    (r"(?<=\d) ?x ?(?=\d)", " by "),  # 2x4
    (r"(?<=\d)x\b", " times"),  # 5x
    (r"(?<=\d) ?\* ?(?=\d)", " times "),
    (r"§§ ?(?=\d)", "sections "),
    (r"#(?=\d)", "number "),
    (r"~ ?(?=\d)", "about "),
    (r"(?<![A-Za-z])[A-Z]{2,3}(?=\d)", lambda match: "-".join(match[0])),  # CO2
    (NUMBER, number_in_words),
    (rf"{START}\s*(\w?)", lambda match: match[1].upper()),
]


def english(passage):
    """An English text with its abbreviations and numbers in words."""
    for pattern, replacement in SHORT_FORMS:
        passage = re.sub(pattern, replacement, passage)
    paragraphs = passage.split("\n\n")
    for i, paragraph in enumerate(paragraphs):
        if re.search(r"\d", paragraph):  # most have none, and the rules are many
            for pattern, replacement in NUMBER_RULES:
                paragraph = re.sub(pattern, replacement, paragraph)
            paragraphs[i] = paragraph
    return "\n\n".join(paragraphs)


# -----------------------------------------------------------------------------
# numbers and signs in other languages

POINTED = ("ja", "ko", "th", "he", "bn", "te", "kn", "cy", "am", "fr_CH")  # 1,234.5 is elsewhere written as 1.234,5
MONEYED = "be ca cs cy de eo es fi fr fr_BE fr_CH he it lt lv nl pl pt ru sk sr tg uk".split()  # not in English words
SIGNS_SAID = ",–-&@%+=°€$£"  # each language's words for the decimal mark, a range, minus ... are in this order
FOREIGN = {
    "de": "Komma, bis, minus, und, at, Prozent, plus, gleich, Grad, Euro, Dollar, Pfund",
    "fr": "virgule, à, moins, et, arobase, pour cent, plus, égale, degrés, euros, dollars, livres",
    "es": "coma, a, menos, y, arroba, por ciento, más, igual a, grados, euros, dólares, libras",
    "it": "virgola, a, meno, e, chiocciola, per cento, più, uguale, gradi, euro, dollari, sterline",
    "nl": "komma, tot, min, en, apenstaartje, procent, plus, is, graden, euro, dollar, pond",
    "pl": "przecinek, do, minus, i, małpa, procent, plus, równa się, stopni, euro, dolarów, funtów",
    "pt": "vírgula, a, menos, e, arroba, por cento, mais, igual a, graus, euros, dólares, libras",
    "ru": "запятая, до, минус, и, собака, процентов, плюс, равно, градусов, евро, долларов, фунтов",
    "sv": "komma, till, minus, och, snabel-a, procent, plus, är lika med, grader, euro, dollar, pund",
    "tr": "virgül, ila, eksi, ve, et, yüzde, artı, eşittir, derece, avro, dolar, sterlin",
    "ja": "てん, から, マイナス, アンド, アット, パーセント, プラス, イコール, ど, ユーロ, ドル, ポンド",
}
FOREIGN = {code: dict(zip(SIGNS_SAID, words.split(", "))) for code, words in FOREIGN.items()}
MARKS = {"id": "koma", "vi": "phẩy", "bn": "দশমিক", "cy": "pwynt"}  # decimal marks that num2words does not name
MONTHS = "Januar|Februar|März|April|Mai|Juni|Juli|August|September|Oktober|November|Dezember"
ORDINALS = {  # 1er, 1º, 1:a ...
    "de": r"(?:\b(?P<before>[Dd](?:er|ie|as|e[mns])|[AaIi]m|[Zz]u[mr]|[Vv]om|[Bb]eim)\s)?\b(?P<number>\d{1,4})\."
    rf"(?=\s[A-ZÄÖÜ])(?:(?=\s(?P<month>{MONTHS})\b))?",
    "fr": r"\b(?P<number>\d{1,9})(?P<tail>er|re|ère|nde?|ème|e)\b",
    "nl": r"\b(?P<number>\d{1,9})(?:de|ste|e)\b",
    "sv": r"\b(?P<number>\d{1,9}):[ae]\b",
    "ru": r"\b(?P<number>\d{1,9})-й\b",
    "uk": r"\b(?P<number>\d{1,9})-й\b",
    **dict.fromkeys(("es", "it", "pt"), r"\b(?P<number>\d{1,9})\.?(?P<tail>[ºª])"),
    **dict.fromkeys(("da", "no", "fi", "hu", "pl", "sl"), r"\b(?P<number>\d{1,4})\.(?=\s[a-zåäöøæčšžłśżáéíóúőű])"),
}
FOREIGN_NUMBER = re.compile(
    r"(?P<minus>(?<![\w)])[-−](?=[\d€$£]))?(?:(?<![^\W\d])(?P<sign>[€$£])\s?)?"
    r"(?P<number>\d{1,3}(?:(?P<group>[.,' ])\d{3})(?:(?P=group)\d{3})*(?!\d)(?:[.,]\d+)?|\d+(?:[.,]\d+)?)"
    r"(?:\s?(?P<after>[€$£])|(?P<tail>er\b))?"  # die 1960er
)


def foreign_ordinal(match, code):
    """1er, 1re, 1ª, der 1. Mai, am 1. Mai; as it was where num2words has no ordinals."""
    found = match.groupdict()
    words = integer(int(found["number"]), code, "ordinal")
    if not words or code == "de" and not (found["before"] or found["month"]):
        return match[0]
    if code == "de":
        ending = "r" if not found["before"] else "" if found["before"].lower() in ("der", "die", "das") else "n"
        return f"{found['before'] or ''} {words}{ending}"
    if found.get("tail") == "ª":
        return re.sub(r"o\b", "a", words)
    return words.replace("premier", "première") if found.get("tail") in ("re", "ère") else words


def whole_and_decimals(number, pointed):
    """The digits before and after the decimal mark of 1.234,5 or, if `pointed`, of 1,234.5."""
    separators = re.findall(r"\D", number)
    in_threes = re.fullmatch(r"[1-9]\d{0,2}(\D\d{3})+", number)
    if (
        not separators
        or in_threes
        and (len(separators) > 1 or separators[0] != ("." if pointed else ","))
        and len(set(separators)) == 1
    ):
        return re.sub(r"\D", "", number), ""
    whole, _, decimals = number.rpartition(separators[-1])
    return re.sub(r"\D", "", whole), decimals


def foreign_money(whole, decimals, sign, code):
    """12,50 € as zwölf Euro und fünfzig Cent; None where num2words has no words for it."""
    if (code := code.replace("_BR", "")) not in MONEYED or len(decimals) not in (0, 2) or len(whole) > 9:
        return None
    from num2words import CONVERTER_CLASSES

    separator = {} if decimals.strip("0") else {"separator": "|"}
    currency = {"€": "EUR", "$": "USD", "£": "GBP"}[sign]
    try:
        words = CONVERTER_CLASSES[code].to_currency(float(f"{whole}.{decimals or 0}"), currency=currency, **separator)
    except Exception:
        return None
    return words.split("|")[0]


def foreign_integer(digits, code, letters, year):
    """A whole number; None where espeak should say it: its voices know no `letters`."""
    if letters is None and code in BEST_AS_DIGITS:
        return None
    if re.fullmatch(r"0\d+|\d{16,}", digits):
        return digit_by_digit(digits, code)
    year = year and code in YEARS and 1100 <= int(digits) < 2100
    words = integer(int(digits), code, "year" if year else "cardinal")
    return words if words or letters is None else digit_by_digit(digits, code)


def foreign_number(match, code, letters):
    """A FOREIGN_NUMBER in words: -3,14; 1.234 as a quantity; 1984 as a year; 12,50 €. Or else as it is."""
    from num2words import CONVERTER_CLASSES

    whole, decimals = whole_and_decimals(match["number"], code in POINTED)
    signs, sign = FOREIGN.get(code[:2], {}), match["sign"] or match["after"]
    mark = signs.get(",") or MARKS.get(code) or getattr(CONVERTER_CLASSES[code], "pointword", None) or "(.)"
    minus = signs.get("-") or getattr(CONVERTER_CLASSES[code], "negword", None) or "-"
    said = foreign_money(whole, decimals, sign, code) if sign else None
    if said is None:
        said = foreign_integer(whole, code, letters, year=whole == match["number"] and not sign)
        if said is None or decimals and "(" in mark:
            return match[0]
        said += f" {mark.strip()} {digit_by_digit(decimals, code)}" if decimals else ""
        said += f" {signs.get(sign, sign)}" if sign else ""
    return spaced((f"{minus.strip()} {said}" if match["minus"] else said) + (match["tail"] or ""), match)


def foreign(passage, code, letters):
    """A text in a language of num2words with its numbers in words."""
    signs = FOREIGN.get(code[:2], {})
    if code[:2] in ORDINALS:
        passage = re.sub(ORDINALS[code[:2]], lambda match: foreign_ordinal(match, code), passage)

    def decimal(match):
        number = f"{int(match[1] or 0) + int(match[2]) / int(match[3]):g}"
        return number if code in POINTED else number.replace(".", ",")

    passage = re.sub(r"(?:\b(\d{1,4}) )?(?<![\d/.,])(?!3/2)([13])/([24])(?![\d/]|[.,]\d)", decimal, passage)  # 2 1/2
    passage = re.sub(r"(?<![\d.])(\d{1,2})\.(\d{1,2})\.(?=\d|\s)", r"\1 \2 ", passage)  # 2.5.2020, 3.10.
    if code == "de":
        passage = re.sub(r"\b(\d{1,2})\.(\d\d)(?= Uhr\b)", r"\1 \2", passage)  # 10.30 Uhr
    if code == "fr":
        passage = re.sub(r"\b[nN]°\s?(?=\d)", "numéro ", passage)
        passage = re.sub(r"(?<=\d)\s?h\s?(?=\d\d\b)", " heures ", passage)  # 10h30
    passage = re.sub(r"(?<=\d):(?=\d\d)", " ", passage)  # 10:30
    passage = re.sub(
        r"(?<![\w.,-])(\d[\d.,]*)(?:-| ?– ?)(?=\d[\d.,]*(?![\d-]))", rf"\1 {signs.get('–', '–')} ", passage
    )  # 10-20
    if signs:
        passage = re.sub(r"°([CF])\b", lambda m: f"° {'Celsius' if m[1] == 'C' else 'Fahrenheit'}", passage)
    passage = FOREIGN_NUMBER.sub(lambda match: foreign_number(match, code, letters), passage)
    return re.sub("[&@%+=°€$£]", lambda match: f" {signs[match[0]]} " if match[0] in signs else match[0], passage)


# -----------------------------------------------------------------------------
# from text to words

PLAIN = {"’": "'", "‐": "-", "‑": "-", "…": "... ", "®": "", "™": "", "℠": "", "\ufe0f": "", "\0": ""}
PLAIN |= {"。": ". ", "！": "! ", "？": "? ", "、": ", ", "，": ", ", "،": ",", "؛": ";", "؟": "?", "۔": ".", "।": "."}
ENGLISH_SIGNS = {"&": "and", "@": "at", "/": "slash", "\\": "backslash", "×": "times", "÷": "divided by", "⁄": "over"}
KEPT = "ºª№ำຳ\u3131-\u318e"  # NFKC makes letters of the first three, and breaks the Thai, Lao and Korean ones
SUPERSCRIPTS = "⁰¹²³⁴⁵⁶⁷⁸⁹⁻"


def standard(passage, code):
    """One way to write what Unicode can write in many: quotes, superscripts, fractions, wide letters."""
    passage = passage.translate(str.maketrans(PLAIN))
    if passage.isascii():
        return passage
    if code == "en":
        passage = re.sub(r"№\s*", "No. ", passage)
        passage = re.sub(rf"(?<=[\dm)])[{SUPERSCRIPTS}]+|(?<=\b[a-z])[{SUPERSCRIPTS}]+", r"^\g<0>", passage)
    else:  # 2½ as 2,5 is right in any language

        def decimal(match):
            return f"{match[1] or 0}{'.' if code in POINTED else ','}{str(unicodedata.numeric(match[2]))[2:]}"

        passage = re.sub("([0-9]*)([½¼¾⅕⅖⅗⅘⅛⅜⅝⅞])", decimal, passage)
    # the ½ in 2½ is a number of its own
    numerals = {char for char in set(passage) if unicodedata.category(char) == "No" and not "₀" <= char <= "₉"}
    passage = passage.translate(
        {ord(char): char if re.search(rf"[\^⁻]{char}", passage) else f" {char} " for char in numerals}
    )
    return re.sub(f"[^{KEPT}]+", lambda match: unicodedata.normalize("NFKC", match[0]), passage)


def character_in_words(char, letters, code):
    """How a voice reads a character; None if it cannot. `letters` are those of in_words."""
    kind, name = unicodedata.category(char), unicodedata.name(char, "").lower()
    if char in " \n.,;:!?'-" or letters and char.lower() in letters:
        return char
    if letters is None and kind[0] == "L" and (code != "en" or name.startswith("latin")):
        return char
    if letters is None and code != "en" and (kind[0] in "MNS" or char in "\u200c\u200d#%&@*/\\§"):
        return char  # marks belong to the letters, and espeak says the signs in its language
    if kind[0] == "M" or kind == "Cf":  # accents, and invisible characters
        return ""
    if kind[0] == "L":
        latin = re.match(r"latin (?:small|(capital)) (?:letter|ligature) ([a-z]{1,2})\b", name)  # é, Æ, ł
        plain = "ss" if char in "ßẞ" else latin[2] if latin else unicodedata.normalize("NFKC", char)
        plain = plain.capitalize() if latin and latin[1] else plain
        return plain if letters and set(plain.lower()) <= set(letters) else None
    if code == "en" and char in ENGLISH_SIGNS:
        return f" {ENGLISH_SIGNS[char]} "
    if kind in ("Sm", "Sc", "So") and char != "\ufffd" or kind == "Po" and name.endswith(" sign"):  # +, emoji, %
        return re.sub("[^a-z]+", " ", f" {name.removesuffix(' sign')} ") if code == "en" else " "
    if kind[0] in "PZS" or kind == "Cc":  # a dash is a pause; quotes, brackets and spaces are silent
        return ", " if kind == "Pd" else " "
    return None


def in_words(passage, letters, language="en"):
    """
    `passage` in letters and plain punctuation, with numbers and signs as words; and the characters that cannot be read.

    `letters` are those that the voice knows, in lower case, or None for a voice of phonemes: espeak-ng reads all the
    letters of its `language`, with their accents, and the digits of languages that num2words does not know. `language`
    is an ISO 639-1 code or espeak's name of a voice, such as en-us. Newlines stay.
    """
    code = code_of(language)
    passage = standard(passage, code)
    passage = re.sub(r"--+|(?<=\s)-(?=\s)", "—", passage)  # typed dashes
    if code == "en":
        passage = english(passage)
    elif code or letters and set("adefghilmnorstuvwxy") <= set(letters):  # else English words for the numbers
        passage = foreign(passage, code or "en", letters)
    words = {char: character_in_words(char, letters, code) for char in sorted(set(passage))}
    unreadable = [char for char in words if words[char] is None]
    passage = passage.translate({ord(char): words[char] or "" for char in words})
    passage = re.sub(r"'(?:(?<!\w')|(?!\w))", "", passage)  # quotes: an apostrophe stands between letters
    passage = re.sub(r"[ -]*([.,;:!?])(?:[ ,]*,)?", r"\1", re.sub(" +", " ", passage))
    return passage, unreadable


# -----------------------------------------------------------------------------
# from words to pieces that are said at once


NO_END = "".join(
    rf"(?<!\b{short}\.)" for short in ("z", "d", "u", "Dr", "St", "Nr", "Mio", "Mrd")
)  # in other languages


def pieces(passage):
    """
    Cut a passage that is in words: a list of (words to say at once, the name of the pause after them).

    Paragraphs are separated by blank lines, and by line ends after a sentence.
    """
    script = []
    for paragraph in re.split(r"\n\s*\n|(?<=[.!?])\s*\n", passage):
        # no sentence ends after an initial, as in J. R. Hartley, but some do after I and P-M
        for sentence in re.split(
            rf"(?<=[.!?])(?<!(?<!-)\b[A-HJ-Z]\.){NO_END}\s+(?=[^\sa-z])", " ".join(paragraph.split())
        ):
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
