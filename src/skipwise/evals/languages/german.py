"""German wording."""

from skipwise.evals.languages.wording import LATIN_NAME, Language, NeedleWords, PasskeyWords, SuiteWords

GERMAN = Language(
    code="de",
    name="German",
    conjunction=" und ",
    abbreviations="bzw ca Nr ggf evtl inkl exkl vgl Abb Kap Dr Prof St",
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
        name=LATIN_NAME,
        document="Dokument {label}",
        which="Dieser Satz steht in einem der Dokumente {labels} oben:\n„{sentence}“\nEr steht in Dokument",
        order_lines="Zwei Zeilen aus dem Text oben, in beliebiger Reihenfolge:\n{lines}"
        "Von diesen beiden steht im Text zuerst",
        order_sentences="Zwei Sätze aus dem Text oben, in beliebiger Reihenfolge:\n{lines}"
        "Von diesen beiden steht im Text zuerst",
    ),
)
