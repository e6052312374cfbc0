"""French wording."""

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
    reasoning=ReasoningWords(
        names="Adèle Bruno Clara Denis Elsa Fabien Gilles Hélène Inès Jules Karim Léa",
        associations=AssociationWords(
            instruction="Le long texte ci-dessous dit ici et là où habitent certaines personnes. Retenez-le\u00a0: "
            "elles vous seront demandées à la fin.\n",
            fact="\n{name} habite juste à côté {landmark}.\n",
            question="\nQui s’est déjà rendu {place}\u00a0?",
            prefix="Le nom de cette personne est",
            landmarks=(
                ("de la tour Eiffel", "en France"),
                ("du Colisée", "en Italie"),
                ("de l’Acropole", "en Grèce"),
                ("de la Sagrada Familia", "en Espagne"),
                ("du Taj Mahal", "en Inde"),
                ("des ruines du Machu Picchu", "au Pérou"),
                ("du Kremlin", "en Russie"),
                ("de l’opéra de Sydney", "en Australie"),
                ("de la porte de Brandebourg", "en Allemagne"),
                ("du Tower Bridge", "en Angleterre"),
                ("du mont Fuji", "au Japon"),
                ("de la Cité interdite", "en Chine"),
                ("du Grand Sphinx", "en Égypte"),
                ("du temple d’Angkor Vat", "au Cambodge"),
                ("de la plage de Copacabana", "au Brésil"),
                ("de la basilique Sainte-Sophie", "en Turquie"),
            ),
        ),
        alike=AlikeWords(
            instruction="Dans le long texte ci-dessous, on demande plusieurs fois les codes de certains lieux, et "
            "un autre code est donné à chaque fois. Retenez-les dans l’ordre\u00a0: l’un d’eux vous sera demandé "
            "à la fin.\n",
            exchange="\nDonnez-moi un code {key}, s’il vous plaît. Le voici\u00a0: {value}.\n",
            question="\nQuel code {key} a été donné la {ordinal} fois\u00a0?",
            prefix="Le voici\u00a0:",
            ordinals=("première", "deuxième", "troisième", "quatrième", "cinquième", "sixième"),
        ),
        walks=AskedWords(
            instruction="Chaque ligne ci-dessous mène d’un nombre à un autre, comme l’indique la flèche. À la fin, "
            "on vous demandera où aboutit un parcours le long de ces lignes.\n",
            question="\nPartez de {start} et suivez les flèches pendant ce nombre de pas\u00a0: {steps}. À quel "
            "nombre arrivez-vous\u00a0?",
            prefix="Le parcours se termine au nombre",
        ),
        chains=ChainWords(
            instruction="Dans le long texte ci-dessous, quelques phrases disent qui possède quel objet et où sont "
            "les gens. Un objet est toujours avec la personne qui le possède. À la fin, on vous demandera où est "
            "un objet.\n",
            takes="\n{name} prend {thing}.\n",
            gives="\n{name} donne {thing} à {other}.\n",
            stays="\n{name} reste {place}.\n",
            things=("la lanterne", "la carte", "la flûte", "le panier"),
            places=(
                "dans la cuisine",
                "dans le jardin",
                "dans la bibliothèque",
                "dans la cave",
                "dans le grenier",
                "dans le garage",
                "dans la chambre",
                "dans le couloir",
            ),
            question="\nOù est {thing} à la fin\u00a0?",
            prefix="Donc {thing} se trouve",
        ),
        shots=ShotWords(
            instruction="Chaque ligne ci-dessous donne trois mots d’un même groupe et le numéro de ce groupe.\n",
            question="\nQuel est le numéro du groupe de ces mots\u00a0: {words}\u00a0?",
            prefix="{words}:",
            classes=(
                "cheval lapin tigre chèvre loup singe éléphant ours mouton chameau écureuil renard",
                "pomme cerise raisin citron pêche prune melon poire orange mangue fraise figue",
                "chemise veste pantalon gant écharpe manteau chaussette pull jupe ceinture robe chapeau",
                "professeur boulanger médecin fermier notaire menuisier peintre plombier infirmier pilote tailleur "
                "juge",
                "violon piano trompette guitare flûte tambour violoncelle harpe clarinette orgue banjo saxophone",
                "vélo camion train tramway bateau avion bus navire tracteur moto fourgon ferry",
            ),
        ),
    ),
)
