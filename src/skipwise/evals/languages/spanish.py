"""Spanish wording."""

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

SPANISH = Language(
    code="es",
    name="Spanish",
    conjunction=" y ",
    abbreviations="Sr Sra Dr Dra núm pág cap fig",
    passkey=PasskeyWords(
        instruction="En el largo texto siguiente hay escondida una clave. Búscala y recuérdala; se pregunta por ella "
        "al final.\n",
        filler="El río es ancho. Las colinas son bajas. El camino es largo. Seguimos adelante. Hasta allí y de vuelta "
        "a casa.\n",
        needle="La clave es {key}. Recuérdala. {key} es la clave.\n",
        question="¿Cuál es la clave? La clave es",
    ),
    needles=NeedleWords(
        instruction="Algunas líneas del largo texto siguiente dan el número de un lugar. Recuérdalas: se pregunta por "
        "ellas.\n",
        needle="\nEl número {key} es {value}.\n",
        needle_of_several="\nUno de los números {key} es {value}.\n",
        question="\n¿Cuál es el número {key}? El número {key} es",
        question_values="\n¿Cuáles son los {count} números {key}? Los {count} números {key} son",
        question_keys="\n¿Cuáles son los números {keys}? En el mismo orden, los números son",
        key="del {noun} {adjective}",
        adjectives="tranquilo ancho estrecho plateado dorado escondido lejano torcido ventoso oxidado pintado helado "
        "soleado hueco empinado hundido cobrizo arenoso brumoso antiguo modesto solitario sombreado perfumado "
        "polvoriento salado",
        nouns="puerto puente huerto molino jardín valle mercado túnel castillo bosque cañón pueblo taller viñedo museo "
        "establo faro teatro muelle embalse monasterio prado barranco sendero palacio lago",
    ),
    suite=SuiteWords(
        instruction="Lee el texto siguiente. Al final hay una pregunta sobre él.\n\n",
        repeated="Una frase del texto anterior se repite aquí palabra por palabra:\n«{beginning}",
        facts=(
            "El código de acceso del almacén {name} es el {number}.",
            "La última factura de la empresa {name} lleva el número {number}.",
            "El envío para {name} lleva el número {number}.",
            "La línea de emergencia de la oficina {name} tiene el número {number}.",
            "El número de serie de la bomba {name} es el {number}.",
            "El registro de la propiedad recoge la finca {name} con el número {number}.",
            "El archivo guarda el expediente {name} en el estante número {number}.",
            "La póliza de seguro del molino {name} tiene el número {number}.",
        ),
        name=LATIN_NAME,
        document="Documento {label}",
        which="Esta frase está en uno de los documentos {labels} anteriores:\n«{sentence}»\nEstá en el documento",
        order_lines="Dos líneas del texto anterior, sin ningún orden en particular:\n{lines}"
        "De las dos, la que aparece primero en el texto es",
        order_sentences="Dos frases del texto anterior, sin ningún orden en particular:\n{lines}"
        "De las dos, la que aparece primero en el texto es",
    ),
    reasoning=ReasoningWords(
        names="Ana Bruno Clara Diego Elena Félix Gloria Hugo Inés Javier Lucía Mateo",
        associations=AssociationWords(
            instruction="El largo texto siguiente dice aquí y allá dónde viven algunas personas. Recuérdalo: se "
            "pregunta por ellas al final.\n",
            fact="\n{name} vive justo al lado {landmark}.\n",
            question="\n¿Quién ha estado alguna vez {place}?",
            prefix="El nombre de esa persona es",
            landmarks=(
                ("de la torre Eiffel", "en Francia"),
                ("del Coliseo", "en Italia"),
                ("de la Acrópolis", "en Grecia"),
                ("de la Sagrada Familia", "en España"),
                ("del Taj Mahal", "en la India"),
                ("de las ruinas de Machu Picchu", "en Perú"),
                ("del Kremlin", "en Rusia"),
                ("de la Ópera de Sídney", "en Australia"),
                ("de la Puerta de Brandeburgo", "en Alemania"),
                ("del Tower Bridge", "en Inglaterra"),
                ("del monte Fuji", "en Japón"),
                ("de la Ciudad Prohibida", "en China"),
                ("de la Gran Esfinge", "en Egipto"),
                ("del templo de Angkor Wat", "en Camboya"),
                ("de la playa de Copacabana", "en Brasil"),
                ("de la basílica de Santa Sofía", "en Turquía"),
            ),
        ),
        alike=AlikeWords(
            instruction="En el largo texto siguiente se piden varias veces códigos de algunos lugares, y cada vez "
            "se da otro. Recuérdalos en orden: al final se pregunta por uno de ellos.\n",
            exchange="\nPor favor, dame un código {key}. Aquí lo tienes: {value}.\n",
            question="\n¿Qué código {key} se dio la {ordinal} vez?",
            prefix="Aquí lo tienes:",
            ordinals=("primera", "segunda", "tercera", "cuarta", "quinta", "sexta"),
        ),
        walks=AskedWords(
            instruction="Cada línea de abajo lleva de un número a otro, como indica la flecha. Al final se pregunta "
            "dónde termina un recorrido por estas líneas.\n",
            question="\nEmpieza en {start} y sigue las flechas tantos pasos: {steps}. ¿A qué número llegas?",
            prefix="El recorrido acaba en el número",
        ),
        chains=ChainWords(
            instruction="En el largo texto siguiente, algunas frases dicen quién tiene qué objeto y dónde está la "
            "gente. Un objeto está siempre con quien lo tiene. Al final se pregunta dónde está un objeto.\n",
            takes="\n{name} toma {thing}.\n",
            gives="\n{name} le da {thing} a {other}.\n",
            stays="\n{name} se queda {place}.\n",
            things=("la linterna", "el mapa", "la flauta", "la cesta"),
            places=(
                "en la cocina",
                "en el jardín",
                "en la biblioteca",
                "en el sótano",
                "en el desván",
                "en el garaje",
                "en el baño",
                "en el pasillo",
            ),
            question="\n¿Dónde está {thing} al final?",
            prefix="Por lo tanto, {thing} está",
        ),
        shots=ShotWords(
            instruction="Cada línea de abajo tiene tres palabras de un grupo y el número de ese grupo.\n",
            question="\n¿Qué número tiene el grupo de estas palabras: {words}?",
            prefix="{words}:",
            classes=(
                "caballo conejo tigre cabra lobo mono elefante oso oveja camello ardilla zorro",
                "manzana cereza uva limón melocotón ciruela melón pera naranja mango fresa higo",
                "camisa chaqueta pantalón guante bufanda abrigo calcetín jersey falda cinturón vestido sombrero",
                "profesor panadero médico granjero abogado carpintero pintor fontanero enfermero piloto sastre juez",
                "violín piano trompeta guitarra flauta tambor violonchelo arpa clarinete órgano banjo saxofón",
                "bicicleta camión tren tranvía barca avión autobús barco tractor motocicleta furgoneta transbordador",
            ),
        ),
    ),
)
