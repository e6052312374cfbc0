"""German wording."""

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
    reasoning=ReasoningWords(
        names="Ada Boris Clara Diego Elena Farid Greta Hugo Ines Jonas Kira Leon",
        associations=AssociationWords(
            instruction="Der folgende lange Text sagt hier und da, wo manche Leute wohnen. Merke es dir: Nach ihnen "
            "wird am Ende gefragt.\n",
            fact="\n{name} wohnt gleich neben {landmark}.\n",
            question="\nWer war schon einmal {place}?",
            prefix="Der Name dieser Person ist",
            landmarks=(
                ("dem Eiffelturm", "in Frankreich"),
                ("dem Kolosseum", "in Italien"),
                ("der Akropolis", "in Griechenland"),
                ("der Sagrada Familia", "in Spanien"),
                ("dem Taj Mahal", "in Indien"),
                ("den Ruinen von Machu Picchu", "in Peru"),
                ("dem Kreml", "in Russland"),
                ("dem Opernhaus von Sydney", "in Australien"),
                ("dem Brandenburger Tor", "in Deutschland"),
                ("der Tower Bridge", "in England"),
                ("dem Berg Fuji", "in Japan"),
                ("der Verbotenen Stadt", "in China"),
                ("der Großen Sphinx", "in Ägypten"),
                ("dem Tempel Angkor Wat", "in Kambodscha"),
                ("dem Strand von Copacabana", "in Brasilien"),
                ("der Hagia Sophia", "in der Türkei"),
            ),
        ),
        alike=AlikeWords(
            instruction="Im folgenden langen Text wird mehrmals nach den Codes einiger Orte gefragt, und jedes Mal "
            "wird ein anderer genannt. Merke sie dir der Reihe nach: Nach einem davon wird am Ende gefragt.\n",
            exchange="\nBitte nenne mir einen Code {key}. Hier ist er: {value}.\n",
            question="\nWelcher Code {key} wurde beim {ordinal} Mal genannt?",
            prefix="Hier ist er:",
            ordinals=("ersten", "zweiten", "dritten", "vierten", "fünften", "sechsten"),
        ),
        walks=AskedWords(
            instruction="Jede Zeile unten führt, wie der Pfeil zeigt, von einer Zahl zu einer anderen. Am Ende wird "
            "gefragt, wohin ein Weg entlang dieser Zeilen führt.\n",
            question="\nBeginne bei {start} und folge den Pfeilen so viele Schritte weit: {steps}. Bei welcher Zahl "
            "kommst du an?",
            prefix="Der Weg endet bei der Zahl",
        ),
        chains=ChainWords(
            instruction="Einige Sätze im folgenden langen Text sagen, wer welches Ding hat und wo die Leute sind. "
            "Ein Ding ist immer bei dem, der es hat. Am Ende wird gefragt, wo ein Ding ist.\n",
            takes="\n{name} nimmt {thing}.\n",
            gives="\n{name} gibt {other} {thing}.\n",
            stays="\n{name} bleibt {place}.\n",
            things=("die Laterne", "die Karte", "die Flöte", "das Buch"),
            places=(
                "in der Küche",
                "im Garten",
                "in der Bibliothek",
                "im Keller",
                "auf dem Dachboden",
                "in der Garage",
                "im Badezimmer",
                "im Flur",
            ),
            question="\nWo ist {thing} am Ende?",
            prefix="Also ist {thing}",
        ),
        shots=ShotWords(
            instruction="Jede Zeile unten nennt drei Wörter einer Gruppe und die Nummer dieser Gruppe.\n",
            question="\nWelche Nummer hat die Gruppe dieser Wörter: {words}?",
            prefix="{words}:",
            classes=(
                "Pferd Kaninchen Tiger Ziege Wolf Affe Elefant Bär Schaf Kamel Eichhörnchen Fuchs",
                "Apfel Kirsche Traube Zitrone Pfirsich Pflaume Melone Birne Orange Mango Erdbeere Feige",
                "Hemd Jacke Hose Handschuh Schal Mantel Socke Pullover Rock Gürtel Kleid Hut",
                "Lehrer Bäcker Arzt Bauer Anwalt Tischler Maler Klempner Pfleger Pilot Schneider Richter",
                "Geige Klavier Trompete Gitarre Flöte Trommel Cello Harfe Klarinette Orgel Banjo Saxofon",
                "Fahrrad Lastwagen Zug Straßenbahn Boot Flugzeug Bus Schiff Traktor Motorrad Lieferwagen Fähre",
            ),
        ),
    ),
)
