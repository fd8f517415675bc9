"""Short words that belong to the word after them: a line of a subtitle does not end with one if it can be helped."""

from collections.abc import Iterable
from dataclasses import dataclass

# A text whose language is not known has the language that has this share of its words at least.
_SHARE = 0.2


@dataclass(frozen=True, slots=True)
class FunctionWords:
    """Function words of a language, in lower case.

    Attributes:
        binding: Articles, determiners and subject pronouns. A line ends neither with these nor with ``leading``.
        leading: Conjunctions, prepositions and relative pronouns. A line may well begin with one.
    """

    binding: frozenset[str] = frozenset()
    leading: frozenset[str] = frozenset()


# Abbreviations before a name, with a full stop that ends no sentence.
TITLES = frozenset(
    ("mr", "mrs", "ms", "dr", "st", "prof", "sr", "sra", "sig", "hr", "fr", "dhr", "mevr", "mme", "mlle")
)


def _words(binding: str, leading: str) -> FunctionWords:
    return FunctionWords(frozenset(binding.split()), frozenset(leading.split()))


NO_WORDS = FunctionWords()
FUNCTION_WORDS = {
    "en": _words(
        "a an the this that these those my your his her its our their some any no every each not very",
        "and or but nor so because although though while when where if unless until since before after that which who "
        "whom whose as than of to in on at by for from with without into onto over under about between through during "
        "against upon among toward towards",
    ),
    "de": _words(
        "der die das den dem des ein eine einen einem einer eines kein keine keinen keinem keiner mein meine meinen "
        "meinem meiner dein deine sein seine seinen seinem seiner ihr ihre ihren ihrem ihrer unser unsere dieser diese "
        "dieses diesen diesem jeder jede jedes nicht sehr zum zur im am vom beim ins ans "
        "herr frau ich er wir",
        "und oder aber denn sondern weil obwohl während wenn als ob dass damit bevor nachdem bis seit wie in an auf "
        "aus bei mit nach von vor zu für durch gegen ohne um über unter zwischen neben hinter wegen trotz",
    ),
    "fr": _words(
        "le la les un une des du au aux ce cet cette ces mon ma mes ton ta tes son sa ses notre nos votre vos leur "
        "leurs chaque quelque quelques aucun aucune ne très je tu il on nous ils",
        "et ou mais donc or ni car que qui quand lorsque si comme parce puisque où dont de à en dans sur sous avec "
        "sans pour par chez entre vers contre pendant depuis avant après",
    ),
    "es": _words(
        "el la los las un una unos unas al del este esta estos estas ese esa esos esas mi mis tu tus su sus nuestro "
        "nuestra nuestros nuestras cada algún alguna ningún ninguna no muy",
        "y e o u pero sino porque aunque mientras cuando donde si que quien como cual de a en con sin por para sobre "
        "entre hacia hasta desde contra durante según antes después",
    ),
    "it": _words(
        "il lo la i gli le un uno una del dello della dei degli delle al allo alla ai agli alle dal dalla dai nel "
        "nello nella nei nelle sul sulla questo questa questi queste quel quella mio mia tuo tua suo sua nostro nostra "
        "ogni non molto",
        "e ed o ma però perché mentre quando dove se che chi come di a ad da in con su per tra fra senza contro "
        "durante sopra sotto prima dopo",
    ),
    "pt": _words(
        "o a os as um uma uns umas do da dos das no na nos nas ao aos à às pelo pela este esta estes estas esse essa "
        "meu minha teu tua seu sua seus suas nosso nossa cada algum alguma nenhum não muito",
        "e ou mas porém porque embora enquanto quando onde se que quem como de em com sem por para sobre entre até "
        "desde contra durante segundo antes depois",
    ),
    "nl": _words(
        "de het een geen deze dit die dat mijn jouw uw zijn haar ons onze hun elke elk ieder iedere niet zeer heel "
        "ik hij wij",
        "en of maar want omdat hoewel terwijl als toen wanneer waar indien dat die wie wat in op aan uit bij met naar "
        "van voor door tegen zonder om over onder tussen naast achter tijdens",
    ),
}


def function_words(lang: str | None, words: Iterable[str]) -> FunctionWords:
    """The function words of a language, or none for other languages.

    English-only and most CTC models name no language. Then the words of the text decide: of the languages above, the
    one that has most of them, if it has at least a fifth.

    Args:
        lang: Shortest standard code, or None.
        words: The text in lower case, without punctuation.
    """
    if lang is not None:
        return FUNCTION_WORDS.get(lang, NO_WORDS)
    text = list(words)
    counts = {code: sum(word in own.binding | own.leading for word in text) for code, own in FUNCTION_WORDS.items()}
    best = max(counts, key=counts.__getitem__)
    return FUNCTION_WORDS[best] if text and counts[best] >= _SHARE * len(text) else NO_WORDS
