"""Languages: codes and names of every common form, names of checkpoints, and suggestions for unknown codes."""

import json
import warnings

import pytest

from ssl_asr.data.languages import (
    find_language,
    given_language,
    is_spaced,
    language_code,
    language_of,
    language_tag,
    match_language,
    nearest_language,
    same_language,
)
from ssl_asr.data.manifest import read_manifest
from ssl_asr.metrics.edit import wer_unit

# Code, whether spaces separate words, and forms: ISO 639-1, 639-3, BCP 47, FLEURS, Common Voice, MMS, FLORES, POSIX,
# Windows, Whisper's tokens, English names and own names.
FORMS = [
    ("en", True, "en eng EN en-US en_us en-UK English eng_Latn en_US.UTF-8 en_GB.ISO-8859-15 <|en|>"),
    ("de", True, "de deu ger DE de-DE de_de de-AT German Deutsch de_DE@euro deu_Latn"),
    ("tr", True, "tr tur TR tr-TR tr_tr Turkish tur_Latn tr_TR.utf8 Türkçe"),
    ("az", True, "az aze azj az-AZ az_az azj-script_latin Azerbaijani"),
    (
        "zh",
        False,
        "zh zho chi cmn zh_cn zh-CN zh-TW zh-HK cmn_hans_cn zh-Hans-CN cmn-script_simplified Mandarin Chinese "
        "zho_Hant zh_CN.UTF-8 zh-CHS zh_cht <|zh|> Mandarin_Chinese 中文",
    ),
    ("yue", False, "yue yue_hant_hk yue-HK yue-script_traditional Cantonese zh-yue"),
    ("ja", False, "ja jpn JA ja-JP ja_jp Japanese ja_JP.eucJP 日本語"),
    ("th", False, "th tha th_th th-TH Thai"),
    ("lo", False, "lo lao lo_la Lao"),
    ("km", False, "km khm km_kh Khmer"),
    ("my", False, "my mya bur my_mm Burmese Myanmar"),
    ("ko", True, "ko kor ko_kr ko-KR Korean"),
    ("no", True, "no nor nb nob nb_no nb-NO Norwegian"),
    ("nn", True, "nn nno nn-NO"),
    ("fa", True, "fa fas per pes prs fa_ir Persian Farsi"),
    ("ar", True, "ar ara arb arz apc ar_eg ar-SA Arabic"),
    ("he", True, "he heb iw he_il Hebrew"),
    ("id", True, "id ind in id_id Indonesian"),
    ("jv", True, "jv jav jw jv_id Javanese"),
    ("fil", True, "fil tl tgl fil_ph Filipino Tagalog"),
    ("ro", True, "ro ron rum mo ro_ro Romanian Moldavian"),
    ("sr", True, "sr srp sr_rs sr-Latn hbs sh Serbian sr@latin sr_RS@latin"),
    ("pt", True, "pt por pt-BR pt_br pt-PT Portuguese"),
    ("hi", True, "hi hin hi_in hi-IN Hindi"),
    ("nan", False, "nan zh-nan zh-min-nan nan-TW Min_Nan min-nan"),
    ("es", True, "es spa es_419 es-MX Spanish Castilian"),
]
NO_LANGUAGE = [None, "", "  ", "auto", "und", "mul", "zxx", "mis", "unknown"]
UNKNOWN = ["xx", "jp", "qaa", "x-foo", "gibberish", "speaker1", "\0", "de\0", "\ud800", "azj-script_x"]
# Codes of countries, which are names of rare languages too, pairs of languages, and names of files.
UNKNOWN += ["ua", "au", "ir", "vu", "eng-fra", "de-nan", "mon-khm", "de.wav", "<|de", "C.UTF-8"]


@pytest.mark.parametrize(("code", "spaced", "forms"), FORMS, ids=[row[0] for row in FORMS])
def test_every_form_of_a_language_gives_one_answer(code, spaced, forms):
    for form in forms.split():
        language = find_language(form)
        assert language is not None, form
        assert (language.code, language.spaced) == (code, spaced), form
        assert is_spaced(form) == spaced
        assert language_code(form) == code


@pytest.mark.parametrize("text", [*NO_LANGUAGE, *UNKNOWN])
def test_other_texts_are_no_language(text):
    assert find_language(text) is None
    assert (given_language(text) is None) == (text in NO_LANGUAGE)


def test_dotless_i_depends_on_language_and_script():
    dotted = ["tr", "tr-TR", "tur", "az", "azj", "az-Latn", "crh", "gag", "kk-Latn", "Turkish"]
    plain = ["de", "en", "az-Cyrl", "azj-script_cyrillic", "kk", "ku", "uz", "tk"]
    assert [form for form in dotted if not find_language(form).dotted_i] == []
    assert [form for form in plain if find_language(form).dotted_i] == []


def test_modifiers_of_a_locale_may_be_scripts():
    forms = ["sr", "sr_RS@latin", "uz_UZ@cyrillic", "de_DE@euro", "ks_IN@devanagari"]
    assert [find_language(form).script for form in forms] == ["Cyrl", "Latn", "Cyrl", "Latn", "Deva"]


def test_latin_transcripts_of_chinese_have_spaces():
    assert find_language("zh-Latn").spaced
    assert find_language("ja-Latn").spaced


SAMPLES = {
    "en": "two words",
    "de": "zwei Wörter",
    "zh": "两个词",
    "yue": "兩個詞",
    "ja": "二つの単語",
    "ko": "두 단어",
    "th": "สองคำ",
    "lo": "ສອງຄໍາ",
    "km": "ពីរពាក្យ",
    "my": "စကားလုံး",
    "hi": "दो शब्द",
    "ar": "كلمتان هنا",
    "ru": "два слова",
    "el": "δύο λέξεις",
    "ta": "இரண்டு சொற்கள்",
    "ka": "ორი სიტყვა",
    "am": "ሁለት ቃላት",
}


@pytest.mark.parametrize("code", SAMPLES)
def test_units_of_the_wer_agree_with_the_language(code):
    text = SAMPLES[code]
    assert (wer_unit([(text, text)]) == "words") == find_language(code).spaced


def test_names_of_whisper_match_every_code_and_name_of_whisper():
    from transformers.models.whisper.tokenization_whisper import LANGUAGES, TO_LANGUAGE_CODE

    assert {name: match_language(name, LANGUAGES) for name in TO_LANGUAGE_CODE} == TO_LANGUAGE_CODE
    forms = {"fil_ph": "tl", "jv_id": "jw", "nb_no": "no", "nn-NO": "nn", "iw": "he", "pes": "fa", "arz": "ar"}
    forms |= {"cmn_hans_cn": "zh", "zh-HK": "zh", "yue_hant_hk": "yue", "sr-Latn": "sr", "mo": "ro", "hr_hr": "hr"}
    assert {form: match_language(form, LANGUAGES) for form in forms} == forms


MMS = [
    "ara",
    "azj-script_cyrillic",
    "azj-script_latin",
    "azb",
    "ckb",
    "cmn-script_simplified",
    "deu",
    "eng",
    "fas",
    "kmr-script_arabic",
    "kmr-script_latin",
    "nob",
    "quc-dialect_central",
    "quc-dialect_east",
    "srp-script_cyrillic",
    "srp-script_latin",
    "swh",
    "urd-script_arabic",
    "urd-script_latin",
    "uzb-script_cyrillic",
    "uzb-script_latin",
    "yue-script_traditional",
    "zlm",
]


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("de", "deu"), ("German", "deu"), ("en_us", "eng"), ("ar", "ara"), ("arz", "ara"), ("fa_ir", "fas"),
        ("zh_cn", "cmn-script_simplified"), ("yue", "yue-script_traditional"), ("az", "azj-script_latin"),
        ("az-Cyrl", "azj-script_cyrillic"), ("azb", "azb"), ("ku", "kmr-script_latin"), ("ckb", "ckb"), ("nb", "nob"),
        ("ms", "zlm"), ("sw", "swh"), ("sr", "srp-script_cyrillic"), ("sr-Latn", "srp-script_latin"),
        ("ur", "urd-script_arabic"), ("uz", "uzb-script_latin"), ("quc-dialect_east", "quc-dialect_east"),
        ("quc", None), ("hr", None), ("xx", None),
    ],
)  # fmt: skip
def test_names_of_mms_match_codes_of_any_form(text, name):
    assert match_language(text, MMS) == name


@pytest.mark.parametrize(
    ("text", "remedy"),
    [
        ("yue", "did you mean 'zh'?"),
        ("wuu", "did you mean 'zh'?"),
        ("gsw", "did you mean 'de'?"),
        ("jp", "did you mean 'ja'?"),
        ("cz", "did you mean 'cs'?"),
        ("germn", "did you mean 'de'?"),
        ("xx", "use one of en zh de ja cs"),
        ("tlh", "use one of en zh de ja cs"),
    ],
)
def test_unknown_languages_get_a_suggestion(text, remedy):
    assert nearest_language(text, ["en", "zh", "de", "ja", "cs"]) == remedy


def test_suggestion_names_the_dialects_of_a_language():
    assert nearest_language("quc", MMS) == "use one of quc-dialect_central, quc-dialect_east"


def test_tags_keep_a_region_that_is_not_the_most_frequent():
    forms = {
        "zh_cn": "zh",
        "cmn_hans_cn": "zh",
        "zh-TW": "zh-TW",
        "zh-Hant-HK": "zh-HK",
        "en_us": "en",
        "en-GB": "en-GB",
    }
    forms |= {"pt-PT": "pt-PT", "deu": "de", "sr-Latn": "sr-Latn", "gibberish": "gibberish"}
    assert {form: language_tag(form) for form in forms} == forms


def _write(tmp_path, *langs):
    path = tmp_path / "m.jsonl"
    rows = ({"audio_filepath": f"{i}.wav", "duration": 1.0, "text": "a", "lang": lang} for i, lang in enumerate(langs))
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_manifest_filter_compares_languages(tmp_path):
    path = _write(tmp_path, "de", "deu", "de-DE", "German", "de-AT", "en", None)
    assert len(read_manifest(path, only={"lang": "de_de"})) == 4
    assert len(read_manifest(path, only={"lang": "de"})) == 5
    assert same_language("pt", "pt-PT")
    assert not same_language("pt-BR", "pt-PT")
    assert not same_language("zh", "yue")


def test_manifest_without_a_language_and_with_an_unknown_one(tmp_path, monkeypatch):
    monkeypatch.setattr("ssl_asr.data.languages._warned", set())
    path = _write(tmp_path, "auto", "", "und", "jp", "jp", "de")
    with pytest.warns(UserWarning, match=r"m.jsonl:4: 'jp' is not a known language.*Did you mean 'ja'") as caught:
        manifest = read_manifest(path)
    assert len(caught) == 1, "one warning for each unknown code"
    assert [utterance.lang for utterance in manifest] == [None, None, None, "jp", "jp", "de"]


def test_known_and_missing_languages_give_no_warning():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert language_of("de_de").code == "de"
        assert language_of("auto") is None
