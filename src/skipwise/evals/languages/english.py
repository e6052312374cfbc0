"""English wording."""

from skipwise.evals.languages.wording import (
    LATIN_NAME,
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
        name=LATIN_NAME,
        document="Document {label}",
        which='This sentence stands in one of the documents {labels} above:\n"{sentence}"\nIt stands in Document',
        order_lines="Two lines of the text above, in no particular order:\n{lines}"
        "Of these two, the one that comes first in the text is",
        order_sentences="Two sentences of the text above, in no particular order:\n{lines}"
        "Of these two, the one that comes first in the text is",
    ),
    reasoning=ReasoningWords(
        names="Ada Boris Clara Diego Elena Farid Greta Hugo Ines Jonas Kira Leon",
        associations=AssociationWords(
            instruction="The long text below says here and there where some people live. Remember it: they are "
            "asked for at the end.\n",
            fact="\n{name} lives right beside {landmark}.\n",
            question="\nWho has been {place}?",
            prefix="That person's name is",
            landmarks=(
                ("the Eiffel Tower", "to France"),
                ("the Colosseum", "to Italy"),
                ("the Acropolis", "to Greece"),
                ("the Sagrada Familia", "to Spain"),
                ("the Taj Mahal", "to India"),
                ("the ruins of Machu Picchu", "to Peru"),
                ("the Kremlin", "to Russia"),
                ("the Sydney Opera House", "to Australia"),
                ("the Brandenburg Gate", "to Germany"),
                ("Tower Bridge", "to England"),
                ("Mount Fuji", "to Japan"),
                ("the Forbidden City", "to China"),
                ("the Great Sphinx", "to Egypt"),
                ("the temple of Angkor Wat", "to Cambodia"),
                ("Copacabana beach", "to Brazil"),
                ("the Hagia Sophia", "to Turkey"),
            ),
        ),
        alike=AlikeWords(
            instruction="In the long text below, codes for some places are asked for several times, and each time "
            "another one is given. Remember them in order: one is asked for at the end.\n",
            exchange="\nPlease give me a code for {key}. Here you are: {value}.\n",
            question="\nWhich code was given for {key} the {ordinal} time?",
            prefix="Here you are:",
            ordinals=("first", "second", "third", "fourth", "fifth", "sixth"),
        ),
        walks=AskedWords(
            instruction="Each line below leads from one number to another, as the arrow shows. You are asked where "
            "a walk along these lines ends.\n",
            question="\nStart at {start} and follow the arrows for this many steps: {steps}. At which number do you "
            "arrive?",
            prefix="The walk ends at the number",
        ),
        chains=ChainWords(
            instruction="Some sentences in the long text below say who has which thing and where people are. A "
            "thing is always with the person who has it. You are asked where a thing is in the end.\n",
            takes="\n{name} takes {thing}.\n",
            gives="\n{name} gives {thing} to {other}.\n",
            stays="\n{name} stays {place}.\n",
            things=("the lantern", "the map", "the flute", "the basket"),
            places=(
                "in the kitchen",
                "in the garden",
                "in the library",
                "in the cellar",
                "in the attic",
                "in the garage",
                "in the bathroom",
                "in the hallway",
            ),
            question="\nWhere is {thing} in the end?",
            prefix="So {thing} is",
        ),
        shots=ShotWords(
            instruction="Each line below has three words of one group and the number of that group.\n",
            question="\nWhich number does the group of these words have: {words}?",
            prefix="{words}:",
            classes=(
                "horse rabbit tiger goat wolf monkey elephant bear sheep camel squirrel fox",
                "apple cherry grape lemon peach plum melon pear orange mango strawberry fig",
                "shirt jacket trousers glove scarf coat sock sweater skirt belt dress hat",
                "teacher baker doctor farmer lawyer carpenter painter plumber nurse pilot tailor judge",
                "violin piano trumpet guitar flute drum cello harp clarinet organ banjo saxophone",
                "bicycle truck train tram boat airplane bus ship tractor motorcycle van ferry",
            ),
        ),
    ),
)
