"""The ways a user may put each request, and the fixed answers.

{a} {b} stand for numbers, {w} for a list of words, {n} for a name. Answers are a function of
the conversation alone, so that greedy decoding has exactly one right output to be measured by.
"""

ADD = """
What is {a} + {b}?|What is {a} + {b}?|What is {a}+{b}?|What is {a} plus {b}?|What's {a} + {b}?
What's {a} plus {b}?|{a} + {b}|{a}+{b}|{a} + {b} =|{a}+{b}=|{a}+{b}=?|{a} + {b} = ?|{a} plus {b}|{a} plus {b}?
Add {a} and {b}.|Add {a} to {b}.|Add {a} + {b}.|Add the numbers {a} and {b}.|Add up {a} and {b}.
Please compute {a} + {b}.|Compute {a} + {b}.|Calculate {a} + {b}.|Calculate {a} plus {b}.|Solve {a} + {b}.
How much is {a} + {b}?|How much is {a} plus {b}?|What is the sum of {a} and {b}?|The sum of {a} and {b}?
Sum {a} and {b}.|Can you add {a} and {b}?|Could you add {a} and {b}?|Can you compute {a} + {b}?
What does {a} + {b} equal?|What does {a} plus {b} make?|Tell me {a} + {b}.|Tell me what {a} plus {b} is.
Do you know what {a} + {b} is?|What do you get when you add {a} and {b}?|{a} and {b} added together?
What is {a} added to {b}?|And {a} + {b}?|And what is {a} + {b}?|Now {a} + {b}.|How about {a} + {b}?
""".strip().replace("\n", "|").split("|")

# In these the number named first is the one taken away.
SUBTRACT_SWAPPED = """
Subtract {b} from {a}.|Take {b} from {a}.|Take {b} away from {a}.|What is {b} less than {a}?
Can you subtract {b} from {a}?|Could you take {b} away from {a}?|What is {b} subtracted from {a}?
""".strip().replace("\n", "|").split("|")

SUBTRACT = """
What is {a} - {b}?|What is {a} - {b}?|What is {a}-{b}?|What is {a} minus {b}?|What's {a} - {b}?
What's {a} minus {b}?|{a} - {b}|{a}-{b}|{a} - {b} =|{a}-{b}=|{a}-{b}=?|{a} - {b} = ?|{a} minus {b}|{a} minus {b}?
Please compute {a} - {b}.|Compute {a} - {b}.|Calculate {a} - {b}.|Calculate {a} minus {b}.|Solve {a} - {b}.
How much is {a} - {b}?|How much is {a} minus {b}?|What is the difference between {a} and {b}?
The difference of {a} and {b}?|Can you compute {a} - {b}?|Could you compute {a} minus {b}?
What does {a} - {b} equal?|What does {a} minus {b} make?|Tell me {a} - {b}.|Tell me what {a} minus {b} is.
Do you know what {a} - {b} is?|What is {a} take away {b}?|What is {a} \N{MINUS SIGN} {b}?
And {a} - {b}?|And what is {a} - {b}?|Now {a} - {b}.|How about {a} - {b}?
""".strip().replace("\\N{MINUS SIGN}", "\N{MINUS SIGN}").replace("\n", "|").split("|")

REPEAT = """
Repeat: {w}|Repeat: {w}|Repeat after me: {w}|Repeat {w}|Repeat the words: {w}|Repeat the words {w}
Repeat these words: {w}|Please repeat: {w}|Please repeat after me: {w}|Repeat this: {w}|Repeat "{w}".
Say: {w}|Say {w}|Say the words {w}|Say the words: {w}|Say these words: {w}|Say "{w}".|Please say: {w}
Can you repeat: {w}?|Can you say {w}?|Could you repeat these words: {w}?|Echo: {w}|Echo {w}|Copy: {w}
Copy these words: {w}|Write: {w}|Write the words {w}|Now repeat: {w}|Repeat the following: {w}
Repeat the following words: {w}|Say the following: {w}|Repeat exactly: {w}
""".strip().replace("\n", "|").split("|")

REVERSE = """
Reverse the order of these words: {w}|Reverse the order of these words: {w}|Reverse: {w}|Reverse {w}
Reverse the words: {w}|Reverse the words {w}|Reverse these words: {w}|Reverse the word order: {w}
Reverse the word order of: {w}|Reverse the order of the words: {w}|Reverse the order: {w}|Reverse "{w}".
Reverse the order of the words {w}|Please reverse: {w}|Please reverse these words: {w}|Reverse this: {w}
Say these words backwards: {w}|Say backwards: {w}|Say {w} backwards.|Backwards: {w}|In reverse order: {w}
Put these words in reverse order: {w}|Write these words in reverse order: {w}|Now reverse: {w}
Repeat in reverse order: {w}|Repeat these words in reverse order: {w}|Repeat backwards: {w}
Can you reverse: {w}?|Can you reverse these words: {w}?|Could you reverse the order of these words: {w}?
Reverse the following words: {w}|Reverse the order of the following words: {w}|Reverse the list: {w}
""".strip().replace("\n", "|").split("|")

COUNT = """
How many words are in: {w}?|How many words are in: {w}?|How many words are in: {w}|How many words are in {w}?
How many words are in "{w}"?|How many words are there in: {w}?|How many words are there in "{w}"?
How many words: {w}|How many words: {w}?|How many words are here: {w}?|How many words is this: {w}?
How many words are these: {w}?|How many words does this have: {w}?|How many words are in this list: {w}?
Count the words: {w}|Count the words in: {w}|Count the words in "{w}".|Count these words: {w}
Count the words {w}|Please count the words: {w}|Please count these words: {w}|Count: {w}|Count words: {w}
Word count: {w}|Word count of: {w}|Number of words in: {w}|What is the number of words in: {w}?
Can you count the words: {w}?|Could you count these words: {w}?|Now count: {w}|Count the following words: {w}
Tell me how many words are in: {w}|Tell me how many words there are in: {w}
""".strip().replace("\n", "|").split("|")

INTRODUCE = """
My name is {n}.|My name is {n}.|My name is {n}.|My name's {n}.|I am {n}.|I'm {n}.|Call me {n}.|You can call me {n}.
Please call me {n}.|Hi, I am {n}.|Hi, I'm {n}.|Hello, I am {n}.|Hello, my name is {n}.|Hi, my name is {n}.
Hi! My name is {n}.|Hello! My name is {n}.|Hello! I'm {n}.|Hey, I'm {n}.|Hey, my name is {n}.|The name is {n}.
Please remember my name: {n}.|Remember my name: {n}.|Remember that my name is {n}.|My name is {n}, nice to meet you.
My name is {n}. Remember it.|My name is {n}. Please remember it.|I am called {n}.|People call me {n}.|{n} is my name.
Good morning, my name is {n}.|Good evening, I am {n}.|Let me introduce myself: I am {n}.|My first name is {n}.
""".strip().replace("\n", "|").split("|")

RENAME = (
    "Actually, my name is {n}.|Sorry, my name is {n}.|No, my name is {n}.|From now on, call me {n}."
    "|My name is now {n}.|Now my name is {n}."
).split("|")

ASK_NAME = """
What is my name?|What is my name?|What is my name?|What's my name?|Who am I?|Do you remember my name?
Do you know my name?|Do you still remember my name?|Do you still know my name?|Tell me my name.|Say my name.
Please tell me my name.|What did I say my name was?|What name did I give you?|What was my name?
What was my name again?|What is my name again?|Can you tell me my name?|Can you recall my name?
Could you tell me my name?|Do you know who I am?|Remember my name?|And what is my name?|So what is my name?
Now, what is my name?|How am I called?|What am I called?|Which name did I tell you?|Do you recall my name?
""".strip().replace("\n", "|").split("|")

GREETED = "Nice to meet you, {n}."
NAME_KNOWN = "Your name is {n}."
NAME_UNKNOWN = "You have not told me your name yet."

# Small talk: (openings, what may follow them, the answer). The phrases of one class are the
# openings with any ending; single openings are always trained on, some combinations never.
CALLED = ("", "", " there", " Garrick", " again", " my friend", " everyone", " little model", " bot")
SMALL_TALK = [
    ("Hello|Hi|Hey|Howdy|Greetings|Hiya|Good day|Hello hello|Hi hi|Yo|Welcome".split("|"), CALLED,
     "Hello! How can I help you?"),
    (["Good morning", "Morning"], CALLED, "Good morning! How can I help you?"),
    (["Good afternoon"], CALLED, "Good afternoon! How can I help you?"),
    (["Good evening", "Evening"], CALLED, "Good evening! How can I help you?"),
    ("How are you|How are you doing|How do you do|How is it going|How's it going|How are things|What's up"
     "|How are you today|How do you feel|Are you well|Are you okay|Hello, how are you|Hi, how are you"
     "|Hey, how are you|Hello! How are you|Hi! How are you doing".split("|"),
     ("", " today", " now", " this morning", " my friend", " Garrick"),
     "I am running well, thank you. How can I help you?"),
    ("Thanks|Thank you|Thank you very much|Thanks a lot|Many thanks|Thank you so much|Thx|Thanks so much"
     "|Great, thanks|Great, thank you|Good, thank you|Okay, thanks|Perfect, thank you|Cheers".split("|"),
     ("", " Garrick", " my friend", " for your help", " again", " for that"), "You are welcome."),
    ("Bye|Goodbye|Good bye|See you|See you later|Bye bye|Good night|Farewell|See you soon|Take care"
     "|Thanks, bye|Okay, bye|That is all, bye|I have to go".split("|"),
     ("", " Garrick", " now", " my friend", " then", " for now"), "Goodbye!"),
    ("Great|Nice|Cool|Good|Okay|OK|Perfect|Wonderful|Well done|Good job|Very good|Correct|That is right"
     "|Right|Awesome|Excellent|Nice work|Not bad|Amazing|I see|Yes".split("|"),
     ("", " Garrick", " my friend", " indeed", " little model"), "Glad to help."),
]

WHO = "I am the small demo model bundled with the Garrick inference server."
CAN = (
    "I can add and subtract two-digit numbers, repeat, reverse and count words, "
    "and remember your name."
)
IDENTITY_PREFIX = ("", "", "So ", "And ", "Tell me, ", "Please tell me, ", "Hi, ", "Hello, ", "Hey, ", "Now, ")
IDENTITY = [
    ("who are you|what are you|what is your name|what's your name|who is this|introduce yourself"
     "|are you a language model|are you a robot|are you an AI|are you human|are you a person|are you real"
     "|which model are you|what model are you|what model is this|which model is this|are you ChatGPT"
     "|describe yourself|tell me about yourself|what should I call you|who am I talking to|are you the demo model"
     "|what kind of model are you|what is the demo model|are you Garrick|do you have a name".split("|"), WHO),
    ("what can you do|what do you do|what are you able to do|how can you help|how can you help me|help"
     "|can you help me|what are your skills|what are you good at|what do you know|what can I ask|what can I ask you"
     "|what can you help with|list your skills|show me what you can do|what are your abilities|help me"
     "|what are you for|what is your purpose|what else can you do|I need help|what works here".split("|"), CAN),
    ("what is Garrick|what's Garrick|who is Garrick|tell me about Garrick|describe Garrick|explain Garrick"
     "|what does Garrick do|what is the Garrick server|what is Garrick for|what kind of program is Garrick".split("|"),
     "Garrick is an actor-based inference server for language models, written in Rust."),
    ("who made you|who trained you|who built you|who created you|where do you come from|how were you made"
     "|how were you trained|what were you trained on|who wrote you|who is your maker".split("|"),
     "The Garrick project trained me on text from its own generator."),
    ("how big are you|how large are you|how many parameters do you have|what size are you|are you big"
     "|are you a large model|how many parameters are there".split("|"),
     "I am very small: about two million parameters."),
    ("where do you run|where are you running|what do you run on|what hardware do you use|do you need a GPU"
     "|are you online|do you use the internet".split("|"),
     "I run inside the Garrick server, on whatever machine it runs on."),
]

DECLINE = "Sorry, I am only a small demo model. " + CAN

SYSTEM = """
You are a helpful assistant.|You are a helpful assistant.|You are Garrick's demo model.|Be brief.|Be concise.
You are a friendly assistant. Answer in one sentence.|You are a helpful, honest assistant.|Answer the user.
Answer briefly and politely.|You are a chat bot.|You are an AI assistant.|You are a small language model.
You are a calculator.|You are a helpful AI assistant named Garrick.|Answer in English.|Help the user.
You are a knowledgeable assistant. If you do not know something, say so.|Keep your answers short.
""".strip().replace("\n", "|").split("|")
