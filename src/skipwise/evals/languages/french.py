"""French wording."""

from skipwise.evals.languages.wording import LATIN_NAME, Language, NeedleWords, PasskeyWords, SuiteWords

# Before a colon and a question mark, and inside quotation marks, French has a space that does not break the line.
FRENCH = Language(
    code="fr",
    name="French",
    conjunction=" et ",
    abbreviations="cf env MM chap vol fig",
    passkey=PasskeyWords(
        instruction="Un code secret est caché dans le long texte ci-dessous. Trouvez-le et retenez-le\u00a0; il vous "
        "sera demandé à la fin.\n",
        filler="La rivière est large. Les collines sont basses. La route est longue. En avant. Là-bas, puis retour à "
        "la maison.\n",
        needle="Le code secret est {key}. Retenez-le. {key} est le code secret.\n",
        question="Quel est le code secret\u00a0? Le code secret est",
    ),
    needles=NeedleWords(
        instruction="Certaines lignes du long texte ci-dessous donnent le numéro d’un lieu. Retenez "
        "ces numéros\u00a0: ils vous seront demandés.\n",
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
        name=LATIN_NAME,
        document="Document {label}",
        which="Cette phrase se trouve dans l’un des documents {labels} ci-dessus\u00a0:\n«\u00a0{sentence}\u00a0»\n"
        "Elle se trouve dans le document",
        order_lines="Deux lignes du texte ci-dessus, dans un ordre quelconque\u00a0:\n{lines}"
        "Des deux, celle qui vient en premier dans le texte est",
        order_sentences="Deux phrases du texte ci-dessus, dans un ordre quelconque\u00a0:\n{lines}"
        "Des deux, celle qui vient en premier dans le texte est",
    ),
)
