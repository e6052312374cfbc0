"""English wording."""

from skipwise.evals.languages.wording import LATIN_NAME, Language, NeedleWords, PasskeyWords, SuiteWords

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
)
