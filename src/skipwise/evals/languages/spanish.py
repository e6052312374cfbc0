"""Spanish wording."""

from skipwise.evals.languages.wording import LATIN_NAME, Language, NeedleWords, PasskeyWords, SuiteWords

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
)
