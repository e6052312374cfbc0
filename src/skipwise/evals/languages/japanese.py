"""Japanese wording."""

from skipwise.evals.languages.wording import Language, NeedleWords, PasskeyWords, SuiteWords

# Together they make no word or name of the dictionaries IPADIC and EDICT.
_KATAKANA = (
    "ガ ギ ゴ ザ ゼ ゾ ダ ド ビ ベ ラ リ ル レ ロ ヌ ネ モ",
    "ガ ザ ズ ゼ ゾ ダ デ ド バ ベ ボ ヴァ ラ レ ロ ムー ネー モー",
    "カ ギ ゲ ザ ゾ タ デ ド ナ バ ビ ボ マ メ モ ヤ ロ ワ",
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
        question="暗証番号を答えてください。暗証番号は",
    ),
    needles=NeedleWords(
        instruction="次の長い文章には、ある場所の番号を示す行がいくつかあります。後で質問するので、覚えておいてください。"
        "\n",
        needle="\n{key}の番号は{value}です。\n",
        needle_of_several="\n{key}の番号の一つは{value}です。\n",
        question="\n{key}の番号を答えてください。{key}の番号は",
        question_values="\n{key}の{count}個の番号をすべて答えてください。{key}の{count}個の番号は",
        question_keys="\n{keys}の番号をそれぞれ答えてください。同じ順に並べると、番号は",
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
