"""words.py's promises: what is written, and how it is said."""

import re
import sys
import unicodedata

import pytest
from conftest import ROOT
from hypothesis import given, settings
from hypothesis import strategies as st
from num2words import CONVERTER_CLASSES, num2words

sys.path.insert(0, str(ROOT))
import words

LETTERS = "abcdefghijklmnopqrstuvwxyz"

# each line: what is written | how it is said
ENGLISH = """
It cost $5, £3.14, $1, €2.5. | It cost five dollars, three pounds, fourteen pence, one dollar, two euro, fifty cents.
$1.5 million, £2 bn | one point five million dollars, two billion pounds
$0.999, $1,234.00 | zero point nine nine nine dollars, one thousand, two hundred and thirty-four dollars
£1.5m, $3bn, $3k | one point five million pounds, three billion dollars, three thousand dollars
$0.50, £0.05, £0.01, 50p | fifty cents, five pence, one penny, fifty pence
$1.00, $0, ¥500, ₹1 | one dollar, zero dollars, five hundred yen, one rupee
€2,50 or 5 € | two euro, fifty cents or five euro
$5-10, £5–10m, $5–$10 | five to ten dollars, five to ten million pounds, five to ten dollars
£20m-£30m | twenty million pounds to thirty million pounds
-$5, $5/hour | minus five dollars, five dollars per hour
3.14 of 1,234 and 1,000,001 | three point one four of one thousand, two hundred and thirty-four and one million and one
the 1st, 2nd, 12th, 20th and 21st of 100 | the first, second, twelfth, twentieth and twenty-first of one hundred
1984, 2005, 1905 and 2000 | nineteen eighty-four, two thousand and five, nineteen oh-five and two thousand
the 1960s, 2010s, '90s and 80s | the nineteen sixties, twenty tens, nineties and eighties
44 BC and AD 79 | forty-four BC and A-D seventy-nine
1984 km | one thousand, nine hundred and eighty-four kilometres
agent 007 | agent zero zero seven
½ or 1/2 | one half or one half
2½ pies, 2 1/2, 3¼ | two and a half pies, two and a half, three and a quarter
¾, 3/4, 2/3, 1/3, ⅛ | three quarters, three quarters, two thirds, one third, one eighth
2 3/4, ½ km, 2½ km | two and three quarters, one half of a kilometre, two and a half kilometres
24/7, 9/11, 50/50, 1984/85 | twenty-four seven, nine eleven, fifty fifty, nineteen eighty-four eighty-five
24/12/2025, and/or | twenty-four slash twelve slash twenty twenty-five, and slash or
2025-12-24 | twenty twenty-five, twelve, twenty-four
10:00, 12:00, 13:00, 0:00 | ten o'clock, twelve o'clock, thirteen hundred, midnight
7:05, 10:30, 23:59 | seven oh five, ten thirty, twenty-three fifty-nine
10:30pm, 7.30 p.m. and 10am | ten thirty P-M, seven thirty P-M and ten A-M
10:00 a.m. today | ten A-M today
at 10 p.m. He left | at ten P-M. He left
10:30–11:00, 7am-9am | ten thirty to eleven o'clock, seven A-M to nine A-M
1:30:05 | one thirty and five seconds
3:2 and 16:9 | three to two and sixteen to nine
1914–1918, 1939-45 | nineteen fourteen to nineteen eighteen, nineteen thirty-nine to forty-five
10–20, 3-5, 50-50 | ten to twenty, three to five, fifty-fifty
a 20-year-old, F-16, COVID-19 | a twenty-year-old, F-sixteen, COVID-nineteen
-5 °C, −1 °C, 20 ℃ | minus five degrees Celsius, minus one degree Celsius, twenty degrees Celsius
1 °F, 20°, -5° | one degree Fahrenheit, twenty degrees, minus five degrees
5km, 1 km, 0.5 km, 1.0 km | five kilometres, one kilometre, zero point five kilometres, one point zero kilometres
80 kg, 1 kg, 30 cm, 1 m | eighty kilograms, one kilogram, thirty centimetres, one metre
100 mph, 60 km/h, 1 mph | one hundred miles per hour, sixty kilometres per hour, one mile per hour
16 GB, 100 MHz, 5 m², 12 km² | sixteen gigabytes, one hundred megahertz, five square metres, twelve square kilometres
6 ft tall, 1 ft, 5'10" | six feet tall, one foot, five foot ten
5–10 km, 1,000 km | five to ten kilometres, one thousand kilometres
50% & more, 1.5% | fifty percent and more, one point five percent
Mr. and Dr. *Adams* -- (two) | Mister and Doctor Adams, two
Mrs. Dent, Ms Lee, Prof. Yaffle | Missus Dent, Miz Lee, Professor Yaffle
Sgt. Pepper, Gen. Lee, Rev. Green | Sergeant Pepper, General Lee, Reverend Green
Capt. Kirk, Lt. Worf, Col. Mustard | Captain Kirk, Lieutenant Worf, Colonel Mustard
St. Paul's, St Paul's, Mount St. Helens | Saint Paul's, Saint Paul's, Mount Saint Helens
He lives on Main St. She left. | He lives on Main Street. She left.
12 Elm St., near 5th St. and St. John's | twelve Elm Street, near fifth Street and Saint John's
No. 5, Nos. 1-3, № 5 | number five, numbers one to three, number five
He said no. 5 came. | He said no. Five came.
p. 7, pp. 3-5, fig. 3, ch. 5, vol. 2 | page seven, pages three to five, figure three, chapter five, volume two
c. 1800, Jan. 5, approx. 5 | circa eighteen hundred, January five, approximately five
cats, etc. He left. | cats, et cetera. He left.
cats, etc., and dogs etc. and &c. too | cats, et cetera, and dogs et cetera and et cetera too
e.g. this, i.e. that, A vs. B | for example this, that is that, A versus B
Davis Jr. sang. Smith Ltd. | Davis Junior sang. Smith Limited.
Chapter IV, Part II, Act I, Volume XII | Chapter four, Part two, Act one, Volume twelve
Chapter I | Chapter one
Henry VIII, Louis XVI's and Elizabeth I. | Henry the eighth, Louis the sixteenth's and Elizabeth the first.
World War II, Rocky II | World War two, Rocky two
So did I. The Book I read. Then I, too | So did I. The Book I read. Then I, too
call +44 20 7946 0958 | call plus four four, two zero, seven nine four six, zero nine five eight
555-1234 | five five five, one two three four
(212) 555-1234 | two one two, five five five, one two three four
version 3.10 of .5 | version three point one zero of point five
v2.0, version 1.12.3 | version two point zero, version one point twelve point three
192.168.0.1 | one nine two point one six eight point zero point one
#1, #tag, C#, C++ | number one, hashtag tag, C sharp, C plus plus
a=b, 1+1=2, 2*3 | a equals b, one plus one equals two, two times three
10^6, 10⁶, x², x³ ≠ 5 | ten to the power of six, ten to the power of six, x squared, x cubed not equal to five
bob.smith@example.co.uk | bob dot smith at example dot co dot uk
https://www.example.com/a_b | www dot example dot com slash a underscore b
CO2, CO₂, H2O, H2SO4 | C-O-two, C-O-two, H-two-O, H-two-S-O-four
MP3, A4, R2-D2, 3D, 42nd | M-P-three, A-four, R-two-D-two, three-D, forty-second
5x faster, 2x4, 3 x 4, 5×3 | five times faster, two by four, three by four, five times three
~5, § 5, ±5 | about five, section five, plus minus five
Foo™ Bar® | Foo Bar
It was 1984. 5 came. "The end." 42 is it. | It was nineteen eighty-four. Five came. The end. Forty-two is it.
Café, naïve, Æsir, Straße, Łódź | Cafe, naive, Aesir, Strasse, Lodz
“Don’t panic,” he said — ‘loudly’… | Don't panic, he said, loudly...
two 🦋, 3 ☕ | two butterfly, three hot beverage
up‑to‑date ‐ tea | up-to-date, tea
Mar. 5, Dec. 6, ext. 12, Rm. 5 | March five, December six, ext. twelve, Rm. five
he lived at no. 12 | he lived at number twelve
$.50, $1.2M | fifty cents, one point two million dollars
World War I began; Charles I was beheaded | World War one began; Charles the first was beheaded
CHAPTER IV, PART II, Chapter XL | CHAPTER four, PART two, Chapter forty
on Wall St. Traders said; 5 Maple Dr. now | on Wall Street. Traders said; five Maple Drive now
1.5m people, 2m visitors, 3m across | one point five million people, two million visitors, three metres across
the 1980's, 10:00:30, §§ 3 | the nineteen eighties, ten oh zero and thirty seconds, sections three
10⁻³ | ten to the power of minus three
"""

# each line: language | what is written | how it is said
OTHERS = """
de | 1984 war, 3,14, 1.000.000 | neunzehnhundertvierundachtzig war, drei Komma eins vier, eine Million
de | 1.234,5 | eintausendzweihundertvierunddreißig Komma fünf
de | 5 €, 12,50 €, $5 | fünf Euro, zwölf Euro und fünfzig Cent, fünf Dollar
de | -5 °C, 50 % & mehr, 10–20 | minus fünf Grad Celsius, fünfzig Prozent und mehr, zehn bis zwanzig
de | am 1. Mai, der 21. Tag, die 1960er | am ersten Mai, der einundzwanzigste Tag, die neunzehnhundertsechziger
de | Es waren 5. Der Mann Müller, 2½ | Es waren fünf. Der Mann Müller, zwei Komma fünf
de | 1/2 Liter, 2 1/2, am 3.10. um 10.30 Uhr | null Komma fünf Liter, zwei Komma fünf, am drei zehn um zehn dreißig Uhr
fr | n° 5, 10h30 | numéro cinq, dix heures trente
fr | En 1984, le 1er mai | En mille neuf cent quatre-vingt-quatre, le premier mai
fr | la 1re fois, le 2e | la première fois, le deuxième
fr | 3,14; 12,50 €; 5 $ | trois virgule un quatre; douze euros et cinquante centimes; cinq dollars
fr | 1 234; 1 234 | mille deux cent trente-quatre; mille deux cent trente-quatre
fr | 1 000 000; -5 °C; 50 % | un million; moins cinq degrés Celsius; cinquante pour cent
fr-be | 71, 95 | septante et un, nonante-cinq
fr-fr | l’été, 71, ½ | l'été, soixante et onze, zéro virgule cinq
es | 21, 1984, 3,14 | veintiuno, mil novecientos ochenta y cuatro, tres coma uno cuatro
es | 1.º, 2ª, -5, 50 % | primero, segunda, menos cinco, cincuenta por ciento
es-419 | ¿José? 5 €, 2,50 € | José? cinco euros, dos euros con cincuenta céntimos
it | 21, 1984, 3,14 | ventuno, millenovecentottantaquattro, tre virgola uno quattro
it | 1º, 2ª, 5 €, -3 | primo, seconda, cinque euro, meno tre
nl | 1984, 1e, 2de, 3,5 | negentien honderd vierentachtig, eerste, tweede, drie komma vijf
nl | 5 €, 1.234 | vijf euro, duizendtweehonderdvierendertig
pl | 21, 3,14, 5 €, -3 | dwadzieścia jeden, trzy przecinek jeden cztery, pięć euro, minus trzy
pl | 1984 | tysiąc dziewięćset osiemdziesiąt cztery
pt | 21, 1984, 1º, 2ª | vinte e um, mil novecentos e oitenta e quatro, primeiro, segunda
pt-br | 3,5, 5 € | três vírgula cinco, cinco euros
ru | 21, 1-й, 3,14, $2 | двадцать один, первый, три запятая один четыре, два доллара
ru | -5, 50% | минус пять, пятьдесят процентов
sv | 21, 1:a, 3,14, 5 €, 50% | tjugoett, första, tre komma ett fyra, fem euro, femtio procent
tr | 21, 3,14, %50, -5, 2+2 | yirmibir, üç virgül bir dört, yüzde elli, eksi beş, iki artı iki
ja | 21, 3.14, -5, 50% | にじゅういち, さん てん いち よん, マイナス ご, ごじゅう パーセント
nb | 1984, 1. januar | nitten hundre og åttifire, første januar
hi | 21 क्‍षि हिन्दी। | 21 क्‍षि हिन्दी.
ar | 21 مَرْحَبًا؟ | 21 مَرْحَبًا?
th | 21 ทำ | 21 ทำ
zh | 一九八四年21个。 | 一九八四年21个.
el | 3,14 καλημέρα | 3,14 καλημέρα
"""


def rows(table):
    return [line.split(" | ") for line in table.strip().splitlines()]


@pytest.mark.parametrize(("written", "said"), rows(ENGLISH))
def test_english_numbers_and_signs_become_words(written, said):
    said_words, lost = words.in_words(written, set(LETTERS))
    assert (said_words.strip(), lost) == (said, [])


@pytest.mark.parametrize(("language", "written", "said"), rows(OTHERS))
def test_numbers_become_words_in_other_languages(language, written, said):
    said_words, lost = words.in_words(written, None, language)
    assert (said_words.strip(), lost) == (said, [])


def test_accents_stay_for_a_voice_of_phonemes():
    assert words.in_words("résumé, rosé, pi\u0303nata, Müller, ﬁt", None) == ("résumé, rosé, pĩnata, Müller, fit", [])
    assert words.in_words("hello мир", None) == ("hello ", ["и", "м", "р"])


@pytest.mark.parametrize("code", CONVERTER_CLASSES)
def test_every_language_of_num2words_says_its_numbers(code):
    language = code.replace("_", "-").lower()
    code = words.code_of(language)
    assert code
    for number in (0, 3, 21, 99, 215, 30_001, 999_999):
        said = words.in_words(str(number), None, language)[0].strip()
        options = {"reading": True} if code == "ja" else {}
        assert said == (
            str(number) if code in words.BEST_AS_DIGITS else num2words(number, lang=code, **options).strip()
        )
    for letters in (None, set(LETTERS)):  # and nothing that has numbers raises
        for sign in ("", "-", "€", "$", "%", "°C", "½", "º", ".", "er", ":05", ",50", ".5", "/2", "–7", "." + 3 * "0"):
            for number in (1, 1984, 10**6 + 1, 2 * 10**12, 10**30):
                words.in_words(f"{number}{sign}x {sign}{number}", letters, language)


@pytest.mark.parametrize("table", ["Mr. 5", "5 €"])
def test_english_rules_stay_out_of_other_languages(table):
    assert "Mister" not in words.in_words(table, None, "sv")[0]


@pytest.mark.slow
@pytest.mark.parametrize("language", ["en", "de", "fr", "am", "sw"])
def test_a_number_of_thousands_of_digits_is_said_too(language):  # int() takes 4300 of them
    nines = "9" * 5000
    for text in (nines, f"1⁄{nines}", f"{nines}e", f"{nines}º", f"€{nines}", f"{nines}th", f"1.{nines}", f"{nines}:00"):
        words.in_words(text, None, language)
        words.in_words(text, set(LETTERS), language)


def test_a_language_that_num2words_lacks_keeps_its_digits_or_has_english_words():
    assert words.in_words("21", None, "sw") == ("21", [])
    assert words.in_words("21", set(LETTERS), "sw") == ("twenty-one", [])
    assert words.in_words("21", set("абвгд"), "ba") == ("", ["1", "2"])


@settings(max_examples=200, deadline=None)
@given(
    st.text(
        st.sampled_from("0123456789.,:;/-–−$€£¥%°½²'\"()#^~ \nIVXabmpkGBéßСт🦋\u0301\0") | st.characters(), max_size=40
    )
)
def test_a_voice_gets_only_what_it_may(text):
    said, _ = words.in_words(text, set(LETTERS))
    assert set(said.lower()) <= set(LETTERS + " \n.,;:!?'-")
    said, _ = words.in_words(text, None)
    assert all(char in " \n.,;:!?'-" or unicodedata.name(char).startswith("LATIN") for char in said)
    for language in ("de", "hi", "ja", "ar", "tlh"):
        words.in_words(text, None, language)
        said, lost = words.in_words(text, set("абвгде"), language)
        assert set(said.lower()) <= set("абвгде \n.,;:!?'-")


PROSE = st.lists(
    st.from_regex(r"[a-z]{2,9}[,;:]?|[a-z]{3,9}-[a-z]{2,9}|[a-z]{3,9}[.!?] [A-Z][a-z]{4,9}", fullmatch=True)
)


@settings(max_examples=50, deadline=None)
@given(PROSE)
def test_plain_prose_stays_as_it_is(parts):
    text = " ".join(parts)
    for letters in (None, set(LETTERS)):
        assert words.in_words(text, letters) == (text, [])


@pytest.mark.slow
def test_the_novel_stays_as_it_is_but_for_quotes_and_titles():
    with open(ROOT / "data" / "hitchikersguide" / "transcriptions.txt", encoding="utf-8") as f:
        novel = f.read()
    said, lost = words.in_words(novel, None)
    before, after = (re.findall(r"\w+", re.sub("[\"']", "", text)) for text in (novel, said))
    changed = {one for one, other in zip(before, after) if one != other}
    assert (lost, len(before)) == ([], len(after)) and changed <= {"Mr", "Mrs", "Ms", "Dr", "Capt", "Prof", "St"}


def test_long_sentences_are_cut_at_clauses_or_else_at_words():
    for text in ("a clause of some words, " * 40, "word " * 300, "x" * 1000, "One. " * 100):
        said = [piece for piece, _ in words.pieces(text)]
        assert max(map(len, said)) <= words.LONGEST and "".join(said).replace(" ", "") == text.replace(" ", "")
    assert all(piece.endswith(",") for piece, _ in words.pieces("a clause of some words, " * 40))


def test_sentences_do_not_end_at_initials():
    assert [piece for piece, _ in words.pieces("By J. R. Hartley. It sold.")] == ["By J. R. Hartley.", "It sold."]


@pytest.mark.parametrize(
    "text", ["On Main St. She left.", "So did I. He left.", "It cost $5. 42 came.", "At 5 p.m. He left."]
)
def test_a_sentence_ends_where_it_does(text):
    assert len(words.pieces(words.in_words(text, None)[0])) == 2


@pytest.mark.parametrize(
    "text", ["At St. Paul's.", "Sgt. Pepper left.", "See No. 5 now.", "Gen. Lee, Rev. Green.", "A vs. B."]
)
def test_a_sentence_does_not_end_at_an_abbreviation(text):
    assert len(words.pieces(words.in_words(text, None)[0])) == 1


def test_german_abbreviations_do_not_end_a_sentence():
    text = words.in_words("Das ist z. B. Dr. Müller aus St. Pauli. Er singt.", None, "de")[0]
    assert [piece for piece, _ in words.pieces(text)] == ["Das ist z. B. Dr. Müller aus St. Pauli.", "Er singt."]
