"""Chinese wording."""

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

# Characters of transliterated names. Three of them often make a known one, such as 霍姆斯; four make none that the
# dictionary of jieba has.
_CHINESE_NAME = (
    "沃 坎 洛 莫 萨 塔 佩 格 弗 鲁 兹 科 克 涅 霍 迪 瓦 卡 索 泽",
    "里 拉 莱 罗 洛 鲁 诺 纳 奈 梅 姆 维 塞 达 多 菲 贝 泰",
    "布 加 波 莱 内 罗 维 托 梅 尼",
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
        question="请说出密码。密码是",
    ),
    needles=NeedleWords(
        instruction="下面的长文中，有几行给出了某个地方的号码。请记住它们，后面会问到。\n",
        needle="\n{key}的号码是{value}。\n",
        needle_of_several="\n{key}的号码之一是{value}。\n",
        question="\n请说出{key}的号码。{key}的号码是",
        question_values="\n请说出{key}的全部{count}个号码。{key}的{count}个号码是",
        question_keys="\n请分别说出{keys}的号码。按同样的顺序，号码是",
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
    reasoning=ReasoningWords(
        names="王芳 李伟 张敏 刘洋 陈静 杨帆 赵磊 黄丽 周强 吴娜 徐杰 孙悦",
        associations=AssociationWords(
            instruction="下面的长文中，有几处写着某些人住在哪里。请记住它们，最后会问到这些人。\n",
            fact="\n{name}就住在{landmark}旁边。\n",
            question="\n谁去过{place}？",
            prefix="这个人的名字是",
            landmarks=(
                ("埃菲尔铁塔", "法国"),
                ("罗马斗兽场", "意大利"),
                ("雅典卫城", "希腊"),
                ("圣家族大教堂", "西班牙"),
                ("泰姬陵", "印度"),
                ("马丘比丘遗址", "秘鲁"),
                ("克里姆林宫", "俄罗斯"),
                ("悉尼歌剧院", "澳大利亚"),
                ("勃兰登堡门", "德国"),
                ("伦敦塔桥", "英国"),
                ("富士山", "日本"),
                ("紫禁城", "中国"),
                ("狮身人面像", "埃及"),
                ("吴哥窟", "柬埔寨"),
                ("科帕卡巴纳海滩", "巴西"),
                ("圣索菲亚大教堂", "土耳其"),
            ),
        ),
        alike=AlikeWords(
            instruction="下面的长文中，有人多次询问几个地方的密码，每次得到的密码都不同。请按顺序记住它们，"
            "最后会问到其中一个。\n",
            exchange="\n请给我一个{key}的密码。给您：{value}。\n",
            question="\n{ordinal}询问{key}的密码时，给出的是哪一个？",
            prefix="给您：",
            ordinals=("第一次", "第二次", "第三次", "第四次", "第五次", "第六次"),
        ),
        walks=AskedWords(
            instruction="下面每一行按箭头从一个数通向另一个数。最后会问沿着这些行走会到达哪里。\n",
            question="\n从{start}出发，沿箭头走{steps}步。会到达哪个数？",
            prefix="到达的数是",
        ),
        chains=ChainWords(
            instruction="下面的长文中，有些句子说明谁拿着什么东西、谁在哪里。东西总是跟拿着它的人在一起。"
            "最后会问某样东西在哪里。\n",
            takes="\n{name}拿起了{thing}。\n",
            gives="\n{name}把{thing}交给了{other}。\n",
            stays="\n{name}待在{place}里。\n",
            things=("灯笼", "地图", "笛子", "篮子"),
            places=("厨房", "花园", "书房", "地下室", "阁楼", "车库", "浴室", "走廊"),
            question="\n最后{thing}在哪里？",
            prefix="所以{thing}现在位于",
        ),
        shots=ShotWords(
            instruction="下面每一行有同一类的三个词和这一类的编号。\n",
            question="\n{words}属于哪个编号的类？",
            prefix="{words}:",
            classes=(
                "马 兔子 老虎 山羊 狼 猴子 大象 熊 绵羊 骆驼 松鼠 狐狸",
                "苹果 樱桃 葡萄 柠檬 桃子 李子 甜瓜 梨 橙子 芒果 草莓 无花果",
                "衬衫 夹克 裤子 手套 围巾 大衣 袜子 毛衣 裙子 腰带 礼服 帽子",
                "教师 面包师 医生 农民 律师 木匠 画家 水管工 护士 飞行员 裁缝 法官",
                "小提琴 钢琴 小号 吉他 长笛 鼓 大提琴 竖琴 单簧管 管风琴 班卓琴 萨克斯",
                "自行车 卡车 火车 电车 小船 飞机 公共汽车 轮船 拖拉机 摩托车 面包车 渡轮",
            ),
        ),
    ),
)
