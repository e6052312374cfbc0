"""Korean wording."""

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

KOREAN = Language(
    code="ko",
    name="Korean",
    conjunction=", ",
    # A particle is no word of its own, as a preposition is elsewhere.
    sentence_words=range(8, 31),
    passkey=PasskeyWords(
        instruction="다음의 긴 글 속에 비밀번호가 숨어 있습니다. 찾아서 기억해 두세요. 마지막에 질문합니다.\n",
        filler="강은 넓다. 언덕은 낮다. 길은 멀다. 계속 가자. 저쪽으로 갔다가 다시 집으로 돌아오자.\n",
        needle="비밀번호는 {key}입니다. 기억해 두세요. {key}, 이것이 비밀번호입니다.\n",
        question="비밀번호를 답하십시오. 비밀번호는",
    ),
    needles=NeedleWords(
        instruction="다음의 긴 글에는 어떤 장소의 번호를 알려 주는 줄이 있습니다. 나중에 질문하므로 기억해 두세요.\n",
        needle="\n{key}의 번호는 {value}입니다.\n",
        needle_of_several="\n{key}의 번호 가운데 하나는 {value}입니다.\n",
        question="\n{key}의 번호를 답하십시오. {key}의 번호는",
        question_values="\n{key}의 번호 {count}개를 모두 답하십시오. {key}의 번호 {count}개는",
        question_keys="\n{keys}의 번호를 각각 답하십시오. 같은 순서로 적으면 번호는",
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
        order_lines="위 글에 있는 두 줄을 순서와 상관없이 제시합니다.\n{lines}둘 가운데 글에서 먼저 나오는 것은",
        order_sentences="위 글에 있는 두 문장을 순서와 상관없이 제시합니다.\n{lines}둘 가운데 글에서 먼저 나오는 것은",
    ),
    reasoning=ReasoningWords(
        names="지우 민서 하리 수아 준호 은지 태오 유나 도하 서이 미나 나래",
        associations=AssociationWords(
            instruction="다음의 긴 글 곳곳에 몇몇 사람의 집이 어디인지 적혀 있습니다. 마지막에 질문하므로 기억해 "
            "두세요.\n",
            fact="\n{name}의 집은 {landmark} 바로 옆이다.\n",
            question="\n{place}에 가 본 적이 있는 사람은 누구입니까?",
            prefix="그 사람의 이름은",
            landmarks=(
                ("에펠탑", "프랑스"),
                ("콜로세움", "이탈리아"),
                ("아크로폴리스", "그리스"),
                ("사그라다 파밀리아", "스페인"),
                ("타지마할", "인도"),
                ("마추픽추 유적", "페루"),
                ("크렘린", "러시아"),
                ("시드니 오페라 하우스", "호주"),
                ("브란덴부르크 문", "독일"),
                ("타워 브리지", "영국"),
                ("후지산", "일본"),
                ("자금성", "중국"),
                ("대스핑크스", "이집트"),
                ("앙코르와트", "캄보디아"),
                ("코파카바나 해변", "브라질"),
                ("아야 소피아", "튀르키예"),
            ),
        ),
        alike=AlikeWords(
            instruction="다음의 긴 글에서는 몇몇 장소의 번호를 여러 번 묻고, 그때마다 다른 번호로 답합니다. "
            "순서대로 기억해 두세요. 마지막에 질문합니다.\n",
            exchange="\n{key}의 번호를 하나 알려 주세요. 네, {value}입니다.\n",
            question="\n{key}의 번호를 {ordinal} 물었을 때 답한 것은 무엇입니까?",
            prefix="네,",
            ordinals=("첫 번째로", "두 번째로", "세 번째로", "네 번째로", "다섯 번째로", "여섯 번째로"),
        ),
        walks=AskedWords(
            instruction="아래의 각 줄은 화살표대로 한 수에서 다른 수로 이어집니다. 마지막에 이 줄들을 따라가면 "
            "어디에 도착하는지 질문합니다.\n",
            question="\n{start}에서 시작하여 화살표를 {steps}번 따라가십시오. 어느 수에 도착합니까?",
            prefix="도착한 수는",
        ),
        chains=ChainWords(
            instruction="다음의 긴 글 곳곳에 누가 무엇을 가지고 있고 누가 어디에 있는지 적혀 있습니다. 물건은 "
            "언제나 가진 사람과 함께 있습니다. 마지막에 어떤 물건이 어디에 있는지 질문합니다.\n",
            takes="\n{name}가 {thing}를 집었다.\n",
            gives="\n{name}가 {other}에게 {thing}를 주었다.\n",
            stays="\n{name}는 {place}에 머문다.\n",
            things=("램프", "지도", "피리", "바구니"),
            places=("부엌", "정원", "서재", "지하실", "다락방", "차고", "욕실", "복도"),
            question="\n마지막에 {thing}는 어디에 있습니까?",
            prefix="{thing}가 있는 곳은",
        ),
        shots=ShotWords(
            instruction="아래의 각 줄에는 같은 무리의 낱말 세 개와 그 무리의 번호가 있습니다.\n",
            question="\n다음 낱말이 속한 무리의 번호는 무엇입니까: {words}",
            prefix="{words}:",
            classes=(
                "말 토끼 호랑이 염소 늑대 원숭이 코끼리 곰 양 낙타 다람쥐 여우",
                "사과 체리 포도 레몬 복숭아 자두 멜론 참외 오렌지 망고 딸기 무화과",
                "셔츠 재킷 바지 장갑 목도리 외투 양말 스웨터 치마 허리띠 원피스 모자",
                "교사 제빵사 의사 농부 변호사 목수 화가 배관공 간호사 조종사 재단사 판사",
                "바이올린 피아노 트럼펫 기타 플루트 북 첼로 하프 클라리넷 오르간 밴조 색소폰",
                "자전거 트럭 기차 전차 보트 비행기 버스 배 트랙터 오토바이 승합차 여객선",
            ),
        ),
    ),
)
