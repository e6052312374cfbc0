"""Japanese wording."""

from skipwise.evals.languages.wording import (
    AlikeWords,
    AskedWords,
    AssociationWords,
    ChainWords,
    Language,
    NeedleWords,
    PasskeyWords,
    ReasoningWords,
    ShotWords,
    SuiteWords,
)

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
    reasoning=ReasoningWords(
        names="佐藤 鈴木 高橋 田中 伊藤 渡辺 山本 中村 小林 加藤 吉田 松井",
        associations=AssociationWords(
            instruction="次の長い文章のところどころに、ある人たちの家がどこにあるかが書かれています。"
            "最後に質問するので、覚えておいてください。\n",
            fact="\n{name}さんの家は{landmark}のすぐ隣です。\n",
            question="\n{place}へ行ったことがあるのは誰ですか。",
            prefix="その人の名前は",
            landmarks=(
                ("エッフェル塔", "フランス"),
                ("コロッセオ", "イタリア"),
                ("アクロポリス", "ギリシャ"),
                ("サグラダ・ファミリア", "スペイン"),
                ("タージ・マハル", "インド"),
                ("マチュ・ピチュの遺跡", "ペルー"),
                ("クレムリン", "ロシア"),
                ("シドニーのオペラハウス", "オーストラリア"),
                ("ブランデンブルク門", "ドイツ"),
                ("タワーブリッジ", "イギリス"),
                ("富士山", "日本"),
                ("紫禁城", "中国"),
                ("大スフィンクス", "エジプト"),
                ("アンコール・ワット", "カンボジア"),
                ("コパカバーナの海岸", "ブラジル"),
                ("アヤソフィア", "トルコ"),
            ),
        ),
        alike=AlikeWords(
            instruction="次の長い文章では、いくつかの場所の暗証番号を何度か尋ね、そのたびに別の番号を答えています。"
            "順番も覚えておいてください。最後に質問します。\n",
            exchange="\n{key}の暗証番号を一つ教えてください。はい、{value}です。\n",
            question="\n{key}の暗証番号として、{ordinal}に答えたものは何ですか。",
            prefix="はい、",
            ordinals=("一番目", "二番目", "三番目", "四番目", "五番目", "六番目"),
        ),
        walks=AskedWords(
            instruction="次の各行は、矢印のとおり、ある数から別の数へ進むことを表します。最後に、"
            "これらの行をたどるとどこに着くかを質問します。\n",
            question="\n{start}から始めて、矢印を{steps}回たどってください。どの数に着きますか。",
            prefix="着いた数は",
        ),
        chains=ChainWords(
            instruction="次の長い文章のところどころに、誰が何を持っていて、誰がどこにいるかが書かれています。"
            "物はいつも、持っている人と一緒にあります。最後に、ある物がどこにあるかを質問します。\n",
            takes="\n{name}さんが{thing}を手に取りました。\n",
            gives="\n{name}さんは{thing}を{other}さんに渡しました。\n",
            stays="\n{name}さんは{place}にいます。\n",
            things=("ランタン", "地図", "笛", "かご"),
            places=("台所", "庭", "書斎", "地下室", "屋根裏", "車庫", "風呂場", "廊下"),
            question="\n最後に{thing}はどこにありますか。",
            prefix="{thing}がある場所は",
        ),
        shots=ShotWords(
            instruction="次の各行には、同じ仲間の三つの言葉と、その仲間の番号が書かれています。\n",
            question="\n{words}の仲間の番号は何ですか。",
            prefix="{words}:",
            classes=(
                "馬 うさぎ 虎 山羊 狼 猿 象 熊 羊 らくだ りす 狐",
                "りんご さくらんぼ ぶどう レモン 桃 すもも メロン 梨 みかん マンゴー いちご いちじく",
                "シャツ 上着 ズボン 手袋 マフラー コート 靴下 セーター スカート ベルト ドレス 帽子",
                "教師 パン職人 医者 農家 弁護士 大工 画家 配管工 看護師 操縦士 仕立屋 裁判官",
                "バイオリン ピアノ トランペット ギター フルート 太鼓 チェロ ハープ クラリネット オルガン バンジョー "
                "サックス",
                "自転車 トラック 電車 路面電車 ボート 飛行機 バス 船 トラクター オートバイ ワゴン車 フェリー",
            ),
        ),
    ),
)
