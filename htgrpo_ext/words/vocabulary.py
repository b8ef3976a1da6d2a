"""Common English words of three to five letters: the prompts of the words world."""

THREE = """
act add age ago aid aim air all and ant any ape arm art ash ask axe bad bag ban bar bat bay bed bee bet big bit box
boy bug bus but buy cab can cap car cat cop cow cry cup cut dad day den dew did die dig dim dip dog dot dry due dug
ear eat egg ego elf end eve eye fan far fat fed fee few fig fin fit fix fly fog for fox fun fur gap gas get gin god
got gum gun gut guy gym had ham has hat hay hen her hid him hip his hit hop hot how hug hut ice ill ink inn jam jar
jaw jet job jog joy key kid kit lab lap law lay leg let lid lie lip lit log lot low mad man map mat men mix mob mom
mud mug nap net new nod not now nut oak odd off oil old one our out owl own pad pan pay pea pen pet pie pig pin pit
pot put rag ram ran rat raw red rib rid rim rip rob rod row rub rug run sad sat saw say sea see set sew she shy sin
sip sir sit six ski sky sly son sow spy sum sun tab tag tan tap tax tea ten the tie tin tip toe ton top toy try tub
two use van vet vow wag war was wax way web wet who why wig win wit won yes yet you zip zoo
""".split()  # noqa: SIM905, a list of strings would be ten times as long

FOUR = """
able acid aged also area army away baby back bake ball band bank barn base bath bean bear beat beef bell belt bend
best bike bill bird bite blow blue boat body boil bold bolt bone book boot born boss both bowl brow bulb bull burn
bush busy cage cake calf call calm camp card care cart case cash cave cell chin chip city clay clip club coal coat
code coin cold comb cook cool cope copy cord core corn cost crab crew crop crow cube curl dark dawn deal dear debt
deck deep deer desk dice diet dirt dish dive dock doll door dove down draw drop drum duck dull dust duty earn east
easy edge exit face fact fair fall farm fast fear feed feel file fill film find fire firm fish five flag flat flow
foam fold folk food foot fork form four free frog fuel full gate gift girl give glad glow glue goal goat gold golf
good gray grey grid grip grow gulf hair half hall hand hang hard harp hate hawk head heal heap hear heat heel help
herb hero hide high hill hint hold hole home hook hope horn host hour huge hunt idea iron item jail join joke jump
june jury just keen keep kick kind king kite knee knob knot lace lady lake lamb lamp land lane last late lawn lazy
lead leaf left lend lens less life lift like lime line lion list live load loaf lock loft long look loop lord lose
loud love luck lung mail main make male mall many mark mask meal meat melt menu mild milk mill mind mine mint miss
mist moon more most moth move much must nail name near neat neck need nest news next nice nine none noon nose note
oven over pack page pain pair palm park part past path peak pear pile pill pine pink pipe plan play plot plug plum
poem poet pole pond pool poor port post pour pure push quit race rain rank rare read real rent rest rice rich ride
ring rise road roar rock role roll roof room root rope rose ruby rule rush safe sail salt same sand save seal seat
seed seek sell send shed ship shoe shop show shut side sign silk sing sink site size skin slow snow soap sock soft
soil song soon soul soup star stay stem step stop such suit sure swim tail take tale talk tall tank tape task taxi
team tell tent test text than that them then they thin this tide tiny tire told tone tool tour town tray tree trip
true tube tune turn twin type unit upon vase vast very view vine vote wage wait wake walk wall want warm wash wave
weak wear week well west what when whom wide wife wild will wind wine wing wire wise wish with wolf wood wool word
work yard yarn year your zero zone
""".split()  # noqa: SIM905, a list of strings would be ten times as long

FIVE = """
above actor adult after again agree alarm album alert alive alone among angel anger angle apple april apron arena
arrow aside award bacon badge baker basic basin beach beard beast bench berry birth black blade blame blank blend
bless blind block blood bloom board boast bonus boost booth brain brake brand brass brave bread break brick bride
brief bring broad brook broom brown brush build bunch cabin cable camel candy canoe cargo carry catch cause chain
chair chalk charm chart chase cheap check cheek cheer chess chest chief child chili china choir civil claim clean
clear clerk click cliff climb clock cloth cloud clown coach coast cobra color coral count court cover crack craft
crane crash cream creek crime cross crowd crown crust curve daily dairy dance delay depth diary dirty donor doubt
dozen draft drain drama dream dress drift drink drive eagle early earth eight elbow empty enemy enjoy enter equal
error event every exact extra faith false fancy fault feast fence fever fiber field fifth fight final flame flash
fleet float flock flood floor flour fluid flute focus force forty frame fresh front frost fruit funny ghost giant
glass globe glory glove grace grade grain grand grape grass great green greet group guard guest guide habit happy
harsh heart heavy hello honey honor horse hotel house human humor ideal image index inner jelly jewel joint judge
juice knife knock label labor large laser later laugh layer learn lemon level light limit liver local logic loose
lower lucky lunch magic major maker maple march marsh match mayor medal melon mercy merge merit metal meter minor
mixed model money month moral motor mouse mouth movie music nerve never night noble noise north novel nurse ocean
offer often olive onion opera orbit order organ other outer paint panel paper party patch peace peach pearl pedal
penny phone photo piano piece pilot pitch place plain plane plant plate plaza point polar porch pound power press
price pride print prize proof proud punch pupil queen quick quiet quilt radio raise ranch range rapid reach ready
reply rider ridge rifle right rigid river roast robin robot rocky rough round route royal rural salad sauce scale
scarf scene scent scope score scout seven shade shake shape share shark sharp sheep sheet shelf shell shine shirt
shock shore short shout sight silly skate skill skirt sleep slice slide slope small smart smell smile smoke snack
snake solar solid solve sound south space spare spark speak speed spice spoon sport squad stack staff stage stair
stamp stand start steam steel steep stick stiff still stone stool storm story stove straw style sugar sunny sweet
swift swing sword table taste teach tenth thank thick thief thing think third thumb tiger tight toast today token
topic torch total touch tough towel tower track trade trail train treat trend trial tribe trick truck trunk trust
truth tulip twice uncle under union unity upper urban usual valid value video visit vital vivid voice wagon waist
waste watch water wheat wheel where white whole woman world worry worth wrist yacht young youth zebra
""".split()  # noqa: SIM905, a list of strings would be ten times as long

WORDS = {len(words[0]): tuple(words) for words in (THREE, FOUR, FIVE)}  # by their length
