"""Plain English words for keys and word lists."""

_ADJECTIVES = """
able acid agile airy alert alive ample amber ancient angry arctic arid ashen astute autumn awake azure bald bare
bashful basic bitter black bland blank bleak blind blond blue blunt bold brave brief bright brisk broad broken
bronze brown bulky burly busy calm candid careful casual cautious cheap cheerful chief chilly choosy civic civil
classic clean clear clever cloudy clumsy coarse coastal cold comic common cool copper coral cosmic cozy crafty
creamy crimson crisp crooked crude curious curly cyan daily damp daring dark dazed deaf dear decent deep dense
dim direct distant dizzy docile double drab dreamy dry dual dull dusty eager early earnest eastern easy elder
elegant emerald empty endless equal even exact exotic faint fair faithful famous fancy fast fearless feisty
fertile festive fierce final fine firm fit flaky flat fleet fluffy fond foreign formal forward frail frank free
fresh friendly frosty frozen frugal funny fuzzy gallant gaunt gentle giant gifted glad gleeful global gloomy glossy
golden good graceful grand grassy grateful gray great greedy green gritty groovy gruff hairy handy happy hardy
harsh hasty hazel heavy helpful hidden high hollow honest hopeful hot huge humble humid hungry icy ideal idle
immense indigo inland inner ivory jagged jolly jovial joyful juicy keen kind known lame large late lavish lazy lean
legal level light likely limp lively local lofty lonely long loose loud lovely low loyal lucid lucky lunar lush
magenta major marine maroon massive mature meek mellow merry mighty mild minor misty mobile modern modest moist
moral muddy mute narrow native neat nervous new nimble noble noisy northern novel odd olive open orange ornate
outer oval pale patient pearly perfect placid plain plump polar polite poor prime private prompt proper proud
public pure purple quaint quick quiet rapid rare raw ready regal remote rich rigid ripe robust rocky rosy rough
round royal ruby rude rugged rural rustic rusty sacred salty sandy scarce scarlet secret serene shabby shady
shallow sharp shiny short shrewd shy silent silky silly silver simple sleek sleepy slender slim slow sly small
smart smoky smooth snowy sober soft solar solemn solid sour southern spare spicy stable stale stark steady steep
sterile stern sticky stiff stormy stout strange strict strong sturdy subtle sudden sunny super sweet swift tame
tangy tart tasty teal tender tense thick thin thirsty tidy tiny tired tough tranquil true upper urban urgent
useful usual vague vain valid vast velvet verbal violet vital vivid warm wary wavy weak wealthy weary western wet
whole wide wild windy wise witty wooden worthy yellow young zealous
"""

_NOUNS = """
acorn actor airport album alley almond anchor ankle antler apple apron arch arena arrow artist atlas attic avenue
badge bagel bakery ballad balloon bamboo banjo banner barley barn barrel basin basket beach beacon beaver beetle
bell bench bicycle biscuit blanket blossom boat bonfire book boot border bottle boulder bowl branch bread breeze
brick bridge brook broom brush bucket buffalo bugle burrow butter button cabbage cabin cable cactus camel camera
canal candle canoe canvas canyon captain caravan cargo carpet carrot castle cattle cavern cedar cellar cello
cement chair chalk chapel cherry chess chimney cinema circus citron clarinet clay cliff cloak clock clover coach
cobalt cobra coffee comet compass concert copy cork cottage cotton cougar cradle crane crater crayon creek cricket
crown cruiser crystal cupboard curtain cushion daisy dancer dawn desert desk diamond dinner dolphin donkey door
dragon drawer dream drum duchess dune eagle easel echo elbow elephant elm ember engine envelope falcon farm
feather fence fern ferry fiddle field finch finger flag flame flask flute forest fork fossil fountain fox galaxy
garage garden garlic garnet gate gazelle geyser ginger giraffe glacier glade globe glove goat goose gopher grape
gravel grove guitar gutter hammer hammock harbor harp harvest hat hawk heath hedge helmet herald heron hill hive
honey hood horizon horn horse hotel hound igloo inlet insect island ivy jacket jaguar jar jasmine jersey jewel
jigsaw journal judge jungle kayak kennel kettle kitchen kite kitten koala label lagoon lake lamp lantern laptop
lark lava lawn leaf lemon leopard letter library lily linen lion lizard lobster locket lodge loft lotus lumber lynx
magnet magpie mango mantle map maple marble market marsh meadow medal melon mesa meteor mill mint mirror mitten
monkey moon moose mosaic moss motor mountain muffin museum mushroom napkin nectar needle nest nickel nugget oak
oasis oat ocean octopus office onion opal opera orchard orchid organ osprey otter oven owl oyster paddle palace
panda panther paper parade parcel parrot pasture peach peacock pebble pelican pencil pepper petal piano pigeon
pillow pilot pine pirate planet plank plaza plow pocket poem pollen pond pony poplar porch potato pottery prairie
prism puddle pulley pumpkin puppet puzzle pyramid quarry quartz quilt rabbit raccoon radio radish raft railway
rain raisin ranch raven razor reef ribbon rice riddle river robin rocket roof rope rudder sailor salad salmon
sandal saucer school scooter sea seed shadow shark shed sheep shelf shell shield ship shoe shovel shrimp signal
silk skate sketch sled slipper snail snow sofa sparrow spider spinach spiral spoon spruce square squid
stadium stairs star statue stone stove straw stream street studio summit sunset swamp swan sweater table tablet
talon tavern teacher teapot temple tent theater thistle thunder ticket tiger timber toast tomato topaz torch
tornado tower tractor trail train trumpet tulip tunnel turban turnip turtle tutor umbrella valley vase village
vine vineyard violin volcano voyage wagon walnut walrus water whale wheat whistle willow window winter wolf wombat
wren yacht yarn zebra zipper
"""

_VERBS = """
absorb accept achieve admire admit adopt advise afford agree allow amuse announce answer appear applaud approve
argue arrange arrive assist attach attend avoid bake balance become begin behave believe belong bend blame bless
boil borrow bounce breathe build bury calculate carry catch celebrate challenge chew choose climb collect combine
compare compete complain confess confuse connect consider contain continue correct count cover create crawl deceive
decide decorate delay deliver depend describe deserve destroy develop digest disagree discover dissolve divide
donate doubt educate embrace employ encourage enjoy enter escape examine excite exist expand expect explain
explore extend fasten fetch flourish follow forgive gather glance govern greet grind guess happen hesitate
hurry identify ignore imagine improve include increase inform inhale inject invent invite juggle kneel knock
laugh launch learn listen manage measure memorize mend migrate multiply murmur notice obey observe obtain occur
offend operate perform persuade polish possess practice praise predict prefer prepare pretend prevent produce
promise pronounce protect provide punish purchase pursue realize receive recognize recommend reduce refuse regret
rejoice relax rely remain remember remove repair repeat replace reply rescue resemble retire return reveal rinse
scatter scold scrub search select separate settle shiver shrug sneeze solve spoil sprinkle squeeze stretch struggle
stumble succeed suffer suggest supply support suppose surprise surround survive suspect swallow tempt thank
tolerate translate travel tremble unite unlock vanish wander whisper wonder worry yawn yield
"""

ADJECTIVES = tuple(_ADJECTIVES.split())
NOUNS = tuple(_NOUNS.split())
VERBS = tuple(_VERBS.split())
