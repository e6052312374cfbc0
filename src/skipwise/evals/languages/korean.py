"""Korean wording."""

from skipwise.evals.languages.wording import Language, NeedleWords, PasskeyWords, SuiteWords

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
)
