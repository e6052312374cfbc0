"""The wording of what evaluations hide in documents and ask about them, by language.

A new language is one more entry of `LANGUAGES`.
"""

import logging
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from skipwise.data.language import language_of
from skipwise.errors import ConfigError
from skipwise.names import did_you_mean

logger = logging.getLogger("skipwise")

# Less text than this share in other languages is not worth a word.
_OTHERS_SHARE = 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class PasskeyWords:
    """Templates of passkey prompts.

    Attributes:
        instruction: what comes first.
        filler: sentences that say nothing, with which other tasks top up their prompts, too.
        needle: states the `{key}` twice.
        question: what the key follows.
    """

    instruction: str
    filler: str
    needle: str
    question: str


@dataclass(frozen=True, slots=True, kw_only=True)
class NeedleWords:
    """Templates of needles: lines that give the `{value}` of a `{key}`.

    Attributes:
        instruction: what comes first.
        needle: gives the only value of a key.
        needle_of_several: gives one of several values.
        question: what the value of one key follows.
        question_values: what all `{count}` values of one key follow.
        question_keys: what the values of several `{keys}` follow, in their order.
        key: makes a key of an `{adjective}` and a `{noun}`.
        adjectives: separated by spaces, in the form that `key` needs.
        nouns: likewise.
    """

    instruction: str
    needle: str
    needle_of_several: str
    question: str
    question_values: str
    question_keys: str
    key: str
    adjectives: str
    nouns: str

    @property
    def num_keys(self) -> int:
        """Number of distinct keys."""
        return len(self.adjectives.split()) * len(self.nouns.split())

    def key_of(self, number: int) -> str:
        """The key of a number below `num_keys`."""
        adjectives, nouns = self.adjectives.split(), self.nouns.split()
        return self.key.format(adjective=adjectives[number // len(nouns)], noun=nouns[number % len(nouns)])


@dataclass(frozen=True, slots=True, kw_only=True)
class SuiteWords:
    """Templates of the questions of a suite.

    Attributes:
        instruction: what comes first.
        repeated: says that a sentence of the text is repeated; the `{beginning}` of the sentence is its end.
        facts: sentences that give a `{number}` to a `{name}`.
        name: sounds of invented names, one list for each place, none of which makes a known word.
        document: the heading of a document with a `{label}`.
        which: says that a `{sentence}` is of one of the documents with some `{labels}`; the label of that follows.
        order_lines: asks which of two lines of the text, written in `{lines}`, comes first.
        order_sentences: the same of sentences.
    """

    instruction: str
    repeated: str
    facts: tuple[str, ...]
    name: tuple[str, ...]
    document: str
    which: str
    order_lines: str
    order_sentences: str


class Planted(NamedTuple):
    """A sentence with an answer in it.

    Attributes:
        sentence: all of it.
        opening: what comes before the answer, without a space at its end.
        answer: with the space before it, if the language writes one.
    """

    sentence: str
    opening: str
    answer: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Language:
    """Everything that evaluations say in one language.

    Attributes:
        code: of ISO 639-1.
        name: in English.
        passkey: templates of passkey prompts.
        needles: templates of needles.
        suite: templates of suites.
        conjunction: what stands before the last entry of a list.
        comma: what stands between the others.
        space: what stands between words and between sentences; empty in scripts without spaces.
    """

    code: str
    name: str
    passkey: PasskeyWords
    needles: NeedleWords
    suite: SuiteWords
    conjunction: str
    comma: str = ", "
    space: str = " "

    def listed(self, entries: Sequence[str]) -> str:
        """Two or more entries as a list within a sentence."""
        *some, last = entries
        return self.comma.join(some) + self.conjunction + last

    def planted(self, template: str, **words: str) -> Planted:
        """A sentence of `SuiteWords.facts`; its `{number}` is the answer."""
        before, after = template.split("{number}")
        opening, answer = before.format(**words).rstrip(" "), self.answer(words["number"])
        return Planted(f"{opening}{answer}{after}", opening, answer)

    def answer(self, text: str) -> str:
        """An answer as it follows a question."""
        return f"{self.space}{text}"


_LATIN_SYLLABLE = ("b br d dr f g gr h k kr l m n p pr r s st t tr v z", "a e i o u")
_LATIN_NAME = (*_LATIN_SYLLABLE * 3, "k l m n r sk t x")

ENGLISH = Language(
    code="en",
    name="English",
    conjunction=" and ",
    passkey=PasskeyWords(
        instruction="A pass key is hidden in the long text below. Find it and remember it; it is asked for at the "
        "end.\n",
        filler="The river is wide. The hills are low. The road is long. On we go. Over there and home again.\n",
        needle="The pass key is {key}. Remember it. {key} is the pass key.\n",
        question="What is the pass key? The pass key is",
    ),
    needles=NeedleWords(
        instruction="Some lines of the long text below give the number of a place. Remember them: they are asked "
        "for.\n",
        needle="\nThe number of {key} is {value}.\n",
        needle_of_several="\nOne of the numbers of {key} is {value}.\n",
        question="\nWhat is the number of {key}? The number of {key} is",
        question_values="\nWhat are the {count} numbers of {key}? The {count} numbers of {key} are",
        question_keys="\nWhat are the numbers of {keys}? In the same order, the numbers are",
        key="the {adjective} {noun}",
        adjectives="quiet broad narrow silver golden wooden hidden distant crooked gentle mossy windy rusty painted "
        "frozen sunny hollow steep sunken marble copper sandy foggy ancient modest lonely crowded shaded fragrant "
        "dusty salted icy",
        nouns="harbor bridge orchard tower mill garden valley station quarry chapel meadow island market tunnel "
        "castle forest canyon village workshop vineyard terrace fountain museum stable lighthouse bakery theater "
        "pier cottage reservoir monastery library",
    ),
    suite=SuiteWords(
        instruction="Read the text below. A question about it follows at its end.\n\n",
        repeated='One sentence of the text above is repeated here word for word:\n"{beginning}',
        facts=(
            "The access code of the {name} store room is {number}.",
            "The last invoice of the {name} company carries the number {number}.",
            "The shipment for {name} is tracked under the number {number}.",
            "The emergency line of the {name} office has the number {number}.",
            "The serial number of the {name} pump is {number}.",
            "The land register lists the {name} estate under the number {number}.",
            "The archive keeps the {name} file on the shelf with the number {number}.",
            "The insurance policy of the {name} mill has the number {number}.",
        ),
        name=_LATIN_NAME,
        document="Document {label}",
        which='This sentence stands in one of the documents {labels} above:\n"{sentence}"\nIt stands in Document',
        order_lines="Two lines of the text above, in no particular order:\n{lines}"
        "Of these two, the one that comes first in the text is",
        order_sentences="Two sentences of the text above, in no particular order:\n{lines}"
        "Of these two, the one that comes first in the text is",
    ),
)

GERMAN = Language(
    code="de",
    name="German",
    conjunction=" und ",
    passkey=PasskeyWords(
        instruction="Im folgenden langen Text ist eine Geheimzahl versteckt. Finde sie und merke sie dir; am Ende wird "
        "nach ihr gefragt.\n",
        filler="Der Fluss ist breit. Die Hügel sind flach. Die Straße ist lang. Weiter geht es. Hinüber und wieder "
        "nach Hause.\n",
        needle="Die Geheimzahl ist {key}. Merke sie dir. {key} ist die Geheimzahl.\n",
        question="Wie lautet die Geheimzahl? Die Geheimzahl ist",
    ),
    needles=NeedleWords(
        instruction="Einige Zeilen des folgenden langen Textes nennen die Nummer eines Ortes. Merke sie dir: Nach "
        "ihnen wird gefragt.\n",
        needle="\nDie Nummer {key} lautet {value}.\n",
        needle_of_several="\nEine der Nummern {key} lautet {value}.\n",
        question="\nWie lautet die Nummer {key}? Die Nummer {key} lautet",
        question_values="\nWie lauten die {count} Nummern {key}? Die {count} Nummern {key} lauten",
        question_keys="\nWie lauten die Nummern {keys}? In derselben Reihenfolge lauten die Nummern",
        key="des {adjective} {noun}",
        adjectives="stillen breiten schmalen silbernen goldenen verborgenen fernen krummen moosigen windigen rostigen "
        "bemalten gefrorenen sonnigen hohlen steilen versunkenen marmornen sandigen nebligen uralten bescheidenen "
        "einsamen schattigen staubigen eisigen",
        nouns="Hafens Obstgartens Turms Tals Bahnhofs Steinbruchs Klosters Marktes Tunnels Schlosses Waldes Dorfes "
        "Weinbergs Brunnens Museums Stalls Leuchtturms Theaters Stausees Friedhofs Gutshofs Sägewerks Rathauses "
        "Gasthofs Moores Parks",
    ),
    suite=SuiteWords(
        instruction="Lies den folgenden Text. An seinem Ende steht eine Frage dazu.\n\n",
        repeated="Ein Satz aus dem Text oben wird hier wörtlich wiederholt:\n„{beginning}",
        facts=(
            "Der Zugangscode für den Lagerraum {name} lautet {number}.",
            "Die letzte Rechnung der Firma {name} trägt die Nummer {number}.",
            "Die Sendung für {name} hat die Nummer {number}.",
            "Der Notruf des Büros {name} hat die Nummer {number}.",
            "Die Seriennummer der Pumpe {name} lautet {number}.",
            "Das Grundbuch führt das Gut {name} unter der Nummer {number}.",
            "Das Archiv verwahrt die Akte {name} im Regal mit der Nummer {number}.",
            "Der Versicherungsschein der Mühle {name} hat die Nummer {number}.",
        ),
        name=_LATIN_NAME,
        document="Dokument {label}",
        which="Dieser Satz steht in einem der Dokumente {labels} oben:\n„{sentence}“\nEr steht in Dokument",
        order_lines="Zwei Zeilen aus dem Text oben, in beliebiger Reihenfolge:\n{lines}"
        "Von diesen beiden steht im Text zuerst",
        order_sentences="Zwei Sätze aus dem Text oben, in beliebiger Reihenfolge:\n{lines}"
        "Von diesen beiden steht im Text zuerst",
    ),
)

# Before a colon and a question mark, and inside quotation marks, French has a space that does not break the line.
FRENCH = Language(
    code="fr",
    name="French",
    conjunction=" et ",
    passkey=PasskeyWords(
        instruction="Un code secret est caché dans le long texte ci-dessous. Trouvez-le et retenez-le\u00a0; il est "
        "demandé à la fin.\n",
        filler="La rivière est large. Les collines sont basses. La route est longue. En avant. Là-bas, puis retour à "
        "la maison.\n",
        needle="Le code secret est {key}. Retenez-le. {key} est le code secret.\n",
        question="Quel est le code secret\u00a0? Le code secret est",
    ),
    needles=NeedleWords(
        instruction="Certaines lignes du long texte ci-dessous donnent le numéro d’un lieu. Retenez-les\u00a0: elles "
        "sont demandées.\n",
        needle="\nLe numéro {key} est {value}.\n",
        needle_of_several="\nL’un des numéros {key} est {value}.\n",
        question="\nQuel est le numéro {key}\u00a0? Le numéro {key} est",
        question_values="\nQuels sont les {count} numéros {key}\u00a0? Les {count} numéros {key} sont",
        question_keys="\nQuels sont les numéros {keys}\u00a0? Dans le même ordre, les numéros sont",
        key="du {noun} {adjective}",
        adjectives="tranquille large étroit argenté doré caché lointain tordu moussu venteux rouillé peint gelé "
        "ensoleillé creux escarpé englouti cuivré sablonneux brumeux ancien modeste solitaire ombragé parfumé glacial",
        nouns="port pont verger moulin jardin vallon marché tunnel château canyon village vignoble musée phare théâtre "
        "monastère bassin hameau pré ravin sentier manoir lac bois fort kiosque",
    ),
    suite=SuiteWords(
        instruction="Lisez le texte ci-dessous. Une question sur son contenu suit à la fin.\n\n",
        repeated="Une phrase du texte ci-dessus est reprise ici mot pour mot\u00a0:\n«\u00a0{beginning}",
        facts=(
            "Le code d’accès de la réserve {name} est le {number}.",
            "La dernière facture de la société {name} porte le numéro {number}.",
            "Le colis destiné à {name} porte le numéro {number}.",
            "La ligne d’urgence du bureau {name} a pour numéro le {number}.",
            "Le numéro de série de la pompe {name} est le {number}.",
            "Le cadastre inscrit le domaine {name} sous le numéro {number}.",
            "Les archives conservent le dossier {name} sur l’étagère numéro {number}.",
            "La police d’assurance du moulin {name} porte le numéro {number}.",
        ),
        name=_LATIN_NAME,
        document="Document {label}",
        which="Cette phrase se trouve dans l’un des documents {labels} ci-dessus\u00a0:\n«\u00a0{sentence}\u00a0»\n"
        "Elle se trouve dans le document",
        order_lines="Deux lignes du texte ci-dessus, dans un ordre quelconque\u00a0:\n{lines}"
        "Des deux, celle qui vient en premier dans le texte est",
        order_sentences="Deux phrases du texte ci-dessus, dans un ordre quelconque\u00a0:\n{lines}"
        "Des deux, celle qui vient en premier dans le texte est",
    ),
)

SPANISH = Language(
    code="es",
    name="Spanish",
    conjunction=" y ",
    passkey=PasskeyWords(
        instruction="En el largo texto siguiente hay escondida una clave. Búscala y recuérdala; se pregunta por ella "
        "al final.\n",
        filler="El río es ancho. Las colinas son bajas. El camino es largo. Seguimos adelante. Hasta allí y de vuelta "
        "a casa.\n",
        needle="La clave es {key}. Recuérdala. {key} es la clave.\n",
        question="¿Cuál es la clave? La clave es",
    ),
    needles=NeedleWords(
        instruction="Algunas líneas del largo texto siguiente dan el número de un lugar. Recuérdalas: se pregunta por "
        "ellas.\n",
        needle="\nEl número {key} es {value}.\n",
        needle_of_several="\nUno de los números {key} es {value}.\n",
        question="\n¿Cuál es el número {key}? El número {key} es",
        question_values="\n¿Cuáles son los {count} números {key}? Los {count} números {key} son",
        question_keys="\n¿Cuáles son los números {keys}? En el mismo orden, los números son",
        key="del {noun} {adjective}",
        adjectives="tranquilo ancho estrecho plateado dorado escondido lejano torcido ventoso oxidado pintado helado "
        "soleado hueco empinado hundido cobrizo arenoso brumoso antiguo modesto solitario sombreado perfumado "
        "polvoriento salado",
        nouns="puerto puente huerto molino jardín valle mercado túnel castillo bosque cañón pueblo taller viñedo museo "
        "establo faro teatro muelle embalse monasterio prado barranco sendero palacio lago",
    ),
    suite=SuiteWords(
        instruction="Lee el texto siguiente. Al final hay una pregunta sobre él.\n\n",
        repeated="Una frase del texto anterior se repite aquí palabra por palabra:\n«{beginning}",
        facts=(
            "El código de acceso del almacén {name} es el {number}.",
            "La última factura de la empresa {name} lleva el número {number}.",
            "El envío para {name} lleva el número {number}.",
            "La línea de emergencia de la oficina {name} tiene el número {number}.",
            "El número de serie de la bomba {name} es el {number}.",
            "El registro de la propiedad recoge la finca {name} con el número {number}.",
            "El archivo guarda el expediente {name} en el estante número {number}.",
            "La póliza de seguro del molino {name} tiene el número {number}.",
        ),
        name=_LATIN_NAME,
        document="Documento {label}",
        which="Esta frase está en uno de los documentos {labels} anteriores:\n«{sentence}»\nEstá en el documento",
        order_lines="Dos líneas del texto anterior, sin ningún orden en particular:\n{lines}"
        "De las dos, la que aparece primero en el texto es",
        order_sentences="Dos frases del texto anterior, sin ningún orden en particular:\n{lines}"
        "De las dos, la que aparece primero en el texto es",
    ),
)

_KATAKANA = (
    "ガ ギ ゴ ザ ゼ ゾ ダ ド バ ビ ベ ボ ラ リ ル レ ロ メ ヌ ネ モ",
    "ガ グ ザ ジ ズ ゼ ゾ ダ デ ド バ ブ ベ ボ ヴァ ラ リ ル レ ロ ムー ネー モー",
    "カ ギ ゲ ザ ゾ タ デ ド ナ バ ビ ボ マ メ モ ヤ ラ ロ ワ",
    "ク ス ト ナ ム ル ン ズ ド",
)

JAPANESE = Language(
    code="ja",
    name="Japanese",
    space="",
    comma="、",
    conjunction="、",
    passkey=PasskeyWords(
        instruction="次の長い文章のどこかに暗証番号が隠されています。見つけて覚えてください。最後に質問します。\n",
        filler="川は広い。丘は低い。道は長い。さあ、先へ進もう。あちらへ行って、また家に帰ろう。\n",
        needle="暗証番号は{key}です。覚えておいてください。{key}が暗証番号です。\n",
        question="暗証番号は何ですか。暗証番号は",
    ),
    needles=NeedleWords(
        instruction="次の長い文章には、ある場所の番号を示す行がいくつかあります。後で質問するので、覚えておいてください。"
        "\n",
        needle="\n{key}の番号は{value}です。\n",
        needle_of_several="\n{key}の番号の一つは{value}です。\n",
        question="\n{key}の番号は何ですか。{key}の番号は",
        question_values="\n{key}の{count}個の番号は何ですか。{key}の{count}個の番号は",
        question_keys="\n{keys}の番号はそれぞれ何ですか。同じ順に並べると、番号は",
        key="{adjective}{noun}",
        adjectives="静かな 広い 狭い 銀色の 金色の 木造の 遠くの 曲がった 穏やかな 苔むした 風の強い 錆びた 凍った "
        "日当たりのよい 険しい 沈んだ 大理石の 銅の 砂だらけの 霧深い 古い 質素な 寂しい 混み合った 日陰の 香り高い "
        "氷の 赤い 青い 明るい",
        nouns="港 橋 果樹園 塔 水車小屋 庭園 谷 駅 採石場 礼拝堂 牧草地 島 市場 トンネル 城 森 峡谷 村 工房 "
        "ぶどう園 テラス 噴水 博物館 馬小屋 灯台 パン屋 劇場 桟橋 山小屋 貯水池 修道院 図書館",
    ),
    suite=SuiteWords(
        instruction="次の文章を読んでください。最後に、その内容についての質問があります。\n\n",
        repeated="上の文章にある一文を、ここに一字一句そのまま繰り返します。\n「{beginning}",
        facts=(
            "{name}倉庫の入室コードは{number}です。",
            "{name}社から届いた最新の請求書の番号は{number}です。",
            "{name}宛ての荷物の追跡番号は{number}です。",
            "{name}事務所の緊急連絡先の番号は{number}です。",
            "{name}型ポンプの製造番号は{number}です。",
            "土地登記簿に載っている{name}荘園の番号は{number}です。",
            "書庫で{name}文書が置かれている棚の番号は{number}です。",
            "{name}製粉所の保険証券の番号は{number}です。",
        ),
        name=_KATAKANA,
        document="文書{label}",
        which="上の文書{labels}のうちの一つに、次の文があります。\n「{sentence}」\nこの文があるのは文書",
        order_lines="上の文章にある二つの行を、順不同で示します。\n{lines}この二つのうち、文章の中で先に出てくるのは",
        order_sentences="上の文章にある二つの文を、順不同で示します。\n{lines}この二つのうち、文章の中で先に出てくるのは",
    ),
)

# Characters of transliterated names.
_CHINESE_NAME = (
    "沃 坎 洛 莫 萨 塔 佩 格 弗 鲁 兹 科 克 涅 霍 迪 瓦 卡 索 泽",
    "里 拉 莱 罗 洛 鲁 诺 纳 奈 梅 姆 维 塞 达 多 菲 贝 泰",
    "克 坦 德 姆 森 顿 斯 特 尔 格 茨 维 恩 普",
)

CHINESE = Language(
    code="zh",
    name="Chinese",
    space="",
    comma="、",
    conjunction="和",
    passkey=PasskeyWords(
        instruction="下面的长文中藏有一个密码。请找到它并记住，最后会问到它。\n",
        filler="河面很宽。山丘不高。道路很长。我们继续走吧。走到那边，然后再回家。\n",
        needle="密码是{key}。请记住它。{key}就是密码。\n",
        question="密码是什么？密码是",
    ),
    needles=NeedleWords(
        instruction="下面的长文中，有几行给出了某个地方的号码。请记住它们，后面会问到。\n",
        needle="\n{key}的号码是{value}。\n",
        needle_of_several="\n{key}的号码之一是{value}。\n",
        question="\n{key}的号码是什么？{key}的号码是",
        question_values="\n{key}的{count}个号码是什么？{key}的{count}个号码是",
        question_keys="\n{keys}的号码分别是什么？按同样的顺序，号码是",
        key="{adjective}{noun}",
        adjectives="安静的 宽阔的 狭窄的 银色的 金色的 木造的 隐蔽的 遥远的 弯曲的 长满青苔的 多风的 生锈的 彩绘的 "
        "冰冻的 阳光下的 陡峭的 下沉的 大理石的 铜制的 多沙的 多雾的 古老的 朴素的 孤独的 拥挤的 阴凉的 芬芳的 "
        "满是灰尘的 红色的 明亮的",
        nouns="港口 大桥 果园 高塔 磨坊 花园 山谷 车站 采石场 教堂 草地 小岛 市场 隧道 城堡 森林 峡谷 村庄 作坊 "
        "葡萄园 露台 喷泉 博物馆 马厩 灯塔 面包店 剧院 码头 小屋 水库 修道院 图书馆",
    ),
    suite=SuiteWords(
        instruction="请阅读下面的文章。文章末尾有一个关于其内容的问题。\n\n",
        repeated="下面一字不差地重复上文中的一句话：\n“{beginning}",
        facts=(
            "{name}仓库的门禁密码是{number}。",
            "{name}公司最近一张发票的号码是{number}。",
            "寄往{name}的货物的运单号是{number}。",
            "{name}办事处的紧急电话号码是{number}。",
            "{name}水泵的序列号是{number}。",
            "{name}庄园在土地登记册上的编号是{number}。",
            "{name}卷宗在档案室的架位号是{number}。",
            "{name}磨坊的保险单号码是{number}。",
        ),
        name=_CHINESE_NAME,
        document="文档{label}",
        which="上面的文档{labels}中，有一篇含有下面这句话：\n“{sentence}”\n这句话出自文档",
        order_lines="下面是上文中的两行，排列不分先后：\n{lines}这两行中，在文中先出现的是",
        order_sentences="下面是上文中的两句话，排列不分先后：\n{lines}这两句话中，在文中先出现的是",
    ),
)

KOREAN = Language(
    code="ko",
    name="Korean",
    conjunction=", ",
    passkey=PasskeyWords(
        instruction="다음의 긴 글 속에 비밀번호가 숨어 있습니다. 찾아서 기억해 두세요. 마지막에 질문합니다.\n",
        filler="강은 넓다. 언덕은 낮다. 길은 멀다. 계속 가자. 저쪽으로 갔다가 다시 집으로 돌아오자.\n",
        needle="비밀번호는 {key}입니다. 기억해 두세요. {key}, 이것이 비밀번호입니다.\n",
        question="비밀번호는 무엇입니까? 비밀번호는",
    ),
    needles=NeedleWords(
        instruction="다음의 긴 글에는 어떤 장소의 번호를 알려 주는 줄이 있습니다. 나중에 질문하므로 기억해 두세요.\n",
        needle="\n{key}의 번호는 {value}입니다.\n",
        needle_of_several="\n{key}의 번호 가운데 하나는 {value}입니다.\n",
        question="\n{key}의 번호는 무엇입니까? {key}의 번호는",
        question_values="\n{key}의 번호 {count}개는 무엇입니까? {key}의 번호 {count}개는",
        question_keys="\n{keys}의 번호는 각각 무엇입니까? 같은 순서로 적으면 번호는",
        key="{adjective} {noun}",
        adjectives="조용한 넓은 좁은 은빛 금빛 숨겨진 먼 굽은 온화한 녹슨 얼어붙은 가파른 가라앉은 오래된 소박한 "
        "외로운 붐비는 그늘진 향기로운 밝은 어두운 작은 큰 높은 낮은 새로운",
        nouns="항구 다리 과수원 탑 방앗간 정원 골짜기 기차역 채석장 예배당 초원 섬 시장 터널 성 숲 협곡 마을 공방 "
        "포도밭 분수 박물관 마구간 등대 빵집 극장 부두 오두막 저수지 수도원 도서관",
    ),
    suite=SuiteWords(
        instruction="다음 글을 읽으세요. 끝에 그 내용에 대한 질문이 있습니다.\n\n",
        repeated="위 글에 있는 문장 하나를 여기에 그대로 되풀이합니다.\n“{beginning}",
        facts=(
            "{name} 창고의 출입 번호는 {number}입니다.",
            "{name} 회사가 보낸 최근 청구서의 번호는 {number}입니다.",
            "{name} 앞으로 보낸 화물의 운송장 번호는 {number}입니다.",
            "{name} 사무소의 비상 연락처 번호는 {number}입니다.",
            "{name} 펌프의 일련번호는 {number}입니다.",
            "토지 대장에 적힌 {name} 농장의 번호는 {number}입니다.",
            "기록 보관소에서 {name} 문서가 놓인 서가의 번호는 {number}입니다.",
            "{name} 방앗간의 보험 증권 번호는 {number}입니다.",
        ),
        name=(
            "갈 고 글 누 다 돌 드 라 렌 로 모 베 보 즈 졸 크",
            "가 그 나 네 다 데 라 레 로 루 바 벨 메",
            "간 덴 람 멕 반 센 잔 칸 텍 펠 혼",
        ),
        document="문서 {label}",
        which="위의 문서 {labels} 가운데 하나에 다음 문장이 있습니다.\n“{sentence}”\n이 문장이 있는 것은 문서",
        order_lines="위 글에 있는 두 줄을 순서 없이 보입니다.\n{lines}둘 가운데 글에서 먼저 나오는 것은",
        order_sentences="위 글에 있는 두 문장을 순서 없이 보입니다.\n{lines}둘 가운데 글에서 먼저 나오는 것은",
    ),
)

LANGUAGES: dict[str, Language] = {
    language.code: language for language in (ENGLISH, GERMAN, FRENCH, SPANISH, JAPANESE, CHINESE, KOREAN)
}
"""All languages by code."""


def language_named(code: str) -> Language:
    """The language of a code.

    Raises:
        ConfigError: there are no templates in it.
    """
    if code not in LANGUAGES:
        raise ConfigError(f"language is {code!r}; {did_you_mean(code, LANGUAGES)}there are templates in {_known()}")
    return LANGUAGES[code]


def language_of_texts(texts: Iterable[str]) -> Language:
    """The language that most of some documents are in; English where that has no templates or cannot be told.

    The latter is said in one line, and so is text in other languages.
    """
    from skipwise.distributed import process_state

    sizes: Counter[str | None] = Counter()
    for text in texts:
        sizes[language_of(text)] += len(text)
    shares = {code: size / sizes.total() for code, size in sizes.most_common() if code is not None and size}
    code = next(iter(shares), None)
    language = LANGUAGES.get(code or "", ENGLISH)
    said = " and ".join(f"{share:.0%} {code}" for code, share in shares.items() if share >= _OTHERS_SHARE)
    if code is None:
        said = "the language of the documents cannot be told"
    elif code not in LANGUAGES:
        said = f"the documents are in a language without templates ({said})"
    elif said.count("%") > 1:
        said = f"the documents are in several languages ({said})"
    else:
        return language
    if process_state().is_main_process:
        logger.warning(
            f"{said}; questions and hidden lines are in {language.name}: to choose, set the language, one of {_known()}"
        )
    return language


def _known() -> str:
    return ", ".join(f"{language.code} ({language.name})" for language in LANGUAGES.values())
