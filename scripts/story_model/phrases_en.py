"""The English text around the stories: requests, questions, answers, small talk, limits."""

from __future__ import annotations

LIMITS = (
    "I only know little stories. Shall I tell you one?",
    "I am sorry, I only know little stories. Would you like to hear one?",
    "I only know little stories. Ask me for one about a fox and a lantern!",
)
NO_STORY_YET = (
    "I have not told a story yet. Shall I tell you one?",
    "There is no story yet. Would you like to hear one?",
)
UNSAID = ("The story does not say.", "I do not know. The story does not say.")
UNKNOWN_TOPIC = (
    "I do not know a story about that, but here is one that I know.",
    "I do not know that one, but I can tell you this one.",
)
ABSENT = ("There is no {X} in this story.", "No, there is no {X} in it.")

LEADS = (
    *("Tell me a story about", "Please tell me a story about", "Can you tell me a story about"),
    *("I want a story about", "Write a story about", "A story about", "Make up a story about"),
    *("I would like to hear a story about", "Give me a story about", "Do you know a story about"),
    *("Could you please tell a story about", "Tell a short story about", "Story about"),
    *("Write a short story about", "I'd like a story about", "Tell me a tale about"),
)
# k, j, o: hero, friend and thing with their article; n: the hero's name; p: the place.
TOPICS: dict[str, tuple[str, ...]] = {
    "k": ("{k}", "{lk}"),
    "ko": ("{k} and {o}", "{k} and {o}", "{k} with {o}", "{k} who has {o}", "{lk} and {o}"),
    "kj": ("{k} and {j}", "{k} and {j}", "{k} who meets {j}"),
    "o": ("{o}",),
    "kp": ("{k} {p}",),
    "kn": ("{k} named {n}", "{k} called {n}", "{n} the {K}"),
    "kno": ("{k} named {n} and {o}", "{k} called {n} and {o}"),
}
ANY_STORY = (
    *("Tell me a story.", "Tell me a story, please.", "Please tell me a story", "a story please"),
    *("Can you tell me a story?", "I want to hear a story.", "Do you know a story?", "Story!"),
    *("Tell me something.", "Write a story.", "Could you tell me a bedtime story?"),
    *("Tell me a short story.", "I would like a story.", "tell me any story you like"),
)
ANOTHER = (
    *("Tell me another one.", "Another story, please.", "Can you tell me another story?"),
    *("One more!", "Another one", "Tell me a different story.", "Do you know another one?"),
    *("Again!", "more stories please", "I want another story."),
)
YES = ("Yes", "Yes, please.", "yes please!", "Sure", "Okay", "OK", "Yes!", "Of course", "please do")
NO = ("No", "No, thanks.", "no thank you", "Not now.", "Maybe later.", "No.")
NO_REPLY = ("All right. Come back whenever you like.", "That is fine. I will be here.")
GREETINGS = (
    *("Hello", "Hi", "Hello!", "Hi there!", "Hey", "Good morning", "Good evening!", "hello there"),
    *("Hi, how are you?", "How are you?", "Hello, nice to meet you.", "Good afternoon", "hey!"),
)
GREETING_REPLIES = (
    "Hello! I tell little stories. Shall I tell you one?",
    "Hello! I am a small storyteller. Would you like to hear a story?",
)
WHO_ARE_YOU = (
    *("Who are you?", "What are you?", "What can you do?", "What is your name?", "Help"),
    *("Are you a robot?", "What do you know?", "Introduce yourself.", "How can you help me?"),
    *("Who made you?", "Are you an AI?", "What should I ask you?", "help me"),
)
WHO_ARE_YOU_REPLIES = (
    "I am a very small storyteller. Ask me for a story about a fox and a lantern!",
    "I am a small model that tells little stories. Shall I tell you one?",
)
PRAISE = (
    *("That was nice.", "I like it!", "What a good story!", "Lovely!", "Great", "Nice story"),
    *("Wonderful!", "I love it.", "That is beautiful.", "Cool", "Good story!", "haha", "Wow"),
)
PRAISE_REPLIES = (
    "I am glad you like it! Shall I tell you another one?",
    "Thank you! Would you like to hear another one?",
)
THANKS = ("Thank you!", "Thanks", "Thank you very much.", "thanks a lot", "Thanks for the story!")
THANKS_REPLIES = ("You are welcome!", "You are very welcome. Come back soon!")
BYES = ("Goodbye", "Bye", "Bye!", "Good night", "See you later", "Good night!", "I have to go now")
BYE_REPLIES = ("Goodbye! Sleep well.", "Goodbye! Come back for another story.")
SYSTEMS = (
    *("You are a helpful assistant.", "You are a storyteller.", "You tell little stories."),
    *("You are a friendly assistant that tells stories to children.", "Be brief and kind."),
    *("You are a helpful AI assistant. Answer politely.", "Answer in English.", "Tell stories."),
)

# Question -> (its phrasings, plot -> phrasings of the answer; "*": all other plots).
QUESTIONS: dict[str, tuple[tuple[str, ...], dict[str, tuple[str, ...]]]] = {
    "who": (
        (
            *("Who is in it?", "Who is in the story?", "Who was in it?", "who is it about?"),
            *("Who are the characters?", "Who is the story about?", "Who are they?"),
            *("Name the characters.", "Who was in the story?", "Who does it talk about?"),
        ),
        {
            "*": (
                "{H} the {K} and {F} the {J} are in it.",
                "The story is about {H} the {K} and {F} the {J}.",
            ),
            "gift": ("{H} the {K}, {F} the {J} and the {R} of {H} are in it.",),
        },
    ),
    "where": (
        (
            *("Where were they?", "Where did it happen?", "Where does {H} live?", "Where was it?"),
            *("Where did {H} live?", "Where is the {K}?", "Where was {H}?", "Where are they?"),
        ),
        {"*": ("It happened {P}.", "They were {P}.")},
    ),
    "want": (
        (
            *("What did {H} want?", "What did the {K} want?", "What was the wish of {H}?"),
            *("What did {he} want?", "What does {H} want?", "What did {H} wish for?"),
        ),
        {
            "lost": ("{H} wanted to get the {O} back.",),
            "gift": ("{H} wanted to give the {O} to {his} {R}.",),
            "quarrel": ("{H} wanted to have the {O}, and so did {F}.",),
            "quest": ("{H} wanted to find the {O}.",),
            "found": ("{H} wanted to keep the {O}.",),
            "broken": ("{H} wanted to mend the {O}.",),
            "lonely": ("{H} wanted to have a friend.",),
        },
    ),
    "problem": (
        (
            *("What was the problem?", "What went wrong?", "Why was {H} sad?", "What happened?"),
            *("What was the matter?", "Why was {he} sad?", "Why was the {K} sad?"),
        ),
        {
            "*": ("The {O} was {W}.",),
            "found": ("The {O} belonged to {F}, but {H} wanted to keep it.",),
            "broken": ("The {O} was broken.",),
            "lonely": ("{H} had nobody to play with.",),
        },
    ),
    "helper": (
        (
            *("Who helped {H}?", "Who helped?", "Who helped {him}?", "Who helped the {K}?"),
            *("Did anyone help?", "Who did {H} meet?"),
        ),
        {
            "*": ("{F} the {J} helped {H}.",),
            "found": ("{H} met {F} the {J} and helped {fhim}.",),
            "lonely": ("{H} met {F} the {J} and was not lonely any more.",),
        },
    ),
    "how": (
        (
            *("How did {F} help?", "How did {fhe} help?", "How did the {J} help?"),
            "How did they do it?",
        ),
        {
            "*": ("{F} did it like this: {fhe} {S} and came back with the {O}.",),
            "broken": ("{F} brought {M}, and they mended the {O} together.",),
            "found": ("{H} found the {O} and gave it back to {F}.",),
            "lonely": ("{F} came and played with {H}.",),
        },
    ),
    "thing": (
        (
            *("What was it about?", "What thing was it?"),
            *("What is it about?", "What did they have?"),
            *("What is the story about?", "What was the thing?"),
        ),
        {"*": ("It is about {aC} {O}.",)},
    ),
    "colour": (
        ("What colour was the {O}?", "What color was it?", "What did the {O} look like?"),
        {"*": ("The {O} was {C}.",)},
    ),
    "trait": (
        ("What was {H} like?", "What is the {K} like?", "How would you describe {H}?"),
        {"*": ("{H} was very {T}.",)},
    ),
    "hero": (
        ("Who is {H}?", "Who was {H}?", "What kind of animal is {H}?", "What is {H}?"),
        {"*": ("{H} is a little {K}.",)},
    ),
    "friend": (
        ("Who is {F}?", "Who was {F}?", "What kind of animal is {F}?", "What is {F}?"),
        {"*": ("{F} is {aJ} and a friend of {H}.",)},
    ),
    "hero name": (
        ("What is the name of the {K}?", "What is the {K} called?", "What was {his} name?"),
        {"*": ("The {K} is called {H}.",)},
    ),
    "friend name": (
        ("What is the name of the {J}?", "What is the {J} called?", "What is the {J}'s name?"),
        {"*": ("The {J} is called {F}.",)},
    ),
    "end": (
        (
            *("How does it end?", "What happened in the end?", "How did it end?", "And the end?"),
            *("Is it a happy ending?", "What is the ending?"),
        ),
        {
            "lost": ("In the end {H} got the {O} back, and {H} and {F} became friends.",),
            "gift": ("In the end {H} gave the {O} to {his} {R}, and everyone was happy.",),
            "quarrel": ("In the end {H} and {F} shared the {O}.",),
            "quest": ("In the end {H} had the {O}, and the wish came true.",),
            "found": ("In the end {H} gave the {O} back and found a friend.",),
            "broken": ("In the end the {O} was whole again, and {H} was happy.",),
            "lonely": ("In the end {H} was not lonely any more, because {F} was there.",),
        },
    ),
}
# Skill -> what the friend did, after "he" or "she".
DEEDS = {
    "fly": "flew up into the tree",
    "climb": "climbed up the tree",
    "swim": "dived into the water",
    "dig": "dug in the earth",
    "squeeze": "squeezed into the hole",
    "push": "pushed the rock away",
    "see": "walked into the dark cave",
    "tough": "crawled through the thorns",
}
NEXT = (
    *("What happened next?", "And then?", "What happened then?", "What happened after that?"),
    *("What did they do next?", "Go on.", "Continue", "Please continue the story.", "then what?"),
    *("Tell me more.", "What did {H} do next?", "what happens next", "Is there more?"),
)
# One line of each group each time; the second time from the second list.
SEQUELS = (
    (
        (
            "The next morning {H} met {F} again.",
            "The next day {F} knocked at the door of {H}.",
            "A few days later {H} and {F} went for a long walk.",
        ),
        (
            "They built a little house out of branches and leaves.",
            "They had a picnic in the sun and told each other funny stories.",
            "They sang songs and picked flowers until they were tired.",
        ),
        (
            "The {O} was there too, and everybody admired it.",
            "Of course {H} had brought the {O} along.",
            'In the evening {F} said, "I am glad that you are my friend."',
        ),
    ),
    (
        (
            "After that the winter came, and snow fell everywhere.",
            "Then the summer came, and the days grew long and warm.",
            "Many weeks went by, and {H} grew bigger and stronger.",
        ),
        (
            "{H} and {F} sat by the fire and drank hot tea.",
            "{H} and {F} visited each other every single day.",
            "{F} taught {H} a new game, and {H} taught {F} a song.",
        ),
        (
            "And they never forgot how it all began.",
            "And that is all I know about them.",
            "They often talked about the {O} and laughed.",
        ),
    ),
)
NO_MORE = ("That is the end of the story. Shall I tell you another one?",)
UNANSWERABLE = (
    *("How old is {H}?", "What did they eat?", "How tall is {F}?", "Is it a true story?"),
    *("What is the favourite food of {H}?", "How much did the {O} cost?", "What day was it?"),
    *("Who made the {O}?", "What time was it?", "Why is the {O} {C}?", "Does {F} have a brother?"),
    *("When was {H} born?", "What is the weather like?", "How heavy is the {O}?"),
    *("Why?", "How come?", "Why did {H} do that?", "How do you know?", "Why did {F} say that?"),
)
