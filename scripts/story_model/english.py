"""The English lines of the stories. A line is written for one beat; {slots} come from the plan.

H, K, T: the hero's name, kind and trait; F, J: the friend's name and kind; C, O: colour and thing;
P: place; R: recipient; W: where the thing ended up; M: what mends it; he/him/his and fhe/fhim/fhis:
the pronouns of hero and friend. A capital first letter of the slot's name makes a capital surface.
"""

from __future__ import annotations

WHERE: dict[str, str] = {
    "tree": "at the top of a tall tree",
    "pond": "at the bottom of a deep pond",
    "hole": "in a deep, narrow hole",
    "rock": "under a heavy rock",
    "cave": "in the middle of a dark cave",
    "thorns": "inside a thorny bush",
}

LINES: dict[str, tuple[str, ...]] = {
    "opening": (
        "Once upon a time, {P}, there lived a little {K} named {H}.",
        "Once there was a little {K} called {H} who lived {P}.",
        "Long ago, a little {K} named {H} lived {P}.",
        "Once upon a time there was a little {K} who lived {P}. {His} name was {H}.",
        "There was once a little {K} called {H}, and {he} lived {P}.",
        "{H} was a little {K} who lived {P}.",
    ),
    "trait": (
        "Everyone knew that {H} was very {T}.",
        "{He} was {T}, and everyone liked {him}.",
        "There was no {K} as {T} as {H} for miles around.",
        "{He} was small and very {T}.",
        "All the neighbours said that {H} was {T}.",
    ),
    "own": (
        "{H} had {aC} {O} that {he} loved more than anything.",
        "For {his} birthday {he} had been given {aC} {O}, and {he} took it everywhere.",
        "The thing {H} loved most was {aC} {O}.",
        "Every morning {H} took out {aC} {O} and looked at it happily.",
        "{He} owned only one treasure, and that was {aC} {O}.",
    ),
    "event:tree": (
        "One windy day the {O} flew up into the air and ended up {W}.",
        "One morning a naughty gust of wind lifted the {O} high into the sky and left it {W}.",
        "Then, one day, a big wind came and carried the {O} away, and it got stuck {W}.",
    ),
    "event:pond": (
        "One day {H} slipped on a wet stone, and the {O} sank until it lay {W}.",
        "One rainy morning the {O} fell into the water with a splash, and soon it was {W}.",
        "Then, one day, the {O} slid down the bank and disappeared, and now it lay {W}.",
    ),
    "event:hole": (
        "One day {H} stumbled, and the {O} dropped out of sight and landed {W}.",
        "One morning the {O} slipped away, rolled down the path and fell, and then it lay {W}.",
        "Then, one day, the ground gave way, and the {O} ended up {W}.",
    ),
    "event:rock": (
        "One day there was a loud rumble from above, and soon the {O} was trapped {W}.",
        "One stormy morning some stones rolled down the slope, and the {O} got caught {W}.",
        "Then, one day, the earth shook a little, and afterwards the {O} was stuck {W}.",
    ),
    "event:cave": (
        "One day the {O} slipped away, rolled down a slope and came to rest {W}.",
        "One evening {H} ran from the rain and dropped the {O}, and it was left {W}.",
        "Then, one day, {H} tripped, and the {O} tumbled down and disappeared {W}.",
    ),
    "event:thorns": (
        "One day {H} ran too fast and tripped, and the {O} landed {W}.",
        "One morning the {O} slipped away, bounced twice and got caught {W}.",
        "Then, one day, the {O} rolled off the path and ended up {W}.",
    ),
    "feeling": (
        "{H} was so sad that {he} began to cry.",
        "{H} did not know what to do, and a tear ran down {his} cheek.",
        '"Oh no!" cried {H}. "What shall I do now?"',
        "{H} sat down on the ground and felt very sorry.",
        "Poor {H} felt {his} heart grow heavy.",
    ),
    "attempt:tree": (
        "{He} jumped as high as {he} could, but the branch was much too high.",
        "{He} tried to shake the tree, but it did not move at all.",
        "{He} stood on tiptoe and stretched, but it was no use.",
    ),
    "attempt:pond": (
        "{He} reached in as far as {he} could, but the water was much too deep.",
        "{He} poked about with a long stick, but the stick was too short.",
        "{He} put one foot in the water, but it was cold and deep.",
    ),
    "attempt:hole": (
        "{He} lay down and reached inside, but the hole was much too deep.",
        "{He} tried to squeeze in, but {he} was much too big.",
        "{He} poked about with a stick, but it could not reach that far.",
    ),
    "attempt:rock": (
        "{He} pushed with all {his} strength, but the rock did not move.",
        "{He} pulled and pushed until {he} was tired, but nothing happened.",
        "{He} tried to lift the rock, but it was much too heavy.",
    ),
    "attempt:cave": (
        "{He} went three steps inside, but it was so dark that {he} had to turn back.",
        "{He} looked and looked, but {he} could not see anything in the dark.",
        "{He} wanted to go in, but it was as black as night in there.",
    ),
    "attempt:thorns": (
        "{He} tried to reach it, but the sharp thorns pricked {him}.",
        "{He} pushed the branches apart, but the thorns were much too sharp.",
        "{He} walked around the bush three times, but there was no way in.",
    ),
    "meet": (
        "Just then {aJ} named {F} came along the path.",
        "After a while {aJ} called {F} passed by and stopped.",
        "At that moment {he} heard a friendly voice. It was {F}, {aJ} from nearby.",
        "Soon {aJ} came by. {Fhis} name was {F}, and {fhe} had kind eyes.",
    ),
    "ask": (
        '"Why are you so sad?" asked {F}, and {H} told {fhim} everything.',
        '"What is the matter?" asked {F}. "The {O} is {W}," said {H}.',
        '"Can you help me?" asked {H}. "Of course I can," said {F}.',
        '"Do not worry," said {F} gently. "I think I can help you."',
    ),
    "help:fly": (
        "{F} flew up to the highest branch and carried the {O} down.",
        "{F} spread {fhis} wings, flew to the top and brought the {O} back.",
        "With a few beats of {fhis} wings {F} was up there, and {fhe} brought the {O} down.",
    ),
    "help:climb": (
        "{F} climbed up from branch to branch and brought the {O} down.",
        "Quickly {F} climbed to the very top and came back with the {O}.",
        "{F} held on tight, climbed up the trunk and carried the {O} down.",
    ),
    "help:swim": (
        "{F} dived into the water and came up again with the {O}.",
        "With one big splash {F} swam down to the bottom and brought the {O} up.",
        "{F} took a deep breath, swam down and pulled the {O} out of the water.",
    ),
    "help:dig": (
        "{F} dug and dug until the hole was wide, and pulled the {O} out.",
        "{F} began to dig, the earth flew in all directions, and soon {fhe} had the {O}.",
        "{F} dug a tunnel from the side and came out with the {O}.",
    ),
    "help:squeeze": (
        "{F} was so small that {fhe} slipped into the hole and pushed the {O} out.",
        "{F} squeezed into the narrow hole and came back with the {O}.",
        "{F} made {fhim}self thin, crept inside and pulled the {O} out.",
    ),
    "help:push": (
        "{F} put {fhis} shoulder to the rock, pushed it aside and picked up the {O}.",
        "{F} was very strong. {Fhe} rolled the rock away, and there was the {O}.",
        "With one mighty push {F} moved the rock and set the {O} free.",
    ),
    "help:see": (
        "{F} could see in the dark, so {fhe} went in and found the {O} at once.",
        "The dark did not trouble {F}. {Fhe} walked right in and came out with the {O}.",
        "{F} opened {fhis} sharp eyes wide, went inside and brought the {O} out.",
    ),
    "help:tough": (
        "The thorns could not hurt {F}, so {fhe} crawled in and brought the {O} out.",
        "{F} had a thick, hard back. {Fhe} went straight in and came out with the {O}.",
        "{F} pushed through the thorns without a scratch and pulled the {O} out.",
    ),
    "joy": (
        '"Thank you, {F}!" cried {H}, and {he} hugged {fhim} tightly.',
        "{H} was so happy that {he} danced around {F} in a circle.",
        '"You are wonderful!" said {H}, and {his} eyes were shining.',
        "{H} laughed for joy and thanked {F} again and again.",
    ),
    "end:lost": (
        "After that the two of them played with the {O} until the sun went down.",
        "Then they shared a warm supper, with the {O} lying safely between them.",
        "From then on {H} took good care of the {O} and never left it alone again.",
    ),
    "wish:gift": (
        "{H} wanted to give {his} {R} a present, and so {he} saved up and bought {aC} {O}.",
        "The birthday of {his} {R} was near, and {H} had chosen {aC} {O} as a present.",
        "{H} had made {aC} {O} for {his} {R} and set out to bring it to {rhim}.",
    ),
    "end:gift": (
        "Together they brought the {O} to the {R}, who had never been so happy.",
        "Then they walked on together and gave the {O} to {his} {R}, who smiled all evening.",
        "In the evening {his} {R} opened the present and was delighted with the {O}.",
    ),
    "start:quarrel": (
        "One day {H} was out walking with {F}, {aJ}, when they saw {aC} {O} in the grass.",
        "One day {H} and {aJ} named {F} found {aC} {O} beside the road.",
        "{H} and {his} neighbour {F}, {aJ}, were playing together when they found {aC} {O}.",
    ),
    "quarrel": (
        '"It is mine!" shouted {H}. "No, it is mine!" shouted {F}.',
        '"I saw it first!" said {H}. "But I picked it up!" said {F}.',
        "Both of them wanted it, and they began to pull at it from both sides.",
    ),
    "flew:quarrel": (
        "They pulled so hard that the {O} flew out of reach, and in the end it was {W}.",
        "Suddenly it slipped away from them both, and a moment later the {O} was {W}.",
        "Nobody looked where they were going, and at last the {O} ended up {W}.",
    ),
    "sorry": (
        '"I am sorry," said {F} quietly. "I am sorry too," said {H}.',
        "{F} looked at {H}, and {H} was ashamed.",
        '"That comes of quarrelling," sighed {F}, and {H} nodded.',
    ),
    "end:quarrel": (
        "From then on they shared the {O}: one day it was with {H}, the next with {F}.",
        '"It belongs to both of us," said {H}, and they never fought about the {O} again.',
        "They agreed to share the {O} and played with it together all afternoon.",
    ),
    "wish:quest": (
        "{H} had one great wish: {he} wanted to find the famous {C} {O}.",
        "Every night {H} dreamed of {aC} {O}, and {he} wished to find it.",
        "An old song told of {aC} {O}, and {H} longed to see it.",
    ),
    "rumour:quest": (
        'One day an old traveller said, "I have seen that {O}. It is {W}."',
        "One day {H} heard that the {O} was {W}, and {he} set out at once.",
        "After a long search {he} saw it with {his} own eyes: the {O} was {W}.",
    ),
    "end:quest": (
        "So the wish came true at last, and {H} let everyone have a look at the {O}.",
        "{H} carried the {O} home, and {F} came along to celebrate.",
        "The {O} was even more beautiful than in the dreams, and they admired it together.",
    ),
    "find:found": (
        "One day {H} found {aC} {O} lying in the middle of the road.",
        "One morning something was shining in the grass. It was {aC} {O}.",
        "One day, on the way home, {H} stepped on something. It was {aC} {O}.",
    ),
    "keep:found": (
        '"How beautiful!" thought {H}. "I would love to keep it."',
        "{H} liked it so much that {he} wanted to keep it for ever.",
        '"Nobody is looking," {he} thought, and {he} hid it under {his} coat.',
    ),
    "owner:found": (
        "But then {he} met {aJ} named {F}, who was crying bitterly.",
        "A little later {he} saw {aJ} called {F}, who was searching everywhere.",
        "But around the corner sat {F}, {aJ}, with tears in {fhis} eyes.",
    ),
    "lament:found": (
        '"I have lost my {O}," said {F}. "It was a gift from my grandmother."',
        '"Have you seen my {O}?" asked {F}. "I cannot sleep without it."',
        '"My {O} is gone," sobbed {F}, "and I have looked for it since yesterday."',
    ),
    "think:found": (
        "{H} thought about it for a long time, and {his} heart beat fast.",
        "For a moment {H} said nothing, because it was hard to give it back.",
        "{H} wished to keep it, but {he} could not bear to see {fhim} so sad.",
    ),
    "return:found": (
        '"Here it is," {he} said at last, and {he} gave the {O} back to {F}.',
        'Then {he} held out the {O} and said, "I found it. It is yours."',
        '"Do not cry any more," said {H}, and {he} put the {O} down in front of {F}.',
    ),
    "thanks:found": (
        "{F} jumped for joy and thanked {H} with all {fhis} heart.",
        '"You are honest and good," said {F}, and {fhe} hugged {him}.',
        "{F} dried {fhis} tears and laughed again.",
    ),
    "end:found": (
        "After that {F} let {H} borrow the {O} whenever {he} liked.",
        '"Let us play with it together," said {F}, and they shared the {O} all day.',
        "{H} went home without the {O}, but with a light heart and a new friend.",
    ),
    "break:broken": (
        "One day {H} stumbled over a root, and the {O} broke.",
        "One morning {H} was careless for a moment, and the {O} fell down and broke.",
        "Then came a stormy night, and in the morning the {O} was broken.",
    ),
    "mend:broken": (
        "{He} tried to put it together with leaves and mud, but it fell apart again.",
        "{He} tied it up with grass, but the grass tore at once.",
        "{He} turned it this way and that, but {he} did not know how to mend it.",
    ),
    "tool:broken": (
        '"I know what to do," said {F}, and {fhe} fetched {M}.',
        '"Wait here," said {F}. Soon {fhe} came back with {M}.',
        "{F} opened {fhis} bag and took out {M}.",
    ),
    "work:broken": (
        "They worked side by side for an hour, and then the {O} was whole again.",
        "{H} held the pieces, {F} did the rest, and in the end the {O} was as good as new.",
        "Slowly and carefully the two of them mended the {O}.",
    ),
    "end:broken": (
        "The {O} looked even more beautiful than before, and they played until evening.",
        "From then on {H} carried the {O} very carefully and always remembered who had helped.",
        "One could still see where it had been mended, but {H} loved the {O} all the more.",
    ),
    "alone:lonely": (
        "But {H} had nobody to play with, and {he} often felt lonely.",
        "Yet {he} was sad, because {he} had no friend to share it with.",
        "Still, something was missing: {H} wished for a real friend.",
    ),
    "see:lonely": (
        "One day {he} noticed {aJ} named {F}, who was watching from behind a fence.",
        "One afternoon {aJ} called {F} peeped out shyly from behind a bush.",
        "One day {he} heard a rustle, and there stood {F}, {aJ} who was new in the area.",
    ),
    "invite:lonely": (
        '"Hello!" called {H}. "Would you like to play with my {O}?"',
        '"Come here," said {H} kindly. "We can play with the {O} together."',
        '{H} held out the {O} and said, "Look, you may have a turn."',
    ),
    "hesitate:lonely": (
        "{F} was afraid at first and took a step back.",
        '"I do not know," whispered {F}. "Nobody has ever asked me before."',
        "{F} looked at the ground, because {fhe} was very shy.",
    ),
    "wait:lonely": (
        "But {H} smiled and waited patiently, and slowly {F} came closer.",
        '"There is no hurry," said {H}, and {he} sat down to wait.',
        "So {H} put it down between them, and after a while {F} dared to come.",
    ),
    "play:lonely": (
        "Soon the two of them were laughing and playing as if they had always been friends.",
        "Before long they were running about and laughing out loud.",
        "They invented a new game, and time flew by.",
    ),
    "end:lonely": (
        "When the stars came out, they were still sitting together beside the {O}.",
        "In the evening {H} was not lonely any more, for the {O} had brought {him} a friend.",
        '"Tomorrow we will bring the {O} again," they promised each other.',
    ),
    "closing": (
        "From that day on {H} and {F} were the best of friends.",
        "And so {H} and {F} lived happily ever after.",
        "{H} and {F} remained good friends for the rest of their lives.",
        "That night {H} fell asleep with a smile and dreamed of {F}.",
        "And whenever {H} needed a friend, {F} was there.",
    ),
}
