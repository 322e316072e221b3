"""What the text generator knows: animals with their names, groups and sounds, and other sounds.

Names are spelt as in the recordings' tables. The descriptions are our own, after field guides.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

from NatureLM.errors import NatureLMError

GROUPS = ("bird", "frog", "mammal")
NO_GROUP = "none"


@dataclass(frozen=True)
class Source:
    """Something that makes a sound.

    name: common name, or what a sound without an animal is called ("Rain")
    scientific: scientific name, empty where there is none (groups of species, sounds)
    group: "bird", "frog", "mammal", or "none" if it is no animal
    phrases: short descriptions of the sound, lower case
    caption: a sentence about it
    """

    name: str
    scientific: str
    group: str
    phrases: tuple[str, ...]
    caption: str

    @property
    def is_animal(self) -> bool:
        return self.group != NO_GROUP


# name | scientific name | group | phrases, split by ";" | caption (if not "A … calls.")
_HEARD = """
Bird||bird|bird song;chirping and whistling of a bird|A bird sings.
Cat|Felis catus|mammal|meowing;a cat's meow;purring and meowing|A cat meows.
Dog|Canis familiaris|mammal|barking;a dog's bark;short loud barks|A dog barks.
Cow|Bos taurus|mammal|mooing;a long low moo|A cow moos.
Sheep|Ovis aries|mammal|bleating;a trembling bleat|A sheep bleats.
Lion|Panthera leo|mammal|roaring;a deep roar and grunts|A lion roars.
Frog||frog|croaking;the croak of a frog|A frog croaks.
Chicken|Gallus gallus|bird|clucking;clucks of a hen|A chicken clucks.
Monkey||mammal|screeching and hooting;chatter of a monkey|A monkey screeches.
Donkey|Equus asinus|mammal|braying;a loud hee-haw|A donkey brays.
Senegal Running Frog|Kassina senegalensis|frog|a rising pop like a drop of water|
California Red-legged Frog|Rana draytonii|frog|soft low grunts ending in a growl|
Marbled Tropical Bullfrog|Adenomera marmorata|frog|short piping notes in a row|
Lutz Poison Frog|Ameerega flavopicta|frog|a fast trill of short high notes|
Oval Frog|Elachistocleis ovalis|frog|a long thin whistle like an insect|
Mexican Spadefoot|Spea multiplicata|frog|a slow rattle like a nail over a comb|
Skittering Frog|Euphlyctis cyanophlyctis|frog|dry rattling clucks|
Guinle Treefrog|Aplastodiscus leucopygius|frog|single clear flute-like notes|
Common Cuckoo|Cuculus canorus|bird|two falling notes, cuck-oo;a falling third|
American Toad|Anaxyrus americanus|frog|a long musical trill|
Squirrel Treefrog|Dryophytes squirellus|frog|a nasal quack again and again|
European Nightjar|Caprimulgus europaeus|bird|a long even churring|
Barn Owl|Tyto alba|bird|a harsh drawn-out screech;hissing|
Eurasian Bullfinch|Pyrrhula pyrrhula|bird|a soft sad piping whistle|
Grey Go-away-bird|Crinifer concolor|bird|a nasal drawn-out go-away|
Asian Koel|Eudynamys scolopaceus|bird|loud rising ko-el notes|
Montezuma Oropendola|Psarocolius montezuma|bird|a bubbling gurgle that climbs|
Rook|Corvus frugilegus|bird|hoarse flat caws|
Southern Leopard Frog|Lithobates sphenocephalus|frog|chuckles like a rubbed balloon|
Eastern Cricket Frog|Acris crepitans|frog|clicks like two pebbles|
Upland Chorus Frog|Pseudacris feriarum|frog|a short rising creak of a comb|
Eastern Narrowmouth Toad|Gastrophryne carolinensis|frog|a buzzing nasal bleat|
Eastern Spadefoot|Scaphiopus holbrookii|frog|an explosive low groan|
Little Grass Frog|Pseudacris ocularis|frog|a tiny tinkling at the edge of hearing|
Rooster|Gallus gallus|bird|crowing;a loud cock-a-doodle-doo|A rooster crows.
Rain||none|falling rain;drops on leaves and ground|Rain falls.
Sea waves||none|waves on a beach;surf that comes and goes|Sea waves break on the shore.
Fire crackling||none|crackling and snapping of a fire|A fire crackles.
Helicopter||none|rotor blades beating;a helicopter overhead|A helicopter flies by.
Chainsaw||none|a roaring saw motor;a saw cutting wood|A chainsaw runs.
Clock tick||none|even ticking;a clock|A clock ticks.
Baby cry||none|a crying baby;wailing of an infant|A baby cries.
Person sneeze||none|a sneeze;somebody sneezing|A person sneezes.
"""

# Known to the language model by name only: no recording of these is used in training.
_NAMED = """
Spring Peeper|Pseudacris crucifer|frog|clear rising peeps|
Southern Chorus Frog|Pseudacris nigrita|frog|a slow ratchet|
Barking Treefrog|Dryophytes gratiosus|frog|hollow barks from the water|
American Bullfrog|Lithobates catesbeianus|frog|a deep jug-o-rum|
Green Treefrog|Dryophytes cinereus|frog|ringing quank notes like a cowbell|
Gray Treefrog|Dryophytes versicolor|frog|a short loud purring trill|
Wood Frog|Lithobates sylvaticus|frog|soft duck-like quacking|
Common Frog|Rana temporaria|frog|a quiet low growl|
Natterjack Toad|Epidalea calamita|frog|a loud rolling churr|
European Tree Frog|Hyla arborea|frog|a quick kek-kek-kek|
American Woodcock|Scolopax minor|bird|a nasal peent|
Northern Bobwhite|Colinus virginianus|bird|a whistled bob-white|
Wood Thrush|Hylocichla mustelina|bird|a flute-like ee-oh-lay|
Barred Owl|Strix varia|bird|eight hoots in a rhythm|
Scarlet Tanager|Piranga olivacea|bird|a hoarse robin-like song|
Common Loon|Gavia immer|bird|long wails over a lake|
Great Horned Owl|Bubo virginianus|bird|five deep hoots|
Hairy Woodpecker|Leuconotopicus villosus|bird|a fast drum on wood|
American Herring Gull|Larus smithsonianus|bird|loud laughing cries|
Indigo Bunting|Passerina cyanea|bird|high paired phrases|
Clapper Rail|Rallus crepitans|bird|clattering kek notes|
Downy Woodpecker|Dryobates pubescens|bird|a falling whinny|
Northern Cardinal|Cardinalis cardinalis|bird|loud slurred whistles|
Tufted Titmouse|Baeolophus bicolor|bird|peter-peter-peter|
Eastern Towhee|Pipilo erythrophthalmus|bird|drink-your-tea|
Black-capped Chickadee|Poecile atricapillus|bird|chick-a-dee-dee|
Eastern Wood-Pewee|Contopus virens|bird|a slow pee-a-wee|
Blue Jay|Cyanocitta cristata|bird|harsh jay cries|
Cedar Waxwing|Bombycilla cedrorum|bird|thin high whistles|
Rock Dove|Columba livia|bird|cooing|
House Finch|Haemorhous mexicanus|bird|a jumbled warble|
Eastern Phoebe|Sayornis phoebe|bird|a raspy fee-bee|
Baltimore Oriole|Icterus galbula|bird|rich whistled notes|
Brown-headed Cowbird|Molothrus ater|bird|a liquid gurgle|
Eastern Kingbird|Tyrannus tyrannus|bird|electric sputtering|
House Sparrow|Passer domesticus|bird|cheerful chirrups|
Ring-necked Pheasant|Phasianus colchicus|bird|a harsh double crow|
Bald Eagle|Haliaeetus leucocephalus|bird|weak high chattering|
American Robin|Turdus migratorius|bird|cheer-up phrases|
Lazuli Bunting|Passerina amoena|bird|bright hurried notes|
Common Blackbird|Turdus merula|bird|mellow fluting|
Great Tit|Parus major|bird|teacher-teacher|
Tawny Owl|Strix aluco|bird|a quavering hoot|
Carrion Crow|Corvus corone|bird|rough caws|
Common Raven|Corvus corax|bird|deep croaks|
Eurasian Wren|Troglodytes troglodytes|bird|a loud rattling song|
Eurasian Skylark|Alauda arvensis|bird|an endless song in the sky|
Common Chaffinch|Fringilla coelebs|bird|a falling rattle with a flourish|
Mallard|Anas platyrhynchos|bird|quacking|A mallard quacks.
Wild Turkey|Meleagris gallopavo|bird|gobbling|A wild turkey gobbles.
Gray Wolf|Canis lupus|mammal|a long howl;howling|A gray wolf howls.
Coyote|Canis latrans|mammal|yips and howls|A coyote howls.
Red Fox|Vulpes vulpes|mammal|a hoarse scream|A red fox screams.
Horse|Equus caballus|mammal|neighing|A horse neighs.
Pig|Sus domesticus|mammal|grunting and squealing|A pig grunts.
Goat|Capra hircus|mammal|a throaty bleat|A goat bleats.
Tiger|Panthera tigris|mammal|a long moaning roar|A tiger roars.
African Elephant|Loxodonta africana|mammal|trumpeting|An African elephant trumpets.
Brown Bear|Ursus arctos|mammal|huffs and growls|A brown bear growls.
Red Deer|Cervus elaphus|mammal|a hoarse bellow|A red deer bellows.
Elk|Cervus canadensis|mammal|bugling|An elk bugles.
Red Squirrel|Sciurus vulgaris|mammal|quick chucks|A red squirrel chatters.
Spotted Hyena|Crocuta crocuta|mammal|whoops and laughs|A spotted hyena whoops.
Chimpanzee|Pan troglodytes|mammal|pant-hoots|A chimpanzee hoots.
Humpback Whale|Megaptera novaeangliae|mammal|long moans under water|A humpback whale sings.
Killer Whale|Orcinus orca|mammal|pulsed calls and clicks|
Bottlenose Dolphin|Tursiops truncatus|mammal|whistles and clicks|A bottlenose dolphin whistles.
Harbor Seal|Phoca vitulina|mammal|a guttural roar|
Wind||none|wind in the trees;howling wind|Wind blows.
Thunder||none|rolling thunder|Thunder rolls.
Car||none|a passing car;engine noise|A car passes.
Stream||none|running water|A stream flows.
Church bell||none|ringing of a bell|A bell rings.
Footsteps||none|steps on gravel|Someone walks.
"""


def _parse(table: str) -> tuple[Source, ...]:
    out = []
    for line in table.strip().splitlines():
        name, scientific, group, phrases, caption = line.split("|")
        if not caption:
            article = "An" if name[0] in "AEIOU" and not name.startswith("Eu") else "A"
            caption = f"{article} {name} calls."
        out.append(Source(name, scientific, group, tuple(phrases.split(";")), caption))
    return tuple(out)


HEARD: tuple[Source, ...] = _parse(_HEARD)
NAMED: tuple[Source, ...] = _parse(_NAMED)
SOURCES: tuple[Source, ...] = HEARD + NAMED
ANIMALS: tuple[Source, ...] = tuple(source for source in SOURCES if source.is_animal)
SPECIES: tuple[Source, ...] = tuple(source for source in ANIMALS if source.scientific)


@cache
def _by_name() -> dict[str, Source]:
    return {source.name: source for source in SOURCES}


def source(name: str) -> Source:
    """The source of this name; an error that says what is missing if there is none."""
    try:
        return _by_name()[name]
    except KeyError:
        raise NatureLMError(
            f"the text generator knows no sound source {name!r}; add it to recipes/tiny/species.py"
        ) from None
